"""The command `backfire`."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from daemon import __version__, config, inbox, log, outbox
from daemon.config import Folders, Settings
from daemon.domain import Job, JobState, mask_digest, shown
from daemon.errors import BackfireError, ConfigError, JobError, StoreError
from daemon.publish import renamed
from daemon.service import Service, Summary
from daemon.store import Store

if TYPE_CHECKING:
    from daemon.detectors import Source
    from daemon.pipeline import Result
    from daemon.protect import Phase

BAD_CONFIG, SOME_FAILED = 2, 3

app = typer.Typer(
    help="Protect pictures so that AI edits of their sensitive regions backfire.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

Config = Annotated[Path, typer.Option("--config", "-c", help="The configuration file.")]
OptionalConfig = Annotated[
    Path | None, typer.Option("--config", "-c", help="Settings; folders are not used.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DEFAULT = Path("config.yaml")


def main() -> None:
    """Entry point: Backfire's own errors become a message and an exit code, never a traceback."""
    os.umask(0o027)
    try:
        app()
    except ConfigError as error:
        _refuse(str(error), BAD_CONFIG)
    except StoreError as error:
        _refuse(str(error), 4)
    except BackfireError as error:
        _refuse(str(error), SOME_FAILED)


def _refuse(message: str, code: int) -> NoReturn:
    err.print(Text(f"backfire: {message}", style="red"))
    raise SystemExit(code)


