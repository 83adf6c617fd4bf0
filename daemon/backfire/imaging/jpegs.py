"""Encodes JPEG at the finest quantisation, and searches for pixels that decode to within the bound.

A coarser quantisation would remove the perturbation. Pixels are stored as RGB without subsampling, because
the rounding to YCbCr and back alone would cost a third of a small budget. RGB is stored without a JFIF
header, which every reader takes as YCbCr.

If the picture came as YCbCr with halved chroma (4:2:0, as most do) and a small file is wanted, only its luma
plane is changed, by the luma of the change. Its chroma keeps its values and its quantisation, which makes a
file of a third of the size.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

from backfire.imaging import blocks, colour
from backfire.imaging.colour import Look
from backfire.imaging.intake import Picture
from backfire.imaging.metadata import Metadata
from backfire.imaging.writers import Pixels, Sheet, saved, stored

COEFFICIENTS: Mapping[str, Any] = {"quality": 100, "subsampling": 0}
"""The options of the encoder that decide which pixels a JPEG decodes to."""

GENTLE, ROUNDS = 4, 12
"""The first rounds of the search, which move single samples back, and the number of all rounds."""

PATIENCE, SEARCHES = 12, 24
"""The same if chroma is kept: a round then costs a third, and narrowing whole blocks costs effect."""

HALVED = 2
"""Pillow's number for chroma at half the width and height."""

MCU = 16
"""The side in pixels of the blocks that are then coded together."""

FINEST = [1] * 64
DIVISORS = (1, 4)
"""The divisors of chroma's quantisation steps that are tried. With 1 the stored values come out again; with 4
blocks come closer for which that fails, such as those at the picture's edge, whose outer part is unknown."""

OPTIMISED = 1 << 25
"""The most pixels of a file that gets optimised Huffman tables, which save a twelfth and need 4 bytes per
pixel."""

LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def written(
    sheet: Sheet, picture: Picture, about: Metadata, levels: int, *, small: bool = False
) -> tuple[bytes, str]:
    """The bytes of the file, and how it was encoded, for the receipt.

    Args:
        levels: the bound for the decoded pixels, in levels of 255; it is kept if the search ends in time.
        small: keep halved chroma unchanged if the picture came with it.
    """
    wanted, original = colour.eight(sheet.wanted), colour.eight(sheet.original)
    grey, ink = wanted.shape[2] == 1, wanted.shape[2] == 4
    look = None if sheet.is_srgb else picture.look
    options: dict[str, Any] = {}
    if wanted.shape[0] * wanted.shape[1] <= OPTIMISED:
        options = {"progressive": picture.compression == "progressive", "optimize": True}
    if small and picture.jpeg is not None and not sheet.is_srgb:
        options |= {"extra": blocks.jpeg(about, same=True), "dpi": about.dpi}
        halved = _halved(picture.jpeg, wanted, original, levels, look, options)
        if halved is not None:
            return halved
    about = about if grey else about.with_resolution()
    extra = blocks.jpeg(about, same=picture.format == "JPEG")
    options |= {"extra": extra, "dpi": about.dpi if grey else None}
    coded = {**COEFFICIENTS, "keep_rgb": not grey and not ink}
    aim, touched = wanted.copy(), _touched(wanted, original, 8)
    aim[touched] = _within(wanted[touched], original[touched], levels, look, coded)
    data = saved(aim, "JPEG", {**coded, **options}, ink=ink)
    return data, f"JPEG quality 100 {'grey' if grey else '4:4:4 CMYK' if ink else '4:4:4 RGB'}"


def is_halved(data: bytes) -> bool:
    """Whether a file holds YCbCr with chroma at half the width and height that can be coded in the same
    way.
    """
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        return _chroma_table(image) is not None


def _chroma_table(image: Image.Image) -> Sequence[int] | None:
    """The quantisation table of halved chroma; None if chroma is not halved or not coded by one 8-bit
    table.
    """
    if image.mode != "RGB" or JpegImagePlugin.get_sampling(image) != HALVED or min(image.size) < MCU:
        return None
    jpeg: Any = image
    tables = {tuple(jpeg.quantization[component[3]]) for component in jpeg.layer[1:]}
    table = tables.pop()
    return None if tables or max(table) > 255 else table


