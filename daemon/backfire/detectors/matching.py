"""Finds instances of a logo in a picture by matching features.

The SIFT features (Lowe 2004) of the logo are matched with those of the picture, and RANSAC finds the
homography that says where the logo lies, also turned, scaled or tilted. That part of the picture is then
straightened and compared with the logo, and dropped if the two do not correlate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from backfire.detectors.networks import Floats
from backfire.detectors.shapes import Points

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
class Logo:
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


def features_of(grey: NDArray[np.uint8], most: int) -> tuple[Points, Floats]:
    """Positions N,2 and descriptors N,128; RootSIFT (Arandjelović, Zisserman 2012)."""
    keys, features = cv2.SIFT_create(nfeatures=most, contrastThreshold=0.015).detectAndCompute(grey, None)
    if features is None:
        return np.empty((0, 2)), np.empty((0, 128), np.float32)
    features = np.sqrt(features / np.maximum(features.sum(axis=1, keepdims=True), 1e-6))
    return np.array([key.pt for key in keys], dtype=np.float64), features.astype(np.float32)


def instances(
    logo: Logo, picture: NDArray[np.uint8], points: Points, features: Floats
) -> Iterator[tuple[Points, float]]:
    """Every instance of the logo: its corners 4,2 in the picture, and its correlation with the logo.

    Args:
        logo: what is looked for.
        picture: H,W grey.
        points, features: N,2 and N,128, those of the picture; see `features_of`.
    """
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


def _placed(logo: Logo, at_logo: Points, at_picture: Points) -> tuple[Any, Any]:
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


def _matched(logo: Logo, features: Floats) -> NDArray[np.int64]:
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


def _likeness(logo: Logo, picture: NDArray[np.uint8], matrix: NDArray[np.float64]) -> float:
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
