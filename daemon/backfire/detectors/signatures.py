"""The detector `signatures`: artists' marks, written or printed, in the corners of a picture."""

from __future__ import annotations

from itertools import product

import numpy as np

from backfire.config import Text
from backfire.detectors import Source, networks
from backfire.detectors.lettering import Line, Lines, of_one_block
from backfire.detectors.shapes import merged, region_of
from backfire.detectors.text import LONG_PX
from backfire.types import Region, Rgb

CORNER = (0.4, 0.25)
"""The size of the corners that are searched, in shares of the picture's width and height."""

CORNER_PX = 384
"""The height to which a corner is scaled, so that small marks are found that the whole picture would hide."""

MARK_MIN = 0.92
"""The finder's likelihood from which a mark needs no recognised letter. Real handwriting pasted into corners
nearly always reached it, drawn scrawls mostly, and of 124 empty corners only three, by objects that filled
them."""

MARK_TALL, FLAT = 1.1, 0.4
"""The greatest height of a mark in heights of the corner, and that of one that counts by its letters."""


class SignatureDetector:
    """Finds signatures, marks and credit lines, written or printed, that stand in a corner.

    It does not tell these kinds apart, because their place is all that it goes by. Handwriting elsewhere is
    found by `text`, other marks by `logos`; anything else needs a mask.
    """

    def __init__(self, settings: Text = Text()) -> None:  # noqa: B008 (frozen)
        self._settings, self._lines = settings, Lines("signatures")

    def detect(self, image: Rgb, *, source: Source) -> list[Region]:
        """At most one region per block of lines in each corner; see `Detector.detect`.

        Raises:
            ModelError: `Code.DETECTOR`, a network failed on this picture.
        """
        height, width = image.shape[:2]
        rows, columns = max(round(height * CORNER[1]), 1), max(round(width * CORNER[0]), 1)
        scale = min(CORNER_PX / rows, LONG_PX / columns)
        marks = []
        with networks.reported("signatures", source.name, image):
            for left, top in product((0, width - columns), (0, height - rows)):
                corner = image[top : top + rows, left : left + columns]
                for line in self._lines.candidates(corner, scale):
                    if self._is_mark(corner, line):
                        outline = line.corners + np.array([left, top])
                        marks.append(region_of(outline, "signature", "signatures", width, height, line.found))
        return merged([mark for mark in marks if mark is not None], of_one_block)

    def _is_mark(self, corner: Rgb, line: Line) -> bool:
        tall = float(line.height / corner.shape[0])
        if line.found >= MARK_MIN:
            return tall <= MARK_TALL
        return tall <= FLAT and self._lines.score(corner, line) >= self._settings.score_min
