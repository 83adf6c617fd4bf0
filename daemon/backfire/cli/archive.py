"""The commands for whoever keeps the originals: `audit` and `bag`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from backfire import config
from backfire.cli.common import DEFAULT, SOME_FAILED, AsJson, Config, app, bar, out
from backfire.config import Settings
from backfire.errors import ConfigError
from backfire.service.store.store import Store
from backfire.types import Job

ALL = 1 << 31


def _jobs(settings: Settings) -> Callable[[], Iterable[Job]]:
    """Reads the jobs; none where no database is: manifests outlive it."""
    database = settings.folders.database

    def read() -> Iterable[Job]:
        if not database.exists():
            return []
        with Store.read_only(database) as store:
            return store.jobs(limit=ALL)

    return read


@app.command()
def audit(
    folder: Annotated[
        list[str] | None, typer.Option("--folder", help="outbox or archive; both where left out.")
    ] = None,
    config_file: Config = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Read everything published and archived again: 0 all is as it was, 3 something is not."""
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
        line = Text.assemble((f"{finding.kind:<10}", "red"), f" {finding.folder}/{finding.path}")
        if finding.kind == Kind.CHANGED:
            line.append(f"\n           expected {finding.expected}\n           found    {finding.found}")
        out.print(line, soft_wrap=True)
    out.print(
        f"{result.files} files, {result.size / 2**20:.1f} MiB as they ought to be; "
        f"{len(result.findings)} findings"
    )
    raise typer.Exit(0 if result.ok else SOME_FAILED)


@app.command()
def bag(
    target: Annotated[
        Path, typer.Argument(help="The bag's folder, which must not exist.", show_default=False)
    ],
    day: Annotated[
        list[str] | None, typer.Option("--day", help="Only this day (UTC), as 2026-11-24; may be repeated.")
    ] = None,
    info: Annotated[
        list[str] | None, typer.Option("--info", help="Field for bag-info.txt, as Name=value.")
    ] = None,
    config_file: Config = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Make a BagIt bag of published pictures, originals and receipts, each compared with its digest."""
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
        out.print(Text(f"left out: {name} was taken out of the outbox"), soft_wrap=True)
    out.print(Text(f"{made.folder}: {made.files} files, {made.size / 2**20:.1f} MiB"), soft_wrap=True)
