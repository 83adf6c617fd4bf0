"""Measures how much of its own effect each editor keeps when a perturbation is made against several.

    python -m benchmarks ensembles --ensembles flux2-mini+flux2-micro

Each picture is protected against every editor alone, and against each ensemble in several ways of making one
gradient of several. `sum` adds gradients of equal magnitude, which is what the product does. `pcgrad` first
takes from each what contradicts another (gradient surgery, arXiv 2001.06782). `common` pulls the edits of all
editors towards one target, the negative of the picture, and `common latents` their latents, after the idea of
aligned features (ATFS, 2026). The effect is 1 - SSIM of the edit of a region, the mean over the attack paths
of an editor.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from backfire import config, inpaint
from backfire.config import Protect
from backfire.errors import BackfireError
from backfire.evaluate.edits import Editors
from backfire.evaluate.replay import replay
from backfire.inpaint.base import Editor
from backfire.perturb.methods.base import Method
from backfire.perturb.methods.encoder import Encoder
from backfire.perturb.methods.implant import Implant
from benchmarks import measure, sets
from benchmarks.protection import listed
from benchmarks.rows import Journal, Row

OUT = Path("benchmarks/results/ensembles")


def pcgrad(gradients: Sequence[Tensor]) -> Tensor:
    """The sum of the gradients, each without its part that points against another (arXiv 2001.06782)."""
    kept = []
    for number, gradient in enumerate(gradients):
        for other in (one for index, one in enumerate(gradients) if index != number):
            along = torch.sum(gradient * other)
            if along < 0:
                gradient = gradient - along / torch.sum(other * other).clamp(min=1e-12) * other
        kept.append(gradient)
    return torch.stack(kept).sum(dim=0)


class _WithoutConflicts(Implant):
    combine = staticmethod(pcgrad)


WAYS: dict[str, tuple[Callable[[], Method], str]] = {
    "sum": (Implant, "away"),
    "pcgrad": (_WithoutConflicts, "away"),
    "common": (Implant, "inverted"),
    "common latents": (Encoder, "inverted"),
}
"""By name, the method and its target."""
ALONE = "alone"
"""The way in which each editor is optimised against by itself, which is that of `sum`."""


def _way(name: str) -> tuple[Callable[[], Method], str]:
    return WAYS["sum" if name == ALONE else name]


def measured(
    case: sets.Case, settings: Protect, way: str, editors: Sequence[Editor], paths: measure.PathsOf
) -> Row:
    """Protect one picture against the editors, and tell the effect on each of them."""
    through = [paths[one.name] for one in editors]
    method = _way(way)[0]()
    made = measure.protected(case, settings, editors, through=through, method=method)
    judges, rng = Editors(measure.CPU, editors, (), paths), np.random.default_rng(case.seed)
    edits = replay(case.rgb, made.rgb, made.crops, judges, target=settings.target, rng=rng).edits
    effects = {
        one.name: float(
            np.mean([1 - e.ssim for e in edits if e.editor == one.name and e.mask_kind == "trigger"])
        )
        for one in editors
    }
    return {**measure.quality(case.rgb, made), "cpu_s": made.cpu_s, "effects": effects}


def table(rows: Sequence[Row]) -> str:
    """By set, ensemble, way and editor: the effect, that of the editor alone, and the share that is kept."""
    lines = [
        "| set | ensemble | way | editor | n | effect | alone | kept | PSNR | CPU s |",
        "|---" * 10 + "|",
    ]
    alone = {
        (row["set"], row["picture"], name): effect
        for row in rows
        if row["way"] == ALONE
        for name, effect in row["effects"].items()
    }
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in (row for row in rows if row["way"] != ALONE):
        groups.setdefault((row["set"], "+".join(row["effects"]), row["way"]), []).append(row)
    for (of, ensemble, way), group in groups.items():
        psnr, cpu_s = (np.mean([row[key] for row in group]) for key in ("psnr", "cpu_s"))
        for name in group[0]["effects"]:
            got = np.mean([row["effects"][name] for row in group])
            own = np.mean([alone[row["set"], row["picture"], name] for row in group])
            figures = f"{got:.3f} | {own:.3f} | {got / own:.0%} | {psnr:.1f} | {cpu_s:.0f}"
            lines.append(f"| {of} | {ensemble} | {way} | {name} | {len(group)} | {figures} |")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks ensembles", description=__doc__)
    sets.add_options(parser, side=224)
    parser.add_argument("--ensembles", type=listed, default=["flux2-mini+flux2-micro"])
    parser.add_argument("--ways", type=listed, default=[*WAYS], help=f"some of {', '.join(WAYS)}")
    parser.add_argument("--config", type=Path, help="a configuration that declares further editors")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args(argv)
    ensembles = [text.split("+") for text in given.ensembles]
    if unknown := [way for way in given.ways if way not in WAYS]:
        raise SystemExit(f"--ways: got {unknown[0]!r}, expected some of {', '.join(WAYS)}")
    if single := [names for names in ensembles if len(names) < 2]:
        raise SystemExit(
            f"--ensembles: got {single[0][0]!r} alone, expected two editors or more, such as a+b"
        )
    names = [*dict.fromkeys(name for ensemble in ensembles for name in ensemble)]
    try:
        declared = None if given.config is None else config.load(given.config)
        editors = {name: inpaint.get(name, settings=declared) for name in names}
    except BackfireError as error:
        raise SystemExit(str(error)) from error
    paths = measure.paths_of(names, declared)
    plans = [
        *(([ALONE], [name]) for name in names),
        *((given.ways, ensemble) for ensemble in ensembles),
    ]
    each = [(way, [editors[name] for name in group]) for ways, group in plans for way in ways]
    cases, rows = sets.chosen(given), list[Row]()
    measure.warm([*editors.values()])
    journal = Journal(given.out / "rows.jsonl")
    with Progress() as bar:
        task = bar.add_task("ensembles", total=len(each) * len(cases))
        for case in cases:
            for way, group in each:
                settings = Protect.model_validate({"target": _way(way)[1]})
                what = {
                    "set": case.of,
                    "picture": case.name,
                    "pixels": case.pixels,
                    "size": [case.rgb.shape[1], case.rgb.shape[0]],
                    "way": way,
                    "surrogates": [f"{one.name}@{one.weights_sha256[:8]}" for one in group],
                    "paths": {one.name: paths[one.name] for one in group},
                    "declared": measure.declarations(declared, [one.name for one in group]),
                    "settings": settings.model_dump(mode="json", exclude={"device", "attempts"}),
                }
                bar.update(task, description=f"{way} {case.name}")
                rows.append(journal.row(what, partial(measured, case, settings, way, group, paths)))
                bar.advance(task)
    text = table(rows)
    (given.out / "table.md").write_text(text + "\n")
    print(text)
    return 0
