"""Bytes in: pictures and masks, upright, or a refusal that says what to do."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from daemon.domain import Rgb
from daemon.errors import Code, InputError, JobError
from daemon.images import containers, metadata
from daemon.images.metadata import Metadata

TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
"""EXIF orientation → how stored pixels become upright: swap the axes, then flip rows, columns."""

GREY, ALPHA = frozenset({"L", "LA"}), frozenset({"LA", "RGBA", "PA"})
COLOUR_CHUNKS = frozenset({b"cHRM", b"gAMA", b"sRGB", b"cICP"})
NO_WAY_IN = {
    "1": ("has one bit a pixel, which leaves no room for a small change", "save it as 8-bit grey"),
    "CMYK": ("is CMYK", "convert it to sRGB"),
    "LAB": ("is CIE Lab", "convert it to sRGB"),
    "YCbCr": ("holds bare YCbCr", "convert it to sRGB"),
    "I": ("has 32 bits a sample", "save it with 8 bits a sample"),
    "F": ("has floating-point samples", "save it with 8 bits a sample"),
}


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture and all that its file needs to be written again.

    Attributes:
        rgb: H,W,3 uint8, upright; grey pictures have three equal channels.
        format: `JPEG`, `PNG`, `TIFF` or `WEBP`.
        mode: the stored mode in Pillow's words: L, LA, RGB, RGBA, P, PA.
        grey: whether it is stored without colour, and will be again.
        alpha: H,W uint8, upright, 255 = opaque; None where the file has no transparency.
        metadata: EXIF, profile, XMP and resolution, without what shows the picture unprotected.
        compression: of a TIFF, in Pillow's words.
        chunks: of a PNG, those that say how its colours are meant.
    """

    rgb: Rgb
    format: str
    mode: str
    grey: bool
    alpha: NDArray[np.uint8] | None
    metadata: Metadata = field(default_factory=Metadata)
    compression: str | None = None
    chunks: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def orientation(self) -> int:
        """1..8 as in EXIF: how the stored pixels are turned."""
        return self.metadata.orientation


def decode(data: bytes, *, name: str, max_pixels: int) -> Picture:
    """A picture from the bytes of a file.

    Of a JPEG with further pictures behind it (MPO: depth or gain maps, previews) the first is
    taken. Palette pictures and colour keys come out as RGB, with alpha where they have any.

    Raises:
        InputError: EMPTY, TRUNCATED, TOO_LARGE (more than `max_pixels`), UNSUPPORTED (another
            format, more than 8 bits a sample, CMYK, float, bilevel, several pages or frames),
            or UNREADABLE.
    """
    with _opened(data, name, max_pixels) as image:
        if image.mode in NO_WAY_IN or image.mode.startswith("I;"):
            what, way_out = NO_WAY_IN.get(image.mode, NO_WAY_IN["I"])
            raise _unsupported(name, what, way_out)
        kind = "JPEG" if image.format == "MPO" else str(image.format)
        about = _loaded(image)
        grey, mode = image.mode in GREY, image.mode
        transparent = mode in ALPHA or "transparency" in image.info
        bands = _upright(_array(image, {"L": grey, "A": transparent}), about.orientation, done=kind == "TIFF")
        colour = bands[..., :1].repeat(3, axis=2) if grey else bands[..., :3]
        return Picture(
            rgb=np.ascontiguousarray(colour),
            format=kind,
            mode=mode,
            grey=grey,
            alpha=np.ascontiguousarray(bands[..., -1]) if transparent else None,
            metadata=about,
            compression=image.info.get("compression") if kind == "TIFF" else None,
            chunks=_colour_chunks(data) if kind == "PNG" else (),
        )


def decode_painting(data: bytes, *, name: str, max_pixels: int) -> NDArray[np.uint8]:
    """A painted mask from the bytes of a picture file: H,W,4 uint8 RGBA, upright by its own EXIF.

    What it marks is for the caller to say.

    Raises:
        InputError: MASK_UNREADABLE, whatever is wrong with it.
    """
    try:
        with _opened(data, name, max_pixels) as image:
            about = _loaded(image)
            if image.mode in ("CMYK", "LAB", "I", "F") or image.mode.startswith("I;"):
                raise _unsupported(name, f"has mode {image.mode}", "save it as 8-bit grey")
            bands = np.array(image.convert("RGBA"))
            return np.ascontiguousarray(_upright(bands, about.orientation, done=image.format == "TIFF"))
    except InputError as error:
        raise InputError(Code.MASK_UNREADABLE, f"mask {error.message}") from error


