"""What differs between diffusers' inpainting pipelines on flow schedules: one entry for each class.

Their transformers predict the velocity from the picture to the noise. They take patches of 2x2 latent cells;
here these are always planes N,C,h,w with C four times the channels of the latents. A family says how its
transformer is called, what of the picture it is given, and how its pipeline embeds prompts, shifts its
schedule and guides. All of it follows the pipelines of diffusers 0.42, and the tests compare the two.

To add a pipeline: an entry in `FAMILIES`, and a tiny pipeline in `tests/support/flows.py`, on which the
contract tests run.

It is one long module because its entries, each of them short, are understood by comparing them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Sees(Enum):
    """What a transformer is given of the picture besides noisy latents."""

    MASKED = "the latents of the masked picture, and the mask, as further channels"
    REFERENCE = "the latents of the whole picture, as further tokens"
    NOTHING = "nothing: the picture is in the noisy latents alone"


@dataclass(frozen=True, eq=False)
class Given:
    """One call of a transformer.

    Attributes:
        noisy, known: N,C,h,w: the noisy latents, and those of the picture.
        mask: N,1,H,W in {0,1}, 1 = repainted.
        time: the time step of the scheduler, 1000 at pure noise; a float32 scalar.
        embeds: the embedded prompt, by the pipeline's names, N,... each.
        guidance: for transformers that take it as a number.
    """

    noisy: Tensor
    known: Tensor
    mask: Tensor
    time: Tensor
    embeds: Mapping[str, Tensor]
    guidance: float

    @property
    def prompt(self) -> Tensor:
        """The embedded tokens of the prompt, N,L,D."""
        return self.embeds["prompt_embeds"]

    def sigma(self, net: Any) -> Tensor:
        """The share of noise, N, in the number format of the network, as the pipelines round it."""
        return self.time.to(net.dtype).expand(len(self.noisy)) / 1000


# Tokens and planes


def _tokens(plane: Tensor, net: Any) -> Tensor:
    """N,C,h,w -> N,hw,C in the network's number format."""
    return plane.flatten(2).transpose(1, 2).to(net.dtype)


def _plane(tokens: Tensor, like: Tensor) -> Tensor:
    """N,hw|more,C -> N,C,h,w, from the first tokens."""
    height, width = like.shape[2:]
    return tokens[:, : height * width].transpose(1, 2).reshape(len(tokens), -1, height, width)


def _positions(plane: Tensor, axes: int, first: int = 0) -> Tensor:
    """hw,axes: the position of each cell: `first` on axis 0, then its row and column, then zeros."""
    height, width = plane.shape[2:]
    rows, columns = torch.meshgrid(
        torch.arange(height, device=plane.device), torch.arange(width, device=plane.device), indexing="ij"
    )
    ids = torch.zeros(height * width, axes, device=plane.device)
    ids[:, 0], ids[:, 1], ids[:, 2] = first, rows.flatten(), columns.flatten()
    return ids


