"""Compares the time to the same effect of a reference and ours, and measures how costs grow.

    python -m benchmarks speed --runs 5 --references paper,single-path

The references are strengths: `paper`, the published baseline, which optimises the whole picture for its 20
iterations, and `single-path`, the default of former releases.

Equal effect: a reference runs as its strength says. Ours optimises the crops that the daemon would, with the
fewest iterations (in steps, see `LADDER`) whose effect on edits of the decoded file, in the first tool,
equals that of the reference. Both run one after the other in one process, after a warm-up. The ratio compares
processor seconds of the optimisation alone: the edits that measure the effect and the runs with fewer
iterations do not count. If even the most iterations do not reach the reference, the picture counts as `short`
and is left out of the mean.

The published baseline does not fit into memory for pictures larger than --most million pixels. It is then
timed for --few iterations on a picture of that size, and the time is scaled by pixels and iterations, which
favours it because attention grows faster. The effect to reach is then the baseline's on the crop.

Growth: time and peak memory by picture size and number of regions, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import Progress

from backfire import inpaint
from backfire.config import STRENGTHS, Protect
from backfire.errors import BackfireError
from backfire.inpaint.base import Editor
from backfire.types import Mask, Rgb
from benchmarks import measure, protection, sets, summary
from benchmarks.measure import Made, Trial
from benchmarks.protection import listed
from benchmarks.rows import Journal, Row, child_environment
from benchmarks.sets import Case

PAPER = "paper"
LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 80, 120, 160)
OUT = Path("benchmarks/results/protection/speed")


@dataclass(frozen=True)
class Steps:
    """How many iterations the reference makes (None: as its strength says), and how many ours may make, in
    rising order.
    """

    reference: int | None = None
    ours: Sequence[int] = LADDER


def settings(method: str, iterations: int, reach: int | None = None) -> Protect:
    """A method's default settings with that many iterations and, if given, `reach` as `reach_px`.

    The effect is that in the first tool, so the method optimises for that alone, as the references do.
    """
    share = None if reach is None else 0.0
    name = f"{method}x{iterations}"
    return protection.settings_of(name, reach_px=reach, reach_share=share, paths="first")


def of_strength(name: str) -> Protect:
    """The settings of a strength."""
    return Protect.model_validate({"strength": name})


def pictures(count: int, width: int, height: int, folder: Path) -> Iterator[Case]:
    """Photographs of the set `pairs`, scaled and cropped to a size, with a random region of 100 to 200 px."""
    for case in sets.cases("pairs", count=count, side=1 << 16, folder=folder):
        yield Case("speed", case.name, _filled(case.rgb, width, height), (_region(case, width, height, 0),))


def _filled(rgb: Rgb, width: int, height: int) -> Rgb:
    scale = max(width / rgb.shape[1], height / rgb.shape[0])
    size = max(round(rgb.shape[1] * scale), width), max(round(rgb.shape[0] * scale), height)
    whole: Rgb = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC))
    return whole[:height, :width].copy()


def _region(case: Case, width: int, height: int, number: int, most: int = 600) -> Mask:
    """A region in a random part of the picture of at most `most` pixels, so that it does not grow with it."""
    rng = np.random.default_rng([*case.seed, number])
    h, w = min(height, most), min(width, most)
    top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    plane = np.zeros((height, width), dtype=np.bool_)
    plane[top : top + h, left : left + w] = sets.seeded(h, w, rng)
    return plane


def ours(
    trial: Trial,
    editor: Editor,
    method: str,
    wanted: float,
    reach: int | None = None,
    ladder: Sequence[int] = LADDER,
) -> tuple[int, Made, float]:
    """The fewest iterations of `ladder` that reach an effect, their result, and its effect.

    Found by binary search, since the effect grows with the iterations. If none reaches it, the most
    iterations are returned.
    """
    low, high, reached = 0, len(ladder) - 1, None
    while low <= high:
        middle = (low + high) // 2
        made = measure.protected(trial.case, settings(method, ladder[middle], reach), [editor])
        found = ladder[middle], made, trial.effect(made.rgb)
        if found[2] >= wanted:
            reached, high = found, middle - 1
        else:
            low = middle + 1
    return reached or found


def equal(
    case: Case,
    editor: Editor,
    method: str,
    *,
    most: float,
    few: int,
    reference: str = PAPER,
    reach: int | None = None,
    steps: Steps = Steps(),
) -> Row:
    """Measure a reference and ours on one picture, ours until it has the effect of the reference.

    Args:
        reference: a strength; that of the published baseline works on the whole picture.
    """
    trial = Trial(case, [editor], plain=True)
    height, width = case.rgb.shape[:2]
    whole = reference == PAPER
    fits = not whole or width * height <= most * 1e6
    measure.warm([editor])
    trial.effect(case.rgb)  # makes the clean edit beforehand
    wanted_by = of_strength(reference)
    if steps.reference is not None:
        wanted_by = wanted_by.model_copy(update={"iterations": steps.reference})
    paths = measure.paths_of([editor.name], None)
    through = [paths[editor.name]] if wanted_by.paths == "all" else ()
    made = measure.protected(case, wanted_by, [editor], whole=whole and fits, through=through)
    cost = made.cpu_s
    if not fits:
        side = int(np.sqrt(most * 1e6))
        small = Case("speed", case.name, _filled(case.rgb, side, side), (_region(case, side, side, 0),))
        timed = measure.protected(small, settings("baseline", few), [editor], whole=True)
        cost = timed.cpu_s * wanted_by.iterations / few * (width * height) / side**2
    wanted = trial.effect(made.rgb)
    iterations, reached, effect = ours(trial, editor, method, wanted, reach, steps.ours)
    return {
        "reference": {
            "cpu_s": round(cost, 2),
            "scaled": not fits,
            "peak_mb": made.peak_mb,
            "effect": round(wanted, 4),
            **measure.quality(case.rgb, made),
        },
        "ours": {
            "cpu_s": reached.cpu_s,
            "iterations": iterations,
            "peak_mb": reached.peak_mb,
            "effect": round(effect, 4),
            **measure.quality(case.rgb, reached),
        },
        "short": effect < wanted,
        "ratio": round(cost / max(reached.cpu_s, 1e-3), 2),
        "load": round(os.getloadavg()[0], 1),
    }


def _of(case: Case) -> Row:
    """What a row says of its picture."""
    return {"picture": case.name, "pixels": case.pixels}


def point(what: Row) -> Row:
    """Measure time and memory of one point of the growth, in this process."""
    width, height = what["size"]
    case = next(pictures(1, width, height, Path(what["data"])))
    masks = tuple(_region(case, width, height, number) for number in range(what["regions"]))
    editor = inpaint.get(what["editor"].partition("@")[0])
    case = Case("speed", case.name, case.rgb, masks)
    measure.warm([editor])
    whole = what["method"] == "baseline"
    made = measure.protected(case, settings(what["method"], what["iterations"]), [editor], whole=whole)
    return {"cpu_s": made.cpu_s, "peak_mb": made.peak_mb, "load": round(os.getloadavg()[0], 1)}


def _apart(what: Row) -> Row:
    """Measure a point in a new process, so that its peak memory is its own."""
    command = [sys.executable, "-m", "benchmarks", "speed", "--point", json.dumps(what)]
    done = subprocess.run(command, env=child_environment(), check=True, stdout=subprocess.PIPE, text=True)
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return int(width), int(height or width)


def growth(given: argparse.Namespace, editor: str) -> list[Row]:
    """The points to measure: each size with one region, the largest with more, the baseline where it fits."""
    sizes = [_size(text) for text in given.sizes]
    base = {"editor": editor, "iterations": given.few}
    points = [{**base, "method": given.method, "size": list(size), "regions": 1} for size in sizes]
    points += [
        {**base, "method": given.method, "size": list(size), "regions": int(n)}
        for size in sizes[-1:]
        for n in given.regions
    ]
    fitting = [size for size in sizes if size[0] * size[1] <= given.most * 1e6]
    return points + [{**base, "method": "baseline", "size": list(size), "regions": 1} for size in fitting]


def table(rows: Sequence[Row]) -> str:
    """The tables of both parts as Markdown."""
    parts = []
    runs = [row for row in rows if row["kind"] == "equal"]
    lines = []
    for key in dict.fromkeys(map(_kind, runs)):
        here = [row for row in runs if _kind(row) == key]
        size, reference, method = key
        reached = [row for row in here if not row["short"]]
        ratios = [row["ratio"] for row in reached]
        spread = (
            f"{np.mean(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})" if ratios else "not reached"
        )
        scaled = " (scaled)" if here[0]["reference"]["scaled"] else ""
        lines.append(
            [
                f"{size[0]}x{size[1]}",
                reference,
                method,
                f"{len(ratios)} of {len(here)}",
                _mean(reached, "reference", "effect", 3),
                _mean(reached, "ours", "effect", 3),
                _mean(reached, "reference", "psnr", 1),
                _mean(reached, "ours", "psnr", 1),
                _mean(reached, "reference", "cpu_s", 1) + scaled,
                _mean(reached, "ours", "cpu_s", 1),
                ", ".join(str(row["ours"]["iterations"]) for row in here),
                spread,
            ]
        )
    if lines:
        head = (
            "picture", "reference", "ours", "reached", "its effect", "ours", "its PSNR", "ours",
            "its CPU s", "ours", "our iterations", "times faster (spread)",
        )  # fmt: skip
        parts.append("## To the same effect\n\n" + summary.table(head, lines))
    points = [row for row in rows if row["kind"] == "growth"]
    if points:
        cells = [
            [
                row["method"],
                f"{row['size'][0]}x{row['size'][1]}",
                str(row["regions"]),
                str(row["iterations"] * (1 if row["method"] == "baseline" else row["regions"])),
                f"{row['cpu_s']:.1f}",
                str(row["peak_mb"]),
            ]
            for row in points
        ]
        columns = ("method", "picture", "regions", "iterations", "CPU s", "MB")
        parts.append("## As pictures and regions grow\n\n" + summary.table(columns, cells))
    loads = [row["load"] for row in rows]
    cost = "CPU seconds of optimising, the search of its start included"
    note = f"{cost}; the machine's load was {min(loads):g} to {max(loads):g}."
    if lines:
        note += " Means are over the pictures in which the effect was reached."
    return "\n\n".join([*parts, note])


def _kind(row: Row) -> tuple[tuple[int, int], str, str]:
    """The size of a run's picture, its reference and our method."""
    width, height = row["size"]
    return (width, height), row["reference_strength"], row["method"]


