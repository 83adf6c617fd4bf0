"""What a tool hands to its model for one edit, and how it puts the model's result back: facts, no tensors."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import scipy  # it loads `ndimage`, which takes longest, when that is first used

from backfire.attack_paths.resampling import Axis, Beyond, Weights
from backfire.attack_paths.softening import Plane, Step, softened
from backfire.types import Box, Mask

MOST_CALLS = 4
"""A tool that calls its model for each contour of a mask is followed for so many of them, the largest."""


@dataclass(frozen=True)
class Padding:
    """Pixels around a resized crop, and what they hold."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0
    holds: Beyond = Beyond.MIRROR


@dataclass(frozen=True)
class MaskRule:
    """What a tool does to the mask.

    Attributes:
        on_picture_grid: steps to the mask that the model gets, at the picture's own scale, before the crop.
        blend: steps to the weights with which the result is blended in. They begin with the mask as it was
            drawn, so that a growth that the pasted result shows too is repeated here.
        blend_scaled: whether `blend` goes on from the mask that the model got, at the model's size, instead.
        everything: whether the model gets no mask, that is one full of 1, and its whole result is taken.
        outside_masked: whether what a crop holds outside the picture counts as masked; else the mask is
            continued there as the picture is.
    """

    on_picture_grid: tuple[Step, ...] = ()
    blend: tuple[Step, ...] = ()
    blend_scaled: bool = False
    everything: bool = False
    outside_masked: bool = False


@dataclass(frozen=True)
class Filters:
    """The filters with which a tool resizes, names of `resampling.FILTERS`.

    Attributes:
        picture: for the crop, on its way to the model.
        result: for what the model returns, on its way back.
        mask: for the mask.
    """

    picture: str
    result: str
    mask: str

    @classmethod
    def all(cls, name: str) -> Filters:
        """The same one for all three."""
        return cls(name, name, name)


