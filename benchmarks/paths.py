"""Measures in which tools edits break, on files that were written and decoded again.

    python -m benchmarks paths --set dev,faces --strengths single-path,balanced --held-out latent-taef2

Each picture is protected at each strength, written as PNG and decoded. Its edits are then replayed as the
daemon replays them: on every attack path of `verify.paths`, by the surrogates and by the held-out editors.
The same is done with an unchanged copy and with noise as large as the perturbation: both must be failed.

A strength may be followed by settings of `protect` that replace its own, and by how many pictures of each
set to take: `balanced+iterations=15+stored_start=false:4`.

Each protected picture becomes a JSON line in OUT/rows.jsonl as soon as it is measured, and an interrupted run
is resumed. At the end OUT/table.md and OUT/tools.png are written from the rows of this run.
"""

from __future__ import annotations

import argparse
import os
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import yaml
from rich.progress import Progress

from backfire import config, inpaint
from backfire.attack_paths import PATHS
from backfire.config import Protect
from backfire.errors import BackfireError
from backfire.inpaint.base import Editor
from benchmarks import measure, plots, sets
from benchmarks.measure import PathsOf
from benchmarks.protection import listed
from benchmarks.rows import Journal, Row

OUT = Path("benchmarks/results/paths/run")
HEAD = (
    "set",
    "strength",
    "judged by",
    "edit",
    "path",
    "n",
    "SSIM (worst)",
    "L1",
    "visible",
    "broken",
    "under noise",
)


def measured(
    case: sets.Case,
    settings: Protect,
    surrogates: Sequence[Editor],
    held_out: Sequence[Editor],
    paths: PathsOf,
    judged_on: PathsOf,
    *,
    everywhere: bool,
    controls: bool,
) -> Row:
    """Protect one picture, replay its edits from the decoded file, and return the figures.

    Args:
        paths: by editor, the attack paths to optimise through.
        judged_on: those to replay the edits on.
        everywhere: whether the surrogates make all edits on every path, and not only those of the region.
        controls: whether to judge the unchanged copy and the noise, too.
    """
    made = measure.protected(case, settings, surrogates, through=[paths[one.name] for one in surrogates])
    edits, verdicts = measure.verdicts(
        case, made, settings, surrogates, held_out, judged_on, everywhere=everywhere, controls=controls
    )
    return {
        **measure.quality(case.rgb, made),
        "iterations": settings.iterations * sum(len(crop.regions) for crop in made.crops),
        "seconds": made.seconds,
        "cpu_s": made.cpu_s,
        "peak_mb": made.peak_mb,
        "load": round(os.getloadavg()[0], 1),
        "verdicts": verdicts,
        "edits": [edit.row() for edit in edits],
    }


def tables(rows: Sequence[Row]) -> str:
    """The edits by path and judge, and the verdicts and the cost by set and strength, as Markdown."""
    titled = {"Edits by attack path": _edits(rows), "Verdicts and cost": _verdicts(rows)}
    return "\n\n".join(f"## {title}\n\n" + "\n".join(_lines(table)) for title, table in titled.items())


def _edits(rows: Sequence[Row]) -> Iterator[Sequence[object]]:
    yield HEAD
    found: dict[tuple[str, str, str, str, str], list[Row]] = {}
    for row in rows:
        for edit in row["edits"]:
            key = row["set"], row["strength"], edit["editor"], edit["mask_kind"], edit["path"]
            found.setdefault(key, []).append(edit)
    for key, edits in found.items():
        ssim = [edit["ssim"] for edit in edits]
        worst = min(ssim) if key[3] in ("near", "far") else max(ssim)
        seen = [edit["visible"] for edit in edits if edit["visible"] is not None]
        broken = f"{sum(one >= 0.5 for one in seen)} of {len(seen)}" if seen else ""
        figures = f"{np.mean(ssim):.3f} ({worst:.3f})", f"{np.mean([e['l1'] for e in edits]):.3f}"
        controls = [edit["control_ssim"] for edit in edits if edit["control_ssim"] is not None]
        noise = f"{np.mean(controls):.3f} ({min(controls):.3f})" if controls else ""
        yield *key, len(edits), *figures, f"{np.mean(seen):.2f}" if seen else "", broken, noise


