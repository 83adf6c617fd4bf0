"""Pictures as tensors, as editors are given them; the optimiser and the replay both use these."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from backfire.attack_paths.cropping import Crop
from backfire.attack_paths.hand_over import hand_over
from backfire.attack_paths.handed import Handed
from backfire.types import Box, Rgb

BAND = 1 << 22
"""So many pixels of a picture are handed over at a time."""


def to_tensor(rgb: Rgb, size: tuple[int, int], device: torch.device) -> Tensor:
    """A picture as a tensor.

    Args:
        rgb: uint8 H,W,3.
        size: (height, width) of the result; area averages where that is smaller, bilinear where it is larger.

    Returns:
        float32 1,3,h,w in [0,1].
    """
    image = torch.from_numpy(rgb.copy()).to(device).permute(2, 0, 1)[None].float() / 255
    if image.shape[-2:] != size:
        # Area averaging enlarges a picture in blocks.
        enlarged = size[0] > image.shape[-2]
        image = F.interpolate(image, size=size, mode="bilinear" if enlarged else "area")
    return image.contiguous(memory_format=torch.channels_last)


def crop_tensor(rgb: Rgb, crop: Crop, device: torch.device) -> Tensor:
    """One crop of a picture, at the size at which an editor is given it.

    A crop that is the whole picture is scaled in 8 bits: as floats it could take gigabytes.

    Args:
        rgb: uint8 H,W,3, the whole picture.

    Returns:
        float32 1,3,h,w in [0,1].
    """
    part = rgb[crop.box.slices]
    if part.shape == rgb.shape and crop.scaled:
        planes = torch.from_numpy(part if part.flags.writeable else part.copy()).permute(2, 0, 1)[None]
        small = F.interpolate(planes, size=crop.size, mode="bilinear", antialias=True)
        part = small[0].permute(1, 2, 0).numpy()
    return to_tensor(part, crop.size, device)


def given_pictures(pictures: Sequence[Rgb], handed: Handed, device: torch.device) -> Tensor:
    """What a model gets of pictures on an attack path, some rows at a time: as floats they could take
    gigabytes.

    Args:
        pictures: uint8 H,W,3 each, of the size of `handed.edited`.

    Returns:
        float32 N,3,h,w in [0,1] with (h, w) = `handed.size`.
    """
    inside = handed.inside
    rows = max(BAND // inside.width, 1)
    given: Tensor | None = None
    for top in range(inside.top, inside.bottom, rows):
        at = inside._replace(top=top, bottom=min(top + rows, inside.bottom))
        band = hand_over(picture_parts(pictures, at, device), handed, at)
        given = band if given is None else given + band
    assert given is not None
    return given.clamp(0, 1).contiguous(memory_format=torch.channels_last)


def picture_parts(pictures: Sequence[Rgb], box: Box, device: torch.device) -> Tensor:
    """The same part of pictures, uint8 H,W,3 each; float32 N,3,h,w in [0,1]."""
    return torch.cat([to_tensor(rgb[box.slices], (box.height, box.width), device) for rgb in pictures])


def to_picture(image: Tensor) -> NDArray[np.float32]:
    """3,H,W on any device -> H,W,3 float32 on the CPU."""
    return image.permute(1, 2, 0).float().cpu().numpy()
