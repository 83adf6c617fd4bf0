"""Lossless encoders for all formats but JPEG."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from backfire.imaging import blocks, colour, heif, isobmff, tiff
from backfire.imaging.colour import Samples
from backfire.imaging.decoding import Picture
from backfire.imaging.metadata import Metadata

SRGB = (1, 13)
"""Colour primaries and transfer of sRGB (H.273)."""

AVIF_SPEED = 8
"""The encoder's speed, from 0 to 10; faster makes larger files."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Canvas:
    """The samples to be written, in the orientation of the file.

    Attributes:
        wanted, original: H,W,C samples without alpha, with and without the perturbation.
        alpha: H,W or None.
        depth: the bits per sample to write; more than 8 are scaled to the full range of 16.
        is_srgb: whether the samples were converted from the colour space of the picture's profile to sRGB.
    """

    wanted: Samples
    original: Samples
    alpha: Samples | None
    depth: int = 8
    is_srgb: bool = False

    @property
    def bands(self) -> Samples:
        """The samples H,W,C with alpha last."""
        if self.alpha is None:
            return self.wanted
        return np.concatenate([self.wanted, self.alpha[..., None]], axis=2)

    @property
    def values(self) -> Samples:
        """The bands as the libraries take them: H,W or H,W,C with values of `depth` bits."""
        values = np.ascontiguousarray(colour.narrowed(self.bands, self.depth))
        return values[..., 0] if values.shape[2] == 1 else values


def written(kind: str, canvas: Canvas, picture: Picture, about: Metadata) -> tuple[bytes, str]:
    """The bytes of the file, and how it was encoded, for the receipt."""
    same = kind == picture.format
    match kind:
        case "PNG":
            return blocks.png(_png(canvas), about, same=same), f"PNG lossless{_depth(canvas)}"
        case "TIFF":
            compression = picture.compression if picture.compression in tiff.COMPRESSORS else None
            compression = compression or "tiff_adobe_deflate"
            about = about.with_resolution()
            alpha, big = canvas.alpha is not None, same and picture.big
            data = tiff.written(canvas.bands, about, compression=compression, alpha=alpha, big=big)
            return data, f"TIFF {compression} lossless{_depth(canvas)}"
        case "JPEG2000":
            stream = "j2k" if same and picture.compression == "j2k" else "jp2"
            data = bytes(
                imagecodecs.jpeg2k_encode(
                    canvas.values, level=0, reversible=True, codecformat=stream, bitspersample=canvas.depth
                )
            )
            if stream == "jp2":
                data = blocks.jp2(data, about, same=same, alpha=canvas.alpha is not None)
            return data, f"JPEG 2000 lossless{_depth(canvas)}"
        case "BMP":
            return saved(colour.eight(canvas.bands), kind, {"dpi": about.dpi}), "BMP"
        case "AVIF":
            return _avif(canvas, about), f"AVIF lossless{_depth(canvas)}"
        case "HEIF":
            return _heif(canvas, about), f"HEIC lossless{_depth(canvas)}"
    # exact: also keeps the colour of fully transparent pixels.
    told = {"icc_profile": about.icc, "exif": about.exif_block(), "xmp": about.xmp}
    data = saved(colour.eight(canvas.bands), kind, {"lossless": True, "exact": True, **told})
    return data, "WebP lossless"


def _depth(canvas: Canvas) -> str:
    return f" {canvas.depth}-bit" if canvas.depth > 8 else ""


def _png(canvas: Canvas) -> bytes:
    if canvas.depth == 8:
        return saved(colour.eight(canvas.bands), "PNG", {})
    return bytes(imagecodecs.png_encode(canvas.values, level=6))


def _heif(canvas: Canvas, about: Metadata) -> bytes:
    """A HEIC, stored upright because the encoder would apply an orientation in the tags or the packet."""
    cicp, exif = about.cicp or SRGB, about.exif_block()
    return heif.written(canvas.bands, canvas.depth, cicp=cicp, icc=about.icc, exif=exif, xmp=about.xmp)


def _avif(canvas: Canvas, about: Metadata) -> bytes:
    """An AVIF by imagecodecs, because Pillow rounds to YCbCr and back and knows only 8 bits."""
    primaries, transfer = about.cicp or SRGB
    exif = about.upright().exif_block()
    return isobmff.described(
        bytes(
            imagecodecs.avif_encode(
                canvas.values,
                level=100,
                bitspersample=canvas.depth,
                primaries=primaries,
                transfer=transfer,
                speed=AVIF_SPEED,
            )
        ),
        icc=about.icc,
        orientation=about.orientation,
        exif=None if exif is None else exif[6:],
        xmp=about.xmp,
    )


def _image(bands: Pixels, *, ink: bool = False) -> Image.Image:
    if ink:
        return Image.frombytes("CMYK", bands.shape[1::-1], bands.tobytes())
    return Image.fromarray(bands[..., 0] if bands.shape[2] == 1 else bands)


def saved(bands: Pixels, kind: str, options: Mapping[str, Any], *, ink: bool = False) -> bytes:
    """The file that Pillow writes of the bands, as CMYK if `ink` is true, without options that are None."""
    return stored(_image(np.ascontiguousarray(bands), ink=ink), kind, options)


def stored(image: Image.Image, kind: str, options: Mapping[str, Any]) -> bytes:
    """The file that Pillow writes of a picture."""
    file = io.BytesIO()
    given = {key: value for key, value in options.items() if value is not None}
    block = ImageFile.MAXBLOCK
    if given.get("optimize"):
        # Such a JPEG is written in one piece and may not fit into Pillow's usual buffer.
        ImageFile.MAXBLOCK = 4 * image.width * image.height + len(given.get("extra", b"")) + block
    try:
        image.save(file, kind, **given)
    finally:
        ImageFile.MAXBLOCK = block
    return file.getvalue()
