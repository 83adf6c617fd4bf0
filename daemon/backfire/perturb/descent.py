"""The descent that our methods share; each says only what it looks at of an edit, and when that is broken.

An iteration draws a path to the editor (`base.Sight`), a view on it (`views`) and one edit of one
region (`edits`), asks each surrogate how it responds to the perturbed picture under its mask, and
takes a momentum sign step (MI-FGSM, arXiv 1710.06081) that pushes the response away if it is a
trigger edit's and holds it if it is a benign one's. The momentum weighs the last few: three
steps on one edit each cost what one step on three does, and get further. The responses to the clean
picture are constant and computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from backfire.inpaint.base import Editor
from backfire.inpaint.targets import target_picture
from backfire.perturb import edit_masks
from backfire.perturb.edit_masks import Edit, Edits, squared, under
from backfire.perturb.methods.base import Progress, Proposal, Task, fast, in_order
from backfire.perturb.transforms import View, views
from backfire.types import Mask

MOMENTUM = 0.6
"""Less than is usual (0.9): at 80 steps 0.5 to 0.7 break more than 0.8, and that more than 0.9."""
STEPS = 0.5, 0.1
"""The first and the last step, in shares of the budget."""
HIDE_WEIGHT = 4.0
"""Of the hide loss against each of the two others. The published one is 2. Edits further away are left
in peace by `Task.area`; what more weight still buys beside the region, the dilated trigger pays: on a
cat's face it kept SSIM 0.91 at 10, 0.79 at 5, 0.70 at 3, for an edit beside it of 0.96, 0.96, 0.95."""
CHECKS = 8
"""In how many parts the iterations are cut; from the half on each ends with a check."""
INCOMPLETE_ELSEWHERE, FAR_ELSEWHERE = 4, 2
"""Shapes drawn on paths other than the crop: each is another clean edit to compute."""


Step = Callable[[Tensor, int], Tensor]
"""(gradient 1,3,H,W, iteration) -> what is taken off the change, 1,3,H,W; may remember what it was given."""


def momentum_sign(task: Task, iterations: int) -> Step:
    """MI-FGSM's steps: large ones first to cross the budget, small ones last to settle."""
    momentum = torch.zeros_like(task.image)

    def step(gradient: Tensor, iteration: int) -> Tensor:
        momentum.mul_(MOMENTUM).add_(gradient)
        first, last = STEPS
        share = first + (last - first) * iteration / max(iterations - 1, 1)
        return share * task.budget.unit * task.grained(momentum).sign()

    return step


@dataclass(frozen=True, eq=False)
class _Look:
    """What one iteration looks at: an edit to break or to keep, on one path, through one view."""

    path: Edits
    view: View
    draw: int
    edit: Edit


