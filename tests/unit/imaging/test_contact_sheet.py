"""Contact sheets: each picture has its mark and its name, however many there are and whatever their names."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from backfire.imaging import contact_sheet
from backfire.imaging.contact_sheet import COLOURS, Group, Tile
from backfire.types import Rgb
from tests.support.pictures import encoded, photo

BLUE = (0, 0, 255)


def opened(page: bytes) -> Rgb:
    with Image.open(io.BytesIO(page)) as picture:
        assert picture.format == "JPEG"
        return np.asarray(picture.convert("RGB"))


def share(page: Rgb, colour: tuple[int, int, int]) -> int:
    """How many pixels have nearly this colour."""
    return int((np.abs(page.astype(int) - colour).max(axis=2) < 24).sum())


def tiles(count: int, mark: str = "protected", name: str = "a.jpg") -> list[Tile]:
    side = contact_sheet.side_of(count)
    picture = np.full((side, side // 2, 3), BLUE, np.uint8)
    return [Tile(name, mark, number, picture) for number in range(count)]


@pytest.mark.parametrize("count", [1, 9, 41])
def test_every_picture_is_shown_in_full(count: int) -> None:
    (page,) = contact_sheet.pages("Day", [Group("desk", tiles(count))])
    side = contact_sheet.side_of(count)
    # JPEG smears the edges.
    assert share(opened(page), BLUE) == pytest.approx(count * side * (side // 2), rel=0.06)
    assert share(opened(page), COLOURS["protected"]) > count * side * 8


@pytest.mark.parametrize("mark", COLOURS)
def test_marks_differ_by_colour(mark: str) -> None:
    (page,) = contact_sheet.pages("Day", [Group("desk", tiles(4, mark))])
    shown = {other: share(opened(page), colour) for other, colour in COLOURS.items()}
    assert max(shown, key=lambda one: shown[one]) == mark


def test_a_mark_is_written_too() -> None:
    """Two marks without a colour of their own are told apart."""
    one, other = (
        next(contact_sheet.pages("", [Group("", [Tile("", mark, 1, None)])]))
        for mark in ("skipped", "waiting")
    )
    assert not np.array_equal(opened(one), opened(other))


def test_what_is_too_high_is_split_into_pages() -> None:
    groups = [Group(f"folder {number}", tiles(30)) for number in range(3)]
    pages = [opened(page) for page in contact_sheet.pages("Year", groups, tall_most=600)]
    assert len(pages) > 2
    assert all(page.shape[0] <= 600 for page in pages)
    side = contact_sheet.side_of(90)
    drawn = sum(share(page, COLOURS["protected"]) for page in pages)
    assert drawn > 90 * side * 8


def test_an_empty_sheet_is_a_page() -> None:
    (page,) = contact_sheet.pages("Pictures: no pictures", [])
    assert opened(page).shape[1] == contact_sheet.WIDE


def test_thumbnails_are_upright_small_and_never_an_error() -> None:
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees
    turned = encoded(photo((160, 80)), "JPEG", exif=exif)
    found = contact_sheet.thumbnail(turned, 64, max_pixels=10**6)
    assert found is not None
    assert found.shape == (64, 32, 3)
    assert contact_sheet.thumbnail(turned, 64, max_pixels=100) is None
    assert contact_sheet.thumbnail(turned[:300], 64, max_pixels=10**6) is None
    assert contact_sheet.thumbnail(b"", 64, max_pixels=10**6) is None
