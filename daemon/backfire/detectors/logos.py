"""The detector `logos`: your own logos and watermarks, found by matching features without training.

The SIFT features (Lowe 2004) of each logo file are matched with those of the picture, and RANSAC finds the
homography that says where the logo lies, also turned, scaled or tilted. That part of the picture is then
straightened and compared with the logo, and dropped if the two do not correlate. This needs OpenCV
(`backfire[logos]`, the headless build without libGL).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from backfire.config import Logos
from backfire.detectors import Source
from backfire.detectors.networks import Floats
from backfire.detectors.scaling import halved
from backfire.detectors.shapes import Points, region_of
from backfire.errors import Code, InputError, ModelError
from backfire.imaging import decode
from backfire.types import Box, Region, Rgb

KINDS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"})
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

RATIO = 0.8
"""Lowe's ratio test: the distance of a match over that of the second best must be below this."""

RIVALS, SAME_SPOT = 10, 0.04
"""How many neighbours are searched for the second best match, and within what share of the logo's long side a
neighbour counts as the same spot and not as a rival."""

AGREE_PX, AGREE_MIN = 4.0, 7
"""How far a feature may lie from where the homography puts it, in pixels, and how many features must
agree."""

INSTANCES, TRIES = 8, 12
"""The most instances of one logo in a picture, and the most homographies that are tried for them."""

SIDE_MIN = 14.0
"""The shortest side of a logo, in pixels, that is accepted."""

TILT_MAX = 4.0
"""How many times longer one side may be than another, measured against the logo's own proportions."""

LIKE_MIN = {"logo": 0.5, "watermark": 0.3}
"""The least correlation of the straightened part of the picture with the logo; lower for faint watermarks."""

COMPARED_PX = 64
"""The long side, in pixels, at which the two are compared, since small logos have lost their details."""


@dataclass(frozen=True, eq=False)
class _Logo:
    """One logo file.

    Attributes:
        name: the file's name without its suffix.
        kind: `logo` or `watermark`.
        grey: H,W float32 in 0..255, meaningful where opaque.
        alpha: H,W float32 in [0,1].
        points: N,2 positions x, y of its features, in its own pixels.
        features: N,128 descriptors.
    """

    name: str
    kind: str
    grey: Floats
    alpha: Floats
    points: Points
    features: Floats

    @property
    def corners(self) -> Points:
        height, width = self.grey.shape
        return np.array([[0, 0], [width, 0], [width, height], [0, height]], dtype=np.float64)


class LogoDetector:
    """Finds the logos of the configured folders, which are read again when they change.

    Raises:
        ModelError: `Code.DETECTOR`, a folder cannot be read or holds no picture, or a logo has too few
            features.
    """

    def __init__(self, settings: Logos) -> None:
        self._folders = {"logo": settings.folder, "watermark": settings.watermarks}
        self._seen: object = None
        self._logos: list[_Logo] = []
        self._refresh()

    def detect(self, image: Rgb, *, source: Source) -> list[Region]:
        """One region per instance, labelled `logo NAME` or `watermark NAME`; see `Detector.detect`.

        The score is the correlation with the logo file.

        Raises:
            ModelError: as for the class, since the folders may have changed meanwhile.
        """
        self._refresh()
        height, width = image.shape[:2]
        seen = image
        while max(seen.shape[:2]) > PICTURE_PX[1]:
            seen = halved(seen)
        grey = cv2.cvtColor(np.ascontiguousarray(seen), cv2.COLOR_RGB2GRAY)
        zoom = 2 if max(grey.shape) < PICTURE_PX[0] else 1
        large = cv2.resize(grey, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
        points, features = _features(large, FEATURES)
        scale = zoom * seen.shape[1] / width
        found = []
        for logo in self._logos:
            for corners, score in _instances(logo, large, points, features):
                region = region_of(corners / scale, f"{logo.kind} {logo.name}", "logos", width, height, score)
                if region is not None:
                    found.append(region)
        return sorted(found, key=lambda region: -region.score)

    def _refresh(self) -> None:
        files = [
            (kind, path)
            for kind, folder in self._folders.items()
            if folder is not None
            for path in _files(folder)
        ]
        seen = [(kind, path, path.stat().st_mtime_ns, path.stat().st_size) for kind, path in files]
        if seen != self._seen:
            self._logos = [_loaded(path, kind) for kind, path in files]
            self._seen = seen


def _files(folder: Path) -> list[Path]:
    remedy = "put your logos there, or take 'logos' out of regions.detectors"
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in KINDS and path.is_file())
    except OSError as error:
        message = f"detector logos: folder {folder} cannot be read ({error.strerror}); {remedy}"
        raise ModelError(Code.DETECTOR, message, retryable=False) from error
    if not paths:
        message = f"detector logos: folder {folder} holds no PNG, JPEG, WebP or TIFF; {remedy}"
        raise ModelError(Code.DETECTOR, message, retryable=False)
    return paths


