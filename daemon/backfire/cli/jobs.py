"""The commands that read the job database: `status`, `jobs`, `explain`, `retry`."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from backfire import config
from backfire.cli.common import BAD_CONFIG, DEFAULT, SOME_FAILED, AsJson, Config, app, out
from backfire.config import Settings
from backfire.config.models import DATABASE
from backfire.errors import ConfigError, PublishError
from backfire.files import durable, inbox, outbox
from backfire.service import preflight, reports
from backfire.service.store.store import Store
from backfire.types import Job, JobState, Verdict, mask_digest, shown

ADVICE = "docs/concepts/verdicts.md, section What to do about a weak verdict"
WAITING = "; the daemon is not running: backfire run, or backfire once"
NEAR_AMONG = 5000
"""How many former paths, the newest ones, are looked at for names like one that is not known."""


@contextmanager
def _store(config_file: Path) -> Iterator[tuple[Settings, Store]]:
    settings = config.load(config_file)
    with Store.read_only(settings.folders.database) as store:
        yield settings, store


@app.command()
def status(config_file: Config = DEFAULT, as_json: AsJson = False) -> None:
    """Show whether the daemon runs, what it does and how much waits; exit code 2 for a bad configuration."""
    broken, state = "", config.state_of(config_file)
    try:
        state = config.load(config_file).folders.state
    except ConfigError as error:
        if state is None or not (state / DATABASE).exists():
            raise
        broken = str(error)
    with Store.read_only(state / DATABASE) as store:
        counts = {state.value: count for state, count in store.counts().items() if count}
        verdicts = {verdict.value: count for verdict, count in store.verdicts().items()}
        fact = store.fact("daemon")
    alive = _is_alive(state, fact)
    document = {"running": alive, "daemon": fact[0] if fact else None, "jobs": counts, "verdicts": verdicts}
    if as_json:
        print(json.dumps({**document, "configuration_error": broken or None}))
        raise typer.Exit(BAD_CONFIG if broken else 0)
    if broken:
        now = "the daemon goes on with the one that it read before" if alive else "the daemon cannot start"
        out.print(Text(f"the configuration cannot be used, and {now}: {broken}", "red"), soft_wrap=True)
    if alive and fact is not None:
        working = fact[0]["working"]
        out.print(
            f"running as pid {fact[0]['pid']}, " + (f"working {working}" if working else "watching"),
            markup=False,
        )
        if fact[0].get("trouble"):
            out.print(Text(fact[0]["trouble"], "yellow"), soft_wrap=True)
    elif fact is not None:
        out.print(f"not running; last worked {_local(fact[1])}")
    else:
        out.print("not running; nothing was worked yet")
    told = fact[0] if fact else {}
    for path, why in {**told.get("unreadable", {}), **told.get("unused", {})}.items():
        out.print(Text(f"{path}: {why}", "yellow"), soft_wrap=True)
    for name, count in counts.items():
        out.print(f"{count:8d} {name}")
    if verdicts:
        hint = "; backfire jobs --verdict weak says why" if Verdict.WEAK in verdicts else ""
        out.print("verdicts: " + ", ".join(f"{n} {verdict}" for verdict, n in verdicts.items()) + hint)
    raise typer.Exit(BAD_CONFIG if broken else 0)


def _local(at: float) -> str:
    """A Unix time as the clock on the wall shows it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def _is_alive(state: Path, fact: tuple[Any, float] | None) -> bool:
    """Whether the daemon runs: it holds its lock or, without locks, had a heartbeat in the last 30 s."""
    locked = preflight.locked(state / "lock")
    return locked if locked is not None else fact is not None and time.time() - fact[1] < 30


def _state(text: str) -> JobState:
    """The state of that name.

    Raises:
        typer.BadParameter: there is none; says so, too, where it is a verdict.
    """
    if text in [*JobState]:
        return JobState(text)
    if text in [*Verdict] and text != JobState.FAILED:
        raise typer.BadParameter(f"{text!r} is a verdict and no state; ask with --verdict {text}")
    raise typer.BadParameter(f"got {text!r}, expected one of {', '.join(JobState)}")


