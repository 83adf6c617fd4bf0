"""What the commands share: the app, options, consoles, the progress bar, a receipt in words."""

from __future__ import annotations

import os
import re
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from backfire.admin.named import is_number
from backfire.admin.outcomes import midnight
from backfire.cli import edits
from backfire.config import Verify
from backfire.errors import ConfigError
from backfire.evaluate import words
from backfire.evaluate.judge import EditResult
from backfire.types import printable as printable

if TYPE_CHECKING:
    from backfire.pipeline.result import PhaseProgress

BAD_CONFIG, SOME_FAILED, BAD_STORE, UNKNOWN_FILE, INTERRUPTED = 2, 3, 4, 5, 130
UNAVAILABLE = os.EX_TEMPFAIL
"""What systemd tries again, other than a bad configuration."""
NOT_ANSWERED, OUTPUT_LOST = 1, os.EX_IOERR
"""Typer's own where a question is not answered with yes, and that of an output that cannot be written."""
DEFAULT = Path("config.yaml")
BY_HAND = 0o666
"""The rights of a file that a person has written for themselves, less those that their umask takes."""

NAMED = 3
"""The most pictures that are named where it is said how many something was done with."""

users_umask: int | None = None
"""The umask that the program was started with; None where a command runs within another program."""

app = typer.Typer(
    help="Protect pictures so that AI edits of their sensitive regions backfire.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

Config = Annotated[Path, typer.Option("--config", "-c", help="The configuration file.")]
OptionalConfig = Annotated[
    Path | None, typer.Option("--config", "-c", help="Settings; folders are not used.")
]
Mask = Annotated[
    Path | None,
    typer.Option(
        "--mask",
        "-m",
        help="What to protect: a mask (white is protected, unless regions.sidecar.protected says black) or "
        "an annotation file; without it, those that lie beside the picture.",
    ),
]
NAME_A_MASK = (
    "paint what is to be protected white on a black picture of the same size and name that with -m mask.png, "
    "or set regions.none_found in a configuration that -c names"
)
"""What helps a command that found nothing to protect."""
MOST_ID = (1 << 63) - 1
"""The largest number that the database holds."""


def job_or_name(text: str) -> str:
    """What names a job: its number, or its picture, as the user wrote it."""
    if is_number(text) and not 1 <= int(text[:20]) <= MOST_ID:
        raise typer.BadParameter(
            f"got {text!r}, expected the number of a job or the name of a picture; `backfire jobs` lists both"
        )
    return text


def of_pictures(none: str = "") -> Any:
    """The argument that names jobs, for commands that act on them; `none` says what happens without one."""
    return typer.Argument(
        parser=job_or_name,
        metavar="[PICTURES]...",
        help=f"Pictures by name, or jobs by number{none}.",
        show_default=False,
    )


def few(names: Sequence[str]) -> str:
    """Some names, of many the first ones, for a terminal."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return printable(", ".join(names[:NAMED])) + more


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def require_sheet(option: str, path: Path) -> None:
    """Refuse to draw a sheet over anything but an earlier one: `--sheet *.jpg` names a picture first.

    Raises:
        ConfigError: another file has that name.
    """
    from backfire.imaging.drawing import is_drawn  # here, as most commands need none of the imaging libraries

    try:
        with path.open("rb") as file:
            is_sheet = is_drawn(file.read(1024))
    except OSError:  # there is none, or to write it will fail and say why
        return
    if not is_sheet:
        raise ConfigError(
            f"{option} {path}: exists already and is no sheet; nothing else is overwritten; name another file"
        )


def write_as_user() -> None:
    """Let files have the rights that their user's umask leaves, in place of the daemon's stricter one.

    For commands that write files which a person asked for, who then publishes them or hands them on.
    """
    if users_umask is not None:
        os.umask(users_umask)


@contextmanager
def writing_as_user() -> Iterator[None]:
    """`write_as_user` within a `with` statement: a demo first fetches models, then runs the daemon."""
    if users_umask is None:
        yield
        return
    before = os.umask(users_umask)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def bar() -> Iterator[PhaseProgress]:
    """A progress bar with an estimate on a terminal, nothing off one; yields advance(text, done, total)."""
    if not err.is_terminal:
        yield lambda text, done, total: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
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


def named(advance: PhaseProgress, name: str) -> PhaseProgress:
    """The bar's callback with a picture's name before each phase."""
    return lambda phase, done, total: advance(f"{name}: {phase}", done, total)


def wrapped(text: str, indent: int) -> list[str]:
    """The lines of a text that fit the terminal behind an indent; off a terminal 80 columns."""
    return textwrap.wrap(text, max(out.width - indent, 40), break_on_hyphens=False) or [""]


def moment(text: str) -> float:
    """A time in the past as somebody writes it, by the clock on the wall, in Unix seconds.

    Raises:
        typer.BadParameter: it is none.
    """
    now = time.time()
    if text in ("today", "yesterday"):
        return midnight(now if text == "today" else midnight(now) - 43200)
    if found := re.fullmatch(r"(\d{1,9})([mhd])", text):
        return max(0.0, now - int(found[1]) * {"m": 60, "h": 3600, "d": 86400}[found[2]])
    for pattern in ("%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M:%S"):
        with suppress(ValueError, OverflowError):
            return time.mktime(time.strptime(text, pattern))
    with suppress(ValueError):
        hour = time.strptime(text, "%H:%M")
        year, month, day, *_ = time.localtime(now)
        return time.mktime((year, month, day, hour.tm_hour, hour.tm_min, 0, 0, 0, -1))
    raise typer.BadParameter(f"got {text!r}, expected today, yesterday, 2h, 3d, 14:00 or 2026-11-28")


def print_error(message: str) -> None:
    """An error, a line each of its lines, of which none can move the terminal's cursor or colour it."""
    lines = "\n".join(map(printable, message.split("\n")))
    err.print(Text(f"backfire: {lines}", style="red"), soft_wrap=True)


def colour(what: str) -> str:
    """In which colour a verdict or an outcome is shown."""
    return {"protected": "green", "weak": "yellow", "held": "blue", "failed": "red"}.get(what, "default")


def print_receipt(receipt: dict[str, Any], asked: Verify, to: Console = out) -> None:
    """Verdict, reasons and, where there are any, the replayed edits, a line each.

    Args:
        to: where it is printed.
        asked: the thresholds that the verdict rests on.
    """
    line = Text.assemble((receipt["verdict"], colour(receipt["verdict"])), "  ", printable(receipt["file"]))
    if receipt.get("output"):
        line.append(f" -> {printable(receipt['output'])}")
    if receipt.get("psnr_db"):
        line.append(f"  (PSNR {receipt['psnr_db']:.1f} dB, at most {receipt['max_change_levels']} levels)")
    to.print(line, soft_wrap=True)
    for reason in receipt["reasons"]:
        to.print(Text(f"  {words.reason(reason)}"), soft_wrap=True)
    if not receipt.get("edits"):
        return
    for edit in edits.lines([EditResult.of(one) for one in receipt["edits"]], asked):
        to.print(edit, soft_wrap=True)
