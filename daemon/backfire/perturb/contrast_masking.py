"""Contrast masking: where texture hides a perturbation. Plain numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from backfire.types import Rgb

BUSY = 18.0
"""Local standard deviation, in levels of 255, from which texture hides all of the budget."""
NEARBY = 11
"""The side, in pixels, of the square in which the quietest place decides: a feather against a sky is no
texture, and dots on it are seen at once."""
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""The weights of red, green and blue in luma (ITU-R BT.601, as JPEG has it)."""


def texture(rgb: Rgb) -> NDArray[np.float32]:
    """How much of a perturbation in luma the surroundings of each pixel hide: 0 where all is flat, 1 where
    all of the budget is hidden; H,W.

    Args:
        rgb: uint8 H,W,3.
    """
    luma = rgb.astype(np.float32) @ LUMA
    mean = ndimage.gaussian_filter(luma, 1.5)
    deviation = np.sqrt(np.maximum(ndimage.gaussian_filter(luma**2, 1.5) - mean**2, 0))
    quiet = ndimage.gaussian_filter(ndimage.minimum_filter(deviation, size=NEARBY), 1.5)
    hidden: NDArray[np.float32] = np.clip(quiet / BUSY, 0, 1).astype(np.float32)
    return hidden