def _verdicts(rows: Sequence[Row]) -> Iterator[Sequence[object]]:
    yield "set", "strength", "n", "verdicts", "unchanged or noise", "PSNR dB", "FLIP", "CPU s", "MB"
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["set"], row["strength"]), []).append(row)
    for key, group in groups.items():
        said = Counter(row["verdicts"]["published"] for row in group)
        others = Counter(
            row["verdicts"][name] for row in group for name in row["verdicts"] if name != "published"
        )
        psnr, flip = ([row[key] for row in group] for key in ("psnr", "flip"))
        yield (
            *key,
            len(group),
            ", ".join(f"{count} {verdict}" for verdict, count in said.most_common()),
            ", ".join(f"{count} {verdict}" for verdict, count in others.most_common()),
            f"{np.mean(psnr):.1f} ({min(psnr):.1f})",
            f"{np.mean(flip):.3f} ({max(flip):.3f})",
            f"{np.mean([row['cpu_s'] for row in group]):.1f}",
            max(row["peak_mb"] for row in group),
        )


def plot(rows: Sequence[Row], path: Path) -> None:
    """Bars of the share of the region over which its edit is plainly another, by tool, as a PNG.

    A bar for each set and strength, judged by its surrogate, and one for the last strength by the last
    held-out editor; the marks are single pictures.
    """
    found: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for row in rows:
        for edit in row["edits"]:
            if edit["mask_kind"] == "trigger":
                by = found.setdefault((row["set"], row["strength"], edit["editor"]), {})
                by.setdefault(edit["path"], []).append(100 * edit["visible"])
    last: dict[str, str] = {}
    for of, strength, _ in found:
        last[of] = strength
    judges = list(dict.fromkeys(judge for *_, judge in found))
    found = {
        (of, strength, judge): by
        for (of, strength, judge), by in found.items()
        if judge == judges[0] or (strength, judge) == (last[of], judges[-1])
    }
    tools = list(dict.fromkeys(tool for by in found.values() for tool in by))
    wide = 0.8 / len(found)
    with plots.axes(path, (9.0, 4.2), ylabel="share of the region plainly different, %") as axes:
        for number, ((of, strength, judge), by) in enumerate(found.items()):
            at = [index + (number - (len(found) - 1) / 2) * wide for index in range(len(tools))]
            its_set = f"{of}: " if len(last) > 1 else ""
            bars = axes.bar(
                at,
                [float(np.mean(by.get(tool, [0]))) for tool in tools],
                wide * 0.9,
                label=f"{its_set}strength {strength}, edits by {judge}",
            )
            for x, bar, tool in zip(at, bars, tools, strict=True):
                axes.plot([x] * len(by.get(tool, [])), by.get(tool, []), ".", color="black", markersize=3)
                # Below the axis of the bars, where no dot can cover it.
                axes.text(x, -2, f"{bar.get_height():.0f}", ha="center", va="top", fontsize=8)
        axes.set_xticks(range(len(tools)), [textwrap.fill(PATHS[tool].tool, 24) for tool in tools])
        axes.tick_params(axis="x", length=0, pad=14)
        axes.set_ylim(0, 104)


def _lines(table: Iterator[Sequence[object]]) -> Iterator[str]:
    for number, cells in enumerate(table):
        yield f"| {' | '.join(map(str, cells))} |"
        if number == 0:
            yield "|---" * len(cells) + "|"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    about = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks paths", description=__doc__, formatter_class=about)
    sets.add_options(parser, side=480)
    parser.add_argument("--strengths", type=listed, default=["single-path", "balanced"])
    parser.add_argument("--editors", type=listed, default=["flux2-mini"], help="the surrogates, together")
    parser.add_argument("--held-out", type=listed, default=[], help="editors that only judge")
    parser.add_argument(
        "--judged-on", type=listed, default=[], help="further attack paths, on which edits are only judged"
    )
    parser.add_argument("--everywhere", action="store_true", help="make benign edits, too, on every path")
    parser.add_argument(
        "--published-only",
        action="store_true",
        help="judge neither an unchanged copy nor noise, which is faster",
    )
    parser.add_argument("--config", type=Path, help="a configuration that declares further editors")
    parser.add_argument("--out", type=Path, default=OUT)
    return parser


