"""Lettering of every kind in a picture, what can be read of it and what is written by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from backfire.config import Text
from backfire.detectors import Source, networks
from backfire.detectors.lettering import Line, Lines, of_one_block
from backfire.detectors.networks import NetworkFailed
from backfire.detectors.shapes import merged, region_of
from backfire.types import Box, Region, Rgb

SHORT_PX, LONG_PX = 736, 1536
"""A picture is looked at with its short side at least so many pixels, unless its long side then had more."""

ENLARGED = 4
"""How much a picture is enlarged at most: finer strokes than a quarter of a pixel are not in it."""

FINER = 1.25
"""By how much a closer look must be larger than the first to show anything new."""

OVERLAP_PX = 192
"""What the parts of a closer look share: a line lies whole in one of them, or shows in both and is joined."""

MOST = 500
"""Lines kept, the surest: a newspaper's page has more, and they are one block by then."""


class TextDetector:
    """Finds lettering; the lines of one block are one region."""

    def __init__(self, settings: Text = Text()) -> None:  # noqa: B008 (frozen)
        self._settings, self._lines = settings, Lines("text")

    def detect(self, image: Rgb, *, source: Source) -> list[Region]:
        """One region per block of lines, as sure as its best line; see `Detector.detect`.

        The whole picture is looked at once, at a size at which the networks see best; with `long_px`
        above that, once more part by part.

        Raises:
            ModelError: `Code.DETECTOR`, a network failed on this picture.
        """
        height, width = image.shape[:2]
        found: list[tuple[float, Line]] = []
        try:
            for part, scale in _views(height, width, self._settings.long_px):
                for line in self._lines.candidates(image[part.slices], scale):
                    placed = replace(line, corners=line.corners + np.array([part.left, part.top]))
                    score = self._lines.score(image, placed)
                    if score >= self._settings.score_min:
                        found.append((score, placed))
        except NetworkFailed as error:
            raise networks.failed(
                error, detector="text", picture=source.name, width=width, height=height
            ) from error
        surest = sorted(found, key=lambda one: -one[0])[:MOST]
        regions = [region_of(line.corners, "text", "text", width, height, score) for score, line in surest]
        return merged([region for region in regions if region is not None], of_one_block)


def _views(height: int, width: int, long_px: int) -> Iterator[tuple[Box, float]]:
    """The parts of a picture that are looked at, each with the scale at which."""
    first = min(max(SHORT_PX / min(height, width), 1), LONG_PX / max(height, width))
    yield Box(0, 0, width, height), first
    closer = min(long_px / max(height, width), ENLARGED)
    if closer >= FINER * first:
        side, overlap = round(LONG_PX / closer), round(OVERLAP_PX / closer)
        for top in _starts(height, side, overlap):
            for left in _starts(width, side, overlap):
                yield Box(left, top, min(left + side, width), min(top + side, height)), closer


def _starts(length: int, side: int, overlap: int) -> list[int]:
    """Where parts of a side begin that cover it evenly, each sharing at least `overlap` with the next."""
    count = max(-(-(length - overlap) // (side - overlap)), 1)
    return [round(place) for place in np.linspace(0, max(length - side, 0), count)]
