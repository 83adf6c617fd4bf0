"""Pixels out: into the kind of file they came from, as close to what was asked as it can hold."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from daemon.domain import Rgb
from daemon.images import blocks, colour, writers
from daemon.images.colour import Samples
from daemon.images.heif import heif_ready
from daemon.images.intake import Picture, stored
from daemon.images.metadata import Metadata
from daemon.images.readers import pillow
from daemon.images.writers import Sheet, saved

EXTENSIONS = {
    "JPEG": ".jpg", "PNG": ".png", "TIFF": ".tif", "WEBP": ".webp", "HEIF": ".heic", "AVIF": ".avif",
    "JPEG2000": ".jp2", "BMP": ".bmp",
}  # fmt: skip
NAMES = {"same": "same", "heic": "HEIF", "jpeg2000": "JPEG2000"}
"""Formats that the settings call otherwise than by their name in lower case."""

DEPTHS = {"PNG": {16}, "TIFF": {16}, "JPEG2000": {*range(9, 17)}, "HEIF": {10, 12}, "AVIF": {10, 12}}
"""Bits a sample, beyond 8, that a format is written with."""

LONGEST_SIDE = {"JPEG": 65_500, "WEBP": 16_383, "HEIF": 16_384, "AVIF": 65_536}
INK = frozenset({"JPEG", "TIFF"})
STORED_UPRIGHT = frozenset({"HEIF", "BMP"})
"""The encoder of the one would turn the pixels, the other has no place to say that they are turned."""

NO_GREY = frozenset({"WEBP"})
NO_ALPHA = frozenset({"JPEG", "BMP"})
MISFITS = {(b"GRAY", 3), (b"GRAY", 4), (b"RGB ", 1), (b"RGB ", 4), (b"CMYK", 1), (b"CMYK", 3)}

COEFFICIENTS: dict[str, Any] = {"quality": 100, "subsampling": 0}
"""All that decides which pixels a JPEG decodes to."""

GENTLE, ROUNDS = 4, 12
"""JPEG: rounds that pull single samples back, and rounds in all."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Encoded:
    """A written file.

    Attributes:
        data: its bytes.
        extension: with the dot, e.g. `.jpg`.
        how: for the receipt, e.g. `JPEG quality 100 4:4:4 RGB`.
    """

    data: bytes
    extension: str
    how: str


def encode(
    picture: Picture,
    rgb: Rgb,
    *,
    levels: int,
    format: str = "same",  # noqa: A002  # the setting's own name
    metadata: str = "keep",
) -> Encoded:
    """Write changed pixels as a file like the one the picture came from.

    The change is carried into the picture's own samples: its colour space, its depth, its low
    bits. All formats but JPEG and AVIF are written lossless; those so that the decoded pixels stay
    within `levels` of the picture wherever that can be had; the caller measures. Grey stays grey
    (WebP has none), CMYK stays CMYK (JPEG and TIFF; sRGB elsewhere), 16 bits stay 16 (PNG, TIFF and
    JPEG 2000; 8 elsewhere). Palettes become RGB or RGBA. Pixels are stored under the orientation
    they had. What a format cannot hold is written as PNG, and `how` says so.

    Args:
        picture: the original.
        rgb: H,W,3 uint8 sRGB, upright, within `levels` of `picture.rgb`.
        levels: the bound on every sample and every colour, in levels of 255.
        format: `same`, `png`, `jpeg`, `tiff`, `webp`, `heic`, `avif`, `jpeg2000` or `bmp`.
        metadata: `keep`, `strip-gps` or `strip-all`.

    Raises:
        ValueError: `rgb` is not of the picture's shape and type, or an unknown word.
    """
    if rgb.shape != picture.rgb.shape or rgb.dtype != np.uint8:
        raise ValueError(f"rgb: got {rgb.dtype} {rgb.shape}, expected uint8 {picture.rgb.shape}")
    kind = picture.format if format == "same" else NAMES.get(format, format.upper())
    if kind not in (*EXTENSIONS, "GIF"):
        raise ValueError(f"format: got {format!r}, expected same or one of {', '.join(EXTENSIONS).lower()}")
    hurdle = _hurdle(picture, kind)
    if hurdle:
        kind = "PNG"
    with pillow(None):
        about = picture.metadata.reduced(metadata)
        data, how = _written(kind, picture, rgb, about, levels)
    notes = [hurdle] if hurdle else []
    if picture.frames > 1:
        notes.append(f"first of {picture.frames}")
    return Encoded(data, EXTENSIONS[kind], f"{how} ({'; '.join(notes)})" if notes else how)


def _written(kind: str, picture: Picture, rgb: Rgb, about: Metadata, levels: int) -> tuple[bytes, str]:
    sheet = _fitted(picture, rgb, kind, levels)
    about = _fitting(about, sheet)
    if kind == "JPEG":
        return _jpeg(sheet, picture, about, levels)
    return writers.written(kind, sheet, picture, about)


def _fitting(about: Metadata, sheet: Sheet) -> Metadata:
    """Less a profile, or numbers for one, that is for samples of another make: the file would lie."""
    misfit = about.icc is not None and (about.icc[16:20], sheet.wanted.shape[2]) in MISFITS
    if sheet.is_srgb:
        return replace(about, icc=None, cicp=None)
    return replace(about, icc=None) if misfit else about


