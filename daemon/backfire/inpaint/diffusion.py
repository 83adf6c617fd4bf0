"""Loads Stable Diffusion pipelines (1.x, 2.x, XL) from a folder or from the Hugging Face hub.

diffusers is imported only when a pipeline is loaded, because it costs seconds and hundreds of megabytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import torch

from backfire.errors import BackfireError, Code, ConfigError, ModelError
from backfire.files import durable
from backfire.inpaint.denoising import DenoisingEditor, Prompt
from backfire.inpaint.hardware import dtype_named

_FAMILIES = {
    "StableDiffusionInpaintPipeline": "StableDiffusionInpaintPipeline",
    "StableDiffusionPipeline": "StableDiffusionInpaintPipeline",
    "StableDiffusionXLInpaintPipeline": "StableDiffusionXLInpaintPipeline",
    "StableDiffusionXLPipeline": "StableDiffusionXLInpaintPipeline",
}
"""By class in model_index.json: the diffusers class that loads it."""
_UNUSED = {
    "StableDiffusionInpaintPipeline": ("safety_checker", "feature_extractor", "image_encoder"),
    "StableDiffusionXLInpaintPipeline": ("feature_extractor", "image_encoder"),
}
"""The components that are neither fetched nor loaded, because they check pictures or encode further ones."""
_TEXT = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")


class DiffusionEditor(DenoisingEditor):
    """A diffusers inpainting pipeline, loaded; satisfies `Denoiser`."""

    @classmethod
    def load(
        cls,
        name: str,
        path: Path | str,
        *,
        prompts: str | Sequence[str] = ("",),
        negative: str = "",
        steps: int = 20,
        guidance: float = 7.5,
        dtype: str = "float32",
        mask_blur: int = 0,
        variant: str | None = None,
    ) -> Self:
        """Load a pipeline from a folder, or by its hub name from the hub's cache; it is fetched if it is not
        there.

        Args:
            name: the editor's name in the configuration and the receipt.
            path: a folder as `save_pretrained` writes it, or `owner/name` on the Hugging Face hub.
            prompts: the prompts, '' for none. They are embedded once, and the text encoders are then freed.
            negative: the negative prompt.
            steps: the denoising steps of an edit.
            guidance: the guidance scale. Up to 1, or if prompt and negative prompt have the same embedding,
                there is no guidance, which halves the work. dtype: `float32`, `bfloat16` or `float16`. Under
                float16 the autoencoder stays in float32 unless its configuration says that it does not
                overflow. mask_blur: the pixels by which the mask is blurred (a Gaussian kernel of 2 *
                mask_blur + 1) before it is thresholded at one half, as IOPaint does with 11. Sharp corners
                and thin strokes of the mask are then neither repainted nor hidden. 0 takes the mask itself.
                variant: the variant of the files, such as `fp16`.

        Raises:
            ConfigError: an option has a wrong type, is out of range or is unknown.
            ModelError: there is no such folder or hub name, or it has no safetensors, is damaged, or is
                another kind of pipeline.
        """
        number = dtype_named(str(dtype), f"editor {name}: dtype")
        prompts = [prompts] if isinstance(prompts, str) else prompts
        texts = isinstance(prompts, Sequence) and prompts and all(isinstance(one, str) for one in prompts)
        for option, value, holds, expected in (
            ("prompts", prompts, texts, "a list of texts"),
            ("negative", negative, isinstance(negative, str), "a text"),
            ("steps", steps, type(steps) is int and steps >= 1, "a whole number from 1"),
            ("guidance", guidance, isinstance(guidance, int | float) and guidance >= 0, "a number from 0"),
            ("mask_blur", mask_blur, type(mask_blur) is int and mask_blur >= 0, "whole pixels from 0"),
        ):
            if not holds:  # the values of the YAML file are not checked before
                raise ConfigError(f"editor {name}: {option}: got {value!r}, expected {expected}")
        if importlib.util.find_spec("transformers") is None:
            raise _error(name, "diffusion needs transformers", "pip install 'backfire[diffusion]'")
        _hush()
        folder = _folder(name, str(path), variant)
        try:
            pipe = _pipeline(name, folder, number, variant)
            embedded = [_embedded(pipe, prompt, negative, guidance) for prompt in prompts]
            pipe.register_modules(**{part: None for part in _TEXT if hasattr(pipe, part)})
            return cls(name, _digest(folder, variant), pipe, embedded, steps, mask_blur)
        except (BackfireError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # the errors of the three libraries have no common base class
            if isinstance(error, RuntimeError) and "memory" in str(error):
                raise  # torch's CPU allocator raises a RuntimeError
            reason = f"{folder} cannot be loaded as a pipeline ({_brief(error)})"
            raise _error(name, reason, "fetch it again, as safetensors (no pickles)") from error


def _folder(name: str, weights: str, variant: str | None) -> Path:
    """The local folder of a path or hub name. The network is used only for a hub name that is not yet
    cached.
    """
    if Path(weights).is_dir():
        return Path(weights)
    remedy = "name a folder with a model_index.json, or owner/name on the Hugging Face hub"
    if not _HUB_NAME.fullmatch(weights):
        raise _error(name, f"{weights} is no folder", remedy)
    from diffusers import DiffusionPipeline

    unused = dict.fromkeys({part for parts in _UNUSED.values() for part in parts})
    options = {"use_safetensors": True, "variant": variant, **unused}
    with contextlib.suppress(Exception):  # if the cache is damaged, fetching repairs it or says why not
        return Path(DiffusionPipeline.download(weights, local_files_only=True, **options))
    try:
        return Path(DiffusionPipeline.download(weights, **options))
    except Exception as error:  # the hub client raises errors of its HTTP libraries, too
        reason = f"{weights} is no folder, not in the hub's cache, and cannot be fetched ({_brief(error)})"
        raise _error(name, reason, f"go online once, or {remedy}") from error


def _pipeline(name: str, folder: Path, dtype: torch.dtype, variant: str | None) -> Any:
    """The pipeline on the CPU. Only known classes are loaded, so that no other code runs."""
    import diffusers

    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        kind = index["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{folder} has no readable model_index.json ({_brief(error)})"
        raise _error(name, reason, "name the folder that save_pretrained wrote") from error
    if not isinstance(kind, str) or kind not in _FAMILIES:
        expected = ", ".join(_FAMILIES)
        raise _error(name, f"{folder} holds a {kind}, expected one of {expected}", "name another pipeline")
    family = _FAMILIES[kind]
    options: dict[str, Any] = dict.fromkeys(_UNUSED[family])
    if "safety_checker" in options:
        options["requires_safety_checker"] = False
    else:
        options["add_watermarker"] = False
    pipe = getattr(diffusers, family).from_pretrained(
        folder,
        dtype=dtype,
        variant=variant,
        use_safetensors=True,
        local_files_only=True,
        low_cpu_mem_usage=importlib.util.find_spec("accelerate") is not None,
        **options,
    )
    channels, latent = pipe.unet.config.in_channels, pipe.vae.config.latent_channels
    if channels not in (latent, 2 * latent + 1):
        reason = f"its UNet takes {channels} channels, expected {latent} or {2 * latent + 1}"
        raise _error(name, reason, "name an inpainting pipeline")
    predicts = pipe.scheduler.config.get("prediction_type")
    if not hasattr(pipe.scheduler, "alphas_cumprod") or predicts not in ("epsilon", "v_prediction", "sample"):
        reason = f"its scheduler {type(pipe.scheduler).__name__} ({predicts}) is not one for such UNets"
        raise _error(name, reason, "use DDIM, DPM-Solver++, Euler or their like")
    pipe.set_progress_bar_config(disable=True)
    if dtype == torch.float16 and pipe.vae.config.get("force_upcast", True):
        pipe.vae.to(torch.float32)
    return pipe


@torch.no_grad()
def _embedded(pipe: Any, prompt: str, negative: str, guidance: float) -> Prompt:
    values = pipe.encode_prompt(
        prompt=prompt,
        device=torch.device("cpu"),
        num_images_per_prompt=1,
        do_classifier_free_guidance=True,
        # None and not "", because XL pipelines replace None by zeros.
        negative_prompt=negative or None,
    )
    names = (
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    )
    embeds = dict(zip(names, values, strict=False))
    idle = guidance <= 1 or all(
        torch.equal(embeds[k], embeds[f"negative_{k}"]) for k in names[::2] if k in embeds
    )
    return Prompt(embeds, 1.0 if idle else guidance)


def _loaded(folder: Path, variant: str | None) -> Iterator[Path]:
    """The files of the pipeline: the configurations, vocabularies and weights of its components."""
    yield folder / "model_index.json"
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    unused = {part for parts in _UNUSED.values() for part in parts}
    for component in sorted(set(index) - unused):
        files = sorted((folder / component).glob("*"))
        yield from (file for file in files if file.suffix in (".json", ".txt"))
        weights = [file for file in files if file.suffix == ".safetensors"]
        # NAME[.VARIANT][-SHARD].safetensors; a component that lacks the variant is loaded without it.
        marked = [file for file in weights if variant and f".{variant}" in file.name]
        yield from marked or (file for file in weights if file.name.count(".") == 1)


def _digest(folder: Path, variant: str | None) -> str:
    """The SHA-256 over the names and contents of the loaded files."""
    total = hashlib.sha256()
    for path in _loaded(folder, variant):
        content = durable.file_sha256(path)
        total.update(f"{path.relative_to(folder).as_posix()}:{content}\n".encode())
    return total.hexdigest()


def _hush() -> None:
    """Turn off the libraries' progress bars and messages, because the daemon's stderr holds JSON lines."""
    import diffusers
    import transformers
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]  # public there

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
    disable_progress_bars()


def _brief(error: BaseException) -> str:
    """An error in one line of at most 300 characters, because the libraries' messages fill pages."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _error(name: str, reason: str, remedy: str) -> ModelError:
    return ModelError(Code.MODEL, f"editor {name}: {reason}; {remedy}", retryable=False)
