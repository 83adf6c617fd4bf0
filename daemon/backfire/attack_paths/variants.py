"""Variants of a crop: the region in the picture at other sizes, since somebody may resize it before editing.

Which part of a picture a tool hands over, and at which size, is a matter of attack paths; these are what
`protect.robust_to: [resize]` optimises through besides.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from backfire.attack_paths.cropping import Crop
from backfire.types import Box, Region

MARGIN = 128
"""What the commonest tool (IOPaint) leaves around a region, in pixels of the picture that it was given."""
SCALES = ((0.5, 0.5), (0.55, 0.9), (1.1, 1.5))
"""Ranges of the scales at which somebody may resize the picture before editing it."""
LARGEST = 768
"""Variants that are scaled up are left out where their long side would be larger than this."""


def for_optimiser(
    region: Region,
    crop: Crop,
    everything: Sequence[Region],
    height: int,
    width: int,
    robust_to: Sequence[str],
    rng: np.random.Generator,
) -> list[Crop]:
    """Variants of a crop for one of its regions, that the optimiser takes into account.

    Args:
        everything: all regions of the picture; benign edits keep away from them.
        height, width: of the picture.
        robust_to: with `resize`, 128 px around the region in the picture at 0.5 to 1.5 of its size.

    Returns:
        Each once.
    """
    scaled: dict[tuple[Box, tuple[int, int]], Crop] = {}
    others = tuple(one for one in everything if one is not region)
    for low, high in SCALES if "resize" in robust_to else ():
        scale = float(rng.uniform(low, high))
        box = region.box.grown(round(MARGIN / scale), width, height)
        down, across = crop.size[0] / crop.box.height, crop.size[1] / crop.box.width
        size = max(round(box.height * scale * down), 8), max(round(box.width * scale * across), 8)
        if scale < 1 or max(size) <= LARGEST:
            scaled[box, size] = Crop(box, (region,), size, others)
    return [*scaled.values()]


def surroundings(region: Region, crop: Crop, everything: Sequence[Region], height: int, width: int) -> Crop:
    """The part of the picture of which somebody gets a region with its margin after halving the picture.

    At the scale at which the crop is worked; the arguments are those of `for_optimiser`.
    """
    box = region.box.grown(2 * MARGIN, width, height)
    down, across = crop.size[0] / crop.box.height, crop.size[1] / crop.box.width
    size = max(round(box.height * down), 16), max(round(box.width * across), 16)
    return Crop(box, (region,), size, tuple(one for one in everything if one is not region))


def resampling(start: float, stop: float, count: int, length: int) -> NDArray[np.float32]:
    """Weights that resample an axis of `length` pixels to `count` pixels over its stretch [start, stop).

    Returns:
        count, length: bilinear, wider where the axis is scaled down. Pixels beyond the axis count as zero,
        so that a perturbation fades out where its crop ends.
    """
    step = (stop - start) / count
    reach = max(step, 1.0)
    beyond = 2 * int(np.ceil(reach))
    centres = start + step * (np.arange(count) + 0.5)
    axis = np.arange(-beyond, length + beyond) + 0.5
    weights = np.maximum(1 - np.abs(axis - centres[:, None]) / reach, 0)
    # A centre far outside the axis has no weights to normalise.
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)
    kept: NDArray[np.float32] = weights[:, beyond : beyond + length].astype(np.float32)
    return kept


def placement(crop: Crop, variant: Crop) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """How a crop's perturbation P lies in a variant: the matrices of rows @ P @ columns.T, h,H and w,W."""
    down, across = crop.size[0] / crop.box.height, crop.size[1] / crop.box.width
    rows = resampling(
        (variant.box.top - crop.box.top) * down,
        (variant.box.bottom - crop.box.top) * down,
        variant.size[0],
        crop.size[0],
    )
    columns = resampling(
        (variant.box.left - crop.box.left) * across,
        (variant.box.right - crop.box.left) * across,
        variant.size[1],
        crop.size[1],
    )
    return rows, columns
