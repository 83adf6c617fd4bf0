"""The detector `logos`: your own logos and watermarks, found by matching features without training.

This needs OpenCV (`backfire[logos]`, the headless build without libGL).
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import structlog

from backfire.config import Logos
from backfire.detectors import Source, logo_files
from backfire.detectors.matching import AGREE_MIN, Logo, features_of, instances
from backfire.detectors.networks import Floats
from backfire.detectors.scaling import halved
from backfire.detectors.shapes import Points, region_of
from backfire.errors import Code, InputError, ModelError
from backfire.imaging import colour, decode
from backfire.types import Box, Region, Rgb

log = structlog.get_logger()

MOST_PIXELS = 16_000_000
"""The most pixels of a logo file."""

SIZES = (400, 160, 72)
"""The long sides, in pixels, at which a logo's features are computed, because features depend on the
scale."""

PICTURE_PX = (1000, 2600)
"""A picture is doubled in size if its long side is below the first, and halved while it is above the
second."""

FEATURES = 20_000
"""The most features of a picture."""


class LogoDetector:
    """Finds the logos of the configured folders, which are read again when they change.

    Where that fails, as while a logo is being copied, the logos that were read before are looked for, the log
    says why, and they are read when the folders change again.

    Raises:
        ModelError: `Code.DETECTOR`, a folder cannot be read or holds no picture, or a logo has too few
            features.
    """

    def __init__(self, settings: Logos) -> None:
        self._folders = {"logo": settings.folder, "watermark": settings.watermarks}
        self._seen: object = None
        self._refused: object = None
        self._logos: list[Logo] = []
        self._refresh()

    def detect(self, image: Rgb, *, source: Source) -> list[Region]:
        """One region per instance, labelled `logo NAME` or `watermark NAME`; see `Detector.detect`.

        The score is the correlation with the logo file.
        """
        try:
            self._refresh()
        except ModelError as error:
            log.warning("logos_not_read", error=error.message)
        height, width = image.shape[:2]
        seen = image
        while max(seen.shape[:2]) > PICTURE_PX[1]:
            seen = halved(seen)
        grey = cv2.cvtColor(np.ascontiguousarray(seen), cv2.COLOR_RGB2GRAY)
        zoom = 2 if max(grey.shape) < PICTURE_PX[0] else 1
        large = cv2.resize(grey, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
        points, features = features_of(large, FEATURES)
        scale = zoom * seen.shape[1] / width
        found = []
        for logo in self._logos:
            for corners, score in instances(logo, large, points, features):
                region = region_of(corners / scale, f"{logo.kind} {logo.name}", "logos", width, height, score)
                if region is not None:
                    found.append(region)
        return sorted(found, key=lambda region: -region.score)

    def _refresh(self) -> None:
        files = [
            (kind, *file)
            for kind, folder in self._folders.items()
            if folder is not None
            for file in _files(folder)
        ]
        if files not in (self._seen, self._refused):
            self._refused = files
            self._logos = [_loaded(path, kind) for kind, path, *_ in files]
            self._seen, self._refused = files, None


def _files(folder: Path) -> list[tuple[Path, int, int]]:
    """The logo files of a folder, each with the time of its last change and its size."""
    remedy = "put your logos there, or take 'logos' out of regions.detectors"
    try:
        files = [(path, path.stat().st_mtime_ns, path.stat().st_size) for path in logo_files(folder)]
    except OSError as error:
        message = f"detector logos: folder {folder} cannot be read ({error.strerror}); {remedy}"
        raise ModelError(Code.DETECTOR, message, retryable=False) from error
    if not files:
        message = f"detector logos: folder {folder} holds no PNG, JPEG, WebP or TIFF; {remedy}"
        raise ModelError(Code.DETECTOR, message, retryable=False)
    return files


def _loaded(path: Path, kind: str) -> Logo:
    try:
        picture = decode(path.read_bytes(), name=str(path), max_pixels=MOST_PIXELS)
    except (InputError, OSError) as error:
        message = f"detector logos: {error}; replace the file or move it away"
        raise ModelError(Code.DETECTOR, message, retryable=False) from error
    rgb = picture.rgb
    alpha: Floats = np.ones(rgb.shape[:2], np.float32)
    if picture.alpha is not None:
        alpha = colour.eight(picture.alpha).astype(np.float32) / np.float32(255)
    if not (alpha > 0.5).any():
        alpha = alpha / max(float(alpha.max()), 1 / 255)  # the watermark file itself is faint
    tight = Box.around(alpha > 0.05) if alpha.any() else Box(0, 0, rgb.shape[1], rgb.shape[0])
    rgb, alpha = rgb[tight.slices], np.ascontiguousarray(alpha[tight.slices], dtype=np.float32)
    grey = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY).astype(np.float32)
    known = [_features_at(grey, alpha, side, ground) for side in SIZES for ground in _grounds(alpha)]
    points = np.concatenate([one[0] for one in known])
    if len(points) < AGREE_MIN:
        message = (
            f"detector logos: {path} has {len(points)} features, expected {AGREE_MIN} or more; a plain "
            "shape cannot be told from others; use a larger or richer version, or a mask"
        )
        raise ModelError(Code.DETECTOR, message, retryable=False)
    return Logo(path.stem, kind, grey, alpha, points, np.concatenate([one[1] for one in known]))


def _grounds(alpha: Floats) -> tuple[float, ...]:
    """The greys on which a logo's features are computed: several if it is transparent anywhere."""
    return (255.0, 0.0, 128.0) if (alpha < 0.95).any() else (128.0,)


def _features_at(grey: Floats, alpha: Floats, side: int, ground: float) -> tuple[Points, Floats]:
    """The features of a logo at one size on one grey; positions in the logo's own pixels."""
    scale = min(side / max(grey.shape), 4.0)
    size = max(round(grey.shape[1] * scale), 8), max(round(grey.shape[0] * scale), 8)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    rim = 16  # a border, because the logo's outline gives features too
    shown = cv2.resize(grey * alpha + ground * (1 - alpha), size, interpolation=method)
    shown = cv2.copyMakeBorder(shown, rim, rim, rim, rim, cv2.BORDER_CONSTANT, value=ground)
    points, features = features_of(np.clip(shown, 0, 255).astype(np.uint8), 2000)
    return (points - rim) * (np.array(grey.shape[::-1]) / size), features
