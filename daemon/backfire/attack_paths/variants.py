"""Variants of a crop: other attack paths on which a region may reach an editor.

Nobody knows how an attacker's tool crops and resizes. A perturbation that is optimised for one crop alone is
tuned to that crop's place on the editor's grid of 8 pixels and to its size, and breaks few other edits. So
the optimiser takes variants into account (`protect.robust_to`), and the verdict replays trigger edits on
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from backfire.attack_paths.cropping import Crop, working_size
from backfire.types import Box, EditPath, Region

SHIFTS = (64, 200)
"""The least and the largest margin that a tool may leave around a region, in pixels."""
RESIZED, LEAST = 512, 16
"""The long side at which many editors take a picture, and the least side of a region that is edited in it."""
SHIFTED = 3
"""How many variants with other margins the optimiser draws."""
MARGIN = 128
"""What the commonest tool (IOPaint) leaves around a region, in pixels of the picture that it was given."""
SCALES = ((0.5, 0.5), (0.55, 0.9), (1.1, 1.5))
"""Ranges of the scales at which somebody may resize the picture before editing it."""
LARGEST = 768
"""Variants that are scaled up are left out where their long side would be larger than this."""


def for_replay(
    region: Region, crop: Crop, height: int, width: int, rng: np.random.Generator
) -> dict[EditPath, Crop]:
    """The other attack paths on which the verdict replays a region's trigger edit.

    * `shifted`: cropped with margins of 64 to 200 px, drawn for each side, at the crop's scale;
    * `resized`: the whole picture at a long side of 512 px at most, where the region is left at least 16 px
      wide and high: nobody edits less.

    A path that comes to the same as the crop itself is left out.

    Args:
        height, width: of the picture.
    """
    found: dict[EditPath, Crop] = {}
    left, top, right, bottom = rng.integers(SHIFTS[0], SHIFTS[1] + 1, size=4).tolist()
    box = Box(
        max(region.box.left - left, 0),
        max(region.box.top - top, 0),
        min(region.box.right + right, width),
        min(region.box.bottom + bottom, height),
    )
    down, across = crop.size[0] / crop.box.height, crop.size[1] / crop.box.width
    size = max(round(box.height * down), 8), max(round(box.width * across), 8)
    found[EditPath.SHIFTED] = Crop(box, (region,), size)
    whole, scale = Box(0, 0, width, height), min(RESIZED / max(height, width), 1)
    if min(region.box.height, region.box.width) * scale >= LEAST:
        found[EditPath.RESIZED] = Crop(whole, (region,), working_size(whole, RESIZED))
    return {path: one for path, one in found.items() if (one.box, one.size) != (crop.box, crop.size)}


def for_optimiser(
    region: Region,
    crop: Crop,
    everything: Sequence[Region],
    height: int,
    width: int,
    robust_to: Sequence[str],
    rng: np.random.Generator,
) -> list[list[Crop]]:
    """Variants of a crop for one of its regions, that the optimiser takes into account.

    Args:
        everything: all regions of the picture; benign edits keep away from them.
        height, width: of the picture.
        robust_to: `paths` for margins of 64 to 200 px and the whole picture at 512 px, `resize` for 128 px
            around the region in the picture at 0.5 to 1.5 of its size.

    Returns:
        Those at the crop's own scale, then those at other scales; empty groups are left out.
    """
    moved: dict[Box, Crop] = {}
    scaled: dict[tuple[Box, tuple[int, int]], Crop] = {}
    for _ in range(SHIFTED if "paths" in robust_to else 0):
        found = for_replay(region, crop, height, width, rng)
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
    groups = [
        [replace(variant, neighbours=others) for variant in group.values()] for group in (moved, scaled)
    ]
    return [group for group in groups if group]


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
