"""The commands for those who keep the originals: `audit` and `bag`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from backfire import config
from backfire.cli.common import DEFAULT, SOME_FAILED, AsJson, Config, app, bar, out, printable
from backfire.config import Settings
from backfire.errors import ConfigError
from backfire.service.store.reader import Reader
from backfire.types import Job

ALL = 1 << 31


def _jobs(settings: Settings) -> Callable[[], Iterable[Job]]:
    """Reads the jobs; there are none without a database, which the manifests outlive."""
    database = settings.folders.database

    def read() -> Iterable[Job]:
        if not database.exists():
            return []
        with Reader(database) as store:
            return store.jobs(limit=ALL)

    return read


@app.command()
def audit(
    folder: Annotated[
        list[str] | None, typer.Option("--folder", help="outbox or archive; without it, both.")
    ] = None,
    config_file: Config = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Read all published and archived files again and compare them; exit code 3 if one changed or is gone."""
    from backfire.admin.audit import FOLDERS, Kind, document
    from backfire.admin.audit import audit as audited

    if wrong := set(folder or ()) - set(FOLDERS):
        raise ConfigError(f"--folder {', '.join(sorted(wrong))}: expected {' or '.join(FOLDERS)}")
    settings = config.load(config_file)
    with bar() as advance:
        try:
            result = audited(settings, _jobs(settings), folders=folder or FOLDERS, progress=advance)
        except OSError as error:
            raise ConfigError(f"{error.filename}: cannot be read ({error.strerror})") from error
    if as_json:
        print(json.dumps(document(result), indent=2))
        raise typer.Exit(0 if result.ok else SOME_FAILED)
    for finding in result.findings:
        line = Text.assemble((f"{finding.kind:<10}", "red"), f" {finding.folder}/{printable(finding.path)}")
        if finding.kind == Kind.CHANGED:
            line.append(f"\n           expected {finding.expected}\n           found    {finding.found}")
        out.print(line, soft_wrap=True)
    out.print(
        f"{result.files} files, {result.size / 2**20:.1f} MiB unchanged; {len(result.findings)} problems"
    )
    raise typer.Exit(0 if result.ok else SOME_FAILED)


@app.command()
def bag(
    target: Annotated[
        Path, typer.Argument(help="The bag's folder, which must not exist.", show_default=False)
    ],
    day: Annotated[
        list[str] | None,
        typer.Option(
            "--day", help="Only what was archived on this day (UTC), such as 2026-11-24; may be repeated."
        ),
    ] = None,
    info: Annotated[
        list[str] | None,
        typer.Option("--info", help="A field for bag-info.txt, as Name=value; may be repeated."),
    ] = None,
    config_file: Config = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Pack published pictures, originals and receipts as a BagIt bag, each compared with its digest."""
    from backfire.admin.bag import bag as bagged

    if wrong := [field for field in info or () if not field.partition("=")[1]]:
        raise ConfigError(f"--info {wrong[0]}: expected Name=value")
    settings = config.load(config_file)
    fields = {name: value for name, _, value in (field.partition("=") for field in info or ())}
    with bar() as advance:
        made = bagged(
            settings, target.absolute(), _jobs(settings)(), days=day or (), info=fields, progress=advance
        )
    if as_json:
        print(
            json.dumps(
                {"bag": str(made.folder), "files": made.files, "bytes": made.size, "absent": made.absent}
            )
        )
        return
    for name in made.absent:
        out.print(
            Text(f"left out, because it was taken out of the outbox: {printable(name)}"), soft_wrap=True
        )
    out.print(Text(f"{made.folder}: {made.files} files, {made.size / 2**20:.1f} MiB"), soft_wrap=True)