def _nearest(mask: Tensor, latents: Tensor) -> Tensor:
    """The mask at each of the 2x2 latent cells of a patch, by the nearest pixel: N,C,h,w."""
    height, width = latents.shape[2:]
    cells = F.interpolate(mask, size=(2 * height, 2 * width))
    return F.pixel_unshuffle(cells, 2).repeat(1, latents.shape[1] // 4, 1, 1)


def _bilinear(mask: Tensor, latents: Tensor) -> Tensor:
    """The mask at each patch, N,1,h,w: soft where its edge falls between the pixels that are looked at."""
    return F.interpolate(mask, size=latents.shape[2:], mode="bilinear")


# Schedules


def _by_length(config: Any, tokens: int, steps: int) -> float:
    """A straight line through the shifts for the smallest and the largest picture of the training."""
    short, long = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return float(low + (high - low) * (tokens - short) / (long - short))


def _by_length_and_steps(config: Any, tokens: int, steps: int) -> float:
    """FLUX.2's: between one straight line for 10 steps and another for 200."""
    many = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return many
    few = 8.73809524e-05 * tokens + 1.89833333
    return few + (many - few) * (steps - 10) / 190


# Guidance


def _away(positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    return negative + scale * (positive - negative)


def _away_at_equal_norm(positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    """Qwen-Image's: the norm of each token stays."""
    guided = _away(positive, negative, scale)
    before, after = (each.square().sum(dim=1, keepdim=True).sqrt() for each in (positive, guided))
    return guided * (before / after)


def _beyond(positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    """Z-Image counts the scale from 0."""
    return positive + scale * (positive - negative)


def _patch(channels: int) -> int:
    return 4 * channels


def _cell(channels: int) -> int:
    return channels


@dataclass(frozen=True, kw_only=True)
class FlowFamily:
    """One class of inpainting pipelines; an entry says where it differs from most.

    Attributes:
        pipeline: diffusers' class.
        also: other classes by which folders with the same weights are named.
        velocity: (transformer, `Given`) -> the velocity N,C,h,w.
        embed: (pipeline, text) -> the embedded prompt, 1,... each, by the pipeline's names.
        sees: what of the picture the transformer is given.
        channels: channels of the latents -> those that the transformer takes.
        mu: (scheduler's configuration, tokens of the picture, steps) -> the shift of the schedule, for
            schedulers that shift by the size of the picture.
        combine: (velocity, velocity under the negative prompt, scale) -> the guided one; None where guidance
            is a number that the transformer takes.
        idle: up to this scale there is no such guidance.
        cells: (mask N,1,H,W, latents N,C,h,w) -> the mask at the latents, N,C|1,h,w.
        spaced: whether the pipeline gives the scheduler equal steps of sigma; else the scheduler spaces them.
        joint: the module list whose first block has text and picture attend to each other.
        picture_first: whether the picture's tokens come before the prompt's in that block.
        unused: components that are not loaded.
        steps, guidance, strength: what an edit takes if the configuration does not say.
    """

    pipeline: str
    also: tuple[str, ...] = ()
    velocity: Callable[[Any, Given], Tensor]
    embed: Callable[[Any, str], dict[str, Tensor]]
    sees: Sees
    channels: Callable[[int], int] = _patch
    mu: Callable[[Any, int, int], float] = _by_length
    combine: Callable[[Tensor, Tensor, float], Tensor] | None = None
    idle: float = 0
    cells: Callable[[Tensor, Tensor], Tensor] = _nearest
    spaced: bool = True
    joint: str = "transformer_blocks"
    picture_first: bool = False
    unused: tuple[str, ...] = ()
    steps: int = 28
    guidance: float
    strength: float


# Stable Diffusion 3


def _sd3(net: Any, given: Given) -> Tensor:
    out: Tensor = net(
        hidden_states=F.pixel_shuffle(given.noisy, 2).to(net.dtype),
        timestep=given.time.expand(len(given.noisy)),
        encoder_hidden_states=given.prompt,
        pooled_projections=given.embeds["pooled_prompt_embeds"],
        return_dict=False,
    )[0]
    return F.pixel_unshuffle(out, 2)


def _sd3_embed(pipe: Any, text: str) -> dict[str, Tensor]:
    embeds, _, pooled, _ = pipe.encode_prompt(
        prompt=text, prompt_2=None, prompt_3=None, device="cpu", do_classifier_free_guidance=False
    )
    return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}


# FLUX.1


def _flux(net: Any, given: Given, *, extra: Tensor | None = None, reference: bool = False) -> Tensor:
    """The velocity; `extra` N,hw,D is joined to the channels of the tokens."""
    noisy, prompt = given.noisy, given.prompt
    tokens, positions = _tokens(noisy, net), _positions(noisy, 3)
    if extra is not None:
        tokens = torch.cat([tokens, extra], dim=2)
    if reference:
        tokens = torch.cat([tokens, _tokens(given.known, net)], dim=1)
        positions = torch.cat([positions, _positions(given.known, 3, first=1)])
    guidance = torch.full([len(noisy)], given.guidance, device=noisy.device)
    out: Tensor = net(
        hidden_states=tokens,
        timestep=given.sigma(net),
        guidance=guidance if net.config.guidance_embeds else None,
        pooled_projections=given.embeds["pooled_prompt_embeds"],
        encoder_hidden_states=prompt,
        txt_ids=torch.zeros(prompt.shape[1], 3, device=prompt.device),
        img_ids=positions,
        return_dict=False,
    )[0]
    return _plane(out, noisy)


def _flux_fill(net: Any, given: Given) -> Tensor:
    # The mask in full: the 8x8 pixels of a cell become channels, then the 2x2 cells of a patch.
    side = given.mask.shape[-1] // given.noisy.shape[-1] // 2
    mask = F.pixel_unshuffle(F.pixel_unshuffle(given.mask, side), 2)
    return _flux(net, given, extra=torch.cat([_tokens(given.known, net), _tokens(mask, net)], dim=2))


def _flux_kontext(net: Any, given: Given) -> Tensor:
    return _flux(net, given, reference=True)


def _flux_embed(pipe: Any, text: str) -> dict[str, Tensor]:
    embeds, pooled, _ = pipe.encode_prompt(prompt=text, prompt_2=None, device="cpu")
    return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}


# FLUX.2


def _flux2(net: Any, given: Given) -> Tensor:
    noisy, prompt = given.noisy, given.prompt
    text = torch.zeros(prompt.shape[1], 4, device=prompt.device)
    text[:, 3] = torch.arange(prompt.shape[1])
    out: Tensor = net(
        hidden_states=torch.cat([_tokens(noisy, net), _tokens(given.known, net)], dim=1),
        timestep=given.sigma(net),
        guidance=None,
        encoder_hidden_states=prompt,
        txt_ids=text,
        img_ids=torch.cat([_positions(noisy, 4), _positions(given.known, 4, first=10)]),
        return_dict=False,
    )[0]
    return _plane(out, noisy)


def _flux2_embed(pipe: Any, text: str) -> dict[str, Tensor]:
    return {"prompt_embeds": pipe.encode_prompt(prompt=text, device="cpu")[0]}


# Qwen-Image


def _qwen(net: Any, given: Given, *, reference: bool = False) -> Tensor:
    noisy = given.noisy
    planes = [noisy, given.known] if reference else [noisy]
    out: Tensor = net(
        hidden_states=torch.cat([_tokens(plane, net) for plane in planes], dim=1),
        timestep=given.sigma(net),
        guidance=None,
        encoder_hidden_states_mask=None,
        encoder_hidden_states=given.prompt,
        img_shapes=[[(1, *plane.shape[2:]) for plane in planes]] * len(noisy),
        return_dict=False,
    )[0]
    return _plane(out, noisy)


def _qwen_edit(net: Any, given: Given) -> Tensor:
    return _qwen(net, given, reference=True)


def _qwen_embed(pipe: Any, text: str) -> dict[str, Tensor]:
    return {"prompt_embeds": pipe.encode_prompt(prompt=text, device="cpu", max_sequence_length=512)[0]}


def _qwen_edit_embed(pipe: Any, text: str) -> dict[str, Tensor]:
    """The prompt without what the language model sees of the picture.

    The pipeline shows it the picture, too. Here prompts are embedded once for all pictures.
    """
    template, start = pipe.prompt_template_encode, pipe.prompt_template_encode_start_idx
    template = template.replace("<|vision_start|><|image_pad|><|vision_end|>", "")
    tokens = pipe.tokenizer(template.format(text), return_tensors="pt")
    out = pipe.text_encoder(
        input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True
    )
    return {"prompt_embeds": out.hidden_states[-1][:, start:]}


# Z-Image


def _z_image(net: Any, given: Given) -> Tensor:
    latents = F.pixel_shuffle(given.noisy, 2).to(net.dtype)[:, :, None]
    time = (1000 - given.time.expand(len(latents))) / 1000
    out = net(list(latents), time, list(given.prompt))[0]
    # The network predicts the velocity from the noise to the picture.
    return -F.pixel_unshuffle(torch.stack([each.float() for each in out])[:, :, 0], 2)


def _z_image_embed(pipe: Any, text: str) -> dict[str, Tensor]:
    embeds, _ = pipe.encode_prompt(prompt=text, device="cpu", do_classifier_free_guidance=False)
    return {"prompt_embeds": embeds[0][None]}


_ENCODERS = ("image_encoder", "feature_extractor")
"""Components for pictures as prompts."""

FAMILIES = (
    FlowFamily(
        pipeline="StableDiffusion3InpaintPipeline",
        also=("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline"),
        velocity=_sd3,
        embed=_sd3_embed,
        sees=Sees.NOTHING,
        channels=_cell,
        combine=_away,
        idle=1,
        spaced=False,
        picture_first=True,
        unused=_ENCODERS,
        guidance=7.0,
        strength=0.85,
    ),
    FlowFamily(
        pipeline="FluxFillPipeline",
        velocity=_flux_fill,
        embed=_flux_embed,
        sees=Sees.MASKED,
        # Besides the latents and those of the masked picture, 8x8 pixels of the mask for each cell.
        channels=lambda channels: 4 * (2 * channels + 64),
        unused=_ENCODERS,
        guidance=30.0,
        strength=1.0,
    ),
    FlowFamily(
        pipeline="FluxInpaintPipeline",
        also=("FluxPipeline", "FluxImg2ImgPipeline"),
        velocity=_flux,
        embed=_flux_embed,
        sees=Sees.NOTHING,
        unused=_ENCODERS,
        guidance=7.0,
        strength=0.85,
    ),
    FlowFamily(
        pipeline="FluxKontextInpaintPipeline",
        also=("FluxKontextPipeline",),
        velocity=_flux_kontext,
        embed=_flux_embed,
        sees=Sees.REFERENCE,
        unused=_ENCODERS,
        guidance=3.5,
        strength=1.0,
    ),
    FlowFamily(
        pipeline="Flux2KleinInpaintPipeline",
        also=("Flux2KleinPipeline",),
        velocity=_flux2,
        embed=_flux2_embed,
        sees=Sees.REFERENCE,
        mu=_by_length_and_steps,
        combine=_away,
        idle=1,
        cells=_bilinear,
        steps=4,
        guidance=4.0,
        strength=1.0,
    ),
    FlowFamily(
        pipeline="QwenImageInpaintPipeline",
        also=("QwenImagePipeline", "QwenImageImg2ImgPipeline"),
        velocity=_qwen,
        embed=_qwen_embed,
        sees=Sees.NOTHING,
        combine=_away_at_equal_norm,
        idle=1,
        guidance=4.0,
        strength=0.85,
    ),
    FlowFamily(
        pipeline="QwenImageEditInpaintPipeline",
        also=("QwenImageEditPipeline",),
        velocity=_qwen_edit,
        embed=_qwen_edit_embed,
        sees=Sees.REFERENCE,
        combine=_away_at_equal_norm,
        idle=1,
        unused=("processor",),
        guidance=4.0,
        strength=1.0,
    ),
    FlowFamily(
        pipeline="ZImageInpaintPipeline",
        also=("ZImagePipeline", "ZImageImg2ImgPipeline"),
        velocity=_z_image,
        embed=_z_image_embed,
        sees=Sees.NOTHING,
        channels=_cell,
        combine=_beyond,
        joint="layers",
        picture_first=True,
        steps=8,
        guidance=0.0,
        strength=0.85,
    ),
)

BY_CLASS = {name: family for family in FAMILIES for name in (family.pipeline, *family.also)}
"""By class in model_index.json."""
