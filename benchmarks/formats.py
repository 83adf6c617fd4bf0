"""The cost of decoding, detecting and encoding per megapixel and format, compared with Pillow alone.

Each format is measured in a process of its own, so that its peak memory is its own too. Pillow decodes the
same file and writes the same pixels with the same settings, but without what this package does besides:
metadata, the check for completeness, the bound on decoded pixels, the profile. Detection is by the default
detectors and has no counterpart in Pillow. On a busy machine the ratios are meaningful, but not the times.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile

from backfire.config import Regions
from backfire.detectors import Source, run
from backfire.imaging import Picture, decode, encode, heif

LEVELS, CROP = 6, 512
SAVED: dict[str, dict[str, Any]] = {
    "jpeg": {"format": "JPEG", "quality": 100, "subsampling": 0, "keep_rgb": True, "optimize": True},
    "jpeg small": {"format": "JPEG", "quality": 100, "subsampling": 2, "optimize": True},
    "jpeg with a profile": {
        "format": "JPEG",
        "quality": 100,
        "subsampling": 0,
        "keep_rgb": True,
        "optimize": True,
    },
    "jpeg cmyk": {"format": "JPEG", "quality": 100, "optimize": True},
    "png": {"format": "PNG"},
    "png 16": {},
    "tiff": {"format": "TIFF", "compression": "tiff_adobe_deflate"},
    "tiff 16": {},
    "webp": {"format": "WEBP", "lossless": True, "exact": True},
    "heic": {"format": "HEIF", "quality": -1, "chroma": 444, "matrix_coefficients": 0},
    "heic 10": {},
    "avif": {"format": "AVIF", "quality": 100, "subsampling": "4:4:4"},
    "avif 10": {},
    "jpeg2000": {"format": "JPEG2000"},
    "bmp": {"format": "BMP"},
}
"""What is measured, and Pillow's options to write the same; none for more than 8 bits, which it cannot."""


QUICK: dict[str, dict[str, Any]] = {
    "webp": {"method": 0},
    "heic": {"enc_params": {"preset": "ultrafast"}},
    "avif": {"speed": 10},
}
"""Options that speed up writing the files to be read; these are still lossless."""