def _fitted(picture: Picture, rgb: Rgb, kind: str, levels: int) -> Sheet:
    """The picture's samples with the change, as far as the format can hold them."""
    turn = 1 if kind in STORED_UPRIGHT else picture.orientation
    channels = picture.samples.shape[2]
    if (channels == 4 and kind not in INK) or (channels == 1 and kind in NO_GREY):
        # Not every profile of grey is one for colour, and none of ink is.
        wanted: Samples = rgb if channels == 4 or picture.look is not None else _grey(picture, rgb)
        original: Samples = picture.rgb
        is_srgb = channels == 4 or picture.look is not None
    else:
        wanted = colour.carried(picture.samples, picture.rgb, rgb, picture.look, levels, picture.depth)
        original, is_srgb = picture.samples, False
    alpha, depth = picture.alpha, _depth(picture, kind)
    if depth == 8:
        wanted, original = colour.eight(wanted), colour.eight(original)
        alpha = None if alpha is None else colour.eight(alpha)
    if kind in NO_ALPHA:
        alpha = None
    return Sheet(
        stored(wanted, turn),
        stored(original, turn),
        None if alpha is None else stored(alpha, turn),
        8 if wanted.dtype == np.uint8 else depth,
        is_srgb,
    )


def _depth(picture: Picture, kind: str) -> int:
    """Bits a sample to write: the picture's own where the format has them, 16 where it has those, else 8.

    Others in between would be rounded, and a picture of the full budget would leave it.
    """
    depths = DEPTHS.get(kind, set()) if picture.depth > 8 else set()
    return picture.depth if picture.depth in depths else 16 if 16 in depths else 8


def _grey(picture: Picture, rgb: Rgb) -> Rgb:
    """The picture with the luminance of the change, in three equal channels."""
    plane = colour.carried(picture.rgb[..., :1], picture.rgb, rgb, None, 255)
    return colour.eight(plane).repeat(3, axis=2)


def _hurdle(picture: Picture, kind: str) -> str | None:
    """Why the format cannot hold the picture."""
    if kind == "GIF":
        return "GIF holds no more than 256 colours"
    if kind == "HEIF" and not heif_ready():
        return "no HEIC writer is installed"
    name = "JPEG" if kind == "JPEG" else kind
    if (
        kind in NO_ALPHA
        and picture.alpha is not None
        and picture.alpha.min() < np.iinfo(picture.alpha.dtype).max
    ):
        return f"{name} holds no transparency"
    longest = LONGEST_SIDE.get(kind)
    if longest is not None and max(picture.rgb.shape[:2]) > longest:
        return f"{kind} holds no side beyond {longest} pixels"
    return None


def _jpeg(sheet: Sheet, picture: Picture, about: Metadata, levels: int) -> tuple[bytes, str]:
    """Stored as RGB: the rounding to YCbCr and back alone would cost a third of a small budget.

    A JFIF header means YCbCr to every reader, so RGB goes without one and the resolution into EXIF.
    """
    wanted, original = colour.eight(sheet.wanted), colour.eight(sheet.original)
    grey, ink = wanted.shape[2] == 1, wanted.shape[2] == 4
    if not grey:
        about = about.with_resolution()
    options = COEFFICIENTS | {
        "keep_rgb": not grey and not ink,
        "extra": blocks.jpeg(about, same=picture.format == "JPEG"),
        "dpi": about.dpi if grey else None,
    }
    aim = wanted.copy()
    touched = _touched(wanted, original)
    aim[touched] = _within(wanted[touched], original[touched], levels, keep_rgb=not grey and not ink)
    data = saved(aim, "JPEG", options, ink=ink)
    return data, f"JPEG quality 100 {'grey' if grey else '4:4:4 CMYK' if ink else '4:4:4 RGB'}"


def _touched(wanted: Pixels, original: Pixels) -> tuple[slice, slice]:
    """The smallest rectangle of whole 8x8 blocks that holds every change.

    Without chroma subsampling each block is coded on its own: what comes out of this part comes
    out of the whole file too.
    """
    rows, columns = (np.flatnonzero((wanted != original).any(axis=(other, 2))) // 8 * 8 for other in (1, 0))
    if not rows.size:
        return slice(0), slice(0)
    return slice(rows[0], rows[-1] + 8), slice(columns[0], columns[-1] + 8)


def _within(aim: Pixels, original: Pixels, levels: int, *, keep_rgb: bool) -> Pixels:
    """Pixels near `aim` whose JPEG decodes to within the bound, or nearly where the rounds are over.

    First the samples that came out beyond it are pulled back by as much; that spares the rest but
    need not end. Then whole 8x8 blocks with such samples get a narrower bound each round.
    """
    if not aim.size:
        return aim
    middle = original.astype(np.int16)
    low, high = np.clip(middle - levels, 0, 255), np.clip(middle + levels, 0, 255)
    margin = np.zeros(original.shape[:2], np.int16)
    for attempt in range(ROUNDS):
        data = saved(aim, "JPEG", COEFFICIENTS | {"keep_rgb": keep_rgb}, ink=original.shape[2] == 4)
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            came_out = np.array(image).reshape(original.shape)
        beyond = came_out - np.clip(came_out, low, high)
        if not beyond.any():
            break
        if attempt >= GENTLE:
            margin += _blocks(beyond.any(axis=2))
        room = np.maximum(levels - margin, 0)[..., None]
        pulled = np.clip(aim - beyond, middle - room, middle + room)
        aim = np.clip(pulled, 0, 255).astype(np.uint8)
    return aim


def _blocks(hits: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Every 8x8 block with a hit, as a plane of the same shape."""
    height, width = hits.shape
    whole = np.pad(hits, ((0, -height % 8), (0, -width % 8)))
    blocks = whole.reshape(whole.shape[0] // 8, 8, -1, 8).any(axis=(1, 3))
    return blocks.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
