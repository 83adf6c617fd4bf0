"""Whether a copy shows the same picture at the same place, to a fraction of a pixel. No torch, no model.

A site that saves a picture again scales and recompresses it; some crop it, too. Edits of such a copy can be
compared with edits of the original only where both pictures lie pixel on pixel, so that is measured and not
believed: phase correlation gives the shift of each part of the picture, and what remains after that shift
says whether it is this picture at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.registration import phase_cross_correlation

from backfire.types import Rgb

LONG_PX = 1024
"""The long side up to which pictures are compared; of larger ones means of square blocks are."""
PARTS = 3
"""Into how many parts each side is divided."""
COARSE, FINE = 8.0, 0.8
"""Standard deviations, in pixels, of the blurs between which detail is compared: coarser differences come
from filters of a site's own, finer ones from its compression."""
TEXTURE = 1.5
"""The standard deviation of a part's detail, in levels, below which nothing can be told from it."""
ALIKE = 0.6
"""The correlation of detail from which two parts show the same; of other pictures it is about 0."""
GAIN = 0.01
"""By how much more two parts must be alike after a shift before it counts as one."""
SHIFT_PX = 1.0
"""The largest shift, in pixels of the copy, of two pictures that lie on each other."""
FINENESS = 20
"""The parts of a pixel to which shifts are found."""
LUMA = np.array([0.299, 0.587, 0.114], np.float32)

Plane = NDArray[np.float32]


@dataclass(frozen=True)
class Registration:
    """How a copy lies on a reference of its own size.

    Attributes:
        correlation: of their detail where they lie, in [-1,1]: the median over the parts with texture; None
            where no part has any.
        moved_correlation: the same after each part was shifted to where it fits best.
        shift_px: how far the parts are off: the most of all those that fit somewhere, in pixels of the copy.
        colour_off: how far the mean colour is off, the most of the channels, in levels of 255.
    """

    correlation: float | None
    moved_correlation: float | None
    shift_px: float
    colour_off: float

    @property
    def is_same(self) -> bool:
        """Whether it is the same picture at the same place."""
        return self.correlation is not None and self.correlation >= ALIKE and self.shift_px <= SHIFT_PX

    @property
    def is_moved(self) -> bool:
        """Whether it is the same picture at another place, cropped for instance."""
        return not self.is_same and (self.moved_correlation or 0) >= ALIKE


def register(reference: Rgb, copy: Rgb) -> Registration:
    """Compare a copy with a reference.

    Args:
        reference, copy: uint8 H,W,3 of one size.
    """
    block = -(-max(copy.shape[:2]) // LONG_PX)
    one, other = (_small(rgb, block) for rgb in (reference, copy))
    off = float(np.abs((one - other).mean(axis=(0, 1))).max())
    details = [_detail(plane @ LUMA) for plane in (one, other)]
    there, moved, shifts = [], [], [0.0]
    for part in _parts(*details[0].shape):
        a, b = (plane[part] for plane in details)
        if min(a.std(), b.std()) < TEXTURE:
            continue
        there.append(_correlation(a, b))
        shift = _shift(a, b)
        moved.append(_correlation(a, ndimage.shift(b, shift, order=1, mode="nearest")))
        if moved[-1] < there[-1] + GAIN:  # a regular texture fits at many places
            moved[-1] = there[-1]
        elif moved[-1] >= ALIKE:
            shifts.append(float(np.abs(shift).max()) * block)
    if not there:
        return Registration(None, None, 0.0, off)
    return Registration(float(np.median(there)), float(np.median(moved)), max(shifts), off)


def _small(rgb: Rgb, block: int) -> Plane:
    height, width = (side // block * block for side in rgb.shape[:2])
    cells = rgb[:height, :width].reshape(height // block, block, width // block, block, 3)
    small: Plane = cells.mean(axis=(1, 3), dtype=np.float32)
    return small


def _detail(luma: Plane) -> Plane:
    fine: Plane = ndimage.gaussian_filter(luma, FINE) - ndimage.gaussian_filter(luma, COARSE)
    return fine


def _parts(height: int, width: int) -> list[tuple[slice, slice]]:
    """The parts of a picture, from left to right and from top to bottom; of a small one fewer."""
    rows, columns = (
        np.linspace(0, side, min(PARTS, max(side // 48, 1)) + 1, dtype=int) for side in (height, width)
    )
    return [
        (slice(top, bottom), slice(left, right))
        for top, bottom in pairwise(rows)
        for left, right in pairwise(columns)
    ]


def _shift(reference: Plane, moving: Plane) -> NDArray[np.float64]:
    """Down and right, by how much to shift `moving` so that it lies on the reference."""
    window = np.outer(np.hanning(reference.shape[0]), np.hanning(reference.shape[1]))
    shift, _, _ = phase_cross_correlation(  # type: ignore[no-untyped-call]
        reference * window, moving * window, upsample_factor=FINENESS, normalization=None
    )
    return np.asarray(shift, dtype=np.float64)


def _correlation(a: Plane, b: Plane) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / max(float(np.sqrt((a**2).sum() * (b**2).sum())), 1e-9))