def main(arguments: list[str]) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks formats", description=__doc__)
    parser.add_argument("--megapixels", type=float, default=4.0, help="size of the picture (4)")
    heif.heif_ready()
    parser.add_argument("--only", choices=SAVED, action="append", help="measure this only; may be repeated")
    parser.add_argument(
        "--alone", action="store_true", help="decode and encode only: no Pillow, no detectors"
    )
    parser.add_argument("--child", choices=SAVED, help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.child:
        print(json.dumps(_measured(given.child, Path(given.file).read_bytes(), given.alone)))
        return 0
    print(f"{given.megapixels:g} megapixels, {CROP}x{CROP} perturbed; ms per megapixel, ours / Pillow's\n")
    print("| format | decode | detect | encode | peak MB | bytes a pixel |\n|---|---|---|---|---|---|")
    height = round((given.megapixels * 1e6 / 1.5) ** 0.5)
    pixels = _scene(height, round(given.megapixels * 1e6 / height))
    for name in given.only or SAVED:
        with tempfile.NamedTemporaryFile() as file:
            file.write(_source(name, pixels))
            file.flush()
            command = [sys.executable, "-m", "benchmarks", "formats", "--child", name, "--file", file.name]
            command += ["--alone"] * given.alone
            found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        steps = ("decode", "detect", "encode")
        times = " | ".join(_against(found.get(step), found.get(f"pillow_{step}")) for step in steps)
        print(f"| {name} | {times} | {found['peak']:.0f} | {found['bytes_per_pixel']:.1f} |", flush=True)
    return 0


def _against(ours: float | None, pillow: float | None) -> str:
    if ours is None:
        return ""
    if pillow is None:
        return f"{ours:.0f}"
    return f"{ours:.0f} / {pillow:.0f} ({ours / pillow:.1f}x)"


def _measured(name: str, data: bytes, alone: bool) -> dict[str, float]:
    start = _peak() - len(data) / 1e6
    picture, decode_s = _timed(lambda: decode(data, name=name, max_pixels=1 << 40))
    height, width = picture.rgb.shape[:2]
    pixels = height * width / 1e6
    rgb = picture.rgb.copy()
    middle = (slice(height // 2, height // 2 + CROP), slice(width // 2, width // 2 + CROP))
    noise = np.random.default_rng(0).choice([-LEVELS, LEVELS], rgb[middle].shape)
    rgb[middle] = np.clip(rgb[middle] + noise, 0, 255)
    small = "small" if name == "jpeg small" else "strong"
    _, encode_s = _timed(lambda: encode(picture, rgb, levels=LEVELS, jpeg=small))
    peak = _peak()  # before the detectors' libraries are loaded
    found = {
        "decode": decode_s * 1000 / pixels,
        "encode": encode_s * 1000 / pixels,
        "peak": peak,
        "bytes_per_pixel": (peak - start) / pixels,
    }
    if alone:
        return found
    detectors = Regions(none_found="pass")
    run.find(
        decode(_source("png", _scene(64, 64)), name=name, max_pixels=1 << 20), Source(name, ()), detectors
    )
    _, detect_s = _timed(lambda: run.find(picture, Source(name, ()), detectors))
    found["detect"] = detect_s * 1000 / pixels
    if SAVED[name]:
        Image.MAX_IMAGE_PIXELS = None
        ImageFile.MAXBLOCK = 4 * height * width
        found["pillow_decode"] = _timed(lambda: _opened(data))[1] * 1000 / pixels
        image = _image(picture, rgb)
        found["pillow_encode"] = _timed(lambda: image.save(io.BytesIO(), **SAVED[name]))[1] * 1000 / pixels
    return found


def _opened(data: bytes) -> None:
    with Image.open(io.BytesIO(data)) as image:
        image.load()


def _timed(what: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    found = what()
    return found, time.perf_counter() - began


def _peak() -> float:
    """The peak memory of this process in MB; that of `getrusage` would start from its parent's memory."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1.024e-3


def _image(picture: Picture, rgb: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(rgb).convert("CMYK") if picture.mode == "CMYK" else Image.fromarray(rgb)


def _scene(height: int, width: int) -> NDArray[np.uint8]:
    """Gradients with grain, which compress about as a photograph does."""
    random = np.random.default_rng(0)
    tile = random.normal(0, 4, (256, 256, 3))
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, 256):
        rows = min(256, height - top)
        y, x = np.mgrid[top : top + rows, :width]
        colours = np.stack([x * 200 / width + 20, y * 200 / height + 20, 128 + 100 * np.sin((x + y) / 97)], 2)
        grain = np.tile(tile[:rows], (1, -(-width // 256), 1))[:, :width]
        pixels[top : top + rows] = np.clip(colours + grain, 0, 255)
    return pixels


def _source(name: str, pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    if name.endswith("10"):
        buffer.write(_deep(name, pixels))
        return buffer.getvalue()
    if name.endswith("16"):
        deep = pixels.astype(np.uint16) * 257
        if name == "png 16":
            return bytes(imagecodecs.png_encode(deep, level=1))
        tifffile.imwrite(buffer, deep, photometric="rgb", compression="zlib", predictor=True)
        return buffer.getvalue()
    image = Image.fromarray(pixels)
    options = dict(SAVED[name])
    if name == "jpeg cmyk":
        image = image.convert("CMYK")
    if name.startswith("jpeg") and name != "jpeg2000":
        options = {"format": "JPEG", "quality": 92}
    if name == "jpeg with a profile":
        options["icc_profile"] = _other_profile()
    options |= QUICK.get(name, {})
    if name == "heic":
        options["enc_params"] = {**options["enc_params"], "x265:slices": str(heif.slices_of(pixels.size))}
    image.save(buffer, **options)
    return buffer.getvalue()


def _deep(name: str, pixels: NDArray[np.uint8]) -> bytes:
    values = pixels.astype(np.uint16)
    if name == "avif 10":
        return bytes(imagecodecs.avif_encode(values * 4, level=100, bitspersample=10, speed=10))
    return heif.written(values * 256, 10, cicp=(1, 13), icc=None, exif=None, xmp=None)


def _other_profile() -> bytes:
    """The sRGB profile with another red primary; any matrix profile other than sRGB costs the same."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    at = profile.index(b"rXYZ") + 4
    offset = int.from_bytes(profile[at : at + 4], "big") + 8
    profile[offset : offset + 4] = round(0.55 * 65536).to_bytes(4, "big")
    return bytes(profile)
