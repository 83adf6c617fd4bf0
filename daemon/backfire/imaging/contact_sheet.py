"""A contact sheet: thumbnails with a mark and a name, on as few pages as are readable."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from backfire.imaging import drawing
from backfire.imaging.decoding import decode
from backfire.imaging.lettering import fitted, write
from backfire.types import Rgb

WIDE = 1600
"""The width of a page, in pixels."""
TALL_MOST = 16_000
"""The most pixels that a page is high; a viewer still opens it, and JPEG allows four times as many."""
SIZES = ((40, 8), (120, 10), (400, 14), (1 << 31, 20))
"""Up to so many pictures there are so many in a line."""
GAP, BAND, LINE, HEAD = 8, 18, 16, 34
INK, PAPER, EMPTY = (32, 32, 32), (250, 250, 248), (222, 222, 218)
COLOURS = {
    "protected": (21, 128, 61),
    "weak": (180, 83, 9),
    "failed": (185, 28, 28),
    "held": (29, 78, 216),
    "unprotected": (82, 82, 82),
}
"""The colour of each mark; others are grey. The mark is also written, for those who see no colours."""


class Tile(NamedTuple):
    """A picture of the sheet.

    Attributes:
        name: its file name, as text.
        mark: what became of it.
        number: its job, by which more can be asked.
        picture: H,W,3, not larger than `thumbnail` makes it; None if it cannot be shown.
    """

    name: str
    mark: str
    number: int
    picture: Rgb | None


@dataclass(frozen=True)
class Group:
    """Pictures under a heading, such as those of a folder."""

    heading: str
    tiles: Sequence[Tile]


class _Layout(NamedTuple):
    columns: int
    side: int

    @property
    def row(self) -> int:
        return self.side + BAND + LINE + GAP

    @classmethod
    def of(cls, count: int) -> _Layout:
        columns = next(columns for most, columns in SIZES if count <= most)
        return cls(columns, (WIDE - GAP) // columns - GAP)


def side_of(count: int) -> int:
    """How many pixels a thumbnail may be wide and high where there are so many pictures."""
    return _Layout.of(count).side


def thumbnail(data: bytes, side: int, *, max_pixels: int) -> Rgb | None:
    """A picture file as a thumbnail that fits a square; None if it cannot be read.

    Args:
        data: the file.
        side: of the square, in pixels.
        max_pixels: larger pictures are not read.
    """
    try:
        decoded = decode(data, name="picture", max_pixels=max_pixels, frames="first")
    except Exception:  # a sheet shows all the others, whatever is wrong with this file
        return None
    small = Image.fromarray(decoded.rgb)
    small.thumbnail((side, side), Image.Resampling.BOX, reducing_gap=2.0)
    return np.asarray(small)


def pages(title: str, groups: Sequence[Group], *, tall_most: int = TALL_MOST) -> Iterator[bytes]:
    """The sheet as JPEGs, each at most `tall_most` pixels high; an empty sheet is one page with its title."""
    layout = _Layout.of(sum(len(group.tiles) for group in groups))
    bands: list[tuple[str, Sequence[Tile]]] = []
    height, number = HEAD + GAP, 1
    for group in groups:
        for start in range(0, len(group.tiles), layout.columns):
            heading = "" if start else group.heading
            tall = layout.row + (HEAD if heading else 0)
            if bands and height + tall > tall_most:
                yield _page(f"{title} - page {number}", bands, height, layout)
                bands, height, number = [], HEAD + GAP, number + 1
            bands.append((heading, group.tiles[start : start + layout.columns]))
            height += tall
    yield _page(title if number == 1 else f"{title} - page {number}", bands, height, layout)


def _page(title: str, bands: Iterable[tuple[str, Sequence[Tile]]], height: int, layout: _Layout) -> bytes:
    page = Image.new("RGB", (WIDE, height), PAPER)
    draw = ImageDraw.Draw(page)
    write(draw, (GAP, 6), fitted(title, 22, WIDE - 2 * GAP), 22, INK)
    top = HEAD + GAP
    for heading, tiles in bands:
        if heading:
            write(draw, (GAP, top + 8), fitted(heading, 18, WIDE - 2 * GAP), 18, INK)
            top += HEAD
        for column, tile in enumerate(tiles):
            _draw_tile(page, draw, (GAP + column * (layout.side + GAP), top), tile, layout.side)
        top += layout.row
    return drawing.saved(page, quality=85, subsampling=0)  # small letters on colour


def _draw_tile(
    page: Image.Image, draw: ImageDraw.ImageDraw, place: tuple[int, int], tile: Tile, side: int
) -> None:
    left, top = place
    colour = COLOURS.get(tile.mark, (120, 120, 120))
    draw.rectangle((left, top, left + side - 1, top + side - 1), fill=EMPTY)
    if tile.picture is None:
        write(draw, (left + 6, top + 6), fitted("cannot be shown", 12, side - 12), 12, INK)
    else:
        picture = Image.fromarray(tile.picture)
        inside = ((side - picture.width) // 2, (side - picture.height) // 2)
        page.paste(picture, (left + inside[0], top + inside[1]))
    draw.rectangle((left, top + side, left + side - 1, top + side + BAND - 1), fill=colour)
    mark = fitted(f"{tile.mark}  #{tile.number}", 12, side - 6)
    write(draw, (left + 4, top + side + 2), mark, 12, PAPER)
    write(draw, (left, top + side + BAND + 2), fitted(tile.name, 11, side), 11, INK)
