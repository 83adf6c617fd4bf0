"""Geometry that several tools share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from backfire.attack_paths.softening import Step, softened
from backfire.types import Box, Mask


def moved_inside(start: int, length: int, size: int) -> tuple[int, int]:
    """A stretch moved into [0, size); all of it where the stretch is longer."""
    if length >= size:
        return 0, size
    start = min(max(start, 0), size - length)
    return start, start + length


def up(value: int, multiple: int) -> int:
    """The next multiple that is not smaller."""
    return -(-value // multiple) * multiple


def whole(mask: Mask) -> Box:
    """The whole picture."""
    return Box(0, 0, mask.shape[1], mask.shape[0])


def reached(mask: Mask, steps: Sequence[Step]) -> Box | None:
    """The part of the picture in which a mask has any value after some steps; None if it has none left."""
    plane, at = softened(mask, steps)
    if not plane.any():
        return None
    found = Box.around(np.asarray(plane > 0))
    return Box(at.left + found.left, at.top + found.top, at.left + found.right, at.top + found.bottom)