def _touched(wanted: Pixels, original: Pixels, side: int) -> tuple[slice, slice]:
    """The smallest rectangle of whole blocks that holds every change.

    Each block is coded independently, so this part decodes alone as it does in the whole file.
    """
    rows, columns = (np.flatnonzero((wanted != original).any(axis=(other, 2))) // side for other in (1, 0))
    if not rows.size:
        return slice(0, 0), slice(0, 0)
    first, last = (rows[0], columns[0]), (rows[-1], columns[-1])
    return slice(first[0] * side, (last[0] + 1) * side), slice(first[1] * side, (last[1] + 1) * side)


def _within(
    aim: Pixels, original: Pixels, levels: int, look: Look | None, coded: Mapping[str, Any]
) -> Pixels:
    """Pixels near `aim` whose JPEG decodes to within the bound, or nearly so when the rounds are used up.

    In the first rounds, each sample that decodes beyond the bound is moved back by the excess. This spares
    the others but may never end, so later rounds narrow the bound of every 8x8 block with such a sample.
    """
    if not aim.size:
        return aim
    middle = original.astype(np.int16)
    margin = np.zeros(original.shape[:2], np.int16)
    for attempt in range(ROUNDS):
        came_out = _decoded(saved(aim, "JPEG", dict(coded), ink=original.shape[2] == 4), original.shape)
        beyond = _beyond(came_out, original, levels, look)
        if not beyond.any():
            break
        if attempt >= GENTLE:
            margin += _blocks(np.abs(beyond).max(axis=2) > 0, 8)
        room = np.maximum(levels - margin, 0)[..., None]
        pulled = np.clip(aim - beyond, middle - room, middle + room)
        aim = np.clip(pulled, 0, 255).astype(np.uint8)
    return aim


@dataclass(frozen=True, eq=False)
class Planes:
    """A picture in YCbCr with halved chroma, as stored in a JPEG.

    Attributes:
        luma: H,W.
        chroma: h,w,2.
        table: the quantisation table of chroma.
    """

    luma: Pixels
    chroma: Pixels
    table: Sequence[int]

    def saved(self, options: Mapping[str, Any]) -> bytes:
        """The bytes of the file.

        The encoder averages four samples of chroma, which are equal here, so their value stays a multiple of
        the table's steps and decodes unchanged.
        """
        height, width = self.luma.shape
        full = self.chroma.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
        bands = [
            Image.fromarray(np.ascontiguousarray(one)) for one in (self.luma, full[..., 0], full[..., 1])
        ]
        given = {"qtables": [FINEST, list(self.table)], "subsampling": HALVED, **options}
        return stored(Image.merge("YCbCr", bands), "JPEG", given)


def _beyond(came_out: Pixels, original: Pixels, levels: int, look: Look | None) -> NDArray[np.int16]:
    """The amount by which each sample must move back, in proportion if its sRGB colour moved too far.

    The bound on sRGB cannot always be kept: out of its gamut one level of a sample may be a dozen levels of
    sRGB, and the coding alone may move a sample by one.
    """
    off = came_out.astype(np.int16) - original
    beyond: NDArray[np.int16] = off - np.clip(off, -levels, levels)
    if look is not None:
        before, after = (colour.seen(samples, look).astype(np.int16) for samples in (original, came_out))
        excess = np.maximum(np.abs(after - before).max(axis=2) - levels, 0)[..., None]
        back = np.sign(off) * -(-np.abs(off) * excess // (levels + excess + (levels == 0)))
        beyond = np.where(np.abs(back) > np.abs(beyond), back, beyond)
    return beyond


def _halved(
    data: bytes,
    wanted: Pixels,
    original: Pixels,
    levels: int,
    look: Look | None,
    options: Mapping[str, Any],
) -> tuple[bytes, str] | None:
    """The file with only its luma changed, and how it was encoded; None if that is impossible or exceeds the
    bound.

    Chroma that was clipped to 0 or 255 when it was decoded does not decode to the same values again.
    """
    planes = _planes(data)
    if planes is None:
        return None
    parts = [slice(top, top + colour.ROWS) for top in range(0, len(original), colour.ROWS)]
    for divisor in DIVISORS:
        finer = replace(planes, table=[max(1, step // divisor) for step in planes.table])
        changed = _changed(finer, wanted, original, levels, look)
        if changed is None:
            continue
        result = changed.saved(options)
        came_out = _decoded(result, original.shape)
        if not any(_beyond(came_out[rows], original[rows], levels, None).any() for rows in parts):
            chroma = "as it was" if finer.table == list(planes.table) else "as it was decoded, in finer steps"
            return result, f"JPEG quality 100 4:2:0, chroma {chroma}"
    return None


def _planes(data: bytes) -> Planes | None:
    """The planes of a file in YCbCr with halved chroma; None for other files.

    The file is decoded at half its size, which gives its chroma without the smoothing of upscaling.
    """
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        table = _chroma_table(image)
        if table is None:
            return None
        width, height = image.size
        image.draft("YCbCr", image.size)
        luma = np.array(image.getchannel(0))
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        image.draft("YCbCr", (width // 2, height // 2))
        chroma = np.array(image)[..., 1:]
    fits = image.mode == "YCbCr" and chroma.shape[:2] == (-(-height // 2), -(-width // 2))
    return Planes(luma, np.ascontiguousarray(chroma), table) if fits else None


def _changed(
    planes: Planes, wanted: Pixels, original: Pixels, levels: int, look: Look | None
) -> Planes | None:
    """The planes with the luma of the change, such that they decode to within the bound.

    If a pixel decodes beyond the bound, its own range is narrowed, and in later rounds that of its block.
    None if the rounds are used up.
    """
    inner = _touched(wanted, original, MCU)
    # Decoders smooth chroma over the edges of blocks, so the surrounding blocks are decoded too.
    here = (_wider(inner[0]), _wider(inner[1]))
    kept = (_shifted(inner[0], here[0]), _shifted(inner[1], here[1]))
    half = (slice(here[0].start // 2, here[0].stop // 2), slice(here[1].start // 2, here[1].stop // 2))
    luma, middle = planes.luma.copy(), planes.luma[inner]
    before = original[inner].astype(np.int16)
    bright = (wanted[inner].astype(np.float32) - before) @ LUMA
    room = np.full(bright.shape, levels, np.float32)
    for attempt in range(SEARCHES if before.size else 0):
        luma[inner] = np.clip(np.rint(middle + np.clip(bright, -room, room)), 0, 255)
        data = Planes(luma[here], planes.chroma[half], planes.table).saved({})
        came_out = _decoded(data, (*luma[here].shape, 3))[kept]
        beyond = np.abs(_beyond(came_out, original[inner], levels, look)).max(axis=2)
        if not beyond.any():
            break
        room -= beyond / 2 if attempt < PATIENCE else _blocks(beyond > 0, MCU)
        room = np.maximum(room, 0)
    else:
        return planes if not before.size else None
    return Planes(luma, planes.chroma, planes.table)


def _wider(inner: slice) -> slice:
    return slice(max(0, inner.start - MCU), inner.stop + MCU)


def _shifted(inner: slice, outer: slice) -> slice:
    return slice(inner.start - outer.start, inner.stop - outer.start)


def _decoded(data: bytes, shape: tuple[int, ...]) -> Pixels:
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        pixels: Pixels = np.array(image).reshape(shape)
    return pixels


def _blocks(hits: NDArray[Any], side: int) -> NDArray[np.bool_]:
    """The mask of all blocks that hold a marked pixel, of the same shape."""
    height, width = hits.shape
    whole = np.pad(hits, ((0, -height % side), (0, -width % side)))
    blocks = whole.reshape(whole.shape[0] // side, side, -1, side).any(axis=(1, 3))
    return blocks.repeat(side, axis=0).repeat(side, axis=1)[:height, :width]
