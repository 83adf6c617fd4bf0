"""latent-mini: first its autoencoder, then its inpainting net on the latents.

`autoencoder`: reconstruction (pyramid L1) with a hinge adversary and feature matching from
the first third on; half of the crops carry a grey hole, since an editor encodes the masked
picture. `inpainter`: one step from (latents of the masked picture, mask) to latents; L1 keeps
the known cells, the adversary and its features shape the hole, and the decoder learns along.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from daemon.editors.latent import DOWNSCALE, HOLE, Decoder, Encoder, InpaintNet
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
from training.run import Run, adam, averaged, prepared, save_half, set_rate


def masked(image: Tensor, mask: Tensor) -> Tensor:
    return image * (1 - mask) + HOLE * mask


def autoencoder(photos: Path, folder: Path, steps: int, seed: int, batch: int, size: int) -> None:
    pictures = data.load(photos)
    torch.manual_seed(seed)
    encoder, decoder, critic = prepared(Encoder()), prepared(Decoder()), prepared(Discriminator())
    ema = copy.deepcopy(nn.ModuleList([encoder, decoder]))
    opt_g, opt_d = adam([encoder, decoder]), adam([critic])
    run = Run(
        folder,
        steps,
        {"encoder": encoder, "decoder": decoder, "critic": critic, "ema": ema, "g": opt_g, "d": opt_d},
    )
    run.resume()

    def one(step: int) -> dict[str, float]:
        rng = next(data.batches(pictures, seed=seed, start=step))[1]
        image, mask = data.draw(pictures, batch, size, rng)
        mask[: batch // 2] = 0
        image = masked(image, mask)
        adversarial = run.progress > 1 / 3
        set_rate(opt_g, run.rate(1e-3 if not adversarial else 6e-4))
        with torch.autocast("cpu", torch.bfloat16):
            latents = encoder(image)
            noise = torch.from_numpy(rng.standard_normal(latents.shape, "float32")) * 0.05
            got = decoder(latents + noise)
        got = got.float()
        out = {"pyramid": pyramid_l1(got, image)}
        loss = out["pyramid"] + 1e-3 * latents.float().pow(2).mean()
        if adversarial:
            set_rate(opt_d, run.rate(2e-4))
            with torch.autocast("cpu", torch.bfloat16):
                real, fake = critic(image), critic(got.detach())
                out["d"] = hinge_d(real[-1].float(), fake[-1].float())
            opt_d.zero_grad()
            out["d"].backward()  # type: ignore[no-untyped-call]
            opt_d.step()
            with torch.autocast("cpu", torch.bfloat16):
                fake = critic(got)
                out["g"] = hinge_g(fake[-1].float())
                out["fm"] = feature_matching(fake, real)
            loss = loss + 0.02 * out["g"] + 0.3 * out["fm"]
        opt_g.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([*encoder.parameters(), *decoder.parameters()], 1.0)
        opt_g.step()
        ema_update(ema, nn.ModuleList([encoder, decoder]), step)
        return {k: float(v.detach()) for k, v in out.items()}

    @torch.no_grad()
    def sample() -> Tensor:
        rng = next(data.batches(pictures, seed=seed + 1, start=0))[1]
        image, mask = data.draw(pictures, 8, size, rng)
        mask[:5] = 0
        image = masked(image, mask)
        return torch.stack([image, ema[1](ema[0](image))])

    run.loop(one, sample)


def load_autoencoder(folder: Path) -> tuple[Encoder, Decoder]:
    """The averaged encoder and decoder of a run of `autoencoder`."""
    encoder, decoder = averaged(folder, nn.ModuleList([Encoder(), Decoder()]))
    return encoder, decoder


def inpainter(photos: Path, source: Path, folder: Path, steps: int, seed: int, batch: int, size: int) -> None:
    pictures = data.load(photos)
    encoder, decoder = load_autoencoder(source)
    encoder.requires_grad_(False)
    torch.manual_seed(seed)
    net, critic = prepared(InpaintNet()), prepared(Critics())
    ema = copy.deepcopy(nn.ModuleList([net, decoder]))
    opt_g, opt_d = adam([net]), adam([critic])
    opt_g.add_param_group({"params": list(decoder.parameters())})
    run = Run(
        folder,
        steps,
        {"net": net, "decoder": decoder, "critic": critic, "ema": ema, "g": opt_g, "d": opt_d},
    )
    run.resume()

    def fill(net: nn.Module, decoder: nn.Module, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        known = encoder(masked(image, mask))
        latents = net(known, F.avg_pool2d(mask, DOWNSCALE))
        return latents, decoder(latents)

    def one(step: int) -> dict[str, float]:
        rng = next(data.batches(pictures, seed=seed, start=step))[1]
        # Two thirds of the steps see crops of twice and thrice the side, for holes as wide as real ones.
        times = 1 + step % 3
        image, mask = data.draw(pictures, max(1, batch // times**2), size * times, rng)
        cells = F.avg_pool2d(mask, DOWNSCALE)
        set_rate(opt_g, run.rate(4e-4))
        opt_g.param_groups[1]["lr"] = run.rate(1e-4)
        set_rate(opt_d, run.rate(3e-4))
        with torch.autocast("cpu", torch.bfloat16):
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
        # Structure keeps weight: the adversary alone fills holes with lattices.
        loss = out["known"] + 0.3 * out["hole"] + 1.0 * out["low"] + 0.1 * out["g"] + 2.0 * out["fm"]
        opt_g.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([*net.parameters(), *decoder.parameters()], 1.0)
        opt_g.step()
        ema_update(ema, nn.ModuleList([net, decoder]), step)
        return {k: float(v.detach()) for k, v in out.items()}

    @torch.no_grad()
    def sample() -> Tensor:
        rng = next(data.batches(pictures, seed=seed + 1, start=0))[1]
        image, mask = data.draw(pictures, 6, 2 * size, rng)
        got = fill(ema[0], ema[1], image, mask)[1]
        return torch.stack([image, masked(image, mask), image * (1 - mask) + got * mask])

    run.loop(one, sample)


def export(source: Path, folder: Path, target: Path) -> None:
    """The averaged weights as one safetensors file in half precision, for `daemon/editors/weights`."""
    encoder, _ = load_autoencoder(source)
    net, decoder = averaged(folder, nn.ModuleList([InpaintNet(), Decoder()]))
    save_half(nn.ModuleDict({"encoder": encoder, "net": net, "decoder": decoder}), target)
