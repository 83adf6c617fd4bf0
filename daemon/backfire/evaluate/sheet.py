"""The before/after sheet of a job: it shows a person what was changed, and what edits make of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from backfire import inpaint
from backfire.config import Verify
from backfire.evaluate import words
from backfire.evaluate.judge import (
    BREAKING,
    EditResult,
    Judgement,
    first_paths,
    in_tools,
    is_asked,
    misses,
    of_larger_masks,
)
from backfire.imaging import drawing
from backfire.imaging.lettering import fitted, length, write
from backfire.imaging.masks import dilated
from backfire.types import Mask, Rgb

PANEL, COLUMNS, GAP = 300, 4, 8
CAPTION, SIZE = 26, 16
"""The height of a line of caption, and of the letters in it and in all text but the title, in pixels."""
HEADER, LINE = 58, 22
"""Height of the title with the facts below it, and of each further line of text, in pixels."""
BETWEEN = "   ·   "
PAIR_PX, PAIRS = 196, 3
"""The long side of a picture of a pair, in pixels, and how many pairs stand in a line."""
PAIRS_TEXT = (
    "All edits: on the left that of the original, on the right that of the protected copy. The verdict does "
    "not rest on what is marked in black."
)
SMALL_TEXT = (
    "Built-in editors are small: they fill small holes and draw no faces. Their edit of the original may "
    "look bad, too; what counts is how far the two differ."
)
"""What is said where one of them judged."""
MOST_PAIRS = 48
"""Of a region, so many pairs are shown at most."""
Place = tuple[int, int, int, int]
Cell = tuple[str, Rgb | None, Mask | None, tuple[int, int, int]]
"""A panel: caption, picture, what is outlined in it, colour of caption and outline."""
INK, PAPER, TRIGGER, BENIGN = (32, 32, 32), (250, 250, 248), (220, 38, 38), (37, 99, 235)
GOOD, BAD = (21, 128, 61), (185, 28, 28)


@dataclass(frozen=True, eq=False)
class Pair:
    """An edit of the original and the same edit of the protected copy, as small pictures of a region's crop.

    Attributes:
        edit: its figures.
        original, protected: uint8 H,W,3, `PAIR_PX` at most.
        mask: H,W bool, True = repainted.
    """

    edit: EditResult
    original: Rgb
    protected: Rgb
    mask: Mask


@dataclass(frozen=True, eq=False)
class Panels:
    """The pictures of one region, edited by the first surrogate.

    Attributes:
        label: the region's label and size.
        mask, benign_mask: H,W bool, True = repainted: the region, and the benign edit that is shown.
        summary: the figures of the edit that is shown large, in words.
        pairs: all edits of the region, by every editor and through every attack path.
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
    pairs: Sequence[Pair] = ()


@dataclass(frozen=True)
class Sheet:
    """The sheet, and where it shows what.

    Attributes:
        jpeg: the file.
        width, height: its size in pixels.
        places: for each edit that it shows side by side, by its index in the judgement, the left and top
            edge, width and height in pixels of the two pictures without their caption.
    """

    jpeg: bytes
    width: int
    height: int
    places: dict[int, Place]


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
) -> Sheet:
    """The before/after sheet, a band for each of the first regions.

    Args:
        saliency: by region, the maps of each surrogate; empty where nothing was optimised.
        most: how many regions are shown.
    """
    bands = [_band(one, saliency[i] if saliency else ()) for i, one in enumerate(panels[:most])]
    drawn = [_pairs(one.pairs[:MOST_PAIRS], judgement) for one in panels[:most]]
    below = [pictures for pictures, _ in drawn]
    width = COLUMNS * PANEL + (COLUMNS + 1) * GAP
    reason = words.reason(judgement.reasons[0]) if judgement.reasons else in_tools(judgement.tools)
    told = [reason, of_larger_masks(judgement.verdict, judgement.tools_dilated)]
    said = _wrapped("; ".join(filter(None, told)), width - 2 * GAP)
    if any(edit.editor in inpaint.NAMES for edit in judgement.edits):
        said += _wrapped(SMALL_TEXT, width - 2 * GAP)
    header = HEADER + LINE * len(said)
    page = Image.new("RGB", (width, header + sum(band.height for band in (*bands, *below)) + GAP), PAPER)
    draw = ImageDraw.Draw(page)
    facts = [f"verdict: {judgement.verdict.value}", f"max change {judgement.max_change_levels} levels"]
    if judgement.psnr_db is not None:
        facts.append(f"PSNR {judgement.psnr_db:.1f} dB in the crop")
    if len(panels) > most:
        facts.append(f"{len(panels) - most} more regions not shown")
    write(draw, (GAP, 6), fitted(title, 22, width - 2 * GAP), 22, INK)
    write(draw, (GAP, 34), BETWEEN.join(facts), SIZE, INK)
    for number, line in enumerate(said):
        write(draw, (GAP, 56 + LINE * number), line, SIZE, INK)
    top, places = header, dict[int, Place]()
    for band, (pictures, of_region) in zip(bands, drawn, strict=True):
        page.paste(band, (0, top))
        top += band.height
        page.paste(pictures, (0, top))
        places |= {i: (left, y + top, wide, tall) for i, (left, y, wide, tall) in of_region.items()}
        top += pictures.height
    return Sheet(drawing.saved(page, quality=90), page.width, page.height, places)


