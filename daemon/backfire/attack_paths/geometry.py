"""Plain geometry on boxes and bool masks: crops around regions, and the masks of the edits.

Masks are H,W bool, True = repainted. Nothing here knows a model, a file or a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from daemon.domain import Box, EditPath, Mask, Region

DILATION = 17
"""Kernel of the dilated trigger, from the paper's published recipe: 8 px each way."""
SHIFTS = (64, 200)
"""Margins that an attacker's tool may cut around a region, in pixels."""
RESIZED, LEAST = 512, 16
"""The long side at which many editors take a picture, and the least side of a region to edit in it."""
FADE = 16
"""Over so many pixels the budget fades to nothing."""
FAR = 32
"""A benign edit counts as far from this many pixels on."""


@dataclass(frozen=True, eq=False)
class Crop:
    """A part of the picture that is optimised and verified as one.

    Attributes:
        box: its place in the upright picture.
        regions: the regions in it.
        size: (height, width) at which editors see it; smaller than the box where the box
            exceeds the working size.
        neighbours: regions of other crops that reach into this one: an edit that touches them
            is no benign one.
    """

    box: Box
    regions: tuple[Region, ...]
    size: tuple[int, int]
    neighbours: tuple[Region, ...] = ()

    @property
    def scaled(self) -> bool:
        """Whether editors see the crop smaller than it is."""
        return self.size != (self.box.height, self.box.width)

    def masks(self) -> list[Mask]:
        """Each region's mask at the working size; a region never vanishes by scaling."""
        return [self._plane(region, self.size) for region in self.regions]

    def protected(self) -> Mask:
        """Everything protected in the crop, neighbours too, at the working size."""
        return self._together(self.size)

    def inside(self) -> Mask:
        """Everything protected in the crop, neighbours too, on the crop's own pixels."""
        return self._together((self.box.height, self.box.width))

    def _together(self, size: tuple[int, int]) -> Mask:
        together = np.zeros(size, dtype=np.bool_)
        for one in (*self.regions, *self.neighbours):
            together |= self._plane(one, size)  # not all at once: of a large picture each is large
        return together

    def _plane(self, region: Region, size: tuple[int, int]) -> Mask:
        """The part of the region that lies in the crop, at a size; of the crop's pixels no plane is made."""
        plane = np.zeros(size, dtype=np.bool_)
        box, here = region.box, self.box
        left, top = max(box.left, here.left), max(box.top, here.top)
        right, bottom = min(box.right, here.right), min(box.bottom, here.bottom)
        if left >= right or top >= bottom:
            return plane
        shape = np.ones((box.height, box.width), np.bool_) if region.mask is None else region.mask
        part = shape[top - box.top : bottom - box.top, left - box.left : right - box.left]
        down, across = top - here.top, left - here.left
        if size == (here.height, here.width):
            plane[down : down + part.shape[0], across : across + part.shape[1]] = part
        else:
            rows, columns = np.nonzero(part)
            for row in _landing(rows + down, here.height, size[0]):
                for column in _landing(columns + across, here.width, size[1]):
                    plane[row, column] = True
        return plane


