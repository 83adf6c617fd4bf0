"""How far each pixel of a crop may move, in any channel, in luma and in colour, and the move that is allowed.

Brightness shows in flat areas (a wall, a sky, skin) and hides in texture; fine grain in colour shows little
in either, as long as it is faint. So luma and the two colour differences of Y'CbCr (ITU-R
BT.601, as JPEG has them) have bounds of their own beside that of red, green and blue.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

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
GREY = 0.2
"""The least share of the budget for luma in flat areas where it alone can change, as in grey pictures."""
STRIP = 256
"""How many rows of a large picture are looked at together."""
COARSE = 2.0
"""The standard deviation, in pixels, of the blur that leaves of a change what is coarse."""
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
        if grey:
            flat, colour = max(flat, GREY), 0.0
        hidden = contrast_masking.texture(rgb[crop.box.slices])
        luma = free * (flat + (1 - flat) * hidden)
        apart = np.stack([luma, free * colour, free * colour], axis=2)
        apart = np.maximum(apart, np.abs(before @ TO_YCBCR.T))
        if grey:
            apart[:, :, 1:] = 0
        return cls(most, apart.astype(np.float32))

    def at_own_size(self, perturbation: Tensor, crop: Crop, rgb: Rgb) -> Array:
        """What a projected perturbation is at the crop's own size, where it may be larger than it was worked.

        Args:
            perturbation: 1,3,h,w at the crop's working size, within these bounds there.
            rgb: uint8 H,W,3, the crop.

        Returns:
            H,W,3 within these bounds.
        """
        if not crop.scaled:
            return _picture(perturbation)
        height, width = crop.box.height, crop.box.width
        large = F.interpolate(perturbation, size=(height, width), mode="bicubic", align_corners=False).cpu()
        out: Array = np.empty((height, width, 3), np.float32)
        for top in range(0, height, STRIP):
            rows = slice(top, top + STRIP)
            most, image = _planes(self.most[rows]), _planes(rgb[rows].astype(np.float32)) / 255
            apart = None if self.apart is None else _planes(self.apart[rows])
            out[rows] = _picture(within(large[:, :, rows], most, apart, image))
        return out


def within(perturbation: Tensor, most: Tensor, apart: Tensor | None, image: Tensor) -> Tensor:
    """An allowed perturbation near one.

    Args:
        perturbation: 1,3,H,W on the [0,1] scale.
        most: 1,1,H,W, how far red, green and blue may move.
        apart: 1,3,H,W, how far luma, Cb and Cr may move; None where they have no bounds of their own.
        image: 1,3,H,W, the picture, which must stay in [0,1].
    """

    def in_rgb(change: Tensor) -> Tensor:
        return (image + _clipped(change, most)).clamp(0, 1) - image

    if apart is None:
        return in_rgb(perturbation)
    luma_alone = apart[:, 1:].amax(dim=1, keepdim=True) == 0
    darker, brighter = -image.amin(dim=1, keepdim=True), 1 - image.amax(dim=1, keepdim=True)
    for _ in range(2):  # what is clipped in RGB moves luma and colour once more
        luma, colour = _clipped(to_ycbcr(perturbation), apart).tensor_split([1], dim=1)
        luma = torch.where(luma_alone, torch.minimum(torch.maximum(luma, darker), brighter), luma)
        perturbation = in_rgb(to_rgb(torch.cat([luma, colour], dim=1)))
    moved = to_ycbcr(perturbation).abs()
    excess = torch.where(moved > apart + NOISE, apart / moved.clamp(min=NOISE), torch.ones_like(moved))
    # To shrink what is left over breaks no other bound.
    return perturbation * excess.amin(dim=1, keepdim=True)


def plane(array: Array, size: tuple[int, int] | torch.Size, device: torch.device) -> Tensor:
    """H,W or H,W,C float32 -> 1,C,h,w of that size, its cells' means."""
    tensor = _planes(array).to(device)
    return tensor if tensor.shape[-2:] == tuple(size) else F.interpolate(tensor, size=size, mode="area")


def to_ycbcr(change: Tensor) -> Tensor:
    """1,3,H,W, differences of red, green and blue -> differences of luma, Cb and Cr."""
    return _turned(change, _matrix("to YCbCr", change.device))


def to_rgb(change: Tensor) -> Tensor:
    """The inverse of `to_ycbcr`."""
    return _turned(change, _matrix("to RGB", change.device))


def gradient_in_ycbcr(gradient: Tensor) -> Tensor:
    """The gradient by luma, Cb and Cr of what has this gradient by red, green and blue; 1,3,H,W both."""
    return _turned(gradient, _matrix("to RGB", gradient.device).T)


def coarse_colour(change: Tensor) -> Tensor:
    """The part of a change of red, green and blue, 1,3,H,W, that is coarse and in colour: what shows as
    blotches on an even grey or a sky, where the eye sees no fine grain in colour. Nothing is changed beyond
    the edges.
    """
    blotches = to_ycbcr(change)
    blotches[:, :1] = 0
    for axis in (2, 3):
        kernel = _bell(change.device).unsqueeze(5 - axis).expand(3, 1, -1, -1)
        reach = [size // 2 for size in kernel.shape[-2:]]
        blotches = F.conv2d(blotches, kernel, padding=reach, groups=3)
    return to_rgb(blotches)


def quantised(rgb: Rgb, perturbation: Array) -> Rgb:
    """The picture plus a perturbation H,W,3 on the [0,1] scale, in whole levels."""
    levels = np.rint(perturbation * 255).astype(np.int16)
    result: Rgb = np.clip(rgb.astype(np.int16) + levels, 0, 255).astype(np.uint8)
    return result


@cache
def _bell(device: torch.device) -> Tensor:
    """A Gaussian of that deviation, 1,1,N, of sum 1."""
    reach = math.ceil(3 * COARSE)
    bell = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / COARSE) ** 2)
    return (bell / bell.sum())[None, None].to(device)


@cache
def _matrix(way: str, device: torch.device) -> Tensor:
    return torch.from_numpy({"to YCbCr": TO_YCBCR, "to RGB": TO_RGB}[way]).to(device)


def _turned(planes: Tensor, matrix: Tensor) -> Tensor:
    return torch.einsum("ij,njhw->nihw", matrix, planes)


def _planes(array: Array) -> Tensor:
    """H,W or H,W,C -> 1,C,H,W."""
    return torch.from_numpy(np.atleast_3d(array)).permute(2, 0, 1)[None].contiguous()


def _picture(perturbation: Tensor) -> Array:
    """1,3,H,W -> H,W,3."""
    out: Array = perturbation[0].permute(1, 2, 0).cpu().numpy()
    return out


def _clipped(planes: Tensor, bound: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(planes, -bound), bound)
