"""Converts stored samples to sRGB, and carries a perturbation found in sRGB back into the stored samples.

Editors and detectors see sRGB. Only a profile's *forward* transform (stored samples to sRGB) is used: many
profiles of cameras and scanners have no inverse, and an inverse by table would separate CMYK into other
inks and alter pixels that were not perturbed. Instead the perturbation is divided by the slope of the
transform at each pixel, so that an unperturbed pixel keeps its exact values even outside sRGB's gamut.
Black ink is never altered.

The transform (littlecms, through Pillow) works on 8-bit values. Of 16-bit samples it sees the upper 8
bits, and the perturbation is added to all 16.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from backfire.types import Rgb

Samples = NDArray[np.uint8 | np.uint16]
Look = Callable[[NDArray[np.uint8]], Rgb]
"""H,W,C uint8 stored samples -> H,W,3 uint8 sRGB."""

MODES = {1: ("L", "GRAY"), 3: ("RGB", "RGB "), 4: ("CMYK", "CMYK")}
ROWS = 256
"""Rows processed at a time, since a float copy of a hundred megapixels would take too much memory."""

PIECE = 1 << 20
"""Values rescaled at a time, to limit memory likewise."""

STEP = 8
"""Levels to either side between which a slope is measured; over one level, rounding would hide the slope."""

DAMPING = 0.05
"""Limits the step where a sample hardly affects the colour: out of gamut, or under black ink."""

SHRINK, ROUNDS = 0.7, 6


def eight(samples: Samples) -> NDArray[np.uint8]:
    """Samples as 8-bit levels; a view of the samples if they have 8 bits already."""
    if samples.dtype == np.uint8:
        return samples.view(np.uint8)
    # Rounds to the nearest level; in 16 bits the addition would overflow.
    return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)


def widened(values: Samples, depth: int) -> Samples:
    """Values of `depth` bits rescaled to the full scale of their type: 8 bits, or 16 for all deeper ones."""
    return values if depth in (8, 16) else _scaled(values, (1 << depth) - 1, 65535)


def narrowed(samples: Samples, depth: int) -> Samples:
    """The inverse of `widened`: samples rescaled to `depth` bits, rounded to the nearest value."""
    if depth == 8:
        return eight(samples)
    return samples if depth == 16 else _scaled(samples, 65535, (1 << depth) - 1)


def _scaled(values: Samples, old: int, new: int) -> Samples:
    """Whole numbers from 0..`old` rescaled to 0..`new`, rounded to the nearest."""
    result = np.empty(values.shape, np.uint16)
    some = max(1, PIECE * len(values) // max(1, values.size))
    for top in range(0, len(values), some):
        result[top : top + some] = (values[top : top + some].astype(np.uint32) * new + old // 2) // old
    return result


def unit(samples: Samples) -> int:
    """How many of the samples' own steps make one level of 255."""
    return 257 if samples.dtype == np.uint16 else 1


