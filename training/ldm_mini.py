"""Trains ldm-mini: a small latent diffusion inpainter on the latents of an autoencoder of our own.

The encoder is that of a run of `autoencoder` and stays fixed, so that `unet` and `decoder` can be trained at
the same time.

`unet` encodes crops once, whole and with a hole, and learns the velocity (v-prediction) at the noise levels
that edits use, mainly in the hole. `decoder` is trained with pyramid L1, and critics and feature matching at
two scales, on latents with varying noise, since denoised latents are never quite those of a picture.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backfire.inpaint import ldm
from backfire.inpaint.encoders import EncoderEditor
from backfire.inpaint.latent import DOWNSCALE
from backfire.perturb.methods.base import mixed_precision
from training import autoencoder, data
from training.latent_pair import draw, encoded
from training.losses import Critics, duel, ema_update, pyramid_l1, weighted
from training.run import (
    Options,
    Run,
    adam,
    averages,
    below_names,
    machine,
    noise,
    prepared,
    recorded,
    save_half,
    set_rate,
)

KNOWN_WEIGHT = 0.1
"""Weight of the loss in known cells, relative to the hole; the network gets the known cells as input."""
STATISTICS_CROPS = 64


def _base(folder: Path) -> EncoderEditor:
    """The autoencoder of a run, on the machine's device."""
    base = autoencoder.load(folder)
    base.to(machine())
    return base


def _made_from(pictures: list[Any], base: EncoderEditor) -> dict[str, Any]:
    return {"photographs": data.digest(pictures), "autoencoder": base.weights_sha256[:16]}


