"""The command `sheet`: a contact sheet of what became of pictures."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from backfire import config
from backfire.admin.sheet import SHOWN
from backfire.admin.sheet import sheet as contact_sheet
from backfire.cli.common import (
    DEFAULT,
    SOME_FAILED,
    AsJson,
    Config,
    app,
    bar,
    moment,
    out,
    print_error,
    require_sheet,
    write_as_user,
)
from backfire.errors import ConfigError
from backfire.service.store.reader import Reader
from backfire.types import Verdict

MOST = 5000
"""The most pictures of a sheet."""


@app.command()
def sheet(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="The JPEG to write; further pages are NAME-2.jpg and so on."),
    ] = Path("sheet.jpg"),
    since: Annotated[
        float | None,
        typer.Option(
            "--since",
            parser=moment,
            help="Only pictures done since then, as for `jobs`; today, unless --folder is given.",
        ),
    ] = None,
    folder: Annotated[
        str | None, typer.Option("--folder", help="Only this folder below the inbox, and those in it.")
    ] = None,
    verdict: Annotated[Verdict | None, typer.Option("--verdict", help="Only this verdict.")] = None,
    config_file: Config = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Draw a contact sheet: thumbnails of what is done, with what became of each, by folder."""
    write_as_user()
    settings = config.load(config_file)
    if output.suffix.lower() not in (".jpg", ".jpeg"):
        raise ConfigError(f"--output {output}: expected a name that ends in .jpg")
    require_sheet("--output", output)
    begins = moment("today") if since is None and folder is None else since or 0.0
    top = os.path.normpath(folder.strip("/") or ".") if folder is not None else "."
    below = os.fsencode(top) if top != "." else b""
    with Reader(settings.folders.database) as store:
        jobs = store.latest(MOST, states=SHOWN, verdict=verdict, since=begins, folder=below)
    if folder is not None and not jobs:
        print_error(f"--folder {folder}: no pictures of it are done; name one as it is below the inbox")
        raise typer.Exit(SOME_FAILED)
    title = "Pictures" if top == "." else top
    if begins:
        title += time.strftime(" since %Y-%m-%d %H:%M", time.localtime(begins))
    written = []
    with bar() as advance:
        for number, page in enumerate(contact_sheet(settings, jobs, title, progress=advance), start=1):
            file = output if number == 1 else output.with_stem(f"{output.stem}-{number}")
            require_sheet("--output", file)
            file.write_bytes(page)
            written.append(str(file))
    if as_json:
        print(json.dumps({"pages": written, "pictures": len(jobs)}))
        return
    more = f"; only the last {MOST} are shown" if len(jobs) == MOST else ""
    out.print(Text(f"{len(jobs)} pictures: {', '.join(written)}{more}"), soft_wrap=True)
