"""Tables of figures for the documentation, from the tables and rows that the benchmarks wrote.

So no figure in the documentation can differ from what was measured. The benchmarks' tables have means, and
the worst in brackets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mean

from backfire.attack_paths import PATHS, USUAL
from backfire.config import Verify
from backfire.evaluate.judge import EditResult, first_paths, misses
from backfire.types import Family, MaskKind

BENCHMARKS = Path(__file__).parents[1] / "benchmarks" / "results"
RESULTS = BENCHMARKS / "protection"
Row = dict[str, str]


FILLS = {"ssim": 3, "l1": 3, "sharpness": 2, "seam": 2}
"""What `python -m training judge` measures, and the decimals that are shown."""
CLASSICAL = {"telea": "OpenCV, Telea", "navier-stokes": "OpenCV, Navier-Stokes"}


def rows(run: str, title: str = "Effect and cost") -> list[Row]:
    """The rows of a results table under a title that the surrogate judges, by column."""
    return [row for row in table(RESULTS / run, title) if row["on"] == row["judged by"]]


def table(run: Path, title: str) -> list[Row]:
    """The rows of the table under a title in a folder's `table.md`, by column."""
    text = (run / "table.md").read_text()
    section = re.search(rf"^## {title}\n\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert section, f"{run}/table.md: no table under {title!r}"
    head, _, *lines = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in section[1].splitlines()
    )
    return [dict(zip((name.rstrip(" ↑↓") for name in head), line, strict=True)) for line in lines]


def against(run: str, editor: str) -> str:
    """What each method does to the edits of one editor, optimised against it."""
    lines = _head("method", "edit SSIM", "edit L1", "near SSIM", "far SSIM", "PSNR", "CPU s")
    for row in _of(rows(run), "dev", editor):
        lines.append(_line(method(row["protected by"]), *_measured(row), _mean(row["CPU s"])))
    return "\n".join(lines)


IN_TOOLS = {"photographs of 480 px": "dev", "faces, full size": "faces", "pictures with masks": "pairs"}
"""Label, and folder of the run of `python -m benchmarks paths`; those that were not run are left out."""


def in_tools() -> str:
    """The edit of the region in each tool by each editor, and by the former default that was made for one."""
    lines: list[str] = []
    for label, run in _runs("Edits by attack path"):
        trigger = [row for row in run if row["edit"] == "trigger"]
        by = {
            (
                row["strength"],
                row["judged by"],
                row["path"],
            ): f"{row['SSIM (worst)']}, {row['L1']}, {row['visible']}"
            for row in trigger
        }
        counts = {row["strength"]: row["n"] for row in trigger}
        judges = list(dict.fromkeys(judge for _, judge, _ in by))
        if not lines:
            heads = "pictures", "edits", "tool", *(f"`{judge}`" for judge in judges)
            lines = _head(*heads, "`single-path`: edits", f"`{judges[0]}`")
        for path in dict.fromkeys(path for strength, _, path in by if strength == "balanced"):
            now = (by[("balanced", judge, path)] for judge in judges)
            former = counts.get("single-path", ""), by.get(("single-path", judges[0], path), "")
            lines.append(_line(label, counts["balanced"], PATHS[path].tool, *now, *former))
    return "\n".join(lines)


def kept_edits() -> str:
    """Edits that must keep working, and those of a little more or less than the region, in the first tool."""
    names = "dilated", "partial", "near", "far"
    lines = _head("pictures", "strength", *(f"{name}: SSIM (worst), edits" for name in names))
    for label, run in _runs("Edits by attack path"):
        for strength in dict.fromkeys(row["strength"] for row in run):
            of = {row["edit"]: row for row in reversed(run) if row["strength"] == strength}
            edits = (of.get(name) for name in names)
            cells = (f"{row['SSIM (worst)']}, {row['n']}" if row else "" for row in edits)
            lines.append(_line(label, f"`{strength}`", *cells))
    return "\n".join(lines)


