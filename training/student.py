"""Distils a published autoencoder into a student: an encoder and a decoder of our own in its latent space.

The teacher is the published autoencoder; nothing of it ships, only its outputs are used. Encoder and decoder
are trained separately, as two resumable runs that can share a machine.

The encoder learns the teacher's latents, and above all how they *respond* to perturbations, since a
perturbation that is optimised against the student transfers to the teacher only where both respond alike. So
every crop is encoded twice, clean and perturbed, and the two latents and their difference are matched to the
teacher's. Three perturbations in four are made by sign steps along a gradient: two along the student's (the
directions in which it errs), one along the teacher's (the directions that it has missed). Some of the first
come back and are perturbed further, since a protection is the work of many steps.

The decoder learns to reconstruct the picture from latents, alternately the teacher's and the student's, and
is judged by the critics of `losses`, so that fills are sharp.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL.Image import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from backfire.inpaint.encoders import NET_FILE, EncoderEditor
from backfire.inpaint.latent import HOLE, Decoder, Encoder
from backfire.perturb.methods.base import mixed_precision
from training import data
from training.losses import Critics, duel, ema_update, pyramid_l1
from training.run import (
    Options,
    Run,
    adam,
    averaged,
    averages,
    below_names,
    machine,
    prepared,
    recorded,
    save_half,
    set_rate,
    weights_of,
)

ENCODER_BLOCKS, DECODER_BLOCKS = (0, 1, 2, 3), (3, 2, 1, 0)
LEVELS = 1.5, 12.0
"""Range of the perturbations' random size, in levels of 255."""
STEPS = 2
"""Sign steps that make a perturbation, and that follow each time it comes back."""
KEPT, RENEWED = 24, 24
"""Batches whose perturbations come back, and the steps after which one of them makes room for a new one. An
interrupted run forgets them."""
PENALISED = 16
"""The critics' gradient penalty is applied once in so many steps."""


def student_of(teacher: EncoderEditor, channels: int) -> tuple[Encoder, Decoder]:
    """Untrained encoder and decoder of so many channels for the teacher's latent space, 1/8 of the size."""
    with torch.no_grad():
        latent = teacher.encoder(torch.zeros(1, 3, 64, 64)).shape[1]
    encoder = Encoder(channels, ENCODER_BLOCKS, latent, pooled=True)
    return encoder, Decoder(channels, DECODER_BLOCKS, latent, pooled=True)


