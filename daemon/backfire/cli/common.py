"""What the commands share: the app, options, consoles, the progress bar, a receipt in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
from rich.table import Table
from rich.text import Text

from backfire.config import Verify
from backfire.evaluate.judge import EditResult, asked_in_words, misses

if TYPE_CHECKING:
    from backfire.pipeline.result import PhaseProgress

BAD_CONFIG, SOME_FAILED, BAD_STORE, INTERRUPTED = 2, 3, 4, 130
DEFAULT = Path("config.yaml")

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
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


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


def colour_of(verdict: str) -> str:
    """In which colour a verdict is shown."""
    return {"protected": "green", "weak": "yellow"}.get(verdict, "red")


def print_receipt(receipt: dict[str, Any], asked: Verify) -> None:
    """Verdict, reasons and, where there are any, the replayed edits as a table.

    Args:
        asked: the thresholds that the verdict rests on.
    """
    line = Text.assemble((receipt["verdict"], colour_of(receipt["verdict"])), f"  {receipt['file']}")
    if receipt.get("output"):
        line.append(f" -> {receipt['output']}")
    if receipt.get("psnr_db"):
        line.append(f"  (PSNR {receipt['psnr_db']:.1f} dB, at most {receipt['max_change_levels']} levels)")
    out.print(line, soft_wrap=True)
    for reason in receipt["reasons"]:
        out.print(Text(f"  {reason}"), soft_wrap=True)
    if not receipt.get("edits"):
        return
    table = Table(
        "region", "edit", "editor", "SSIM to clean edit", "L1", "asked", "", "SSIM under plain noise"
    )
    for edit in receipt["edits"]:
        control = "" if edit["control_ssim"] is None else f"{edit['control_ssim']:.3f}"
        result = EditResult(**edit)
        mark = Text("missed", "red") if misses(result, asked) else Text("met", "green")
        limits = asked_in_words(result, asked)
        numbers = f"{edit['ssim']:.3f}", f"{edit['l1']:.3f}", limits, mark, control
        kind = edit["mask_kind"] if edit["path"] == "crop" else f"{edit['mask_kind']}, {edit['path']}"
        table.add_row(str(edit["region"]), kind, edit["editor"], *numbers)
    out.print(table)
