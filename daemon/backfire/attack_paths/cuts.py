"""How a region reaches an editor: cuts and sizes of the picture, and how a crop's change lies in them.

Nobody knows how an attacker's tool will cut. A change optimised for one crop alone is tuned to
that crop's place on the editor's grid of 8 pixels and to its size, and breaks little else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from backfire.attack_paths import geometry
from backfire.attack_paths.geometry import Crop
from backfire.types import Box, EditPath, Region

SHIFTED = 3
"""Cuts drawn with other margins than the crop's."""
MARGIN = 128
"""What the commonest tool leaves around a region (IOPaint), in pixels of the picture as it got it."""
SCALES = ((0.5, 0.5), (0.55, 0.9), (1.1, 1.5))
"""Ranges from which the sizes are drawn that somebody may give the picture before."""
LARGEST = 768
"""No picture that was scaled up is given to an editor larger than this."""


def cuts(
    region: Region,
    crop: Crop,
    everything: Sequence[Region],
    height: int,
    width: int,
    robust_to: Sequence[str],
    rng: np.random.Generator,
) -> list[list[Crop]]:
    """Other cuts and sizes in which a region of a crop may reach an editor, each with that one region.

    Args:
        everything: all regions of the picture; benign edits keep away from them.
        height, width: of the picture.
        robust_to: `paths` for cuts with margins of 64 to 200 px and the whole picture at 512 px,
            `resize` for 128 px around the region in the picture at 0.5 to 1.5 of its size.

    Returns:
        Those at the crop's own scale, then those at another; groups without any are left out.
    """
    moved: dict[Box, Crop] = {}
    scaled: dict[tuple[Box, tuple[int, int]], Crop] = {}
    for _ in range(SHIFTED if "paths" in robust_to else 0):
        found = geometry.other_paths(region, crop, height, width, rng)
        if shifted := found.get(EditPath.SHIFTED):
            moved[shifted.box] = shifted
        if whole := found.get(EditPath.RESIZED):
            scaled[whole.box, whole.size] = whole
    for low, high in SCALES if "resize" in robust_to else ():
        scale = float(rng.uniform(low, high))
        box = region.box.grown(round(MARGIN / scale), width, height)
        down, across = crop.size[0] / crop.box.height, crop.size[1] / crop.box.width
        size = max(round(box.height * scale * down), 8), max(round(box.width * scale * across), 8)
        if scale < 1 or max(size) <= LARGEST:
            scaled[box, size] = Crop(box, (region,), size)
    others = tuple(one for one in everything if one is not region)
    groups = [[replace(cut, neighbours=others) for cut in group.values()] for group in (moved, scaled)]
    return [group for group in groups if group]


def resampling(start: float, stop: float, count: int, length: int) -> NDArray[np.float32]:
    """How `count` pixels that share the stretch [start, stop) of an axis weigh the `length` pixels on it.

    Returns:
        count, length: bilinear, over as many pixels as one covers where it is scaled down. Pixels
        beyond the axis count as zero, so that a change fades out where its crop ends.
    """
    step = (stop - start) / count
    reach = max(step, 1.0)
    beyond = 2 * int(np.ceil(reach))
    centres = start + step * (np.arange(count) + 0.5)
    axis = np.arange(-beyond, length + beyond) + 0.5
    weights = np.maximum(1 - np.abs(axis - centres[:, None]) / reach, 0)
    # A centre far outside weighs nothing at all.
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)
    kept: NDArray[np.float32] = weights[:, beyond : beyond + length].astype(np.float32)
    return kept


def placed(crop: Crop, other: Crop) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(rows, columns) with which a crop's change lies in another cut: rows @ change @ columns.T."""
    down, across = crop.size[0] / crop.box.height, crop.size[1] / crop.box.width
    rows = resampling(
        (other.box.top - crop.box.top) * down,
        (other.box.bottom - crop.box.top) * down,
        other.size[0],
        crop.size[0],
    )
    columns = resampling(
        (other.box.left - crop.box.left) * across,
        (other.box.right - crop.box.left) * across,
        other.size[1],
        crop.size[1],
    )
    return rows, columns
