"""Trains an inpainting net (`InpaintNet`) on the latents of a published autoencoder.

Only the net is trained and exported, nothing of the autoencoder. Since that stays fixed, every crop is
encoded just once, whole and with a hole, and the net trains on latents alone, about twenty times faster
than through pixels. The known cells have an L1 loss; the hole has a small L1 loss, an adversarial hinge loss
from a critic of latents, and feature matching.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL.Image import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from backfire.inpaint.base import Latent
from backfire.inpaint.encoders import EncoderEditor
from backfire.inpaint.latent import DOWNSCALE, HOLE, InpaintNet
from backfire.perturb.methods.base import mixed_precision
from training import data
from training.losses import at, ema_update, weighted
from training.run import Options, Run, adam, machine, prepared, set_rate, weights_of

WIDTH = 96, 144
"""The net's outer and inner channels: 2.3 M parameters, 4.6 MB, small enough to ship with the package."""
CHUNK = 16
SHOWN = 6


class LatentCritic(nn.Module):
    """Patch discriminator of latents (11 cells or 88 pixels wide); returns all features, logits last."""

    def __init__(self, latent: int, width: int = 128) -> None:
        super().__init__()
        plan = [(latent, width, 1), (width, width, 2), (width, width, 1)]
        self.layers = nn.ModuleList(
            spectral_norm(nn.Conv2d(a, b, 3, stride=s, padding=1)) for a, b, s in plan
        )
        self.head = spectral_norm(nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return [*features, self.head(x)]


def feature_matching(got: list[Tensor], want: list[Tensor], hole: Tensor) -> Tensor:
    """How far the critic's features are from those of the true latents, in the hole; elsewhere both agree."""
    differences = [(a - b.detach()).abs() for a, b in zip(got[:-1], want[:-1], strict=True)]
    return torch.stack([weighted(each, at(hole, each)) for each in differences]).mean()


def hinge_d(real: Tensor, fake: Tensor, hole: Tensor) -> Tensor:
    """The critic's hinge loss; of the fake only the hole is judged, since the rest of it is true."""
    return F.relu(1 - real).mean() + weighted(F.relu(1 + fake), at(hole, fake))


def hinge_g(fake: Tensor, hole: Tensor) -> Tensor:
    return -weighted(fake, at(hole, fake))


def draw(
    pictures: list[Image], count: int, size: int, rng: np.random.Generator, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Random crops N,3,S,S in [0,1], their masks N,1,S,S (1 = hole), and the crops with grey holes."""
    image, mask = data.draw(pictures, count, size, rng, device)
    return image, mask, torch.where(mask > 0.5, HOLE, image)


@torch.inference_mode()
def encoded(
    pictures: list[Image], pair: Latent, file: Path, count: int, options: Options
) -> dict[str, Tensor]:
    """Latents of `count` seeded crops, in half precision, on the machine's device.

    They are cached in `file`, which is read instead if it was made with the same settings.

    Returns:
        `whole` and `known` N,C,h,w: latents of the crops without and with their holes. `cells` N,1,h,w: how
        much of each latent cell is hole.
    """
    seed, size, device = options.seed, options.size, machine()
    facts = {"encoder": pair.weights_sha256, "count": str(count), "seed": str(seed), "size": str(size)}
    if file.exists():
        with safe_open(file, "pt") as kept:
            if kept.metadata() == facts:
                return {name: kept.get_tensor(name).to(device) for name in kept.keys()}  # noqa: SIM118  (no mapping)
    parts: dict[str, list[Tensor]] = {"whole": [], "known": [], "cells": []}
    for start in range(0, count, CHUNK):
        rng = np.random.default_rng([seed, start])
        image, mask, holed = draw(pictures, min(CHUNK, count - start), size, rng, device)
        with mixed_precision(device):
            parts["whole"].append(pair.encode(image, torch.zeros_like(mask)).half())
            parts["known"].append(pair.encode(holed, mask).half())
        parts["cells"].append(F.avg_pool2d(mask, DOWNSCALE).half())
        if start % (CHUNK * 20) == 0:
            print(f"encoded {start} of {count} crops", flush=True)
    latents = {name: torch.cat(tensors).contiguous() for name, tensors in parts.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.cpu() for name, value in latents.items()}, file, facts)
    return latents


def inpainter(
    photos: Path,
    pair_paths: Sequence[Path],
    folder: Path,
    options: Options,
    crops: int,
    start: Path | None = None,
) -> None:
    """Train in `folder`, or resume an interrupted run there.

    Args:
        pair_paths: encoder and decoder of the autoencoder.
        crops: how many crops to encode in advance.
        start: the safetensors file of an editor with a net to go on from, or of a net alone.
    """
    pictures, device, seed = data.load(photos), machine(), options.seed
    pair = EncoderEditor.load("pair", pair_paths)
    pair.to(device)
    latents = encoded(pictures, pair, folder / "latents.safetensors", crops, options)
    channels = latents["whole"].shape[1]
    torch.manual_seed(seed)
    net, critic = prepared(InpaintNet(channels, WIDTH)), prepared(LatentCritic(channels))
    if start is not None:
        net.load_state_dict(weights_of(start, "net"))
    ema = copy.deepcopy(net)
    opt_g, opt_d = adam([net]), adam([critic])
    run = Run(folder, options, {"net": net, "critic": critic, "ema": ema, "g": opt_g, "d": opt_d})
    run.resume()

    def one(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([seed, step])
        picked = torch.from_numpy(rng.integers(0, crops, options.batch)).to(device)
        truth, known, cells = (latents[name][picked].float() for name in ("whole", "known", "cells"))
        hole = (cells > 0).float()
        set_rate(opt_g, run.rate(4e-4))
        set_rate(opt_d, run.rate(3e-4))
        with mixed_precision(device):
            got = net(known, cells).float()
            filled = torch.lerp(truth, got, hole)
            real, fake = critic(truth), critic(filled.detach())
            judged = hinge_d(real[-1].float(), fake[-1].float(), hole)
        opt_d.zero_grad()
        judged.backward()  # type: ignore[no-untyped-call]
        opt_d.step()
        difference = (got - truth).abs()
        out = {"known": weighted(difference, 1 - hole), "hole": weighted(difference, hole), "d": judged}
        with mixed_precision(device):
            fake = critic(filled)
            out["g"] = hinge_g(fake[-1].float(), hole)
            out["fm"] = feature_matching(fake, real, hole)
        loss = out["known"] + 0.3 * out["hole"] + 0.1 * out["g"] + 2.0 * out["fm"]
        opt_g.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        opt_g.step()
        ema_update(ema, net, step)
        return out

    @torch.no_grad()
    def sample() -> Tensor:
        rng = np.random.default_rng([seed + 1])
        image, mask, holed = draw(pictures, SHOWN, 2 * options.size, rng, device)
        got = pair.decoder(ema(pair.encode(holed, mask), F.avg_pool2d(mask, DOWNSCALE)))
        return torch.stack([image, holed, torch.where(mask > 0.5, got, image)])

    run.loop(one, sample)


def export(folder: Path, target: Path) -> None:
    """Write the averaged net of a run as a safetensors file in half precision, for kind `inpainter`."""
    state: dict[str, Tensor] = torch.load(folder / "last.pt", "cpu", weights_only=True)["parts"]["ema"]
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half().contiguous() for name, value in state.items()}, target)