class Descent:
    """A `Method` but for its response; subclasses implement `respond` and may replace the rest.

    Attributes:
        draws: how many noises of the editor's own are drawn from.
        stepper: the optimiser: (task, iterations) -> `Step`, made anew for each run.
    """

    draws = 1
    stepper: Callable[[Task, int], Step] = staticmethod(momentum_sign)

    def respond(self, surrogate: Editor, image: Tensor, mask: Tensor, draw: int) -> Tensor:
        """What is looked at of an edit, see `edits.Respond`; differentiable in `image`."""
        raise TypeError(f"{type(self).__name__} lacks respond")

    def shapes(self, mask: Mask, rng: np.random.Generator) -> list[Mask]:
        """The incomplete triggers of a region."""
        return edit_masks.triggers(mask, rng)

    def away(self, got: Tensor, clean: Tensor, cells: Tensor) -> Tensor:
        """The loss that breaks the responses of trigger edits (`target: away`); N,c,y,x twice and N,1,y,x."""
        return -squared(got, clean, cells)

    def goal(self, surrogate: Editor, picture: Tensor, mask: Tensor, draw: int) -> Tensor:
        """What the responses are moved towards, N,c,y,x; `picture` N,3,h,w is what `target_picture` makes."""
        return self.respond(surrogate, picture, mask, draw)

    def run(
        self,
        task: Task,
        surrogates: Sequence[Editor],
        *,
        iterations: int,
        target: str,
        rng: np.random.Generator,
        progress: Progress,
    ) -> Proposal:
        """See `Method.run`. Regions of one crop take turns, an iteration each; so do their paths."""
        regions = [self._paths(task, index, surrogates, rng) for index in range(len(task.regions))]
        ways = views(task.robust_to)
        towards = target_picture(target, task.image)
        change = _start(task, rng)
        done = 0
        step = self.stepper(task, iterations)
        heat = [torch.zeros_like(change[0, 0]) for _ in surrogates]
        scales: dict[tuple[Edits, int], Tensor] = {}
        for iteration in range(iterations):
            turn, region = divmod(iteration, len(regions))
            look = self._look(regions[region], turn, ways, rng)
            gradient = torch.zeros_like(change)
            for index, surrogate in enumerate(surrogates):
                find = partial(self._gradient, change, look, surrogate, index, towards, rng)
                one = in_order(surrogate, rng, find)
                pull = one[0].abs().mean(dim=0)
                heat[index] += pull
                # By how hard it pulls at what breaks, so that no surrogate and no path drowns the others.
                scale = scales.get((look.path, index), pull.mean())
                if look.edit.breaks:
                    scales[look.path, index] = scale = scale.lerp(pull.mean(), 0.3)
                gradient += one / scale.clamp(min=1e-12)
            change = task.project(change - step(gradient, iteration))
            done = iteration + 1
            if task.enough and _is_check(done, iterations) and task.enough(change):
                progress(iterations, iterations)
                break
            progress(done, iterations)
        return Proposal(change, tuple(plane / done for plane in heat), done)

    def _paths(
        self, task: Task, region: int, surrogates: Sequence[Editor], rng: np.random.Generator
    ) -> list[list[Edits]]:
        """The edits of a region on each of its paths, the crop first."""
        (crop,), *others = task.sights(region)
        few = {"incomplete": INCOMPLETE_ELSEWHERE, "far": FAR_ELSEWHERE}
        return [
            [Edits(crop, surrogates, rng, self.respond, self.shapes)],
            *(
                [Edits(other, surrogates, rng, self.respond, self.shapes, **few) for other in group]
                for group in others
            ),
        ]

    def _look(
        self, paths: Sequence[Sequence[Edits]], turn: int, ways: Sequence[View], rng: np.random.Generator
    ) -> _Look:
        """Every second turn is the crop's; in the others groups of paths take turns, and those of a group.

        Half the time there is no view.
        """
        crop, *others = paths
        turn, odd = divmod(turn, 2) if others else (turn, 0)
        turn, group = divmod(turn, len(others)) if odd else (turn, 0)
        paths_now = others[group] if odd else crop
        path = paths_now[turn % len(paths_now)]
        view = ways[int(rng.integers(len(ways)))] if rng.random() < 0.5 else ways[0]
        draw = int(rng.integers(self.draws)) if self.draws > 1 else 0
        return _Look(path, view, draw, path.drawn(draw))

    def _gradient(
        self,
        change: Tensor,
        look: _Look,
        surrogate: Editor,
        index: int,
        towards: Callable[[Tensor], Tensor] | None,
        rng: np.random.Generator,
    ) -> Tensor:
        """Gradient of the loss by the change, through one surrogate."""
        mask, clean = look.edit.mask, look.edit.clean[index]
        variable = change.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            seen = look.view(look.path.sight.perturbed(variable), rng)
            with fast(change.device):
                got = self.respond(surrogate, seen, mask, look.draw)
            cells = under(mask, got, surrogate.multiple)
            if not look.edit.breaks:
                loss = HIDE_WEIGHT * squared(got, clean, cells)
                if look.view == View():  # others change an edit by themselves
                    look.path.saw(look.edit, index, float(edit_masks.off_by(got.detach(), clean, cells)))
            elif towards is None:
                loss = self.away(got, clean, cells)
            else:
                with torch.no_grad(), fast(change.device):
                    goal = self.goal(surrogate, towards(seen), mask, look.draw)
                loss = squared(got, goal, cells)
        (gradient,) = torch.autograd.grad(loss, variable)
        return gradient


def _is_check(done: int, iterations: int) -> bool:
    """Whether to ask if it is enough: a few times in the second half, where steps are small."""
    return iterations > done >= iterations / 2 and done % max(iterations // CHECKS, 1) == 0


def _start(task: Task, rng: np.random.Generator) -> Tensor:
    if task.warm and task.start is not None:
        return task.project(task.start)
    noise = torch.from_numpy(rng.uniform(-1, 1, tuple(task.image.shape)).astype(np.float32))
    change = task.grained(noise.to(task.image.device)) * task.budget.unit / 2
    return task.project(change if task.start is None else task.start + change)
