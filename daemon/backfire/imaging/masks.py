"""Operations on masks: bool planes H,W with True = repainted or protected.

Which paint of a mask file is protected is decided in `detectors.sidecar`.
"""

from __future__ import annotations

import numpy as np
import scipy  # it loads `ndimage`, which takes longest, when that is first used

from backfire.types import Box, Mask

DILATION = 17
"""The kernel that dilates a trigger by 8 pixels on each side, as in the published baseline."""
UNEVEN = 0.4
"""The share of a mask's depth by which `uneven` moves its contour at most."""
FADE = 16
"""The pixels over which the budget falls to zero at the edge of its area."""
FAR = 32
"""The distance in pixels from which a benign edit counts as far."""


def dilated(mask: Mask, kernel: int = DILATION) -> Mask:
    """The mask grown by half a square kernel on each side."""
    grown: Mask = scipy.ndimage.maximum_filter(mask, size=kernel)
    return grown


def ring(mask: Mask, kernel: int = DILATION) -> Mask:
    """What `dilated` adds to the mask: the benign edit that is nearest to it."""
    return dilated(mask, kernel) & ~mask


def half(mask: Mask, angle: float) -> Mask:
    """The half of the mask on one side of a line through its centre, at an angle in radians."""
    rows, columns = np.nonzero(mask)
    if rows.size < 2:
        return mask.copy()
    side = (rows - rows.mean()) * np.sin(angle) + (columns - columns.mean()) * np.cos(angle)
    keep = side >= np.median(side)
    plane = np.zeros_like(mask)
    plane[rows[keep], columns[keep]] = True
    return plane


def eroded(mask: Mask, kernel: int = DILATION) -> Mask:
    """The mask shrunk by half a square kernel on each side, or unchanged if nothing would be left."""
    shrunk: Mask = scipy.ndimage.minimum_filter(mask, size=kernel)
    return shrunk if shrunk.any() else mask.copy()


def drawn_in(mask: Mask, rng: np.random.Generator, share: float = 0.5) -> Mask:
    """The mask with an uneven contour, moved inwards by up to `share` of its depth; never empty."""
    inside = scipy.ndimage.distance_transform_edt(mask)
    depth = float(inside.max())
    # A smooth random field moves the contour; its wavelength is about the depth of the region.
    field = scipy.ndimage.gaussian_filter(rng.standard_normal(mask.shape), max(depth / 2, 1.0), mode="wrap")
    ranks = (field - field.min()) / max(float(np.ptp(field)), 1e-12)
    kept: Mask = mask & (inside >= np.minimum(share * depth * ranks + 0.5, depth))
    return kept


def uneven(mask: Mask, rng: np.random.Generator, share: float = UNEVEN) -> Mask:
    """The mask as somebody paints it over again: its contour moved in and out by turns.

    Args:
        share: of the mask's depth, by which the contour moves at most.
    """
    inside = scipy.ndimage.distance_transform_edt(mask)
    outside = scipy.ndimage.distance_transform_edt(~mask) if not mask.all() else np.zeros(mask.shape)
    depth = float(inside.max())
    field = scipy.ndimage.gaussian_filter(rng.standard_normal(mask.shape), max(depth / 2, 1.0), mode="wrap")
    field -= np.median(field[mask & (inside <= 1)])
    field /= max(float(np.abs(field[mask & (inside <= 1)]).max()), 1e-12)
    moved: Mask = inside - outside > share * depth * np.clip(field, -1, 1)
    return moved if moved.any() else mask.copy()


def shifted(mask: Mask, down: int, right: int) -> Mask:
    """The mask moved by whole pixels; what leaves the plane is cut off."""
    moved: Mask = scipy.ndimage.shift(mask, (down, right), order=0, cval=0, prefilter=False)
    return moved if moved.any() else mask.copy()


def covering(mask: Mask, share: float) -> Mask:
    """The mask grown or shrunk evenly until it has about `share` times its area.

    It is changed by the distance from its edge, so that its shape is roughly kept.
    """
    wanted = max(1, round(share * int(mask.sum())))
    inside = scipy.ndimage.distance_transform_edt(mask)
    outside = scipy.ndimage.distance_transform_edt(~mask) if mask.any() else np.zeros(mask.shape)
    depth = (inside - outside).ravel()
    plane = np.zeros(mask.size, dtype=np.bool_)
    plane[np.argsort(-depth, kind="stable")[:wanted]] = True
    return plane.reshape(mask.shape)


def stroke(mask: Mask, rng: np.random.Generator) -> Mask:
    """A random brush stroke through the region that begins and ends outside of its bounding box."""
    rows, columns = np.nonzero(mask)
    pick = int(rng.integers(rows.size))
    angle = float(rng.uniform(0, np.pi))
    box = Box.around(mask)
    width = max(4.0, 0.35 * min(box.width, box.height))
    down, right = np.ogrid[: mask.shape[0], : mask.shape[1]]
    across = np.abs((down - rows[pick]) * np.cos(angle) - (right - columns[pick]) * np.sin(angle))
    plane: Mask = (across <= width / 2) & dilated(bounding(mask))
    return plane


def bounding(mask: Mask) -> Mask:
    """The filled bounding box of the mask."""
    plane = np.zeros_like(mask)
    plane[Box.around(mask).slices] = True
    return plane


def far(protected: Mask, rng: np.random.Generator, distance: int = FAR) -> Mask | None:
    """A random square at least `distance` pixels from everything protected, for a benign edit.

    It is at most a quarter of the plane wide. None if there is no room for a square 16 pixels wide.
    """
    height, width = protected.shape
    blocked = np.pad(dilated(protected, 2 * distance + 1), 1, constant_values=True)
    room = scipy.ndimage.distance_transform_cdt(~blocked, metric="chessboard")[1:-1, 1:-1]
    reach = int(room.max())
    if reach < 8:
        return None
    wanted = min(reach, max(8, min(height, width) // 8))
    places = np.flatnonzero(room >= wanted)
    row, column = divmod(int(places[int(rng.integers(places.size))]), width)
    plane = np.zeros_like(protected)
    plane[row - wanted + 1 : row + wanted, column - wanted + 1 : column + wanted] = True
    return plane


def within(mask: Mask, reach: int, edge: int = FADE) -> np.ndarray:
    """The share of the budget that each pixel may use: all of it near the mask, falling to none.

    Args:
        mask: a mask with at least one pixel.
        reach: pixels from the mask up to which the whole budget may be used.
        edge: pixels beyond `reach` over which the share falls to 0.

    Returns:
        H,W float32 in [0,1].
    """
    beyond = scipy.ndimage.distance_transform_edt(~mask).astype(np.float32) - reach
    near: np.ndarray = np.clip(1 - beyond / edge, 0, 1)
    return near
