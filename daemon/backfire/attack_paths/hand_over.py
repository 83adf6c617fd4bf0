"""Pictures as tensors on their way to a model and back, differentiable in the picture and in the result."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from backfire.attack_paths.handed import Handed
from backfire.attack_paths.resampling import Axis


def hand_over(image: Tensor, handed: Handed) -> tuple[Tensor, Tensor]:
    """What a model gets of pictures: their crop, resized and padded as the tool does it, and the mask.

    Args:
        image: N,3,H,W in [0,1], of the size of `handed.edited`.

    Returns:
        The pictures, N,3,h,w, not clipped where a filter overshoots; and the mask, N,1,h,w, 1 = repainted.

    Raises:
        ValueError: pictures of another size.
    """
    _same_size(image, handed)
    part = image[..., slice(*_ends(handed.inside.slices[0])), slice(*_ends(handed.inside.slices[1]))]
    rows, columns = handed.axes()
    down, row_weights = _on(rows, image.device, image.dtype)
    across, column_weights = _on(columns, image.device, image.dtype)
    part = part if down is None else part.index_select(-2, down)
    part = part if across is None else part.index_select(-1, across)
    mask = torch.from_numpy(handed.mask).to(image.device, image.dtype)
    return _weighted(part, row_weights, column_weights), mask.expand(image.shape[0], 1, *mask.shape)


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
    _same_size(image, handed)
    if tuple(edit.shape[-2:]) != handed.size:
        raise ValueError(f"edit: got {tuple(edit.shape[-2:])}, expected {handed.size}, as it was handed over")
    touched, padding = handed.touched, handed.padding
    result = image.clone()
    if not handed.weights.size:
        return result
    height, width = handed.scaled
    part = edit[..., padding.top : padding.top + height, padding.left : padding.left + width]
    (rows, columns), (down, across) = handed.axes(), touched.slices
    row_weights = _back_on(rows, handed.back_by, *_ends(down), image.device, image.dtype)
    column_weights = _back_on(columns, handed.back_by, *_ends(across), image.device, image.dtype)
    if row_weights is None:
        part = part[..., down.start - handed.box.top : down.stop - handed.box.top, :]
    if column_weights is None:
        part = part[..., across.start - handed.box.left : across.stop - handed.box.left]
    part = _weighted(part, row_weights, column_weights)
    weights = torch.from_numpy(handed.weights).to(image.device, image.dtype)
    own = image[..., down, across]
    result[..., down, across] = torch.where(weights > 0, weights * part + (1 - weights) * own, own)
    return result


def _same_size(image: Tensor, handed: Handed) -> None:
    if tuple(image.shape[-2:]) != handed.edited.shape:
        raise ValueError(
            f"image: got {tuple(image.shape[-2:])}, expected {handed.edited.shape}, as the mask has"
        )


def _ends(part: slice) -> tuple[int, int]:
    return part.start, part.stop


def _weighted(part: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """rows @ part @ columns.T, the cheaper product first."""
    if rows is None or columns is None:
        part = part if rows is None else rows @ part
        return part if columns is None else part @ columns.T
    height, width = part.shape[-2:]
    rows_first = rows.shape[0] * width * (height + columns.shape[0])
    columns_first = columns.shape[0] * height * (width + rows.shape[0])
    return (rows @ part) @ columns.T if rows_first <= columns_first else rows @ (part @ columns.T)


@lru_cache(maxsize=32)
def _on(axis: Axis, device: torch.device, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    index, matrix = axis.index(), axis.matrix()
    return (
        None if index is None else torch.from_numpy(index).to(device),
        None if matrix is None else torch.from_numpy(matrix).to(device, dtype),
    )


@lru_cache(maxsize=32)
def _back_on(
    axis: Axis, filter_name: str, start: int, stop: int, device: torch.device, dtype: torch.dtype
) -> Tensor | None:
    weights = axis.back(filter_name, slice(start, stop))
    return None if weights is None else torch.from_numpy(weights).contiguous().to(device, dtype)
