"""The autoencoders of diffusers' pipelines: how each class encodes one picture, and normalises its latents.

| class | pipelines | latents |
|---|---|---|
| `AutoencoderKL` | Stable Diffusion 1.x, 2.x, XL, 3; FLUX.1; Z-Image | 4 or 16 channels, shifted and scaled |
| `AutoencoderTiny` | in place of those | likewise |
| `AutoencoderKLFlux2` | FLUX.2 | 32 channels; patches of 2x2 are normalised by running statistics |
| `AutoencoderKLQwenImage` | Qwen-Image | a video of one frame; 16 channels, each with mean and deviation |

To add a class: a line in `SPACES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Space:
    """How one class of autoencoder is used.

    Attributes:
        encode: (autoencoder, N,3,H,W in [-1,1]) -> normalised latents N,c,h,w: the mean, around which a
            pipeline samples.
        decode: the inverse.
        factor: the width of a latent cell in pixels.
        folded: whether the latents of this space are patches of 2x2 cells, as transformers take them.
    """

    encode: Callable[[Any, Tensor], Tensor]
    decode: Callable[[Any, Tensor], Tensor]
    factor: Callable[[Any], int]
    folded: bool = False


def space_of(vae: Any) -> Space | None:
    """The space of an autoencoder; None where its class is not known."""
    return SPACES.get(type(vae).__name__)


def encoded(vae: Any, image: Tensor) -> Tensor:
    """The normalised latents, float32 N,c,h,w, of a picture N,3,H,W in [0,1]."""
    latents: Tensor = SPACES[type(vae).__name__].encode(vae, (image * 2 - 1).to(vae.dtype))
    return latents.float()


def decoded(vae: Any, latents: Tensor) -> Tensor:
    """The picture, float32 N,3,H,W in about [0,1], of normalised latents."""
    picture: Tensor = SPACES[type(vae).__name__].decode(vae, latents)
    return picture.float() / 2 + 0.5


def _mean(out: Any) -> Tensor:
    """A tiny autoencoder gives latents, the others a distribution of latents."""
    mean: Tensor = out.latents if hasattr(out, "latents") else out.latent_dist.mode()
    return mean.float()


def _kl_encode(vae: Any, image: Tensor) -> Tensor:
    return (_mean(vae.encode(image)) - _shift(vae)) * float(vae.config.scaling_factor)


def _kl_decode(vae: Any, latents: Tensor) -> Tensor:
    latents = latents / vae.config.scaling_factor + _shift(vae)
    picture: Tensor = vae.decode(latents.to(vae.dtype)).sample
    return picture


def _shift(vae: Any) -> float:
    return float(vae.config.get("shift_factor") or 0)


def _flux2_statistics(vae: Any) -> tuple[Tensor, Tensor]:
    """The mean and the deviation of each channel of a patch, 1,128,1,1 each."""
    mean, variance = (each.float()[None, :, None, None] for each in (vae.bn.running_mean, vae.bn.running_var))
    return mean, torch.sqrt(variance + vae.config.batch_norm_eps)


def _flux2_encode(vae: Any, image: Tensor) -> Tensor:
    mean, deviation = _flux2_statistics(vae)
    return (F.pixel_unshuffle(_mean(vae.encode(image)), 2) - mean) / deviation


def _flux2_decode(vae: Any, latents: Tensor) -> Tensor:
    mean, deviation = _flux2_statistics(vae)
    cells = F.pixel_shuffle(latents * deviation + mean, 2)
    picture: Tensor = vae.decode(cells.to(vae.dtype)).sample
    return picture


def _qwen_statistics(vae: Any, device: torch.device) -> list[Tensor]:
    """The mean and the deviation of each channel, 1,16,1,1 each."""
    both = (vae.config.latents_mean, vae.config.latents_std)
    return [torch.tensor(each, device=device)[None, :, None, None] for each in both]


def _qwen_encode(vae: Any, image: Tensor) -> Tensor:
    mean, deviation = _qwen_statistics(vae, image.device)
    return (_mean(vae.encode(image[:, :, None]))[:, :, 0] - mean) / deviation


def _qwen_decode(vae: Any, latents: Tensor) -> Tensor:
    mean, deviation = _qwen_statistics(vae, latents.device)
    picture: Tensor = vae.decode((latents * deviation + mean)[:, :, None].to(vae.dtype)).sample
    return picture[:, :, 0]


def _halvings(vae: Any) -> int:
    channels = vae.config.get("block_out_channels") or vae.config.encoder_block_out_channels
    return int(2 ** (len(channels) - 1))


_KL = Space(_kl_encode, _kl_decode, _halvings)
SPACES = {
    "AutoencoderKL": _KL,
    "AutoencoderTiny": _KL,
    "AutoencoderKLFlux2": Space(_flux2_encode, _flux2_decode, lambda vae: 2 * _halvings(vae), folded=True),
    "AutoencoderKLQwenImage": Space(
        _qwen_encode, _qwen_decode, lambda vae: int(2 ** len(vae.temperal_downsample))
    ),
}
"""By class of diffusers."""
