"""Trains an autoencoder of our own, of which ldm-mini has its latents.

It learns to reconstruct (pyramid L1), and after a third of the run also from critics and feature matching.
Half of the crops have a grey hole, since an editor encodes masked pictures.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from backfire.files.durable import file_sha256
from backfire.inpaint.encoders import EncoderEditor
from backfire.inpaint.latent import HOLE, Decoder, Encoder
from backfire.perturb.methods.base import mixed_precision
from training import data
from training.losses import Critics, duel, ema_update, pyramid_l1
from training.run import Options, Run, adam, averaged, machine, noise, prepared, set_rate

NOISE = 0.05
"""Deviation of the noise on the latents that the decoder learns from; their own is about 0.6."""


def train(photos: Path, folder: Path, options: Options) -> None:
    """Train in `folder`, or resume an interrupted run there."""
    pictures, device, seed = data.load(photos), machine(), options.seed
    torch.manual_seed(seed)
    encoder, decoder, critics = prepared(Encoder()), prepared(Decoder()), prepared(Critics(1))
    ema = copy.deepcopy(nn.ModuleList([encoder, decoder]))
    opt_g, opt_d = adam([encoder, decoder]), adam([critics])
    run = Run(
        folder,
        options,
        {"encoder": encoder, "decoder": decoder, "critics": critics, "ema": ema, "g": opt_g, "d": opt_d},
        {"photographs": data.digest(pictures)},
    )
    run.resume()
    crops = data.stream(pictures, lambda step: (options.batch, options.size), options, run.step)

    def one(step: int) -> dict[str, Tensor]:
        image, mask = next(crops)
        mask[: len(mask) // 2] = 0
        image = torch.lerp(image, torch.full_like(image, HOLE), mask)
        adversarial = run.progress > 1 / 3
        set_rate(opt_g, run.rate(1e-3 if not adversarial else 6e-4))
        with mixed_precision(device):
            latents = encoder(image)
            got = decoder(latents + NOISE * noise(latents, seed, step))
        got = got.float()
        out = {"pyramid": pyramid_l1(got, image)}
        loss = out["pyramid"] + 1e-3 * latents.float().pow(2).mean()
        if adversarial:
            set_rate(opt_d, run.rate(2e-4))
            out |= duel(critics, opt_d, image, got, mask, torch.ones_like(mask), step % 4 == 0)
            loss = loss + 0.05 * out["g"] + 0.2 * out["fm"]
        opt_g.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([*encoder.parameters(), *decoder.parameters()], 1.0)
        opt_g.step()
        ema_update(ema, nn.ModuleList([encoder, decoder]), step)
        return out

    @torch.no_grad()
    def sample() -> Tensor:
        image, mask = data.draw(pictures, 8, options.size, np.random.default_rng(seed + 1), device)
        mask[:5] = 0
        image = torch.lerp(image, torch.full_like(image, HOLE), mask)
        return torch.stack([image, ema[1](ema[0](image))])

    run.loop(one, sample)


def load(folder: Path) -> EncoderEditor:
    """The averaged encoder and decoder of a run of `train`.

    Raises:
        SystemExit: there is no such run.
    """
    file = folder / "last.pt"
    if not file.exists():
        raise SystemExit(f"{file}: no such file; run first: python -m training autoencoder --data PHOTOS")
    encoder, decoder = averaged(folder, nn.ModuleList([Encoder(), Decoder()]))
    return EncoderEditor("autoencoder", file_sha256(file), encoder, decoder)
