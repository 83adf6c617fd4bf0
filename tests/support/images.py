"""Pictures of smooth colours in files of every format, with the metadata and parts that tests put there."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from backfire.imaging import Picture, decode
from backfire.types import Rgb

LIMIT = 1_000_000
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
COPYRIGHT = "© Zoë"


def scene(height: int = 45, width: int = 67, seed: int = 0) -> Rgb:
    """Smooth colours with some texture; sides that are no multiple of a JPEG block."""
    y, x = np.mgrid[:height, :width]
    planes = np.stack([x * 200 / width + 20, y * 200 / height + 20, (x + y) % 64 * 3], axis=2)
    noise = np.random.default_rng(seed).normal(0, 3, planes.shape)
    pixels: Rgb = np.clip(planes + noise, 0, 255).astype(np.uint8)
    return pixels


def file(pixels: NDArray[np.uint8] | Image.Image, kind: str, **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    if kind == "WEBP":
        options = {"lossless": True, "exact": True} | options
    if isinstance(options.get("exif"), Image.Exif):
        exif = Image.Exif()
        exif.load(options["exif"].tobytes())
        if 0x8298 in exif:
            exif[0x8298] = exif[0x8298].encode("latin-1")  # Pillow writes text as ASCII
        options["exif"] = exif
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif_with(orientation: int = 1, *, gps: bool = False) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x8298] = COPYRIGHT.encode()
    exif[0x8769] = {0x9003: "2024:05:06 07:08:09", 0x927C: b"secret of the maker"}
    if gps:
        exif[0x8825] = {1: "N", 2: (48.0, 12.0, 30.0)}
    return exif


def taken(data: bytes, name: str = "a.jpg") -> Picture:
    return decode(data, name=name, max_pixels=LIMIT)


def frames() -> list[Image.Image]:
    return [Image.fromarray(scene(seed=seed)) for seed in range(3)]


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body) + 8) + kind + body


def chunk(kind: bytes, body: bytes, *, flaw: int = 0) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ flaw)
