"""Reads the stored samples of a picture file at their full depth, or raises an error.

Pillow reads 8 bits per sample and would silently reduce deeper colour to that. Deeper PNG, AVIF and JPEG
2000 are therefore read by imagecodecs, HEIC by pillow-heif itself, and TIFF by tifffile.

It is one long module because all formats pass the same checks before and after their samples are read.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from backfire.errors import JobError
from backfire.imaging import (
    colour,
    containers,
    formats,
    gathering,
    heif,
    isobmff,
    previews,
    refusals,
    tags,
    tiff,
)
from backfire.imaging.colour import Samples
from backfire.imaging.heif import heif_ready
from backfire.imaging.metadata import Metadata

GREY, ALPHA = frozenset({"1", "L", "LA"}), frozenset({"LA", "RGBA", "PA"})
INKED = frozenset({"JPEG", "TIFF"})
"""The formats in which CMYK is read and written."""

UNREADABLE_MODES = {
    "LAB": ("is CIE Lab", "convert it to sRGB"),
    "YCbCr": ("holds bare YCbCr", "convert it to sRGB"),
    "I": ("has 32 bits per sample", "save it with 8 or 16 bits per sample"),
    "F": ("has floating-point samples", "save it with 8 or 16 bits per sample"),
    "I;16": ("has 16 bits per sample", "save it as 16-bit PNG or TIFF"),
}
COMPRESSIONS = {
    1: "raw", 5: "tiff_lzw", 7: "jpeg", 8: "tiff_adobe_deflate", 32773: "packbits", 32946: "tiff_deflate",
    34925: "lzma", 50000: "zstd",
}  # fmt: skip
JP2_COLOURS = {
    1: "YCbCr", 3: "YCbCr", 4: "YCbCr", 9: "PhotoYCC", 11: "CMY", 12: "CMYK", 13: "YCCK", 14: "CIE Lab",
    19: "CIE Jab", 20: "e-sRGB", 21: "ROMM RGB", 24: "e-sYCC",
}  # fmt: skip
"""By number in a JPEG 2000's box on colours: those that are refused, as no profile says what they are."""
MOST_PAGES = 10_000


@dataclass(frozen=True, eq=False)
class Raw:
    """Stored samples and their properties.

    Attributes:
        bands: H,W,C uint8 or uint16: grey, RGB or CMYK, then alpha if `alpha` is true; more than 8 bits
            are scaled to the full range of 16.
        mode: the stored mode by Pillow's name.
        alpha: whether the last band is alpha.
        about: the file's metadata.
        depth: the bits per sample as stored.
        turned: whether the samples are upright already.
        compression: of a TIFF by Pillow's name; `jp2` or `j2k` of a JPEG 2000; `progressive` of a JPEG.
        big: whether a TIFF has 64-bit offsets.
        frames: the pages or frames in the file, of which the bands are the first.
    """

    bands: Samples
    mode: str
    alpha: bool
    about: Metadata
    depth: int = 8
    turned: bool = False
    compression: str | None = None
    big: bool = False
    frames: int = 1


def read(data: bytes, *, name: str, max_pixels: int, frames: str) -> tuple[str, Raw]:
    """The format of a file and its samples.

    Raises:
        InputError: see `backfire.imaging.decode`.
        ValueError: `frames` is neither `refuse` nor `first`.
    """
    if frames not in ("refuse", "first"):
        raise ValueError(f"frames: got {frames!r}, expected refuse or first")
    kind = formats.sniff(data, name)
    if not containers.is_complete(data, kind):
        raise refusals.cut_short(name, f"the {kind}")
    with _refusing(name, kind, max_pixels):
        reader = {"TIFF": _tiff, "HEIF": _heif, "AVIF": _avif}.get(kind, _plain)
        raw = reader(data, kind, name, max_pixels)
        if raw.frames > 1 and frames == "refuse":
            either = "save each as its own file and drop those"
            remedy = f"{either}, or publish the first alone: set output.frames: first"
            raise refusals.unsupported(name, f"has {raw.frames} pages or frames", remedy, expected="one")
        return kind, raw


