"""Plain geometry on boxes and bool masks: crops around regions, and the masks of the edits.

Masks are H,W bool, True = repainted. Nothing here knows a model, a file or a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backfire.imaging.masks import FADE, within
from backfire.types import Box, EditPath, Mask, Region

SHIFTS = (64, 200)
"""Margins that an attacker's tool may cut around a region, in pixels."""
RESIZED, LEAST = 512, 16
"""The long side at which many editors take a picture, and the least side of a region to edit in it."""


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
