"""The commands `init`, which begins a configuration, and `man`, which prints the manual page."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from backfire.cli import manual
from backfire.cli.common import DEFAULT, AsJson, app, out


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where the configuration and the folders are to be.")] = Path(
        "."
    ),
    as_json: AsJson = False,
) -> None:
    """Write a commented configuration and make the folders; nothing is overwritten."""
    from backfire.admin.init import init as begin

    file = begin(folder)
    if as_json:
        print(json.dumps({"config": str(file)}))
        return
    option = "" if file == DEFAULT else f" -c {shlex.quote(str(file))}"
    out.print(Text(f"wrote {file} and made the folders; edit it, and then run"), soft_wrap=True)
    out.print(Text(f"  backfire check{option}"), soft_wrap=True)
    out.print(Text(f"  backfire once{option}  # protects what lies in the inbox, then ends"), soft_wrap=True)
    out.print(Text(f"  backfire run{option}  # watches the inbox until it is stopped"), soft_wrap=True)


@app.command()
def man() -> None:
    """Print the manual page, as for man -l or for a folder of manual pages."""
    print(manual.page(typer.main.get_command(app)), end="")
