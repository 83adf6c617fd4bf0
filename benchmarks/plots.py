"""Plots of a protection benchmark, as PNG."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.groups import Group, edited

EFFECT = "effect: 1 - SSIM to the clean edit"
Axes = Any
"""Axes of matplotlib, which is an optional dependency."""


def write(groups: Sequence[Group], folder: Path) -> None:
    """Write all plots for which the groups have data.

    * `incomplete.png`, `robustness.png`: the effect with other masks and crops, and after treatments;
    * `psnr.png`: effect against PSNR, a curve for each method, if budgets or methods differ; the judge is
      the editor that was optimised against;
    * `transfer.png`: the first method's effect from editor to editor, if there are several editors;
    * `sweep.png`: effect against iterations, a line for each budget, if both were varied.
    """
    edits = list(dict.fromkeys(name for group in groups for name in group.edits()))
    after = [name for name in edits if name.startswith("after ")]
    other = [name for name in edits if name not in (*after, "near", "far")]
    for name, names in (("incomplete", other), ("robustness", ["full", *after])):
        shown = [edit for edit in names if any(group.values(edit) for group in groups)]
        if len(shown) > 1:
            with axes(folder / f"{name}.png", (9.0, 4.8)) as plot:
                _bars(plot, groups, shown)
    own = [group for group in groups if group.against == group.judge]
    if len({group.how for group in own}) > 1:
        with axes(folder / "psnr.png") as plot:
            _curves(plot, own, of=lambda group: group.rows[0]["settings"]["iterations"], by=_psnr)
            plot.set_xlabel("PSNR over the crops, dB")
    if len({group.judge for group in groups}) > 1:
        with axes(folder / "transfer.png", (7.0, 4.0), ylabel="optimised against") as plot:
            _matrix(plot, [g for g in groups if (g.of, g.how) == (groups[0].of, groups[0].how)])
    if len({_way(group) for group in groups}) > len({_way(group)[0] for group in groups}):
        with axes(folder / "sweep.png") as plot:
            _curves(plot, groups, of=_epsilon, by=lambda group: group.rows[0]["settings"]["iterations"])
            plot.set_xlabel("iterations")


@contextmanager
def axes(path: Path, size: tuple[float, float] = (7.5, 5.0), *, ylabel: str = EFFECT) -> Iterator[Axes]:
    """Axes with a grid; the figure is saved to `path` at the end of the `with` block."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, plot = plt.subplots(figsize=size, layout="constrained")
    yield plot
    plot.set_ylabel(ylabel)
    plot.grid(alpha=0.3)
    if plot.get_legend_handles_labels()[1]:
        figure.legend(loc="outside upper left", fontsize=7, ncols=2)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _bars(plot: Axes, groups: Sequence[Group], edits: Sequence[str]) -> None:
    width = 0.8 / len(groups)
    for index, group in enumerate(groups):
        means = [1 - float(np.mean(group.values(name) or [np.nan])) for name in edits]
        places = np.arange(len(edits)) + (index - (len(groups) - 1) / 2) * width
        plot.bar(places, means, width, label=group.label)
    plot.set_xticks(
        range(len(edits)), [name.removeprefix("after ") for name in edits], rotation=30, ha="right"
    )


def _curves(
    plot: Axes, groups: Sequence[Group], *, of: Callable[[Group], float], by: Callable[[Group], float]
) -> None:
    """Draw the effect over `by`, with a line for each method and value of `of`."""
    lines: dict[tuple[str, str, str, str, float], list[Group]] = {}
    for group in groups:
        settings = group.rows[0]["settings"]
        method, target = settings["method"], settings.get("target", "away")
        method = method if target == "away" else f"{method}:{target}"
        lines.setdefault((group.of, method, group.against, group.judge, of(group)), []).append(group)
    for index, ((dataset, method, against, judge, which), members) in enumerate(lines.items()):
        points = sorted((by(group), 1 - float(np.mean(group.values("full")))) for group in members)
        unit = f"±{which:g}" if of is _epsilon else f"{which:g} iterations"
        plot.plot(
            *zip(*points, strict=True),
            marker="osD^"[index // 10 % 4],  # the colours repeat after ten lines
            label=f"{dataset}: {method}, {unit}, {edited(against, judge)}",
        )
    plot.set_ylim(bottom=0)


def _matrix(plot: Axes, groups: Sequence[Group]) -> None:
    """Draw the effect as a matrix: optimised against one editor (rows), judged by each (columns)."""
    against = list(dict.fromkeys(group.against for group in groups))
    judges = list(dict.fromkeys(group.judge for group in groups))
    effects = np.full((len(against), len(judges)), np.nan)
    for group in groups:
        at = against.index(group.against), judges.index(group.judge)
        effects[at] = 1 - float(np.mean(group.values("full")))
        plot.text(
            *at[::-1], f"{effects[at]:.2f}", ha="center", va="center", bbox={"fc": "white", "ec": "none"}
        )
    plot.imshow(effects, vmin=0, vmax=1, cmap="viridis")
    plot.set_xticks(range(len(judges)), judges)
    plot.set_yticks(range(len(against)), [name.replace("+", " +\n") for name in against])
    plot.set_xlabel("judged by")
    plot.set_title(f"{groups[0].how}: {EFFECT}", fontsize=9)


def _way(group: Group) -> tuple[str, int]:
    settings = group.rows[0]["settings"]
    return settings["method"], settings["iterations"]


def _epsilon(group: Group) -> float:
    return float(group.rows[0]["settings"]["epsilon"])


def _psnr(group: Group) -> float:
    return float(np.mean([row["psnr"] for row in group.rows]))
