"""The replayed edits of a receipt as lines for a terminal of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.text import Text

from backfire.config import Verify
from backfire.evaluate import words
from backfire.evaluate.judge import EditResult, first_paths, is_asked, limits, misses

COLUMNS, INDENT = 80, "  "
NOISE = "  under plain noise instead"
"""What the line says that follows an edit of the region."""
EMPTY = "an empty field: of this figure nothing is asked, or it was not measured"
Row = tuple[str, ...]
"""What is edited, then SSIM, L1 and the share that is seen, each with what was asked."""
HEADINGS: Row = ("edit", "SSIM", "asked", "L1", "asked", "seen", "asked")


def lines(edits: Sequence[EditResult], asked: Verify) -> Iterator[Text]:
    """A line for each edit under a heading for each tool and editor, the columns' names above all of them.

    Where fields are empty, a last line says why.

    Args:
        edits: as the receipt has them.
        asked: the thresholds that the verdict rests on.
    """
    first = first_paths(edits)
    several = len({one.region for one in edits}) > 1
    rows = [_row(one, asked, first[one.editor, one.region] == one.path) for one in edits]
    widths = [max(map(len, column)) for column in zip(HEADINGS, *rows, strict=True)]
    widths[0] = max(widths[0], len(NOISE))
    yield Text(INDENT + _aligned(HEADINGS, widths) + "  result")
    told = iter(rows)
    for heading, own in groupby(edits, lambda one: _heading(one, several)):
        for part in textwrap.wrap(heading, COLUMNS, subsequent_indent=INDENT):
            yield Text(part, "bold")
        for one in own:
            on_first_path = first[one.editor, one.region] == one.path
            missed = misses(one, asked, on_first_path=on_first_path)
            line = Text(INDENT + _aligned(next(told), widths) + "  ")
            if is_asked(one, on_first_path=on_first_path):
                yield line.append("missed" if missed else "met", "red" if missed else "green")
            else:
                yield line.append("works" if missed else "breaks")  # the verdict does not rest on it
            if one.control_ssim is not None:
                noise: Row = (NOISE, f"{one.control_ssim:.3f}", *[""] * (len(HEADINGS) - 2))
                yield Text((INDENT + _aligned(noise, widths)).rstrip())
    if any("" in row for row in rows) or any(one.control_ssim is not None for one in edits):
        yield Text(EMPTY)


def _heading(edit: EditResult, several: bool) -> str:
    region = f"region {edit.region}: " if several else ""
    judged = f" ({words.ONLY_JUDGED})" if edit.held_out else ""
    return f"{region}{words.tool(edit.path, flattened=edit.flattened)}, by {edit.editor}{judged}"


def _row(edit: EditResult, asked: Verify, on_first_path: bool) -> Row:
    seen = "" if edit.visible is None else f"{edit.visible:.0%}"
    most, least, plainly = limits(edit, asked, on_first_path=on_first_path)
    kind = words.EDITS[edit.mask_kind]
    return (kind, f"{edit.ssim:.3f}", most, f"{edit.l1:.3f}", least, seen, plainly)


def _aligned(row: Row, widths: Sequence[int]) -> str:
    """The cells of a row: the first and every limit from the left, figures from the right."""
    kind, *cells = (
        cell.ljust(width) if number % 2 == 0 else cell.rjust(width)
        for number, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return " ".join([kind, *cells])