def _version(value: bool) -> None:
    if value:
        print(f"backfire {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def run(config_file: Config = DEFAULT) -> None:
    """Watch the inbox until stopped (SIGTERM, Ctrl-C)."""
    log.setup()
    _serve(config.load(config_file), until_idle=False)


@app.command()
def once(config_file: Config = DEFAULT, as_json: AsJson = False) -> None:
    """Work everything that waits, then exit: 0 all published, 3 some failed, 2 bad configuration."""
    log.setup()
    summary = _serve(config.load(config_file), until_idle=True)
    if as_json:
        print(json.dumps(asdict(summary)))
    if summary.left:
        err.print(f"backfire: {summary.left} could not go on now; backfire explain says why", markup=False)
    raise typer.Exit(SOME_FAILED if summary.failed or summary.left else 0)


def _serve(settings: Settings, *, until_idle: bool) -> Summary:
    with _bar() as advance:
        service = Service(settings, on_progress=lambda job, *step: _named(advance, job.name)(*step))
        with closing(service):
            for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(name, lambda *_: service.stop())
            return service.run(until_idle=until_idle)


@contextmanager
def _bar() -> Iterator[Phase]:
    """A progress bar on a terminal, nothing off one; yields advance(text, done, total)."""
    if not err.is_terminal:
        yield lambda text, done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bars:
        current: list[TaskID] = []
        shown = ""

        def advance(text: str, done: int, total: int) -> None:
            nonlocal shown
            if text != shown:
                for task in current:
                    bars.remove_task(task)
                current[:] = [bars.add_task(text, total=total)]
                shown = text
            bars.update(current[0], completed=done, total=total)

        yield advance


def _named(advance: Phase, name: str) -> Phase:
    return lambda phase, done, total: advance(f"{name}: {phase}", done, total)


@app.command()
def protect(
    pictures: Annotated[list[Path], typer.Argument(help="Pictures to protect.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="A file, or a folder for several pictures.")],
    mask: Annotated[Path | None, typer.Option("--mask", "-m", help="White = protected.")] = None,
    config_file: OptionalConfig = None,
    as_json: AsJson = False,
) -> None:
    """Protect pictures here and now, without daemon or database; receipt and sheet lie beside the result."""
    from daemon.pipeline import process

    settings = _settings(config_file)
    several = len(pictures) > 1 or output.is_dir()
    if len(pictures) > 1 and mask is not None:
        raise ConfigError(f"--mask {mask}: one mask cannot serve {len(pictures)} pictures; give one picture")
    if several and output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output}: is a file, expected a folder for {len(pictures)} pictures")
    if not several:
        settings = _writing_as(output, settings)
    receipts, failed = [], 0
    for picture in pictures:
        target = output / picture.name if several else output
        try:
            if target.exists():
                raise ConfigError(f"{target}: exists already; nothing is overwritten; name another --output")
            data, source = _read(picture), _source(picture, mask)
            with _bar() as advance:
                result = process(data, source, settings, progress=_named(advance, picture.name))
            receipts.append(_write(target, result, settings))
        except BackfireError as error:
            if len(pictures) == 1 and isinstance(error, ConfigError):
                raise
            code = error.code.value if isinstance(error, JobError) else "config"
            reasons = [str(error)]
            receipts.append({"file": str(picture), "verdict": "failed", "code": code, "reasons": reasons})
        failed += not receipts[-1].get("output")
        if not as_json:
            _print_receipt(receipts[-1])
    if as_json:
        print(json.dumps(receipts, indent=2))
    raise typer.Exit(SOME_FAILED if failed else 0)


def _writing_as(output: Path, settings: Settings) -> Settings:
    """The settings with the format that the output's own extension names."""
    named = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".tif": "tiff", ".tiff": "tiff", ".webp": "webp"}
    wanted = named.get(output.suffix.lower())
    if wanted is None:
        raise ConfigError(
            f"--output {output}: got {output.suffix or 'no extension'}, expected {', '.join(named)}"
        )
    return settings.model_copy(update={"output": settings.output.model_copy(update={"format": wanted})})


def _settings(config_file: Path | None) -> Settings:
    return config.load(config_file) if config_file else Settings(folders=Folders(inbox=Path("inbox")))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name a readable file") from error


def _source(picture: Path, mask: Path | None) -> Source:
    """The picture's name with the given mask, or with the sidecars that lie beside it."""
    from daemon.detectors import Sidecar, Source

    if mask is not None:
        return Source(picture.name, (Sidecar(mask.name, _read(mask)),))
    beside = [picture.parent / os.fsdecode(name) for name in inbox.mask_names(os.fsencode(picture.name))]
    return Source(picture.name, tuple(Sidecar(path.name, _read(path)) for path in beside if path.is_file()))


def _write(target: Path, result: Result, settings: Settings) -> dict[str, Any]:
    """The result, unless it failed, and receipt and sheet in any case."""
    receipt = {**result.receipt, "output": None}
    folder = target.parent
    folder.mkdir(parents=True, exist_ok=True)
    weak = result.verdict == "weak" and settings.verify.on_weak == "fail"
    if result.verdict != "failed" and not weak:
        name = renamed(os.fsencode(target.name), result.extension)
        placed = outbox.place(result.data, folder, name, key=receipt["key"])
        receipt["output"] = str(folder / os.fsdecode(placed))
    outbox.replace(
        json.dumps(receipt, indent=2).encode(), folder, os.fsencode(target.name) + b".receipt.json"
    )
    if result.sheet is not None:
        outbox.replace(result.sheet, folder, os.fsencode(target.name) + b".sheet.jpg")
    return receipt


@app.command()
def verify(
    protected: Annotated[
        Path, typer.Argument(help="The protected picture, as published.", show_default=False)
    ],
    original: Annotated[Path, typer.Option("--original", help="The picture it was made of.")],
    mask: Annotated[Path | None, typer.Option("--mask", "-m", help="White = protected.")] = None,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="Write the picture sheet here (JPEG).")
    ] = None,
    config_file: OptionalConfig = None,
    as_json: AsJson = False,
) -> None:
    """Replay the edits on a protected picture: exit 0 protected, 3 weak or failed."""
    from daemon.pipeline import replay

    with _bar() as advance:
        result = replay(
            _read(original),
            _read(protected),
            _source(original, mask),
            _settings(config_file),
            progress=lambda phase, done, total: advance(phase, done, total),
        )
    if sheet is not None and result.sheet is not None:
        sheet.write_bytes(result.sheet)
    if as_json:
        print(json.dumps(result.receipt, indent=2))
    else:
        _print_receipt(result.receipt)
    raise typer.Exit(0 if result.verdict == "protected" else SOME_FAILED)


