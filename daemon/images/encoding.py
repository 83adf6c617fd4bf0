"""Pixels out: into the kind of file they came from, as close to what was asked as it can hold."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin
from PIL.PngImagePlugin import PngInfo

from daemon.domain import Rgb
from daemon.images.intake import Picture, pillow, stored
from daemon.images.metadata import Metadata

EXTENSIONS = {"JPEG": ".jpg", "PNG": ".png", "TIFF": ".tif", "WEBP": ".webp"}
LONGEST_SIDE = {"JPEG": 65_500, "WEBP": 16_383}
LOSSLESS = frozenset({"raw", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits", "zstd", "lzma"})
PREDICTED = LOSSLESS - {"raw", "packbits"}
SEGMENT = 65_000
"""What one JPEG segment holds, with room for its header."""

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

    PNG, TIFF and WebP are lossless. A JPEG is written so that its decoded pixels stay within
    `levels` of the picture wherever that can be had; the caller measures. Grey pictures stay
    grey (the luminance of `rgb` is written; WebP has no grey). Palettes become RGB or RGBA.
    Pixels are stored under the orientation they had. What a format cannot hold (transparency in
    a JPEG, sides beyond its limit) is written as PNG, and `how` says so.

    Args:
        picture: the original.
        rgb: H,W,3 uint8, upright, within `levels` of `picture.rgb`.
        levels: the bound on every sample, in levels of 255.
        format: `same`, `png`, `jpeg`, `tiff` or `webp`.
        metadata: `keep`, `strip-gps` or `strip-all`.

    Raises:
        ValueError: `rgb` is not of the picture's shape and type, or an unknown word.
    """
    if rgb.shape != picture.rgb.shape or rgb.dtype != np.uint8:
        raise ValueError(f"rgb: got {rgb.dtype} {rgb.shape}, expected uint8 {picture.rgb.shape}")
    kind = picture.format if format == "same" else format.upper()
    if kind not in EXTENSIONS:
        raise ValueError(f"format: got {format!r}, expected same, png, jpeg, tiff or webp")
    hurdle = _hurdle(picture, kind)
    if hurdle:
        kind = "PNG"
    with pillow(None):
        about = picture.metadata.reduced(metadata)
        grey = picture.grey and kind != "WEBP"
        if not grey and about.icc is not None and about.icc[16:20] == b"GRAY":
            about = replace(about, icc=None)  # a grey profile on colour pixels is an invalid file
        colour = stored(_flat(rgb, grey), picture.orientation)
        if kind == "JPEG":
            original = stored(_flat(picture.rgb, grey), picture.orientation)
            data, how = _jpeg(colour, original, levels, about)
        else:
            data, how = _lossless(kind, _with_alpha(colour, picture), picture, about)
    return Encoded(data, EXTENSIONS[kind], f"{how} ({hurdle})" if hurdle else how)


def _hurdle(picture: Picture, kind: str) -> str | None:
    """Why the format cannot hold the picture."""
    if kind == "JPEG" and picture.alpha is not None and picture.alpha.min() < 255:
        return "JPEG holds no transparency"
    longest = LONGEST_SIDE.get(kind)
    if longest is not None and max(picture.rgb.shape[:2]) > longest:
        return f"{kind} holds no side beyond {longest} pixels"
    return None


def _flat(rgb: Rgb, grey: bool) -> Pixels:
    """H,W,1 or H,W,3."""
    return np.asarray(Image.fromarray(rgb).convert("L"))[..., None] if grey else rgb


def _with_alpha(colour: Pixels, picture: Picture) -> Pixels:
    if picture.alpha is None:
        return colour
    return np.concatenate([colour, stored(picture.alpha, picture.orientation)[..., None]], axis=2)


def _image(bands: Pixels) -> Image.Image:
    return Image.fromarray(bands[..., 0] if bands.shape[2] == 1 else bands)