def _plan(cases: Sequence[sets.Case], strengths: Sequence[str]) -> Iterator[tuple[sets.Case, str]]:
    """What to protect at which strength, see the module's docstring."""
    seen = Counter[str]()
    for case in cases:
        seen[case.of] += 1
        for strength, _, most in (text.partition(":") for text in strengths):
            if not most or seen[case.of] <= int(most):
                yield case, strength


def settings_of(text: str) -> Protect:
    """The settings that a strength, and the settings which replace its own, stand for.

    Raises:
        SystemExit: there is no such strength or setting.
    """
    strength, *replaced = text.split("+")
    own = {name: yaml.safe_load(value) for name, _, value in (one.partition("=") for one in replaced)}
    if unmeasured := own.keys() & {"stop_early", "escalate"}:
        raise SystemExit(
            f"--strengths: {text!r}: {min(unmeasured)} judges while it optimises, which is not measured here"
        )
    try:
        settings = Protect.model_validate({"strength": strength, **own})
    except ValueError as error:
        raise SystemExit(f"--strengths: {text!r}: {error}") from error
    return settings


def main(argv: Sequence[str]) -> int:
    """See the module's docstring."""
    given = parser().parse_args(argv)
    names = [*given.editors, *given.held_out]
    if twice := [name for name in given.held_out if name in given.editors]:
        raise SystemExit(f"--held-out: got {twice[0]!r}, which is among --editors; name it in one of them")
    if unknown := [name for name in given.judged_on if name not in PATHS]:
        raise SystemExit(f"--judged-on: got {unknown[0]!r}, expected some of {', '.join(PATHS)}")
    try:
        declared = None if given.config is None else config.load(given.config)
        editors = [inpaint.get(name, settings=declared) for name in names]
        paths = measure.paths_of(names, declared)
    except BackfireError as error:
        raise SystemExit(str(error)) from error
    surrogates, held_out = editors[: len(given.editors)], editors[len(given.editors) :]
    judged_on = {name: tuple(dict.fromkeys([*own, *given.judged_on])) for name, own in paths.items()}
    chosen = {text: settings_of(text.partition(":")[0]) for text in given.strengths}
    plan = [*_plan(sets.chosen(given), [*chosen])]
    declarations = measure.declarations(declared, names)
    measure.warm(surrogates)
    journal, rows = Journal(given.out / "rows.jsonl"), list[Row]()
    with Progress() as bar:
        task = bar.add_task("paths", total=len(plan))
        for case, strength in plan:
            bar.update(task, description=f"{strength} {case.name}")
            settings = settings_of(strength)
            what: Row = {
                "set": case.of,
                "picture": case.name,
                "pixels": case.pixels,
                "size": [case.rgb.shape[1], case.rgb.shape[0]],
                "strength": strength,
                "surrogates": given.editors,
                "judges": [f"{one.name}@{one.weights_sha256[:8]}" for one in editors],
                "paths": judged_on,
                "settings": settings.model_dump(mode="json", exclude={"surrogates", "device", "attempts"}),
            }
            if declarations:
                what["declared"] = declarations
            if given.judged_on:
                what["through"] = paths
            if given.everywhere:
                what["everywhere"] = True
            measure_it = partial(measured, case, settings, surrogates, held_out, paths, judged_on)
            if given.published_only:
                what["controls"] = False
            choices = {"everywhere": given.everywhere, "controls": not given.published_only}
            rows.append(journal.row(what, partial(measure_it, **choices)))
            bar.advance(task)
    text = tables(rows)
    (given.out / "table.md").write_text(text + "\n")
    plot(rows, given.out / "tools.png")
    print(text)
    return 0
