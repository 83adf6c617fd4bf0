"""ComfyUI: the nodes Inpaint Crop and Stitch, and those that scale pictures for editors without masks."""

from __future__ import annotations

import math

import numpy as np

from backfire.attack_paths.handed import Filters, Handed, MaskRule
from backfire.attack_paths.softening import AtLeast, Filled, Gaussian, Grown
from backfire.attack_paths.tools.common import moved_inside, reached, whole
from backfire.types import Box, Mask


def stitch(mask: Mask, *, side: int) -> list[Handed]:
    """The box of the mask, filled, grown and blurred; a tenth larger on each side, then a square."""
    height, width = mask.shape
    blur = Gaussian(sigma=4, radius=16, border="constant")
    grown = Filled(), Grown(6), blur, AtLeast(0.1)
    rule = MaskRule(on_picture_grid=grown, blend=(blur,), blend_scaled=True, outside_masked=True)
    box = reached(mask, grown)
    if box is None:  # the blur thins out masks of pictures that are a few pixels small
        return []
    # Single precision, halves to even: the node computes the growth with torch.
    down, across = (
        int(np.rint(np.float32(length) * np.float32(0.2) / 2)) for length in (box.height, box.width)
    )
    left, right = max(box.left - across, 0), min(box.right + across, width)
    top, bottom = max(box.top - down, 0), min(box.bottom + down, height)
    if right - left < bottom - top:
        left, right = _squared(left, right - left, bottom - top, width)
    else:
        top, bottom = _squared(top, bottom - top, right - left, height)
    box = Box(left, top, right, bottom)
    smaller, larger = "pil-bilinear", "pil-bicubic"
    given = larger if side > box.width or side > box.height else smaller
    back = larger if box.width > side or box.height > side else smaller
    return [Handed(mask, box, (side, side), Filters(given, back, given), rule=rule)]


def _squared(start: int, length: int, wanted: int, size: int) -> tuple[int, int]:
    """A stretch grown to `wanted`, moved into the picture; it exceeds both ends of one that is too small."""
    if wanted > size:
        start = -((wanted - size) // 2)
        return start, start + wanted
    return moved_inside(start - (wanted - length) // 2, wanted, size)


KONTEXT = (
    (672, 1568),
    (688, 1504),
    (720, 1456),
    (752, 1392),
    (800, 1328),
    (832, 1248),
    (880, 1184),
    (944, 1104),
    (1024, 1024),
)
"""The sizes (short, long) that FLUX Kontext was trained on."""


def kontext(mask: Mask) -> list[Handed]:
    """The middle of the picture with the aspect of the nearest size, resized to it."""
    height, width = mask.shape
    sizes = [*KONTEXT, *(size[::-1] for size in KONTEXT[:-1])]
    _, across, down = min((abs(width / height - w / h), w, h) for w, h in sizes)
    have, want = width / height, across / down
    column = round((width - width * (want / have)) / 2) if have > want else 0
    row = round((height - height * (have / want)) / 2) if have < want else 0
    box = Box(column, row, width - column, height - row)
    return [Handed(mask, box, (down, across), Filters.all("pil-lanczos"), rule=MaskRule(everything=True))]


def qwen_edit(mask: Mask) -> list[Handed]:
    """The whole picture resized to a million pixels, sides of multiples of 8."""
    height, width = mask.shape
    scale = math.sqrt(1024 * 1024 / (height * width))
    size = max(round(height * scale / 8), 1) * 8, max(round(width * scale / 8), 1) * 8
    filters = Filters("torch-area", "pil-lanczos", "pil-lanczos")
    return [Handed(mask, whole(mask), size, filters, rule=MaskRule(everything=True))]
