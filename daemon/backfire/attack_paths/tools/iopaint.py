"""IOPaint: a crop for each contour of the mask at its own scale; Stable Diffusion gets the whole picture."""

from __future__ import annotations

import numpy as np
import scipy  # it loads `ndimage`, which takes longest, when that is first used

from backfire.attack_paths.handed import Filters, Handed, MaskRule, Padding
from backfire.attack_paths.softening import Gaussian, filled
from backfire.attack_paths.tools.common import moved_inside, up, whole
from backfire.types import Box, Mask

CROPS_ABOVE = 800
"""Pictures with a longer side than this are cropped (`hd_strategy_crop_trigger_size`)."""
MARGIN = 128
"""Around the mask, on each side (`hd_strategy_crop_margin`)."""


def _contours(mask: Mask) -> list[Box]:
    """The boxes of the mask's outer contours, the lowest first, as OpenCV lists them.

    Pixels that touch at a corner belong together; what lies in a hole has no contour of its own.
    """
    at = Box.around(mask)
    labels, _ = scipy.ndimage.label(filled(mask[at.slices]), np.ones((3, 3)))
    boxes = [
        Box(at.left + columns.start, at.top + rows.start, at.left + columns.stop, at.top + rows.stop)
        for rows, columns in scipy.ndimage.find_objects(labels)
    ]
    return boxes[::-1]


def _around(box: Box, mask: Mask) -> Box:
    """The crop around a contour: what a border takes from one side is added to the other.

    The centre and half the width are rounded down, so that odd widths lose a pixel.
    """
    height, width = mask.shape
    across, down = (box.width + 2 * MARGIN) // 2, (box.height + 2 * MARGIN) // 2
    left, right = moved_inside((box.left + box.right) // 2 - across, 2 * across, width)
    top, bottom = moved_inside((box.top + box.bottom) // 2 - down, 2 * down, height)
    return Box(left, top, right, bottom)


def _padded(mask: Mask, box: Box, multiple: int, least: int, square: bool, rule: MaskRule) -> Handed:
    """A crop at its own scale, mirrored at the right and at the bottom up to what the model takes."""
    height, width = max(up(box.height, multiple), least), max(up(box.width, multiple), least)
    if square:
        height = width = max(height, width)
    padding = Padding(right=width - box.width, bottom=height - box.height)
    return Handed(mask, box, (box.height, box.width), None, padding, rule=rule)


def crops(mask: Mask, *, multiple: int = 8, least: int = 0, square: bool = False) -> list[Handed]:
    """A crop for each contour, or all of a small picture; mirrored up to what the model takes."""
    large = max(mask.shape) > CROPS_ABOVE
    boxes = [_around(box, mask) for box in _contours(mask)] if large else [whole(mask)]
    return [_padded(mask, box, multiple, least, square, MaskRule()) for box in boxes]


def migan(mask: Mask, *, side: int = 512) -> list[Handed]:
    """Crops at every size of picture but one that fits exactly, and scales crops down to `side`."""
    if mask.shape == (side, side):
        return crops(mask, multiple=side, least=side, square=True)
    calls = []
    for contour in _contours(mask):
        box = _around(contour, mask)
        ratio = min(side / max(box.height, box.width), 1)
        scaled = int(box.height * ratio + 0.5), int(box.width * ratio + 0.5)
        padding = Padding(right=side - scaled[1], bottom=side - scaled[0])
        calls.append(Handed(mask, box, scaled, Filters.all("cv2-cubic"), padding))
    return calls


def diffusion(mask: Mask) -> list[Handed]:
    """The whole picture at its own scale. The mask is blurred by 12 px for blending, not for the model."""
    rule = MaskRule(blend=(Gaussian(sigma=0.3 * (12 - 1) + 0.8, radius=12),))
    return [_padded(mask, whole(mask), 8, 512, False, rule)]
