"""The before/after sheet of a job: it shows a person what was changed, and what edits make of it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from backfire.evaluate.judge import Judgement
from backfire.imaging.masks import dilated
from backfire.types import Mask, Rgb

PANEL, COLUMNS, GAP = 300, 4, 8
CAPTION = 26
BETWEEN = "   ·   "
Cell = tuple[str, Rgb | None, Mask | None, tuple[int, int, int]]
"""A panel: caption, picture, what is outlined in it, colour of caption and outline."""
INK, PAPER, TRIGGER, BENIGN = (32, 32, 32), (250, 250, 248), (220, 38, 38), (37, 99, 235)


@dataclass(frozen=True, eq=False)
class Panels:
    """The pictures of one region, edited by the first surrogate.

    Attributes:
        label: the region's label and size.
        mask, benign_mask: H,W bool, True = repainted: the region, and the benign edit that is shown.
        summary: the figures of each edit, in words.
        original, protected, edit_original, edit_protected, benign_original, benign_protected: uint8 H,W,3.
    """

    label: str
    mask: Mask
    original: Rgb
    protected: Rgb
    edit_original: Rgb
    edit_protected: Rgb
    benign_original: Rgb
    benign_protected: Rgb
    benign_mask: Mask
    summary: list[str]


@dataclass(frozen=True, eq=False)
class Saliency:
    """The saliency map of one surrogate over a region's crop, float32 H,W, see `methods.base.Proposal`."""

    surrogate: str
    plane: NDArray[np.float32]


def sheet(
    title: str,
    judgement: Judgement,
    panels: Sequence[Panels],
    saliency: Sequence[Sequence[Saliency]] = (),
    *,
    most: int = 6,
) -> bytes:
    """The before/after sheet as a JPEG, a band for each of the first regions.

    Args:
        saliency: by region, the maps of each surrogate; empty where nothing was optimised.
        most: how many regions are shown.
    """
    bands = [_band(one, saliency[i] if saliency else ()) for i, one in enumerate(panels[:most])]
    width = COLUMNS * PANEL + (COLUMNS + 1) * GAP
    reason = judgement.reasons[0] if judgement.reasons else ""
    header = 80 if reason else 58
    page = Image.new("RGB", (width, header + sum(band.height for band in bands) + GAP), PAPER)
    draw = ImageDraw.Draw(page)
    facts = [f"verdict: {judgement.verdict.value}", f"max change {judgement.max_change_levels} levels"]
    if judgement.psnr_db is not None:
        facts.append(f"PSNR {judgement.psnr_db:.1f} dB in the crop")
    if len(panels) > most:
        facts.append(f"{len(panels) - most} more regions not shown")
    draw.text((12, 6), _fitted(title, 76), fill=INK, font=font(22))
    draw.text((12, 34), BETWEEN.join(facts), fill=INK, font=font(16))
    draw.text((12, 56), _fitted(reason, 150), fill=INK, font=font(16))
    top = header
    for band in bands:
        page.paste(band, (0, top))
        top += band.height
    buffer = io.BytesIO()
    page.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _band(panels: Panels, saliency: Sequence[Saliency]) -> Image.Image:
    """The region and its perturbation, the saliency maps, its edits, and their figures in a line."""
    amplified = (panels.protected.astype(np.float32) - panels.original) * 20 + 128
    perturbation: Rgb = np.clip(amplified, 0, 255).astype(np.uint8)
    maps: list[Cell] = [
        (f"pixels that move {one.surrogate}", _glowing(one.plane), panels.mask, TRIGGER) for one in saliency
    ]
    cells: list[Cell] = [
        ("original, region outlined", panels.original, panels.mask, TRIGGER),
        ("protected", panels.protected, None, INK),
        ("change x20", perturbation, None, INK),
        *(maps[:1] or [("", None, None, INK)]),
        ("edit of the region: original", panels.edit_original, panels.mask, TRIGGER),
        ("edit of the region: protected", panels.edit_protected, panels.mask, TRIGGER),
        ("edit elsewhere: original", panels.benign_original, panels.benign_mask, BENIGN),
        ("edit elsewhere: protected", panels.benign_protected, panels.benign_mask, BENIGN),
        *maps[1:],
    ]
    height, width = panels.original.shape[:2]
    tall = max(round(PANEL * height / width), 40) if width >= height else PANEL
    rows = -(-len(cells) // COLUMNS) * (tall + CAPTION + GAP)
    band = Image.new("RGB", (COLUMNS * PANEL + (COLUMNS + 1) * GAP, rows + CAPTION), PAPER)
    draw = ImageDraw.Draw(band)
    draw.text((GAP, 0), BETWEEN.join([panels.label, *panels.summary]), fill=INK, font=font(16))
    for index, (caption, pixels, mask, colour) in enumerate(cells):
        x = GAP + index % COLUMNS * (PANEL + GAP)
        y = CAPTION + index // COLUMNS * (tall + CAPTION + GAP)
        draw.text((x, y + 4), _fitted(caption, 36), fill=colour, font=font(16))
        if pixels is None:
            continue
        picture = Image.fromarray(pixels if mask is None else _outlined(pixels, mask, colour))
        picture.thumbnail((PANEL, tall), Image.Resampling.LANCZOS)
        if picture.width < PANEL and picture.height < tall:
            scale = min(PANEL / picture.width, tall / picture.height)
            size = (round(picture.width * scale), round(picture.height * scale))
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        band.paste(picture, (x, y + CAPTION))
    return band


def _glowing(plane: NDArray[np.float32]) -> Rgb:
    """H,W as a picture: from black, where nothing counts, through red and yellow to white."""
    smooth = ndimage.gaussian_filter(plane, 2.0)  # single pixels are noise
    level = smooth / max(float(np.quantile(smooth, 0.995)), 1e-20)
    ramp = np.clip(3 * level[..., None] - np.arange(3), 0, 1)
    glow: Rgb = np.rint(255 * ramp).astype(np.uint8)
    return glow


def _outlined(pixels: Rgb, mask: Mask, colour: tuple[int, int, int]) -> Rgb:
    """The picture with a line just outside the mask, as thick as the panel's scale needs."""
    thick = max(1, round(max(mask.shape) / PANEL))
    edge = dilated(mask, 2 * thick + 1) & ~mask
    out = pixels.copy()
    out[edge] = colour
    return out


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font of the sheet at a size in pixels."""
    return ImageFont.load_default(size)


def _fitted(text: str, most: int) -> str:
    return text if len(text) <= most else "…" + text[-(most - 1) :]