def a_little_more() -> str:
    """How many edits of a little more than the region break in each tool, and what half of it keeps.

    They break by the thresholds of the verdict; the share is of the mean effect, 1 - SSIM, in the first tool.
    """
    lines: list[str] = []
    for label, name in IN_TOOLS.items():
        more: dict[str, list[tuple[bool, float]]] = {}
        effects: dict[MaskKind, list[float]] = {MaskKind.TRIGGER: [], MaskKind.PARTIAL: []}
        for line in (BENCHMARKS / "paths" / name / "rows.jsonl").read_text().splitlines():
            row = json.loads(line)
            edits = [EditResult.of(one) for one in row["edits"] if not one["held_out"]]
            first = first_paths(edits)
            for edit in edits if row["strength"] == "balanced" else ():
                on_first_path = edit.path == first[edit.editor, edit.region]
                kind = MaskKind(edit.mask_kind)
                if kind == MaskKind.DILATED:
                    broken = not misses(edit, Verify(), on_first_path=on_first_path)
                    more.setdefault(edit.path, []).append((broken, edit.ssim))
                elif kind in effects and on_first_path:
                    effects[kind].append(1 - edit.ssim)
        lines = lines or _head(
            "pictures", "edits", *(PATHS[path].tool for path in more), "half of the region keeps"
        )
        cells = (f"{sum(b for b, _ in found)}, {mean(s for _, s in found):.3f}" for found in more.values())
        whole, half = (mean(found) for found in effects.values())
        lines.append(_line(label, str(len(next(iter(more.values())))), *cells, f"{half / whole:.0%}"))
    return "\n".join(lines)


def verdicts() -> str:
    """The verdicts by strength, on protected pictures and on unprotected ones, and what they cost."""
    columns = "n", "verdicts", "unchanged or noise", "PSNR dB", "FLIP", "CPU s", "MB"
    lines = _head("pictures", "strength", *columns)
    for label, run in _runs("Verdicts and cost"):
        lines += [_line(label, f"`{row['strength']}`", *(row[name] for name in columns)) for row in run]
    return "\n".join(lines)


def strengths() -> str:
    """What each strength breaks in each tool, and what it costs."""
    return _by(["strengths"], "strength", "`strength`", lambda strength: f"`{strength}`")


def quick() -> str:
    """The same of `quick` and `subtle` beside the default and the former one, on more photographs."""
    return _by(["quick", "subtle", "dev"], "strength", "`strength`", lambda strength: f"`{strength}`")


def regions() -> str:
    """What breaks of regions of each width, and what it costs."""
    return _by(["regions"], "set", "width of the region", lambda of: f"{float(of.partition('@')[2]):.0%}")


CARRIED = {
    "dev": ("flux2-mini", "photographs of 480 px"),
    "faces": ("flux2-mini", "faces, full size"),
    "pairs": ("flux2-mini", "pictures with masks"),
    "students": ("flux2-mini and flux2-micro", "photographs of 480 px"),
    "reverse": ("latent-taef2", "photographs of 480 px"),
}
"""Runs of `paths`: what their pictures were optimised against, and which they are."""


def carried() -> str:
    """How much of the effect on the surrogate is left with editors that took no part, in each tool.

    The effect is 1 - SSIM of the edit of the region, the mean over the pictures; the share is that of the
    first surrogate's.
    """
    lines: list[str] = []
    for run, (surrogates, pictures) in CARRIED.items():
        edits = table(BENCHMARKS / "paths" / run, "Edits by attack path")
        of: dict[str, dict[str, float]] = {}
        for row in edits:
            if row["edit"] == "trigger" and row["strength"] == "balanced":
                of.setdefault(row["judged by"], {})[row["path"]] = 1 - float(_mean(row["SSIM (worst)"]))
        own = next(iter(of.values()))
        lines = lines or _head(
            "optimised against", "pictures", "edits by", *(PATHS[path].tool for path in own)
        )
        count = next(row["n"] for row in edits if row["strength"] == "balanced")
        for judge, by in of.items():
            cells = [
                f"{effect:.2f}" + ("" if by is own else f" ({effect / own[path]:.0%})")
                for path, effect in by.items()
            ]
            lines.append(_line(surrogates, f"{count} {pictures}", f"`{judge}`", *cells))
    return "\n".join(lines)


