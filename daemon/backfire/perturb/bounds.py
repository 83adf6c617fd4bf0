"""How far each pixel of a crop may move, in any channel, in luma and in colour, and the move that is allowed.

Brightness shows in flat areas (a wall, a sky, skin) and hides in texture; fine grain in colour shows little
anywhere, but more than brightness does in texture. So luma and the two colour differences of Y'CbCr (ITU-R
BT.601, as JPEG has them) have bounds of their own beside that of red, green and blue.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from backfire.attack_paths import cropping
from backfire.attack_paths.cropping import Crop
from backfire.config import Protect
from backfire.perturb import contrast_masking
from backfire.types import Budget, Rgb

Array = NDArray[np.float32]

TO_YCBCR = np.array(
    [contrast_masking.LUMA, [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32
)
"""From differences of red, green and blue to those of luma, Cb and Cr."""
TO_RGB = np.array([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]], np.float32)
"""The inverse. Luma alone moves all three channels by exactly as much."""
IN_TEXTURE = 0.6
"""The share of colour's bound that is left where texture hides brightness, which carries more there."""
NOISE = 1e-6
"""What is lost in rounding of numbers: moves that exceed a bound by so little are left as they are."""


@dataclass(frozen=True, eq=False)
class Bounds:
    """The bounds of one crop, on the [0,1] scale.

    Attributes:
        most: H,W, of each of red, green and blue.
        apart: H,W,3, of luma, Cb and Cr; None where these have no bounds of their own.
    """

    most: Array
    apart: Array | None

    @classmethod
    def of(cls, rgb: Rgb, crop: Crop, settings: Protect, before: Array, *, grey: bool) -> Bounds:
        """The bounds of a crop of a picture uint8 H,W,3.

        Args:
            before: the perturbation of the crop that is there already, H,W,3, which the bounds admit.
            grey: whether only luma may move.
        """
        free = cropping.taper(crop.box, rgb.shape[0], rgb.shape[1]) * Budget(settings.epsilon).unit
        free = free * cropping.reached(crop, settings.reach_px, settings.reach_share)
        if settings.keep_region_exact:
            free[crop.inside()] = 0
        most: Array = np.maximum(free, np.abs(before).max(axis=2))
        flat, colour = settings.flat_luma_share, settings.colour_share
        if flat >= 1 <= colour and not grey:
            return cls(most, None)
        if grey:  # luma carries what colour cannot, and shows more
            flat, colour = math.sqrt(flat * max(flat, colour)), 0.0
        hidden = contrast_masking.texture(rgb[crop.box.slices])
        luma = free * (flat + (1 - flat) * hidden)
        specks = free * colour * (1 - (1 - IN_TEXTURE) * hidden)
        apart = np.stack([luma, specks, specks], axis=2)
        return cls(most, np.maximum(apart, np.abs(before @ TO_YCBCR.T)).astype(np.float32))

    def at_own_size(self, perturbation: Tensor, crop: Crop) -> Array:
        """1,3,h,w at the crop's working size -> H,W,3 at its own, within these bounds."""
        if crop.scaled:
            size = crop.box.height, crop.box.width
            perturbation = F.interpolate(perturbation, size=size, mode="bicubic", align_corners=False)
        device = perturbation.device
        most = plane(self.most, perturbation.shape[-2:], device)
        apart = None if self.apart is None else plane(self.apart, perturbation.shape[-2:], device)
        allowed: Array = within(perturbation, most, apart)[0].permute(1, 2, 0).cpu().numpy()
        return allowed


def within(perturbation: Tensor, most: Tensor, apart: Tensor | None, image: Tensor | None = None) -> Tensor:
    """An allowed perturbation near one.

    Args:
        perturbation: 1,3,H,W on the [0,1] scale.
        most: 1,1,H,W, how far red, green and blue may move.
        apart: 1,3,H,W, how far luma, Cb and Cr may move; None where they have no bounds of their own.
        image: 1,3,H,W, the picture, which must stay in [0,1]; None: it is not looked at.
    """

    def in_rgb(change: Tensor) -> Tensor:
        change = _clipped(change, most)
        return change if image is None else (image + change).clamp(0, 1) - image

    if apart is None:
        return in_rgb(perturbation)
    for _ in range(2):  # what is clipped in RGB moves luma and colour once more
        perturbation = in_rgb(to_rgb(_clipped(to_ycbcr(perturbation), apart)))
    moved = to_ycbcr(perturbation).abs()
    excess = torch.where(moved > apart + NOISE, apart / moved.clamp(min=NOISE), torch.ones_like(moved))
    # To shrink what is left over breaks no other bound.
    return perturbation * excess.amin(dim=1, keepdim=True)


def plane(array: Array, size: tuple[int, int] | torch.Size, device: torch.device) -> Tensor:
    """H,W or H,W,C float32 -> 1,C,h,w of that size, its cells' means."""
    tensor = torch.from_numpy(np.atleast_3d(array)).to(device).permute(2, 0, 1)[None].contiguous()
    return tensor if tensor.shape[-2:] == tuple(size) else F.interpolate(tensor, size=size, mode="area")


def to_ycbcr(change: Tensor) -> Tensor:
    """1,3,H,W, differences of red, green and blue -> differences of luma, Cb and Cr."""
    return _turned(change, TO_YCBCR)


def to_rgb(change: Tensor) -> Tensor:
    """The inverse of `to_ycbcr`."""
    return _turned(change, TO_RGB)


def gradient_in_ycbcr(gradient: Tensor) -> Tensor:
    """The gradient by luma, Cb and Cr of what has this gradient by red, green and blue; 1,3,H,W both."""
    return _turned(gradient, TO_RGB.T)


def quantised(rgb: Rgb, perturbation: Array) -> Rgb:
    """The picture plus a perturbation H,W,3 on the [0,1] scale, in whole levels."""
    levels = np.rint(perturbation * 255).astype(np.int16)
    result: Rgb = np.clip(rgb.astype(np.int16) + levels, 0, 255).astype(np.uint8)
    return result


def _turned(planes: Tensor, matrix: Array) -> Tensor:
    return torch.einsum("ij,njhw->nihw", planes.new_tensor(matrix), planes)


def _clipped(planes: Tensor, bound: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(planes, -bound), bound)
