"""What happens to a published picture before somebody edits it.

Each treatment takes a picture (uint8 H,W,3) and planes that mark places in it (H,W bool) and
gives both as they look afterwards. The original goes through the same treatment, so that only
the protection's effect is compared.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from daemon import editors
from daemon.domain import Mask, Rgb

Treated = tuple[Rgb, list[Mask]]
Treatment = Callable[[Rgb, Sequence[Mask]], Treated]
LONG_EDGE = 1080
SIGMA = 6.0
"""Noise added, in levels: as large as the default budget."""


def jpeg(quality: int) -> Treatment:
    def treat(rgb: Rgb, masks: Sequence[Mask]) -> Treated:
        file = io.BytesIO()
        Image.fromarray(rgb).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file)).copy(), list(masks)

    return treat


def scaled(rgb: Rgb, masks: Sequence[Mask], scale: float) -> Treated:
    size = (max(round(rgb.shape[1] * scale), 8), max(round(rgb.shape[0] * scale), 8))
    planes = [np.array(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)) for mask in masks]
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.LANCZOS)).copy(), planes


def half_size(rgb: Rgb, masks: Sequence[Mask]) -> Treated:
    return scaled(rgb, masks, 0.5)


def long_edge(rgb: Rgb, masks: Sequence[Mask]) -> Treated:
    """1080 px as social sites make it; a smaller picture stays."""
    return scaled(rgb, masks, min(1.0, LONG_EDGE / max(rgb.shape[:2])))


def cropped(rgb: Rgb, masks: Sequence[Mask]) -> Treated:
    """A tenth off, a twentieth on each side."""
    y, x = rgb.shape[0] // 20, rgb.shape[1] // 20
    inner = (slice(y, rgb.shape[0] - y), slice(x, rgb.shape[1] - x))
    return rgb[inner].copy(), [mask[inner] for mask in masks]


def blurred(rgb: Rgb, masks: Sequence[Mask]) -> Treated:
    soft = ndimage.gaussian_filter(rgb.astype(np.float32), (1, 1, 0))
    return np.rint(soft).astype(np.uint8), list(masks)


def noisy(rgb: Rgb, masks: Sequence[Mask]) -> Treated:
    noise = np.random.default_rng(0).normal(0, SIGMA, rgb.shape)
    return np.clip(np.rint(rgb + noise), 0, 255).astype(np.uint8), list(masks)


def noisy_upscaled(rgb: Rgb, masks: Sequence[Mask]) -> Treated:
    """Noise, then down and up again: the cheapest purifier."""
    rough, planes = noisy(rgb, masks)
    small, _ = scaled(rough, (), 0.5)
    back = Image.fromarray(small).resize(rgb.shape[1::-1], Image.Resampling.BICUBIC)
    return np.asarray(back).copy(), planes


def purified(rgb: Rgb, masks: Sequence[Mask]) -> Treated:
    """Through the embedded editor's autoencoder, which keeps the picture and drops fine noise."""
    editor = editors.get("latent-mini")
    encoder, decoder = editor.encoder, editor.decoder  # type: ignore[attr-defined]
    height, width = rgb.shape[:2]
    padded = np.pad(rgb, ((0, -height % 8), (0, -width % 8), (0, 0)), mode="edge")
    image = torch.from_numpy(padded).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        out = decoder(encoder(image))[0].clamp(0, 1).permute(1, 2, 0).numpy()
    return np.rint(out[:height, :width] * 255).astype(np.uint8), list(masks)


BATTERY: dict[str, Treatment] = {
    "jpeg90": jpeg(90),
    "jpeg75": jpeg(75),
    "jpeg50": jpeg(50),
    "half size": half_size,
    "1080 px": long_edge,
    "crop 10%": cropped,
    "blur": blurred,
    "noise": noisy,
    "noise+upscale": noisy_upscaled,
    "autoencoder": purified,
}
