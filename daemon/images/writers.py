"""Samples into the bytes of each format but JPEG: all of them lossless, or nearly so (AVIF)."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from daemon.images import blocks, colour, tiff
from daemon.images.colour import Samples
from daemon.images.intake import Picture
from daemon.images.metadata import Metadata

PIXELWISE = 6
"""AVIF: rounds that pull back samples which came out beyond the bound."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Sheet:
    """What is to be written, turned as the file stores it.

    Attributes:
        wanted, original: H,W,C samples without alpha, after and before the change.
        alpha: H,W or None.
        is_srgb: whether the samples left the space of the picture's profile.
    """

    wanted: Samples
    original: Samples
    alpha: Samples | None
    is_srgb: bool = False

    @property
    def bands(self) -> Samples:
        """H,W,C with alpha last."""
        if self.alpha is None:
            return self.wanted
        return np.concatenate([self.wanted, self.alpha[..., None]], axis=2)


def written(kind: str, sheet: Sheet, picture: Picture, about: Metadata, levels: int) -> tuple[bytes, str]:
    """The file's bytes, and how they were written, for the receipt.

    Args:
        levels: the bound that a format which is not quite lossless shall keep, in levels of 255.
    """
    same = kind == picture.format
    match kind:
        case "PNG":
            return blocks.png(_png(sheet.bands), about, same=same), f"PNG lossless{_depth(sheet)}"
        case "TIFF":
            compression = picture.compression if picture.compression in tiff.COMPRESSORS else None
            compression = compression or "tiff_adobe_deflate"
            about = about.with_resolution()
            alpha, big = sheet.alpha is not None, same and picture.big
            data = tiff.written(sheet.bands, about, compression=compression, alpha=alpha, big=big)
            return data, f"TIFF {compression} lossless{_depth(sheet)}"
        case "JPEG2000":
            stream = "j2k" if same and picture.compression == "j2k" else "jp2"
            bands = np.ascontiguousarray(sheet.bands.squeeze(2) if sheet.bands.shape[2] == 1 else sheet.bands)
            data = bytes(imagecodecs.jpeg2k_encode(bands, level=0, reversible=True, codecformat=stream))
            data = blocks.jp2(data, about, same=same) if stream == "jp2" else data
            return data, f"JPEG 2000 lossless{_depth(sheet)}"
        case "BMP":
            return saved(colour.eight(sheet.bands), kind, {"dpi": about.dpi}), "BMP"
        case "AVIF":
            return _avif(sheet, picture, about, levels)
    options: dict[str, Any] = {"icc_profile": about.icc, "exif": about.exif_block(), "xmp": about.xmp}
    if kind == "HEIF":
        # The pixels are stored upright, and the encoder would take a turn from either block. The
        # identity matrix: YCbCr at 8 bits would round the change.
        about = about.upright()
        options |= {"exif": about.exif_block(), "xmp": about.xmp}
        options |= {"quality": -1, "chroma": 444, "matrix_coefficients": 0}
        return saved(colour.eight(sheet.bands), kind, options), "HEIC lossless"
    # exact: the colour below full transparency is part of the picture too.
    options |= {"lossless": True, "exact": True}
    return saved(colour.eight(sheet.bands), kind, options), "WebP lossless"


def _depth(sheet: Sheet) -> str:
    return " 16-bit" if sheet.wanted.dtype == np.uint16 else ""


def _png(bands: Samples) -> bytes:
    if bands.dtype == np.uint8:
        return saved(colour.eight(bands), "PNG", {})
    plain = np.ascontiguousarray(bands[..., 0] if bands.shape[2] == 1 else bands)
    return bytes(imagecodecs.png_encode(plain, level=6))


def _image(bands: Pixels, *, ink: bool = False) -> Image.Image:
    if ink:
        return Image.frombytes("CMYK", bands.shape[1::-1], bands.tobytes())
    return Image.fromarray(bands[..., 0] if bands.shape[2] == 1 else bands)


def saved(bands: Pixels, kind: str, options: dict[str, Any], *, ink: bool = False) -> bytes:
    """Bands as Pillow writes them; CMYK where `ink` says so. Options of None are left out."""
    file = io.BytesIO()
    given = {key: value for key, value in options.items() if value is not None}
    _image(np.ascontiguousarray(bands), ink=ink).save(file, kind, **given)
    return file.getvalue()


def _avif(sheet: Sheet, picture: Picture, about: Metadata, levels: int) -> tuple[bytes, str]:
    """Nearly lossless: only the rounding to YCbCr and back is left, and pulled back where it matters."""
    options: dict[str, Any] = {
        "icc_profile": about.icc,
        "exif": about.exif_block(),
        "xmp": about.xmp,
        "quality": 100,
    }
    bands, original = colour.eight(sheet.bands).copy(), colour.eight(sheet.original)
    channels = original.shape[2]
    options |= {"subsampling": "4:4:4" if channels == 3 else "4:0:0"}
    # Coded without loss, each pixel is rounded on its own: what comes out of the changed part comes out
    # of the whole picture too.
    changed = np.flatnonzero((sheet.wanted != sheet.original).any(axis=(1, 2)))
    rows = slice(changed[0], changed[-1] + 1) if changed.size else slice(0)
    middle = original[rows].astype(np.int16)
    low, high = np.clip(middle - levels, 0, 255), np.clip(middle + levels, 0, 255)
    for _ in range(PIXELWISE if changed.size else 0):
        data = saved(bands[rows], "AVIF", options | {"exif": None})
        with Image.open(io.BytesIO(data), formats=("AVIF",)) as image:
            came_out = np.atleast_3d(np.array(image))[..., :channels]
        beyond = came_out - np.clip(came_out, low, high)
        if not beyond.any():
            break
        bands[rows, :, :channels] = np.clip(bands[rows, :, :channels] - beyond, 0, 255)
    data = saved(bands, "AVIF", options)
    return data, "AVIF quality 100"
