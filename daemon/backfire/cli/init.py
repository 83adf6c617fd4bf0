"""The commands `init`, which begins a configuration, and `man`, which prints the manual page."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from backfire.cli import manual
from backfire.cli.common import DEFAULT, AsJson, app, err, out

KEPT = 0
"""The answer that keeps the size of every picture."""
SMALLEST = 64
"""The smallest `output.long_px`."""


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where the configuration and the folders are to be.")] = Path(
        "."
    ),
    long_px: Annotated[
        int | None,
        typer.Option(
            "--long-px",
            min=KEPT,
            help="The longer side, in pixels, at which pictures are published (output.long_px); 0 keeps "
            "their size. Without it, the command asks on a terminal, and elsewhere keeps their size.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a commented configuration and make the folders; nothing is overwritten."""
    from backfire.admin.init import NAME
    from backfire.admin.init import init as begin

    if long_px is not None:
        long_px = _size(str(long_px))
    elif sys.stdin.isatty() and not as_json and not (folder / NAME).exists():
        long_px = _asked()
    file = begin(folder, long_px or None)
    if as_json:
        print(json.dumps({"config": str(file)}))
        return
    option = "" if file == DEFAULT else f" -c {shlex.quote(str(file))}"
    out.print(Text(f"wrote {file} and made the folders; edit it, and then run"), soft_wrap=True)
    out.print(Text(f"  backfire check{option}"), soft_wrap=True)
    out.print(Text(f"  backfire once{option}  # protects what lies in the inbox, then ends"), soft_wrap=True)
    out.print(Text(f"  backfire run{option}  # watches the inbox until it is stopped"), soft_wrap=True)


def _asked() -> int:
    """The size at which pictures are published, as somebody at the terminal says."""
    why = (
        "Pictures that are larger than where they are published are scaled down before they are protected: "
        "whoever scales a protected picture takes most of the protection."
    )
    err.print(Text(why))
    question = "Longer side of published pictures in pixels, such as 2048 (empty keeps their size)"
    asked: int = typer.prompt(question, default="", show_default=False, value_proc=_size, err=True)
    return asked


def _size(text: str) -> int:
    """Pixels from what was typed; `KEPT` from nothing.

    Raises:
        typer.BadParameter: it is neither nothing nor such a number.
    """
    typed = text.strip() or str(KEPT)
    if not typed.isdecimal() or KEPT < int(typed) < SMALLEST:
        expected = f"expected a number of pixels, {SMALLEST} or more, or {KEPT} to keep the size"
        raise typer.BadParameter(f"output.long_px: got {text!r}, {expected}")
    return int(typed)


@app.command()
def man() -> None:
    """Print the manual page, as for man -l or for a folder of manual pages."""
    print(manual.page(typer.main.get_command(app)), end="")
