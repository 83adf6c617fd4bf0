"""The commands that read the job database: `status`, `jobs`, `explain`, `retry`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from backfire import advice, config
from backfire.admin import decisions
from backfire.admin.explain import details_of, reports_of
from backfire.admin.explain import explain as explained
from backfire.admin.named import numbers_of
from backfire.admin.outcomes import Outcome, in_words, midnight, outcome
from backfire.admin.retry import in_failed, would_fail_again
from backfire.admin.retry import retry as retried
from backfire.admin.status import Status
from backfire.admin.status import status as stands
from backfire.admin.today import reason_of
from backfire.cli.common import (
    BAD_CONFIG,
    DEFAULT,
    SOME_FAILED,
    UNKNOWN_FILE,
    AsJson,
    Config,
    app,
    colour,
    few,
    moment,
    of_pictures,
    out,
    printable,
    wrapped,
)
from backfire.cli.today import waiting
from backfire.config import Settings
from backfire.config.folders import DATABASE
from backfire.errors import ConfigError, PublishError
from backfire.service.store.reader import Reader
from backfire.types import Job, JobState, Verdict, shown

LIKELY_TO_FAIL = "will most likely fail again, as only another file helps and the same one went back"


@contextmanager
def _store(config_file: Path) -> Iterator[tuple[Settings, Reader]]:
    settings = config.load(config_file)
    with Reader(settings.folders.database) as store:
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
    with Reader(state / DATABASE) as store:
        found = stands(state, store)
        counts = {state.value: count for state, count in store.counts().items() if count}
        verdicts = {verdict.value: count for verdict, count in store.verdicts().items()}
    if as_json:
        document = {
            "running": found.alive,
            "daemon": found.daemon or None,
            "jobs": counts,
            "verdicts": verdicts,
            "today": found.today,
            "working": found.working,
            "waiting": found.waiting,
            "eta_s": found.eta_s,
            "seconds_a_picture": found.seconds_each,
            "configuration_error": broken or None,
        }
        print(json.dumps(document))
        raise typer.Exit(BAD_CONFIG if broken else 0)
    if broken:
        goes_on = "the daemon goes on with the one that it read before"
        now = goes_on if found.alive else "the daemon cannot start"
        out.print(Text(f"the configuration cannot be used, and {now}: {broken}", "red"), soft_wrap=True)
    _print_daemon(found)
    if found.ever:
        out.print("in all:")
    last = next((name for name in (Outcome.WAITING, Outcome.WORKING) if name in found.ever), None)
    for name, count in found.ever.items():
        more = f", {waiting(found)}" if name == last else ""
        out.print(f"{count:8d} {name}{more}", soft_wrap=True)
    out.print(f"today: {in_words(found.today) or 'nothing yet'}")
    if {Outcome.WEAK, Outcome.FAILED, Outcome.HELD} & found.ever.keys():
        out.print("backfire today says which pictures need a person, why, and what to do")
    raise typer.Exit(BAD_CONFIG if broken else 0)


def _print_daemon(found: Status) -> None:
    if found.alive:
        working = found.daemon.get("working")
        does = f"working {printable(working)}" if working else "watching"
        out.print(Text(f"running as pid {found.daemon.get('pid')}, {does}"), soft_wrap=True)
        nodes = found.daemon.get("nodes", {})
        if {*nodes} - {"local"}:
            each = (f"{node} {busy} of {busy + idle} at work" for node, (busy, idle) in nodes.items())
            out.print(Text(f"workers: {printable(', '.join(each))}"), soft_wrap=True)
        if found.daemon.get("trouble"):
            out.print(Text(printable(found.daemon["trouble"]), "yellow"), soft_wrap=True)
    elif found.heard is not None:
        out.print(f"not running; last worked {_local(found.heard)}")
    else:
        out.print("not running; nothing was worked yet")
    told = found.daemon
    for path, why in {**told.get("unreadable", {}), **told.get("unused", {})}.items():
        out.print(Text(f"{printable(path)}: {printable(why)}", "yellow"), soft_wrap=True)
    for what, are in (("unreadable", "folders cannot be read"), ("unused", "files are used by no picture")):
        if (count := found.in_all(what)) > len(told.get(what, {})):
            text = f"{count} {are}; named above: {len(told[what])}"
            out.print(Text(text, "yellow"), soft_wrap=True)


def _local(at: float) -> str:
    """A Unix time as the clock on the wall shows it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


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
        list[JobState] | None,
        typer.Option(
            "--state",
            parser=_state,
            help=f"Only jobs in this state: {', '.join(JobState)}; may be repeated.",
        ),
    ] = None,
    verdict: Annotated[Verdict | None, typer.Option("--verdict", help="Only jobs with this verdict.")] = None,
    since: Annotated[
        float | None,
        typer.Option(
            "--since",
            parser=moment,
            help="Only jobs that changed since then: today, yesterday, 2h, 3d, 14:00, 2026-11-28.",
        ),
    ] = None,
    search: Annotated[str, typer.Option("--search", help="Only pictures with this in their path.")] = "",
    limit: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="How many jobs are listed, newest first.")
    ] = 50,
    config_file: Config = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first, and why they failed, are held or are weak; retried ones are listed once."""
    with _store(config_file) as (_, store):
        listed = store.latest(
            limit + 1, states=tuple(state or JobState), verdict=verdict, since=since or 0.0, search=search
        )
    more, listed = len(listed) > limit, listed[:limit]
    if as_json:
        print(json.dumps([_job_document(job) for job in listed], indent=2))
        return
    if listed:
        out.print(f"{'job':>6}  {'changed':<12}  {'outcome':<11}  picture")
    for job in listed:
        what = outcome(job.state, job.verdict)
        head = f"{job.id:6d}  {_short(job.updated):<12}  "
        line = Text.assemble(head, (f"{what:<11}", colour(what)), "  ", printable(job.name))
        out.print(line, soft_wrap=True)
        if why := printable(reason_of(job)):
            for part in wrapped(why, 8):
                out.print(Text(f"        {part}"), soft_wrap=True)
    if not listed:
        out.print("no such jobs")
    elif more:
        out.print(f"and older ones: --limit {2 * limit}, or narrow the list with --since or --search")


def _short(at: float) -> str:
    """A time by the clock on the wall: of today the hour alone, else the day, too."""
    return time.strftime("%H:%M" if at >= midnight(time.time()) else "%d %b %H:%M", time.localtime(at))


def _job_document(job: Job) -> dict[str, Any]:
    fields = {name: getattr(job, name) for name in Job.__dataclass_fields__}
    return {
        **fields,
        "path": job.name,
        "output_path": shown(job.output_path) if job.output_path else None,
    }


@app.command()
def explain(
    path: Annotated[
        Path,
        typer.Argument(
            help="A path below the inbox, the path of a picture or a result, or the name alone.",
            show_default=False,
        ),
    ],
    config_file: Config = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Show what became of a file and what it waits for; exit code 5 if no such file is known, or several."""
    with _store(config_file) as (settings, store):
        told = explained(path, settings, config_file, store)
    if as_json:
        jobs = [
            {
                **_job_document(job),
                "reports": reports_of(job, settings),
                "events": [{"at": e.at, "state": e.state, **e.detail} for e in events],
            }
            for job, events in told.jobs
        ]
        document = {"path": shown(told.path), "in_inbox": told.in_inbox, "waits_for": told.waits_for}
        document |= {"rule": told.rule, "jobs": jobs, "near": told.near, "candidates": told.candidates}
        print(json.dumps(document, indent=2))
        raise typer.Exit(UNKNOWN_FILE if told.unknown else 0)
    out.print(Text(printable(told.waits_for)), soft_wrap=True)
    if told.near:
        out.print(Text(f"near names: {printable(', '.join(told.near))}"), soft_wrap=True)
    for name in told.candidates:
        out.print(Text(f"  {printable(name)}"), soft_wrap=True)
    if told.unknown:
        raise typer.Exit(UNKNOWN_FILE)
    if settings.rules:
        out.print(
            Text(f"settings: {printable(told.rule or 'the general ones, no rule matches')}"), soft_wrap=True
        )
    for job, events in told.jobs:
        out.print(Text(f"job {job.id}: {job.state.value}" + (f", {job.verdict}" if job.verdict else "")))
        for event in events:
            detail = ", ".join(_detail(key, value) for key, value in decisions.details(event).items())
            line = f"  {_local(event.at)}  {event.state.value:<13} {printable(detail)}"
            out.print(Text(line), soft_wrap=True)
        if (said := advice.of(job)) is not None:
            out.print(Text(f"  {printable(str(said))}"), soft_wrap=True)
            out.print(Text(f"  more: {said.page}"), soft_wrap=True)
        for detail in details_of(job, settings):
            out.print(Text(f"  {'details: ' if said else ''}{printable(detail)}"), soft_wrap=True)
        for file in reports_of(job, settings):
            out.print(Text(f"  {printable(str(file))}"), soft_wrap=True)


