"""Writes JPEG files with the finest quantisation, so that the decoded pixels stay within the budget.

Coarser quantisation would round the perturbation away. Pixels are stored as RGB without subsampling, since
the rounding to YCbCr and back alone would cost a third of a small budget. Such a file has no JFIF header,
because readers take one to mean YCbCr.

For small files (`output.jpeg: small`), a picture that came as YCbCr 4:2:0, as most do, keeps its chroma
planes and their quantisation table, and only its luma plane is perturbed: a third of the bytes.
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
from backfire.imaging.decoding import Picture
from backfire.imaging.metadata import Metadata
from backfire.imaging.writers import Canvas, Pixels, saved, stored

COEFFICIENTS: Mapping[str, Any] = {"quality": 100, "subsampling": 0}
"""The options that determine which pixels a JPEG decodes to."""

GENTLE, ROUNDS = 4, 12
"""Rounds in which only single samples are pulled back into the bound, and rounds in all."""

PATIENCE, SEARCHES = 12, 24
"""The same for luma alone: more rounds, since each costs a third, and shrinking blocks loses effect."""

HALVED = 2
"""Pillow's number for 4:2:0: chroma of half the width and height."""

MCU = 16
"""The side in pixels of the blocks that 4:2:0 codes together."""

FINEST = [1] * 64
DIVISORS = (1, 4)
"""The divisors of chroma's quantisation steps that are tried in turn.

Undivided steps reproduce the stored coefficients exactly. Blocks at the picture's edge do not always come
out the same, since their part beyond the edge is unknown; finer steps bring them closer.
"""

OPTIMISED = 1 << 25
"""The most pixels for which Huffman tables are optimised: that saves a twelfth but takes 4 bytes a pixel."""

LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def written(
    canvas: Canvas, picture: Picture, about: Metadata, levels: int, *, small: bool = False
) -> tuple[bytes, str]:
    """The file's bytes, and a description of the encoding for the receipt.

    Args:
        levels: the bound on decoded pixels, in levels of 255. It is kept unless the search runs out of
            rounds; the caller has to measure it.
        small: perturb luma only and keep the chroma, if the picture came with 4:2:0.
    """
    wanted, original = colour.eight(canvas.wanted), colour.eight(canvas.original)
    grey, ink = wanted.shape[2] == 1, wanted.shape[2] == 4
    look = None if canvas.is_srgb else picture.look
    options: dict[str, Any] = {}
    if wanted.shape[0] * wanted.shape[1] <= OPTIMISED:
        options = {"progressive": picture.compression == "progressive", "optimize": True}
    if small and picture.jpeg is not None and not canvas.is_srgb:
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
    """Whether a JPEG is YCbCr 4:2:0 and its chroma can be written again as it is."""
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        return _chroma_table(image) is not None


def as_coarse(data: bytes, rgb: Pixels) -> Pixels:
    """What is left of H,W,3 sRGB pixels once they are saved as coarsely as the JPEG `data` is."""
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        sampling = JpegImagePlugin.get_sampling(image)
        grey, tables = image.mode == "L", image.quantization  # type: ignore[attr-defined]
    options = {"qtables": tables, "subsampling": None if grey or sampling < 0 else sampling}
    bands = np.array(Image.fromarray(rgb).convert("L"))[..., None] if grey else rgb
    decoded = _decoded(saved(bands, "JPEG", options), bands.shape)
    return decoded.repeat(3, axis=2) if grey else decoded


def coded_like(data: bytes, bands: Pixels) -> tuple[bytes, Pixels] | None:
    """A JPEG of other pixels, H,W,3, coded as coarsely as `data`, and what it decodes to.

    None where the chroma of `data` is not halved, or the pixels are too few for that.
    """
    if not is_halved(data):
        return None
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        tables = {"qtables": image.quantization}  # type: ignore[attr-defined]
    written = saved(bands, "JPEG", {**tables, "subsampling": HALVED})
    return (written, _decoded(written, bands.shape)) if is_halved(written) else None


