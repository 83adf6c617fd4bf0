"""Trains an inpainting net (`InpaintNet`) on the latents of a published autoencoder.

Only the net is trained and exported, nothing of the autoencoder. Since that stays fixed, every crop is
encoded just once, whole and with a hole, and the net trains on latents alone, about twenty times faster
than through pixels. The known cells have an L1 loss. The hole has a small L1 loss, one of its latents' means
and one of its colours, and two critics of latents with feature matching, see `losses.duel`.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL.Image import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from backfire.inpaint.base import Latent
from backfire.inpaint.encoders import EncoderEditor
from backfire.inpaint.hardware import memory_kept
from backfire.inpaint.latent import DOWNSCALE, HOLE, InpaintNet
from backfire.perturb.methods.base import mixed_precision
from training import data
from training.data import Photographs
from training.losses import Critics, duel, ema_update, weighted
from training.run import Options, Run, adam, averages, machine, prepared, save_half, set_rate, weights_of

WIDTH = 96, 144
"""The net's outer and inner channels: 2.3 M parameters, 4.6 MB, small enough to ship with the package."""
PENALTY = 2e-4
"""Weight of the critics' squared gradient on true latents, times their cells."""
PENALISED = 16
"""The penalty is applied once in so many steps."""
CHUNK = 16
PORTRAITS = 0.4
"""The share of crops that show portraits, where there are any."""
DRAWN = "crops: 45 % toned, 10 % plain; holes: half of them small; 40 % of portraits, with holes over faces"
"""How crops and their holes are drawn, kept beside their latents."""
FITTED = 96
"""Crops to which `colours` is fitted."""
SHOWN = 6


class LatentCritic(nn.Module):
    """Patch discriminator of latents N,C,h,w (15 cells or 120 pixels wide) and their mask N,1,h,w.

    It is also given the latents' grain, what a mean over 3x3 cells takes away, since blurred fills lack it.
    Returns all features, logits last.
    """

    def __init__(self, latent: int, width: int = 128) -> None:
        super().__init__()
        plan = [(2 * latent + 1, width, 1), (width, width, 2), (width, width, 1)]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, stride=s, padding=1) for a, b, s in plan)
        self.head = nn.Conv2d(width, 1, 3, padding=1)
        for name, parameter in self.layers.named_parameters():
            if name.endswith("weight"):
                nn.init.kaiming_normal_(parameter, 0.2)

    def forward(self, latents: Tensor, mask: Tensor) -> list[Tensor]:
        grain = latents - F.avg_pool2d(F.pad(latents, (1, 1, 1, 1), mode="replicate"), 3, 1)
        features, x = [], torch.cat([latents, grain, mask], dim=1)
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return [*features, self.head(x)]


def coarse(difference: Tensor, hole: Tensor) -> Tensor:
    """L1 of the means over 4x4 cells of a hole: whether its colours are right, whatever their detail.

    Args:
        difference: N,C,h,w, of latents or colours from the true ones.
        hole: N,1,h,w in {0,1}, 1 = hole; what lies outside does not count.
    """
    share = F.avg_pool2d(hole, 4, ceil_mode=True, count_include_pad=False)
    mean = F.avg_pool2d(difference * hole, 4, ceil_mode=True, count_include_pad=False)
    return weighted(mean.abs() / share.clamp(min=1e-3), share)


def spread(shades: Tensor, hole: Tensor) -> Tensor:
    """The standard deviation of colours N,C,h,w within the hole N,1,h,w of each crop, N,1,1,1."""
    cells = hole.sum(dim=(1, 2, 3), keepdim=True).clamp(min=1)
    mean = (shades * hole).sum(dim=(2, 3), keepdim=True) / cells
    square = ((shades - mean).square() * hole).sum(dim=(1, 2, 3), keepdim=True) / (cells * shades.shape[1])
    return square.sqrt()


