"""Pictures as tensors on their way to a model and back, differentiable in the picture and in the result.

Handing over is linear, so it need not be done to a whole picture again and again: what a perturbation of a
part adds is that part handed over by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from backfire.attack_paths.handed import Handed
from backfire.attack_paths.resampling import Axis, Weights, weights_of
from backfire.types import Box

BLOCK = 32
"""A CPU computes so many pixels of a resized axis at a time, from those alone that they depend on."""


def hand_over(image: Tensor, handed: Handed, at: Box | None = None) -> Tensor:
    """What a model gets of pictures: their crop, resized and padded as the tool does it.

    Args:
        image: N,3,H,W in [0,1], of the size of `handed.edited`; with `at`, of that box's size.
        at: the part of the pictures that `image` is, the rest being zero: what is handed over of a picture
            and of a perturbation of a part add up to what is handed over of the perturbed picture.

    Returns:
        N,3,h,w with (h, w) = `handed.size`, not clipped where a filter overshoots. The mask is `handed.mask`.

    Raises:
        ValueError: pictures of another size.
    """
    height, width = handed.edited.shape
    at = at or Box(0, 0, width, height)
    return handing_over(handed, at, (at.height, at.width))(image)


def handing_over(handed: Handed, at: Box, size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    """`hand_over` of perturbations of the part `at`, which are worked at another size.

    Torch's bicubic filter, which is OpenCV's, would bring them to the part's own size. That and what the tool
    does are linear along each axis, so they are done in one, without a tensor of the part's own size.

    What is returned keeps none of the planes of `handed`, each of which is as large as the picture.

    Args:
        size: (height, width) of the perturbations.
    """
    rows, columns = handed.axes()

    def over(image: Tensor) -> Tensor:
        _require("image", image, size)
        down = _mapping(rows, at.top, at.bottom, size[0], image.device, image.dtype)
        across = _mapping(columns, at.left, at.right, size[1], image.device, image.dtype)
        part = across.gathered(down.gathered(image, -2), -1)
        return _weighted(part, down.blocks, across.blocks)

    return over


def mask_of(handed: Handed, like: Tensor) -> Tensor:
    """The mask that the model gets, 1,1,h,w in {0,1}, 1 = repainted, of the device and type of `like`."""
    return torch.from_numpy(handed.mask).to(like.device, like.dtype)[None, None]


def put_back(edit: Tensor, image: Tensor, handed: Handed) -> Tensor:
    """Pictures with a model's result in them, resized and blended as the tool does it.

    A tool that calls its model several times for one edit lays the results over one another: give what an
    earlier call returned as the next one's `image`.

    Args:
        edit: N,3,h,w, what the model made of what `hand_over` gave it.
        image: N,3,H,W, the pictures.

    Returns:
        N,3,H,W; where `handed.weights` do not reach, the pictures' own pixels, bit for bit.

    Raises:
        ValueError: pictures or results of another size.
    """
    _require("image", image, handed.edited.shape)
    result = image.clone()
    part = (..., *handed.touched.slices)
    result[part] = put_back_part(edit, image[part], handed)
    return result


def put_back_part(edit: Tensor, part: Tensor, handed: Handed) -> Tensor:
    """`put_back` for the part `handed.touched` of the pictures alone, N,3,h,w: nothing else changes.

    Raises:
        ValueError: parts or results of another size.
    """
    touched = handed.touched
    _require("edit", edit, handed.size)
    _require("part", part, (touched.height, touched.width))
    if not handed.weights.size:
        return part
    edit = edit[(..., *handed.result)]
    (rows, columns), (down, across) = handed.back_axes(), touched.slices
    row_blocks = _back(rows, down.start, down.stop, edit.device, edit.dtype)
    column_blocks = _back(columns, across.start, across.stop, edit.device, edit.dtype)
    if row_blocks is None:
        edit = edit[..., down.start - rows.start : down.stop - rows.start, :]
    if column_blocks is None:
        edit = edit[..., across.start - columns.start : across.stop - columns.start]
    edit = _weighted(edit, row_blocks, column_blocks)
    weights = torch.from_numpy(handed.weights).to(part.device, part.dtype)
    return torch.where(weights > 0, weights * edit + (1 - weights) * part, part)


def _require(name: str, tensor: Tensor, size: tuple[int, ...]) -> None:
    if tuple(tensor.shape[-2:]) != size:
        raise ValueError(f"{name}: got {tuple(tensor.shape[-2:])}, expected {size} pixels (height, width)")


Bands = tuple[tuple[int, int, Tensor], ...]
"""A matrix some rows at a time: the first column in use, the one after the last, and their weights."""


@dataclass(frozen=True)
class _Blocks:
    """A matrix of weights, most of which are zero, and its transpose."""

    forward: Bands
    backward: Bands
    height: int

    @classmethod
    def of(cls, matrix: Weights, device: torch.device, dtype: torch.dtype) -> _Blocks:
        ready = partial(_bands, device=device, dtype=dtype)
        return cls(ready(matrix), ready(matrix.T), matrix.shape[0])

    def rows(self, part: Tensor) -> Tensor:
        """matrix @ part"""
        product: Tensor = _Product.apply(part, -2, self.forward, self.backward)  # type: ignore[no-untyped-call]
        return product

    def columns(self, part: Tensor) -> Tensor:
        """part @ matrix.T"""
        product: Tensor = _Product.apply(part, -1, self.forward, self.backward)  # type: ignore[no-untyped-call]
        return product


def _bands(matrix: Weights, device: torch.device, dtype: torch.dtype) -> Bands:
    bands = []
    # A GPU has the whole product done before it would have been told of many.
    height = BLOCK if device.type == "cpu" else max(matrix.shape[0], 1)
    for first in range(0, matrix.shape[0], height):
        band = matrix[first : first + height]
        used = np.flatnonzero(band.any(axis=0))
        start, stop = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)
        # A copy: torch takes no array that is read only.
        bands.append((start, stop, torch.from_numpy(band[:, start:stop].copy()).to(device, dtype)))
    return tuple(bands)


class _Product(torch.autograd.Function):
    """A product with a matrix in bands. Torch's own gradient of a slice would be as large as the picture."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, dim: int, bands: Bands, transposed: Bands) -> Tensor:
        ctx.dim, ctx.bands, ctx.transposed = dim, bands, transposed
        if dim == -2:
            return torch.cat([weights @ part[..., start:stop, :] for start, stop, weights in bands], -2)
        return torch.cat([part[..., start:stop] @ weights.T for start, stop, weights in bands], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        back: Tensor = _Product.apply(gradient, ctx.dim, ctx.transposed, ctx.bands)  # type: ignore[no-untyped-call]
        return back, None, None, None


def _weighted(part: Tensor, rows: _Blocks | None, columns: _Blocks | None) -> Tensor:
    """rows @ part @ columns.T, that product first which leaves less."""
    if columns is not None and rows is not None:
        height, width = part.shape[-2:]
        if columns.height * height < rows.height * width:
            return rows.rows(columns.columns(part))
    part = part if rows is None else rows.rows(part)
    return part if columns is None else columns.columns(part)


@dataclass(frozen=True)
class _Mapping:
    """What becomes of a part of a picture along one axis.

    Attributes:
        kept: the stretch of the part that lies in the crop.
        zeros: pixels of zero that are put before and after it.
        runs: then (first, count, step) of pixels that are taken, one run after the other; None for all.
        blocks: then the weights; None for none.
    """

    kept: tuple[int, int]
    zeros: tuple[int, int]
    runs: tuple[tuple[int, int, int], ...] | None
    blocks: _Blocks | None

    def gathered(self, part: Tensor, dim: int) -> Tensor:
        """The part before it is weighted; `dim` is -1 or -2."""
        part = part.narrow(dim, self.kept[0], self.kept[1] - self.kept[0])
        if self.zeros != (0, 0):
            part = functional.pad(part, self.zeros if dim == -1 else (0, 0, *self.zeros))
        if self.runs is None:
            return part
        pieces = []
        for first, count, step in self.runs:
            if step == 0:
                sizes = list(part.shape)
                sizes[dim] = count
                pieces.append(part.narrow(dim, first, 1).expand(sizes))
            elif step == 1:
                pieces.append(part.narrow(dim, first, count))
            else:
                pieces.append(part.narrow(dim, first - count + 1, count).flip(dim))
        return torch.cat(pieces, dim)


def _runs(index: NDArray[np.intp]) -> tuple[tuple[int, int, int], ...]:
    """An index whose neighbours differ by at most one, as runs in which they differ alike."""
    runs: list[tuple[int, int, int]] = []
    steps = np.diff(index)
    at = 0
    while at < len(index):
        step = int(steps[at]) if at < len(steps) else 1
        other = np.flatnonzero(steps[at:] != step)
        count = int(other[0]) + 1 if other.size else len(index) - at
        runs.append((int(index[at]), count, step))
        at += count
    return tuple(runs)


@lru_cache(maxsize=32)
def _mapping(
    axis: Axis, start: int, stop: int, worked: int, device: torch.device, dtype: torch.dtype
) -> _Mapping:
    """How the stretch [start, stop) of a picture's axis is mapped, the rest of the picture being zero.

    Args:
        worked: the pixels in which the stretch is given.
    """
    if worked == stop - start:
        return _mapped(axis, start, stop, device, dtype)
    own = _mapped(axis, start, stop, torch.device("cpu"), torch.float32)
    larger = torch.from_numpy(weights_of("cv2-cubic", worked, stop - start).copy())
    # Not in the lower precision that an optimisation may be in: the weights are made once and kept.
    with torch.autocast("cpu", enabled=False):
        both = _weighted(own.gathered(larger, -2), own.blocks, None)
    return _Mapping((0, worked), (0, 0), None, _Blocks.of(both.numpy(), device, dtype))


def _mapped(axis: Axis, start: int, stop: int, device: torch.device, dtype: torch.dtype) -> _Mapping:
    first, last = axis.inside.start, axis.inside.stop
    low, high = min(max(start, first), last), max(min(stop, last), first)
    low = min(low, high)
    index, matrix = axis.index(), axis.matrix()
    zeros = low - first, last - high
    if index is None and matrix is not None:
        # Columns of the matrix are left out instead of multiplying zeros.
        matrix, zeros = matrix[:, low - first : high - first], (0, 0)
    return _Mapping(
        (low - start, high - start) if high > low else (0, 0),
        zeros,
        None if index is None else _runs(index),
        None if matrix is None else _Blocks.of(matrix, device, dtype),
    )


def forget() -> None:
    """Let go of the matrices that are kept for further edits of a picture: on a GPU they take gigabytes."""
    _mapping.cache_clear()
    _back.cache_clear()


@lru_cache(maxsize=32)
def _back(axis: Axis, start: int, stop: int, device: torch.device, dtype: torch.dtype) -> _Blocks | None:
    weights = axis.back(slice(start, stop))
    return None if weights is None else _Blocks.of(weights, device, dtype)
