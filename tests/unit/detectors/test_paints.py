"""A painted mask has a region for each paint, and none for the shades along an antialiased edge."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from backfire.config import Sidecars
from backfire.detectors import Sidecar, Source
from backfire.detectors.sidecar import COLOURS, SidecarDetector, marked
from backfire.types import Box, Region
from tests.unit.detectors.test_markup import png

RED, BLUE, GREEN, MAROON = (255, 0, 0), (0, 0, 255), (0, 255, 0), (160, 0, 0)
Painter = Callable[[ImageDraw.ImageDraw], object]
Painting = NDArray[np.uint8]


def smooth(*painters: Painter, ground: tuple[int, int, int] = (0, 0, 0)) -> Painting:
    """What they draw four times as large as 300x200 pixels, then reduced: each edge pixel has a mean."""
    large = Image.new("RGB", (1200, 800), ground)
    for paint in painters:
        paint(ImageDraw.Draw(large))
    return np.array(large.reduce(4))


def ellipse(draw: ImageDraw.ImageDraw) -> None:
    draw.ellipse((201, 203, 602, 499), fill=RED)


def regions(painting: Painting) -> list[Region]:
    """Those of a painting, whose masks hold every marked pixel and no other."""
    rgba = np.dstack([painting, np.full(painting.shape[:2], 255, np.uint8)])
    mask = marked(rgba, Sidecars())
    assert 2 < len(np.unique(painting[mask], axis=0)) <= COLOURS, "there is something to tell apart"
    source = Source("cat.jpg", (Sidecar("cat.mask.png", png(painting)),))
    found = SidecarDetector().detect(np.zeros_like(painting), source=source)
    assert (np.sum([region.plane(*mask.shape) for region in found], axis=0) == mask).all()
    return found


@pytest.mark.parametrize(
    ("painter", "box"),
    [
        (ellipse, Box(50, 51, 151, 125)),
        (lambda draw: draw.rounded_rectangle((202, 201, 601, 499), 90, fill=RED), Box(50, 50, 151, 125)),
        (lambda draw: draw.rectangle((202, 201, 600, 498), fill=RED), Box(50, 50, 150, 125)),
        (lambda draw: draw.line((101, 103, 1003, 605), fill=RED, width=7), Box(25, 25, 252, 153)),
    ],
    ids=["ellipse", "rounded", "half-pixel", "thin-line"],
)
@pytest.mark.parametrize("ground", [(0, 0, 0), (0, 60, 90)])
def test_the_shades_of_a_smooth_edge_are_no_regions(
    painter: Painter, box: Box, ground: tuple[int, int, int]
) -> None:
    (found,) = regions(smooth(painter, ground=ground))
    assert found.label == "mask #ff0000"
    assert all(abs(one - other) <= 1 for one, other in zip(found.box, box, strict=True))


def test_where_two_paints_touch_the_blends_between_them_go_to_either() -> None:
    """Two ellipses, and the corner at which both meet the ground."""
    painting = smooth(ellipse, lambda draw: draw.ellipse((402, 203, 803, 498), fill=BLUE))
    painting = np.rint(painting / 63.75).astype(int) * 255 // 4  # in fewer shades, as a small brush has
    found = regions(painting.astype(np.uint8))
    assert [one.label for one in found] == ["mask #0000ff", "mask #ff0000"]
    blue, red = found
    assert abs(blue.box.right - 201) <= 1
    assert abs(red.box.left - 50) <= 1


@pytest.mark.parametrize(
    ("colour", "box", "label"),
    [
        (GREEN, Box(110, 90, 112, 92), "mask #00ff00"),  # on the ellipse, in a colour that nothing explains
        (MAROON, Box(250, 20, 252, 22), "mask #a00000"),  # a shade of red, but not near it
        (MAROON, Box(160, 60, 168, 68), "mask #a00000"),  # near it, but solid
        ((255, 0, 255), Box(60, 20, 61, 40), "mask #ff00ff"),  # a hairline
    ],
)
def test_a_small_region_in_a_colour_of_its_own_stays(
    colour: tuple[int, int, int], box: Box, label: str
) -> None:
    painting = smooth(ellipse)
    painting[box.slices] = colour
    inside = np.zeros((200, 300), np.bool_)
    inside[box.slices] = True
    found = {one.label: one for one in regions(painting)}
    assert set(found) == {"mask #ff0000", label}
    assert found[label].box == box
    assert np.array_equal(found[label].plane(200, 300), (painting == colour).all(axis=2) & inside)


def test_a_purple_stroke_is_no_blend_where_red_and_blue_are_far_apart() -> None:
    painting = smooth(ellipse, lambda draw: draw.rectangle((900, 600, 1099, 699), fill=BLUE))
    painting[20:22, 100:140] = (128, 0, 128)
    assert {one.label for one in regions(painting)} == {"mask #ff0000", "mask #0000ff", "mask #800080"}
