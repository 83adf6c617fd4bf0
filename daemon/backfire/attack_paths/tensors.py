"""Pictures as tensors, as editors are given them; the optimiser and the replay both use these."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from backfire.attack_paths.cropping import Crop
from backfire.types import Rgb


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


def to_picture(image: Tensor) -> NDArray[np.float32]:
    """3,H,W on any device -> H,W,3 float32 on the CPU."""
    return image.permute(1, 2, 0).float().cpu().numpy()
