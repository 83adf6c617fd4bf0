"""Draws regions onto pictures, for the sheet of `backfire detect`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from backfire.imaging import lettering
from backfire.imaging.masks import dilated
from backfire.types import Box, Mask, Region, Rgb

WIDE, TALL = 1200, 900
"""The largest size of a drawn picture, in pixels."""

NOTE = "Drawn by Backfire"
"""The comment of every sheet, so that no other picture is taken for one and replaced."""
GAP, CAPTION = 12, 30
INK, PAPER = (32, 32, 32), (250, 250, 248)
COLOURS = ((220, 38, 38), (37, 99, 235), (22, 163, 74), (202, 92, 4), (147, 51, 234), (8, 145, 178))
"""The colours of the detectors, in the order in which they first appear."""


def drawn(image: Rgb, regions: Sequence[Region]) -> Rgb:
    """A picture at the sheet's size with its regions outlined, tinted and labelled."""
    scale = min(1.0, WIDE / image.shape[1], TALL / image.shape[0])
    size = max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1)
    canvas = np.array(Image.fromarray(image).resize(size, Image.Resampling.BOX))
    detectors = list(dict.fromkeys(region.detector for region in regions))
    colours = [COLOURS[detectors.index(region.detector) % len(COLOURS)] for region in regions]
    for region, colour in zip(regions, colours, strict=True):
        inside = scaled_mask(region, scale, size)
        edge = dilated(inside, 5) & ~inside
        canvas[inside] = (0.8 * canvas[inside] + 0.2 * np.array(colour)).astype(np.uint8)
        canvas[edge] = colour
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    for region, plate, colour in zip(regions, plates(regions, scale, size), colours, strict=True):
        left, top, _, _ = _bounds(caption(region))
        draw.rectangle((*plate[:2], plate.right - 1, plate.bottom - 1), fill=colour)
        place = plate.left + 2 - left, plate.top + 2 - top
        lettering.write(draw, place, caption(region), 14, PAPER)
    return np.array(picture)


def plates(regions: Sequence[Region], scale: float, size: tuple[int, int]) -> list[Box]:
    """The places of the regions' captions in a drawn picture of this size (width, height)."""
    taken: list[Box] = []
    for region in regions:
        left, top, right, bottom = _bounds(caption(region))
        taken.append(_placed(region, scale, (right - left + 4, bottom - top + 4), size, taken))
    return taken


def _bounds(text: str) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a caption that is drawn at the origin, in pixels."""
    left, top, right, bottom = (round(edge) for edge in lettering.bounds(text, 14))
    return left, top, right, bottom


def scaled_mask(region: Region, scale: float, size: tuple[int, int]) -> Mask:
    """The mask of a region at the drawn picture's size (width, height), with at least one pixel."""
    left, top = (min(int(edge * scale), side - 1) for edge, side in zip(region.box[:2], size, strict=True))
    right, bottom = (max(round(region.box[2 + i] * scale), (left, top)[i] + 1) for i in (0, 1))
    plane = np.zeros(size[::-1], dtype=np.bool_)
    part = plane[top:bottom, left:right]
    if region.mask is None:
        part[:] = True
    else:
        part[:] = Image.fromarray(region.mask).resize(part.shape[::-1], Image.Resampling.NEAREST)
    return plane


def caption(region: Region) -> str:
    """The label and the score of a region, and its detector if the label does not name it."""
    known = region.detector.startswith(region.label.partition(" ")[0])
    return f"{region.label} {region.score:.2f}" + ("" if known else f" ({region.detector})")


def _placed(
    region: Region, scale: float, plate: tuple[int, int], size: tuple[int, int], taken: Sequence[Box]
) -> Box:
    """The place of a region's name: above, below or inside it, clear of other names if possible."""
    left, top, _, bottom = (round(edge * scale) for edge in region.box)
    left = max(min(left, size[0] - plate[0]), 0)
    tops = (top - plate[1] - 2, bottom + 2, top + 2, bottom - plate[1] - 2, top - 2 * plate[1] - 4)
    boxes = [Box(left, one, left + plate[0], one + plate[1]) for one in tops]
    inside = [box for box in boxes if box.top >= 0 and box.bottom <= size[1]]
    free = [box for box in inside if not any(box.overlaps(other) for other in taken)]
    return [*free, *inside, Box(left, 0, left + plate[0], plate[1])][0]


def sheet(pages: Sequence[tuple[str, Rgb]], *, kind: str = "JPEG") -> bytes:
    """Drawn pictures with captions, side by side where they fit, as a file in Pillow's format `kind`."""
    lines: list[list[tuple[str, Rgb]]] = []
    for page in pages:
        if lines and sum(_wide(one) for one in [*lines[-1], page]) <= WIDE + GAP:
            lines[-1].append(page)
        else:
            lines.append([page])
    width = max([400, *(sum(_wide(page) for page in line) for line in lines)]) + GAP
    height = sum(CAPTION + _tall(line) + GAP for line in lines) + GAP
    paper = Image.new("RGB", (width, height), PAPER)
    draw, top = ImageDraw.Draw(paper), GAP
    for line in lines:
        left = GAP
        for caption, picture in line:
            lettering.write(draw, (left, top), caption, 18, INK)
            paper.paste(Image.fromarray(picture), (left, top + CAPTION))
            left += _wide((caption, picture))
        top += CAPTION + _tall(line) + GAP
    return saved(paper, kind, quality=90)


def saved(page: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    """A drawn page as a file in Pillow's format `kind`, JPEG or PNG, that `is_drawn` knows again."""
    note = PngInfo()
    note.add_text("Comment", NOTE)
    buffer = io.BytesIO()
    page.save(buffer, kind, comment=NOTE, pnginfo=note, **options)
    return buffer.getvalue()


def is_drawn(start: bytes) -> bool:
    """Whether a file, of which these are the first bytes, 1 kB at least, was made by `saved`."""
    return NOTE.encode() in start[:1024]


def _wide(page: tuple[str, Rgb]) -> int:
    """The width of a picture with its caption and the gap after it, in pixels."""
    caption, picture = page
    return max(int(picture.shape[1]), round(lettering.length(caption, 18))) + GAP


def _tall(line: Sequence[tuple[str, Rgb]]) -> int:
    return max(int(picture.shape[0]) for _, picture in line)


def mask_png(mask: Mask) -> bytes:
    """A mask H,W as a PNG, white where it is True."""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return buffer.getvalue()
