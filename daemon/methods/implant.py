"""The paper's method on a crop: implant, incomplete and hide (arXiv 2410.14966).

Three losses over edits of the perturbed picture, each under its own mask:

* implant: the full region as the edit mask; the edit must break;
* incomplete: a region painted otherwise (dilated, shrunk, shifted, halved, boxed, stroked
  over); the edit must break too;
* hide: the ring around the region or a far square; the edit must equal the clean edit.

"Break" means away from the clean edit (`target: away`, the default: METHOD's measurements
find it stronger than the published flat colour) or towards the pure colour furthest from
the picture (`target: flat`, the published one). What differs from the published script:
the clean edits are constant and computed once, the masks of an iteration go through the
editor as one batch, momentum sign steps that fit the bound replace Adam at four times it,
and every second iteration may look through a resize or a JPEG (`views`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from daemon.editors.base import Editor
from daemon.methods.base import Progress, Task, fast, furthest_colour
from daemon.methods.edits import Edit, Edits, squared
from daemon.methods.views import View, views

MOMENTUM = 0.9
HIDE_WEIGHT = 2.0
"""The published weight of the hide loss against the two others."""


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
        regions = [Edits(task, index, surrogates, rng) for index in range(len(task.regions))]
        ways = views((task.image.shape[2], task.image.shape[3]), task.withstand)
        colour = furthest_colour(task.image) if target == "flat" else None
        change = _start(task, rng)
        momentum = torch.zeros_like(change)
        for iteration in range(iterations):
            turn = iteration // len(regions)
            view = ways[int(rng.integers(len(ways)))] if turn % 2 else ways[0]
            broken, hidden = _drawn(regions[iteration % len(regions)], turn, view.size)
            gradient = torch.zeros_like(change)
            for index, surrogate in enumerate(surrogates):
                one = _gradient(task.image, change, view, surrogate, index, broken, hidden, colour)
                # By its own mean, so that no surrogate drowns the others.
                gradient += one / one.abs().mean().clamp(min=1e-12)
            momentum = MOMENTUM * momentum + gradient
            # Large steps first to cross the budget, small ones last to settle.
            step = task.budget.unit * (0.35 - 0.27 * iteration / max(iterations - 1, 1))
            change = task.project(change - step * momentum.sign())
            progress(iteration + 1, iterations)
        return change


def _start(task: Task, rng: np.random.Generator) -> Tensor:
    noise = torch.from_numpy(rng.uniform(-1, 1, tuple(task.image.shape)).astype(np.float32))
    change = noise.to(task.image.device) * task.budget.unit / 2
    return task.project(change if task.start is None else task.start + change)


def _drawn(edits: Edits, turn: int, size: tuple[int, int]) -> tuple[list[Edit], list[Edit]]:
    """The edits of one iteration: two to break, one to keep.

    Every second time the dilated region, as published: it is the edit people make. Ring and far
    square take turns too: a batch of three costs a quarter less than one of four.
    """
    broken = [edits.take("full", size), edits.take("incomplete" if turn % 2 else "dilated", size)]
    kinds = ("far", "ring") if turn % 2 else ("ring", "far")
    hidden = next((edit for kind in kinds if (edit := edits.take(kind, size)) is not None), None)
    return [edit for edit in broken if edit is not None], [hidden] if hidden is not None else []


def _gradient(
    image: Tensor,
    change: Tensor,
    view: View,
    surrogate: Editor,
    index: int,
    broken: list[Edit],
    hidden: list[Edit],
    colour: Tensor | None,
) -> Tensor:
    """Gradient of implant + incomplete + hide by the change, through one surrogate."""
    edits = [*broken, *hidden]
    variable = change.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        masks = torch.cat([edit.mask for edit in edits])
        clean = torch.cat([edit.clean[index] for edit in edits])
        with fast(image.device):
            got = surrogate.inpaint(view(image + variable).expand(len(edits), -1, -1, -1), masks)
        n = len(broken)
        if colour is None:
            breaking = -squared(got[:n], clean[:n], masks[:n])
        else:
            breaking = squared(got[:n], colour.expand_as(got[:n]), masks[:n])
        loss = breaking + HIDE_WEIGHT * squared(got[n:], clean[n:], masks[n:])
    (gradient,) = torch.autograd.grad(loss, variable)
    return gradient