def _print_receipt(receipt: dict[str, Any]) -> None:
    colour = {"protected": "green", "weak": "yellow"}.get(receipt["verdict"], "red")
    line = Text.assemble((receipt["verdict"], colour), f"  {receipt['file']}")
    if receipt.get("output"):
        line.append(f" -> {receipt['output']}")
    if receipt.get("psnr_db"):
        line.append(f"  (PSNR {receipt['psnr_db']:.1f} dB, at most {receipt['max_change_levels']} levels)")
    out.print(line, soft_wrap=True)
    for reason in receipt["reasons"]:
        out.print(Text(f"  {reason}"), soft_wrap=True)
    if not receipt.get("edits"):
        return
    table = Table("region", "edit", "editor", "SSIM to clean edit", "L1", "SSIM under plain noise")
    for edit in receipt["edits"]:
        control = "" if edit["control_ssim"] is None else f"{edit['control_ssim']:.3f}"
        numbers = f"{edit['ssim']:.3f}", f"{edit['l1']:.3f}", control
        table.add_row(str(edit["region"]), edit["mask_kind"], edit["editor"], *numbers)
    out.print(table)


@contextmanager
def _store(config_file: Path) -> Iterator[tuple[Settings, Store]]:
    settings = config.load(config_file)
    with Store.read_only(settings.folders.state / "backfire.sqlite") as store:
        yield settings, store


@app.command()
def status(config_file: Config = DEFAULT, as_json: AsJson = False) -> None:
    """Is the daemon alive, what is it doing, how much waits?"""
    with _store(config_file) as (_, store):
        counts = {state.value: count for state, count in store.counts().items() if count}
        fact = store.fact("daemon")
    alive = fact is not None and time.time() - fact[1] < 30
    document = {"running": alive, "daemon": fact[0] if fact else None, "jobs": counts}
    if as_json:
        print(json.dumps(document))
        return
    if alive and fact is not None:
        working = fact[0]["working"]
        out.print(
            f"running as pid {fact[0]['pid']}, " + (f"working {working}" if working else "watching"),
            markup=False,
        )
    else:
        seen = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(fact[1])) if fact else "never"
        out.print(f"not running (last heard of: {seen})")
    for state, count in counts.items():
        out.print(f"{count:8d} {state}")


@app.command()
def jobs(
    state: Annotated[JobState | None, typer.Option("--state", help="Only jobs in this state.")] = None,
    limit: Annotated[int, typer.Option(help="How many, newest first.")] = 50,
    config_file: Config = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with _store(config_file) as (_, store):
        listed = store.jobs(state, limit)
    if as_json:
        print(json.dumps([_job_document(job) for job in listed], indent=2))
        return
    table = Table("id", "picture", "state", "verdict", "attempts", "why")
    for job in listed:
        why = (job.message or "").splitlines()
        cells = (
            str(job.id),
            job.name,
            job.state.value,
            job.verdict or "",
            str(job.attempts),
            why[-1] if why else "",
        )
        table.add_row(*(Text(cell) for cell in cells))
    out.print(table)


def _job_document(job: Job) -> dict[str, Any]:
    fields = {name: getattr(job, name) for name in Job.__dataclass_fields__}
    return {
        **fields,
        "path": job.name,
        "output_path": shown(job.output_path) if job.output_path else None,
    }


@app.command()
def explain(path: Path, config_file: Config = DEFAULT, as_json: AsJson = False) -> None:
    """Why is this file not done? Its history, and what it waits for."""
    with _store(config_file) as (settings, store):
        relative = _relative(path, settings)
        found = store.by_path(relative)
        histories = [(job, store.history(job.id)) for job in found]
        fact = store.fact("daemon")
    alive = fact is not None and time.time() - fact[1] < 30
    here = inbox.signature(settings.folders.inbox, relative) is not None
    waits = _waits_for(relative, settings, found, here=here, alive=alive)
    if as_json:
        told = [
            {**_job_document(job), "events": [{"at": e.at, "state": e.state, **e.detail} for e in events]}
            for job, events in histories
        ]
        print(
            json.dumps(
                {"path": shown(relative), "in_inbox": here, "waits_for": waits, "jobs": told}, indent=2
            )
        )
        return
    out.print(Text(waits))
    for job, events in histories:
        out.print(Text(f"job {job.id}: {job.state.value}" + (f", {job.verdict}" if job.verdict else "")))
        for event in events:
            at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at))
            detail = ", ".join(f"{key} {value}" for key, value in event.detail.items())
            out.print(Text(f"  {at}  {event.state.value:<13} {detail}"))
        if job.message:
            out.print(Text(f"  {job.message}"))


