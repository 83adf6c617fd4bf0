"""Contrast masking: where the eye forgives a perturbation. Plain numpy.

A perturbation hides in texture and shows in flat areas (a wall, a sky, skin), so flat areas get a
smaller share of the budget.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from backfire.types import Rgb

BUSY = 10.0
"""Local standard deviation, in levels of 255, from which texture hides all of the budget."""
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""The weights of red, green and blue in luma (ITU-R BT.601, as JPEG has it)."""


def budget_share(rgb: Rgb, flat: float) -> NDArray[np.float32]:
    """The share of the budget that each pixel may use, H,W in [flat, 1].

    Args:
        rgb: uint8 H,W,3.
        flat: the share in perfectly flat areas; 1 makes the budget even.
    """
    if flat >= 1:
        return np.ones(rgb.shape[:2], dtype=np.float32)
    luma = rgb.astype(np.float32) @ LUMA
    mean = ndimage.gaussian_filter(luma, 1.5)
    deviation = np.sqrt(np.maximum(ndimage.gaussian_filter(luma**2, 1.5) - mean**2, 0))
    # The smallest one nearby, since the flat side of an edge is flat to the eye.
    quiet = ndimage.gaussian_filter(ndimage.minimum_filter(deviation, size=5), 1.5)
    out: NDArray[np.float32] = (flat + (1 - flat) * np.clip(quiet / BUSY, 0, 1)).astype(np.float32)
    return out
