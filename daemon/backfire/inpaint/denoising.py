"""What all editors that paint by denoising share: prompts, noise, and the two ways to edit.

* To verify, the pipeline denoises in all its steps with guidance, as users run it.
* To optimise, the picture is encoded, the network predicts once without guidance, and the clean latents of
  that prediction are decoded. Twenty steps cannot be differentiated through in an ordinary memory, and the
  first step decides most about the content of the hole (DiffusionGuard, 2024).

Both use the same encoding, decoding and noise, so that they agree. `unet` has the networks of Stable
Diffusion 1.x, 2.x and XL, `flow` the transformers of later pipelines.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from backfire.inpaint.base import ModelEditor


@dataclass(frozen=True, eq=False)
class Prompt:
    """The embeddings of one prompt, 1,... each, by the names of the parameters of diffusers' pipelines."""

    embeds: dict[str, Tensor]
    guidance: float

    def to(self, device: torch.device | str) -> Prompt:
        return Prompt({key: value.to(device) for key, value in self.embeds.items()}, self.guidance)

    def batch(self, count: int) -> dict[str, Tensor]:
        return {key: value.expand(count, *value.shape[1:]) for key, value in self.embeds.items()}


class DenoisingEditor(ModelEditor):
    """A pipeline that denoises latents; satisfies `Denoiser`. Subclasses implement the five last methods.

    The generator draws one noise for the whole batch and picks the prompt. Without a generator, it is always
    the first prompt and the noise of seed 0. Equal seeds give equal noise on every device.

    Attributes:
        prompts: the embedded prompts, of which an edit takes one.
    """

    hole = 0.5  # 0 in [-1,1], with which the pipelines fill the hole
    prompts: list[Prompt]
    _blur: int
    """The pixels by which the mask is blurred before it is thresholded at one half; 0 takes it as it is."""

    def encode(self, image: Tensor, mask: Tensor) -> Tensor:
        """See `Latent.encode`: the mean of the autoencoder's posterior, normalised."""
        return self._encoded(self._ready(image, mask)[0])

    def first_step(self, image: Tensor, mask: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """See `Denoiser.first_step`."""
        seen, edited = self._ready(image, mask)
        return self._predicted(self._encoded(seen), edited, generator)[0]

    def one_step(self, image: Tensor, mask: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """See `Denoiser.one_step`."""
        seen, edited = self._ready(image, mask)
        return self._composited(self._estimated(seen, edited, generator), image, mask)

    def _edited(self, mask: Tensor) -> Tensor:
        return (blurred(mask, self._blur) >= 0.5).to(mask.dtype) if self._blur else mask

    def _fill(self, image: Tensor, mask: Tensor, generator: torch.Generator | None) -> Tensor:
        if torch.is_grad_enabled() and image.requires_grad:
            return self._estimated(image, mask, generator)
        known = self._encoded(image)
        return self._decoded(self._denoised(known, mask, *self._drawn(known, generator)))

    def _drawn(self, known: Tensor, generator: torch.Generator | None) -> tuple[Prompt, Tensor, int]:
        """The prompt, the unit noise (of the shape of `known`, equal for the whole batch) and the seed."""
        if generator is None:
            index = seed = 0
        else:
            seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
            index = seed % len(self.prompts)
        # Drawn on the CPU, so that a seed gives the same numbers for every device.
        noise = torch.randn(known.shape[1:], generator=torch.Generator().manual_seed(seed))
        return self.prompts[index], noise.to(known).expand_as(known), seed

    def _encoded(self, seen: Tensor) -> Tensor:
        """The normalised latents N,c,h,w of a picture N,3,H,W in [0,1]."""
        raise TypeError(f"{type(self).__name__} lacks _encoded")

    def _decoded(self, latents: Tensor) -> Tensor:
        """The inverse of `_encoded`, not clamped."""
        raise TypeError(f"{type(self).__name__} lacks _decoded")

    def _denoised(self, known: Tensor, mask: Tensor, prompt: Prompt, noise: Tensor, seed: int) -> Tensor:
        """The latents N,c,h,w of the edit in all steps, from those of the picture and from unit noise."""
        raise TypeError(f"{type(self).__name__} lacks _denoised")

    def _predicted(
        self, known: Tensor, mask: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """The network's first prediction and the noisy latents of its input, float32 N,c,h,w."""
        raise TypeError(f"{type(self).__name__} lacks _predicted")

    def _estimated(self, image: Tensor, mask: Tensor, generator: torch.Generator | None) -> Tensor:
        """The picture N,3,H,W that follows from the first prediction."""
        raise TypeError(f"{type(self).__name__} lacks _estimated")


def cells_of(mask: Tensor, latents: Tensor) -> Tensor:
    """The mask at the size of the latents by the nearest pixel, as the pipelines scale it."""
    return F.interpolate(mask, size=latents.shape[-2:])


def blurred(mask: Tensor, radius: int) -> Tensor:
    """N,1,H,W blurred by a Gaussian kernel of 2 * radius + 1 pixels, with the sigma that OpenCV derives from
    it.
    """
    sigma = 0.3 * (radius - 1) + 0.8
    offsets = torch.arange(-radius, radius + 1, device=mask.device, dtype=mask.dtype)
    weights = torch.softmax(-(offsets**2) / (2 * sigma**2), dim=0)
    padded = F.pad(mask, (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, weights[None, None, None]), weights[None, None, :, None])
