"""What tools do to an edit's mask before a model gets it, and before its result is blended in.

A step takes a float32 plane in [0,1] (1 = repainted) and returns another of the same size. Its `reach` bounds
how far the mask spreads, so that steps can run on the part of the picture around the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy  # it loads `ndimage`, which takes longest, when that is first used
from numpy.typing import NDArray

from backfire.types import Box, Mask

Plane = NDArray[np.float32]


class Step(Protocol):
    """One thing that is done to a mask."""

    @property
    def reach(self) -> int:
        """By how many pixels at most the mask's outline moves outwards."""
        ...

    def __call__(self, plane: Plane) -> Plane: ...


@dataclass(frozen=True)
class Filled:
    """Gaps of up to two pixels are closed, also those to the border of the picture, then holes are filled."""

    reach: int = 2

    def __call__(self, plane: Plane) -> Plane:
        closed = scipy.ndimage.binary_closing(plane > 0, np.ones((3, 3)), border_value=1)
        return np.maximum(plane, filled(closed)).astype(np.float32)


@dataclass(frozen=True)
class Grown:
    """The mask grows by `px` each way, corners included: a dilation by a square, not by a disc."""

    px: int

    @property
    def reach(self) -> int:
        return self.px

    def __call__(self, plane: Plane) -> Plane:
        grown: Plane = scipy.ndimage.maximum_filter(plane, 2 * self.px + 1, mode="constant")
        return grown


@dataclass(frozen=True)
class Shrunk:
    """The mask shrinks by `px` each way, but not away from the border of the picture."""

    px: int
    reach: int = 0

    def __call__(self, plane: Plane) -> Plane:
        shrunk: Plane = scipy.ndimage.minimum_filter(plane, 2 * self.px + 1, mode="constant", cval=1)
        return shrunk


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian blur that is cut off at `radius` pixels.

    Attributes:
        border: `mirror` (OpenCV, kornia) or `constant` for zeros (torch's convolution).
        eight_bit: whether rows and columns are blurred one after the other in 8 bits, so that values below
            half a level vanish.
    """

    sigma: float
    radius: int
    border: str = "mirror"
    eight_bit: bool = False

    @property
    def reach(self) -> int:
        return self.radius

    def __call__(self, plane: Plane) -> Plane:
        kernel = np.exp(-0.5 * (np.arange(-self.radius, self.radius + 1) / self.sigma) ** 2)
        return _blurred(plane, kernel, self.border, self.eight_bit)


@dataclass(frozen=True)
class Linear:
    """A blur whose kernel falls linearly from its centre to `radius` pixels away."""

    radius: int

    @property
    def reach(self) -> int:
        return self.radius

    def __call__(self, plane: Plane) -> Plane:
        rising = np.linspace(1 / self.radius, 1 - 1 / self.radius, self.radius)
        return _blurred(plane, np.concatenate([rising, [1], rising[::-1]]), "mirror", False)


@dataclass(frozen=True)
class Ramp:
    """Outside the mask the plane falls from 256 by 8 of 255 levels for each pixel of Chebyshev distance.

    That is the larger of the distances down and across.
    """

    reach: int = 31

    def __call__(self, plane: Plane) -> Plane:
        if not (plane > 0.5).any():
            return np.zeros_like(plane)
        away = scipy.ndimage.distance_transform_cdt(plane <= 0.5, metric="chessboard")
        ramp: Plane = np.clip((256 - 8 * away) / 255, 0, 1).astype(np.float32)
        return ramp


@dataclass(frozen=True)
class AtLeast:
    """Values below `value` become zero."""

    value: float
    reach: int = 0

    def __call__(self, plane: Plane) -> Plane:
        return np.where(plane < self.value, np.float32(0), plane)


@dataclass(frozen=True)
class Doubled:
    """Values are doubled and cut at 1."""

    reach: int = 0

    def __call__(self, plane: Plane) -> Plane:
        return np.minimum(2 * plane, 1)


@dataclass(frozen=True)
class Positive:
    """Every value above zero becomes 1."""

    reach: int = 0

    def __call__(self, plane: Plane) -> Plane:
        return (plane > 0).astype(np.float32)


def filled(mask: Mask) -> Mask:
    """The mask without holes: all that no path of neighbours leads to from beyond the plane's border."""
    labels, _ = scipy.ndimage.label(np.pad(~mask, 1, constant_values=True))
    reached: Mask = labels[1:-1, 1:-1] != labels[0, 0]
    return reached


def softened(mask: Mask, steps: Sequence[Step]) -> tuple[Plane, Box]:
    """A mask after some steps.

    Args:
        mask: of the whole picture, with a pixel at least.

    Returns:
        The plane on a box of the picture, and that box; outside of it the result is zero.
    """
    height, width = mask.shape
    # A step may treat the border of the plane as special: only that of the picture may lie next to the mask.
    box = Box.around(mask).grown(sum(step.reach for step in steps) + 3, width, height)
    plane = mask[box.slices].astype(np.float32)
    for step in steps:
        plane = step(plane)
    return plane, box


def _blurred(plane: Plane, kernel: NDArray[np.float64], border: str, eight_bit: bool) -> Plane:
    kernel = kernel / kernel.sum()
    for axis in (1, 0):
        plane = scipy.ndimage.correlate1d(plane, kernel, axis=axis, mode=border)
        if eight_bit:
            plane = (np.rint(plane * 255) / 255).astype(np.float32)
    return plane