def _relative(path: Path, settings: Settings) -> bytes:
    for folder in settings.folders.named().values():
        absolute = path if path.is_absolute() else Path.cwd() / path
        if folder in absolute.parents:
            return os.fsencode(absolute.relative_to(folder))
    return os.fsencode(path)


def _waits_for(path: bytes, settings: Settings, found: list[Job], *, here: bool, alive: bool) -> str:
    name = shown(path)
    if not found:
        if not here:
            return f"{name}: is not in {settings.folders.inbox} and never was a job; check the name"
        if inbox.is_mask(path):
            return f"{name}: is a mask; it is used with its picture"
        return f"{name}: not seen yet" + ("" if alive else "; the daemon is not running: backfire run")
    job, watch = found[0], settings.watch
    result = settings.folders.outbox / shown(job.output_path or b"")
    sentences = {
        JobState.SETTLING: f"must stand still for {watch.settle_s:g} s, or waits its turn to be copied",
        JobState.WAITING_MASK: f"waits up to {watch.mask_wait_s:g} s for a mask",
        JobState.READY: "is next in line" if job.not_before <= time.time() else "waits to be tried again",
        JobState.RUNNING: "is being worked",
        JobState.PUBLISHING: "is done and waits for the outbox",
        JobState.PUBLISHED: "is published; its original waits for the archive",
        JobState.ARCHIVED: f"is done; the result is {result}",
        JobState.FAILED: f"failed; the original lies in {settings.folders.failed}: backfire retry {job.id}",
        JobState.QUARANTINED: f"is set aside in {settings.folders.failed}: backfire retry {job.id}",
    }
    sentence = sentences.get(job.state, job.state.value)
    return f"{name}: {sentence}" + ("" if alive or not here else "; the daemon is not running: backfire run")


