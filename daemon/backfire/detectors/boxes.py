"""The contract for object detectors that are one network in a file.

Input: float32 1,3,S,S, RGB in [0,1]. The upright picture is scaled to fit and lies at the top left; the rest
is grey (114/255). Output: float32 1,N,6 or N,6, one row per box: left, top, right, bottom in pixels of the
input, score in [0,1], class. Ultralytics' exporter writes such networks with `nms=True`; rows below
`score_min` may follow as padding.
"""

from __future__ import annotations

import numpy as np

from backfire.config import Onnx
from backfire.detectors import Source, networks
from backfire.detectors.markup import SHARE_MOST
from backfire.detectors.networks import Floats, Network
from backfire.detectors.scaling import resized
from backfire.detectors.shapes import region_of
from backfire.errors import Code, ModelError
from backfire.types import Region, Rgb

GREY = 114 / 255
MOST = 300
"""The most boxes that are taken, by score."""
ROUNDED = 1e-3
"""By how much a score may exceed 1: networks that compute in half precision round so."""


class BoxDetector:
    """Runs a network on the picture and reads its boxes."""

    def __init__(self, name: str, look: Network, settings: Onnx) -> None:
        """`name` is the name of the detector in the configuration."""
        self._name, self._look, self._settings = name, look, settings

    def detect(self, image: Rgb, *, source: Source) -> list[Region]:
        """One region per box with a sufficient score, sorted by score; see `Detector.detect`.

        Raises:
            ModelError: `Code.DETECTOR`, the network failed on this picture or breaks the contract.
        """
        height, width = image.shape[:2]
        side = self._settings.size_px
        scale = side / max(height, width)
        with networks.reported(self._name, source.name, image):
            rows = self._rows(self._look(fitted(image, side, scale))[0], source.name)
        regions = []
        for left, top, right, bottom, score, kind in rows:
            corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]], dtype=np.float64)
            label = self._label(int(kind))
            region = region_of(corners / scale, label, self._name, width, height, float(score))
            if region is not None:
                regions.append(region)
        return regions

    def _rows(self, output: Floats, picture: str) -> Floats:
        """The rows with a sufficient score, sorted by score."""
        rows = output[0] if output.ndim == 3 and len(output) == 1 else output
        if rows.ndim != 2 or rows.shape[1] != 6:
            raise self._breach(f"an output of shape {list(output.shape)}", retryable=False)
        # Not `>=`, which would drop scores that are no numbers as if nothing had been found.
        rows = rows[~(rows[:, 4] < self._settings.score_min)]
        # What one picture makes it give says nothing of others, so its attempts count.
        if not np.isfinite(rows).all() or (rows[:, 4] > 1 + ROUNDED).any():
            raise self._breach(f"boxes that are not finite, or scores above 1, for {picture}", retryable=True)
        reach = rows[:, :4].max(initial=0)
        if 0 < reach <= SHARE_MOST:
            raise self._breach(f"coordinates between 0 and {reach:g} for {picture}", retryable=True)
        rows = rows[np.argsort(-rows[:, 4], kind="stable")][:MOST]
        rows[:, 4] = np.minimum(rows[:, 4], 1)
        return rows

    def _breach(self, what: str, *, retryable: bool) -> ModelError:
        message = (
            f"detector {self._name}: {self._settings.model} gives {what}, expected 1,N,6 (left, top, right, "
            "bottom in pixels of its input, score, class); export it with its own box selection (nms=True)"
        )
        return ModelError(Code.DETECTOR, message, retryable=retryable)

    def _label(self, kind: int) -> str:
        labels = self._settings.labels
        return labels[kind] if 0 <= kind < len(labels) else f"class {kind}"


def fitted(image: Rgb, side: int, scale: float) -> Floats:
    """H,W,3 uint8 -> 1,3,side,side float32."""
    height, width = (min(max(round(edge * scale), 1), side) for edge in image.shape[:2])
    canvas = np.full((side, side, 3), GREY, dtype=np.float32)
    canvas[:height, :width] = resized(image, height, width) / 255
    return np.ascontiguousarray(canvas.transpose(2, 0, 1)[None])
