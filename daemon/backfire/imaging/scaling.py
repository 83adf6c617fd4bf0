"""Scales a decoded picture down to the size at which it is to be published.

The filter is Lanczos (three lobes), in linear light where the file says what its samples stand for (see
`tone_curves`), and weighted by alpha, so that colours under transparency do not bleed into what is seen.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backfire.imaging import colour, containers, jpegs, tone_curves
from backfire.imaging.colour import Samples
from backfire.imaging.decoding import Picture, stored, upright
from backfire.imaging.metadata import GEOGRAPHY, SUBJECTS, Metadata, is_map
from backfire.imaging.readers import pillow
from backfire.imaging.tags import CAMERA, SHORT, Directory
from backfire.imaging.tone_curves import STEPS, Curve
from backfire.types import Rgb

CLEAR = 1e-4
"""A pixel of less alpha has no colour of its own."""

Plane = NDArray[np.float32]


def scaled_size(height: int, width: int, long_px: int | None) -> tuple[int, int]:
    """Height and width with the longer side at most `long_px`; unchanged where it is None, or no less."""
    longer = max(height, width)
    if long_px is None or longer <= long_px:
        return height, width
    return max(round(height * long_px / longer), 1), max(round(width * long_px / longer), 1)


def scaled(picture: Picture, long_px: int | None, *, jpeg: str = "strong") -> Picture:
    """The picture with its longer side at most `long_px`; never scaled up.

    Colour space, depth, alpha, orientation and metadata stay; EXIF tags that name a place in the picture
    follow, GeoTIFF tags are left out.

    Args:
        picture: returned as it is where it is small enough.
        long_px: pixels; None for any size.
        jpeg: with `small`, a JPEG whose chroma is halved is coded again as coarsely as it came, so that
            `encode` can keep that chroma.
    """
    height, width = picture.rgb.shape[:2]
    size = scaled_size(height, width, long_px)
    if size == (height, width):
        return picture
    curves = tone_curves.curves_of(picture.metadata, picture.samples.shape[2])
    samples, alpha = _resized(picture, size, curves)
    samples = _in_steps(samples, picture.depth)
    found = replace(
        picture,
        rgb=colour.seen(samples, picture.look),
        samples=samples,
        alpha=None if alpha is None else _in_steps(alpha, picture.depth),
        metadata=_placed(picture.metadata, (height, width), size),
        jpeg=None,
    )
    if jpeg == "small" and picture.jpeg is not None:
        with pillow(None):
            return _coded_again(found, picture.jpeg)
    return found


def as_saved_again(rgb: Rgb, copy: Picture) -> Rgb:
    """What becomes of a picture that is saved as a copy was: at its size and, in a JPEG, as coarsely.

    Scaled by Lanczos' filter on the samples as they are, which is what most sites and programs do.

    Args:
        rgb: uint8 H,W,3 sRGB, upright.
    """
    height, width = copy.rgb.shape[:2]
    same = rgb.shape == copy.rgb.shape
    resized = (
        rgb if same else np.array(Image.fromarray(rgb).resize((width, height), Image.Resampling.LANCZOS))
    )
    return resized if copy.jpeg is None or copy.samples.shape[2] == 4 else jpegs.as_coarse(copy.jpeg, resized)


def is_saved_alike(copy: Picture, data: bytes) -> bool:
    """Whether `as_saved_again` loses what the file of a copy did: of a JPEG, or where nothing was lost.

    Of other formats with losses the file does not say how coarsely it was saved.

    Args:
        copy: what `data` decode to.
    """
    if copy.format == "WEBP":
        return containers.is_lossless_webp(data)
    ink = copy.samples.shape[2] == 4
    return copy.format in ("PNG", "TIFF", "BMP", "GIF") or (copy.format == "JPEG" and not ink)


def _resized(
    picture: Picture, size: tuple[int, int], curves: list[Curve] | None
) -> tuple[Samples, Samples | None]:
    """Samples and alpha at another size, a channel at a time, as a large picture in float is larger still."""
    samples, alpha = picture.samples, picture.alpha
    opacity = None if alpha is None else _light(alpha, None)
    small: Plane | None = None if opacity is None else _lanczos(opacity, size).clip(0, 1)
    result = np.empty((*size, samples.shape[2]), samples.dtype)
    for channel in range(samples.shape[2]):
        curve = None if curves is None else curves[channel]
        light = _light(samples[..., channel], curve)
        if opacity is None or small is None:
            plane = _lanczos(light, size)
        else:
            # Where nothing is seen, what lies there is scaled by itself, as editors that ignore alpha see it.
            plane = _lanczos(light, size)
            seen = small > CLEAR
            plane[seen] = _lanczos(light * opacity, size)[seen] / small[seen]
        result[..., channel] = _stored_as(plane, curve, samples.dtype)
    return result, None if small is None else _stored_as(small, None, samples.dtype)


def _light(samples: Samples, curve: Curve | None) -> Plane:
    """H,W of samples -> H,W in [0,1]: light, or what is stored where the curve is not known."""
    if curve is None:
        return samples.astype(np.float32) / np.float32(np.iinfo(samples.dtype).max)
    plane: Plane = curve[:: STEPS // 255 if samples.dtype == np.uint8 else 1][samples]
    return plane


def _stored_as(plane: Plane, curve: Curve | None, kind: np.dtype[np.uint8 | np.uint16]) -> Samples:
    values: NDArray[np.floating[Any]] = np.clip(plane, 0, 1)
    if curve is not None:
        values = np.interp(values, curve, np.linspace(0, 1, STEPS))
    samples: Samples = np.rint(values * np.iinfo(kind).max).astype(kind)
    return samples


def _lanczos(plane: Plane, size: tuple[int, int]) -> Plane:
    resized = Image.fromarray(plane).resize(size[::-1], Image.Resampling.LANCZOS)
    small: Plane = np.array(resized, dtype=np.float32)
    return small


def _in_steps(samples: Samples, depth: int) -> Samples:
    """Samples in whole steps of the file's depth: otherwise writing alone would change them."""
    return colour.widened(colour.narrowed(samples, depth), depth)


def _placed(about: Metadata, before: tuple[int, int], after: tuple[int, int]) -> Metadata:
    """The metadata with places in pixels where they are now. They count in the stored orientation."""
    exif, said = about.exif.without(GEOGRAPHY), about.left_out
    parts = tuple(part for part in about.parts if not is_map(*part))
    if exif != about.exif or parts != about.parts:
        what = "the GeoTIFF tags" if exif != about.exif else "the boxes of a map"
        said = (*said, f"{what}: they hold for the size before the picture was scaled")
    camera = exif.below.get(CAMERA)
    if camera is not None:
        exif = replace(exif, below={**exif.below, CAMERA: _subjects(camera, after[0] / before[0])})
    return replace(about, exif=exif, parts=parts, left_out=said)


def _subjects(camera: Directory, scale: float) -> Directory:
    moved = {}
    for tag in SUBJECTS:
        if values := camera.numbers(tag):
            moved[tag] = (SHORT, [min(round(value * scale), 65_535) for value in values])
    return camera.having(moved)


def _coded_again(picture: Picture, data: bytes) -> Picture:
    """The picture as a JPEG coded as coarsely as `data` holds it; as it is where chroma is not halved."""
    again = jpegs.coded_like(data, stored(colour.eight(picture.samples), picture.orientation))
    if again is None:
        return picture
    written, bands = again
    samples = np.ascontiguousarray(upright(bands, picture.orientation))
    return replace(picture, samples=samples, rgb=colour.seen(samples, picture.look), jpeg=written)
