"""The sRGB colours of stored samples, and how a change of these colours is carried back into the samples.

Editors and detectors work in sRGB. Only the *forward* transform of a profile is used: many profiles of
cameras and scanners have no inverse, and an inverse through a table would separate CMYK anew and move pixels
that were not changed. Instead, the wanted change of a colour is divided by the slope of the transform at each
pixel. A pixel without a change therefore keeps its exact value, also out of the sRGB gamut. Black ink is
never changed.

The transform (littlecms through Pillow) works on 8-bit values. Of 16-bit samples it takes the upper half, and
the change is added to the full value.
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
"""The rows that are computed at a time, because a float copy of a hundred megapixels is too large."""

PIECE = 1 << 20
"""The values that are rescaled at a time, for the same reason."""

STEP = 8
"""The levels to either side over which a slope is measured; over one level it would be mostly rounding."""

DAMPING = 0.05
"""Limits the step of a pixel whose colour hardly depends on its samples (out of gamut, or under black
ink)."""

SHRINK, ROUNDS = 0.7, 6


def eight(samples: Samples) -> NDArray[np.uint8]:
    """Samples as 8-bit levels; a view if they have 8 bits already."""
    if samples.dtype == np.uint8:
        return samples.view(np.uint8)
    # This equals (s + 128) // 257 without an overflow of 16 bits.
    return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)


def widened(values: Samples, depth: int) -> Samples:
    """Values of `depth` bits scaled to the full range of their type; 9 to 15 bits to the range of 16."""
    return values if depth in (8, 16) else _scaled(values, (1 << depth) - 1, 65535)


def narrowed(samples: Samples, depth: int) -> Samples:
    """The inverse of `widened`: values of `depth` bits, rounded if the samples have more."""
    if depth == 8:
        return eight(samples)
    return samples if depth == 16 else _scaled(samples, 65535, (1 << depth) - 1)


def _scaled(values: Samples, old: int, new: int) -> Samples:
    """Whole numbers in 0..`old` scaled to 0..`new`, rounded to the nearest."""
    result = np.empty(values.shape, np.uint16)
    some = max(1, PIECE * len(values) // max(1, values.size))
    for top in range(0, len(values), some):
        result[top : top + some] = (values[top : top + some].astype(np.uint32) * new + old // 2) // old
    return result


def unit(samples: Samples) -> int:
    """One level of 255 in steps of the samples' type."""
    return 257 if samples.dtype == np.uint16 else 1


def look_of(icc: bytes | None, channels: int) -> Look | None:
    """The function from samples under a profile to sRGB; None if the samples are sRGB already.

    A profile that is broken or meant for other samples is ignored, as viewers do. CMYK without a usable
    profile is converted by Pillow's simple formula.
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
    """H,W,3 uint8 sRGB of H,W,C stored samples; the samples themselves if they are sRGB already."""
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
    """Samples that look like `after` wherever it differs from `before`, and are unchanged elsewhere.

    Args:
        samples: H,W,C, not mutated; their colours are `before`.
        levels: the bound on the change of every sample and of every sRGB value, in levels of 255.
        depth: the bits with which the samples, scaled to the full range of their type, are stored; 0 means
            all.
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
    """N,C samples changed so that their colours change by N,3 levels of sRGB."""
    if samples.shape[1] == 1:
        # A grey picture gets the luma of the change (Rec. 601, as in Pillow).
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
    """Samples changed by levels of 255, in whole steps of the depth with which they are stored."""
    full = (1 << depth) - 1
    steps = np.clip(np.rint(change * (full / 255)), -(levels * full // 255), levels * full // 255)
    values = narrowed(samples, depth).astype(np.int32)
    values[:, : change.shape[1]] += steps.astype(np.int32)
    return widened(np.clip(values, 0, full).astype(samples.dtype), depth)


def _slopes(look: Look, here: NDArray[np.uint8]) -> NDArray[np.float32]:
    """N,3,3 (N,1,1 for grey): levels of sRGB per level of each sample, without black ink."""
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
    """The least change of the samples for the wanted change of colour, damped as in Levenberg-Marquardt."""
    transposed = slopes.transpose(0, 2, 1)
    square = slopes @ transposed + DAMPING**2 * np.eye(slopes.shape[1], dtype=np.float32)
    answer: NDArray[np.float32] = (transposed @ np.linalg.solve(square, wanted[..., None]))[..., 0]
    return answer


def _row(look: Look, samples: NDArray[np.uint8]) -> NDArray[np.int16]:
    """The colours of a list of samples: N,C -> N,3 (N,1 for grey)."""
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