@app.command()
def retry(
    ids: Annotated[list[int] | None, typer.Argument(help="Job ids.", show_default=False)] = None,
    failed: Annotated[bool, typer.Option("--failed", help="All that failed or are set aside.")] = False,
    config_file: Config = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Put failed originals and their masks back into the inbox, as new jobs."""
    moved: list[str] = []
    missing: list[str] = []
    with _store(config_file) as (settings, store):
        chosen = [job for i in ids or () if (job := store.get(i)) is not None]
        unknown = sorted(set(ids or ()) - {job.id for job in chosen})
        if failed:
            ends = (JobState.FAILED, JobState.QUARANTINED)
            held = [job for state in ends for job in store.jobs(state, 100_000)]
            chosen += [job for job in held if _held(job, job.path, job.input_sha256 or "", settings)]
    for job in chosen:
        (moved if _put_back(job, settings) else missing).append(job.name)
    if as_json:
        print(json.dumps({"retried": moved, "not_moved": missing, "unknown": unknown}))
    else:
        out.print(f"{len(moved)} put back into {settings.folders.inbox}", markup=False)
        for name in missing:
            out.print(f"{name}: not in failed any more, or its name is taken in the inbox", markup=False)
        for number in unknown:
            out.print(f"no job {number}")
    raise typer.Exit(SOME_FAILED if missing or unknown else 0)


def _held(job: Job, path: bytes, sha256: str, settings: Settings) -> bytes | None:
    """Where in the failed folder a file of this job lies."""
    places = (path, outbox.keyed(path, job.key or ""))
    return next((place for place in places if outbox.holds(settings.folders.failed, place, sha256)), None)


def _put_back(job: Job, settings: Settings) -> bool:
    """Move one original and its masks from failed to the inbox; False if that cannot be."""
    failed, target, key = settings.folders.failed, settings.folders.inbox, job.key or ""
    sha = job.input_sha256 or ""
    held = _held(job, job.path, sha, settings)
    if held is None or (target / os.fsdecode(job.path)).exists():
        return False
    present = [
        (mask, place, outbox.file_sha256(failed / os.fsdecode(place)))
        for mask in inbox.mask_names(job.path)
        for place in (mask, outbox.keyed(mask, key))
        if inbox.signature(failed, place) is not None and not (target / os.fsdecode(mask)).exists()
    ]
    if mask_digest([digest for _, _, digest in present]) == job.mask_sha256:  # else they are another job's
        for mask, place, digest in present:  # before the picture, which must find them when it settles
            outbox.move(failed, place, target, mask, sha256=digest, key=key)
    outbox.move(failed, held, target, job.path, sha256=sha, key=key)
    (failed / os.fsdecode(outbox.beside(held, b".error.json", key))).unlink(missing_ok=True)
    return True


@app.command()
def check(config_file: Config = DEFAULT, as_json: AsJson = False) -> None:
    """Configuration, folders, space, file systems, inotify, device, detectors, weights."""
    from daemon.check import check as findings

    settings = config.load(config_file)
    found = list(findings(settings))
    if as_json:
        rows = [{"subject": f.subject, "ok": f.ok, "found": f.found, "remedy": f.remedy} for f in found]
        print(json.dumps(rows, indent=2))
    else:
        for finding in found:
            mark = Text("ok  ", "green") if finding.ok else Text("BAD ", "red")
            out.print(mark + Text(f"{finding.subject}: {finding.found}"), soft_wrap=True)
            if not finding.ok:
                out.print(Text(f"      {finding.remedy}"), soft_wrap=True)
    raise typer.Exit(0 if all(f.ok for f in found) else SOME_FAILED)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where to make inbox, outbox and the rest.")] = Path("demo"),
    as_json: AsJson = False,
) -> None:
    """Run the daemon over sample pictures and say where to look."""
    from daemon.demo import prepare

    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder}: is not empty; delete it or name another folder")
    log.setup()
    settings = config.load(prepare(folder))
    err.print(f"sample pictures lie in {settings.folders.inbox}; working them", markup=False)
    summary = _serve(settings, until_idle=True)
    receipts = [json.loads(path.read_bytes()) for path in sorted(settings.folders.reports.rglob("*.json"))]
    if as_json:
        print(json.dumps(receipts, indent=2))
        raise typer.Exit(SOME_FAILED if summary.failed or summary.left else 0)
    for receipt in receipts:
        _print_receipt({**receipt, "edits": None})
    for name in ("outbox", "archive", "failed", "reports"):
        files = sorted(p for p in settings.folders.named()[name].rglob("*") if p.is_file())
        out.print(f"{name}:", style="bold")
        for file in files:
            out.print(f"  {file}", markup=False, soft_wrap=True)
    out.print("open the *.sheet.jpg files in reports to see the edits before and after")
    raise typer.Exit(SOME_FAILED if summary.failed or summary.left else 0)


if __name__ == "__main__":
    main()
