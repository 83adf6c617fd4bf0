"""Small photographs and masks, and their encoding as files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import skimage
from PIL import Image, PngImagePlugin

SAMPLES = Path(skimage.__file__).parent / "data"
"""The photographs that come with scikit-image."""


def photo(size: tuple[int, int] = (160, 128), *, seed: int = 0) -> Image.Image:
    """A crop of a real photograph, a different one for each seed; size is (width, height)."""
    with Image.open(SAMPLES / "coffee.png") as picture:
        rng = np.random.default_rng(seed)
        left = int(rng.integers(0, picture.width - size[0]))
        top = int(rng.integers(0, picture.height - size[1]))
        return picture.convert("RGB").crop((left, top, left + size[0], top + size[1]))


def mask_picture(
    size: tuple[int, int] = (160, 128), box: tuple[int, int, int, int] = (60, 44, 100, 84)
) -> Image.Image:
    mask = Image.new("L", size, 0)
    mask.paste(255, box)
    return mask


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(picture: Image.Image, kind: str) -> bytes:
    """A file whose stored pixels are to be turned a quarter to the right: EXIF's orientation 6.

    Args:
        kind: of Pillow's, or `profile`: a PNG with EXIF as ImageMagick writes it, which browsers ignore.
    """
    exif = Image.Exif()
    exif[0x0112] = 6
    if kind != "profile":
        return encoded(picture, kind, exif=exif)
    block, text = exif.tobytes(), PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", f"\nexif\n{len(block):8}\n{block.hex()}\n", zip=True)
    return encoded(picture, "PNG", pnginfo=text)


def differences(a: bytes, b: bytes) -> np.ndarray:
    """The absolute difference of each sample of two encoded pictures, in levels of 255."""
    first, second = (np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int) for data in (a, b))
    apart: np.ndarray = np.abs(first - second)
    return apart
