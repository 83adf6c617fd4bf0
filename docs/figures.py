"""Tables of figures for the documentation, from the tables that the benchmarks wrote.

So no figure in the documentation can differ from what was measured. The benchmarks' tables have means, and
the worst in brackets.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "protection"
MEASURED = "latent-mini"
"""The editor of these runs: the default until the end of November 2026."""

SETS = {"photographs": ("dev", "dev"), "faces": ("people", "faces"), "pairs": ("people", "pairs")}
"""Label, folder below `RESULTS`, and the set as the benchmarks call it."""

Row = dict[str, str]


def rows(run: str, title: str = "Effect and cost", *, own: bool = True) -> list[Row]:
    """The rows of a results table under a title, by column; with `own` those that the surrogate judges."""
    text = (RESULTS / run / "table.md").read_text()
    section = re.search(rf"^## {title}\n\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert section, f"{run}/table.md: no table under {title!r}"
    head, _, *lines = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in section[1].splitlines()
    )
    found = [dict(zip((name.rstrip(" ↑↓") for name in head), line, strict=True)) for line in lines]
    return [row for row in found if not own or row["on"] == row["judged by"]]


def effect() -> str:
    """What a protection does to edits by the default editor, and what treatments leave of it."""
    measured = "edit SSIM", "edit L1", "near SSIM", "far SSIM", "PSNR"
    treatments = {"jpeg 75": "kept after JPEG 75", "half size": "half size", "crop 10%": "crop by a tenth"}
    lines = _head("pictures, protected by", *measured, *treatments.values(), "iterations", "CPU s")
    for label, (run, name) in SETS.items():
        treated = {row["protected by"]: row for row in _of(rows(run, "After treatments"), name)}
        for row in _of(rows(run), name):
            kept = [_kept(treated[row["protected by"]][treatment]) for treatment in treatments]
            told = f"{label}, {method(row['protected by'])}"
            lines.append(_line(told, *_measured(row), *kept, row["iterations"], _mean(row["CPU s"])))
    return "\n".join(lines)


def budgets() -> str:
    """What a budget buys, beside the baseline with the same."""
    by = {row["protected by"]: row for row in rows("sweep")}
    lines = _head("budget", "edit SSIM", "PSNR", "baseline at the same epsilon")
    for name, ours in by.items():
        budget = re.fullmatch(r"implant@([\d.]+)x80", name)
        if budget:
            cells = _mean(ours["edit SSIM"]), _db(ours), _at(by[f"baseline@{budget[1]}x80"])
            lines.append(_line(f"epsilon {budget[1]}", *cells))
    return "\n".join(lines)


def editors() -> str:
    """Each editor optimised against and judged by itself: SSIM of the edit and PSNR, by method."""
    found = [row for row in rows("transfer") if row["set"] == "dev"]
    names = list(dict.fromkeys(row["on"] for row in found if "+" not in row["on"]))
    lines = _head("method", *(f"`{name}`" for name in names))
    for word in dict.fromkeys(row["protected by"] for row in found):
        by = {row["on"]: row for row in found if row["protected by"] == word}
        lines.append(_line(method(word), *(_at(by[name]) if name in by else "" for name in names)))
    return "\n".join(lines)


def against(run: str, editor: str) -> str:
    """What each method does to the edits of one editor, optimised against it."""
    lines = _head("method", "edit SSIM", "edit L1", "near SSIM", "far SSIM", "PSNR", "CPU s")
    for row in _of(rows(run), "dev", editor):
        lines.append(_line(method(row["protected by"]), *_measured(row), _mean(row["CPU s"])))
    return "\n".join(lines)


def today() -> str:
    """What the default settings do, and how much of it carries over to a published autoencoder."""
    lines = _head("pictures", "judged by", "regions", "edit (worst)", "beside the region", "far away", "PSNR")
    for label, run in (("photographs of 224 px", "transfer"), ("face pictures at 256 px", "faces")):
        for row in rows(f"flux2-mini/{run}", own=False):
            if (row["on"], row["protected by"]) == ("flux2-mini", "implant"):
                judge, kept = f"`{row['judged by']}`", (row["near SSIM"], row["far SSIM"])
                lines.append(_line(label, judge, row["n"], row["edit SSIM"], *map(_mean, kept), _db(row)))
    return "\n".join(lines)


def summary() -> str:
    """The table of the README."""
    chosen = [
        ("photographs of 224 px", "flux2-mini/dev", "dev", "flux2-mini"),
        ("face pictures at 256 px", "flux2-mini/faces", "faces", "flux2-mini"),
        ("photographs of 224 px, `latent-mini`, the former default", "dev", "dev", "latent-mini"),
    ]
    lines = _head("pictures", "regions", "edit (worst)", "beside the region", "far away", "PSNR", "baseline")
    for label, run, name, editor in chosen:
        by = {row["protected by"]: row for row in _of(rows(run), name, editor)}
        ours = by["implant"]
        kept = _mean(ours["near SSIM"]), _mean(ours["far SSIM"])
        lines.append(_line(label, ours["n"], ours["edit SSIM"], *kept, _db(ours), _at(by["baseline"])))
    return "\n".join(lines)


def method(word: str) -> str:
    """A method as the benchmarks name it, such as `implant:flat@3`, for people."""
    rest, _, epsilon = word.partition("@")
    name, _, target = rest.partition(":")
    said = [name if name == "baseline" else f"`{name}`"]
    said += [f"`target: {target}`"] * bool(target) + [f"epsilon {epsilon}"] * bool(epsilon)
    return ", ".join(said)


def _of(found: Iterable[Row], name: str, editor: str = MEASURED) -> Iterator[Row]:
    return (row for row in found if (row["set"], row["on"]) == (name, editor))


def _mean(cell: str) -> str:
    return cell.partition(" ")[0]


def _db(row: Row) -> str:
    return f"{_mean(row['PSNR dB'])} dB"


def _at(row: Row) -> str:
    return f"{_mean(row['edit SSIM'])} at {_db(row)}"


def _measured(row: Row) -> tuple[str, ...]:
    return row["edit SSIM"], _mean(row["edit L1"]), row["near SSIM"], row["far SSIM"], _db(row)


def _kept(cell: str) -> str:
    """The share that is kept, from `0.481 (0.72), 90% (64%)`."""
    share = re.search(r", (\d+)%", cell)
    return f"{share[1]} %" if share else ""


def _head(*names: str) -> list[str]:
    return [_line(*names), "|" + "---|" * len(names)]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
