"""The paper's method on a crop: implant, incomplete and hide (arXiv 2410.14966).

Three losses over edits of the perturbed picture, each under its own mask:

* implant: the full region as the edit mask; the edit must break;
* incomplete: a dilated, halved or boxed region; the edit must break too;
* hide: the ring around the region or a far square; the edit must equal the clean edit.

"Break" means away from the clean edit (`target: away`, the default: METHOD's measurements
find it stronger than the published flat colour) or towards the pure colour furthest from
the picture (`target: flat`, the published one). What differs from the published script:
the clean edits are constant and computed once, the three masks of an iteration go through the
editor as one batch, and momentum sign steps that fit the bound replace Adam at four times it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from daemon import geometry
from daemon.domain import Mask
from daemon.editors.base import Denoiser, Editor
from daemon.methods.base import Progress, Task, fast, furthest_colour

MOMENTUM = 0.9
HIDE_WEIGHT = 2.0
"""The published weight of the hide loss against the two others."""
FAR_MASKS = 4
CHUNK = 3
"""Edits that go through an editor as one batch."""


@dataclass(frozen=True, eq=False)
class _Edit:
    """One edit mask with each surrogate's clean edit under it; tensors 1,1,H,W and 1,3,H,W."""

    mask: Tensor
    clean: list[Tensor]


@dataclass(frozen=True, eq=False)
class _Pool:
    """The edits of one region from which every iteration takes three."""

    full: _Edit
    incomplete: list[_Edit]
    ring: _Edit
    far: list[_Edit]


class Implant:
    """See the module's docstring; satisfies `Method`."""

    def run(
        self,
        task: Task,
        surrogates: Sequence[Editor],
        *,
        iterations: int,
        target: str,
        rng: np.random.Generator,
        progress: Progress,
    ) -> Tensor:
        """See `Method.run`. Regions of one crop take turns, an iteration each."""
        pools = [_pool(task, index, surrogates, rng) for index in range(len(task.regions))]
        start = rng.uniform(-1, 1, tuple(task.image.shape)).astype(np.float32)
        unit = task.budget.unit
        change = torch.from_numpy(start).to(task.image.device) * unit / 2
        change = task.project(change if task.start is None else task.start + change)
        colour = furthest_colour(task.image) if target == "flat" else None
        momentum = torch.zeros_like(change)
        for iteration in range(iterations):
            pool = pools[iteration % len(pools)]
            # Every second time the dilated region, as published: it is the edit people make.
            pick = 0 if iteration // len(pools) % 2 == 0 else int(rng.integers(1, len(pool.incomplete)))
            incomplete = pool.incomplete[pick]
            # Ring and far square take turns too: a batch of three costs a quarter less than one of four.
            far = pool.far and iteration // len(pools) % 2 == 1
            hidden = pool.far[int(rng.integers(len(pool.far)))] if far else pool.ring
            gradient = torch.zeros_like(change)
            for index, surrogate in enumerate(surrogates):
                one = _gradient(
                    task.image, change, surrogate, index, [pool.full, incomplete], [hidden], colour
                )
                # By its own mean, so that no surrogate drowns the others.
                gradient += one / one.abs().mean().clamp(min=1e-12)
            momentum = MOMENTUM * momentum + gradient
            # Large steps first to cross the budget, small ones last to settle.
            step = unit * (0.35 - 0.27 * iteration / max(iterations - 1, 1))
            change = task.project(change - step * momentum.sign())
            progress(iteration + 1, iterations)
        return change


def _pool(task: Task, index: int, surrogates: Sequence[Editor], rng: np.random.Generator) -> _Pool:
    """Draws the masks of one region and computes their clean edits, once."""
    mask = task.regions[index]
    turn = float(rng.uniform(0, 2 * np.pi))
    incomplete = [geometry.dilated(mask), geometry.bounding(mask)]
    incomplete += [geometry.half(mask, turn + quarter * np.pi / 2) for quarter in range(4)]
    far = [plane for _ in range(FAR_MASKS) if (plane := geometry.far(task.protected, rng)) is not None]
    ring = geometry.ring(mask) & ~task.protected
    planes = [mask, ring, *incomplete, *far]
    edits = _clean(task.image, planes, surrogates)
    return _Pool(edits[0], edits[2 : 2 + len(incomplete)], edits[1], edits[2 + len(incomplete) :])


def _clean(image: Tensor, planes: Sequence[Mask], surrogates: Sequence[Editor]) -> list[_Edit]:
    masks = torch.from_numpy(np.stack(planes)).to(image)[:, None]
    edits: list[list[Tensor]] = [[] for _ in planes]
    with torch.no_grad(), fast(image.device):
        for surrogate in surrogates:
            # The clean edit must be of the sort that the gradient compares with it.
            edit = surrogate.one_step if isinstance(surrogate, Denoiser) else surrogate.inpaint
            for start in range(0, len(planes), CHUNK):
                chunk = masks[start : start + CHUNK]
                out = edit(image.expand(len(chunk), -1, -1, -1), chunk)
                for offset in range(len(chunk)):
                    edits[start + offset].append(out[offset : offset + 1])
    return [_Edit(masks[i : i + 1], clean) for i, clean in enumerate(edits)]


def _gradient(
    image: Tensor,
    change: Tensor,
    surrogate: Editor,
    index: int,
    broken: list[_Edit],
    hidden: list[_Edit],
    colour: Tensor | None,
) -> Tensor:
    """Gradient of implant + incomplete + hide by the change, through one surrogate."""
    edits = [*broken, *hidden]
    variable = change.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        masks = torch.cat([edit.mask for edit in edits])
        clean = torch.cat([edit.clean[index] for edit in edits])
        with fast(image.device):
            got = surrogate.inpaint((image + variable).expand(len(edits), -1, -1, -1), masks)
        n = len(broken)
        if colour is None:
            breaking = -_squared(got[:n], clean[:n], masks[:n])
        else:
            breaking = _squared(got[:n], colour.expand_as(got[:n]), masks[:n])
        loss = breaking + HIDE_WEIGHT * _squared(got[n:], clean[n:], masks[n:])
    (gradient,) = torch.autograd.grad(loss, variable)
    return gradient


def _squared(got: Tensor, want: Tensor, mask: Tensor) -> Tensor:
    """Sum over the batch of the mean squared difference under each mask."""
    each = ((got - want) ** 2 * mask).sum(dim=(1, 2, 3))
    return (each / (3 * mask.sum(dim=(1, 2, 3))).clamp(min=1)).sum()