def _landing(at: NDArray[np.intp], length: int, count: int) -> Iterator[NDArray[np.intp]]:
    """Where pixels of an axis of `length` lie on one of `count`: each somewhere, and larger without gaps."""
    first = at * count // length
    last = np.maximum((at + 1) * count // length - 1, first)
    for further in range(-(-count // length)):
        yield np.minimum(first + further, last)


def plan(
    regions: Sequence[Region], height: int, width: int, *, margin: int, work: int, whole: int = 0
) -> list[Crop]:
    """The crops around regions, each region in exactly one.

    Regions whose crops overlap share one, as long as it still fits `work` pixels a side: what
    one optimisation writes, another would disturb.

    Args:
        margin: around a region, as editors crop (IOPaint: 128 px).
        work: the longest side at which a crop is worked.
        whole: pictures up to this long side are one crop: editors take them whole (IOPaint: 800 px).
    """
    if max(height, width) <= min(whole, work):
        return [Crop(Box(0, 0, width, height), tuple(regions), (height, width))] if regions else []
    groups: list[tuple[Box, list[Region]]] = []
    for region in sorted(regions, key=lambda r: (-r.box.width * r.box.height, r.box)):
        box, members = region.box.grown(margin, width, height), [region]
        for other in list(groups):
            joined = box.union(other[0])
            if box.overlaps(other[0]) and max(joined.width, joined.height) <= work:
                groups.remove(other)
                box, members = joined, [*other[1], *members]
        groups.append((box, members))
    crops = []
    for box, members in groups:
        others = tuple(r for r in regions if r.box.overlaps(box) and all(r is not m for m in members))
        crops.append(Crop(box, tuple(members), _working_size(box, work), others))
    return crops


def other_paths(
    region: Region, crop: Crop, height: int, width: int, rng: np.random.Generator
) -> dict[EditPath, Crop]:
    """How a region of a crop may reach an editor otherwise; none where it comes to the same.

    * `shifted`: cut with margins of 64 to 200 px, drawn for each side, at the crop's scale;
    * `resized`: the whole picture at a long side of 512 px at most, where the region is left at
      least 16 px wide and high: less is no edit that anybody makes.
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
        found[EditPath.RESIZED] = Crop(whole, (region,), _working_size(whole, RESIZED))
    return {path: one for path, one in found.items() if (one.box, one.size) != (crop.box, crop.size)}


def _working_size(box: Box, work: int) -> tuple[int, int]:
    scale = min(1.0, work / max(box.height, box.width))
    return max(round(box.height * scale), 8), max(round(box.width * scale), 8)


def dilated(mask: Mask, kernel: int = DILATION) -> Mask:
    """The mask grown by half a square kernel each way."""
    grown: Mask = ndimage.maximum_filter(mask, size=kernel)
    return grown


def ring(mask: Mask, kernel: int = DILATION) -> Mask:
    """What `dilated` adds: the nearest benign edit."""
    return dilated(mask, kernel) & ~mask


def half(mask: Mask, angle: float) -> Mask:
    """The half of the mask on one side of a line through its centre; angle in radians."""
    rows, columns = np.nonzero(mask)
    if rows.size < 2:
        return mask.copy()
    side = (rows - rows.mean()) * np.sin(angle) + (columns - columns.mean()) * np.cos(angle)
    keep = side >= np.median(side)
    plane = np.zeros_like(mask)
    plane[rows[keep], columns[keep]] = True
    return plane


def eroded(mask: Mask, kernel: int = DILATION) -> Mask:
    """The mask shrunk by half a square kernel each way; itself where nothing would be left."""
    shrunk: Mask = ndimage.minimum_filter(mask, size=kernel)
    return shrunk if shrunk.any() else mask.copy()


def drawn_in(mask: Mask, rng: np.random.Generator, share: float = 0.5) -> Mask:
    """The mask with its contour moved inwards unevenly, by up to `share` of its depth; never empty."""
    inside = ndimage.distance_transform_edt(mask)
    depth = float(inside.max())
    # One smooth field for the whole contour: its waves are about as long as the region is deep.
    field = ndimage.gaussian_filter(rng.standard_normal(mask.shape), max(depth / 2, 1.0), mode="wrap")
    ranks = (field - field.min()) / max(float(np.ptp(field)), 1e-12)
    kept: Mask = mask & (inside >= np.minimum(share * depth * ranks + 0.5, depth))
    return kept


def shifted(mask: Mask, down: int, right: int) -> Mask:
    """The mask moved by whole pixels; what leaves the plane is lost."""
    moved: Mask = ndimage.shift(mask, (down, right), order=0, cval=0, prefilter=False)
    return moved if moved.any() else mask.copy()


def covering(mask: Mask, share: float) -> Mask:
    """The mask grown or shrunk evenly, until it has about `share` times its area.

    By distance from its edge, so that every shape keeps its shape roughly.
    """
    wanted = max(1, round(share * int(mask.sum())))
    inside = ndimage.distance_transform_edt(mask)
    outside = ndimage.distance_transform_edt(~mask) if mask.any() else np.zeros(mask.shape)
    depth = (inside - outside).ravel()
    plane = np.zeros(mask.size, dtype=np.bool_)
    plane[np.argsort(-depth, kind="stable")[:wanted]] = True
    return plane.reshape(mask.shape)


def stroke(mask: Mask, rng: np.random.Generator) -> Mask:
    """A random brush stroke through the region, from beyond one side of its box to beyond another."""
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
    """The mask's bounding box, filled."""
    plane = np.zeros_like(mask)
    plane[Box.around(mask).slices] = True
    return plane


def far(protected: Mask, rng: np.random.Generator, distance: int = FAR) -> Mask | None:
    """A random square at least `distance` pixels from everything protected, at most a quarter as wide.

    None where the plane has no room for one of 16 pixels a side.
    """
    height, width = protected.shape
    blocked = np.pad(dilated(protected, 2 * distance + 1), 1, constant_values=True)
    room = ndimage.distance_transform_cdt(~blocked, metric="chessboard")[1:-1, 1:-1]
    reach = int(room.max())
    if reach < 8:
        return None
    wanted = min(reach, max(8, min(height, width) // 8))
    rows, columns = np.nonzero(room >= wanted)
    pick = int(rng.integers(rows.size))
    row, column = int(rows[pick]), int(columns[pick])
    plane = np.zeros_like(protected)
    plane[row - wanted + 1 : row + wanted, column - wanted + 1 : column + wanted] = True
    return plane


def within(mask: Mask, reach: int, edge: int = FADE) -> np.ndarray:
    """How much of the budget each pixel may use: all up to `reach` pixels from a mask, then less and less.

    Args:
        mask: with a pixel at least.

    Returns:
        H,W float32 in [0,1].
    """
    beyond = ndimage.distance_transform_edt(~mask).astype(np.float32) - reach
    near: np.ndarray = np.clip(1 - beyond / edge, 0, 1)
    return near


def reached(crop: Crop, reach: int, share: float) -> np.ndarray:
    """How much of the budget each pixel of a crop may use for how near it lies to a region; see `within`.

    Args:
        reach: up to how far from a region at least, in the picture's pixels.
        share: how far at least, as a share of the region's shorter side: an edit of a large region takes
            its context from further away.

    Returns:
        H,W float32 in [0,1] on the crop's own pixels.
    """
    frame = crop.box
    near = np.zeros((frame.height, frame.width), np.float32)
    for region in (*crop.regions, *crop.neighbours):
        own = max(reach, round(share * min(region.box.width, region.box.height)))
        # Of the crop no more than the region reaches: it may have many regions, and be large.
        box = region.box.grown(own + FADE, frame.right, frame.bottom)
        box = box._replace(left=max(box.left, frame.left), top=max(box.top, frame.top))
        if box.left < box.right and box.top < box.bottom:
            part = Crop(box, (region,), (box.height, box.width)).inside()
            rows = slice(box.top - frame.top, box.bottom - frame.top)
            columns = slice(box.left - frame.left, box.right - frame.left)
            if part.any():  # of a neighbour no pixel may lie here
                near[rows, columns] = np.maximum(near[rows, columns], within(part, own))
    return near


def taper(box: Box, height: int, width: int, edge: int = FADE) -> np.ndarray:
    """How much of the budget each pixel of a crop may use, H,W float32 in [0,1].

    Fades to zero towards those sides of the crop that are not the picture's own, so that the
    change has no visible rectangle.
    """
    columns, rows = np.arange(box.width, dtype=np.float32), np.arange(box.height, dtype=np.float32)
    fade = np.ones((box.height, box.width), dtype=np.float32)
    if box.left > 0:
        fade = np.minimum(fade, (columns + 1) / edge)
    if box.right < width:
        fade = np.minimum(fade, (box.width - columns) / edge)
    if box.top > 0:
        fade = np.minimum(fade, ((rows + 1) / edge)[:, None])
    if box.bottom < height:
        fade = np.minimum(fade, ((box.height - rows) / edge)[:, None])
    return fade