def _detail(key: str, value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if key == "decided" else f"{key} {text}"


@app.command()
def retry(
    pictures: Annotated[list[str] | None, of_pictures()] = None,
    failed: Annotated[bool, typer.Option("--failed", help="All that failed or were set aside.")] = False,
    config_file: Config = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Move failed originals and their masks back into the inbox, where they become new jobs."""
    if not pictures and not failed:
        raise typer.BadParameter("got no job; name pictures that `backfire jobs` shows, or give --failed")
    moved: list[str] = []
    alike: list[str] = []
    missing: list[tuple[Job, str]] = []
    with _store(config_file) as (settings, store):

        def ended() -> list[Job]:
            return store.latest(100_000, states=(JobState.FAILED, JobState.QUARANTINED))

        numbers = numbers_of(pictures or (), ended, settings, store)
        chosen = {job.id: job for number in numbers if (job := store.get(number)) is not None}
        unknown = sorted(set(numbers) - chosen.keys())
        if failed:
            chosen |= {job.id: job for job in ended() if in_failed(job, settings)}
        for job in chosen.values():
            is_alike = would_fail_again(job, settings)
            try:
                why = retried(job, settings, config_file, store)
            except PublishError as error:  # the others can be moved all the same
                why = str(error)
            if why is None:
                moved.append(job.name)
                alike += [job.name] if is_alike else []
            else:
                missing.append((job, why))
    if as_json:
        reasons = {job.id: why for job, why in missing}
        names = [job.name for job, _ in missing]
        told = {"retried": moved, "likely_to_fail": alike, "not_moved": names}
        print(json.dumps({**told, "why": reasons, "unknown": unknown}))
    else:
        if moved or not (missing or unknown):
            out.print(f"{len(moved)} moved back into {settings.folders.inbox}", markup=False, soft_wrap=True)
        if alike:
            out.print(Text(f"{len(alike)} of them {LIKELY_TO_FAIL}: {few(alike)}"), soft_wrap=True)
        for job, why in missing:
            out.print(Text(f"{printable(job.name)}: not moved: {printable(why)}"), soft_wrap=True)
        for number in unknown:
            out.print(f"no job {number}: backfire jobs lists those that are known")
    raise typer.Exit(SOME_FAILED if missing or unknown else 0)
