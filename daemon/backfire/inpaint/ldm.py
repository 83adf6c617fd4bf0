"""ldm-mini: our own latent diffusion inpainter, which the same code runs as Stable Diffusion.

It consists of small instances of diffusers' classes: an `AutoencoderTiny`, a `UNet2DConditionModel` that
takes noisy latents, the mask and the latents of the masked picture, and a DDIM schedule that ends in pure
noise (arXiv 2305.08891). It has no text; the prompt is one token of zeros. Its weights, trained by
`training/`, ship inside the package. diffusers is imported only when it is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backfire.errors import Code, ModelError
from backfire.inpaint.denoising import Prompt, cells_of
from backfire.inpaint.latent import DOWNSCALE, LATENT_CHANNELS
from backfire.inpaint.tensors import read_state
from backfire.inpaint.unet import UnetEditor

STEPS = 8
"""The steps of an edit. The network was trained at the noise levels of 2 * STEPS steps."""
WIDTHS = (64, 128)
PROMPT = 8
"""The width of the single prompt token, which is all zeros."""
CODEC_WIDTH = 48
SPREAD = 0.5
"""The standard deviation of the autoencoder's latents, well inside of the decoder's soft limit at three."""


def unet() -> Any:
    """The denoising network, a `UNet2DConditionModel`: N,33,h,w and a timestep -> velocity N,16,h,w."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(  # type: ignore[no-untyped-call]
        in_channels=2 * LATENT_CHANNELS + 1,
        out_channels=LATENT_CHANNELS,
        block_out_channels=WIDTHS,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=PROMPT,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def autoencoder() -> Any:
    """An `AutoencoderTiny` with the shape of `latent.Encoder` and `latent.Decoder`."""
    from diffusers import AutoencoderTiny

    return AutoencoderTiny(  # type: ignore[no-untyped-call]
        latent_channels=LATENT_CHANNELS,
        encoder_block_out_channels=(CODEC_WIDTH,) * 4,
        decoder_block_out_channels=(CODEC_WIDTH,) * 4,
        num_encoder_blocks=(0, 1, 2, 3),
        num_decoder_blocks=(3, 2, 1, 0),
        scaling_factor=1 / SPREAD,
    )


def schedule() -> Any:
    """1,000 noise levels from the picture to pure noise, walked in equal steps from the last one."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(  # type: ignore[no-untyped-call]
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


@dataclass(eq=False)
class _Parts:
    """The part of a diffusers pipeline that `UnetEditor` uses; real pipelines allow only four
    channels.
    """

    unet: Any
    vae: Any
    scheduler: Any
    vae_scale_factor: int = DOWNSCALE


class LdmEditor(UnetEditor):
    """ldm-mini; satisfies `Denoiser`."""

    @classmethod
    def from_file(cls, name: str, path: Path) -> LdmEditor:
        """Load `unet.*`, `encoder.*` and `decoder.*` from a safetensors file.

        Raises:
            ModelError: the file is missing, damaged or of another architecture.
        """
        state, digest = read_state(name, path)
        parts = _Parts(unet(), autoencoder(), schedule())
        try:
            parts.unet.load_state_dict(
                {k.removeprefix("unet."): v for k, v in state.items() if k.startswith("unet.")}
            )
            parts.vae.load_state_dict({k: v for k, v in state.items() if not k.startswith("unet.")})
        except RuntimeError as error:
            reason = f"weights {path} are of another architecture than ldm-mini; reinstall backfire"
            raise ModelError(Code.MODEL, f"editor {name}: {reason}", retryable=False) from error
        silent = Prompt({"prompt_embeds": torch.zeros(1, 1, PROMPT)}, guidance=1.0)
        return cls(name, digest, parts, [silent], STEPS, 0)

    def _denoised(self, known: Tensor, mask: Tensor, prompt: Prompt, noise: Tensor, seed: int) -> Tensor:
        unet, scheduler = self.pipe.unet, self.pipe.scheduler
        scheduler.set_timesteps(self._steps, device=known.device)
        cells, latents = cells_of(mask, known), noise
        embeds = prompt.batch(len(known))["prompt_embeds"]
        for timestep in scheduler.timesteps:
            seen = torch.cat([latents, cells, known], dim=1)
            velocity = unet(seen, timestep, encoder_hidden_states=embeds, return_dict=False)[0]
            latents = scheduler.step(velocity, timestep, latents).prev_sample
        return latents
