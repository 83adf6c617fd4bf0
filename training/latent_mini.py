"""latent-mini: first its autoencoder, then its inpainting net on the latents.

`autoencoder`: reconstruction (pyramid L1) with a hinge adversary and feature matching from
the first third on; half of the crops carry a grey hole, since an editor encodes the masked
picture. `inpainter`: one step from (latents of the masked picture, mask) to latents; L1 keeps
the known cells, the adversary and its features shape the hole, and the decoder learns along.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from daemon.editors.latent import DOWNSCALE, HOLE, Decoder, Encoder, InpaintNet
from training import data
from training.losses import (
    Critics,
    Discriminator,
    ema_update,
    feature_matching,
    hinge_d,
    hinge_g,
    pyramid_l1,
    weighted,
)
from training.run import Run


def _prepared(module: nn.Module) -> Any:
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _adam(parts: list[nn.Module]) -> torch.optim.Adam:
    return torch.optim.Adam([p for m in parts for p in m.parameters()], lr=1e-4, betas=(0.5, 0.99))


def _set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def masked(image: Tensor, mask: Tensor) -> Tensor:
    return image * (1 - mask) + HOLE * mask


def autoencoder(photos: Path, folder: Path, steps: int, seed: int, batch: int, size: int) -> None:
    pictures = data.load(photos)
    torch.manual_seed(seed)
    encoder, decoder, critic = _prepared(Encoder()), _prepared(Decoder()), _prepared(Discriminator())
    ema = copy.deepcopy(nn.ModuleList([encoder, decoder]))
    opt_g, opt_d = _adam([encoder, decoder]), _adam([critic])
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
        _set_rate(opt_g, run.rate(1e-3 if not adversarial else 6e-4))
        with torch.autocast("cpu", torch.bfloat16):
            latents = encoder(image)
            noise = torch.from_numpy(rng.standard_normal(latents.shape, "float32")) * 0.05
            got = decoder(latents + noise)
        got = got.float()
        out = {"pyramid": pyramid_l1(got, image)}
        loss = out["pyramid"] + 1e-3 * latents.float().pow(2).mean()
        if adversarial:
            _set_rate(opt_d, run.rate(2e-4))
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
    pair = nn.ModuleList([Encoder(), Decoder()])
    pair.load_state_dict(torch.load(folder / "last.pt", weights_only=True)["parts"]["ema"])
    return _prepared(pair[0]), _prepared(pair[1])


def inpainter(photos: Path, source: Path, folder: Path, steps: int, seed: int, batch: int, size: int) -> None:
    pictures = data.load(photos)
    encoder, decoder = load_autoencoder(source)
    encoder.requires_grad_(False)
    torch.manual_seed(seed)
    net, critic = _prepared(InpaintNet()), _prepared(Critics())
    ema = copy.deepcopy(nn.ModuleList([net, decoder]))
    opt_g, opt_d = _adam([net]), _adam([critic])
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
        _set_rate(opt_g, run.rate(4e-4))
        opt_g.param_groups[1]["lr"] = run.rate(1e-4)
        _set_rate(opt_d, run.rate(3e-4))
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
        with torch.autocast("cpu", torch.bfloat16):
            real, fake = critic(image), critic(whole.detach())
            pairs = list(zip(real, fake, strict=True))
            out["d"] = torch.stack([hinge_d(r[-1].float(), f[-1].float(), mask) for r, f in pairs]).mean()
        opt_d.zero_grad()
        out["d"].backward()  # type: ignore[no-untyped-call]
        opt_d.step()
        with torch.autocast("cpu", torch.bfloat16):
            pairs = list(zip(real, critic(whole), strict=True))
            out["g"] = torch.stack([hinge_g(f[-1].float(), mask) for _, f in pairs]).mean()
            out["fm"] = torch.stack([feature_matching(f, r, mask) for r, f in pairs]).mean()
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
    pair = nn.ModuleList([InpaintNet(), Decoder()])
    pair.load_state_dict(torch.load(folder / "last.pt", weights_only=True)["parts"]["ema"])
    parts = nn.ModuleDict({"encoder": encoder, "net": pair[0], "decoder": pair[1]})
    state = {name: value.half().contiguous() for name, value in parts.state_dict().items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, target)
