"""What the page of one picture shows of its receipt: regions, edits with their marks, a readable table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BREAKING = ("trigger", "dilated", "partial")
"""The edits that touch the region, and are to break; all others are to be kept."""

APART = frozenset({"regions", "edits", "reasons", "events", "schema", "verdict", "file", "promise", "sheet"})
"""Fields that the page shows elsewhere, or that are no use to a reader."""


@dataclass(frozen=True)
class Cell:
    """One replayed edit.

    Attributes:
        good: whether it came out as it is to; None where the thresholds of its kind are not known.
        asked: whether the verdict rests on it.
        ssim: similarity to the clean edit, 1 = the same; None where the edit gave no finite picture.
        visible: the share over which it plainly differs; None where that was not measured.
        place: where the picture sheet shows it: left, top, width, height in pixels; None where it does not.
    """

    good: bool | None
    asked: bool
    ssim: float | None
    visible: float | None
    place: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Line:
    """The edits of one region in one place through one attack path, by editor."""

    region: int
    kind: str
    path: str
    cells: Sequence[Cell | None]

    @property
    def breaking(self) -> bool:
        """Whether these edits are to break."""
        return self.kind in BREAKING


@dataclass(frozen=True)
class Edits:
    """The table of edits: an editor for each column."""

    editors: Sequence[tuple[str, bool]]
    lines: Sequence[Line]


def edits(receipt: Mapping[str, Any], thresholds: Mapping[str, float]) -> Edits:
    """The replayed edits of a receipt as a table.

    Args:
        receipt: as it was read; what is not as it should be is left out.
        thresholds: `verify` of the settings, for a receipt that does not say under which it was judged.
    """
    own = receipt.get("thresholds")
    if isinstance(own, dict) and own:
        thresholds = {name: value for name, value in own.items() if isinstance(value, int | float)}
    rows = [row for row in _list(receipt.get("edits")) if _is_edit(row)]
    editors = list(dict.fromkeys((str(row["editor"]), bool(row.get("held_out"))) for row in rows))
    places = list(dict.fromkeys((int(row["region"]), str(row["mask_kind"]), _place(row)) for row in rows))
    first: dict[tuple[str, int], str] = {}
    found = {}
    for row in rows:
        region, path, editor = int(row["region"]), str(row["path"]), str(row["editor"])
        is_first = first.setdefault((editor, region), path) == path
        found[region, str(row["mask_kind"]), _place(row), editor] = _cell(row, thresholds, is_first)
    lines = [
        Line(*place, [found.get((*place, name)) for name, _ in editors])
        for place in sorted(places, key=_rank)
    ]
    return Edits(editors, lines)


def _place(row: Mapping[str, Any]) -> str:
    """The attack path of an edit, and whether the picture was laid on white for it."""
    return f"{row['path']}, on white" if row.get("flattened") else str(row["path"])


def tool_of(path: str, tools: Mapping[str, str]) -> str:
    """The name of the tool for an attack path of a line of the table, for people."""
    name, comma, rest = path.partition(",")
    return tools.get(name, name) + comma + rest


def _rank(place: tuple[int, str, str]) -> tuple[int, bool]:
    return place[0], place[1] not in BREAKING


def _is_edit(row: Any) -> bool:
    wanted = {
        "editor": str,
        "region": int,
        "mask_kind": str,
        "path": str,
        "ssim": int | float | None,
        "l1": int | float | None,
    }
    return isinstance(row, dict) and all(
        name in row and isinstance(row[name], kind) for name, kind in wanted.items()
    )


def _cell(row: Mapping[str, Any], thresholds: Mapping[str, float], is_first: bool) -> Cell:
    seen = row.get("visible")
    visible = float(seen) if isinstance(seen, int | float) else None
    asked = is_first or row["mask_kind"] == "trigger"
    place = _on_sheet(row.get("on_sheet"))
    if row["ssim"] is None or row["l1"] is None:  # whichever edit it is of, the verdict is `failed` for it
        return Cell(False, True, None, visible, place)
    return Cell(is_good(row, thresholds, is_first), asked, float(row["ssim"]), visible, place)


def _on_sheet(value: Any) -> tuple[int, int, int, int] | None:
    if not isinstance(value, list) or len(value) != 4 or not all(isinstance(one, int) for one in value):
        return None
    left, top, width, height = value
    return left, top, width, height


def is_good(row: Mapping[str, Any], asked: Mapping[str, float], is_first: bool) -> bool | None:
    """Whether an edit meets the thresholds of its kind, as in `evaluate.judge`; None where there are none.

    That module is not imported, as the arithmetic it needs would double the page's memory.

    Args:
        is_first: whether it was replayed on the first attack path of its editor.
    """
    kind = row["mask_kind"]
    if kind in ("near", "far"):
        least = asked.get(f"{kind}_ssim_min")
        return None if least is None else bool(row["ssim"] >= least)
    is_whole = kind == "trigger" and is_first and not row.get("held_out")
    prefix = "trigger" if is_whole else "incomplete"
    most, least = asked.get(f"{prefix}_ssim_max"), asked.get(f"{prefix}_l1_min")
    seen = asked.get(f"{prefix}_visible_min")
    if most is None or least is None:
        return None
    noise = row.get("control_ssim")
    by_noise = 1 - (noise if isinstance(noise, int | float) else 1.0)
    effect = 1 - row["ssim"]
    if row["l1"] < least or row["l1"] == 0 or effect <= by_noise:
        return False
    factor = asked.get("control_factor", 1.0)
    if effect < factor * by_noise and (is_first or row["ssim"] * factor > 1 - by_noise):
        return False
    if row.get("visible") is None or seen is None:
        return bool(row["ssim"] <= most)
    plain = asked.get("plain_visible_min" if is_whole else "incomplete_plain_visible_min", 1.0)
    return bool(row["visible"] >= seen and (row["ssim"] <= most or row["visible"] >= plain))


@dataclass(frozen=True)
class Found:
    """A region: its box in pixels of the upright picture, and what found it."""

    box: tuple[int, int, int, int]
    label: str
    score: float
    detector: str

    @property
    def width(self) -> int:
        """In pixels."""
        return self.box[2] - self.box[0]

    @property
    def height(self) -> int:
        """In pixels."""
        return self.box[3] - self.box[1]


def regions(receipt: Mapping[str, Any]) -> list[Found]:
    """The regions of a receipt; what is not as it should be is left out."""
    found = []
    for row in _list(receipt.get("regions")):
        box = row.get("box") if isinstance(row, dict) else None
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(edge, int) for edge in box):
            continue
        score = row.get("score")
        left, top, right, bottom = box
        label, detector = str(row.get("label", "")), str(row.get("detector", ""))
        found.append(
            Found(
                (left, top, right, bottom),
                label,
                float(score) if isinstance(score, int | float) else 0,
                detector,
            )
        )
    return found


def sheet_size(receipt: Mapping[str, Any]) -> tuple[int, int] | None:
    """Width and height of the picture sheet, in pixels; None where the receipt does not say."""
    found = receipt.get("sheet")
    return size(found) if isinstance(found, dict) else None


def size(receipt: Mapping[str, Any]) -> tuple[int, int] | None:
    """Width and height of the upright picture, in pixels."""
    width, height = receipt.get("width"), receipt.get("height")
    return (width, height) if isinstance(width, int) and isinstance(height, int) else None


def facts(receipt: Mapping[str, Any]) -> list[tuple[str, str]]:
    """All else in a receipt as names and texts, nested ones with a dot."""
    return list(_flat(receipt, ""))


def _flat(value: Any, name: str) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        inner = value if name else {key: one for key, one in value.items() if key not in APART}
        return [
            row for key, one in inner.items() for row in _flat(one, f"{name}.{key}" if name else str(key))
        ]
    if isinstance(value, list):
        if not any(isinstance(one, dict | list) for one in value):
            return [(name, ", ".join(map(str, value)))] if value else []
        return [row for index, one in enumerate(value) for row in _flat(one, f"{name}.{index}")]
    return [] if value is None else [(name, str(value))]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
