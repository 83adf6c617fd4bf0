"""Fooocus: a crop of at least 61.8 % of each side of the picture, at about a million pixels."""

from __future__ import annotations

import math

from backfire.attack_paths.handed import Filters, Handed, MaskRule
from backfire.attack_paths.softening import Ramp
from backfire.types import Box, Mask

FIELD = 0.618
"""`Inpaint Respective Field`: the share of the picture's height and of its width that a crop has at least."""


def respective_field(mask: Mask, *, side: int = 1024) -> list[Handed]:
    """A square around the mask, grown until it covers 61.8 % of each side, at about `side` squared pixels."""
    height, width = mask.shape
    found = Box.around(mask)
    down, across = found.height - 1, found.width - 1
    reach = int(max(down // 2, across // 2) * 1.15)
    row, column = (2 * found.top + down) // 2, (2 * found.left + across) // 2
    top, bottom = max(row - reach, 0), min(row + reach + 1, height)
    left, right = max(column - reach, 0), min(column + reach + 1, width)
    while bottom - top < height * FIELD or right - left < width * FIELD:
        flat = bottom - top < right - left
        grows_down, grows_across = flat, not flat
        grows_across |= bottom - top == height
        grows_down |= right - left == width
        if grows_down:
            top, bottom = max(top - 1, 0), min(bottom + 1, height)
        if grows_across:
            left, right = max(left - 1, 0), min(right + 1, width)
    box = Box(left, top, right, bottom)
    size, filters = _size(box.height, box.width, side), Filters.all("pil-lanczos")
    return [Handed(mask, box, size, filters, rule=MaskRule(blend=(Ramp(),)))]


def _size(height: int, width: int, side: int) -> tuple[int, int]:
    """Multiples of 64 with about the area of a square of `side`; of 8 where the crop has that area already.

    The tool crops up to 7 pixels off the latter, we resize.
    """

    def rounded(down: int, across: int) -> int:
        return math.ceil(math.sqrt(down * across) / 64) * 64

    if rounded(height, width) < side:
        height, width = 4 * height, 4 * width  # a network enlarges it first
    for _ in range(256):
        factor = side / rounded(height, width)
        if factor == 1:
            break
        height = max(round(height * factor / 64), 1) * 64
        width = max(round(width * factor / 64), 1) * 64
    return max(height // 8, 1) * 8, max(width // 8, 1) * 8
