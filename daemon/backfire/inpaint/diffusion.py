"""Loads Stable Diffusion pipelines (1.x, 2.x, XL) from a folder or from the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch

from backfire.inpaint import pipelines
from backfire.inpaint.denoising import Prompt
from backfire.inpaint.hardware import DTYPES
from backfire.inpaint.options import DiffusionOptions, listed
from backfire.inpaint.unet import UnetEditor

_PLAIN = ("StableDiffusionInpaintPipeline", {"requires_safety_checker": False})
_XL = ("StableDiffusionXLInpaintPipeline", {"add_watermarker": False})
_FAMILIES: dict[str, tuple[str, dict[str, bool]]] = {
    "StableDiffusionInpaintPipeline": _PLAIN,
    "StableDiffusionPipeline": _PLAIN,
    "StableDiffusionXLInpaintPipeline": _XL,
    "StableDiffusionXLPipeline": _XL,
}
"""By class in model_index.json: the diffusers class that loads it, and the options of that."""
_UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
"""The components that are neither fetched nor loaded, because they check pictures or encode further ones."""


class DiffusionEditor(UnetEditor):
    """A diffusers inpainting pipeline, loaded; satisfies `Denoiser`."""

    @classmethod
    def load(cls, name: str, path: Path | str, options: DiffusionOptions) -> Self:
        """Load a pipeline from a folder, or by its hub name from the hub's cache; it is fetched if it is not
        there.

        Args:
            name: the editor's name in the configuration and the receipt.
            path: a folder as `save_pretrained` writes it, or `owner/name` on the Hugging Face hub.
            options: how it paints.

        Raises:
            ModelError: there is no such folder or hub name, or it has no safetensors, is damaged or
                incomplete, or is another kind of pipeline.
        """
        number = DTYPES[options.dtype]
        folder = pipelines.located(name, str(path), _FAMILIES, _UNUSED, options.variant)
        with pipelines.loading(folder):
            kind, extra = _FAMILIES[folder.kind]
            pipe = _fitting(name, folder.pipeline(kind, number, **extra))
            if number == torch.float16 and pipe.vae.config.get("force_upcast", True):
                pipe.vae.to(torch.float32)
            embedded = [_embedded(pipe, prompt, options) for prompt in listed(options.prompts)]
            pipelines.release_text(pipe)
            return cls(name, folder.digest(), pipe, embedded, options.steps, options.mask_blur)


def _fitting(name: str, pipe: Any) -> Any:
    """The pipeline itself, if its UNet and its scheduler are of the supported sorts."""
    channels, latent = pipe.unet.config.in_channels, pipe.vae.config.latent_channels
    if channels not in (latent, 2 * latent + 1):
        reason = f"its UNet takes {channels} channels, expected {latent} or {2 * latent + 1}"
        raise pipelines.error(name, reason, "name an inpainting pipeline")
    predicts = pipe.scheduler.config.get("prediction_type")
    if not hasattr(pipe.scheduler, "alphas_cumprod") or predicts not in ("epsilon", "v_prediction", "sample"):
        reason = f"its scheduler {type(pipe.scheduler).__name__} ({predicts}) is not one for such UNets"
        raise pipelines.error(name, reason, "use DDIM, DPM-Solver++, Euler or their like")
    if hasattr(pipe.scheduler, "noise_sampler"):
        # Edits of the same picture side by side would differ, which a verdict would take for protection.
        reason = f"its scheduler {type(pipe.scheduler).__name__} adds noise that no generator draws"
        raise pipelines.error(name, reason, "use DDIM, DPM-Solver++, Euler or their like")
    return pipe


@torch.no_grad()
def _embedded(pipe: Any, prompt: str, options: DiffusionOptions) -> Prompt:
    values = pipe.encode_prompt(
        prompt=prompt,
        device=torch.device("cpu"),
        num_images_per_prompt=1,
        do_classifier_free_guidance=True,
        # None and not "", because XL pipelines replace None by zeros.
        negative_prompt=options.negative or None,
    )
    names = (
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    )
    embeds = dict(zip(names, values, strict=False))
    idle = options.guidance <= 1 or all(
        torch.equal(embeds[k], embeds[f"negative_{k}"]) for k in names[::2] if k in embeds
    )
    return Prompt(embeds, 1.0 if idle else options.guidance)