@dataclass(frozen=True, eq=False)
class Handed:
    """One call of a model by a tool.

    Attributes:
        edited: the whole picture's mask of the edit, H,W bool, True = repainted.
        box: the crop, in pixels of the picture; it exceeds the picture where the tool pads before it resizes.
        scaled: (height, width) to which the crop is resized.
        filters: what it is resized with; None for a tool that hands over crops at their own scale.
        padding: added after resizing, and taken off the result.
        outside: what the crop holds where it exceeds the picture.
        back_box: where the whole result goes, its padding with it; None for a tool that takes the padding off
            and puts the rest where the crop was.
        rule: what happens to the mask.
        keeps_mask: whether parts of a mask that would vanish by the scaling stay as the pixels that they fall
            on.
        meant: (height, width) that the tool itself hands over, where `at_most` made it less.
    """

    edited: Mask
    box: Box
    scaled: tuple[int, int]
    filters: Filters | None
    padding: Padding = field(default=Padding())
    outside: Beyond = Beyond.EDGE
    back_box: Box | None = None
    rule: MaskRule = field(default=MaskRule())
    keeps_mask: bool = False
    meant: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        resized = self.scaled != (self.box.height, self.box.width) or self.back_box is not None
        if resized and self.filters is None:
            raise ValueError(f"filters: got None, expected those that resize {self.box} to {self.scaled}")

    def at_most(self, most: int) -> Handed:
        """Scaled down where a tool that keeps the picture's scale hands over more than `most` pixels a side.

        Those that resize have sizes of their own. As the tool itself would lose nothing of the mask, no
        separate part of it vanishes; a thin stroke that begins at a wide area may become shorter.
        """
        if self.filters is not None or max(self.size) <= most:
            return self
        ratio = min(most / max(self.box.height, self.box.width), 1)
        scaled = max(int(self.box.height * ratio) // 8 * 8, 8), max(int(self.box.width * ratio) // 8 * 8, 8)
        filters = Filters.all("pil-lanczos")
        return replace(
            self, scaled=scaled, padding=Padding(), filters=filters, keeps_mask=True, meant=self.size
        )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the picture that the model gets."""
        (height, width), pad = self.scaled, self.padding
        return height + pad.top + pad.bottom, width + pad.left + pad.right

    @property
    def inside(self) -> Box:
        """The part of the box that lies in the picture."""
        height, width = self.edited.shape
        box = self.box
        return Box(max(box.left, 0), max(box.top, 0), min(box.right, width), min(box.bottom, height))

    @cached_property
    def edited_pixels(self) -> int:
        """How many pixels of the edit lie in the crop; it is told without a look at what the model gets."""
        return int(np.count_nonzero(self.edited[self.inside.slices]))

    @property
    def repaints(self) -> bool:
        """Whether any pixel of the edit is repainted: tools scale masks away, or crop them off."""
        return bool(
            self.edited_pixels
            and self.mask.any()
            and self.weights.any()
            and self.edited[self.touched.slices].any()
        )

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the model per pixel of the picture, down and across; below 1 detail is lost."""
        return self.scaled[0] / self.box.height, self.scaled[1] / self.box.width

    def axes(self) -> tuple[Axis, Axis]:
        """Rows and columns of the picture as they reach the model."""
        return self._axes(self.filters.picture if self.filters else "")

    def _axes(self, chosen: str) -> tuple[Axis, Axis]:
        (height, width), pad, box = self.edited.shape, self.padding, self.box
        beyond = pad.holds if pad.left or pad.top or pad.right or pad.bottom else self.outside
        return (
            Axis(box.top, box.bottom, height, self.scaled[0], pad.top, pad.bottom, beyond, chosen),
            Axis(box.left, box.right, width, self.scaled[1], pad.left, pad.right, beyond, chosen),
        )

    def back_axes(self) -> tuple[Axis, Axis]:
        """Rows and columns for `Axis.back`: those of the picture that `result` is resized to."""
        chosen = self.filters.result if self.filters else ""
        if self.back_box is None:
            return self._axes(chosen)
        (height, width), (down, across), box = self.edited.shape, self.size, self.back_box
        return (
            Axis(box.top, box.bottom, height, down, 0, 0, self.outside, chosen),
            Axis(box.left, box.right, width, across, 0, 0, self.outside, chosen),
        )

    @property
    def result(self) -> tuple[slice, slice]:
        """The rows and columns of what the model returns that are resized back."""
        if self.back_box is not None:
            return slice(0, self.size[0]), slice(0, self.size[1])
        (height, width), pad = self.scaled, self.padding
        return slice(pad.top, pad.top + height), slice(pad.left, pad.left + width)

    @cached_property
    def mask(self) -> Mask:
        """What the model is asked to repaint, at `size`, True = repainted.

        It may be empty: a region of a pixel vanishes where a tool scales the picture down, and then the tool
        edits nothing.
        """
        if self.rule.everything:
            return np.ones(self.size, dtype=np.bool_)
        masked: Mask = self._soft > 0.5
        if self.keeps_mask:
            parts, _ = scipy.ndimage.label(self._landing(), np.ones((3, 3)))
            masked |= (parts > 0) & ~np.isin(parts, parts[masked])
        return masked

    def _landing(self) -> Mask:
        """The pixels at `scaled` on which any pixel of the edit falls."""
        landing = self.edited[self.inside.slices]
        for axis, count in enumerate(self.scaled):
            length = landing.shape[axis]
            first = np.minimum(-(-np.arange(count) * length // count), length - 1)
            landing = np.logical_or.reduceat(landing, first, axis=axis)
        return landing

    @cached_property
    def touched(self) -> Box:
        """The part of the picture in which the result is blended in with any weight."""
        return self._weighted[1]

    @cached_property
    def weights(self) -> Plane:
        """How much of the result each pixel of `touched` takes, float32 in [0,1], above the picture's own."""
        return self._weighted[0]

    @cached_property
    def _soft(self) -> Plane:
        """The mask at the model's size before it is made one of two values."""
        plane, at = softened(self.edited, self.rule.on_picture_grid)
        rows, columns = self._axes(self.filters.mask if self.filters else "")
        if self.rule.outside_masked and self.box != self.inside:
            whole = np.ones((self.box.height, self.box.width), np.float32)
            whole[within(self.box, self.inside)] = 0
            both = common(self.inside, at)
            if both is not None:
                whole[within(self.box, both)] = plane[within(at, both)]
            plane, at = whole, Box(0, 0, self.box.width, self.box.height)
            rows = replace(rows, start=0, stop=at.height, length=at.height)
            columns = replace(columns, start=0, stop=at.width, length=at.width)
        return _mapped(plane, at, rows, columns)

    @cached_property
    def _weighted(self) -> tuple[Plane, Box]:
        part, rule = self.inside, self.rule
        if rule.everything:
            return np.ones((part.height, part.width), np.float32), part
        if rule.blend_scaled:
            plane = self._soft
            for step in rule.blend:
                plane = step(plane)
            plane, at = self._returned(plane[self.result])
            plane[plane < 0.5 / 255] = 0  # in the tools' 8 bits it is nothing
        else:
            plane, at = softened(self.edited, rule.blend)
        both = common(part, at)
        if both is None or not plane[within(at, both)].any():
            return np.zeros((0, 0), np.float32), Box(part.left, part.top, part.left, part.top)
        found = Box.around(plane[within(at, both)] > 0)
        touched = Box(
            both.left + found.left, both.top + found.top, both.left + found.right, both.top + found.bottom
        )
        return np.ascontiguousarray(plane[within(at, touched)]), touched

    def _returned(self, plane: Plane) -> tuple[Plane, Box]:
        """A plane of `result` on the picture's pixels, in [0,1], and the part that it reaches."""
        rows, columns = self.back_axes()
        plane, top = _spread(plane, rows.back(rows.inside))
        plane, left = _spread(plane.T, columns.back(columns.inside))
        left, top = left + columns.inside.start, top + rows.inside.start
        plane = np.clip(plane.T, 0, 1)
        return plane, Box(left, top, left + plane.shape[1], top + plane.shape[0])


def common(one: Box, other: Box) -> Box | None:
    """The part that lies in both; None where they do not overlap."""
    if not one.overlaps(other):
        return None
    return Box(
        max(one.left, other.left),
        max(one.top, other.top),
        min(one.right, other.right),
        min(one.bottom, other.bottom),
    )


def within(frame: Box, part: Box) -> tuple[slice, slice]:
    """The rows and columns of `part` on a plane that covers `frame`."""
    return (
        slice(part.top - frame.top, part.bottom - frame.top),
        slice(part.left - frame.left, part.right - frame.left),
    )


def _mapped(plane: Plane, at: Box, rows: Axis, columns: Axis) -> Plane:
    """A plane that covers the part `at` of the picture, zero elsewhere, as the model gets it, in [0,1]."""
    for axis, start in ((rows, at.top), (columns, at.left)):
        first, last = axis.inside.start, axis.inside.stop
        index, matrix = axis.index(), axis.matrix()
        plane = plane[max(first - start, 0) : max(last - start, 0)]
        start = max(start, first)
        if matrix is not None and index is None:
            plane = matrix[:, start - first : start - first + plane.shape[0]] @ plane
        else:
            whole = np.zeros((last - first, plane.shape[1]), np.float32)
            whole[start - first : start - first + plane.shape[0]] = plane
            plane = whole if index is None else whole[index]
            plane = plane if matrix is None else matrix @ plane
        plane = plane.T  # rows, then columns, then as it was
    return np.clip(plane, 0, 1)


def _spread(plane: Plane, weights: Weights | None) -> tuple[Plane, int]:
    """weights @ plane without the rows that are zero before and after it, and where the rest begins."""
    used = np.flatnonzero(plane.any(axis=1))
    if not used.size:
        return plane[:0], 0
    span = slice(used[0], used[-1] + 1)
    if weights is None:
        return plane[span], int(span.start)
    kept = np.flatnonzero(weights[:, span].any(axis=1))
    return weights[kept[0] : kept[-1] + 1, span] @ plane[span], int(kept[0])
