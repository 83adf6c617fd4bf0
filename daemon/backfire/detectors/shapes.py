"""Polygons, ellipses and run lengths as regions with boxes and masks, and the merging of regions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from backfire.types import Box, Mask, Region

Points = NDArray[np.float64]
"""N,2 positions x, y, usually the corners of an outline."""

CORNERS = 64
"""The corners of the polygon that stands for an ellipse."""


LABEL_MOST, NAMES_MOST, MORE = 64, 8, "…"
"""The most letters of a label, and the most labels of a merged region, because labels come from untrusted
files; and what stands for the rest."""


def named(label: str) -> str:
    """A label that is safe in receipts, sheets and logs: one short line of printable letters."""
    line = "".join(letter for letter in " ".join(label.split()) if letter.isprintable())
    return (line or "region") if len(line) <= LABEL_MOST else line[: LABEL_MOST - 1] + MORE


def ellipse(x: float, y: float, across: float, down: float) -> Points:
    """The outline of an ellipse around x, y with the given half axes."""
    turn = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    return np.stack([x + across * np.cos(turn), y + down * np.sin(turn)], axis=1)


def region_of(
    points: Points, label: str, detector: str, width: int, height: int, score: float = 1.0
) -> Region | None:
    """The region within an outline, clipped to a picture; None if it lies outside.

    Args:
        points: the outline N,2 in pixels of the upright picture. The box holds every pixel that the outline's
            bounding box touches, so that no part of a rectangle is lost.
    """
    # Clipped first, because a coordinate of 1e300 does not fit an integer.
    low, high = (np.clip(edge, 0, (width, height)) for edge in (points.min(axis=0), points.max(axis=0)))
    # The tolerance is for relative coordinates, which seldom multiply to whole numbers.
    (left, top), (right, bottom) = np.floor(low + 1e-6).astype(int), np.ceil(high - 1e-6).astype(int)
    box = Box(int(left), int(top), int(right), int(bottom))
    if box.width <= 0 or box.height <= 0:
        return None
    mask = None if _is_rectangle(points) else _filled(points, box)
    if mask is not None and not mask.any():  # thinner than a pixel
        mask = None
    return Region(box, label=named(label), score=score, detector=detector, mask=mask)


def region_of_mask(
    plane: Mask, label: str, detector: str, score: float = 1.0, *, at: tuple[int, int] = (0, 0)
) -> Region | None:
    """The region of a mask H,W that lies `at` x, y in the picture; None if it marks nothing."""
    if not plane.any():
        return None
    tight = Box.around(plane)
    (x, y), (left, top, right, bottom) = at, tight
    box = Box(x + left, y + top, x + right, y + bottom)
    return Region(box, named(label), score, detector, plane[tight.slices].copy())


def _is_rectangle(points: Points) -> bool:
    """Whether an outline is a rectangle with horizontal and vertical sides."""
    if len(points) != 4:
        return False
    low, high = points.min(axis=0), points.max(axis=0)
    corners = np.abs(points - high) < np.abs(points - low)
    at_corners = np.allclose(points, np.where(corners, high, low), atol=1e-6, rtol=0)
    return at_corners and len(np.unique(corners, axis=0)) == 4


def _filled(points: Points, box: Box) -> Mask:
    """The pixels of a box whose centres lie within an outline, by the even-odd rule.

    Each edge inverts all pixels to its right, which one cumulative XOR does for all edges at once. The cost
    is the sum of the box's area and the edges' heights, not their product.
    """
    x, y = np.clip(points - (box.left, box.top), -1e5, 1e5).T - 0.5
    turns = np.zeros((box.height, box.width + 1), dtype=np.bool_)
    for x0, y0, x1, y1 in zip(x, y, np.roll(x, -1), np.roll(y, -1), strict=True):
        first, end = np.clip(np.ceil([min(y0, y1), max(y0, y1)]), 0, box.height).astype(int)
        rows = np.arange(first, end)
        if rows.size:
            crossings = x0 + (rows - y0) * (x1 - x0) / (y1 - y0)
            turns[rows, np.clip(np.ceil(crossings), 0, box.width).astype(int)] ^= True
    filled: Mask = np.logical_xor.accumulate(turns[:, :-1], axis=1)
    return filled


def unrolled(counts: Sequence[int], width: int, height: int) -> Mask:
    """The mask H,W of COCO run lengths: alternately unmarked and marked pixels, column by column.

    Raises:
        ValueError: a length is negative, or they do not add up to the picture.
    """
    # Summed as Python integers, because hostile lengths could overflow 64 bits to the right sum.
    if min(counts, default=0) < 0 or sum(counts) != width * height:
        raise ValueError(
            f"run lengths add up to {sum(counts)}, expected {width * height} pixels, none below 0"
        )
    marked = np.arange(len(counts)) % 2 == 1
    mask: Mask = np.repeat(marked, counts).reshape(width, height).T
    return mask


def uncompressed(text: str) -> list[int]:
    """COCO's run lengths from their compressed form.

    A number is written in groups of 5 bits, lowest first, each as a character from `0` on. Bit 5 says that
    another group follows, and bit 4 of the last group is the sign. From the fourth number on, the difference
    to the number two before is written.

    Raises:
        ValueError: a character is not in the alphabet, or the last number is incomplete.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        group = ord(character) - 48
        if not 0 <= group < 64 or shift > 40:
            raise ValueError(f"{character!r} is no part of a run length")
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("the last run length is cut short")
    return counts


