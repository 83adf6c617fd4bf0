"""Runs `protection` and `speed` on several sets in turn, and tells whether the results meet the targets.

    python -m benchmarks figures                     # all of them: hours on two cores
    python -m benchmarks figures --only dev,sweep --count 4 --side 160

Each run can be interrupted and resumed; `shows.md` is written from the rows that exist.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from backfire import inpaint
from benchmarks import protection, speed, summary
from benchmarks.groups import LEAST, Group, grouped, kept
from benchmarks.protection import listed
from benchmarks.rows import Row, read

OURS, FAINT, BASELINE = "implant", ("implant@4", "implant@3"), "baseline"
"""Our default, ours at budgets with a PSNR of 38 dB and more, and the published baseline."""
RUNS: dict[str, tuple[int, list[str]]] = {
    "dev": (20, ["--set", "dev", "--side", "224", "--methods", f"{OURS},{FAINT[1]},encoder,{BASELINE}"]),
    "people": (9, ["--set", "pairs,faces", "--side", "256", "--methods", f"{OURS},{BASELINE}", "--verdicts"]),
    "large": (3, ["--set", "faces", "--side", "2204", "--methods", f"{OURS},{BASELINE}"]),
    "transfer": (
        3,
        [
            *("--set", "dev", "--side", "160", "--ensemble", "--plain"),
            *("--methods", f"{OURS},{','.join(FAINT)},{BASELINE},{OURS}:flat,{OURS}:inverted"),
            *("--editors", ",".join((*inpaint.NAMES, "latent-taef2"))),
            *("--config", "benchmarks/data/editors.yaml"),
        ],
    ),
    "diffusion": (
        20,
        [
            *("--set", "dev", "--side", "224", "--plain", "--editors", "ldm-mini"),
            *("--methods", f"{OURS},{FAINT[0]},encoder,first-step,{BASELINE}"),
        ],
    ),
    "flux2": (  # with the largest budget at which edits near the region are spared
        8,
        [
            *("--set", "dev", "--side", "224", "--plain", "--editors", "latent-taef2"),
            *("--methods", f"{FAINT[0]},{BASELINE}", "--config", "benchmarks/data/editors.yaml"),
        ],
    ),
    "sweep": (
        4,
        [
            *("--set", "dev", "--side", "160", "--methods", f"{OURS},{BASELINE}", "--plain"),
            *("--epsilon", "2,4,6.4,10", "--iterations", "15,80"),
        ],
    ),
}
"""By name of the run: the most pictures of each set, and the arguments of `benchmarks protection`."""
OUT = Path("benchmarks/results/protection")


RATIOS = {(512, 512): 5.0, (4000, 3000): 30.0}
WEB = ("after jpeg 75", "after 1080 px")
CUTS = ("cut otherwise", "whole at 512")


def shows(rows: dict[str, list[Row]]) -> str:
    """The seven targets of a protection, each with its figures and whether it is met, as Markdown."""
    runs = [grouped(of) for name, of in rows.items() if name != "speed"]
    groups = [group for run in runs for group in run]
    own = [g for g in groups if g.against == g.judge and g.how in (OURS, *FAINT)]
    asked: list[tuple[str, Iterable[tuple[str, bool]]]] = [
        ("edit SSIM at most 0.167 on one editor, below the baseline's on each, at 38 dB", _broken(runs)),
        ("edits 32 px away keep SSIM 0.97, near ones no less than the baseline's", _spared(runs)),
        ("80 % kept by edits with other masks and crops", _kept(own, _is_other, 0.8, CUTS)),
        (
            "70 % kept after JPEG 75 and 1080 px",
            _kept(own, WEB.__contains__, 0.7, WEB),
        ),
        ("an ensemble keeps 85 % of each editor's own effect", _ensemble(runs)),
        ("5 times the baseline's speed at 512x512, 30 times at 12 MP", _faster(rows.get("speed", []))),
        ("pictures without protection are failed", _no_comfort(groups)),
    ]
    lines = []
    for number, (what, figures) in enumerate(asked, 1):
        found = list(figures)
        told = "<br>".join(f"{text}: {'met' if met else 'missed'}" for text, met in found)
        lines.append([str(number), what, told or "not measured"])
    return summary.table(("", "target", "found"), lines)


def _against_baseline(runs: Sequence[Sequence[Group]]) -> Iterable[tuple[Group, Group]]:
    """Pairs of ours and the baseline from one run, on the same pictures, optimised against their judge."""
    for run in runs:
        baselines = {
            (g.of, g.judge, g.pictures): g for g in run if g.how == BASELINE and g.against == g.judge
        }
        for group in run:
            baseline = baselines.get((group.of, group.judge, group.pictures))
            if baseline is not None and group.how in (OURS, *FAINT) and group.against == group.judge:
                yield group, baseline


def _broken(runs: Sequence[Sequence[Group]]) -> Iterable[tuple[str, bool]]:
    for group, baseline in _against_baseline(runs):
        ssim, theirs = (float(np.mean(one.values("full"))) for one in (group, baseline))
        psnr = float(np.mean([row["psnr"] for row in group.rows]))
        text = f"{_name(group)}: {ssim:.3f} at {psnr:.1f} dB, the baseline {theirs:.3f}"
        yield text, psnr >= 38 and ssim <= 0.167 and ssim < theirs


def _spared(runs: Sequence[Sequence[Group]]) -> Iterable[tuple[str, bool]]:
    for group, baseline in _against_baseline(runs):
        far, near, theirs = group.values("far"), group.values("near"), baseline.values("near")
        if far and near and theirs:
            text = f"far {np.mean(far):.3f}, near {np.mean(near):.3f}, the baseline's {np.mean(theirs):.3f}"
            text = f"{_name(group)}: {text}"
            yield text, bool(np.mean(far) >= 0.97 and np.mean(near) >= np.mean(theirs))


def _is_other(edit: str) -> bool:
    return edit not in ("full", "near", "far") and not edit.startswith("after ")


def _kept(
    groups: Sequence[Group], wanted: Callable[[str], bool], least: float, all_of: Sequence[str] = ()
) -> Iterable[tuple[str, bool]]:
    """The share of the effect that each wanted edit keeps; missed if an edit of `all_of` was not measured."""
    for group in groups:
        shares = {name: share[0] for name in group.edits() if wanted(name) and (share := kept(group, name))}
        if shares:
            told = [f"{name.removeprefix('after ')} {share:.0%}" for name, share in shares.items()]
            told += [f"{name.removeprefix('after ')} not measured" for name in all_of if name not in shares]
            met = min(shares.values()) >= least and shares.keys() >= set(all_of)
            yield f"{_name(group)}: {', '.join(told)}", met


def _ensemble(runs: Sequence[Sequence[Group]]) -> Iterable[tuple[str, bool]]:
    for run in runs:
        single = {(g.of, g.how, g.judge, g.pictures): g for g in run if g.against == g.judge}
        for group in run:
            own = single.get((group.of, group.how, group.judge, group.pictures))
            if own is not None and "+" in group.against and group.how != BASELINE:
                base, got = (float(np.mean(list(one.effects("full").values()))) for one in (own, group))
                if base >= LEAST:
                    yield f"{_name(group)}: {got / base:.0%}", got >= 0.85 * base


def _faster(rows: Sequence[Row]) -> Iterable[tuple[str, bool]]:
    # If a picture has several rows, the last counts, which the newest code made.
    equal = {
        (tuple(row["size"]), row["method"], row.get("picture")): row for row in rows if row["kind"] == "equal"
    }
    for size, method in dict.fromkeys(one[:2] for one in equal):
        runs = [row for one, row in equal.items() if one[:2] == (size, method)]
        ratios = [row["ratio"] for row in runs if not row["short"]]
        least = RATIOS.get(size, np.inf)  # other sizes have no target, so they are never met
        figure = (
            f"{np.mean(ratios):.1f} times ({min(ratios):.1f} to {max(ratios):.1f})"
            if ratios
            else "not reached"
        )
        text = f"{method}, {size[0]}x{size[1]}, {len(ratios)} of {len(runs)} pictures reached: {figure}"
        yield text, len(ratios) == len(runs) and float(np.mean(ratios)) >= least


def _no_comfort(groups: Sequence[Group]) -> Iterable[tuple[str, bool]]:
    judged = {(row["set"], row["key"]): row["verdicts"] for g in groups for row in g.rows if row["verdicts"]}
    if judged:
        both = [verdict[what] for verdict in judged.values() for what in ("unchanged", "noise")]
        failed = both.count("failed")
        yield (
            f"{failed} of {len(both)} pictures without a perturbation, or with noise instead, are failed",
            failed == len(both),
        )


def _name(group: Group) -> str:
    side = max(max(row["size"]) for row in group.rows)
    return f"{group.how} on {group.against}, {group.of} ({len(group.pictures)}, {side} px)" + (
        f" judged by {group.judge}" if group.against != group.judge else ""
    )


def main(argv: Sequence[str]) -> int:
    """See the module's docstring."""
    about = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m benchmarks figures", description=__doc__, formatter_class=about
    )
    names = [*RUNS, "speed"]
    parser.add_argument(
        "--only", type=listed, default=names, help=f"some of {', '.join(names)}; empty: write shows.md only"
    )
    parser.add_argument("--count", type=int, help="the most pictures of each set, and the most runs of speed")
    parser.add_argument("--side", type=int, help="scale pictures down to this longer side instead")
    parser.add_argument("--out", type=Path, default=OUT, help="the folder for the runs' folders")
    given = parser.parse_args(argv)
    for name in given.only:
        if name not in names:
            raise SystemExit(f"--only: got {name!r}, expected some of {', '.join(names)}")
        folder = ["--out", str(given.out / name)]
        if name == "speed":
            speed.main([*folder, "--runs", str(min(5, given.count or 5))])
        else:
            count, arguments = RUNS[name]
            side = [] if given.side is None else ["--side", str(given.side)]
            protection.main([*arguments, *folder, *side, "--count", str(min(count, given.count or count))])
    rows = {name: read(given.out / name / "rows.jsonl") for name in names}
    text = shows(rows)
    (given.out / "shows.md").write_text(text + "\n")
    print(text)
    return 0