@app.command()
def jobs(
    state: Annotated[
        JobState | None,
        typer.Option("--state", parser=_state, help=f"Only jobs in this state: {', '.join(JobState)}."),
    ] = None,
    verdict: Annotated[Verdict | None, typer.Option("--verdict", help="Only jobs with this verdict.")] = None,
    limit: Annotated[int, typer.Option(help="How many jobs are listed, newest first.")] = 50,
    config_file: Config = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first, and why they failed or are weak."""
    with _store(config_file) as (_, store):
        listed = store.jobs(state, limit, verdict=verdict)
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
    """Show the history of a file and what it waits for; exit code 3 if no such file is known."""
    with _store(config_file) as (settings, store):
        meant = _meant(path, settings, config_file)
        root = settings.folders.inbox
        known = (one for one in meant if store.by_path(one) or inbox.signature(root, one) is not None)
        relative = next(known, meant[0])
        found = store.by_path(relative)
        histories = [(job, store.history(job.id)) for job in found]
        paths = [] if found else store.paths(NEAR_AMONG)
        fact = store.fact("daemon")
    alive = _is_alive(settings.folders.state, fact)
    here = inbox.signature(settings.folders.inbox, relative) is not None
    closed = _closed(relative, settings, fact[0].get("unreadable", {}) if fact else {})
    unknown = not (found or here or closed)
    near = _near(relative, paths, settings) if unknown else []
    waits = _waits_for(relative, settings, found, closed, here=here, alive=alive)
    rule = settings.rule_of(relative)
    told_rule = None if rule is None else f"rules.{rule} ({settings.rules[rule].match})"
    if as_json:
        told = [
            {
                **_job_document(job),
                "reports": _reports(job, settings),
                "events": [{"at": e.at, "state": e.state, **e.detail} for e in events],
            }
            for job, events in histories
        ]
        document = {"path": shown(relative), "in_inbox": here, "waits_for": waits, "rule": told_rule}
        print(json.dumps({**document, "jobs": told, "near": near}, indent=2))
        raise typer.Exit(SOME_FAILED if unknown else 0)
    out.print(Text(waits), soft_wrap=True)
    if near:
        out.print(Text(f"near names: {', '.join(near)}"), soft_wrap=True)
    if unknown:
        raise typer.Exit(SOME_FAILED)
    if settings.rules:
        out.print(Text(f"settings: {told_rule or 'the general ones, no rule matches'}"), soft_wrap=True)
    for job, events in histories:
        out.print(Text(f"job {job.id}: {job.state.value}" + (f", {job.verdict}" if job.verdict else "")))
        for event in events:
            detail = ", ".join(f"{key} {_words(value)}" for key, value in event.detail.items())
            out.print(Text(f"  {_local(event.at)}  {event.state.value:<13} {detail}"), soft_wrap=True)
        if job.message:
            out.print(Text(f"  {job.message}"), soft_wrap=True)
        for file in _reports(job, settings):
            out.print(Text(f"  {file}"), soft_wrap=True)
        if job.verdict == Verdict.WEAK:
            out.print(Text(f"  what to do: {ADVICE}"), soft_wrap=True)


def _reports(job: Job, settings: Settings) -> list[str]:
    """The paths of a job's receipt and sheet, as far as there are any, for people and JSON."""
    with suppress(OSError, PublishError):
        return [shown(os.fsencode(file)) for file in reports.find(settings.folders.reports, job)]
    return []


def _near(path: bytes, paths: list[bytes], settings: Settings) -> list[str]:
    """Up to three known paths that are like one that is not: those of its file name come first."""
    with suppress(OSError):
        paths = [*inbox.scan(settings.folders.inbox, settings.watch.ignore).files, *paths]
    names = list(dict.fromkeys(map(shown, paths)))
    of_its_name = [name for name in names if Path(name).name == Path(shown(path)).name]
    return list(dict.fromkeys([*of_its_name, *get_close_matches(shown(path), names)]))[:3]


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _meant(path: Path, settings: Settings, config_file: Path) -> list[bytes]:
    """What a path may mean, relative to the inbox; the likeliest first.

    It may be seen from the working folder, from that of the configuration, or from the inbox, and may lead
    into the inbox or to a file of the same name in another of the folders.
    """
    meant = []
    for base in (Path.cwd(), config_file.absolute().parent):
        absolute = Path(os.path.normpath(base / path))
        for folder in settings.folders.named().values():
            if folder in absolute.parents:
                meant.append(os.fsencode(absolute.relative_to(folder)))
    return list(dict.fromkeys([*meant, os.fsencode(path)]))


def _closed(path: bytes, settings: Settings, unreadable: Mapping[str, str]) -> str | None:
    """Why the folder that a path lies in cannot be read; None where it can."""
    name = shown(path)
    if folder := inbox.closed(settings.folders.inbox, path):
        unreadable = {shown(folder[0]): folder[1], **unreadable}
    for place, why in unreadable.items():
        if name == place or name.startswith(f"{place}/"):
            return f"{'' if name == place else f'lies in {place}, which '}{why}"
    return None


def _settling(settings: Settings, job: Job) -> str:
    watch = settings.watch
    proof = inbox.scan_beside(settings.folders.inbox, [job.path], watch.proof_ending).proof_of(job.path)
    if watch.proof != "none" and proof is None:
        return f"waits for its .{watch.proof} file"
    more = (
        f", or {watch.incomplete_wait_s:g} s longer if its data end too early"
        if watch.incomplete_wait_s
        else ""
    )
    return f"must not change for {watch.settle_s:g} s{more}, or waits to be copied"


def _waits_for(
    path: bytes,
    settings: Settings,
    found: list[Job],
    closed: str | None,
    *,
    here: bool,
    alive: bool,
) -> str:
    name = shown(path)
    if not found:
        if closed:
            return f"{name}: {closed}"
        if not here:
            return f"{name}: is not in {settings.folders.inbox} and was never a job; check the name"
        if inbox.is_mask(path) or inbox.near_miss(path):
            return f"{name}: {_of_a_mask(path, settings)}"
        return f"{name}: not seen yet" + ("" if alive else WAITING)
    job, watch = found[0], settings.watch
    if here and job.state == JobState.SKIPPED and inbox.near_miss(path):
        return f"{name}: {_of_a_mask(path, settings)}"
    result = settings.folders.outbox / shown(job.output_path or b"")
    weak = ", but its protection is weak" if job.verdict == Verdict.WEAK else ""
    sentences = {
        JobState.SETTLING: _settling(settings, job),
        JobState.WAITING_MASK: f"waits up to {watch.mask_wait_s:g} s for a mask",
        JobState.READY: "waits for a worker" if job.not_before <= time.time() else "waits to be tried again",
        JobState.RUNNING: "is being protected",
        JobState.PUBLISHING: "is done and waits for the outbox",
        JobState.SETTING_ASIDE: f"cannot be protected and is being moved to {settings.folders.failed}",
        JobState.PUBLISHED: "is published; its original waits for the archive",
        JobState.ARCHIVED: f"is done{weak}; the result is {result}",
        JobState.FAILED: f"failed; the original is in {settings.folders.failed}: backfire retry {job.id}",
        JobState.QUARANTINED: f"was set aside in {settings.folders.failed}: backfire retry {job.id}",
    }
    sentence = sentences.get(job.state, job.state.value)
    return f"{name}: {sentence}" + ("" if alive or not here else WAITING)


def _of_a_mask(path: bytes, settings: Settings) -> str:
    """Whether a mask or annotation in the inbox, or what is nearly called one, has a picture."""
    watch = settings.watch
    found = inbox.scan(settings.folders.inbox, watch.ignore, watch.proof_ending)
    miss = found.near_misses().get(path)
    if path in found.orphans() or (miss is not None and found.is_claimed(miss)):
        return found.why_unused(path)
    return "is a mask; it is used with its picture" if miss is None else "waits for a picture it may be of"


@app.command()
def retry(
    ids: Annotated[list[int] | None, typer.Argument(help="Job ids.", show_default=False)] = None,
    failed: Annotated[bool, typer.Option("--failed", help="All that failed or were set aside.")] = False,
    config_file: Config = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Move failed originals and their masks back into the inbox, where they become new jobs."""
    if not ids and not failed:
        raise typer.BadParameter("got no job; name ids that `backfire jobs` shows, or give --failed")
    moved: list[str] = []
    missing: list[tuple[str, str]] = []
    with _store(config_file) as (settings, store):
        chosen = [job for i in ids or () if (job := store.get(i)) is not None]
        unknown = sorted(set(ids or ()) - {job.id for job in chosen})
        if failed:
            ends = (JobState.FAILED, JobState.QUARANTINED)
            held = [job for state in ends for job in store.jobs(state, 100_000)]
            chosen += [job for job in held if _held(job, settings)]
    for job in chosen:
        if (why := _is_no_failure(job, settings, config_file)) is not None:
            missing.append((job.name, why))
        elif _put_back(job, settings):
            moved.append(job.name)
        else:
            why = "it or its mask is gone from failed, or the inbox has a file of its name"
            missing.append((job.name, why))
    if as_json:
        names = [name for name, _ in missing]
        told = {"retried": moved, "not_moved": names, "why": dict(missing), "unknown": unknown}
        print(json.dumps(told))
    else:
        out.print(f"{len(moved)} moved back into {settings.folders.inbox}", markup=False)
        for name, why in missing:
            out.print(Text(f"{name}: not moved: {why}"), soft_wrap=True)
        for number in unknown:
            out.print(f"no job {number}")
    raise typer.Exit(SOME_FAILED if missing or unknown else 0)


def _is_no_failure(job: Job, settings: Settings, config_file: Path) -> str | None:
    """What a job is that neither failed nor was set aside, and what to do instead; None of one that did."""
    if job.state in (JobState.FAILED, JobState.QUARANTINED):
        return None
    if job.state not in (JobState.PUBLISHED, JobState.ARCHIVED):
        return f"job {job.id} is {job.state.value} and did not fail: backfire explain {shlex.quote(job.name)}"
    kept = outbox.find(settings.folders.archive, job.path, key=job.key or "", sha256=job.input_sha256 or "")
    original = settings.folders.archive / shown(kept or job.path)
    new = f"NEW{os.path.splitext(shown(job.output_path or job.path))[1]}"
    command = shlex.join(["backfire", "protect", str(original), "-c", str(config_file), "-o", new])
    return f"job {job.id} was published as {job.verdict or 'done'}; to protect it anew: {command}"


def _held(job: Job, settings: Settings) -> bytes | None:
    """The path of the job's original below the failed folder, None if it is not there any more."""
    failed, key = settings.folders.failed, job.key or ""
    if job.input_sha256 is not None:
        return outbox.find(failed, job.path, key=key, sha256=job.input_sha256)
    # It was set aside without being read, so that only its error file tells which one it is.
    names = outbox.names(failed, job.path, key=key)
    return next((name for name in names if _is_unread(failed, name, job)), None)


def _is_unread(failed: Path, name: bytes, job: Job) -> bool:
    reason = failed / os.fsdecode(outbox.beside(name, b".error.json", job.key or ""))
    try:
        told = json.loads(reason.read_bytes())
    except (OSError, ValueError):
        return False
    same = isinstance(told, dict) and (told.get("file"), told.get("input_sha256")) == (job.name, None)
    return same and inbox.signature(failed, name) is not None


def _put_back(job: Job, settings: Settings) -> bool:
    """Move an original and its masks from failed to the inbox; returns whether that was possible."""
    failed, target, key = settings.folders.failed, settings.folders.inbox, job.key or ""
    held = _held(job, settings)
    if held is None or (target / os.fsdecode(job.path)).exists():
        return False
    if job.input_sha256 is None:
        files = [(mask, mask) for mask in inbox.scan_beside(failed, [held]).masks_of(held)]
        for source, name in [*files, (held, job.path)]:
            outbox.shift(failed, source, target, name, key=key, same=lambda _: True)
        (failed / os.fsdecode(outbox.beside(held, b".error.json", key))).unlink(missing_ok=True)
        return True
    sha = job.input_sha256
    written = inbox.scan_beside(failed, [job.path]).masks_of(job.path)  # P.MASK.PNG belongs to p.jpg too
    present = [
        (mask, place, durable.file_sha256(failed / os.fsdecode(place)))
        for mask in dict.fromkeys((*written, *inbox.mask_names(job.path)))
        for place in (mask, outbox.keyed(mask, key))
        if inbox.signature(failed, place) is not None and not (target / os.fsdecode(mask)).exists()
    ]
    if (
        mask_digest([digest for _, _, digest in present]) == job.mask_sha256
    ):  # else they belong to another job
        for mask, place, digest in present:  # before the picture, so that it finds them when it settles
            outbox.move(failed, place, target, mask, sha256=digest, key=key)
    elif job.mask_sha256 is not None and not inbox.scan_beside(target, [job.path]).masks_of(job.path):
        return False  # without its mask another region would be protected, or none
    outbox.move(failed, held, target, job.path, sha256=sha, key=key)
    (failed / os.fsdecode(outbox.beside(held, b".error.json", key))).unlink(missing_ok=True)
    return True
