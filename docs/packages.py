"""A drawing of the packages and what they import, as SVG, from the source itself.

An arrow leads from a package to one that it imports. Where a longer way leads there too, the direct arrow
is left out.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "daemon" / "backfire"

WIDTH, HEIGHT, ACROSS, DOWN = 116, 34, 24, 34
"""Of a box, and between boxes, in pixels."""


def imports() -> dict[str, set[str]]:
    """Each package of `backfire` with the packages of `backfire` that it imports."""
    found: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if not own.startswith("__") and "migrations" not in path.parts:
            found.setdefault(own, set()).update(_imported(path))
    return {own: (used & found.keys()) - {own} for own, used in found.items()}


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name.split(".")[1] for name in names if name.startswith("backfire."))


def levels(uses: Mapping[str, set[str]]) -> dict[str, int]:
    """How far above the ground each package stands: one above the highest that it imports.

    Raises:
        ValueError: packages that import each other.
    """
    heights: dict[str, int] = {}

    def height(name: str, above: tuple[str, ...] = ()) -> int:
        if name in above:
            raise ValueError(f"packages import each other: {' -> '.join((*above, name))}")
        if name not in heights:
            heights[name] = 1 + max((height(used, (*above, name)) for used in uses[name]), default=-1)
        return heights[name]

    return {name: height(name) for name in sorted(uses)}


def reduced(uses: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The imports without those that a longer way has already."""

    def below(name: str) -> set[str]:
        return uses[name].union(*(below(used) for used in uses[name]))

    return {name: used - set().union(*(below(other) for other in used)) for name, used in uses.items()}


def drawing() -> str:
    """The SVG: the ground at the bottom, one row for each level."""
    uses = imports()
    heights = levels(uses)
    rows = [sorted(n for n in heights if heights[n] == level) for level in range(max(heights.values()) + 1)]
    width = max(map(len, rows)) * (WIDTH + ACROSS) + ACROSS
    height = len(rows) * (HEIGHT + DOWN) + DOWN
    at: dict[str, tuple[float, float]] = {}
    for level, row in enumerate(rows):
        left = (width - len(row) * (WIDTH + ACROSS) + ACROSS) / 2
        for index, name in enumerate(row):
            at[name] = (left + index * (WIDTH + ACROSS), height - (level + 1) * (HEIGHT + DOWN))
    drawn = reduced(uses)
    arrows = [_arrow(at[name], at[used]) for name in sorted(at) for used in sorted(drawn[name])]
    boxes = [_box(name, *at[name]) for name in sorted(at)]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}" font-family="sans-serif" font-size="14">'
    )
    marker = (
        '<marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0 8 4 0 8z" fill="#888"/></marker>'
    )
    return "\n".join([head, f"<defs>{marker}</defs>", *arrows, *boxes, "</svg>\n"])


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    x, y, u, v = start[0] + WIDTH / 2, start[1] + HEIGHT, end[0] + WIDTH / 2, end[1]
    bend = (v - y) / 2
    path = f"M{x:g} {y:g}C{x:g} {y + bend:g} {u:g} {v - bend:g} {u:g} {v - 1:g}"
    return f'<path d="{path}" fill="none" stroke="#888" marker-end="url(#tip)"/>'


def _box(name: str, x: float, y: float) -> str:
    box = f'x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="5" fill="#fff4e6" stroke="#d9770a"'
    text = f'x="{x + WIDTH / 2:g}" y="{y + HEIGHT / 2 + 5:g}" text-anchor="middle" fill="#222"'
    return f"<rect {box}/><text {text}>{name}</text>"