def look_of(icc: bytes | None, channels: int) -> Look | None:
    """The transform from stored samples to sRGB under a profile; None if the samples are sRGB already.

    A profile that is broken or made for another number of channels is ignored, as image viewers do. CMYK
    without a usable profile is converted by Pillow's simple formula.
    """
    mode, space = MODES[channels]
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc or b""))
        if profile.profile.xcolor_space != space:
            raise ValueError(space)
        transform = ImageCms.buildTransform(
            profile,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return _plain_ink if channels == 4 else None

    def look(samples: NDArray[np.uint8]) -> Rgb:
        seen = np.array(ImageCms.applyTransform(_image(samples, mode), transform))
        return seen[..., 1:2].repeat(3, axis=2) if channels == 1 else seen

    return None if channels < 4 and _is_srgb(look, channels) else look


def seen(samples: Samples, look: Look | None) -> Rgb:
    """H,W,C stored samples as H,W,3 uint8 sRGB; may be the samples themselves if they are that already."""
    if look is None:
        plain = eight(samples)
        return np.ascontiguousarray(plain.repeat(3, axis=2) if plain.shape[2] == 1 else plain)
    rgb = np.empty((*samples.shape[:2], 3), np.uint8)
    for top in range(0, len(rgb), ROWS):
        rgb[top : top + ROWS] = look(eight(samples[top : top + ROWS]))
    return rgb


def carried(
    samples: Samples, before: Rgb, after: Rgb, look: Look | None, levels: int, depth: int = 0
) -> Samples:
    """Stored samples that look like `after` where it differs from `before`, and are unchanged elsewhere.

    Args:
        samples: H,W,C, not mutated; in sRGB they are `before`.
        before, after: H,W,3 uint8 sRGB.
        look: the transform from samples to sRGB, see `look_of`.
        levels: the most that any sample, and any colour in sRGB, may differ afterwards, in levels of 255.
        depth: bits a sample in the file, where the samples are rescaled to 16; 0: all bits of their type.
    """
    depth = depth or samples.dtype.itemsize * 8
    result = samples.copy()
    for top in range(0, len(samples), ROWS):
        rows = slice(top, top + ROWS)
        hit = (before[rows] != after[rows]).any(axis=2)
        if not hit.any():
            continue
        wanted = after[rows][hit].astype(np.float32) - before[rows][hit]
        result[rows][hit] = _answer(samples[rows][hit], wanted, look, levels, depth)
    return result


def _answer(
    samples: Samples, wanted: NDArray[np.float32], look: Look | None, levels: int, depth: int
) -> Samples:
    """N,C samples under a perturbation that is wanted in sRGB, N,3 levels."""
    if samples.shape[1] == 1:
        # A grey picture gets the luminance of the perturbation: Rec. 601 luma, as everywhere in Pillow.
        wanted = (wanted @ np.array([0.299, 0.587, 0.114], np.float32))[:, None]
    if look is None:
        return _moved(samples, np.rint(wanted), levels, depth)
    here = eight(samples)
    start = _row(look, here)
    change = np.clip(_solved(_slopes(look, here), wanted), -levels, levels)
    for _ in range(ROUNDS):
        moved = _moved(samples, change, levels, depth)
        beyond = (np.abs(_row(look, eight(moved)) - start) > levels).any(axis=1)
        if not beyond.any():
            return moved
        change[beyond] *= SHRINK
    change[beyond] = 0
    return _moved(samples, change, levels, depth)


def _moved(samples: Samples, change: NDArray[Any], levels: int, depth: int) -> Samples:
    """Samples plus `change` (in levels of 255), rounded to whole steps of the depth in the file."""
    full = (1 << depth) - 1
    steps = np.clip(np.rint(change * (full / 255)), -(levels * full // 255), levels * full // 255)
    values = narrowed(samples, depth).astype(np.int32)
    values[:, : change.shape[1]] += steps.astype(np.int32)
    return widened(np.clip(values, 0, full).astype(samples.dtype), depth)


def _slopes(look: Look, here: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Slopes of the transform, N,3,3 (N,1,1 for grey): levels of sRGB per level of each sample but black."""
    channels = min(here.shape[1], 3)
    columns = []
    for channel in range(channels):
        high, low = here.copy(), here.copy()
        high[:, channel] = np.minimum(here[:, channel], 255 - STEP) + STEP
        low[:, channel] = np.maximum(here[:, channel], STEP) - STEP
        run = high[:, channel].astype(np.float32) - low[:, channel]
        columns.append((_row(look, high) - _row(look, low)) / run[:, None])
    return np.stack(columns, axis=2)[:, :channels]


def _solved(slopes: NDArray[np.float32], wanted: NDArray[np.float32]) -> NDArray[np.float32]:
    """The smallest change of the samples that gives the wanted one in sRGB (a Levenberg-Marquardt step)."""
    transposed = slopes.transpose(0, 2, 1)
    square = slopes @ transposed + DAMPING**2 * np.eye(slopes.shape[1], dtype=np.float32)
    answer: NDArray[np.float32] = (transposed @ np.linalg.solve(square, wanted[..., None]))[..., 0]
    return answer


def _row(look: Look, samples: NDArray[np.uint8]) -> NDArray[np.int16]:
    """A list of samples, N,C, in sRGB: N,3 (N,1 for grey)."""
    colours: NDArray[np.int16] = look(np.ascontiguousarray(samples[None]))[0].astype(np.int16)
    return colours[:, :1] if samples.shape[1] == 1 else colours


def _is_srgb(look: Look, channels: int) -> bool:
    axis = np.linspace(0, 255, 18).astype(np.uint8)
    if channels == 1:
        ramp = np.arange(256, dtype=np.uint8)[None, :, None]
        return bool(np.abs(look(ramp).astype(int) - ramp).max() <= 1)
    grid = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(1, -1, 3)
    return bool(np.abs(look(grid).astype(int) - grid).max() <= 1)


def _plain_ink(samples: NDArray[np.uint8]) -> Rgb:
    return np.array(_image(samples, "CMYK").convert("RGB"))


def _image(samples: NDArray[np.uint8], mode: str) -> Image.Image:
    plain = np.ascontiguousarray(samples[..., 0] if samples.shape[2] == 1 else samples)
    return Image.frombytes(mode, plain.shape[1::-1], plain.tobytes())
