"""Tiny pipelines on flow schedules with random weights, one for each class that kind `flow` loads.

As in `pipelines`, they consist of the classes of diffusers and transformers and are saved in the real folder
layout, a megabyte or two each.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.support.pipelines import END, WIDTH, _text_encoder, _tokenizer, library

HEADS, HEAD = 2, 16
"""Attention heads and their width; a width of 16 leaves room for the axes of the rotary embeddings."""


def save(folder: Path, kind: str, **scheduler: Any) -> Path:
    """Write the tiny pipeline of a kind (a key of `KINDS`) to a folder, which is returned.

    Args:
        scheduler: options of the scheduler in place of the usual ones of that kind.
    """
    torch.manual_seed(0)
    pipeline, usual, make = KINDS[kind]
    parts = make(folder.with_name(f"{folder.name}-vocabulary"))
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            _liven(part.eval())
    flow = library("diffusers").FlowMatchEulerDiscreteScheduler(**{**usual, **scheduler})
    pipe = getattr(library("diffusers"), pipeline)(scheduler=flow, **parts)
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


def _liven(module: torch.nn.Module) -> None:
    """Give random values to what starts as zeros, such as pad tokens, so that every weight counts."""
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)


def vae() -> Any:
    """The autoencoder of Stable Diffusion 3, FLUX.1 and Z-Image: 16 channels, without quantising layers."""
    made = library("diffusers").AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=16,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.7,
        shift_factor=0.1,
    )
    return _certain(made, made.encoder.conv_out, 16)


def flux2_vae() -> Any:
    """The autoencoder of FLUX.2: 32 channels, normalised by statistics of 2x2 patches."""
    made = library("diffusers").AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 8), latent_channels=32, norm_num_groups=4
    )
    generator = torch.Generator().manual_seed(4)
    made.bn.running_mean = torch.randn(128, generator=generator) / 10
    made.bn.running_var = torch.rand(128, generator=generator) + 0.1
    return _certain(made, made.quant_conv, 32)


def qwen_vae() -> Any:
    """The video autoencoder of Qwen-Image."""
    made = library("diffusers").AutoencoderKLQwenImage(
        base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1
    )
    with torch.no_grad():  # with its own statistics of latents
        made.quant_conv.weight.mul_(5)
    return _certain(made, made.quant_conv, 16)


def _certain(vae: Any, last: Any, channels: int) -> Any:
    """Leave almost no variance in the latents, as with trained weights."""
    with torch.no_grad():
        last.weight[channels:] = 0
        last.bias[channels:] = -30
    return vae


def _t5(folder: Path) -> tuple[Any, Any]:
    transformers = library("transformers")
    config = transformers.T5Config(
        vocab_size=120, d_model=WIDTH, d_kv=8, d_ff=WIDTH, num_layers=1, num_heads=2, is_gated_act=True
    )
    letters = [(f"▁{letter}", -2.0) for letter in "abcxyz"]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *letters]
    tokenizer = transformers.T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=512)
    return transformers.T5EncoderModel(config), tokenizer


def _qwen_tokenizer() -> Any:
    transformers = library("transformers")
    shown = importlib.import_module("tokenizers.pre_tokenizers").ByteLevel.alphabet()
    special = [END, "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    vocab = {word: index for index, word in enumerate([*sorted(shown), *special])}
    tokenizer = transformers.Qwen2Tokenizer(
        vocab=vocab,
        merges=[],
        additional_special_tokens=[*special, "<|video_pad|>"],
        model_max_length=4096,
        chat_template="{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
        "<|im_end|>\n{% endfor %}<|im_start|>assistant\n",
    )
    tokenizer.image_token, tokenizer.video_token = "<|image_pad|>", "<|video_pad|>"
    return tokenizer


def _qwen3(layers: int, tokenizer: Any) -> Any:
    transformers = library("transformers")
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        max_position_embeddings=4096,
    )
    return transformers.Qwen3ForCausalLM(config)


def _qwen_vl(tokenizer: Any) -> Any:
    transformers = library("transformers")
    ids = tokenizer.convert_tokens_to_ids
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "intermediate_size": WIDTH,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
            "bos_token_id": None,
            "eos_token_id": ids(END),
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [0],
        },
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def _sd3(folder: Path) -> dict[str, Any]:
    (third, tokenizer), clip = _t5(folder), _tokenizer(folder)
    transformer = library("diffusers").SD3Transformer2DModel(
        sample_size=32,
        in_channels=16,
        num_layers=2,
        attention_head_dim=HEAD,
        num_attention_heads=HEADS,
        # As published, T5's width is that of both CLIP encoders together, padded with zeros.
        joint_attention_dim=WIDTH * 2,
        caption_projection_dim=HEADS * HEAD,
        pooled_projection_dim=2 * WIDTH,
        out_channels=16,
        pos_embed_max_size=64,
    )
    third = library("transformers").T5EncoderModel(
        library("transformers").T5Config(
            vocab_size=120, d_model=2 * WIDTH, d_kv=8, d_ff=WIDTH, num_layers=1, num_heads=2
        )
    )
    return {
        "transformer": transformer,
        "vae": vae(),
        "text_encoder": _text_encoder(projected=True),
        "tokenizer": clip,
        "text_encoder_2": _text_encoder(projected=True),
        "tokenizer_2": clip,
        "text_encoder_3": third,
        "tokenizer_3": tokenizer,
    }


def _flux(folder: Path, channels: int = 64) -> dict[str, Any]:
    second, tokenizer = _t5(folder)
    transformer = library("diffusers").FluxTransformer2DModel(
        in_channels=channels,
        out_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=HEAD,
        num_attention_heads=HEADS,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    return {
        "transformer": transformer,
        "vae": vae(),
        "text_encoder": _text_encoder(projected=False),
        "tokenizer": _tokenizer(folder),
        "text_encoder_2": second,
        "tokenizer_2": tokenizer,
    }


def _fill(folder: Path) -> dict[str, Any]:
    # Noisy latents, those of the masked picture, and the mask: 64 pixels of each latent, in 2x2 patches.
    return _flux(folder, channels=64 + 64 + 256)


def _klein(folder: Path) -> dict[str, Any]:
    tokenizer = _qwen_tokenizer()
    transformer = library("diffusers").Flux2Transformer2DModel(
        in_channels=128,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=HEAD,
        num_attention_heads=HEADS,
        joint_attention_dim=3 * 8,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    encoder = _qwen3(28, tokenizer)  # the pipeline reads layers 9, 18 and 27
    return {"transformer": transformer, "vae": flux2_vae(), "text_encoder": encoder, "tokenizer": tokenizer}


def _qwen(folder: Path) -> dict[str, Any]:
    tokenizer = _qwen_tokenizer()
    transformer = library("diffusers").QwenImageTransformer2DModel(
        in_channels=64,
        out_channels=16,
        num_layers=2,
        attention_head_dim=HEAD,
        num_attention_heads=HEADS,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    encoder = _qwen_vl(tokenizer)
    return {"transformer": transformer, "vae": qwen_vae(), "text_encoder": encoder, "tokenizer": tokenizer}


def _qwen_edit(folder: Path) -> dict[str, Any]:
    return {**_qwen(folder), "processor": None}  # a real one needs torchvision, and is not loaded


def _z_image(folder: Path) -> dict[str, Any]:
    tokenizer = _qwen_tokenizer()
    transformer = library("diffusers").ZImageTransformer2DModel(
        in_channels=16,
        dim=HEADS * HEAD,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=HEADS,
        n_kv_heads=HEADS,
        cap_feat_dim=8,
        axes_dims=[4, 6, 6],
        axes_lens=[1024, 512, 512],
    )
    encoder = _qwen3(2, tokenizer).model
    return {"transformer": transformer, "vae": vae(), "text_encoder": encoder, "tokenizer": tokenizer}


_DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}

Make = Callable[[Path], dict[str, Any]]
KINDS: dict[str, tuple[str, dict[str, Any], Make]] = {
    "sd3": ("StableDiffusion3InpaintPipeline", {"shift": 3.0}, _sd3),
    "flux-fill": ("FluxFillPipeline", {"shift": 3.0, **_DYNAMIC}, _fill),
    "flux": ("FluxInpaintPipeline", {"shift": 3.0, **_DYNAMIC}, _flux),
    "flux-kontext": ("FluxKontextInpaintPipeline", {"shift": 3.0, **_DYNAMIC}, _flux),
    "flux2-klein": ("Flux2KleinInpaintPipeline", {"shift": 3.0, **_DYNAMIC}, _klein),
    "qwen-image": (
        "QwenImageInpaintPipeline",
        {**_DYNAMIC, "max_shift": 0.9, "max_image_seq_len": 8192, "shift_terminal": 0.02},
        _qwen,
    ),
    "qwen-image-edit": (
        "QwenImageEditInpaintPipeline",
        {**_DYNAMIC, "max_shift": 0.9, "max_image_seq_len": 8192, "shift_terminal": 0.02},
        _qwen_edit,
    ),
    "z-image": ("ZImageInpaintPipeline", {"shift": 3.0}, _z_image),
}
"""By short name: the class of diffusers, the scheduler's options as published, and its other parts."""
