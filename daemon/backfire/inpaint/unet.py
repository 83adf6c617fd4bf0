"""Editing with a UNet pipeline of diffusers: Stable Diffusion 1.x, 2.x, XL. `diffusion` loads them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from backfire.inpaint.denoising import DenoisingEditor, Prompt, cells_of


@dataclass(frozen=True)
class Start:
    """The numbers of the first denoising step.

    Attributes:
        timestep: the timestep that the UNet gets.
        scale: the factor of unit noise in the UNet's input.
        kept: alpha-bar, the picture's share of the variance at that timestep.
        predicts: what the UNet predicts: `epsilon`, `v_prediction` or `sample`.
    """

    timestep: float
    scale: float
    kept: float
    predicts: str

    @property
    def shares(self) -> tuple[float, float]:
        """The factors of the picture and of the noise in the noisy latents."""
        return math.sqrt(self.kept), math.sqrt(1 - self.kept)

    def estimated(self, prediction: Tensor, noisy: Tensor) -> Tensor:
        """The clean latents that follow from a prediction at the noisy latents."""
        signal, noise = self.shares
        if self.predicts == "sample":
            return prediction
        if self.predicts == "v_prediction":
            return signal * noisy - noise * prediction
        return (noisy - noise * prediction) / signal


class UnetEditor(DenoisingEditor):
    """A diffusers inpainting pipeline with a UNet; satisfies `Denoiser`.

    UNets with 9 input channels are made for inpainting; with those of 4, diffusers restores the known latents
    after each step.

    Attributes:
        pipe: the pipeline.
    """

    def __init__(
        self, name: str, weights_sha256: str, pipe: Any, prompts: Sequence[Prompt], steps: int, mask_blur: int
    ) -> None:
        super().__init__(weights_sha256, pipe.unet, pipe.vae)
        self.name, self.multiple = name, max(8, pipe.vae_scale_factor)
        self.pipe, self.prompts, self._steps, self._blur = pipe, list(prompts), steps, mask_blur
        self._start = _first(pipe.scheduler, steps)
        for module in (pipe.unet, pipe.vae):
            # This acts only while gradients are computed. Some autoencoders do not support it.
            with contextlib.suppress(ValueError):
                module.enable_gradient_checkpointing()
        if type(pipe.vae.encoder).__name__ == "EncoderTiny":
            # With checkpoints its forward omits the scaling of [-1,1] to [0,1] (diffusers 0.42,
            # autoencoders/vae.py), so the gradients would be those of another encoder.
            pipe.vae.encoder.gradient_checkpointing = False

    def to(self, device: torch.device | str) -> None:
        """See `Editor.to`."""
        super().to(device)
        # A scheduler keeps its tables on the device of the last latents, so a new one is made.
        self.pipe.scheduler = type(self.pipe.scheduler).from_config(self.pipe.scheduler.config)
        self.prompts = [prompt.to(device) for prompt in self.prompts]

    def _denoised(self, known: Tensor, mask: Tensor, prompt: Prompt, noise: Tensor, seed: int) -> Tensor:
        """The latents N,c,h,w of the edit, which the pipeline denoises from unit noise."""
        count, _, height, width = mask.shape
        latents: Tensor = self.pipe(
            **prompt.batch(count),
            image=known,
            mask_image=mask,
            masked_image_latents=known,
            latents=noise.to(self.pipe.unet.dtype),
            height=height,
            width=width,
            strength=1.0,
            num_inference_steps=self._steps,
            guidance_scale=prompt.guidance,
            # Equal generators for all, because some schedulers add noise and each member of a batch must be
            # edited as it would be alone.
            generator=[torch.Generator().manual_seed(seed) for _ in range(count)],
            output_type="latent",
        ).images
        return latents

    def _estimated(self, image: Tensor, mask: Tensor, generator: torch.Generator | None) -> Tensor:
        known = self._encoded(image)
        prediction, noisy = self._predicted(known, mask, generator)
        latents = self._start.estimated(prediction, noisy)
        if self._plain(known):
            latents = torch.where(cells_of(mask, known) > 0.5, latents, known)
        return self._decoded(latents)

    def _plain(self, latents: Tensor) -> bool:
        """Whether the UNet is not made for inpainting and takes only noisy latents."""
        return bool(self.pipe.unet.config.in_channels == latents.shape[1])

    def _predicted(
        self, known: Tensor, mask: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """The UNet's first prediction and the noisy latents of its input, float32 N,c,h,w."""
        prompt, noise, _ = self._drawn(known, generator)
        unet, start = self.pipe.unet, self._start
        cells = cells_of(mask, known)
        noisy = noise * start.scale
        if self._plain(known):
            # The pipeline restores the known cells after each step, so before the first it is done here.
            signal, share = start.shares
            seen = noisy = torch.where(cells > 0.5, noisy, signal * known + share * noise)
        else:
            seen = torch.cat([noisy, cells, known], dim=1)
        embeds = prompt.batch(len(known))
        timestep = torch.tensor(start.timestep, device=known.device)
        prediction = unet(
            seen.to(unet.dtype),
            timestep,
            encoder_hidden_states=embeds["prompt_embeds"],
            added_cond_kwargs=self._conditions(embeds, mask),
            return_dict=False,
        )[0]
        return prediction.float(), noisy

    def _conditions(self, embeds: dict[str, Tensor], mask: Tensor) -> dict[str, Tensor] | None:
        """The further inputs of an XL UNet: the pooled prompt, and the sizes as its pipeline gives them."""
        pooled = embeds.get("pooled_prompt_embeds")
        if pooled is None:
            return None
        size = list(mask.shape[-2:])
        aesthetic = self.pipe.config.requires_aesthetics_score
        ids = [*size, 0, 0, *([6.0] if aesthetic else size)]  # no crop, and the pipeline's default score
        return {"text_embeds": pooled, "time_ids": pooled.new_tensor(ids).expand(len(mask), -1)}

    def _encoded(self, seen: Tensor) -> Tensor:
        vae = self.pipe.vae
        out = vae.encode((seen * 2 - 1).to(vae.dtype))
        # A tiny autoencoder gives latents, the others a distribution of latents.
        latents: Tensor = out.latents if hasattr(out, "latents") else out.latent_dist.mode()
        scaled: Tensor = latents.float() * vae.config.scaling_factor
        return scaled

    def _decoded(self, latents: Tensor) -> Tensor:
        vae = self.pipe.vae
        latents = latents.float() / vae.config.scaling_factor
        mean, std = (getattr(vae.config, f"latents_{moment}", None) for moment in ("mean", "std"))
        if mean is not None and std is not None:
            spread, centre = (latents.new_tensor(each)[:, None, None] for each in (std, mean))
            latents = latents * spread + centre
        picture: Tensor = vae.decode(latents.to(vae.dtype)).sample
        return picture.float() / 2 + 0.5


def _first(scheduler: Any, steps: int) -> Start:
    """The first step of a scheduler, read from a copy because schedulers keep their state."""
    scheduler = type(scheduler).from_config(scheduler.config)
    scheduler.set_timesteps(steps)
    timestep = scheduler.timesteps[0]
    noise = torch.ones(1) * scheduler.init_noise_sigma
    kept = float(scheduler.alphas_cumprod[round(float(timestep))])
    # Some schedules end at zero, where predicted noise gives no information about the picture.
    kept = max(kept, 1e-6)
    scale = float(scheduler.scale_model_input(noise, timestep))
    return Start(float(timestep), scale, kept, str(scheduler.config.prediction_type))
