"""Tiny Stable Diffusion pipelines with random weights, made of diffusers' and transformers' own classes.

They are saved in the real folder layout, a few hundred kilobytes each, so that tests load them with the same
code as real pipelines.
"""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

WIDTH = 16
LENGTH = 8
END = "<|endoftext|>"


def library(name: str) -> Any:
    """The module diffusers or transformers without its log and progress bars; untyped, as both are."""
    module = importlib.import_module(name)
    module.utils.logging.set_verbosity_error()
    module.utils.logging.disable_progress_bar()
    return module


def save(
    folder: Path,
    *,
    xl: bool = False,
    channels: int = 9,
    tiny: bool = False,
    scheduler: str = "DDIMScheduler",
    **options: Any,
) -> Path:
    """Write a pipeline to a folder, which is returned.

    Args:
        xl: Stable Diffusion XL.
        channels: input channels of the UNet, 9 (made for inpainting) or 4.
        tiny: an autoencoder of TAESD's class, which people often use in place of the original.
        scheduler, options: class name of the scheduler, and its options.
    """
    torch.manual_seed(0)
    parts: dict[str, Any] = {
        "unet": _unet(xl, channels),
        "vae": _tiny() if tiny else _vae(),
        "scheduler": _scheduler(scheduler, options),
    }
    for suffix in ("", "_2") if xl else ("",):
        parts[f"tokenizer{suffix}"] = _tokenizer(folder.with_name(f"{folder.name}-vocabulary"))
        parts[f"text_encoder{suffix}"] = _text_encoder(projected=bool(suffix))
    if xl:
        pipe = library("diffusers").StableDiffusionXLInpaintPipeline(**parts, add_watermarker=False)
    else:
        unused = dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"))
        pipe = library("diffusers").StableDiffusionInpaintPipeline(
            **parts, **unused, requires_safety_checker=False
        )
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


def without_tensor(path: Path, tensor: str) -> None:
    """Take one tensor out of a file of weights."""
    from safetensors.torch import load_file, save_file

    state = load_file(path)
    del state[tensor]
    save_file(state, path, metadata={"format": "pt"})


def cached(folder: Path, name: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put a pipeline under `name` into `cache`, which becomes the hub's cache, with the hub out of reach;
    returns the name.
    """
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    commit = "0" * 40
    repository = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return name


def _unet(xl: bool, channels: int) -> Any:
    # The UNet of XL also takes the pooled prompt and six sizes, embedded in 8 numbers each.
    extra = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": WIDTH + 6 * 8,
    }
    return library("diffusers").UNet2DConditionModel(
        sample_size=64,
        in_channels=channels,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=2 * WIDTH if xl else WIDTH,
        attention_head_dim=8,
        norm_num_groups=4,
        **(extra if xl else {}),
    )


def _vae() -> Any:
    vae = library("diffusers").AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
    )
    with torch.no_grad():  # almost no variance in its latents, as with trained weights
        vae.quant_conv.weight[4:] = 0
        vae.quant_conv.bias[4:] = -30
    return vae


def _tiny() -> Any:
    vae = library("diffusers").AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        num_encoder_blocks=(0, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 0),
    )
    with torch.no_grad():  # outputs are around grey, so that none is clipped
        vae.decoder.layers[-1].bias.fill_(0.5)
    return vae


def _scheduler(name: str, options: dict[str, Any]) -> Any:
    usual = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    kept = {"clip_sample": False} if name == "DDIMScheduler" else {}
    return getattr(library("diffusers"), name)(**usual, **kept, **options)


def _tokenizer(folder: Path) -> Any:
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", END]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return library("transformers").CLIPTokenizer.from_pretrained(
        folder, model_max_length=LENGTH, pad_token=END
    )


def _text_encoder(*, projected: bool) -> Any:
    transformers = library("transformers")
    config = transformers.CLIPTextConfig(
        vocab_size=54,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
    )
    model = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return model(config).eval()
