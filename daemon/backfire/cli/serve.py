"""The commands that run the daemon: `run`, `once`, `demo`."""

from __future__ import annotations

import json
import shlex
import signal
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from backfire import config, log, weights
from backfire.cli.common import DEFAULT, SOME_FAILED, AsJson, Config, app, bar, err, named, out, print_receipt
from backfire.cli.models import fetch_all
from backfire.config import Settings
from backfire.errors import ConfigError, UnavailableError
from backfire.service.loop import Service, Summary


@app.command()
def run(config_file: Config = DEFAULT) -> None:
    """Watch the inbox until stopped (SIGTERM, Ctrl-C); SIGHUP reads the configuration again."""
    log.setup()
    serve(config.load(config_file), until_idle=False, load=lambda: config.load(config_file))


@app.command()
def once(config_file: Config = DEFAULT, as_json: AsJson = False) -> None:
    """Protect everything that waits, then exit; exit code 3 if pictures failed or could not go on.

    It is 3, too, if folders in the inbox could not be read; 4 if the job database cannot be used or is gone;
    and 75 if inbox or outbox, or another folder of its own, cannot be used now, or belongs to another daemon
    at work.
    """
    log.setup()
    summary = serve(config.load(config_file), until_idle=True)
    if as_json:
        print(json.dumps(asdict(summary)))
    if summary.held:
        err.print(f"backfire: {summary.held} held for review; backfire release lists them", markup=False)
    if summary.left:
        err.print(f"backfire: {summary.left} could not go on now; backfire explain says why", markup=False)
    if summary.unreadable:
        err.print(f"backfire: folders not readable: {summary.unreadable}; backfire status names them")
    if summary.trouble:
        raise UnavailableError(summary.trouble)
    raise typer.Exit(SOME_FAILED if summary.failed or summary.left or summary.unreadable else 0)


def serve(settings: Settings, *, until_idle: bool, load: Callable[[], Settings] | None = None) -> Summary:
    """Run the service with signal handlers and a progress bar.

    Args:
        settings: the configuration.
        until_idle: whether to return when nothing is left to do.
        load: reads the configuration again on SIGHUP; without it, SIGHUP ends the service too.

    Raises:
        UnavailableError: a file or folder of the service could not be used, for longer than it tries again.
    """
    with bar() as advance:
        service = Service(settings, load=load, on_progress=lambda job, *step: named(advance, job.name)(*step))
        with closing(service):
            for name in (signal.SIGTERM, signal.SIGINT):
                signal.signal(name, lambda *_: service.stop())
            signal.signal(signal.SIGHUP, lambda *_: service.reload() if load else service.stop())
            try:
                return service.run(until_idle=until_idle)
            except OSError as error:
                if error.filename is None:  # a bug
                    raise
                raise UnavailableError(f"{error.filename}: {error.strerror}") from error


@app.command()
def demo(
    folder: Annotated[
        Path, typer.Argument(help="Where inbox, outbox and the other folders are to be.")
    ] = Path("demo"),
    fetch: Annotated[
        bool,
        typer.Option(
            "--fetch", help="First fetch the light models, so that they are protected against, too."
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before models are fetched.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run the daemon over sample pictures and say where the results are."""
    from backfire.admin.demo import prepare

    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file, expected a folder that is new or empty; name another one")
    if folder.exists() and any(folder.iterdir()):
        goes_on = shlex.join(["backfire", "once", "-c", str(folder / "config.yaml")])
        or_go_on = (
            f"; to go on with one that was stopped: {goes_on}" if (folder / "config.yaml").exists() else ""
        )
        raise ConfigError(f"{folder}: is not empty; delete it or name another folder{or_go_on}")
    if fetch:  # before the folder is made, so that after a "no" the same command can be given again
        fetch_all(weights.members("light"), config.Models().folder, ask=not yes)
    log.setup(pretty=True)  # somebody reads it, also through a pipe
    settings = config.load(prepare(folder))
    err.print(f"the sample pictures are in {settings.folders.inbox}; protecting them", markup=False)
    summary = serve(settings, until_idle=True)
    receipts = [json.loads(path.read_bytes()) for path in sorted(settings.folders.reports.rglob("*.json"))]
    if as_json:
        print(json.dumps(receipts, indent=2))
        raise typer.Exit(SOME_FAILED if summary.failed or summary.left else 0)
    for receipt in receipts:
        print_receipt({**receipt, "edits": None}, settings.verify)
    for name in ("outbox", "archive", "failed", "review", "reports"):
        files = sorted(
            p for p in settings.folders.named()[name].rglob("*") if p.is_file() and p.name[0] != "."
        )
        out.print(f"{name}:" if files else f"{name}: nothing", style="bold")
        for file in files:
            out.print(f"  {file}", markup=False, soft_wrap=True)
    if any(settings.folders.reports.rglob("*.sheet.jpg")):  # of one that was stopped there may be none yet
        out.print(
            "open the *.sheet.jpg files in reports to see edits of the original and of the protected copy"
        )
    if not fetch:
        out.print("backfire demo ANOTHER --fetch also protects against published autoencoders")
    raise typer.Exit(SOME_FAILED if summary.failed or summary.left else 0)