def pair(edit: EditResult, original: Rgb, protected: Rgb, mask: Mask) -> Pair:
    """A pair of pictures at the size at which it is shown; smaller ones stay as they are."""

    def small(plane: Any, how: Image.Resampling) -> Any:
        picture = Image.fromarray(plane)
        picture.thumbnail((PAIR_PX, PAIR_PX), how)
        return np.asarray(picture)

    before, after = (small(one, Image.Resampling.BOX) for one in (original, protected))
    return Pair(edit, before, after, small(mask.astype(np.uint8), Image.Resampling.NEAREST) > 0)


def _pairs(pairs: Sequence[Pair], judgement: Judgement) -> tuple[Image.Image, dict[int, Place]]:
    """All edits of a region side by side, each with its mark, and by its index where each of them is."""
    if not pairs or judgement.settings is None:
        return Image.new("RGB", (1, 0)), {}
    height, width = pairs[0].original.shape[:2]
    scale = PAIR_PX / max(height, width)
    wide, tall = max(round(width * scale), 1), max(round(height * scale), 1)
    across = 2 * PAIR_PX + GAP // 2
    captions = [caption(one.edit, across) for one in pairs]
    # What is edited and, below it, where: as many lines as the longest of these needs.
    above = CAPTION + LINE * max(map(len, captions))
    line = tall + above + GAP
    rows = -(-len(pairs) // PAIRS)
    page = Image.new("RGB", (PAIRS * across + (PAIRS + 1) * GAP, CAPTION + rows * line), PAPER)
    draw, first, places = ImageDraw.Draw(page), first_paths(judgement.edits), dict[int, Place]()
    write(draw, (GAP, 4), PAIRS_TEXT, SIZE, INK)
    for number, (pair, said) in enumerate(zip(pairs, captions, strict=True)):
        edit = pair.edit
        x, y = GAP + number % PAIRS * (across + GAP), CAPTION + number // PAIRS * line
        mark, ink = _mark(edit, judgement.settings, first[edit.editor, edit.region] == edit.path)
        write(draw, (x, y + 4), f"{mark}:", SIZE, ink)
        indent = round(length(f"{mark}: ", SIZE))
        write(draw, (x + indent, y + 4), f"edit {words.EDITS[edit.mask_kind]}", SIZE, INK)
        for below, text in enumerate(said, start=1):
            write(draw, (x, y + 4 + LINE * below), text, SIZE, INK)
        for which, pixels in enumerate((pair.original, pair.protected)):
            shown = _outlined(pixels, pair.mask, TRIGGER if edit.mask_kind in BREAKING else BENIGN)
            picture = Image.fromarray(shown).resize((wide, tall), Image.Resampling.LANCZOS)
            page.paste(picture, (x + which * (wide + GAP // 2), y + above))
        found = (i for i, one in enumerate(judgement.edits) if one is edit)
        if (index := next(found, None)) is not None:
            places[index] = (x, y + above, 2 * wide + GAP // 2, tall)
    return page, places


def _mark(edit: EditResult, settings: Verify, on_first_path: bool) -> tuple[str, tuple[int, int, int]]:
    """Whether an edit came out as it is to, in words, and their colour, plain where it is only told."""
    good = not misses(edit, settings, on_first_path=on_first_path)
    ink = INK if not is_asked(edit, on_first_path=on_first_path) else GOOD if good else BAD
    if edit.mask_kind in BREAKING:
        return ("broken" if good else "not broken"), ink
    return ("kept" if good else "not kept"), ink


def caption(edit: EditResult, width: float) -> list[str]:
    """In which tool and by which editor an edit was made, and its figures, in lines of a width in pixels."""
    judged = f" ({words.ONLY_JUDGED})" if edit.held_out else ""
    seen = "" if edit.visible is None else f", seen over {edit.visible:.0%}"
    tool = words.tool(edit.path, flattened=edit.flattened)
    return [
        *_wrapped(tool, width),
        *_wrapped(f"by {edit.editor}{judged}: SSIM {edit.ssim:.2f}{seen}", width),
    ]


def _wrapped(text: str, width: float) -> list[str]:
    """The words of a text in lines of a width in pixels; a longer word has a line to itself."""
    found: list[str] = []
    for word in text.split():
        longer = f"{found[-1]} {word}" if found else word
        if found and length(longer, SIZE) <= width:
            found[-1] = longer
        else:
            found.append(word)
    return found


def _band(panels: Panels, saliency: Sequence[Saliency]) -> Image.Image:
    """The region and its perturbation, the saliency maps, its edits, and above them their figures."""
    amplified = (panels.protected.astype(np.float32) - panels.original) * 20 + 128
    perturbation: Rgb = np.clip(amplified, 0, 255).astype(np.uint8)
    maps: list[Cell] = [
        (
            f"where {one.surrogate} is most sensitive",
            _glowing(one.plane, panels.mask.shape),
            panels.mask,
            TRIGGER,
        )
        for one in saliency
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
    across = COLUMNS * PANEL + (COLUMNS + 1) * GAP
    lines = _lines([panels.label, *panels.summary], across - 2 * GAP)
    above = CAPTION * len(lines)
    band = Image.new("RGB", (across, rows + above), PAPER)
    draw = ImageDraw.Draw(band)
    for index, line in enumerate(lines):
        write(draw, (GAP, CAPTION * index), line, SIZE, INK)
    for index, (text, pixels, mask, colour) in enumerate(cells):
        x = GAP + index % COLUMNS * (PANEL + GAP)
        y = above + index // COLUMNS * (tall + CAPTION + GAP)
        write(draw, (x, y + 4), fitted(text, SIZE, PANEL), SIZE, colour)
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


def _lines(words: Sequence[str], width: int) -> list[str]:
    """The words in as many lines as they need, none of which is broken, for a width in pixels."""
    lines = [words[0]]
    for word in words[1:]:
        longer = lines[-1] + BETWEEN + word
        if length(longer, SIZE) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _glowing(plane: NDArray[np.float32], shape: tuple[int, ...]) -> Rgb:
    """h,w as a picture of the shape H,W: from black, where nothing counts, through red and yellow to white.

    The plane has the size at which the crop was worked, which may be smaller than the panels.
    """
    smooth = ndimage.gaussian_filter(plane, 2.0)  # single pixels are noise
    level = smooth / max(float(np.quantile(smooth, 0.995)), 1e-20)
    ramp = np.clip(3 * level[..., None] - np.arange(3), 0, 1)
    glow = Image.fromarray(np.rint(255 * ramp).astype(np.uint8))
    height, width = shape
    found: Rgb = np.asarray(glow if glow.size == (width, height) else glow.resize((width, height)))
    return found


def _outlined(pixels: Rgb, mask: Mask, colour: tuple[int, int, int]) -> Rgb:
    """The picture with a line just outside the mask, as thick as the panel's scale needs."""
    thick = max(1, round(max(mask.shape) / PANEL))
    edge = dilated(mask, 2 * thick + 1) & ~mask
    out = pixels.copy()
    out[edge] = colour
    return out
