"""The detectors `fixed` and `whole`: boxes from the configuration, and the whole picture."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from backfire.config import FixedBox
from backfire.detectors import Source
from backfire.types import Box, Region, Rgb

CELL_PX, CELLS = 256, 4
"""The whole picture is divided into cells of at most the first in pixels or, where that takes more than the
second along a side, into so many."""


class FixedDetector:
    """The configured boxes, for content that always stands in the same place, such as a station's logo."""

    def __init__(self, boxes: Sequence[FixedBox]) -> None:
        self._boxes = boxes

    def detect(self, image: Rgb, *, source: Source) -> list[Region]:
        """One region per box that reaches into the picture, clipped to it; see `Detector.detect`."""
        height, width = image.shape[:2]
        placed = [(_placed(fixed, width, height), fixed.label) for fixed in self._boxes]
        return [
            Region(box, label=label, score=1.0, detector="fixed")
            for box, label in placed
            if box.width > 0 and box.height > 0  # pixel boxes may lie outside a small picture
        ]


def _placed(fixed: FixedBox, width: int, height: int) -> Box:
    sides = (width, height) if fixed.unit == "relative" else (1, 1)
    left, top, right, bottom = (round(edge * sides[i % 2]) for i, edge in enumerate(fixed.box))
    return Box(min(left, width), min(top, height), min(right, width), min(bottom, height))


class WholeDetector:
    """The whole picture as a grid of cells, since an editor needs context around what it repaints."""

    def detect(self, image: Rgb, *, source: Source) -> list[Region]:
        """A grid of cells of about one size, without gap or overlap; see `Detector.detect`."""
        height, width = image.shape[:2]
        side = max(CELL_PX, max(height, width) / CELLS)
        rows, columns = (_parts(length, side) for length in (height, width))
        return [
            Region(Box(left, top, right, bottom), "whole", 1.0, "whole")
            for top, bottom in rows
            for left, right in columns
        ]


def _parts(length: int, most: float) -> list[tuple[int, int]]:
    """A length in as few parts as are needed that none exceeds `most` by more than rounding."""
    edges = np.linspace(0, length, math.ceil(length / most) + 1).round().astype(int).tolist()
    return [*itertools.pairwise(edges)]
