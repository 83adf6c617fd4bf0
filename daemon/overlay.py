"""What would be protected, drawn onto the pictures: the sheet of `backfire detect`."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from daemon.domain import Region, Rgb
from daemon.geometry import dilated

WIDE, TALL = 1200, 900
"""The largest a picture is shown, in pixels."""

GAP, CAPTION = 12, 30
INK, PAPER = (32, 32, 32), (250, 250, 248)
COLOURS = ((220, 38, 38), (37, 99, 235), (22, 163, 74), (202, 92, 4), (147, 51, 234), (8, 145, 178))
"""One a detector, in the order in which they first appear."""


def drawn(image: Rgb, regions: Sequence[Region]) -> Rgb:
    """A picture at the sheet's size, its regions' shapes outlined, tinted and named."""
    scale = min(1.0, WIDE / image.shape[1], TALL / image.shape[0])
    size = max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1)
    canvas = np.array(Image.fromarray(image).resize(size, Image.Resampling.BOX))
    detectors = list(dict.fromkeys(region.detector for region in regions))
    colours = [COLOURS[detectors.index(region.detector) % len(COLOURS)] for region in regions]
    for region, colour in zip(regions, colours, strict=True):
        shape = Image.fromarray(region.plane(*image.shape[:2])).resize(size, Image.Resampling.NEAREST)
        inside = np.array(shape)
        edge = dilated(inside, 5) & ~inside
        canvas[inside] = (0.8 * canvas[inside] + 0.2 * np.array(colour)).astype(np.uint8)
        canvas[edge] = colour
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    for region, colour in zip(regions, colours, strict=True):
        text = f"{region.label} {region.score:.2f} ({region.detector})"
        left, top = round(region.box.left * scale), max(round(region.box.top * scale) - 19, 0)
        draw.rectangle(draw.textbbox((left + 2, top), text, font=_font(14)), fill=colour)
        draw.text((left + 2, top), text, fill=PAPER, font=_font(14))
    return np.array(picture)


def sheet(pages: Sequence[tuple[str, Rgb]], *, kind: str = "JPEG") -> bytes:
    """Drawn pictures under their captions, one below the other, as a file of Pillow's `kind`."""
    width = max([400, *(picture.shape[1] for _, picture in pages)]) + 2 * GAP
    height = sum(CAPTION + picture.shape[0] + GAP for _, picture in pages) + GAP
    page = Image.new("RGB", (width, height), PAPER)
    draw, top = ImageDraw.Draw(page), GAP
    for caption, picture in pages:
        draw.text((GAP, top), caption, fill=INK, font=_font(18))
        page.paste(Image.fromarray(picture), (GAP, top + CAPTION))
        top += CAPTION + picture.shape[0] + GAP
    buffer = io.BytesIO()
    page.save(buffer, kind, quality=90)
    return buffer.getvalue()


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
