"""Decodes files into upright pictures and masks, or raises an error that says what to do about it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from backfire.errors import Code, InputError
from backfire.imaging import colour, readers, refusals
from backfire.imaging.colour import Look, Samples
from backfire.imaging.metadata import Metadata
from backfire.types import Rgb

Scalar = TypeVar("Scalar", bound=np.generic)

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
"""EXIF orientation → how to turn stored pixels upright: swap the axes, then flip rows, then columns."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture, and all that is needed to write it as a file of the same kind.

    Attributes:
        rgb: H,W,3 uint8 sRGB, upright, for detectors and editors; grey pictures have three equal channels.
        samples: H,W,C uint8 or uint16, upright, as stored: grey, RGB or CMYK (255 = full ink) in the colour
            space of the file's own profile; more than 8 bits are scaled to the full range of 16.
        format: `JPEG`, `PNG`, `TIFF`, `WEBP`, `HEIF`, `AVIF`, `JPEG2000`, `BMP` or `GIF`.
        mode: the stored mode by Pillow's name: L, LA, RGB, RGBA, CMYK, P, PA.
        alpha: H,W of the samples' type, upright, full scale = opaque; None without transparency.
        depth: the bits per sample as stored, 8 to 16.
        look: the transform from `samples` to `rgb`; None if the samples are sRGB already.
        metadata: EXIF, profile, XMP, IPTC, text and resolution, without anything that shows the unprotected
            picture.
        compression: of a TIFF by Pillow's name; of a JPEG 2000 `jp2` or `j2k`; of a JPEG `progressive` or
            None.
        jpeg: the whole file if it is a JPEG, since a small JPEG is written from the planes of the original.
        big: whether the file is a BigTIFF.
        frames: how many pages or frames the file has; this is the first.
    """

    rgb: Rgb
    samples: Samples
    format: str
    mode: str
    alpha: Samples | None
    depth: int = 8
    look: Look | None = None
    metadata: Metadata = field(default_factory=Metadata)
    compression: str | None = None
    jpeg: bytes | None = None
    big: bool = False
    frames: int = 1

    @property
    def colourless(self) -> bool:
        """Whether the picture is grey, or stored in colour but black and white."""
        bands = (self.rgb[top : top + 256] for top in range(0, len(self.rgb), 256))  # it may be large
        return self.samples.shape[2] == 1 or all(bool((band == band[..., :1]).all()) for band in bands)

    @property
    def orientation(self) -> int:
        """The EXIF orientation of the stored pixels, 1..8."""
        return self.metadata.orientation


def decode(data: bytes, *, name: str, max_pixels: int, frames: str = "refuse") -> Picture:
    """Decode a picture from the bytes of a file.

    Of a JPEG that is followed by further pictures (MPO: depth maps, gain maps, previews) the first is taken.
    Palettes and colour keys become RGB, with alpha if they have transparency.

    Args:
        data: the whole file.
        name: the file's name, for messages.
        max_pixels: the largest size allowed.
        frames: what to do with a file of several pages or frames: `refuse`, or take the `first`.

    Raises:
        InputError: EMPTY, TRUNCATED, TOO_LARGE (more than `max_pixels`), UNSUPPORTED (another
            format, a depth that cannot be written again, float, bilevel, Lab, several pages or
            frames), or UNREADABLE.
    """
    kind, raw = readers.read(data, name=name, max_pixels=max_pixels, frames=frames)
    if raw.mode == "1":
        what = "has one bit per pixel, which leaves no room for a small change"
        raise refusals.unsupported(name, what, "save it as 8-bit grey")
    bands = raw.bands if raw.turned else np.ascontiguousarray(upright(raw.bands, raw.about.orientation))
    samples = np.ascontiguousarray(bands[..., :-1]) if raw.alpha else bands
    look = colour.look_of(raw.about.icc, samples.shape[2])
    return Picture(
        rgb=colour.seen(samples, look),
        samples=samples,
        format=kind,
        mode=raw.mode,
        alpha=np.ascontiguousarray(bands[..., -1]) if raw.alpha else None,
        depth=raw.depth,
        look=look,
        metadata=raw.about,
        compression=raw.compression,
        jpeg=data if kind == "JPEG" else None,
        big=raw.big,
        frames=raw.frames,
    )


def decode_painting(data: bytes, *, name: str, max_pixels: int) -> NDArray[np.uint8]:
    """A painted mask from the bytes of a picture file: H,W,4 uint8 RGBA, upright by its own EXIF.

    Which of its colours mark the region is up to the caller.

    Raises:
        InputError: MASK_UNREADABLE, for any reason.
    """
    try:
        # The colour profile is ignored, because a mask's values are not meant as colours.
        _, raw = readers.read(data, name=name, max_pixels=max_pixels, frames="refuse")
        if raw.mode == "CMYK":
            raise refusals.unsupported(name, "is CMYK", "save it as 8-bit grey", expected="grey or RGB")
        bands = colour.eight(raw.bands)
        colours = bands[..., :-1] if raw.alpha else bands
        alpha = bands[..., -1:] if raw.alpha else np.full((*bands.shape[:2], 1), 255, np.uint8)
        if colours.shape[2] == 1:
            colours = colours.repeat(3, axis=2)
        rgba = np.concatenate([colours, alpha], axis=2)
        return np.ascontiguousarray(rgba if raw.turned else upright(rgba, raw.about.orientation))
    except InputError as error:
        raise InputError(Code.MASK_UNREADABLE, f"mask {error.message}") from error


def max_change(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> int:
    """The largest difference of two equally shaped uint8 pictures, in levels."""
    return int(_difference(a, b).max(initial=0))


def largest_change(picture: Picture, other: Picture) -> int:
    """The largest difference between two pictures' samples or alpha, in levels of 255, rounded up.

    Samples of different depths are compared at 8 bits, and pictures of different colour spaces by their sRGB.
    A picture without alpha counts as opaque.
    """
    pair = (picture.samples, other.samples) if _alike(picture, other) else (picture.rgb, other.rgb)
    return max(_levels_between(*pair), _levels_between(picture.alpha, other.alpha))


def _alike(a: Picture, b: Picture) -> bool:
    """Whether equal samples of two pictures are equal colours."""
    profiled = a.look is not None and b.look is not None and a.metadata.icc == b.metadata.icc
    return a.samples.shape == b.samples.shape and (profiled or a.look is b.look)


def _levels_between(a: Samples | None, b: Samples | None) -> int:
    """The largest difference of two planes; a missing plane counts as opaque."""
    if a is None or b is None:
        there = a if b is None else b
        return 0 if there is None else -(-int(np.iinfo(there.dtype).max - there.min()) // colour.unit(there))
    if a.dtype != b.dtype:
        a, b = colour.eight(a), colour.eight(b)
    largest = max(
        int((np.maximum(a[rows], b[rows]) - np.minimum(a[rows], b[rows])).max(initial=0))
        for rows in (slice(top, top + colour.ROWS) for top in range(0, len(a), colour.ROWS))
    )
    return -(-largest // colour.unit(a))


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """The peak signal-to-noise ratio of two equally shaped uint8 pictures in dB; inf if they are equal."""
    difference = _difference(a, b)
    squares = int(np.multiply(difference, difference, dtype=np.uint16).sum(dtype=np.uint64))
    return 10 * math.log10(255**2 * difference.size / squares) if squares else math.inf


def flattened(picture: Picture) -> Rgb | None:
    """The picture laid on white, as programs show it that know no transparency; None where it is opaque."""
    alpha = picture.alpha
    if alpha is None or alpha.min() == np.iinfo(alpha.dtype).max:
        return None
    flat: Rgb = picture.rgb.copy()
    for top in range(0, len(flat), colour.ROWS):
        rows = slice(top, top + colour.ROWS)
        share = colour.eight(alpha[rows])[..., None].astype(np.uint32)
        flat[rows] = (flat[rows] * share + 255 * (255 - share) + 127) // 255
    return flat


def stored(pixels: NDArray[Scalar], orientation: int) -> NDArray[Scalar]:
    """Upright pixels in the stored orientation of a file; the inverse of `upright`."""
    swap, up, left = TURNS[orientation]
    flipped = pixels[:: -1 if up else 1, :: -1 if left else 1]
    return np.ascontiguousarray(flipped.swapaxes(0, 1) if swap else flipped)


def upright(pixels: NDArray[Scalar], orientation: int) -> NDArray[Scalar]:
    """Stored pixels turned upright; a view."""
    swap, up, left = TURNS[orientation]
    turned = pixels.swapaxes(0, 1) if swap else pixels
    return turned[:: -1 if up else 1, :: -1 if left else 1]


def _difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.uint8]:
    difference: NDArray[np.uint8] = np.maximum(a, b) - np.minimum(a, b)
    return difference