def _saved(bands: Pixels, kind: str, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    _image(bands).save(file, kind, **{key: value for key, value in options.items() if value is not None})
    return file.getvalue()


def _lossless(kind: str, bands: Pixels, picture: Picture, about: Metadata) -> tuple[bytes, str]:
    options: dict[str, Any] = {"icc_profile": about.icc}
    if kind == "PNG":
        return _saved(bands, kind, options | _png(picture, about)), "PNG lossless"
    if kind == "WEBP":
        # exact: the colour below full transparency is part of the picture too.
        options |= {"lossless": True, "exact": True, "exif": about.exif(), "xmp": about.xmp}
        return _saved(bands, kind, options), "WebP lossless"
    compression = picture.compression if picture.compression in LOSSLESS else "tiff_adobe_deflate"
    options |= {"compression": compression, "dpi": about.dpi}
    try:
        data = _tiff(bands, about, options)
    except (ValueError, TypeError, RuntimeError, struct.error):  # libtiff is choosier about tags than EXIF is
        data = _tiff(bands, about.bare(), options)
    return data, f"TIFF {compression} lossless"


def _tiff(bands: Pixels, about: Metadata, options: dict[str, Any]) -> bytes:
    tags, directories = dict(about.main), about.directories()
    if about.xmp is not None:
        tags[700] = about.xmp
    if options["compression"] in PREDICTED:
        tags[317] = 2  # store differences of neighbours: smaller
    tags |= dict.fromkeys(directories, 8)  # placeholders
    return _with_directories(_saved(bands, "TIFF", options | {"tiffinfo": tags}), directories)


def _png(picture: Picture, about: Metadata) -> dict[str, Any]:
    extra = PngInfo()
    if picture.format == "PNG":
        for kind, body in picture.chunks:
            extra.add(kind, body)
    if about.xmp is not None:
        extra.add_itxt("XML:com.adobe.xmp", about.xmp.decode("utf-8", "replace"))
    return {"pnginfo": extra, "exif": about.exif(), "dpi": about.dpi}


def _with_directories(tiff: bytes, directories: dict[int, Any]) -> bytes:
    """Append EXIF directories and point the placeholders at them: Pillow cannot in a compressed TIFF."""
    data = bytearray(tiff)
    order = "<" if data[:2] == b"II" else ">"
    (at,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, at)
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        (tag,) = struct.unpack_from(f"{order}H", data, entry)
        if tag in directories:
            data += b"\0" * (len(data) % 2)
            ifd = TiffImagePlugin.ImageFileDirectory_v2(bytes(data[:8]), group=tag)
            for key, value in directories[tag].items():
                ifd[key] = value
            struct.pack_into(f"{order}HHII", data, entry, tag, 4, 1, len(data))
            data += ifd.tobytes(len(data))
    return bytes(data)


def _jpeg(colour: Pixels, original: Pixels, levels: int, about: Metadata) -> tuple[bytes, str]:
    """Stored as RGB: the rounding to YCbCr and back alone would cost a third of a small budget.

    A JFIF header means YCbCr to every reader, so RGB goes without one and the resolution into EXIF.
    """
    grey = colour.shape[2] == 1
    if about.dpi is not None:
        resolution = {0x011A: about.dpi[0], 0x011B: about.dpi[1], 0x0128: 2}
        about = replace(about, main={**about.main, **resolution})
    exif = about.exif()
    if exif is not None and len(exif) > SEGMENT:
        exif = about.bare().exif()
    options = COEFFICIENTS | {
        "keep_rgb": not grey,
        "icc_profile": about.icc,
        "exif": exif,
        "xmp": about.xmp if about.xmp is None or len(about.xmp) <= SEGMENT else None,
        "dpi": about.dpi if grey else None,
    }
    aim = colour.copy()
    touched = _touched(colour, original)
    aim[touched] = _within(colour[touched], original[touched], levels, keep_rgb=not grey)
    data = _saved(aim, "JPEG", options)
    return data, f"JPEG quality 100 {'grey' if grey else '4:4:4 RGB'}"


def _touched(colour: Pixels, original: Pixels) -> tuple[slice, slice]:
    """The smallest rectangle of whole 8x8 blocks that holds every change.

    Without chroma subsampling each block is coded on its own: what comes out of this part comes
    out of the whole file too.
    """
    rows, columns = (np.flatnonzero((colour != original).any(axis=(other, 2))) // 8 * 8 for other in (1, 0))
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
        data = _saved(aim, "JPEG", COEFFICIENTS | {"keep_rgb": keep_rgb})
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
