"""Transforms: what may happen to a picture between publishing and editing. JPEG, blur and noise.

All are differentiable, so that a method can optimise through them. JPEG is the real codec's arithmetic
(ITU-T T.81: YCbCr 4:2:0, 8x8 DCT, the tables of its Annex K scaled by quality as libjpeg scales them);
rounding is given the gradient of the identity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from backfire.attack_paths.resampling import weights_of

QUALITIES = (75, 50, 25)
"""JPEG qualities to draw from: those of web sites and messengers, and worse."""
CHAIN_QUALITY = 75
"""Of both JPEGs of `chained`."""
BLUR, NOISE = 0.7, 2.0
"""Standard deviations of the blur, in pixels, and of the noise, in levels of 255."""

# fmt: off
_LUMINANCE = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)
_CHROMINANCE = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99, *([99] * 32),
)
# fmt: on
_TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


@dataclass(frozen=True)
class Transform:
    """What happens to a picture on its way to an editor; by default nothing.

    Attributes:
        quality: of the JPEG that it is saved as; None for none.
        blur: standard deviation, in pixels.
        noise: standard deviation, in levels of 255.
    """

    quality: int | None = None
    blur: float = 0.0
    noise: float = 0.0

    def __call__(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        """N,3,H,W in [0,1] -> the same, differentiable; `rng` draws the noise."""
        if self.blur:
            image = blurred(image, self.blur)
        if self.noise:
            drawn = rng.standard_normal(tuple(image.shape), dtype=np.float32)
            image = (image + torch.from_numpy(drawn).to(image.device) * self.noise / 255).clamp(0, 1)
        return image if self.quality is None else jpeg(image, self.quality)


def transforms(robust_to: Sequence[str]) -> list[Transform]:
    """The identity first, then the transforms that `robust_to` (`jpeg`, `blur`) names."""
    found = [Transform()]
    if "jpeg" in robust_to:
        found += [Transform(quality) for quality in QUALITIES]
    if "blur" in robust_to:
        found += [Transform(blur=BLUR), Transform(noise=NOISE)]
    return found


def chained(image: Tensor) -> Tensor:
    """N,3,H,W in [0,1] after two sites: JPEG, half size (Lanczos), JPEG again; N,3,h,w, differentiable."""
    return jpeg(halved(jpeg(image, CHAIN_QUALITY)).clamp(0, 1), CHAIN_QUALITY)


def halved(image: Tensor) -> Tensor:
    """N,C,H,W at half size as Pillow's Lanczos filter makes it, but for its rounding to 8 bits."""
    rows, columns = (
        torch.from_numpy(weights_of("pil-lanczos", side, half_of(side)).copy()).to(image)
        for side in image.shape[-2:]
    )
    return rows @ image @ columns.T


def half_of(side: int) -> int:
    """Half of a side in whole pixels; at least 8."""
    return max(round(side / 2), 8)


def blurred(image: Tensor, deviation: float) -> Tensor:
    """N,C,H,W through a Gaussian of that standard deviation in pixels."""
    reach = max(round(3 * deviation), 1)
    offsets = torch.arange(-reach, reach + 1, dtype=image.dtype, device=image.device)
    kernel = torch.exp(-(offsets**2) / (2 * deviation**2))
    kernel = (kernel / kernel.sum()).expand(image.shape[1], 1, 1, -1)
    groups = image.shape[1]
    wide = F.pad(image, (reach, reach, reach, reach), mode="replicate")
    across = F.conv2d(wide, kernel, groups=groups)
    return F.conv2d(across, kernel.transpose(2, 3), groups=groups)


def jpeg(image: Tensor, quality: int) -> Tensor:
    """N,3,H,W in [0,1] as it comes out of a 4:2:0 JPEG of that quality (1 to 100).

    For the gradient, rounding is the identity.
    """
    height, width = image.shape[-2:]
    padded = F.pad(image, (0, -width % 16, 0, -height % 16), mode="replicate")
    matrix = torch.tensor(_TO_YCBCR, dtype=torch.float32, device=image.device)
    planes = torch.einsum("ij,njhw->nihw", matrix, _rounded(padded.float() * 255))
    chroma = F.avg_pool2d(planes[:, 1:], 2)
    luma = _coded(planes[:, :1] - 128, _table(quality, luminance=True).to(image.device)) + 128
    chroma = _coded(chroma, _table(quality, luminance=False).to(image.device))
    chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
    rgb = torch.einsum("ij,njhw->nihw", torch.linalg.inv(matrix), torch.cat([luma, chroma], dim=1))
    return _rounded(rgb.clamp(0, 255))[..., :height, :width] / 255


def _coded(plane: Tensor, table: Tensor) -> Tensor:
    """N,C,H,W through DCT, quantisation and back; H and W are multiples of 8."""
    n, c, height, width = plane.shape
    basis = _basis().to(plane.device)
    blocks = plane.reshape(n, c, height // 8, 8, width // 8, 8).transpose(3, 4)
    coefficients = basis @ blocks @ basis.T
    coefficients = _rounded(coefficients / table) * table
    blocks = basis.T @ coefficients @ basis
    return blocks.transpose(3, 4).reshape(n, c, height, width)


def _rounded(value: Tensor) -> Tensor:
    return value + (value.round() - value).detach()


@cache
def _basis() -> Tensor:
    """The orthonormal 8-point DCT-II; 8,8."""
    k, x = np.mgrid[:8, :8]
    basis = np.cos((2 * x + 1) * k * math.pi / 16) / 2
    basis[0] /= math.sqrt(2)
    return torch.from_numpy(basis).float()


@cache
def _table(quality: int, *, luminance: bool) -> Tensor:
    """Quantisation steps, 8,8, as libjpeg scales them."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    base = np.array(_LUMINANCE if luminance else _CHROMINANCE)
    steps = np.clip((base * scale + 50) // 100, 1, 255)
    return torch.from_numpy(steps.reshape(8, 8)).float()
