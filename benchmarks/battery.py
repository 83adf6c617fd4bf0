"""Treatments: what may happen to a published picture before somebody edits it.

A treatment takes a picture (uint8 H,W,3) and an edit mask (H,W bool) and returns both as they are afterwards,
or None if it would not change the picture. The original gets the same treatment, so that only the
protection's effect is compared.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from backfire.inpaint.base import Editor
from backfire.types import Mask, Rgb

Treated = tuple[Rgb, Mask]
Treatment = Callable[[Rgb, Mask], Treated | None]
LONG_EDGE = 1080
SIGMA = 6.0
"""Standard deviation of the noise, in levels: half of the default epsilon."""


def jpeg(rgb: Rgb, mask: Mask, *, quality: int) -> Treated:
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)).copy(), mask


def scaled(rgb: Rgb, mask: Mask, *, scale: float) -> Treated:
    size = (max(round(rgb.shape[1] * scale), 8), max(round(rgb.shape[0] * scale), 8))
    plane = np.array(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.LANCZOS)).copy(), plane


def long_edge(rgb: Rgb, mask: Mask, *, most: int = LONG_EDGE) -> Treated | None:
    """Scaled down to 1080 px as by social networks; None for a picture that is not larger."""
    longer = max(rgb.shape[:2])
    return scaled(rgb, mask, scale=most / longer) if longer > most else None


def cropped(rgb: Rgb, mask: Mask) -> Treated:
    """Cropped by a twentieth on each side, a tenth in all."""
    y, x = rgb.shape[0] // 20, rgb.shape[1] // 20
    inner = (slice(y, rgb.shape[0] - y), slice(x, rgb.shape[1] - x))
    return rgb[inner].copy(), mask[inner]


def blurred(rgb: Rgb, mask: Mask) -> Treated:
    soft = ndimage.gaussian_filter(rgb.astype(np.float32), (1, 1, 0))
    return np.rint(soft).astype(np.uint8), mask


def noisy(rgb: Rgb, mask: Mask) -> Treated:
    noise = np.random.default_rng(0).normal(0, SIGMA, rgb.shape)
    return np.clip(np.rint(rgb + noise), 0, 255).astype(np.uint8), mask


def noisy_upscaled(rgb: Rgb, mask: Mask) -> Treated:
    """Noise, then scaling down and up again: the simplest purification."""
    rough, _ = noisy(rgb, mask)
    small, _ = scaled(rough, mask, scale=0.5)
    back = Image.fromarray(small).resize(rgb.shape[1::-1], Image.Resampling.BICUBIC)
    return np.asarray(back).copy(), mask


def purified(rgb: Rgb, mask: Mask, *, editor: Editor) -> Treated:
    """Encoded and decoded by a latent editor's autoencoder, which removes fine noise from the picture."""
    encoder, decoder = editor.encoder, editor.decoder  # type: ignore[attr-defined]
    height, width = rgb.shape[:2]
    beyond = ((0, -height % editor.multiple), (0, -width % editor.multiple), (0, 0))
    padded = np.pad(rgb, beyond, mode="edge")
    image = torch.from_numpy(padded).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        out = decoder(encoder(image))[0].clamp(0, 1).permute(1, 2, 0).numpy()
    return np.rint(out[:height, :width] * 255).astype(np.uint8), mask


def chained(rgb: Rgb, mask: Mask) -> Treated:
    """JPEG 75, half size, JPEG 75: a picture that went through two sites."""
    return jpeg(*scaled(*jpeg(rgb, mask, quality=75), scale=0.5), quality=75)


BATTERY: dict[str, Treatment] = {
    "jpeg 90": partial(jpeg, quality=90),
    "jpeg 75": partial(jpeg, quality=75),
    "jpeg 50": partial(jpeg, quality=50),
    "half size": partial(scaled, scale=0.5),
    "chain": chained,
    "1080 px": long_edge,
    "crop 10%": cropped,
    "blur": blurred,
    "noise": noisy,
    "noise+upscale": noisy_upscaled,
}


def treatments(judges: Sequence[Editor]) -> dict[str, Treatment]:
    """The battery, and purification by the autoencoder of each judge that has one."""
    latent = [judge for judge in judges if hasattr(judge, "encoder") and hasattr(judge, "decoder")]
    return BATTERY | {f"autoencoder {judge.name}": partial(purified, editor=judge) for judge in latent}
