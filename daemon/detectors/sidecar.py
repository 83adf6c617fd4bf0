"""The masks that a producer put beside a picture, as regions of their exact shape."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from daemon.detectors import Sidecar, Source
from daemon.domain import Box, Mask, Region, Rgb
from daemon.errors import Code, InputError
from daemon.images import decode_mask

NEAR = 16
"""Parts of a mask closer than this many pixels are one region: a signature is not a region per stroke."""

MOST = 16
"""Regions at most. Each one costs optimisation and verification, and a noisy mask has thousands of specks."""


class SidecarDetector:
    """Turns mask files into regions; needs no model."""

    def detect(self, image: Rgb, *, source: Source) -> list[Region]:
        """One region per group of marked parts that lie near each other; see `Detector.detect`.

        Several mask files count as one mask that marks what any of them marks. Every marked
        pixel is in exactly one region's mask, and no other pixel is in any.

        Raises:
            InputError: `MASK_UNREADABLE`; `MASK_SIZE`, not the upright picture's size;
                `MASK_EMPTY`, a file marks nothing.
        """
        height, width = image.shape[:2]
        marked = np.zeros((height, width), dtype=np.bool_)
        for sidecar in source.sidecars:
            marked |= _read(sidecar, source, height, width)
        return _regions(marked) if source.sidecars else []


def _read(sidecar: Sidecar, source: Source, height: int, width: int) -> Mask:
    # A mask of the wrong size is still decoded within reason, so that the message can say which size.
    limit = max(4 * height * width, 1 << 22)
    mask = decode_mask(sidecar.data, name=sidecar.name, max_pixels=limit)
    got_height, got_width = mask.shape
    if (got_height, got_width) != (height, width):
        turned = (
            " (it looks turned: apply the picture's orientation to it)"
            if mask.shape == (width, height)
            else ""
        )
        raise InputError(
            Code.MASK_SIZE,
            f"mask {sidecar.name}: got {got_width}x{got_height} pixels, expected the {width}x{height} "
            f"of the upright {source.name}; export the mask at the picture's size{turned}",
        )
    if not mask.any():
        raise InputError(
            Code.MASK_EMPTY,
            f"mask {sidecar.name}: marks nothing, expected white where {source.name} is to be protected; "
            "paint the region white, or remove the mask",
        )
    return mask


def _regions(marked: Mask) -> list[Region]:
    """Groups of marked pixels, in reading order; the reach grows until there are few enough.

    Parts are grouped on a grid of cells of `reach` pixels: those closer than `reach` lie in
    neighbouring cells and are always together, those twice as far apart never because of it.
    """
    reach = NEAR
    while True:
        cells, count = ndimage.label(_grid(marked, reach), structure=np.ones((3, 3)))
        if count <= MOST:
            break
        reach *= 2
    return [_region(marked, cells == number, reach) for number in range(1, count + 1)]


def _grid(marked: Mask, cell: int) -> Mask:
    """Which cells of `cell` x `cell` pixels hold a marked pixel."""
    height, width = marked.shape
    rows = np.logical_or.reduceat(marked, np.arange(0, height, cell), axis=0)
    cells: Mask = np.logical_or.reduceat(rows, np.arange(0, width, cell), axis=1)
    return cells


def _region(marked: Mask, cells: Mask, cell: int) -> Region:
    """The marked pixels of one group of cells."""
    left, top, right, bottom = (edge * cell for edge in Box.around(cells))
    member = cells[top // cell : bottom // cell, left // cell : right // cell]
    part = marked[top:bottom, left:right]
    part = part & member.repeat(cell, axis=0).repeat(cell, axis=1)[: part.shape[0], : part.shape[1]]
    tight = Box.around(part)
    box = Box(left + tight.left, top + tight.top, left + tight.right, top + tight.bottom)
    return Region(box, label="mask", score=1.0, detector="sidecar", mask=part[tight.slices].copy())