def widened(module: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """Initialise a module with the weights of a narrower one of the same structure.

    The narrow module's channels come first and take no input from the new ones, so that the output is at
    first the same (only about the same after the pooled branch, whose norms include the new channels). The
    new channels keep the module's own random weights.
    """
    mine = module.state_dict()
    for name, old in state.items():
        new = mine[name]
        if new.shape == old.shape:
            new.copy_(old)
        elif ".pool." in name:
            _widen_pool(new, old)
        else:
            kept = tuple(slice(0, side) for side in old.shape)
            if new.ndim == 4:
                new[: old.shape[0], old.shape[1] :] = 0
            new[kept] = old
    module.load_state_dict(mine)
    return module


def _widen_pool(new: Tensor, old: Tensor) -> None:
    """Copy the weights of the pooled branch: four groups of channels, each of which grows by new ones."""
    groups = 4
    dim = 1 if new.ndim == 4 and new.shape[1] > new.shape[0] else 0  # the wide side
    narrow, wide = old.shape[dim] // groups, new.shape[dim] // groups
    index = torch.cat([torch.arange(narrow) + group * wide for group in range(groups)])
    if new.ndim == 1:
        new[index] = old
    elif dim == 0:
        new[index] = 0
        new[index, : old.shape[1]] = old.reshape(len(index), -1, 1, 1)
    else:
        new[: old.shape[0]] = 0
        new[: old.shape[0], index] = old


def _made_from(pictures: list[Image], teacher: EncoderEditor, channels: int) -> dict[str, Any]:
    return {
        "photographs": data.digest(pictures),
        "teacher": teacher.weights_sha256[:16],
        "channels": channels,
    }


def _holed(image: Tensor, mask: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """The crops, half of them with a grey hole, and N,1,H,W, 1 where they may be perturbed."""
    empty = torch.arange(len(image), device=image.device).view(-1, 1, 1, 1) % 2 == step % 2
    hidden = (mask > 0.5) & empty
    return torch.where(hidden, HOLE, image), (~hidden).float()


def perturbed(
    image: Tensor,
    free: Tensor,
    surrogate: nn.Module | None,
    latent: Tensor,
    rng: np.random.Generator,
    before: Tensor | None = None,
) -> Tensor:
    """The crops with a perturbation added, N,3,H,W in [0,1].

    Args:
        image: N,3,H,W in [0,1].
        free: N,1,H,W, 1 where pixels may be perturbed.
        surrogate: the encoder whose gradient the sign steps follow; None for random signs.
        latent: N,C,h,w, the surrogate's latents of the clean crops.
        rng: draws the perturbation's size, its start and its aim.
        before: the crops as they were perturbed before, to go on from, in smaller steps.
    """
    device = image.device
    seed = torch.Generator(device).manual_seed(int(rng.integers(1 << 62)))
    size = float(rng.uniform(*LEVELS)) / 255
    step = size
    cell = int(rng.choice([1, 1, 2, 4, 8]))
    side = [-(-s // cell) for s in image.shape[-2:]]
    coarse = torch.randn((len(image), 3, *side), generator=seed, device=device)
    signs = F.interpolate(coarse, scale_factor=cell)[..., : image.shape[-2], : image.shape[-1]].sign()
    change = size * signs * free
    if surrogate is None:
        return (image + change).clamp(0, 1)
    # The aim is to move the latents away from the clean ones, or in a random smooth direction.
    aim = torch.randn(latent.shape, generator=seed, device=device)
    aim = F.avg_pool2d(F.pad(aim, (1, 1, 1, 1), mode="replicate"), 3, 1)
    away = rng.random() < 0.6
    change = change * 0.5
    if before is not None:
        change = before - image
        size = max(float(change.abs().max()), LEVELS[0] / 255)
        step = size / 3
    for _ in range(STEPS):
        change = change.detach().requires_grad_(True)
        with mixed_precision(device):
            moved = surrogate((image + change).clamp(0, 1)).float() - latent
        gain = moved.square().sum() if away else (moved * aim).sum()
        (slope,) = torch.autograd.grad(gain, change)
        change = (change.detach() + step * slope.sign()).clamp(-size, size) * free
    return (image + change).clamp(0, 1).detach()


def train_encoder(
    photos: Path, teacher: Sequence[Path], folder: Path, options: Options, channels: int, start: Path | None
) -> None:
    """Train the student's encoder in `folder`/encoder, or resume an interrupted run there.

    Args:
        teacher: the files of the published autoencoder, as an editor of kind `latent` takes them.
        channels: of the student's convolutions.
        start: the safetensors file of a student to start from, as `export` writes it; it may be narrower.
    """
    pictures, device, seed = data.load(photos), machine(), options.seed
    taught = EncoderEditor.load("teacher", teacher)
    torch.manual_seed(seed)
    encoder, _ = student_of(taught, channels)
    taught.to(device)
    if start is not None:
        widened(encoder, weights_of(start, "encoder"))
    encoder = prepared(encoder)
    ema = copy.deepcopy(encoder).requires_grad_(False)
    optimiser = torch.optim.AdamW(
        encoder.parameters(), 6e-4, betas=(0.9, 0.99), weight_decay=1e-5, fused=True
    )
    run = Run(
        folder / "encoder",
        options,
        {"encoder": encoder, "ema": ema, "optimiser": optimiser},
        _made_from(pictures, taught, channels),
    )
    run.resume()
    crops = data.stream(pictures, lambda step: (options.batch, options.size), options, run.step)
    kept: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def one(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([seed, step, 1])
        image, mask = next(crops)
        clean, free = _holed(image, mask, step)
        turn, before, place = step % 4, None, step // RENEWED % KEPT
        if turn == 1:
            place = int(rng.choice([*kept] or [place]))
            clean, free, before = kept.get(place, (clean, free, None))
        with torch.no_grad(), mixed_precision(device):
            wanted = taught.encoder(clean).float()
            given = encoder(clean).float()
        source, latent = (encoder, given) if turn < 2 else (taught.encoder, wanted)
        moved = perturbed(clean, free, None if turn == 3 else source, latent, rng, before)
        if before is not None or step % RENEWED == 0:
            kept[place] = clean, free, moved
        with torch.no_grad(), mixed_precision(device):
            wanted_moved = taught.encoder(moved).float()
        set_rate(optimiser, run.rate(4e-4))
        with mixed_precision(device):
            both = encoder(torch.cat([clean, moved])).float()
        got, got_moved = both.chunk(2)
        response, wanted_response = got_moved - got, wanted_moved - wanted
        out = {
            "clean": F.smooth_l1_loss(got, wanted, beta=0.5),
            "moved": F.smooth_l1_loss(got_moved, wanted_moved, beta=0.5),
            "response": (response - wanted_response).abs().mean()
            / (wanted_response.abs().mean() + 0.5 * response.detach().abs().mean() + 0.02),
        }
        loss = out["clean"] + out["moved"] + 0.3 * out["response"]
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimiser.step()
        ema_update(ema, encoder, step)
        with torch.no_grad():
            name = ("own", "own again", "teacher's", "random")[turn]
            share = torch.linalg.vecdot(response.flatten(), wanted_response.flatten())
            sizes = response.norm() * wanted_response.norm() + 1e-9
            # Each name occurs only in some of the steps, but the log divides by all of them: scale it up.
            out[f"cosine, {name} signs"] = share / sizes * 4
            out["off"] = (got - wanted).abs().mean() / wanted.std()
        return out

    @torch.no_grad()
    def sample() -> Tensor:
        rng = np.random.default_rng([seed + 1])
        image, mask = data.draw(pictures, 6, 2 * options.size, rng, device)
        shown = torch.where(mask > 0.5, HOLE, image)
        drawn = [taught.decoder(part(shown)) for part in (taught.encoder, ema)]
        return torch.stack([shown, *drawn])

    run.loop(one, sample)


def train_decoder(
    photos: Path, teacher: Sequence[Path], folder: Path, options: Options, channels: int, start: Path | None
) -> None:
    """Train the student's decoder in `folder`/decoder, or resume an interrupted run there.

    The student's encoder is read once, when the run begins, from `folder`/encoder if it has been trained, and
    otherwise from `start`. The arguments are those of `train_encoder`.

    Raises:
        SystemExit: there is neither.
    """
    trained = folder / "encoder" / "last.pt"
    if start is None and not trained.exists():
        raise SystemExit(
            f"{trained}: no such file, and a decoder learns nothing from an untrained encoder; run first: "
            "python -m training student, or begin with --start FILE"
        )
    pictures, device, seed = data.load(photos), machine(), options.seed
    taught = EncoderEditor.load("teacher", teacher)
    torch.manual_seed(seed)
    encoder, decoder = student_of(taught, channels)
    critics = prepared(Critics(2))
    taught.to(device)
    if start is not None:
        widened(decoder, weights_of(start, "decoder"))
        widened(encoder, weights_of(start, "encoder"))
    if trained.exists():
        encoder = averaged(folder / "encoder", encoder)
    encoder, decoder = prepared(encoder).eval().requires_grad_(False), prepared(decoder)
    ema = copy.deepcopy(decoder).requires_grad_(False)
    opt_g, opt_d = adam([decoder]), adam([critics])
    run = Run(
        folder / "decoder",
        options,
        # The encoder as well, since it may be trained on before this run is resumed.
        {"encoder": encoder, "decoder": decoder, "critics": critics, "ema": ema, "g": opt_g, "d": opt_d},
        _made_from(pictures, taught, channels),
    )
    run.resume()
    crops = data.stream(pictures, lambda step: (options.batch, options.size), options, run.step)

    def one(step: int) -> dict[str, Tensor]:
        image, mask = next(crops)
        source = encoder if step % 2 else taught.encoder
        with torch.no_grad(), mixed_precision(device):
            latents = source(image).float()
        set_rate(opt_g, run.rate(4e-4))
        set_rate(opt_d, run.rate(2e-4))
        with mixed_precision(device):
            drawn = decoder(latents)
        drawn = drawn.float()
        everywhere = torch.ones_like(mask)
        judged = duel(critics, opt_d, image, drawn, everywhere, everywhere, step % PENALISED == 0)
        out = {"l1": pyramid_l1(drawn, image), **judged}
        loss = 2.0 * out["l1"] + 0.02 * out["g"] + 0.5 * out["fm"]
        opt_g.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        opt_g.step()
        ema_update(ema, decoder, step)
        with torch.no_grad():
            out["psnr"] = -10 * (drawn - image).square().mean().log10()
        return out

    @torch.no_grad()
    def sample() -> Tensor:
        rng = np.random.default_rng([seed + 1])
        image, _ = data.draw(pictures, 6, 2 * options.size, rng, device)
        latents = taught.encoder(image)
        return torch.stack([image, taught.decoder(latents), ema(latents), ema(encoder(image))])

    run.loop(one, sample)


def export(folder: Path, net: Path, target: Path, shipped: Path = NET_FILE) -> None:
    """One safetensors file in half precision: encoder and decoder of a student, and an inpainting net.

    Args:
        folder: the runs of the student's encoder and decoder.
        net: the run of a net that was trained on the same latents, see `latent_pair`.
        target: the file.
        shipped: an editor's file, whose net is taken where there is no such run.

    Raises:
        SystemExit: the net was not trained on the latents of the same autoencoder.
    """
    state = _pair(folder)
    if (net / "last.pt").exists():
        _require_one(folder / "decoder", "teacher", net, "autoencoder")
        state |= below_names(net=averages(net))
    else:
        state |= {name: value for name, value in load_file(shipped).items() if name.startswith("net.")}
    save_half(state, target)


def _pair(folder: Path) -> dict[str, Tensor]:
    """Both parts: the decoder, and the encoder that it learnt from, which may be trained on since."""
    decoder = folder / "decoder"
    return below_names(encoder=averages(decoder, "encoder"), decoder=averages(decoder))


def _require_one(one: Path, of_one: str, other: Path, of_other: str) -> None:
    """Refuse runs that learnt from different autoencoders, as their parts speak different latents.

    Args:
        one, other: the folders of two runs.
        of_one, of_other: the names under which they recorded their autoencoder.
    """
    first, second = recorded(one).get(of_one), recorded(other).get(of_other)
    if first and second and first != second:
        raise SystemExit(
            f"{other}: got a run on the autoencoder {second}, expected {first}, which {one} learnt from; "
            "delete one of the runs and train it anew"
        )
