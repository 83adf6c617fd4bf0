"""Lines of a protection benchmark as a table for the README and as plots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]
INCOMPLETE = (
    "dilated",
    "half",
    "box",
    "shift 16",
    "stroke",
    "cover 50%",
    "cover 75%",
    "cover 125%",
    "cover 150%",
)


def read(log: Path) -> list[Row]:
    """The lines written so far; a torn last line, from a kill, is left out."""
    rows = []
    for line in log.read_text().splitlines() if log.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def write(rows: Sequence[Row], folder: Path) -> str:
    """Writes `table.md`, `incomplete.png`, `robustness.png` and, of a sweep, `psnr.png`; gives the table."""
    groups = _grouped(rows)
    table = _table(groups)
    (folder / "table.md").write_text(table + "\n")
    _plots(groups, folder)
    return table


def _grouped(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """(protected with what, judged by whom) -> its rows."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        against = "+".join(name.split("@")[0] for name in row["surrogates"])
        how = f"{row['method']} ±{row['epsilon']:g} x{row['iterations']} on {against}"
        for editor in sorted({edit["editor"] for edit in row["edits"]}):
            groups.setdefault((how, editor), []).append(row)
    return groups


def values(rows: Sequence[Row], editor: str, edit: str, what: str = "ssim") -> list[float]:
    """That figure of that edit in every picture."""
    return [e[what] for row in rows for e in row["edits"] if e["editor"] == editor and e["edit"] == edit]


def _cell(found: Sequence[float], worst: str) -> str:
    """Mean and worst; `worst` says which end that is."""
    if not found:
        return "-"
    extreme = max(found) if worst == "max" else min(found)
    return f"{np.mean(found):.3f} ({extreme:.2f})"


def _table(groups: dict[tuple[str, str], list[Row]]) -> str:
    head = (
        "protected by", "judged by", "n", "edit SSIM ↓", "edit L1 ↑", "incomplete SSIM ↓",
        "after JPEG 75 ↓", "after the worst ↓", "near SSIM ↑", "far SSIM ↑", "PSNR dB", "SSIM", "max", "s",
    )  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for (how, editor), rows in groups.items():
        incomplete = [value for name in INCOMPLETE for value in values(rows, editor, name)]
        cells = [
            how,
            editor,
            str(len(rows)),
            _cell(values(rows, editor, "full"), "max"),
            _cell(values(rows, editor, "full", "l1"), "min"),
            _cell(incomplete, "max"),
            _cell(values(rows, editor, "after jpeg75"), "max"),
            _cell([_worst(row, editor) for row in rows], "max"),
            _cell(values(rows, editor, "near"), "min"),
            _cell(values(rows, editor, "far"), "min"),
            _cell([row["psnr"] for row in rows], "min"),
            _cell([row["ssim"] for row in rows], "min"),
            str(max(row["max_change"] for row in rows)),
            f"{np.mean([row['seconds'] for row in rows]):.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return (
        "\n".join(lines) + "\n\nMean over pictures; in brackets the worst picture. SSIM under the edit mask."
    )


def _worst(row: Row, editor: str) -> float:
    """The treatment that leaves the edit least broken."""
    found = [e for e in row["edits"] if e["editor"] == editor and e["edit"].startswith("after ")]
    return max(float(e["ssim"]) for e in found)


def _plots(groups: dict[tuple[str, str], list[Row]], folder: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    treatments = sorted({e["edit"] for rows in groups.values() for row in rows for e in row["edits"]})
    after = [name for name in treatments if name.startswith("after ")]
    for title, names in (("incomplete", ("full", *INCOMPLETE)), ("robustness", ("full", *after))):
        figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
        for (how, editor), rows in groups.items():
            means = [1 - float(np.mean(values(rows, editor, name) or [np.nan])) for name in names]
            axes.plot(range(len(names)), means, marker="o", label=f"{how} → {editor}")
        axes.set_xticks(range(len(names)), [name.removeprefix("after ") for name in names], rotation=30)
        axes.set_ylabel("effect: 1 - SSIM to the clean edit")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        figure.savefig(folder / f"{title}.png", dpi=110)
        plt.close(figure)
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    for (how, editor), rows in groups.items():
        quality = float(np.mean([row["psnr"] for row in rows]))
        effect = 1 - float(np.mean(values(rows, editor, "full")))
        axes.scatter(quality, effect)
        axes.annotate(
            f"{how} → {editor}", (quality, effect), fontsize=7, xytext=(4, 4), textcoords="offset points"
        )
    axes.set_xlabel("PSNR over the crops, dB")
    axes.set_ylabel("effect: 1 - SSIM to the clean edit")
    axes.grid(alpha=0.3)
    figure.savefig(folder / "psnr.png", dpi=110)
    plt.close(figure)
