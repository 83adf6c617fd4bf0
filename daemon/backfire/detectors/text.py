"""The detector `text`: printed, painted and handwritten lettering anywhere in a picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from backfire.config import Text
from backfire.detectors import Source, networks
from backfire.detectors.lettering import Line, Lines, of_one_block
from backfire.detectors.shapes import merged, region_of
from backfire.types import Box, Region, Rgb

SHORT_PX, LONG_PX = 736, 1536
"""A picture is enlarged until its short side has the first, and scaled so that its long side has at most the
second."""

ENLARGED = 4
"""The most by which a picture is enlarged; more would only interpolate."""

FINER = 1.25
"""A second pass over the parts of a picture is made only if its scale is this many times the first one's."""

OVERLAP_PX = 192
"""Overlap of the parts in the second pass, so that a line at their border lies whole in one of them or is
found in both and joined."""

MOST = 500
"""The most lines that are kept, by score; a newspaper page has more, but they form one block."""


class TextDetector:
    """Finds lettering; neighbouring lines form one region."""

    def __init__(self, settings: Text = Text()) -> None:  # noqa: B008 (frozen)
        self._settings, self._lines = settings, Lines("text")

    def detect(self, image: Rgb, *, source: Source) -> list[Region]:
        """One region per block of lines, with the score of its best line; see `Detector.detect`.

        The first pass takes the whole picture at the size that suits the networks; where `long_px` asks for
        more, a second pass takes it part by part at a larger scale.

        Raises:
            ModelError: `Code.DETECTOR`, a network failed on this picture.
        """
        height, width = image.shape[:2]
        found: list[tuple[float, Line]] = []
        with networks.reported("text", source.name, image):
            for part, scale in parts_of(height, width, self._settings.long_px):
                for line in self._lines.candidates(image[part.slices], scale):
                    placed = replace(line, corners=line.corners + np.array([part.left, part.top]))
                    score = self._lines.score(image, placed)
                    if score >= self._settings.score_min:
                        found.append((score, placed))
        surest = sorted(found, key=lambda one: -one[0])[:MOST]
        regions = [region_of(line.corners, "text", "text", width, height, score) for score, line in surest]
        return merged([region for region in regions if region is not None], of_one_block)


def parts_of(height: int, width: int, long_px: int) -> Iterator[tuple[Box, float]]:
    """The parts of a picture that are searched, each with its scale."""
    first = min(max(SHORT_PX / min(height, width), 1), LONG_PX / max(height, width), ENLARGED)
    yield Box(0, 0, width, height), first
    closer = min(long_px / max(height, width), ENLARGED)
    if closer >= FINER * first:
        side, overlap = round(LONG_PX / closer), round(OVERLAP_PX / closer)
        for top in _starts(height, side, overlap):
            for left in _starts(width, side, overlap):
                yield Box(left, top, min(left + side, width), min(top + side, height)), closer


def _starts(length: int, side: int, overlap: int) -> list[int]:
    """The starts of evenly placed parts that cover a side and overlap by at least `overlap`."""
    count = max(-(-(length - overlap) // (side - overlap)), 1)
    return [round(place) for place in np.linspace(0, max(length - side, 0), count)]
