"""Trains lama-mini, a small LaMa generator, nearly as LaMa was trained (WACV 2022, section 3).

The L1 loss covers the known pixels only; inside the hole the critics and feature matching decide. Three
things differ from the published training. LaMa's perceptual loss needs a segmentation network, in whose
place the hole's means over 8x8 pixels get a small L1 loss. The critics are those of `losses`. And they judge
the composite of fill and known pixels, so that a visible seam counts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backfire.inpaint.lama import MINI, Config, Generator
from backfire.perturb.methods.base import mixed_precision
from training import data
from training.losses import Critics, duel, ema_update, weighted
from training.run import Options, Run, adam, averages, machine, prepared, save_half, set_rate


def train(
    photos: Path, folder: Path, options: Options, config: Config = MINI, start: Callable[..., Run] = Run
) -> None:
    """Train in `folder`, or resume an interrupted run there; `start` makes the run."""
    pictures, device, seed = data.load(photos), machine(), options.seed
    torch.manual_seed(seed)
    net, critics = prepared(Generator(config)), prepared(Critics())
    ema = copy.deepcopy(net).eval()
    opt_g, opt_d = adam([net]), adam([critics])
    run = start(
        folder,
        options,
        {"net": net, "critics": critics, "ema": ema, "g": opt_g, "d": opt_d},
        {"photographs": data.digest(pictures), **asdict(config)},
    )
    run.resume()

    def seen(step: int) -> tuple[int, int]:
        # Every other step sees crops of twice the side, so that some holes are as large as real ones.
        times = 1 + step % 2
        return max(1, options.batch // times**2), options.size * times

    crops = data.stream(pictures, seen, options, run.step)

    def fill(net: nn.Module, image: Tensor, mask: Tensor) -> Tensor:
        out: Tensor = net(torch.cat([image * (1 - mask), mask], dim=1))
        return out

    def one(step: int) -> dict[str, Tensor]:
        image, mask = next(crops)
        set_rate(opt_g, run.rate(1e-3))
        set_rate(opt_d, run.rate(3e-4))
        with mixed_precision(device):
            got = fill(net, image, mask)
        whole = image * (1 - mask) + got * mask
        low = (F.avg_pool2d(got, 8) - F.avg_pool2d(image, 8)).abs()
        out = {
            "known": weighted((got - image).abs(), 1 - mask),
            "low": weighted(low, F.max_pool2d(mask, 8)),
        }
        out |= duel(critics, opt_d, image, whole, mask, mask, step // 2 % 4 == 0)
        loss = out["known"] + 0.5 * out["low"] + 0.2 * out["g"] + 0.3 * out["fm"]
        opt_g.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        opt_g.step()
        ema_update(ema, net, step)
        return out

    @torch.no_grad()
    def sample() -> Tensor:
        image, mask = data.draw(pictures, 6, 2 * options.size, np.random.default_rng(seed + 1), device)
        got = fill(ema, image, mask)
        return torch.stack([image, image * (1 - mask), image * (1 - mask) + got * mask])

    run.loop(one, sample)


def export(folder: Path, target: Path) -> None:
    """Write the averaged generator of a run of `train` to a file, with LaMa's published parameter names."""
    save_half(averages(folder), target)
