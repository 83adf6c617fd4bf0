"""Resizing and padding along one axis as a linear map, equal to what the tools' libraries compute.

Every resize that a tool does (Pillow, OpenCV, torch) and every padding before or after it acts on rows and
columns apart, and is linear in the pixels. So an axis is a gather of pixels followed by a matrix of weights,
and a picture is resized by two matrix products. The weights are exact up to the libraries' own rounding to
8 bits, which is left out because it has no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float32]
"""target, source: one row of weights for each pixel of the result; a row sums to 1."""


class Beyond(StrEnum):
    """What lies beyond the last pixel where a tool needs more of the picture than there is."""

    MIRROR = "mirror"
    """The picture mirrored with its last pixel repeated, as often as needed (numpy's `symmetric`)."""
    EDGE = "edge"
    """The last pixel again and again."""
    EXTRAPOLATED = "extrapolated"
    """9/8 of the last pixel less 1/8 of the one before: what Pillow's bicubic filter makes of a stretch of
    length zero at the border, which is how A1111 and Forge fill the rest of a square. Only after resizing."""


def _windowed(
    source: int, target: int, kernel: Callable[[NDArray[np.float64]], NDArray[np.float64]], support: float
) -> Weights:
    """Pillow's resize: the kernel is widened by the factor by which the axis shrinks (antialiasing)."""
    scale = source / target
    widened = max(scale, 1.0)
    centres = (np.arange(target) + 0.5) * scale
    first = np.maximum((centres - support * widened + 0.5).astype(np.intp), 0)
    last = np.minimum((centres + support * widened + 0.5).astype(np.intp), source)
    at = first[:, None] + np.arange((last - first).max())
    window = np.where(at < last[:, None], kernel((at + 0.5 - centres[:, None]) / widened), 0)
    weights = np.zeros((target, source))
    np.add.at(weights, (np.arange(target)[:, None], np.minimum(at, source - 1)), window)
    return _normalised(weights)


def _normalised(weights: NDArray[Any]) -> Weights:
    normalised: Weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return normalised


def _triangle(x: NDArray[np.float64]) -> NDArray[np.float64]:
    weights: NDArray[np.float64] = np.maximum(1 - np.abs(x), 0)
    return weights


def _cubic(x: NDArray[np.float64], a: float = -0.5) -> NDArray[np.float64]:
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    weights: NDArray[np.float64] = np.where(x < 1, near, np.where(x < 2, far, 0))
    return weights


def _lanczos(x: NDArray[np.float64]) -> NDArray[np.float64]:
    weights: NDArray[np.float64] = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)
    return weights


