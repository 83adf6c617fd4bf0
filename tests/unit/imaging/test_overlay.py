"""The drawing of regions on a picture."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from backfire.imaging import drawing
from backfire.types import Box, Region, Rgb


def blank(width: int, height: int) -> Rgb:
    return np.full((height, width, 3), 128, dtype=np.uint8)


def row(count: int, label: str = "text") -> list[Region]:
    return [Region(Box(20 + 30 * i, 60, 40 + 30 * i, 75), label, 0.9, "text") for i in range(count)]


def test_captions_do_not_overlap() -> None:
    plates = drawing.plates(row(4), 1.0, (400, 150))
    assert len(plates) == 4
    assert not any(a.overlaps(b) for i, a in enumerate(plates) for b in plates[:i])
    assert all(plate.left >= 0 and plate.right <= 400 and 0 <= plate.top <= 140 for plate in plates)
    page = drawing.drawn(blank(400, 150), row(4))
    assert all((page[plate.slices] == drawing.PAPER).all(axis=2).any() for plate in plates), "letters on each"


def test_a_caption_names_the_detector_if_the_label_does_not() -> None:
    assert drawing.caption(Region(Box(0, 0, 1, 1), "face", 0.9, "faces")) == "face 0.90"
    assert drawing.caption(Region(Box(0, 0, 1, 1), "logo acme", 0.5, "logos")) == "logo acme 0.50"
    assert drawing.caption(Region(Box(0, 0, 1, 1), "mask", 1, "sidecar")) == "mask 1.00 (sidecar)"


@pytest.mark.parametrize("size", [(1, 1), (3, 4000), (5000, 7), (2400, 1800)])
def test_every_region_is_visible_however_small_the_drawing_is(size: tuple[int, int]) -> None:
    last = Box(size[0] - 1, size[1] - 1, *size)
    for region in (Region(last, "a", 1, "b"), Region(last, "a", 1, "b", np.ones((1, 1), np.bool_))):
        scale = min(1.0, drawing.WIDE / size[0], drawing.TALL / size[1])
        shown = max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)
        assert drawing.scaled_mask(region, scale, shown).any()
        assert drawing.drawn(blank(*size), [region]).shape == (shown[1], shown[0], 3)


def test_shapes_are_drawn_as_they_are() -> None:
    disc = np.hypot(*np.mgrid[-300:300, -300:300]) < 300
    region = Region(Box(600, 300, 1200, 900), "a", 1, "b", disc)
    plane = drawing.scaled_mask(region, 0.5, (1200, 900))
    np.testing.assert_array_equal(plane, region.plane(1800, 2400)[1::2, 1::2])


def test_small_pictures_are_drawn_side_by_side_and_complete() -> None:
    sizes = [(500, 300), (500, 300), (500, 300), (1200, 100)]
    pages = [(f"{width}: 1 region", blank(width, height)) for width, height in sizes]
    with Image.open(io.BytesIO(drawing.sheet(pages, kind="PNG"))) as page:
        pixels = np.asarray(page.convert("L"))
    grey = (pixels == 128).sum()
    assert grey >= 3 * 500 * 300 + 1200 * 100
    assert page.width <= 1200 + 2 * drawing.GAP
    assert page.height < 3 * 300 + 100