def within(region: Region, box: Box) -> Mask:
    """The part of a region's shape that lies in a box, as a mask of the box's size."""
    plane = np.zeros((box.height, box.width), dtype=np.bool_)
    left, top = max(region.box.left, box.left), max(region.box.top, box.top)
    right, bottom = min(region.box.right, box.right), min(region.box.bottom, box.bottom)
    if left < right and top < bottom:
        part = True if region.mask is None else region.mask[_slices(left, top, right, bottom, region.box)]
        plane[_slices(left, top, right, bottom, box)] = part
    return plane


def scaled(region: Region, before: tuple[int, int], after: tuple[int, int]) -> Region:
    """A region in the picture at another size; every pixel that holds a part of it belongs to it.

    Args:
        before, after: height and width of the picture.
    """
    box = region.box
    down, across = ((old, new) for old, new in zip(before, after, strict=True))
    top, bottom = _reached(box.top, box.bottom, *down)
    left, right = _reached(box.left, box.right, *across)
    mask = region.mask
    if mask is not None:
        mask = _resampled(_resampled(mask, box.top, *down).T, box.left, *across).T
    return replace(region, box=Box(left, top, right, bottom), mask=mask)


def _reached(start: int, stop: int, old: int, new: int) -> tuple[int, int]:
    """The pixels of an axis of `new` that hold a part of the pixels start..stop of an axis of `old`."""
    return start * new // old, -(-stop * new // old)