def _interpolated(
    source: int, target: int, kernel: Callable[[NDArray[np.float64]], NDArray[np.float64]], taps: int
) -> Weights:
    """Interpolation between neighbours however much the axis shrinks: no antialiasing, the border repeats."""
    at = (np.arange(target) + 0.5) * (source / target) - 0.5
    base = np.floor(at).astype(np.intp)
    weights = np.zeros((target, source))
    rows = np.arange(target)
    for tap in range(1 - taps // 2, taps // 2 + 1):
        np.add.at(weights, (rows, np.clip(base + tap, 0, source - 1)), kernel(at - (base + tap)))
    return weights.astype(np.float32)


def _covered(source: int, target: int) -> Weights:
    """Each pixel of the result is the mean of what it covers, partly covered pixels by their share.

    Qt's smooth scaling does so where it shrinks, and OpenCV's area filter.
    """
    edges = np.arange(target + 1) * (source / target)
    axis = np.arange(source)
    shares = np.minimum(edges[1:, None], axis + 1) - np.maximum(edges[:-1, None], axis)
    shares = np.maximum(shares, 0)
    return _normalised(shares)


def _pooled(source: int, target: int) -> Weights:
    """torch's adaptive average pooling: each pixel of the result is the plain mean of all it touches."""
    rows = np.arange(target)[:, None]
    axis = np.arange(source)
    touched = (axis >= rows * source // target) & (axis < -(-(rows + 1) * source // target))
    return _normalised(touched)


FILTERS: dict[str, Callable[[int, int], Weights]] = {
    "pil-bilinear": lambda source, target: _windowed(source, target, _triangle, 1),
    "pil-bicubic": lambda source, target: _windowed(source, target, _cubic, 2),
    "pil-lanczos": lambda source, target: _windowed(source, target, _lanczos, 3),
    "cv2-cubic": lambda source, target: _interpolated(source, target, lambda x: _cubic(x, -0.75), 4),
    "area": _covered,
    "torch-area": _pooled,
    "torch-bilinear": lambda source, target: _interpolated(source, target, _triangle, 2),
}
"""By library and filter; each is (pixels of the source, pixels of the target) -> weights."""


@lru_cache(maxsize=16)
def weights_of(name: str, source: int, target: int) -> Weights:
    """The weights of a filter; read only, since they are kept."""
    weights = FILTERS[name](source, target)
    weights.setflags(write=False)
    return weights


@dataclass(frozen=True)
class Axis:
    """How one axis of a picture reaches a model: a stretch of it, resized, then padded.

    Attributes:
        start, stop: the stretch in pixels of the picture; it may exceed [0, length).
        length: of the picture.
        scaled: pixels to which the stretch is resized.
        before, after: pixels of padding after resizing.
        beyond: what the stretch holds outside the picture, and what the padding holds.
        filter: a name of `FILTERS`; empty where nothing is resized.
    """

    start: int
    stop: int
    length: int
    scaled: int
    before: int
    after: int
    beyond: Beyond
    filter: str

    @property
    def inside(self) -> slice:
        """The part of the stretch that lies in the picture."""
        return slice(max(self.start, 0), min(self.stop, self.length))

    def index(self) -> NDArray[np.intp] | None:
        """Which pixel of `inside` each pixel of the stretch is; None where they are the same.

        Where nothing is resized, the padding after it is in here too.
        """
        first, last = self.inside.start, self.inside.stop
        at = _reflected(np.arange(self.start, self.stop) - first, last - first, self.beyond)
        if not self._weighted:
            at = at[self._padded(at.size)]
        return None if np.array_equal(at, np.arange(last - first)) else at

    def matrix(self) -> Weights | None:
        """The weights with which the stretch makes the pixels that the model gets; None for a copy."""
        if not self._weighted:
            return None
        length = self.stop - self.start
        same = self.scaled == length
        weights = np.eye(length, dtype=np.float32) if same else weights_of(self.filter, length, self.scaled)
        if self.beyond is not Beyond.EXTRAPOLATED:
            return weights[self._padded(self.scaled)]
        low = 1.125 * weights[:1] - 0.125 * weights[1:2] if self.scaled > 1 else weights[:1]
        high = 1.125 * weights[-1:] - 0.125 * weights[-2:-1] if self.scaled > 1 else weights[:1]
        return np.concatenate([low.repeat(self.before, 0), weights, high.repeat(self.after, 0)])

    def back(self, part: slice) -> Weights | None:
        """The weights with which the model's result, its padding taken off, makes pixels of the stretch.

        Args:
            part: the pixels of the picture that are asked for, inside the stretch.

        Returns:
            part, scaled; None where nothing is resized.
        """
        length = self.stop - self.start
        if length == self.scaled:
            return None
        weights = weights_of(self.filter, self.scaled, length)
        return weights[part.start - self.start : part.stop - self.start]

    @property
    def _weighted(self) -> bool:
        extrapolated = self.beyond is Beyond.EXTRAPOLATED and bool(self.before or self.after)
        return self.scaled != self.stop - self.start or extrapolated

    def _padded(self, length: int) -> NDArray[np.intp]:
        return _reflected(np.arange(-self.before, length + self.after), length, self.beyond)


def _reflected(at: NDArray[np.intp], length: int, beyond: Beyond) -> NDArray[np.intp]:
    """Positions on an unbounded axis as positions on one of `length` pixels."""
    if beyond is not Beyond.MIRROR:
        return np.clip(at, 0, length - 1)
    at = at % (2 * length)
    return np.minimum(at, 2 * length - 1 - at)