def _mean(rows: Sequence[Row], who: str, what: str, digits: int) -> str:
    """The mean of a figure, or a dash where there are no rows."""
    return f"{np.mean([row[who][what] for row in rows]):.{digits}f}" if rows else "-"


def plot(rows: Sequence[Row], folder: Path) -> None:
    """Write `growth.png`: processor seconds against million pixels, for one region.

    They are not divided by the iterations, since ours looks for a start first.
    """
    from benchmarks import plots

    points = [row for row in rows if row["kind"] == "growth" and row["regions"] == 1]
    if not points:
        return
    cost = f"CPU seconds of {points[0]['iterations']} iterations and their start"
    with plots.axes(folder / "growth.png", ylabel=cost) as axes:
        for method in dict.fromkeys(row["method"] for row in points):
            here = [row for row in points if row["method"] == method]
            line = sorted((row["size"][0] * row["size"][1] / 1e6, row["cpu_s"]) for row in here)
            axes.plot(*zip(*line, strict=True), marker="o", label=method)
        axes.set_xlabel("million pixels")
        axes.set_xscale("log")
        axes.set_yscale("log")


def main(argv: Sequence[str]) -> int:
    """See the module's docstring."""
    about = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks speed", description=__doc__, formatter_class=about)
    parser.add_argument("--editor", default="flux2-mini")
    parser.add_argument("--method", default="implant", help="ours")
    parser.add_argument("--references", type=listed, default=[PAPER], help=f"some of {', '.join(STRENGTHS)}")
    parser.add_argument(
        "--reach-px", type=int, help="protect.reach_px for ours; the baseline perturbs the whole picture"
    )
    parser.add_argument("--runs", type=int, default=5, help="number of pictures, at most five")
    parser.add_argument("--equal", type=listed, default=["512", "4000x3000"], help="sizes for equal effect")
    parser.add_argument("--sizes", type=listed, default=["512", "1024", "2048", "4000x3000"])
    parser.add_argument("--regions", type=listed, default=["2", "4", "8"])
    parser.add_argument(
        "--most", type=float, default=0.3, help="the most million pixels on which the baseline is run"
    )
    parser.add_argument("--few", type=int, default=2, help="iterations if only the time is measured")
    parser.add_argument("--data", type=Path, default=sets.SHARED, help="the folder with pairs/")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.point is not None:
        print(json.dumps(point(given.point)))
        return 0
    if unknown := set(given.references) - set(STRENGTHS):
        raise SystemExit(f"--references: got {', '.join(unknown)}, expected some of {', '.join(STRENGTHS)}")
    try:
        editor = inpaint.get(given.editor)
    except BackfireError as error:
        raise SystemExit(f"--editor: {error}") from error
    name = f"{editor.name}@{editor.weights_sha256[:8]}"
    points = growth(given, name)
    if not points and not given.equal:
        raise SystemExit("nothing to measure: --equal and --sizes are both empty")
    journal, rows = Journal(given.out / "rows.jsonl"), list[Row]()
    with Progress() as bar:
        plan = [(_size(size), reference) for size in given.equal for reference in given.references]
        task = bar.add_task("speed", total=len(plan) * given.runs + len(points))
        for size, reference in plan:
            for case in pictures(given.runs, *size, given.data):
                bar.update(task, description=f"{size[0]}x{size[1]} {reference} {case.name}")
                method = given.method if given.reach_px is None else f"{given.method} to {given.reach_px} px"
                what = {"kind": "equal", "size": list(size), "method": method, **_of(case)}
                what["reference_strength"] = reference
                what["settings"] = [
                    one.model_dump(mode="json", exclude={"device", "attempts"})
                    for one in (settings(given.method, 1, given.reach_px), of_strength(reference))
                ]
                what |= {
                    "editor": name,
                    "most": given.most,
                    "few": given.few,
                }
                how = {"most": given.most, "few": given.few, "reach": given.reach_px, "reference": reference}
                run = partial(equal, case, editor, given.method, **how)
                rows.append(journal.row(what, run))
                bar.advance(task)
        for what in points:
            width, height = what["size"]
            what |= _of(next(pictures(1, width, height, given.data)))
            bar.update(task, description=f"{what['method']} {what['size'][0]}x{what['size'][1]}")
            rows.append(
                journal.row({"kind": "growth", **what}, partial(_apart, {**what, "data": str(given.data)}))
            )
            bar.advance(task)
    text = table(rows)
    (given.out / "table.md").write_text(text + "\n")
    plot(rows, given.out)
    print(text)
    return 0