def everywhere() -> str:
    """In each tool: edits of the region, beside it and further away, and of the region under noise."""
    kinds = "trigger", "dilated", "partial", "near", "far"
    heads = "the region", "a little more", "half of it", "beside it", "further away"
    lines = _head("tool", "edits", *heads, "the region, under noise")
    edits = table(BENCHMARKS / "paths" / "everywhere", "Edits by attack path")
    by = {(row["path"], row["edit"]): row for row in edits}
    for path in dict.fromkeys(row["path"] for row in edits):
        cells = (by[path, kind]["SSIM (worst)"] for kind in kinds)
        trigger = by[path, "trigger"]
        lines.append(_line(PATHS[path].tool, trigger["n"], *cells, trigger["under noise"]))
    return "\n".join(lines)


def further() -> str:
    """The edit of the region in tools that the perturbation was not made for."""
    edits = table(BENCHMARKS / "paths" / "further", "Edits by attack path")
    lines = _head("tool", "edits", "SSIM (worst)", "L1", "visible", "under noise")
    for row in edits:
        if row["edit"] == "trigger" and row["path"] not in USUAL[Family.LATENT]:
            figures = (row[name] for name in ("n", "SSIM (worst)", "L1", "visible", "under noise"))
            lines.append(_line(PATHS[row["path"]].tool, *figures))
    return "\n".join(lines)


def starts() -> str:
    """What the stored start and more iterations contribute: the edit of the region in each tool."""
    run = BENCHMARKS / "paths" / "start"
    edits, costs = table(run, "Edits by attack path"), table(run, "Verdicts and cost")
    tools = list(dict.fromkeys(row["path"] for row in edits if row["edit"] == "trigger"))
    named = [PATHS[path].tool for path in tools]
    lines = _head("iterations", "begins with", *named, "verdicts", "PSNR dB", "FLIP", "CPU s")
    for cost in costs:
        _, *replaced = cost["strength"].split("+")
        settings = dict(one.split("=") for one in replaced)
        count = settings.get("iterations", "100")
        start = "noise" if "stored_start" in settings else "the stored start"
        by = {
            row["path"]: row
            for row in edits
            if row["strength"] == cost["strength"] and row["edit"] == "trigger"
        }
        cells = (f"{_mean(by[path]['SSIM (worst)'])}, {by[path]['visible']}" for path in tools)
        costs_of = cost["verdicts"], _mean(cost["PSNR dB"]), _mean(cost["FLIP"]), cost["CPU s"]
        lines.append(_line(count, start, *cells, *costs_of))
    return "\n".join(lines)


def _by(runs: Sequence[str], column: str, head: str, named: Callable[[str], str]) -> str:
    """What breaks in each tool by a column of runs of `paths`, and what it costs."""
    lines: list[str] = []
    for run in runs:
        folder = BENCHMARKS / "paths" / run
        edits = [row for row in table(folder, "Edits by attack path") if row["judged by"] == "flux2-mini"]
        paths = [row["path"] for row in edits if row["edit"] == "trigger"]
        tools = [PATHS[path].tool for path in dict.fromkeys(paths)]
        costs = "photographs", "`protected`", "PSNR dB (worst)", "FLIP (worst)", "CPU s"
        lines = lines or _head(head, *tools, "half of the region", "beside it", *costs)
        for cost in table(folder, "Verdicts and cost"):
            mine = [row for row in edits if row[column] == cost[column]]
            broken = [
                f"{_mean(row['SSIM (worst)'])}, {row['visible']}" for row in mine if row["edit"] == "trigger"
            ]
            others = [_mean(row["SSIM (worst)"]) for row in mine if row["edit"] in ("partial", "near")]
            found = re.search(r"(\d+) protected", cost["verdicts"])
            cells = cost["n"], found[1] if found else "0", cost["PSNR dB"], cost["FLIP"], cost["CPU s"]
            lines.append(_line(named(cost[column]), *broken, *others, *cells))
    return "\n".join(lines)


def ensembles() -> str:
    """How much of its own effect each editor keeps when a perturbation is made against several."""
    return (BENCHMARKS / "ensembles" / "table.md").read_text().strip()


def _runs(title: str) -> Iterator[tuple[str, list[Row]]]:
    for label, name in IN_TOOLS.items():
        if (BENCHMARKS / "paths" / name).is_dir():
            yield label, table(BENCHMARKS / "paths" / name, title)


