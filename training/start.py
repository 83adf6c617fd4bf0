"""Stored starts for an editor (`backfire.perturb.starts`): tiles that break edits of pictures never seen.

A few tiles are optimised together over 48 photographs with a random region each, on every attack path that
the verdict replays. Each photograph works on the tile that already breaks it most, so that the tiles become
different from each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from backfire.attack_paths import cropping
from backfire.attack_paths.tensors import to_tensor
from backfire.config import Protect
from backfire.errors import ConfigError
from backfire.inpaint import starts
from backfire.inpaint.base import Editor
from backfire.inpaint.starts import SIDE
from backfire.perturb import methods
from backfire.perturb.bounds import Bounds, gradient_in_ycbcr, plane, to_rgb
from backfire.perturb.methods.base import Task, tiled
from backfire.perturb.methods.iterative import IterativeMethod, Search
from backfire.perturb.paths import Paths
from backfire.types import Box, Budget, Mask, Region, Rgb
from training import data
from training.run import Options, Run, machine

PREPARED = 48
"""How many photographs are used, which the seed picks: the edits of each are kept in memory."""
EARLY, AGAIN = 60, 0.2
"""From which step on a photograph works on the tile that breaks it most, and the share of the steps that look
up anew which one it is."""
MOMENTUM = 0.9
STEPS = 0.15, 0.03
"""The first and the last step, in shares of the budget."""


class _Tiles(torch.nn.Module):
    """The tiles K,3,h,w in [-1,1] of the budget, with a momentum each."""

    tiles: Tensor
    momentum: Tensor

    def __init__(self, count: int, seed: int) -> None:
        super().__init__()
        drawn = torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("tiles", drawn * 2 - 1)
        self.register_buffer("momentum", torch.zeros_like(drawn))


@dataclass(frozen=True, eq=False)
class For:
    """What tiles are made for: an editor, the attack paths on which it is judged, and how it is optimised."""

    editor: Editor
    through: Sequence[str]
    settings: Protect


def train(photos: Path, made_for: For, folder: Path, options: Options, count: int) -> None:
    """Optimise `count` tiles in `folder`, or resume an interrupted run there.

    Raises:
        ConfigError: the method cannot use the editor, or begins with no stored start.
    """
    editor, through, settings = made_for.editor, made_for.through, made_for.settings
    if not isinstance(methods.get(settings.method, [editor]), IterativeMethod):
        wrong = f"got {settings.method}, which begins with no stored start, expected another method"
        raise ConfigError(f"protect.method: {wrong}; set protect.method: implant")
    pictures, device = data.load(photos, PREPARED, options.seed), machine()
    editor.to(device)
    own = _Tiles(count, options.seed).to(device)
    protect = settings.model_dump(mode="json", exclude={"device", "attempts", "surrogates", "iterations"})
    made_from = {
        "photographs": data.digest(pictures),
        "editor": editor.weights_sha256[:16],
        "tiles": count,
        **protect,
        "paths": [*through],
    }
    run = Run(folder, options, {"tiles": own}, made_from)
    run.every = 20
    run.resume()

    chosen: dict[int, int] = {}

    @cache
    def search(number: int) -> tuple[Task, Search]:
        rng = np.random.default_rng([options.seed, number])
        rgb: Rgb = np.asarray(pictures[number])
        return _search(rgb, editor, settings, through, rng)

    def one(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([options.seed + 1, step])
        number = int(rng.integers(len(pictures)))
        task, looks = search(number)
        placed = [task.project(tiled(tile, task.image) * task.budget.unit) for tile in own.tiles]
        # At first every photograph has a tile of its own, whatever that does to it.
        if step >= EARLY and (number not in chosen or rng.random() < AGAIN):
            chosen[number] = int(np.argmax([looks.broken(each) for each in placed]))
        best = chosen.get(number, number % count)
        gradient = folded(_gain(task, looks.gradient(placed[best])))
        own.momentum[best] = MOMENTUM * own.momentum[best] + gradient / gradient.abs().mean().clamp(min=1e-12)
        first, last = STEPS
        share = first + (last - first) * run.progress
        own.tiles[best] = (own.tiles[best] - share * own.momentum[best].sign()).clamp(-1, 1)
        return {"broken": torch.tensor(looks.noted)}

    def sample() -> Tensor:
        return ((own.tiles + 1) / 2)[None]

    run.loop(one, sample)


def export(folder: Path, target: Path, editor: Editor) -> None:
    """Write the tiles of a run for an editor as a safetensors file in half precision."""
    state = torch.load(folder / "last.pt", "cpu", weights_only=True)["parts"]["tiles"]
    starts.write(state["tiles"], target, editor.weights_sha256)


def _gain(task: Task, gradient: Tensor) -> Tensor:
    """A gradient 1,3,H,W by red, green and blue, weighed by how far each pixel may go in luma and colour."""
    if task.apart is None:
        return gradient * task.area
    return to_rgb(gradient_in_ycbcr(gradient) * task.apart)


def folded(plane: Tensor) -> Tensor:
    """The gradient 3,h,w of a tile from that of the plane 1,3,H,W over which it was repeated."""
    height, width = plane.shape[-2:]
    padded = torch.nn.functional.pad(plane[0], (0, -width % SIDE, 0, -height % SIDE))
    return padded.reshape(3, padded.shape[1] // SIDE, SIDE, padded.shape[2] // SIDE, SIDE).sum(dim=(1, 3))


def _search(
    rgb: Rgb, editor: Editor, settings: Protect, through: Sequence[str], rng: np.random.Generator
) -> tuple[Task, Search]:
    """The edits of a random region of a photograph, and the area that a perturbation may use."""
    height, width = rgb.shape[:2]
    region = _region(height, width, rng)
    (crop,) = cropping.plan(
        [region], height, width, margin=settings.margin_px, work=settings.work_px, whole=settings.whole_px
    )
    paths = Paths(
        rgb,
        [crop],
        settings.robust_to,
        [through],
        machine(),
        settings.work_px,
        first_alone=settings.paths == "first",
    ).of(region, crop, rng)
    here = rgb[crop.box.slices]
    bounds = Bounds.of(rgb, crop, settings, np.zeros(here.shape, np.float32), grey=False)
    budget = Budget(settings.epsilon)
    task = Task(
        image=to_tensor(here, crop.size, machine()),
        regions=crop.masks(),
        protected=crop.protected(),
        area=plane(bounds.most / budget.unit, crop.size, machine()),
        apart=None if bounds.apart is None else plane(bounds.apart / budget.unit, crop.size, machine()),
        budget=budget,
        paths=[paths],
        grain=settings.grain_px,
        grids=settings.grids,
        by_need=settings.paths == "all",
        hide_weight=settings.hide_weight,
        robust_to=settings.robust_to,
    )
    method = methods.get(settings.method, [editor])
    assert isinstance(method, IterativeMethod)
    return task, Search(method, task, [editor], settings.target, rng)


def _region(height: int, width: int, rng: np.random.Generator) -> Region:
    """An ellipse or a box, a sixth to a half of the shorter side wide, not at the border."""
    short = min(height, width)
    tall, wide = (int(short * share) for share in rng.uniform(1 / 6, 1 / 2, 2))
    top = int(rng.integers(short // 12, height - tall - short // 12))
    left = int(rng.integers(short // 12, width - wide - short // 12))
    plane = Image.new("L", (wide, tall), 0)
    box = (0, 0, wide - 1, tall - 1)
    draw = ImageDraw.Draw(plane)
    (draw.ellipse if rng.random() < 0.5 else draw.rectangle)(box, fill=255)
    mask: Mask = np.asarray(plane) > 127
    return Region(Box(left, top, left + wide, top + tall), "training", 1.0, "training", mask)