def _chroma_table(image: Image.Image) -> Sequence[int] | None:
    """The quantisation table of 4:2:0 chroma; None for other sampling, two tables, or steps over 255."""
    if image.mode != "RGB" or JpegImagePlugin.get_sampling(image) != HALVED or min(image.size) < MCU:
        return None
    jpeg: Any = image
    tables = {tuple(jpeg.quantization[component[3]]) for component in jpeg.layer[1:]}
    table = tables.pop()
    return None if tables or max(table) > 255 else table


def _touched(wanted: Pixels, original: Pixels, side: int) -> tuple[slice, slice]:
    """The smallest rectangle of whole blocks that holds the whole perturbation.

    JPEG codes each block by itself, so this part decodes to the same pixels alone as in the whole file.
    """
    rows, columns = (np.flatnonzero((wanted != original).any(axis=(other, 2))) // side for other in (1, 0))
    if not rows.size:
        return slice(0, 0), slice(0, 0)
    first, last = (rows[0], columns[0]), (rows[-1], columns[-1])
    return slice(first[0] * side, (last[0] + 1) * side), slice(first[1] * side, (last[1] + 1) * side)


def _within(
    aim: Pixels, original: Pixels, levels: int, look: Look | None, coded: Mapping[str, Any]
) -> Pixels:
    """Pixels near `aim` whose JPEG decodes to within the bound, or nearly so when the rounds run out.

    At first only the samples that decode to beyond the bound are pulled back, by as much as they exceed
    it. That alters the least but may never converge, so that later each 8x8 block with such samples gets
    a narrower bound in every round.
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
    """A picture in YCbCr 4:2:0, as a JPEG stores it.

    Attributes:
        luma: H,W.
        chroma: h,w,2, half of H and W rounded up.
        table: the quantisation table of chroma.
    """

    luma: Pixels
    chroma: Pixels
    table: Sequence[int]

    def saved(self, options: Mapping[str, Any]) -> bytes:
        """The file's bytes.

        Chroma is doubled by repetition, so that the encoder's mean of four samples restores each of them,
        and its coefficients stay the multiples of the table's steps that they were.
        """
        height, width = self.luma.shape
        full = self.chroma.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
        bands = [
            Image.fromarray(np.ascontiguousarray(one)) for one in (self.luma, full[..., 0], full[..., 1])
        ]
        given = {"qtables": [FINEST, list(self.table)], "subsampling": HALVED, **options}
        return stored(Image.merge("YCbCr", bands), "JPEG", given)


def _beyond(came_out: Pixels, original: Pixels, levels: int, look: Look | None) -> NDArray[np.int16]:
    """By how much each decoded sample exceeds the bound, in levels, with its sign.

    Where the colour in sRGB exceeds the bound, all samples of the pixel count as too far in proportion.
    This second bound cannot always be kept: outside sRGB's gamut one level of a sample may be a dozen in
    sRGB, and the JPEG coding alone may cost one.
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
    """The file with only its luma perturbed, and its description; None if that is not possible.

    It is not possible for other sampling than 4:2:0, nor where the decoded file exceeds the bound, for
    example because chroma was clipped at 0 or 255 when it was decoded and so cannot be reproduced.
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
    """The planes of a file in YCbCr 4:2:0; None for any other.

    Chroma is read by decoding at half the size, which yields it as stored, without smooth upscaling.
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
    """The planes with the luminance of the perturbation, such that decoded pixels stay within the bound.

    Where a pixel decodes to beyond the bound, its own limit is lowered, and in later rounds that of its
    whole block. None if the rounds run out.
    """
    inner = _touched(wanted, original, MCU)
    # Decoders smooth chroma across the edges of blocks, so the neighbouring blocks are decoded too.
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
    """A plane of the same shape that is true in every block that has a hit."""
    height, width = hits.shape
    whole = np.pad(hits, ((0, -height % side), (0, -width % side)))
    blocks = whole.reshape(whole.shape[0] // side, side, -1, side).any(axis=(1, 3))
    return blocks.repeat(side, axis=0).repeat(side, axis=1)[:height, :width]
