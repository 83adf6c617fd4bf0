"""How pictures are compared: SSIM under a mask, and PSNR over what was optimised. No torch, no model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from backfire import imaging
from backfire.attack_paths.cropping import Crop
from backfire.types import Mask, Rgb

SSIM_WINDOW = 11
"""Side of the Gaussian window of `masked_ssim`, in pixels."""

Picture = NDArray[np.float32]
"""H,W,3 in [0,1]."""


def masked_ssim(a: Picture, b: Picture, mask: Mask) -> float:
    """SSIM (Wang 2004, Gaussian window of standard deviation 1.5) of two pictures, averaged under a mask.

    Args:
        a, b: H,W,3 in [0,1].
        mask: H,W bool, True where it counts.

    Returns:
        In [-1,1]; 1 for equal pictures.
    """
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    short = [(0, max(SSIM_WINDOW - side, 0)) for side in mask.shape]
    if any(more for _, more in short):  # a picture smaller than the window
        a, b = (np.pad(picture, [*short, (0, 0)], mode="edge") for picture in (a, b))
        mask = np.pad(mask, short)
    _, similarity = structural_similarity(  # type: ignore[no-untyped-call]
        a, b, channel_axis=2, data_range=1.0, full=True, **options
    )
    return float(similarity[mask].mean())


def psnr_over(original: Rgb, published: Rgb, crops: Sequence[Crop]) -> float:
    """PSNR in dB over the pixels of the crops; infinite where nothing differs there.

    Args:
        original, published: uint8 H,W,3.
    """
    where = np.zeros(original.shape[:2], dtype=np.bool_)
    for crop in crops:
        where[crop.box.slices] = True
    return imaging.psnr(original[where], published[where])