def _loaded(path: Path, kind: str) -> _Logo:
    try:
        picture = decode(path.read_bytes(), name=str(path), max_pixels=MOST_PIXELS)
    except (InputError, OSError) as error:
        message = f"detector logos: {error}; replace the file or move it away"
        raise ModelError(Code.DETECTOR, message, retryable=False) from error
    rgb = picture.rgb
    alpha = np.ones(rgb.shape[:2], np.float32) if picture.alpha is None else picture.alpha / np.float32(255)
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
    return _Logo(path.stem, kind, grey, alpha, points, np.concatenate([one[1] for one in known]))


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
    points, features = _features(np.clip(shown, 0, 255).astype(np.uint8), 2000)
    return (points - rim) * (np.array(grey.shape[::-1]) / size), features


def _features(grey: NDArray[np.uint8], most: int) -> tuple[Points, Floats]:
    """Positions N,2 and descriptors N,128; RootSIFT (Arandjelović, Zisserman 2012)."""
    keys, features = cv2.SIFT_create(nfeatures=most, contrastThreshold=0.015).detectAndCompute(grey, None)
    if features is None:
        return np.empty((0, 2)), np.empty((0, 128), np.float32)
    features = np.sqrt(features / np.maximum(features.sum(axis=1, keepdims=True), 1e-6))
    return np.array([key.pt for key in keys], dtype=np.float64), features.astype(np.float32)


def _instances(
    logo: _Logo, picture: NDArray[np.uint8], points: Points, features: Floats
) -> Iterator[tuple[Points, float]]:
    """The corners 4,2 of every instance of the logo, and its correlation."""
    if len(points) < AGREE_MIN:
        return
    left = _matched(logo, features)
    count = 0
    for _ in range(TRIES):
        if len(left) < AGREE_MIN or count == INSTANCES:
            return
        at_logo, at_picture = logo.points[left[:, 1]], points[left[:, 0]]
        matrix, agree = _placed(logo, at_logo, at_picture)
        if matrix is None or agree.sum() < AGREE_MIN:
            return
        corners = _projected(logo.corners, matrix)
        inside = agree[:, 0].astype(bool)
        if _plausible(corners, logo.corners):
            likeness = _likeness(logo, picture, matrix)
            if likeness >= LIKE_MIN[logo.kind]:
                count += 1
                yield corners, min(likeness, 1.0)
                inside |= _inside(corners, at_picture)
        left = left[~inside]


def _placed(logo: _Logo, at_logo: Points, at_picture: Points) -> tuple[Any, Any]:
    """The matrix on which most matches agree, and N,1 which of them do; None if none do.

    A homography has eight degrees of freedom and so fits chance matches in a busy picture. If it puts the
    logo into an impossible shape, a similarity with four degrees of freedom is tried instead.
    """
    matrix, agree = cv2.findHomography(at_logo, at_picture, cv2.USAC_MAGSAC, AGREE_PX, None, 10_000, 0.999)
    if matrix is not None and _plausible(_projected(logo.corners, matrix), logo.corners):
        return matrix, agree
    level, agree_level = cv2.estimateAffinePartial2D(
        at_logo, at_picture, method=cv2.RANSAC, ransacReprojThreshold=2 * AGREE_PX, maxIters=10_000
    )
    if level is None or agree_level.sum() < AGREE_MIN:
        return matrix, agree
    return np.vstack([level, [0, 0, 1]]), agree_level


def _matched(logo: _Logo, features: Floats) -> NDArray[np.int64]:
    """Index pairs M,2 of the picture's features and the logo's that match by Lowe's ratio test.

    The logo's features were computed at several sizes, so a neighbour on the same spot is not a second best.
    """
    count = min(RIVALS, len(logo.features))
    found = cv2.BFMatcher(cv2.NORM_L2).knnMatch(features, logo.features, k=count)
    index = np.array([[match.trainIdx for match in row] for row in found])
    distance = np.array([[match.distance for match in row] for row in found])
    away = logo.points[index] - logo.points[index[:, :1]]
    elsewhere = np.hypot(away[..., 0], away[..., 1]) > SAME_SPOT * max(logo.grey.shape)
    rival = np.where(elsewhere, distance, np.inf).min(axis=1)
    # If all neighbours are on the same spot, a rival is at least as far as the farthest of them.
    rival = np.where(np.isinf(rival), distance[:, -1], rival)
    sure = np.flatnonzero(distance[:, 0] < RATIO * rival)
    return np.stack([sure, index[sure, 0]], axis=1)


