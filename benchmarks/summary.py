"""Rows of a protection benchmark as tables for the documentation.

Every cell is the mean over the pictures' regions, with the worst region in brackets. Effects, and the shares
of them that other edits and treatments keep, are explained in `groups`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks import perceptual, plots
from benchmarks.groups import LEAST, Group, grouped, kept
from benchmarks.rows import Row


def clip_fid(group: Group) -> str:
    """The Fréchet distance between CLIP features of the edits of originals and of protected pictures."""
    pairs = group.of_full("clip")
    if len(pairs) < 2:
        return "needs two regions" if pairs else "no weights"
    clean, got = (np.array([pair[i] for pair in pairs], dtype=np.float64) for i in (0, 1))
    return f"{perceptual.frechet(clean, got):.1f}"


def write(rows: Sequence[Row], folder: Path) -> str:
    """Write `table.md` and the plots into a folder, and return the table."""
    groups = grouped(rows)
    text = tables(groups)
    (folder / "table.md").write_text(text + "\n")
    plots.write(groups, folder)
    return text


def tables(groups: Sequence[Group]) -> str:
    """All tables for which the rows have data, as Markdown."""
    parts = [
        effect(groups),
        incomplete(groups),
        robustness(groups),
        transfer(groups),
        verdicts(groups),
        state(groups),
    ]
    return "\n\n".join(part for part in parts if part)


def effect(groups: Sequence[Group]) -> str:
    """The effect on trigger and benign edits, and the cost."""
    head = (
        "set", "protected by", "on", "judged by", "n", "edit SSIM ↓", "edit L1 ↑", "LPIPS ↑", "CLIP-FID ↑",
        "near SSIM ↑", "far SSIM ↑", "PSNR dB", "SSIM", "largest change", "iterations", "CPU s", "MB",
    )  # fmt: skip
    lines = []
    for group in groups:
        lines.append(
            [
                *_names(group),
                str(len(group.values("full"))),
                _cell(group.values("full"), max),
                _cell(group.values("full", "l1"), min),
                _cell(group.of_full("lpips"), min) or "no weights",
                clip_fid(group),
                _cell(group.values("near"), min),
                _cell(group.values("far"), min),
                _cell([row["psnr"] for row in group.rows], min, digits=1),
                _cell([row["ssim"] for row in group.rows], min),
                str(max(row["max_change"] for row in group.rows)),
                f"{np.mean([row['iterations'] for row in group.rows]):.0f}",
                _cell([row["cpu_s"] for row in group.rows], max, digits=1),
                f"{max(row['peak_mb'] for row in group.rows)}",
            ]
        )
    return "## Effect and cost\n\n" + table(head, lines)


def incomplete(groups: Sequence[Group]) -> str:
    """The effect with other masks of the region and with other crops."""
    return _shares("## Other edits of the region", groups, lambda name: not name.startswith("after "))


def robustness(groups: Sequence[Group]) -> str:
    """The effect after each treatment, and after the worst one for each region."""
    return _shares("## After treatments", groups, lambda name: name.startswith("after "), worst=True)


def _shares(
    title: str, groups: Sequence[Group], wanted: Callable[[str], bool], *, worst: bool = False
) -> str:
    plain = ("full", "near", "far")
    names = list(dict.fromkeys(n for group in groups for n in group.edits() if wanted(n) and n not in plain))
    if not names:
        return ""
    head = (
        "set",
        "protected by",
        "on",
        "judged by",
        "plain",
        *(name.removeprefix("after ") for name in names),
    )
    lines = []
    for group in groups:
        cells = [*_names(group), _cell(group.values("full"), max)]
        for name in names:
            share = kept(group, name)
            cells.append(
                _cell(group.values(name), max) + (f", {share[0]:.0%} ({share[1]:.0%})" if share else "")
            )
        lines.append(cells + ([_cell(group.worst(), max)] if worst else []))
    note = f"SSIM ↓, and the share of the effect that is kept ↑ (of effects of {LEAST:g} and more)."
    return f"{title}\n\n{table((*head, *(('the worst of all',) if worst else ())), lines)}\n\n{note}"


def transfer(groups: Sequence[Group]) -> str:
    """The effect of each surrogate, and of all together, on each judge."""
    against = list(dict.fromkeys(group.against for group in groups))
    judges = list(dict.fromkeys(group.judge for group in groups))
    if len(judges) < 2:
        return ""
    lines = []
    for of, how in dict.fromkeys((group.of, group.how) for group in groups):
        here = {(g.against, g.judge): g for g in groups if (g.of, g.how) == (of, how)}
        for name in against:
            cells = [of, how, name]
            for judge in judges:
                group, own = here.get((name, judge)), here.get((judge, judge))
                if group is None:
                    cells.append("")
                    continue
                mine = float(np.mean(list(group.effects("full").values())))
                base = float(np.mean(list(own.effects("full").values()))) if own else 0.0
                share = f", {mine / base:.0%}" if own and own is not group and base >= LEAST else ""
                cells.append(f"{mine:.3f}{share}")
            lines.append(cells)
    note = "Mean effect ↑, and its share of the effect of optimising against the judge itself."
    head = ("set", "protected by", "on", *(f"judged by {judge}" for judge in judges))
    return f"## Transfer and ensemble\n\n{table(head, lines)}\n\n{note}"


def verdicts(groups: Sequence[Group]) -> str:
    """The daemon's verdicts on the pictures, and on pictures without protection."""
    lines, seen = [], set[tuple[str, str, str]]()
    for group in groups:
        if (name := (group.of, group.how, group.against)) in seen or not all(
            r["verdicts"] for r in group.rows
        ):
            continue
        seen.add(name)
        counts = [
            Counter(row["verdicts"][what] for row in group.rows)
            for what in ("published", "unchanged", "noise")
        ]
        lines.append([*name, *(", ".join(f"{n} {v}" for v, n in sorted(count.items())) for count in counts)])
    head = ("set", "protected by", "on", "published", "without perturbation", "noise instead")
    return "## Verdicts\n\n" + table(head, lines) if lines else ""


def state(groups: Sequence[Group]) -> str:
    """How busy the machine was."""
    loads = [row["load"] for group in groups for row in group.rows]
    return (
        "Means, with the worst region or picture in brackets; SSIM and L1 under the edit's mask, of decoded "
        f"PNGs. The machine's load was {min(loads):g} to {max(loads):g}; CPU seconds are processor time."
    )


def _names(group: Group) -> list[str]:
    return [group.of, group.how, group.against, group.judge]


def _cell(found: Sequence[float], worst: Callable[[Sequence[float]], float], *, digits: int = 3) -> str:
    """Mean and worst value as text; `worst` is `min` or `max`."""
    return f"{np.mean(found):.{digits}f} ({worst(found):.{max(digits - 1, 1)}f})" if found else ""


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
