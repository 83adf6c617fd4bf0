"""Trains latent-mini: first its autoencoder, then its inpainting net on the autoencoder's latents.

`autoencoder` learns to reconstruct (pyramid L1), and after a third of the run also from critics and feature
matching. Half of the crops have a grey hole, since the editor will encode masked pictures.

`inpainter` first learns which texture belongs into the hole and from where to copy it (`chosen`), and later
the decoder's fine grain and invisible seams (`painted`).
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from backfire.inpaint.latent import DOWNSCALE, HOLE, Decoder, Draft, Encoder, ShiftMapNet
from backfire.inpaint.texture import described
from backfire.perturb.methods.base import mixed_precision
from training import data
from training.losses import Critics, at, duel, ema_update, pyramid_l1, weighted
from training.run import Options, Run, adam, averaged, machine, noise, prepared, save_half, set_rate

PARTS = "encoder", "net", "decoder"
CHOOSING = 0.3
"""The first part of a run trains only the choice of what to copy, without decoding: three times as fast."""

JUDGING = 0.1
"""In the next part the critics train alone, since untrained critics would accept blurred fills."""
NOISE = 0.05
"""Deviation of the noise on the latents that the decoder learns from; their own is about 0.6."""


def masked(image: Tensor, mask: Tensor) -> Tensor:
    return image * (1 - mask) + HOLE * mask


def autoencoder(photos: Path, folder: Path, options: Options) -> None:
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
    )
    run.resume()
    crops = data.stream(pictures, lambda step: (options.batch, options.size), options, run.step)

    def one(step: int) -> dict[str, Tensor]:
        image, mask = next(crops)
        mask[: len(mask) // 2] = 0
        image = masked(image, mask)
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
        image = masked(image, mask)
        return torch.stack([image, ema[1](ema[0](image))])

    run.loop(one, sample)


def load_autoencoder(folder: Path) -> tuple[Encoder, Decoder]:
    """The averaged encoder and decoder of a run of `autoencoder`."""
    encoder, decoder = averaged(folder, nn.ModuleList([Encoder(), Decoder()]))
    return encoder, decoder


def inpainter(photos: Path, source: Path, folder: Path, options: Options) -> None:
    """Train in `folder`, or resume an interrupted run there.

    Args:
        photos: the folder of photographs.
        source: the folder of a run of `autoencoder`, or a file of exported weights to train further.
        folder: the folder of this run.
        options: its length, seed and batch.
    """
    pictures, device, seed = data.load(photos), machine(), options.seed
    torch.manual_seed(seed)
    parts = _parts()
    if source.is_dir():
        parts["encoder"], parts["decoder"] = load_autoencoder(source)
    else:
        parts.load_state_dict(load_file(source))
    alone = CHOOSING if source.is_dir() else 0.0
    encoder, net, decoder = (prepared(parts[name]) for name in PARTS)
    encoder.requires_grad_(False)
    critics = prepared(Critics())
    ema = copy.deepcopy(parts)
    opt_g, opt_d = adam([net, decoder]), adam([critics])
    run = Run(
        folder,
        options,
        {"net": net, "decoder": decoder, "critics": critics, "ema": ema, "g": opt_g, "d": opt_d},
    )
    run.resume()

    def seen(step: int) -> tuple[int, int]:
        # Two thirds of the steps see crops of two or three times the side, with holes as large as real ones.
        times = 1 + step % 3
        return max(1, options.batch // times**2), options.size * times

    crops = data.stream(pictures, seen, options, run.step)

    def one(step: int) -> dict[str, Tensor]:
        image, mask = next(crops)
        cells = F.avg_pool2d(mask, DOWNSCALE)
        set_rate(opt_g, run.rate(3e-4 if run.progress < alone else 1.5e-4))
        with mixed_precision(device):
            with torch.no_grad():
                truth = encoder(image).float()
                known = encoder(masked(image, mask))
            draft = net.draft(known, cells, described(masked(image, mask)))
        out = chosen(net, draft, truth, described(image))
        loss = 0.5 * out["rough"] + out["wanted"] + 2 * out["apart"]
        if run.progress >= alone:
            painting = painted(draft, image, mask, truth, step)
            judged = painting.pop("loss")
            if run.progress >= alone + JUDGING:
                loss = loss + judged
            out |= painting
        opt_g.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([*net.parameters(), *decoder.parameters()], 1.0)
        opt_g.step()
        ema_update(ema, parts, step)
        return out

    def painted(draft: Draft, image: Tensor, mask: Tensor, truth: Tensor, step: int) -> dict[str, Tensor]:
        # The decoder and the net are trained alternately. The decoder learns from latents of true pictures
        # and is judged everywhere, so that it learns grain; the net's fill is judged with true pixels around
        # it. Trained together, or without noise, the net encodes faint patterns in the latents, which the
        # decoder turns into visible lattices.
        whole = step // 3 % 2 == 0
        decoder.requires_grad_(whole)
        judged = torch.ones_like(mask) if whole else mask
        with mixed_precision(device):
            if whole:
                latents = truth
            else:
                # What to copy is trained by `chosen` alone: the critics would make the net paint, not copy.
                draft = Draft(*(each.detach() for each in draft))
                taken = net.taken(draft.rough, draft).detach()
                latents = net.blended(taken, draft)
            got = decoder(latents + NOISE * noise(latents, seed, step)).float()
        shown = torch.lerp(image, got, judged)
        set_rate(opt_d, run.rate(6e-4))
        out = duel(critics, opt_d, image, shown, mask * (1 - float(whole)), judged, step // 6 % 4 == 0)
        if whole:
            sizes = [F.avg_pool2d(got - image, size).abs().mean() for size in (1, 2, 4)]
            out["pixels"] = torch.stack(sizes).sum()
            out["loss"] = 2 * out["pixels"] + 0.5 * out["g"] + 0.7 * out["fm"]
        else:
            del out["fm"]  # a plausible fill need not match the true picture's features
            latents = latents.float()
            out["known"] = weighted((latents - truth).abs(), 1 - F.max_pool2d(mask, DOWNSCALE))
            # Latent cells that are wholly inside the hole stay close to what was copied.
            out["added"] = weighted((latents - taken).square(), 1 - F.max_pool2d(1 - mask, DOWNSCALE))
            edge = F.max_pool2d(mask, 25, 1, 12) + F.max_pool2d(1 - mask, 7, 1, 3) - 1
            out["edge"] = weighted((got - image).abs(), edge)
            low = F.avg_pool2d(got - image, 16).abs()
            out["low"] = weighted(low, at(mask, low))
            out["loss"] = (
                out["known"] + 20 * out["added"] + 3 * out["edge"] + 0.3 * out["low"] + 0.2 * out["g"]
            )
        return out

    @torch.no_grad()
    def sample() -> Tensor:
        image, mask = data.draw(pictures, 6, 2 * options.size, np.random.default_rng(seed + 1), device)
        known = encoder(masked(image, mask))
        cells = F.avg_pool2d(mask, DOWNSCALE)
        got = ema["decoder"](ema["net"](known, cells, described(masked(image, mask))))
        return torch.stack([image, masked(image, mask), torch.lerp(image, got, mask)])

    run.loop(one, sample)


def chosen(net: ShiftMapNet, draft: Draft, truth: Tensor, texture: Tensor) -> dict[str, Tensor]:
    """The losses of what the net chooses to copy into the hole.

    Args:
        net, draft: the net, and its draft of the fill.
        truth: latents of the true picture.
        texture: texture of the true picture, N,13,h,w.

    Returns:
        `rough`: error of the rough latents. `wanted`: error of the predicted texture. `apart`: expected
        squared distance between copied and true texture, in patches of 5x5 cells, under the shift-map's
        weights. It is linear in the weights, so that one good source is better than a mixture.
    """
    hole = draft.hole.float()
    patches = F.unfold(F.pad(texture, (2, 2, 2, 2), mode="replicate"), 5)
    patches = patches.reshape(len(texture), -1, *texture.shape[2:])
    squares = patches.square().sum(dim=1, keepdim=True)
    expected = net.taken(torch.cat([patches, squares], dim=1), draft)
    apart = squares - 2 * (patches * expected[:, :-1]).sum(dim=1, keepdim=True) + expected[:, -1:]
    return {
        "rough": weighted((draft.rough.float() - truth).abs(), hole),
        "wanted": weighted((draft.want.float() - texture).abs(), hole),
        "apart": weighted(apart / patches.shape[1], hole),
    }


def export(folder: Path, target: Path) -> None:
    """Write the averaged weights as one safetensors file in half precision, as the package ships them."""
    save_half(averaged(folder, _parts()), target)


def _parts() -> nn.ModuleDict:
    return nn.ModuleDict({"encoder": Encoder(), "net": ShiftMapNet(), "decoder": Decoder()})
