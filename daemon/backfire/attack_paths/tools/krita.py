"""Krita AI Diffusion: the selection with context around it, at the size that suits the model."""

from __future__ import annotations

import math
from dataclasses import dataclass

from backfire.attack_paths.handed import Filters, Handed, MaskRule
from backfire.attack_paths.softening import Gaussian, Grown, Linear, Positive, Shrunk
from backfire.attack_paths.tools.common import moved_inside, up
from backfire.types import Box, Mask


@dataclass(frozen=True)
class _Checkpoint:
    """Sizes that Krita gives models of an architecture, when it inpaints: sides, then areas in pixels."""

    least: int
    most: int
    least_area: int
    most_area: int


CHECKPOINTS = {
    "sd15": _Checkpoint(512, 768, 512**2, 512 * 768),
    "sdxl": _Checkpoint(640, 1280, 800**2, 1024**2),
    "flux": _Checkpoint(640, 1280, 512**2, 1024**2),
}


def context(mask: Mask, *, architecture: str) -> list[Handed]:
    """The selection with its feather, then context around it: at least 512 px, squarer than the selection."""
    height, width = mask.shape
    found = Box.around(mask)
    diagonal = math.sqrt(found.width**2 + found.height**2)
    feather = max(int(0.10 * diagonal), 32)
    around = _padded(found, mask, feather + 4 + int(0.06 * diagonal), least=256, multiple=16)
    around_it = max(max(height, width) // 16, (around.width + around.height) // 2 // 2)
    box = _padded(around, mask, around_it, least=512, multiple=8, square=True)
    # Of a very large selection the mask is softened no further.
    soft = Grown(min(4 + feather // 2, 499)), Linear(min(feather, 499) // 2)
    last = Gaussian(sigma=0.3 * (25 - 1) + 0.8, radius=12)
    rule = MaskRule(on_picture_grid=soft, blend=(*soft, Positive(), Shrunk(12), last))
    size = _size(box.height, box.width, CHECKPOINTS[architecture])
    given = "area" if size[0] * size[1] < box.height * box.width else "pil-lanczos"
    filters = Filters(picture=given, result="pil-lanczos", mask="torch-bilinear")
    return [Handed(mask, box, size, filters, rule=rule)]


def _padded(box: Box, mask: Mask, margin: int, *, least: int, multiple: int, square: bool = False) -> Box:
    """A box with a margin, at least so large and of a multiple, moved into the picture."""
    height, width = mask.shape
    across = down = margin
    if square and box.width > box.height:
        across = max(margin // 2, margin - (box.width - box.height) // 2)
    elif square:
        down = max(margin // 2, margin - (box.height - box.width) // 2)
    wide = up(max(box.width + 2 * across, least), multiple)
    high = up(max(box.height + 2 * down, least), multiple)
    left, right = moved_inside(box.left - (wide - box.width) // 2, wide, width)
    top, bottom = moved_inside(box.top - (high - box.height) // 2, high, height)
    return Box(left, top, right, bottom)


def _size(height: int, width: int, checkpoint: _Checkpoint) -> tuple[int, int]:
    """The size of the first pass; one above it only refines what the first pass made."""
    most = 6e6
    if height * width > int(most * 1.05):
        shrunk = math.sqrt(most / (height * width))
        height, width = round(height * shrunk), round(width * shrunk)
    larger = math.sqrt(checkpoint.least_area / (height * width))
    smaller = math.sqrt(checkpoint.most_area / (height * width))
    factor = 1.0
    if smaller < 0.9 and max(height, width) > checkpoint.most:
        factor = smaller
    elif larger > 1 and max(height, width) < checkpoint.least:
        factor = larger
    return up(round(height * factor), 16), up(round(width * factor), 16)
