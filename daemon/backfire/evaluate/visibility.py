"""How much of a broken edit a person sees: colour differences after the eye's own blur (S-CIELAB).

Structural similarity can fall without anybody noticing: fine grain that is replaced by other fine grain
looks the same from a chair. So both pictures are first blurred as the human eye blurs them at a normal
viewing distance, each opponent colour channel by its own contrast sensitivity, and then compared by
CIEDE2000. This is S-CIELAB (Zhang and Wandell, "A spatial extension of CIELAB for digital color image
reproduction", SID 1996; https://doi.org/10.1889/1.1985127) with the newer colour difference formula.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.color import deltaE_ciede2000, rgb2xyz, xyz2lab

from backfire.types import Box, Mask

PIXELS_PER_DEGREE = 40.0
"""Of visual angle: a screen of 96 pixels an inch seen from 60 cm, at 100 %."""
PLAIN = 10.0
"""CIEDE2000 from which a person sees a difference at a glance. 1 is just noticeable side by side; from
about 10 on, two colours count as different rather than as shades of one."""
SURROUNDINGS = 1.0
"""Degrees of visual angle around a mask that are looked at with it."""
FINE = 4.0
"""A blur wider than this many pixels is computed on a smaller plane: it leaves nothing finer."""

# XYZ -> luminance, red-green and blue-yellow, as published.
_OPPONENT = np.array(
    [[0.279, 0.720, -0.107], [-0.449, 0.290, -0.077], [0.086, -0.590, 0.501]], dtype=np.float64
)
# Weights and standard deviations, in degrees of visual angle, of the Gaussians that blur each channel.
_BLURS = (
    ((0.921, 0.0283), (0.105, 0.133), (-0.108, 4.336)),
    ((0.531, 0.0392), (0.330, 0.494)),
    ((0.488, 0.0536), (0.371, 0.386)),
)


def difference(
    a: NDArray[np.float32], b: NDArray[np.float32], *, pixels_per_degree: float = PIXELS_PER_DEGREE
) -> NDArray[np.float32]:
    """CIEDE2000 between two pictures as the eye sees them.

    Args:
        a, b: H,W,3 float in [0,1], sRGB.
        pixels_per_degree: how many pixels one degree of visual angle covers.

    Returns:
        H,W float32; 0 where the eye sees no difference.
    """
    lab = [xyz2lab(_blurred(rgb2xyz(picture), pixels_per_degree)) for picture in (a, b)]
    apart: NDArray[np.float32] = deltaE_ciede2000(*lab).astype(np.float32)  # type: ignore[no-untyped-call]
    return apart


def visible(a: NDArray[np.float32], b: NDArray[np.float32], mask: Mask) -> float:
    """The share of a masked area in which two pictures plainly differ, in [0,1].

    Args:
        a, b: H,W,3 float in [0,1], sRGB: an edit of the original, and the same edit of the protected copy.
        mask: H,W bool, True = edited; at least one pixel.
    """
    height, width = mask.shape
    box = Box.around(mask).grown(round(SURROUNDINGS * PIXELS_PER_DEGREE), width, height).slices
    return float((difference(a[box], b[box])[mask[box]] > PLAIN).mean())


def _blurred(xyz: NDArray[np.float64], pixels_per_degree: float) -> NDArray[np.float64]:
    """H,W,3 in XYZ, each opponent channel blurred by its own kernel of weight 1."""
    opponent = xyz @ _OPPONENT.T
    for channel, blurs in enumerate(_BLURS):
        plane = opponent[..., channel].copy()
        total = sum(weight for weight, _ in blurs)
        opponent[..., channel] = sum(
            weight / total * _gaussian(plane, degrees * pixels_per_degree) for weight, degrees in blurs
        )
    back: NDArray[np.float64] = np.clip(opponent @ np.linalg.inv(_OPPONENT).T, 0, None)
    return back


def _gaussian(plane: NDArray[np.float64], deviation: float) -> NDArray[np.float64]:
    """H,W blurred by a Gaussian of that standard deviation in pixels; its edge values go on beyond it."""
    factor = max(int(deviation / FINE), 1)
    if factor > 1:
        height, width = plane.shape
        padded = np.pad(plane, ((0, -height % factor), (0, -width % factor)), mode="edge")
        cells = padded.reshape(padded.shape[0] // factor, factor, padded.shape[1] // factor, factor)
        small = ndimage.gaussian_filter(cells.mean(axis=(1, 3)), deviation / factor, mode="nearest")
        rows = (np.arange(height) + 0.5) / factor - 0.5
        columns = (np.arange(width) + 0.5) / factor - 0.5
        at = np.meshgrid(rows, columns, indexing="ij")
        large: NDArray[np.float64] = ndimage.map_coordinates(small, at, order=1, mode="nearest")
        return large
    blurred: NDArray[np.float64] = ndimage.gaussian_filter(plane, deviation, mode="nearest")
    return blurred
