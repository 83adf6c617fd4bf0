"""Stable Diffusion WebUI Forge, and A1111 that it descends from: the tab Inpaint."""

from __future__ import annotations

from backfire.attack_paths.handed import Filters, Handed, MaskRule, Padding
from backfire.attack_paths.resampling import Beyond
from backfire.attack_paths.softening import Doubled, Gaussian
from backfire.attack_paths.tools import common
from backfire.attack_paths.tools.common import moved_inside, reached
from backfire.types import Box, Mask

BLUR = Gaussian(sigma=4, radius=10, eight_bit=True)
"""`Mask blur` 4 is sigma: OpenCV's kernel of 21 pixels, along rows and then along columns, each in 8 bits."""

LANCZOS = Filters.all("pil-lanczos")


def whole(mask: Mask, *, side: int = 512) -> list[Handed]:
    """The whole picture is resized to the working size whatever its aspect (`Just resize`)."""
    rule = MaskRule(on_picture_grid=(BLUR,), blend=(Doubled(),), blend_scaled=True)
    return [Handed(mask, common.whole(mask), (side, side), LANCZOS, rule=rule)]


def masked(mask: Mask, *, side: int = 512, margin: int = 32) -> list[Handed]:
    """The box of the blurred mask and `margin` px around it, grown to a square, moved into the picture."""
    height, width = mask.shape
    blurred = reached(mask, (BLUR,))
    assert blurred is not None, "a blur alone leaves something of every mask"
    box = blurred.grown(margin, width, height)
    longer = max(box.width, box.height)
    if box.width > box.height:
        top, bottom = moved_inside(box.top - (longer - box.height) // 2, longer, height)
        box = box._replace(top=top, bottom=bottom)
    else:
        left, right = moved_inside(box.left - (longer - box.width) // 2, longer, width)
        box = box._replace(left=left, right=right)
    # A picture that is too small for a square is fitted into one; its border fills the rest.
    across = max(min(box.width * side // box.height, side), 1)
    down = max(min(box.height * side // box.width, side), 1)
    left, top = side // 2 - across // 2, side // 2 - down // 2
    padding = Padding(left, top, side - left - across, side - top - down, Beyond.EXTRAPOLATED)
    rule = MaskRule(on_picture_grid=(BLUR,), blend=(BLUR,))
    # The result is enlarged to a square over the crop's longer side, of which the crop's middle is pasted.
    left = box.left + box.width // 2 - longer // 2
    top = box.top + box.height // 2 - longer // 2
    back = Box(left, top, left + longer, top + longer)
    return [Handed(mask, box, (down, across), LANCZOS, padding, back_box=back, rule=rule)]