def orientation(data: bytes, *, name: str, max_pixels: int) -> int:
    """The EXIF orientation of a picture's stored pixels, 1..8, for which no pixel is decoded.

    Raises:
        InputError: see `backfire.imaging.decode`.
    """
    kind = formats.sniff(data, name)
    with _refusing(name, kind, max_pixels):
        if kind == "PNG":  # EXIF may lie behind the pixels
            data = containers.pixelless_png(data)
        with Image.open(io.BytesIO(data), formats=(kind,)) as image:
            return gathering.read(image, data, kind).orientation


@contextmanager
def pillow(max_pixels: int | None) -> Iterator[None]:
    """Pillow without its warnings, with the configured size limit in place of its own, for longer texts."""
    limit, text = Image.MAX_IMAGE_PIXELS, (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        Image.MAX_IMAGE_PIXELS = max_pixels
        PngImagePlugin.MAX_TEXT_CHUNK = previews.MOST_TEXT
        PngImagePlugin.MAX_TEXT_MEMORY = max(text[1], 4 * previews.MOST_TEXT)
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit
            PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = text


@contextmanager
def _refusing(name: str, kind: str, max_pixels: int) -> Iterator[None]:
    """Turns whatever a library raises into an InputError."""
    with pillow(max_pixels):
        try:
            yield
        except (JobError, MemoryError):
            raise
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise refusals.too_large(name, str(error).partition(" exceeds")[0].lower(), max_pixels) from error
        except Exception as error:  # hostile bytes make the libraries raise errors of any type
            if isinstance(error, EOFError) or "truncated" in str(error).lower():
                raise refusals.cut_short(name, f"the {kind}") from error
            raise refusals.damaged(name, kind, error) from error


def _plain(data: bytes, kind: str, name: str, max_pixels: int) -> Raw:
    broken: list[str] = []
    if kind == "PNG":
        data, broken = containers.sound_png(data)
    if kind == "JPEG":
        _check_jpeg(data, name)
    depth = _depth(data, kind, name)
    with Image.open(io.BytesIO(data), formats=(kind,)) as image:
        deep = depth > 8
        if not deep or image.mode == "CMYK":
            _check_mode(image.mode, kind, name)
        if kind == "JPEG2000":
            _check_jp2(data, name)
        count = 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))
        if kind == "PNG" and image.mode in GREY and isinstance(key := image.info.get("transparency"), int):
            most = (1 << min(data[24], 8)) - 1  # the key is of the file's depth, the samples are of 8 bits
            image.info["transparency"] = (key & most) * 255 // most
        image.load()
        about = gathering.read(image, data, kind)
        left_out = [f"the PNG chunk {chunk}: its checksum is wrong" for chunk in broken]
        about = replace(about, left_out=(*left_out, *about.left_out))
        stream = ("j2k" if data[:1] == b"\xff" else "jp2") if kind == "JPEG2000" else None
        if kind == "JPEG" and image.info.get("progressive"):
            stream = "progressive"
        if deep:
            decoded = imagecodecs.png_decode(data) if kind == "PNG" else imagecodecs.jpeg2k_decode(data)
            return _deep(decoded, about, depth, compression=stream, frames=count)
        bands, alpha = _bands(image)
        return Raw(bands, image.mode, alpha, about, compression=stream, frames=count)


def _deep(
    decoded: Samples,
    about: Metadata,
    depth: int,
    *,
    turned: bool = False,
    compression: str | None = None,
    frames: int = 1,
) -> Raw:
    """The samples from values of `depth` bits, H,W or H,W,C, as a library gives them."""
    bands = colour.widened(np.atleast_3d(decoded), depth)
    mode = tiff.DEEP_MODES[bands.shape[2]]
    return Raw(bands, mode, mode in ALPHA, about, depth, turned, compression, frames=frames)