def _projected(points: Points, matrix: NDArray[np.float64]) -> Points:
    """Positions N,2 in the logo as positions N,2 in the picture."""
    homogeneous = np.concatenate([points, np.ones((len(points), 1))], axis=1) @ matrix.T
    with np.errstate(divide="ignore", invalid="ignore"):
        projected: Points = homogeneous[:, :2] / homogeneous[:, 2:]
    return projected


def _plausible(corners: Points, flat: Points) -> bool:
    """Whether a logo seen by a camera could have these corners: convex, not mirrored, not too tilted."""
    if not np.isfinite(corners).all() or np.abs(corners).max() > 1e5:
        return False
    sides = np.roll(corners, -1, axis=0) - corners
    following = np.roll(sides, -1, axis=0)
    turns = sides[:, 0] * following[:, 1] - sides[:, 1] * following[:, 0]
    lengths = np.hypot(*sides.T)
    stretch = lengths / np.hypot(*(np.roll(flat, -1, axis=0) - flat).T)
    return bool((turns > 0).all() and lengths.min() >= SIDE_MIN and stretch.max() / stretch.min() <= TILT_MAX)


def _likeness(logo: _Logo, picture: NDArray[np.uint8], matrix: NDArray[np.float64]) -> float:
    """The correlation, in [-1,1], of the fine detail of the logo and of the straightened picture."""
    scale = min(COMPARED_PX / max(logo.grey.shape), 1.0)
    rim = COMPARED_PX // 8
    width, height = (max(round(side * scale), 8) for side in logo.grey.shape[::-1])
    small = np.array([[scale, 0, rim], [0, scale, rim], [0, 0, 1]])
    size = width + 2 * rim, height + 2 * rim
    # A logo that is large in the picture is straightened at a larger size and averaged, against aliasing.
    diagonal = np.hypot(*np.diff(_projected(logo.corners[::2], matrix), axis=0)[0])
    zoom = int(np.clip(diagonal / np.hypot(width, height), 1, 8))
    fine = np.diag([zoom, zoom, 1.0]) @ small @ np.linalg.inv(matrix)
    seen = cv2.warpPerspective(
        picture, fine, (size[0] * zoom, size[1] * zoom), borderMode=cv2.BORDER_REPLICATE
    )
    seen = cv2.resize(seen, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    alpha = cv2.warpPerspective(
        _shrunk(logo.alpha, scale), np.array([[1, 0, rim], [0, 1, rim], [0, 0, 1.0]]), size
    )
    grey = cv2.warpPerspective(
        _shrunk(logo.grey, scale), np.array([[1, 0, rim], [0, 1, rim], [0, 0, 1.0]]), size
    )
    clear = alpha < 0.1
    ground = float(np.median(seen[clear])) if clear.any() else float(np.median(seen))
    expected = grey * alpha + ground * (1 - alpha)
    near = ndimage.maximum_filter(alpha, size=rim) > 0.1
    return _correlation(_fine(expected)[near], _fine(seen)[near])


def _shrunk(plane: Floats, scale: float) -> Floats:
    """A plane at the size at which the two are compared."""
    size = max(round(plane.shape[1] * scale), 8), max(round(plane.shape[0] * scale), 8)
    shrunk: Floats = cv2.resize(plane, size, interpolation=cv2.INTER_AREA)
    return shrunk


def _fine(plane: Floats) -> Floats:
    """A plane without its low frequencies: shading, and the picture behind a watermark."""
    fine: Floats = plane - ndimage.gaussian_filter(plane, COMPARED_PX / 6)
    return fine


def _correlation(a: Floats, b: Floats) -> float:
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / norm if norm > 1e-6 else 0.0


def _inside(corners: Points, points: Points) -> NDArray[np.bool_]:
    """Which of the points N,2 lie inside a convex outline whose corners run clockwise."""
    edges = np.roll(corners, -1, axis=0) - corners
    offsets = points[:, None] - corners[None]
    right_of = edges[:, 0] * offsets[..., 1] - edges[:, 1] * offsets[..., 0] >= 0
    return np.asarray(right_of.all(axis=1))
