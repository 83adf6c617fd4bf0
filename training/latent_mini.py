"""latent-mini: first its autoencoder, then its inpainting net on the latents.

`autoencoder`: reconstruction (pyramid L1) with a hinge adversary and feature matching from
the first third on; half of the crops carry a grey hole, since an editor encodes the masked
picture. `inpainter`: one step from (latents of the masked picture, mask) to latents; L1 keeps
the known cells, the adversary and its features shape the hole, and the decoder learns along.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from daemon.editors.latent import DOWNSCALE, HOLE, Decoder, Encoder, InpaintNet
from daemon.methods.base import fast
from training import data
from training.losses import (
    Critics,
    Discriminator,
    duel,
    ema_update,
    feature_matching,
    hinge_d,
    hinge_g,
    pyramid_l1,
    weighted,
)
from training.run import Options, Run, adam, averaged, machine, noise, prepared, save_half, set_rate


def masked(image: Tensor, mask: Tensor) -> Tensor:
    return image * (1 - mask) + HOLE * mask


def autoencoder(photos: Path, folder: Path, options: Options) -> None:
    """Train in `folder`; interrupted, it goes on from there."""
    pictures, device, seed = data.load(photos), machine(), options.seed
    torch.manual_seed(seed)
    encoder, decoder, critic = prepared(Encoder()), prepared(Decoder()), prepared(Discriminator())
    ema = copy.deepcopy(nn.ModuleList([encoder, decoder]))
    opt_g, opt_d = adam([encoder, decoder]), adam([critic])
    run = Run(
        folder,
        options,
        {"encoder": encoder, "decoder": decoder, "critic": critic, "ema": ema, "g": opt_g, "d": opt_d},
    )
    run.resume()
    crops = data.stream(pictures, lambda step: (options.batch, options.size), options, run.step)

    def one(step: int) -> dict[str, Tensor]:
        image, mask = next(crops)
        mask[: len(mask) // 2] = 0
        image = masked(image, mask)
        adversarial = run.progress > 1 / 3
        set_rate(opt_g, run.rate(1e-3 if not adversarial else 6e-4))
        with fast(device):
            latents = encoder(image)
            got = decoder(latents + 0.05 * noise(latents, seed, step))
        got = got.float()
        out = {"pyramid": pyramid_l1(got, image)}
        loss = out["pyramid"] + 1e-3 * latents.float().pow(2).mean()
        if adversarial:
            set_rate(opt_d, run.rate(2e-4))
            with fast(device):
                real, fake = critic(image), critic(got.detach())
                out["d"] = hinge_d(real[-1].float(), fake[-1].float())
            opt_d.zero_grad()
            out["d"].backward()  # type: ignore[no-untyped-call]
            opt_d.step()
            with fast(device):
                fake = critic(got)
                out["g"] = hinge_g(fake[-1].float())
                out["fm"] = feature_matching(fake, real)
            loss = loss + 0.05 * out["g"] + 1.0 * out["fm"]
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
        image = masked(image, mask)
        return torch.stack([image, ema[1](ema[0](image))])

    run.loop(one, sample)


def load_autoencoder(folder: Path) -> tuple[Encoder, Decoder]:
    """The averaged encoder and decoder of a run of `autoencoder`."""
    encoder, decoder = averaged(folder, nn.ModuleList([Encoder(), Decoder()]))
    return encoder, decoder


def inpainter(photos: Path, source: Path, folder: Path, options: Options) -> None:
    """Train in `folder` on the autoencoder trained in `source`; interrupted, it goes on from there."""
    pictures, device, seed = data.load(photos), machine(), options.seed
    encoder, decoder = load_autoencoder(source)
    encoder.requires_grad_(False)
    torch.manual_seed(seed)
    net, critic = prepared(InpaintNet()), prepared(Critics(3))
    ema = copy.deepcopy(nn.ModuleList([net, decoder]))
    opt_g, opt_d = adam([net]), adam([critic])
    opt_g.add_param_group({"params": list(decoder.parameters())})
    run = Run(
        folder,
        options,
        {"net": net, "decoder": decoder, "critic": critic, "ema": ema, "g": opt_g, "d": opt_d},
    )
    run.resume()

    def seen(step: int) -> tuple[int, int]:
        # Two thirds of the steps see crops of twice and thrice the side, for holes as wide as real ones.
        times = 1 + step % 3
        return max(1, options.batch // times**2), options.size * times

    crops = data.stream(pictures, seen, options, run.step)

    def fill(net: nn.Module, decoder: nn.Module, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        known = encoder(masked(image, mask))
        latents = net(known, F.avg_pool2d(mask, DOWNSCALE))
        return latents, decoder(latents)

    def one(step: int) -> dict[str, Tensor]:
        image, mask = next(crops)
        cells = F.avg_pool2d(mask, DOWNSCALE)
        set_rate(opt_g, run.rate(4e-4))
        opt_g.param_groups[1]["lr"] = run.rate(1e-4)
        set_rate(opt_d, run.rate(3e-4))
        with fast(device):
            with torch.no_grad():
                truth = encoder(image).float()
            latents, got = fill(net, decoder, image, mask)
        latents, got = latents.float(), got.float()
        whole = image * (1 - mask) + got * mask
        diff = (latents - truth).abs()
        pixel = (got - image).abs()
        low = (F.avg_pool2d(got, 8) - F.avg_pool2d(image, 8)).abs()
        out = {
            "known": weighted(diff, (cells == 0).float()) + 2 * weighted(pixel, 1 - mask),
            "hole": weighted(diff, (cells > 0).float()),
            "low": weighted(low, (cells > 0).float()),
        }
        out |= duel(critic, opt_d, image, whole, mask)
        # Structure keeps weight, though less and less: the adversary alone fills holes with lattices.
        structure = 1 - 0.7 * run.progress
        shaped = structure * (0.3 * out["hole"] + 1.0 * out["low"])
        loss = out["known"] + shaped + (0.2 - 0.1 * structure) * out["g"] + 2.0 * out["fm"]
        opt_g.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([*net.parameters(), *decoder.parameters()], 1.0)
        opt_g.step()
        ema_update(ema, nn.ModuleList([net, decoder]), step)
        return out

    @torch.no_grad()
    def sample() -> Tensor:
        image, mask = data.draw(pictures, 6, 2 * options.size, np.random.default_rng(seed + 1), device)
        got = fill(ema[0], ema[1], image, mask)[1]
        return torch.stack([image, masked(image, mask), image * (1 - mask) + got * mask])

    run.loop(one, sample)


def export(source: Path, folder: Path, target: Path) -> None:
    """The averaged weights as one safetensors file in half precision, for `daemon/editors/weights`."""
    encoder, _ = load_autoencoder(source)
    net, decoder = averaged(folder, nn.ModuleList([InpaintNet(), Decoder()]))
    save_half(nn.ModuleDict({"encoder": encoder, "net": net, "decoder": decoder}), target)