def _avif(data: bytes, kind: str, name: str, max_pixels: int) -> Raw:
    items = isobmff.read(data)
    if items.cropped:  # by which no decoder for AVIF that is used here goes
        what, remedy = "is an AVIF that shows a part of its pixels (clap)", "save that part as its own file"
        raise refusals.unsupported(name, what, remedy, expected="all of them")
    said = {depth for item in items.shown() for depth in _depths_of(item)}
    depth = max(said, default=8)
    # Pillow opens the file first, because it checks the size.
    with Image.open(io.BytesIO(data), formats=("AVIF",)) as image:
        count = int(getattr(image, "n_frames", 1))
        about = gathering.read(image, data, kind)
        if depth == 8:
            image.load()
            bands, alpha = _bands(image)
            return Raw(bands, image.mode, alpha, about, frames=count)
        if count > 1:  # imagecodecs would decode all of them, and decoding a single one corrupts memory
            what = f"has {count} frames of {depth} bits"
            raise refusals.unsupported(name, what, "save one of them as its own file", expected="one")
    decoded = np.asarray(imagecodecs.avif_decode(data))
    if decoded.dtype != np.uint16 or int(decoded.max(initial=0)) >> depth:
        raise refusals.damaged(name, kind, f"its samples do not have the {depth} bits that it announces")
    return _deep(decoded, about, depth)


def _depths_of(item: isobmff.Item) -> Iterator[int]:
    """The bits per sample that the properties of a coded AV1 picture give."""
    for kind, body in item.properties:
        if kind == b"av1C" and len(body) > 2:
            yield (12 if body[2] & 0x20 else 10) if body[2] & 0x40 else 8


def _heif(data: bytes, kind: str, name: str, max_pixels: int) -> Raw:
    if not heif_ready():
        raise refusals.unsupported(
            name,
            "is HEIC, and no reader for it is installed",
            "pip install 'backfire[heic]', or export it as JPEG",
            expected="another format",
        )
    with Image.open(io.BytesIO(data), formats=("HEIF",)) as image:
        depth = int(image.info.get("bit_depth") or 8)
        if depth not in (8, 10, 12):
            raise refusals.odd_depth(name, depth)
        if image.mode == "RGBa":
            raise refusals.unsupported(name, "has premultiplied alpha", "save it with unassociated alpha")
        count = int(getattr(image, "n_frames", 1))
        about = gathering.read(image, data, kind)
        about = about.upright(about.turned or 1)  # libheif applies the rotation of the container
        if depth > 8:
            return _deep(heif.values(data), about, depth, turned=True, frames=count)
        image.load()
        bands, alpha = _bands(image)
        return Raw(bands, image.mode, alpha, about, turned=True, frames=count)


def _tiff(data: bytes, kind: str, name: str, max_pixels: int) -> Raw:
    if len(data) < 16:
        raise refusals.cut_short(name, "the TIFF")
    try:
        pages = tags.chain(data, most=MOST_PAGES)
        cut_short = tags.is_cut_short(data)
    except ValueError as error:
        if "outside" in str(error):
            raise refusals.cut_short(name, "the TIFF") from error
        raise
    if not pages or cut_short:
        raise refusals.cut_short(name, "the TIFF")
    first = pages[0]
    depth = tiff.check(first, data, name, max_pixels)
    # Thumbnails and masks of the first page do not count as pages.
    count = 1 + sum(not page.number(254) & 5 for page in pages[1:])
    compression, big = COMPRESSIONS.get(first.number(259, 1)), data[2:4] in (b"+\0", b"\0+")
    about = gathering.of_tiff(first)
    if depth == 16:
        bands, mode, alpha = tiff.deep_samples(data, name)
        return Raw(bands, mode, alpha, about, depth, compression=compression, big=big, frames=count)
    with Image.open(io.BytesIO(data), formats=("TIFF",)) as image:
        _check_mode(image.mode, kind, name)
        # Pillow turns a TIFF upright when it loads it, which its tag alone is to say, as of other formats.
        image.info.pop("xmp", None)
        image.load()
        bands, alpha = _bands(image)
        if alpha and 338 not in first.entries:
            raise refusals.unsupported(name, *tiff.NAMELESS)
        if first.number(277, 1) > bands.shape[2]:
            raise refusals.unsupported(
                name,
                f"has {first.number(277)} channels, {bands.shape[2]} of which are understood",
                "save it without the others",
            )
        return Raw(bands, image.mode, alpha, about, 8, True, compression, big, count)