def max_change(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> int:
    """The largest difference of two equally shaped uint8 pictures, in levels."""
    return int(_difference(a, b).max(initial=0))


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of two equally shaped uint8 pictures in dB; inf where they are equal."""
    difference = _difference(a, b)
    squares = int(np.multiply(difference, difference, dtype=np.uint16).sum(dtype=np.uint64))
    return 10 * math.log10(255**2 * difference.size / squares) if squares else math.inf


def stored(upright: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Upright pixels as the file stores them under an orientation; the inverse of decoding."""
    swap, up, left = TURNS[orientation]
    flipped = upright[:: -1 if up else 1, :: -1 if left else 1]
    return np.ascontiguousarray(flipped.swapaxes(0, 1) if swap else flipped)


@contextmanager
def pillow(max_pixels: int | None) -> Iterator[None]:
    """Pillow without its remarks, and with our size limit in place of its own."""
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


@contextmanager
def _opened(data: bytes, name: str, max_pixels: int) -> Iterator[Image.Image]:
    """An opened but not yet loaded picture; whatever Pillow raises within becomes an InputError."""
    kind = containers.sniff(data, name)
    if not containers.is_complete(data, kind):
        raise containers.cut_short(name, f"the {kind}")
    with pillow(max_pixels):
        try:
            _check_depth(data, kind, name)
            with Image.open(io.BytesIO(data), formats=(kind,)) as image:
                if getattr(image, "is_animated", False) and image.format != "MPO":
                    raise _unsupported(name, "has several pages or frames", "save each as its own file")
                yield image
        except (JobError, MemoryError):
            raise
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            size = str(error).partition(" exceeds")[0].lower()
            raise InputError(
                Code.TOO_LARGE,
                f"{name}: {size}, expected at most {max_pixels} pixels; shrink it or raise output.max_pixels",
            ) from error
        except Exception as error:  # on hostile bytes Pillow's plug-ins raise anything
            if isinstance(error, EOFError) or "truncated" in str(error).lower():
                raise containers.cut_short(name, f"the {kind}") from error
            raise InputError(
                Code.UNREADABLE,
                f"{name}: is a damaged {kind} ({error}), expected a whole one; save it again in an editor",
            ) from error


def _check_depth(data: bytes, kind: str, name: str) -> None:
    """Refuses what Pillow would reduce to 8 bits without a word, or could not name."""
    if kind == "PNG" and data[24:25] == b"\x10":
        raise _unsupported(name, "has 16 bits a sample", "save it with 8 bits a sample")
    if kind == "TIFF":
        _check_tiff(data, name)


def _check_tiff(data: bytes, name: str) -> None:
    if len(data) < 16:
        raise containers.cut_short(name, "the TIFF")
    file = io.BytesIO(data)
    head = file.read(8)
    if head[2:4] in (b"+\0", b"\0+"):  # BigTIFF
        head += file.read(8)
    tags = ImageFileDirectory_v2(head)
    if tags.next >= len(data):
        raise containers.cut_short(name, "the TIFF")
    file.seek(tags.next)
    tags.load(file)
    is_raw = 50706 in tags or data[8:10] == b"CR" or _numbers(tags.get(254))[0] & 1
    if is_raw:  # Pillow would decode the small preview that comes first
        raise _unsupported(name, "is a camera raw file", "develop it to JPEG or TIFF")
    depth = max(_numbers(tags.get(258)))
    if depth > 8:
        kind = "floating-point samples" if 3 in _numbers(tags.get(339)) else "samples"
        raise _unsupported(name, f"has {kind} of {depth} bits", "save it with 8 bits a sample")
    for offsets, sizes in ((273, 279), (324, 325)):
        pieces = zip(_numbers(tags.get(offsets)), _numbers(tags.get(sizes)), strict=False)
        if any(offset + size > len(data) for offset, size in pieces):
            raise containers.cut_short(name, "the TIFF")


def _numbers(value: Any) -> tuple[int, ...]:
    """A tag's whole numbers; (0,) where it has none."""
    values = value if isinstance(value, tuple) else (value,)
    return tuple(number for number in values if isinstance(number, int)) or (0,)


def _loaded(image: Image.Image) -> Metadata:
    if image.format == "TIFF":
        about = metadata.read(image)
        image.load()
    else:
        image.load()
        about = metadata.read(image)
    return about


def _array(image: Image.Image, want: dict[str, bool]) -> NDArray[np.uint8]:
    """H,W,C: grey or RGB, with alpha last where wanted."""
    mode = ("L" if want["L"] else "RGB") + ("A" if want["A"] else "")
    bands = np.array(image if image.mode == mode else image.convert(mode))
    return bands if bands.ndim == 3 else bands[..., None]


def _upright(pixels: NDArray[np.uint8], orientation: int, *, done: bool) -> NDArray[np.uint8]:
    """Stored pixels upright; Pillow has already turned a TIFF's."""
    if done:
        return pixels
    swap, up, left = TURNS[orientation]
    turned = pixels.swapaxes(0, 1) if swap else pixels
    return turned[:: -1 if up else 1, :: -1 if left else 1]


def _difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.uint8]:
    difference: NDArray[np.uint8] = np.maximum(a, b) - np.minimum(a, b)
    return difference


def _colour_chunks(data: bytes) -> tuple[tuple[bytes, bytes], ...]:
    return tuple(
        (kind, bytes(body))
        for kind, body in containers.png_chunks(data)
        if kind in COLOUR_CHUNKS and len(body) <= 32
    )


def _unsupported(name: str, what: str, way_out: str) -> InputError:
    return InputError(Code.UNSUPPORTED, f"{name}: {what}, expected one 8-bit grey or RGB picture; {way_out}")
