"""The detectors `fixed` and `whole`: boxes from the configuration, and the whole picture."""

from __future__ import annotations

from collections.abc import Sequence

from backfire.config import FixedBox
from backfire.detectors import Source
from backfire.types import Box, Region, Rgb

CELL_MIN, CELLS = 256, 4
"""The whole picture is divided into cells of at least the first in pixels, at most the second along a
side."""


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
        """A grid that covers the picture without gap or overlap; see `Detector.detect`."""
        height, width = image.shape[:2]
        side = max(CELL_MIN, -(-max(height, width) // CELLS))
        return [
            Region(Box(x, y, min(x + side, width), min(y + side, height)), "whole", 1.0, "whole")
            for y in range(0, height, side)
            for x in range(0, width, side)
        ]