def _bands(image: Image.Image) -> tuple[Samples, bool]:
    """The samples H,W,C of a loaded picture (grey, CMYK or RGB), and whether alpha comes last."""
    alpha = image.mode in ALPHA or "transparency" in image.info
    mode = image.mode if image.mode == "CMYK" else ("L" if image.mode in GREY else "RGB") + "A" * alpha
    bands = np.array(image if image.mode == mode else image.convert(mode))
    return (bands if bands.ndim == 3 else bands[..., None]), alpha


def luminance(colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The luma H,W of H,W,1 or H,W,3."""
    plane = colours[..., 0]
    return plane if colours.shape[2] == 1 else np.array(Image.fromarray(colours).convert("L"))


def _check_mode(mode: str, kind: str, name: str) -> None:
    if mode in UNREADABLE_MODES or mode.startswith("I;"):
        raise refusals.unsupported(name, *UNREADABLE_MODES.get(mode, UNREADABLE_MODES["I;16"]))
    if mode == "CMYK" and kind not in INKED:
        raise refusals.unsupported(name, f"is a CMYK {kind}", "save it as TIFF or JPEG")


def _depth(data: bytes, kind: str, name: str) -> int:
    """The bits per sample of a PNG or JPEG 2000, and 8 for other formats; refuses unsupported depths."""
    if kind == "JPEG2000":
        depths = set(_component_depths(data))
        if len(depths) != 1 or not 8 <= max(depths) <= 16:
            raise refusals.odd_depth(name, max(depths, default=0))
        return max(depths)
    if kind == "PNG" and data[12:16] == b"CgBI":
        what, remedy = (
            "is a PNG that Xcode has rewritten for iOS (CgBI)",
            "save the PNG that it was made from",
        )
        raise refusals.unsupported(name, what, remedy, expected="a PNG that conforms to the standard")
    if kind != "PNG" or data[24:25] != b"\x10":
        return 8
    if any(one == b"tRNS" for one, _ in containers.png_chunks(data)):
        raise refusals.unsupported(name, "has 16 bits and a colour key", "save it with an alpha channel")
    return 16


def _check_jpeg(data: bytes, name: str) -> None:
    """Refuse the kinds of JPEG that Pillow takes for damaged ones."""
    for marker, body in containers.jpeg_segments(data):
        process = marker[0] - 0xC0
        if not 0 <= process < 16 or process in (4, 8, 12):  # DHT, JPG and DAC, which are no frames
            continue
        if process not in (0, 1, 2, 9, 10):
            what = "is a lossless or hierarchical JPEG"
            raise refusals.unsupported(name, what, "save it as PNG, or as JPEG", expected="a usual JPEG")
        if body[0] != 8:
            raise refusals.odd_depth(name, body[0])
        if not any(body[1:3]):
            what = "has its height behind its pixels (DNL)"
            raise refusals.unsupported(name, what, "save it again in an editor", expected="a usual JPEG")
        return


def _check_jp2(data: bytes, name: str) -> None:
    """Refuse a JPEG 2000 whose colours are premultiplied, or would be taken for sRGB and are not."""
    found = containers.jp2_headers(data, b"colr")
    if found and not any(map(gathering.is_known_colour, found)):
        number = int.from_bytes(found[0][3:7], "big")
        what = JP2_COLOURS.get(number, f"number {number}") if found[0][:1] == b"\1" else "an unknown kind"
        remedy = "convert it to sRGB, or save it with a colour profile"
        raise refusals.unsupported(
            name, f"is a JPEG 2000 whose colours are {what}", remedy, expected="sRGB, grey or a profile"
        )
    channels = b"".join(body[2:] for body in containers.jp2_headers(data, b"cdef"))
    if any(channels[at + 2 : at + 4] == b"\0\2" for at in range(0, len(channels), 6)):
        raise refusals.unsupported(name, "has premultiplied alpha", "save it with unassociated alpha")


def _component_depths(data: bytes) -> list[int]:
    """The bits of each component, from the codestream's first segment (SIZ); 0 for a signed component."""
    boxed = data[:1] == b"\0"
    stream = next((body for kind, body in containers.boxes(data) if kind == b"jp2c"), b"") if boxed else data
    count = int.from_bytes(stream[40:42], "big")
    sizes = bytes(stream[42 : 42 + 3 * count : 3])
    return [0 if size & 0x80 else size + 1 for size in sizes]
