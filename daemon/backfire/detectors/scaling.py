"""Scaling pictures to the sizes that networks take."""

from __future__ import annotations

import numpy as np
from skimage.transform import resize

from backfire.detectors.networks import Floats
from backfire.types import Rgb


def halved(image: Rgb) -> Rgb:
    """The picture at half size: the means of 2 x 2 pixels, without an odd last row or column."""
    height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    total = np.full((height // 2, width // 2, 3), 2, dtype=np.uint16)  # 2 rounds the division by 4
    for row in (0, 1):
        for column in (0, 1):
            total += image[row:height:2, column:width:2]
    return (total >> 2).astype(np.uint8)


def resized(image: Rgb, height: int, width: int) -> Floats:
    """A picture at another size: float32 H,W,3 in 0..255, sampled linearly.

    Large pictures are halved first, so that no more than a quarter of one is converted to float.
    """
    while image.shape[0] >= 2 * height and image.shape[1] >= 2 * width:
        image = halved(image)
    smaller = height < image.shape[0] or width < image.shape[1]
    sampled = resize(  # type: ignore[no-untyped-call]
        image.astype(np.float32), (height, width, 3), order=1, anti_aliasing=smaller, preserve_range=True
    )
    return np.asarray(sampled, dtype=np.float32)