@torch.no_grad()
def colours(pictures: list[Image], pair: Latent, options: Options) -> nn.Conv2d:
    """The linear map from latents N,C,h,w to the mean colours of their cells, N,3,h,w in [0,1].

    Fitted by least squares to seeded crops. A net that is judged by latents alone paints skies in a tint that
    is a small error there and a plain one to the eye.
    """
    rng = np.random.default_rng([options.seed, FITTED])
    image, _ = data.draw(pictures, FITTED, options.size, rng, machine())
    parts = [pair.encode(one[None], torch.zeros_like(one[None, :1])) for one in image]
    latents = torch.cat(parts).float().permute(0, 2, 3, 1).flatten(0, 2)
    wanted = F.avg_pool2d(image, DOWNSCALE).permute(0, 2, 3, 1).flatten(0, 2)
    found = torch.linalg.lstsq(F.pad(latents, (0, 1), value=1.0).cpu(), wanted.cpu()).solution
    out = nn.Conv2d(latents.shape[1], 3, 1).requires_grad_(False)
    out.weight.copy_(found[:-1].T[:, :, None, None])
    out.bias.copy_(found[-1])  # type: ignore[union-attr]
    return out.to(machine())


def draw(
    photographs: Photographs, count: int, size: int, rng: np.random.Generator, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Random crops N,3,S,S in [0,1], their masks N,1,S,S (1 = hole), and the crops with grey holes."""
    of_people = round(count * PORTRAITS) if photographs.portraits else 0
    image, mask = data.draw(photographs.pictures, count - of_people, size, rng, device, _hole, _crop)
    if of_people:
        people = data.draw_portraits(photographs.portraits, of_people, size, rng, device)
        image, mask = torch.cat([image, people[0]]), torch.cat([mask, people[1]])
    return image, mask, torch.where(mask > 0.5, HOLE, image)


def _crop(picture: Image, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A crop as it was photographed or in another light, or a backdrop, since tints are seen most in
    even places, which few photographs have.
    """
    kind = rng.random()
    if kind < 0.1:
        return data.plain(size, rng)
    piece = data.crop(picture, size, rng)
    return data.toned(piece, rng) if kind < 0.55 else piece


def _hole(size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Half of the holes are small, since taking away a credit line is what people do most."""
    return (data.hole if rng.random() < 0.5 else data.small_hole)(size, rng)


@memory_kept()
@torch.inference_mode()
def encoded(
    photographs: Photographs, pair: Latent, file: Path, count: int, options: Options
) -> dict[str, Tensor]:
    """Latents of `count` seeded crops, in half precision, on the machine's device.

    They are cached in `file`, which is read instead if it was made with the same settings.

    Returns:
        `whole` and `known` N,C,h,w: latents of the crops without and with their holes. `cells` N,1,h,w: how
        much of each latent cell is hole.
    """
    seed, size, device = options.seed, options.size, machine()
    facts = {"encoder": pair.weights_sha256, "drawn": DRAWN, "photographs": photographs.digest}
    facts |= {"count": str(count), "seed": str(seed), "size": str(size)}
    if file.exists():
        with safe_open(file, "pt") as kept:
            if kept.metadata() == facts:
                return {name: kept.get_tensor(name).to(device) for name in kept.keys()}  # noqa: SIM118  (no mapping)
    parts: dict[str, list[Tensor]] = {"whole": [], "known": [], "cells": []}
    for start in range(0, count, CHUNK):
        rng = np.random.default_rng([seed, start])
        image, mask, holed = draw(photographs, min(CHUNK, count - start), size, rng, device)
        with mixed_precision(device):
            parts["whole"].append(pair.encode(image, torch.zeros_like(mask)).half())
            parts["known"].append(pair.encode(holed, mask).half())
        parts["cells"].append(F.avg_pool2d(mask, DOWNSCALE).half())
        if start % (CHUNK * 20) == 0:
            print(f"encoded {start} of {count} crops", flush=True)
    latents = {name: torch.cat(tensors).contiguous() for name, tensors in parts.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    # A file that a killed run left half-written would not open, and every later run would end there.
    part = file.with_name(f"{file.name}.part")
    save_file({name: value.cpu() for name, value in latents.items()}, part, facts)
    os.replace(part, file)
    return latents


def inpainter(
    photos: Path,
    pair_paths: Sequence[Path],
    folder: Path,
    options: Options,
    crops: int,
    start: Path | None = None,
    portraits: Path | None = None,
    critics_weight: float = 1.0,
    width: tuple[int, int] = WIDTH,
) -> None:
    """Train in `folder`, or resume an interrupted run there.

    Args:
        pair_paths: encoder and decoder of the autoencoder.
        crops: how many crops to encode in advance.
        start: the safetensors file of an editor with a net to go on from, or of a net alone.
        portraits: a folder of portraits, of which a share of the crops is drawn.
        critics_weight: how much the critics' losses count, as a multiple of the usual: the more, the more
            texture and the less likeness to the truth. It may change when a run is resumed, since raising
            it is of use only with critics that have learnt what to look for.
        width: the net's outer and inner channels, multiples of 16.
    """
    photographs = Photographs(data.load(photos), data.load(portraits) if portraits else [])
    device, seed = machine(), options.seed
    pair = EncoderEditor.load("pair", pair_paths)
    pair.to(device)
    prepared(pair.encoder)
    latents = encoded(photographs, pair, folder / "latents.safetensors", crops, options)
    channels, colour = latents["whole"].shape[1], colours(photographs.pictures, pair, options)
    torch.manual_seed(seed)
    net = prepared(InpaintNet(channels, width))
    critics = prepared(Critics(2, partial(LatentCritic, channels)))
    if start is not None:
        net.load_state_dict(weights_of(start, "net"))
    ema = copy.deepcopy(net)
    opt_g, opt_d = adam([net]), adam([critics])
    run = Run(
        folder,
        options,
        {"net": net, "critics": critics, "ema": ema, "g": opt_g, "d": opt_d},
        {
            "photographs": photographs.digest,
            "autoencoder": pair.weights_sha256[:16],
            "crops": crops,
            "drawn": DRAWN,
            "width": list(width),
        },
    )
    run.resume()

    def one(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([seed, step])
        picked = torch.from_numpy(rng.integers(0, crops, options.batch)).to(device)
        truth, known, cells = (latents[name][picked].float() for name in ("whole", "known", "cells"))
        hole = (cells > 0).float()
        set_rate(opt_g, run.rate(2e-4))
        set_rate(opt_d, run.rate(6e-4))
        with mixed_precision(device):
            got = net(known, cells).float()
            filled = torch.lerp(truth, got, hole)
        judged = duel(critics, opt_d, truth, filled, cells, hole, step % PENALISED == 0, PENALTY)
        difference = got - truth
        shades = colour(truth)
        # Where all is of one shade, a tint is plain to the eye; elsewhere it is not.
        tint = (colour(got) - shades) * (0.16 / (0.04 + spread(shades, hole)))
        out = {
            "known": weighted(difference.abs(), 1 - hole),
            "hole": weighted(difference.abs(), hole),
            "coarse": coarse(difference, hole),
            "colour": coarse(tint, hole),
            **judged,
        }
        loss = out["known"] + 0.1 * out["hole"] + 1.5 * out["coarse"] + 6.0 * out["colour"]
        loss = loss + critics_weight * (0.15 * out["g"] + 0.5 * out["fm"])
        opt_g.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        opt_g.step()
        ema_update(ema, net, step)
        return out

    @torch.no_grad()
    def sample() -> Tensor:
        rng = np.random.default_rng([seed + 1])
        image, mask, holed = draw(photographs, SHOWN, 2 * options.size, rng, device)
        got = pair.decoder(ema(pair.encode(holed, mask), F.avg_pool2d(mask, DOWNSCALE)))
        return torch.stack([image, holed, torch.where(mask > 0.5, got, image)])

    run.loop(one, sample)


def export(folder: Path, target: Path) -> None:
    """Write the averaged net of a run as a safetensors file in half precision, for kind `inpainter`."""
    save_half(averages(folder), target)