def _resampled(mask: Mask, start: int, old: int, new: int) -> Mask:
    """A mask's rows, the first of which is row `start` of `old`, as the rows of `new` that they reach."""
    first, last = _reached(start, start + len(mask), old, new)
    if new >= old:
        nearest: Mask = mask[np.clip(np.arange(first, last) * old // new - start, 0, len(mask) - 1)]
        return nearest
    pooled: Mask = np.zeros((last - first, mask.shape[1]), dtype=np.bool_)
    at = np.arange(start, start + len(mask))
    for rows in (at * new // old, -(-(at + 1) * new // old) - 1):  # the first and the last that each is in
        found, starts = np.unique(rows, return_index=True)
        pooled[found - first] |= np.logical_or.reduceat(mask, starts, axis=0)
    return pooled


def _slices(left: int, top: int, right: int, bottom: int, box: Box) -> tuple[slice, slice]:
    """A rectangle of the picture as slices of a box."""
    return slice(top - box.top, bottom - box.top), slice(left - box.left, right - box.left)


def merged(regions: Sequence[Region], near: Callable[[Region, Region], bool]) -> list[Region]:
    """Merges regions that are near each other, and merges the results, until no two are near.

    A merged region has the union of the shapes, the first few labels, all detectors, and the best score.
    """
    kept = list(regions)
    while True:
        close = np.array([[near(a, b) for b in kept] for a in kept], dtype=np.bool_)
        count, group = connected_components(close.reshape(len(kept), len(kept))) if kept else (0, [])
        if count == len(kept):
            return kept
        kept = [_joined([kept[i] for i in np.flatnonzero(group == g)]) for g in range(count)]


def joined_to(regions: Sequence[Region], most: int) -> list[Region]:
    """Joins the two regions nearest to each other, again and again, until there are no more than `most`.

    Of pairs at the same distance the one that takes the least space is joined: of evenly spaced regions come
    pairs, and not one region that grows.
    """
    if len(regions) <= most:
        return list(regions)
    boxes = np.array([region.box for region in regions], dtype=np.float64).T.copy()
    space = boxes[2].max() * boxes[3].max() + 1
    groups = {number: [number] for number in range(len(regions))}

    def costs(one: int) -> NDArray[np.float64]:
        """The distance to each other group, and as its fraction the space that both take."""
        (left, top, right, bottom), (x0, y0, x1, y1) = boxes, boxes[:, one]
        apart = np.maximum(np.maximum(left - x1, x0 - right), np.maximum(top - y1, y0 - bottom))
        sides = np.maximum(right, x1) - np.minimum(left, x0), np.maximum(bottom, y1) - np.minimum(top, y0)
        found: NDArray[np.float64] = np.maximum(apart, 0) + sides[0] * sides[1] / space
        found[one] = np.inf
        return found

    # No group's cost is less than this. It may be more, where what was nearest has grown or is gone.
    least = np.array([costs(one).min() for one in groups])
    while len(groups) > most:
        one = int(least.argmin())
        row = costs(one)
        if row.min() > least[one]:
            least[one] = row.min()
            continue
        other = int(row.argmin())
        groups[one] += groups.pop(other)
        boxes[:2, one] = np.minimum(boxes[:2, one], boxes[:2, other])
        boxes[2:, one] = np.maximum(boxes[2:, one], boxes[2:, other])
        boxes[:, other] = np.inf  # infinitely far from all
        row = costs(one)
        least = np.minimum(least, row)
        least[one], least[other] = row.min(), np.inf
    members = [[regions[i] for i in sorted(group)] for group in sorted(groups.values(), key=min)]
    return [replace(_joined(parts), joined=len(parts)) for parts in members]


def united(regions: Sequence[Region]) -> tuple[Box, Mask]:
    """The box around several regions, of which there is one or more, and the union of their shapes in it."""
    box = reduce(Box.union, (region.box for region in regions))
    mask = np.zeros((box.height, box.width), dtype=np.bool_)
    for region in regions:  # in place: a crowd has hundreds of regions, and the box is the whole picture
        mask[_slices(*region.box, box)] |= True if region.mask is None else region.mask
    return box, mask


def _joined(regions: Sequence[Region]) -> Region:
    """One region with the union of several shapes."""
    if len(regions) == 1:
        return regions[0]
    box, mask = united(regions)
    labels = dict.fromkeys(part for region in regions for part in region.label.split("+"))
    shown = [label for label in labels if label != MORE][:NAMES_MOST]
    return Region(
        box,
        label="+".join(shown if len(shown) == len(labels) else [*shown, MORE]),
        score=max(region.score for region in regions),
        detector="+".join(dict.fromkeys(part for region in regions for part in region.detector.split("+"))),
        mask=None if mask.all() else mask,
    )
