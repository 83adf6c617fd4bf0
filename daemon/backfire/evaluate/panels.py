"""Pictures and words of the replayed edits of a region, for the sheet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from backfire.attack_paths.cropping import Crop
from backfire.evaluate import words
from backfire.evaluate.edits import Edit, in_levels
from backfire.evaluate.judge import EditResult
from backfire.evaluate.sheet import Panels
from backfire.types import Box, Mask, MaskKind, Rgb

PANEL_PX = 800
"""The long side, in pixels, up to which a crop is shown as it is; of larger ones every so many pixels are."""


def panels(
    crop: Crop,
    index: int,
    pictures: Sequence[Rgb],
    kinds: Mapping[MaskKind, Mask],
    edits: Mapping[MaskKind, Sequence[Edit]],
    rows: Sequence[EditResult],
) -> Panels:
    """What the sheet shows of a region.

    Args:
        index: of the region in its crop.
        pictures: uint8 H,W,3: original and published one.
        kinds: the masks of its edits, on the whole picture.
        edits: those of the first editor in its first tool, by their masks.
        rows: the figures of all its edits.
    """
    benign = MaskKind.FAR if MaskKind.FAR in kinds else MaskKind.NEAR
    box, every = crop.box, -(-max(crop.box.height, crop.box.width) // PANEL_PX)
    region = crop.regions[index]

    def of(plane: Any) -> Any:
        return np.ascontiguousarray(plane[box.slices][::every, ::every])

    def edited(kind: MaskKind, which: int) -> Rgb:
        part = edited_part(pictures[which], edits.get(kind, ()), which, box)
        shown: Rgb = np.ascontiguousarray(part[::every, ::every])
        return shown

    return Panels(
        label=f"{region.label} {region.box.width}x{region.box.height}",
        mask=of(kinds[MaskKind.TRIGGER]),
        original=of(pictures[0]),
        protected=of(pictures[1]),
        edit_original=edited(MaskKind.TRIGGER, 0),
        edit_protected=edited(MaskKind.TRIGGER, 1),
        benign_original=edited(benign, 0),
        benign_protected=edited(benign, 1),
        benign_mask=of(kinds.get(benign, np.zeros_like(kinds[MaskKind.TRIGGER]))),
        summary=list(_in_words(rows)),
    )


def edited_part(picture: Rgb, edits: Sequence[Edit], which: int, box: Box) -> Rgb:
    """A part of the picture with what edits made of it there; `which` of their pictures is meant."""
    part = picture[box.slices].copy()
    for edit in edits:
        frame = edit.frame
        left, top = max(frame.left, box.left), max(frame.top, box.top)
        right, bottom = min(frame.right, box.right), min(frame.bottom, box.bottom)
        if left >= right or top >= bottom:
            continue
        inner = np.s_[top - frame.top : bottom - frame.top, left - frame.left : right - frame.left]
        here = np.s_[top - box.top : bottom - box.top, left - box.left : right - box.left]
        made = in_levels(edit.pictures[which][inner])
        part[here][edit.mask[inner]] = made[edit.mask[inner]]
    return part


def _in_words(rows: Sequence[EditResult]) -> Iterator[str]:
    """The figures of the edit that is shown large; those of the others stand above their small pictures."""
    shown = next((one for one in rows if one.mask_kind == MaskKind.TRIGGER), None)
    if shown is not None:
        seen = "" if shown.visible is None else f"plainly another over {shown.visible:.0%} of it, "
        where = f"{words.tool(shown.path)} by {shown.editor}"
        yield f"edit of the region in {where}: {seen}SSIM {shown.ssim:.2f} (1 = no effect)"