@torch.inference_mode()
def statistics(photos: list[Any], base: EncoderEditor, seed: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each latent channel on seeded crops; 16 each."""
    image, mask = data.draw(photos, STATISTICS_CROPS, 192, np.random.default_rng(seed), machine())
    latents = base.encode(image, torch.zeros_like(mask))
    return latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))


@torch.no_grad()
def normalised(base: EncoderEditor, mean: Tensor, std: Tensor) -> tuple[Any, Any]:
    """The autoencoder's encoder and decoder, adapted to latents of zero mean and a deviation of `ldm.SPREAD`.

    The encoder is exactly the original, scaled and shifted. The decoder differs from the original only in
    that its soft clamp applies to the scaled latents.
    """
    encoder: Any = copy.deepcopy(base.encoder)
    decoder: Any = copy.deepcopy(base.decoder)
    last, first = encoder.layers[-1], decoder.layers[0]
    scale = ldm.SPREAD / std
    last.weight.mul_(scale[:, None, None, None])
    last.bias.sub_(mean).mul_(scale)
    first.bias.add_((first.weight * mean[None, :, None, None]).sum(dim=(1, 2, 3)))
    first.weight.div_(scale[None, :, None, None])
    return encoder, decoder


def unet(photos: Path, source: Path, folder: Path, options: Options, crops: int) -> None:
    """Train the denoising network in `folder`, or resume an interrupted run there.

    Args:
        photos: the folder of photographs.
        source: the folder of a run of `autoencoder`.
        folder: the folder of this run.
        options: its length, seed and batch.
        crops: how many crops to encode in advance.
    """
    pictures, base = data.load(photos), _base(source)
    device, seed, batch = machine(), options.seed, options.batch
    mean, std = (each[:, None, None] for each in statistics(pictures, base, seed))
    file = folder / f"latents-{options.size}-{crops}.safetensors"
    latents = encoded(data.Photographs(pictures), base, file, crops, options)
    schedule = ldm.schedule()
    schedule.set_timesteps(2 * ldm.STEPS)
    levels, kept = schedule.timesteps.to(device), schedule.alphas_cumprod[schedule.timesteps].to(device)
    torch.manual_seed(seed)
    net = prepared(ldm.unet())
    ema = copy.deepcopy(net)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4, betas=(0.9, 0.99), weight_decay=1e-3)
    made_from = {**_made_from(pictures, base), "crops": crops}
    run = Run(folder, options, {"net": net, "ema": ema, "g": optimiser}, made_from)
    run.resume()

    def predicted(net: nn.Module, noisy: Tensor, cells: Tensor, known: Tensor, level: Tensor) -> Tensor:
        seen = torch.cat([noisy, cells, known], dim=1).contiguous(memory_format=torch.channels_last)
        silent = torch.zeros(len(seen), 1, ldm.PROMPT, device=device)
        with mixed_precision(device):
            out: Tensor = net(seen, level, encoder_hidden_states=silent, return_dict=False)[0]
        return out.float()

    def one(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([seed, step])
        picked = torch.from_numpy(rng.integers(0, crops, batch)).to(device)
        truth, known = ((latents[name][picked].float() - mean) / std for name in ("whole", "known"))
        # Pipelines scale the mask down by taking one pixel of each cell, so that a cell on the mask's edge
        # may count either as known or as hole; a random threshold trains both.
        share_needed = torch.from_numpy(rng.uniform(0, 1, (batch, 1, 1, 1)).astype("float32")).to(device)
        cells = (latents["cells"][picked].float() > share_needed).float()
        index = torch.from_numpy(rng.integers(0, len(levels), batch)).to(device)
        signal, share = (f(kept[index])[:, None, None, None] for f in (torch.sqrt, lambda a: (1 - a).sqrt()))
        drawn = noise(truth, seed, step)
        want = signal * drawn - share * truth
        got = predicted(net, signal * truth + share * drawn, cells, known, levels[index])
        squared = (got - want) ** 2
        out = {"hole": weighted(squared, cells), "known": weighted(squared, 1 - cells)}
        set_rate(optimiser, run.rate(1e-3))
        optimiser.zero_grad()
        (out["hole"] + KNOWN_WEIGHT * out["known"]).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        ema_update(ema, net, step)
        return out

    @torch.no_grad()
    def sample() -> Tensor:
        rng = np.random.default_rng([seed + 1])
        image, mask, holed = draw(data.Photographs(pictures), 6, 2 * options.size, rng, device)
        known = (base.encode(holed, mask) - mean) / std
        cells = F.interpolate(mask, scale_factor=1 / DOWNSCALE)
        schedule = ldm.schedule()
        schedule.set_timesteps(ldm.STEPS)
        state = noise(known, seed + 1, 0)
        for level in schedule.timesteps:
            velocity = predicted(ema, state, cells, known, level.expand(len(state)))
            state = schedule.step(velocity, level, state).prev_sample
        got = base.decoder(state * std + mean)
        return torch.stack([image, holed, torch.where(mask > 0.5, got, image)])

    run.loop(one, sample)


def decoder(photos: Path, source: Path, folder: Path, options: Options) -> None:
    """Train the decoder of normalised latents in `folder`, or resume there; arguments as of `unet`.

    It starts from the autoencoder's own decoder.
    """
    pictures, base, device, seed = data.load(photos), _base(source), machine(), options.seed
    encoder, net = normalised(base, *statistics(pictures, base, seed))
    torch.manual_seed(seed)
    net, critic = prepared(net.requires_grad_(True)), prepared(Critics(2))
    encoder = prepared(encoder)
    both = nn.ModuleDict({"encoder": encoder, "decoder": net})
    ema = copy.deepcopy(both)
    opt_g, opt_d = adam([net]), adam([critic])
    run = Run(
        folder,
        options,
        {"net": net, "critic": critic, "ema": ema, "g": opt_g, "d": opt_d},
        _made_from(pictures, base),
    )
    run.resume()
    crops = data.stream(pictures, lambda step: (options.batch, options.size), options, run.step)

    def one(step: int) -> dict[str, Tensor]:
        image, mask = next(crops)
        set_rate(opt_g, run.rate(4e-4))
        set_rate(opt_d, run.rate(4e-4))
        with mixed_precision(device):
            with torch.no_grad():
                latents = encoder(image)
            most = 0.3 * ldm.SPREAD * np.random.default_rng([seed, step]).uniform(0, 1, (len(image), 1, 1, 1))
            strength = torch.from_numpy(most.astype("float32")).to(device)
            got = net(latents + strength * noise(latents, seed, step)).float()
        everywhere = torch.ones_like(mask)
        out = duel(critic, opt_d, image, got, 1 - everywhere, everywhere, step % 4 == 0)
        out["pyramid"] = pyramid_l1(got, image)
        loss = out["pyramid"] + 0.05 * out["g"] + 0.2 * out["fm"]
        opt_g.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        opt_g.step()
        ema_update(ema, both, step)
        return out

    @torch.no_grad()
    def sample() -> Tensor:
        image, _ = data.draw(pictures, 6, 2 * options.size, np.random.default_rng(seed + 1), device)
        latents = encoder(image)
        noisy = latents + 0.1 * noise(latents, seed + 1, 0)
        return torch.stack([image, ema["decoder"](latents), ema["decoder"](noisy)])

    run.loop(one, sample)


def export(runs: Path, target: Path) -> None:
    """Write the averaged weights of both runs as one safetensors file in half precision.

    Raises:
        SystemExit: they were not trained on one autoencoder and, from which the statistics that normalise
            its latents are computed, on the same pictures with one seed.
    """
    one, other = (recorded(runs / name) for name in ("ldm-unet", "ldm-decoder"))
    for what in ("autoencoder", "photographs", "seed"):
        if one and other and one[what] != other[what]:
            told = f"{what} {one[what]} in ldm-unet and {other[what]} in ldm-decoder"
            raise SystemExit(f"{runs}: got {told}, expected one; delete the older run and train it anew")
    save_half(below_names(unet=averages(runs / "ldm-unet")) | averages(runs / "ldm-decoder"), target)