TREATED = {"Other edits of the region": "edit of the region", "After treatments": "before the edit"}
"""Title of a table of `python -m benchmarks protection`, and what its columns are."""
SAID = {
    "plain": "as it is",
    "crop path": "cropped to 128 px around it",
    "cut otherwise": "cropped to 64 to 200 px around it",
    "the worst of all": "the worst of these for each picture",
}
"""Columns of these tables that need other words."""


ROBUST = {
    "Other edits of the region": {
        "six photographs: ": "dev",
        "three of them: ": "dev-three",
        "the three, `robust_to: [masks]`: ": "masks",
    },
    "After treatments": {"": "dev", "`robust_to: [chain]`: ": "chain"},
}
"""By title: column heads, and the runs of `balanced` with and without it."""


def treated(title: str) -> str:
    """What is left of the effect where the region is painted otherwise, or the picture was treated before."""
    folders = [f"flux2-mini/{run}" for run in ROBUST[title].values()]
    runs = [next(r for r in rows(run, title) if r["protected by"] == "balanced") for run in folders]
    figures = "SSIM (worst)", "of the plain effect (least)"
    heads = [f"{head}{name}" for head in ROBUST[title] for name in figures]
    lines = _head(TREATED[title], *heads)
    for name, cell in list(runs[0].items())[list(runs[0]).index("plain") :]:
        if cell:  # of a treatment that changes none of the pictures there is no figure
            cells = [part for run in runs for part in run[name].partition(", ")[::2]]
            lines.append(_line(SAID.get(name, name), *cells))
    return "\n".join(lines)


def summary() -> str:
    """The table of the README: edits in each tool, by the built-in editor and by a published autoencoder."""
    run = table(BENCHMARKS / "paths" / "dev", "Edits by attack path")
    of = {
        (row["strength"], row["judged by"], row["path"]): f"{_mean(row['SSIM (worst)'])}, {row['visible']}"
        for row in run
        if row["edit"] == "trigger"
    }
    counts = {row["strength"]: row["n"] for row in run}
    shown, before = f"default ({counts['balanced']} photographs)", f"({counts['single-path']})"
    lines = _head(
        "tool", shown, "with `taef2` as autoencoder", f"default before 2026-11-29, one tool {before}"
    )
    for path in dict.fromkeys(path for _, _, path in of):
        ways = ("balanced", "flux2-mini"), ("balanced", "latent-taef2"), ("single-path", "flux2-mini")
        lines.append(_line(PATHS[path].tool, *(of[*way, path] for way in ways)))
    return "\n".join(lines)


def fills() -> str:
    """How good the fills of the built-in editors are, beside OpenCV's and a published autoencoder's."""
    found = json.loads((BENCHMARKS / "fills.json").read_text())
    lines = _head("fills of", "SSIM", "L1", "sharpness", "seam", "sharpness of a whole picture")
    for name, row in found["fills"].items():
        shown = CLASSICAL.get(name, f"`{name}`")
        figures = (f"{row[key]:.{digits}f}" for key, digits in FILLS.items())
        whole = found["autoencoders"].get(name)
        lines.append(_line(shown, *figures, f"{whole['sharpness']:.2f}" if whole else ""))
    return "\n".join(lines)


def method(word: str) -> str:
    """A method as the benchmarks name it, such as `implant:flat@3`, for people."""
    rest, _, epsilon = word.partition("@")
    name, _, target = rest.partition(":")
    said = [name if name == "baseline" else f"`{name}`"]
    said += [f"`target: {target}`"] * bool(target) + [f"epsilon {epsilon}"] * bool(epsilon)
    return ", ".join(said)


def _of(found: Iterable[Row], name: str, editor: str) -> Iterator[Row]:
    return (row for row in found if (row["set"], row["on"]) == (name, editor))


def _mean(cell: str) -> str:
    return cell.partition(" ")[0]


def _db(row: Row) -> str:
    return f"{_mean(row['PSNR dB'])} dB"


def _measured(row: Row) -> tuple[str, ...]:
    return row["edit SSIM"], _mean(row["edit L1"]), row["near SSIM"], row["far SSIM"], _db(row)


def _head(*names: str) -> list[str]:
    return [_line(*names), "|" + "---|" * len(names)]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
