"""Crops around regions: which part of the picture is optimised as one, and where in it the budget may be
used.

Plain geometry on boxes and masks (H,W bool, True = protected); no model, no file, no tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backfire.imaging.masks import FADE, within
from backfire.types import Box, Mask, Region


@dataclass(frozen=True, eq=False)
class Crop:
    """A part of the picture that is optimised and verified as one, or that is handed to an editor.

    Attributes:
        box: its place in the upright picture.
        regions: the regions in it.
        size: (height, width) at which editors see it; smaller than the box where the box
            exceeds the working size.
        neighbours: regions of other crops that reach into this one; an edit that touches them is no
            benign edit.
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
        """Each region's mask at `size`; scaling never makes a region vanish."""
        return [self._plane(region, self.size) for region in self.regions]

    def protected(self) -> Mask:
        """Everything protected in the crop, neighbours too, at `size`."""
        return self._together(self.size)

    def inside(self) -> Mask:
        """Everything protected in the crop, neighbours too, at the size of its box."""
        return self._together((self.box.height, self.box.width))

    def _together(self, size: tuple[int, int]) -> Mask:
        together = np.zeros(size, dtype=np.bool_)
        for one in (*self.regions, *self.neighbours):
            together |= self._plane(one, size)  # not all at once: of a large picture each is large
        return together

    def _plane(self, region: Region, size: tuple[int, int]) -> Mask:
        """The part of a region that lies in the crop, at a size. Needs no plane of a large crop's size."""
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
    """Where pixels of an axis of `length` lie on an axis of `count`: none gets lost, no gap appears."""
    first = at * count // length
    last = np.maximum((at + 1) * count // length - 1, first)
    for further in range(-(-count // length)):
        yield np.minimum(first + further, last)


def plan(
    regions: Sequence[Region], height: int, width: int, *, margin: int, work: int, whole: int = 0
) -> list[Crop]:
    """The crops around regions, each region in exactly one.

    Regions whose crops overlap share a crop as long as it fits `work` pixels a side, since crops that are
    optimised one after the other disturb each other where they overlap.

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
        crops.append(Crop(box, tuple(members), working_size(box, work), others))
    return crops


def working_size(box: Box, work: int) -> tuple[int, int]:
    """(height, width) of a box at a longest side of at most `work` pixels."""
    scale = min(1.0, work / max(box.height, box.width))
    return max(round(box.height * scale), 8), max(round(box.width * scale), 8)


def reached(crop: Crop, reach: int, share: float) -> np.ndarray:
    """The share of the budget that each pixel of a crop may use, by its distance to a region; see `within`.

    Args:
        reach: up to which distance all of it, in the picture's pixels.
        share: the same as a share of the region's shorter side, where that is more: an edit of a large
            region takes its context from further away.

    Returns:
        H,W float32 in [0,1] on the crop's own pixels.
    """
    frame = crop.box
    near = np.zeros((frame.height, frame.width), np.float32)
    for region in (*crop.regions, *crop.neighbours):
        own = max(reach, round(share * min(region.box.width, region.box.height)))
        # Only the part of the crop that the region reaches: a large crop may have many regions.
        box = region.box.grown(own + FADE, frame.right, frame.bottom)
        box = box._replace(left=max(box.left, frame.left), top=max(box.top, frame.top))
        if box.left < box.right and box.top < box.bottom:
            part = Crop(box, (region,), (box.height, box.width)).inside()
            rows = slice(box.top - frame.top, box.bottom - frame.top)
            columns = slice(box.left - frame.left, box.right - frame.left)
            if part.any():  # a neighbour may have no pixel here
                near[rows, columns] = np.maximum(near[rows, columns], within(part, own))
    return near


def taper(box: Box, height: int, width: int, edge: int = FADE) -> np.ndarray:
    """The share of the budget that each pixel of a crop may use, by its distance to the crop's sides.

    Fades to zero within `edge` pixels of those sides that are not the picture's own, so that the
    perturbation does not show as a rectangle.

    Returns:
        H,W float32 in [0,1].
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
