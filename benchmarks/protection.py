"""Measures how protections affect edits, on files that were written and decoded again.

    python -m benchmarks protection --set dev,faces --methods implant,subtle,baseline

A method is a name (`implant`), a name with a target, budget and iterations (`implant:flat@3x40`), or a value
of protect.strength (`subtle`). Each picture is protected by each method against each editor, and with
--ensemble also against all together, then written as PNG and decoded. Every editor then edits it, so that
with several editors the transfer from each to all others is measured. --epsilon and --iterations take several
values, which makes a sweep.

Each protected picture becomes a JSON line in OUT/rows.jsonl as soon as it is measured. An interrupted run is
resumed; rows that other code measured are measured again. At the end OUT/table.md and OUT/*.png are written
from the rows of this run.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import Progress

from backfire import config, inpaint
from backfire.config import STRENGTHS, Protect, Settings
from backfire.errors import BackfireError
from backfire.inpaint.base import Editor
from backfire.perturb import methods
from benchmarks import measure, perceptual, sets, summary
from benchmarks.measure import Trial
from benchmarks.rows import Journal, Row

PAPER = ("epsilon", "iterations", "colour_share", "flat_luma_share", "reach_px")
"""The settings that the published baseline defines, besides the method."""
OUT = Path("benchmarks/results/protection/run")


@dataclass(frozen=True, eq=False)
class Plan:
    """One protection to measure: its name in the tables, its settings, and its surrogates."""

    name: str
    settings: Protect
    surrogates: list[Editor]


def settings_of(name: str, **given: Any) -> Protect:
    """The settings that a method's name on the command line stands for.

    Args:
        name: `implant`, `implant@3`, `implant:flat@3x40`, `subtle`; see the module's docstring.
        given: settings for what the name leaves open; None stands for the method's default. The published
            baseline takes epsilon and iterations only, and a strength `robust_to` only.

    Raises:
        SystemExit: the name is neither a method nor a strength.
    """
    if name in STRENGTHS:
        robust_to = () if name == "paper" else given.get("robust_to") or ()
        return Protect.model_validate({"strength": name, "robust_to": robust_to})
    parts = re.fullmatch(r"([\w-]+?)(?::(away|flat|inverted))?(?:@([\d.]+))?(?:x(\d+))?", name)
    if parts is None or parts[1] not in methods.NAMES:
        known = ", ".join((*methods.NAMES, *STRENGTHS))
        raise SystemExit(f"--methods: got {name!r}, expected one of {known}, or such as implant:flat@3x40")
    own = {"target": parts[2], "epsilon": parts[3], "iterations": parts[4]}
    said = {key: value for key, value in (*given.items(), *own.items()) if value is not None}
    if parts[1] == "baseline":
        if parts[2] is not None:
            raise SystemExit(f"--methods: got {name!r}: the published baseline has a target of its own")
        published = {key: STRENGTHS["paper"][key] for key in PAPER}
        said = {**published, **{key: said[key] for key in own if key in said}, "robust_to": ()}
    return Protect.model_validate({**said, "method": parts[1]})


def plans(given: argparse.Namespace, judges: list[Editor]) -> list[Plan]:
    """All protections that the command line asks for."""
    groups = [[judge] for judge in judges] + ([judges] if given.ensemble and len(judges) > 1 else [])
    sweep = len(given.epsilon) > 1 or len(given.iterations) > 1
    found: dict[str, Protect] = {}
    for name in given.methods:
        for epsilon in given.epsilon:
            for iterations in given.iterations:
                one = settings_of(
                    name,
                    epsilon=epsilon,
                    iterations=iterations,
                    colour_share=given.colour_share,
                    flat_luma_share=given.flat_luma_share,
                    robust_to=given.robust_to,
                )
                # What the name says of budget and iterations itself is said once.
                stem = re.sub(r"(@[\d.]+)?(x\d+)?$", "", name)
                swept = sweep and name not in STRENGTHS
                found[f"{stem}@{one.epsilon:g}x{one.iterations}" if swept else name] = one
    return [Plan(name, settings, group) for name, settings in found.items() for group in groups]


def what(
    plan: Plan,
    case: sets.Case,
    judges: Sequence[Editor],
    given: argparse.Namespace,
    declared: Settings | None = None,
    *,
    lpips: bool = False,
    clip: str | None = None,
) -> Row:
    """Everything that a row depends on, except for the code.

    Args:
        declared: the configuration that declares editors and attack paths.
        lpips: whether the weights of LPIPS are there.
        clip: the name and the digest of the CLIP vision model, as `NAME@DIGEST`.
    """
    names = [one.name for one in judges]
    more = measure.declarations(declared, names)
    return {
        "set": case.of,
        "picture": case.name,
        "pixels": case.pixels,
        "size": [case.rgb.shape[1], case.rgb.shape[0]],
        "how": plan.name,
        "surrogates": [f"{one.name}@{one.weights_sha256[:8]}" for one in plan.surrogates],
        "judges": [f"{one.name}@{one.weights_sha256[:8]}" for one in judges],
        "paths": {name: list(paths) for name, paths in measure.paths_of(names, declared).items()},
        **({"declared": more} if more else {}),
        "with_lpips": lpips,
        "plain": given.plain,
        "verdicts": given.verdicts,
        "clip": clip,
        "settings": plan.settings.model_dump(mode="json", exclude={"surrogates", "device", "attempts"}),
    }


def measured(plan: Plan, trial: Trial, *, verdicts: bool, declared: Settings | None = None) -> Row:
    """Protect one picture, let every judge edit the decoded file, and return the figures."""
    paths = measure.paths_of([one.name for one in trial.judges], declared)
    through = [paths[one.name] for one in plan.surrogates]
    made = measure.protected(trial.case, plan.settings, plan.surrogates, through=through)
    held_out = [one for one in trial.judges if one not in plan.surrogates]
    said: dict[str, str] = {}
    if verdicts:
        _, said = measure.verdicts(trial.case, made, plan.settings, plan.surrogates, held_out, paths)
    regions = sum(len(crop.regions) for crop in made.crops)
    return {
        **measure.quality(trial.case.rgb, made),
        "iterations": plan.settings.iterations * regions,
        "seconds": made.seconds,
        "cpu_s": made.cpu_s,
        "peak_mb": made.peak_mb,
        "load": round(os.getloadavg()[0], 1),
        "verdicts": said,
        **trial.edits(made.rgb),
    }


def listed(text: str) -> list[str]:
    """`a,b` as a list."""
    return [part for part in text.split(",") if part]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    about = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m benchmarks protection", description=__doc__, formatter_class=about
    )
    sets.add_options(parser, side=512)
    parser.add_argument("--methods", type=listed, default=["implant", "baseline"])
    parser.add_argument("--editors", type=listed, default=["flux2-mini"], help="each is surrogate and judge")
    parser.add_argument("--config", type=Path, help="a configuration that declares further editors")
    parser.add_argument("--ensemble", action="store_true", help="protect against all editors together too")
    numbers = partial(map, float)
    parser.add_argument("--epsilon", type=lambda text: list(numbers(listed(text))), default=[None])
    parser.add_argument(
        "--iterations",
        type=lambda text: list(map(int, listed(text))),
        default=[None],
        help="the default is each method's own",
    )
    parser.add_argument("--colour-share", type=float, default=Protect().colour_share)
    parser.add_argument("--flat-luma-share", type=float, default=Protect().flat_luma_share)
    parser.add_argument("--robust_to", type=listed, default=list(Protect().robust_to))
    parser.add_argument("--plain", action="store_true", help="only the edits full, near and far: for sweeps")
    parser.add_argument(
        "--verdicts",
        action="store_true",
        help="also the daemon's verdicts, on these and on unprotected pictures",
    )
    parser.add_argument("--clip", type=Path, help="a folder with a CLIP vision model, for CLIP-FID")
    parser.add_argument("--out", type=Path, default=OUT)
    return parser


def main(argv: Sequence[str]) -> int:
    """See the module's docstring."""
    given = parser().parse_args(argv)
    try:
        declared = None if given.config is None else config.load(given.config)
        judges = [inpaint.get(name, settings=declared) for name in given.editors]
    except BackfireError as error:
        raise SystemExit(str(error)) from error
    ways = plans(given, judges)
    distance, features = perceptual.lpips(), perceptual.clip(given.clip)
    clip = None if given.clip is None else f"{given.clip.name}@{perceptual.clip_digest(given.clip)}"
    cases = sets.chosen(given)
    measure.warm(judges)
    journal, rows = Journal(given.out / "rows.jsonl"), list[Row]()
    with Progress() as bar:
        task = bar.add_task("protection", total=len(ways) * len(cases))
        for case in cases:
            trial = Trial(case, judges, plain=given.plain, distance=distance, features=features)
            for plan in ways:
                bar.update(task, description=f"{plan.name} {case.name}")
                rows.append(
                    journal.row(
                        what(plan, case, judges, given, declared, lpips=distance is not None, clip=clip),
                        partial(measured, plan, trial, verdicts=given.verdicts, declared=declared),
                    )
                )
                bar.advance(task)
    print(summary.write(rows, given.out))
    return 0
