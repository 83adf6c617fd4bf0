"""What a person reads and sees of a job: the JSON receipt and the picture sheet."""

from __future__ import annotations

import io
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from backfire import __version__
from backfire.evaluate import premis
from backfire.evaluate.verify import Panels, Verification
from backfire.imaging.masks import dilated
from backfire.inpaint.base import Editor
from backfire.types import Mask, Region, Rgb

SCHEMA = 1
PROMISE = (
    "Measured on the editors named here, on the decoded bytes of this very file. It raises the cost of an "
    "edit; it promises nothing about other editors, nor after the file is recompressed or resized."
)
PANEL, COLUMNS, GAP = 300, 4, 8
CAPTION = 26
BETWEEN = "   ·   "
Cell = tuple[str, Rgb | None, Mask | None, tuple[int, int, int]]
"""A panel: caption, picture, what is outlined in it, colour of caption and outline."""
INK, PAPER, TRIGGER, BENIGN = (32, 32, 32), (250, 250, 248), (220, 38, 38), (37, 99, 235)


def receipt(
    *,
    verification: Verification,
    regions: Sequence[Region],
    surrogates: Sequence[Editor],
    held_out: Sequence[Editor],
    facts: dict[str, Any],
    gradients: Sequence[float] = (),
) -> dict[str, Any]:
    """The receipt as documented in the README.

    Args:
        facts: adds digests, times and file facts.
        gradients: of each surrogate, see `protect.Protected`; empty where nothing was optimised.
    """
    optimised: list[dict[str, Any]] = [{**_editor(editor)} for editor in surrogates]
    for row, gradient in zip(optimised, gradients, strict=False):
        row["gradient"] = float(f"{gradient:.3g}")
    document = {
        "schema": SCHEMA,
        "verdict": verification.verdict.value,
        "reasons": verification.reasons,
        **facts,
        "regions": [region.row() for region in regions],
        "surrogates": optimised,
        "held_out": [_editor(editor) for editor in held_out],
        "psnr_db": None if verification.psnr_db is None else round(verification.psnr_db, 2),
        "max_change_levels": verification.max_change_levels,
        "edits": [edit.row() for edit in verification.edits],
        "promise": PROMISE,
        "versions": {
            "backfire": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "pillow": PIL.__version__,
            "python": platform.python_version(),
        },
    }
    return {**document, "events": premis.of_job(document, at=time.time())}


def _editor(editor: Editor) -> dict[str, str]:
    return {"name": editor.name, "weights_sha256": editor.weights_sha256}


def to_json(document: dict[str, Any]) -> bytes:
    """Readable, stable in order, newline at the end."""
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


@dataclass(frozen=True, eq=False)
class Heat:
    """How hard one surrogate pulled at each pixel of a region's crop, see `methods.base.Proposal`; H,W."""

    surrogate: str
    plane: NDArray[np.float32]


def sheet(
    title: str, verification: Verification, heat: Sequence[Sequence[Heat]] = (), *, most: int = 6
) -> bytes:
    """The before/after sheet as a JPEG: a band for each of the first regions.

    Args:
        heat: by region, of each surrogate; empty where nothing was optimised.
    """
    shown = verification.panels[:most]
    bands = [_band(panels, heat[index] if heat else ()) for index, panels in enumerate(shown)]
    width = COLUMNS * PANEL + (COLUMNS + 1) * GAP
    reason = verification.reasons[0] if verification.reasons else ""
    header = 80 if reason else 58
    page = Image.new("RGB", (width, header + sum(band.height for band in bands) + GAP), PAPER)
    draw = ImageDraw.Draw(page)
    facts = [f"verdict: {verification.verdict.value}", f"max change {verification.max_change_levels} levels"]
    if verification.psnr_db is not None:
        facts.append(f"PSNR {verification.psnr_db:.1f} dB in the crop")
    if len(verification.panels) > most:
        facts.append(f"{len(verification.panels) - most} more regions not shown")
    draw.text((12, 6), _fitted(title, 76), fill=INK, font=_font(22))
    draw.text((12, 34), BETWEEN.join(facts), fill=INK, font=_font(16))
    draw.text((12, 56), _fitted(reason, 150), fill=INK, font=_font(16))
    top = header
    for band in bands:
        page.paste(band, (0, top))
        top += band.height
    buffer = io.BytesIO()
    page.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _band(panels: Panels, heat: Sequence[Heat]) -> Image.Image:
    """The region and its change, what pulled at it, its edits, and their figures in a line."""
    amplified = (panels.protected.astype(np.float32) - panels.original) * 20 + 128
    change: Rgb = np.clip(amplified, 0, 255).astype(np.uint8)
    maps: list[Cell] = [
        (f"pixels that move {one.surrogate}", _glowing(one.plane), panels.mask, TRIGGER) for one in heat
    ]
    cells: list[Cell] = [
        ("original, region outlined", panels.original, panels.mask, TRIGGER),
        ("protected", panels.protected, None, INK),
        ("change x20", change, None, INK),
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
    draw.text((GAP, 0), BETWEEN.join([panels.label, *panels.summary]), fill=INK, font=_font(16))
    for index, (caption, pixels, mask, colour) in enumerate(cells):
        x = GAP + index % COLUMNS * (PANEL + GAP)
        y = CAPTION + index // COLUMNS * (tall + CAPTION + GAP)
        draw.text((x, y + 4), _fitted(caption, 36), fill=colour, font=_font(16))
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


def _glowing(heat: NDArray[np.float32]) -> Rgb:
    """H,W as a picture: black where nothing pulls, through red and yellow to white."""
    smooth = ndimage.gaussian_filter(heat, 2.0)  # single pixels are noise
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


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fitted(text: str, most: int) -> str:
    return text if len(text) <= most else "…" + text[-(most - 1) :]
