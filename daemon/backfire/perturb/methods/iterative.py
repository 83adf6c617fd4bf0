"""The iterative optimisation that our methods share; each says only what it looks at of an edit.

An iteration draws an attack path (`base.EditorInput`), a transform of the picture on its way (`transforms`)
and one edit of one region (`edit_masks`): expectation over transforms (EOT), one sample at a time. It asks
each surrogate how it responds to the perturbed picture under the edit's mask, and takes a momentum sign step
(MI-FGSM, arXiv 1710.06081) that pushes the response of a trigger edit away and keeps that of a benign edit.
The
momentum averages the last few iterations: three steps on one edit each cost what one step on three edits
does, and get further. The responses to the clean picture are constant and computed once.
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
from backfire.perturb.edit_masks import Edit, Edits, mask_at, masked_mse
from backfire.perturb.methods.base import IterationProgress, Proposal, Task, in_fixed_order, mixed_precision
from backfire.perturb.transforms import Transform, transforms
from backfire.types import Mask

MOMENTUM = 0.6
"""Less than is usual (0.9): at 80 steps 0.5 to 0.7 break more than 0.8, and that more than 0.9."""
STEPS = 0.5, 0.1
"""The first and the last step, in shares of the budget."""
HIDE_WEIGHT = 8.0
"""Weight of the hide loss against each of the two others; the published one is 2. Edits further away are left
alone by `Task.area`. Against flux2-mini, on a cat's face at 5 levels, an edit beside it keeps SSIM 0.95
at weight 8 and 0.90 at 4; the trigger edit breaks to 0.15 and 0.12, the dilated one to 0.47 and 0.40."""
CHECKS = 8
"""Into how many parts the iterations are divided; from the middle on each ends with an early-stop check."""
INCOMPLETE_ELSEWHERE, FAR_ELSEWHERE = 4, 2
"""Shapes drawn on attack paths other than the crop: each is another clean edit to compute."""


Step = Callable[[Tensor, int], Tensor]
"""(gradient 1,3,H,W, iteration) -> what is subtracted from the perturbation, 1,3,H,W; may keep a state."""


def momentum_sign(task: Task, iterations: int) -> Step:
    """The steps of MI-FGSM: large ones first to cross the budget, small ones last to settle."""
    momentum = torch.zeros_like(task.image)

    def step(gradient: Tensor, iteration: int) -> Tensor:
        momentum.mul_(MOMENTUM).add_(gradient)
        first, last = STEPS
        share = first + (last - first) * iteration / max(iterations - 1, 1)
        return share * task.budget.unit * task.grained(momentum).sign()

    return step


@dataclass(frozen=True, eq=False)
class _Sample:
    """What one iteration looks at: an edit to break or to keep, on one attack path, after one transform."""

    path: Edits
    transform: Transform
    draw: int
    edit: Edit


class IterativeMethod:
    """A `Method` but for its response; subclasses implement `respond` and may replace the rest.

    Attributes:
        draws: how many noises of the editor's own are drawn from.
        stepper: the optimiser: (task, iterations) -> `Step`, made anew for each run.
    """

    draws = 1
    stepper: Callable[[Task, int], Step] = staticmethod(momentum_sign)

    def respond(self, surrogate: Editor, image: Tensor, mask: Tensor, draw: int) -> Tensor:
        """What is looked at of an edit, see `edit_masks.Respond`; differentiable in `image`."""
        raise TypeError(f"{type(self).__name__} lacks respond")

    def shapes(self, mask: Mask, rng: np.random.Generator) -> list[Mask]:
        """The incomplete triggers of a region."""
        return edit_masks.triggers(mask, rng)

    def away(self, got: Tensor, clean: Tensor, cells: Tensor) -> Tensor:
        """The loss that breaks the responses of trigger edits (`target: away`); N,c,y,x twice and N,1,y,x."""
        return -masked_mse(got, clean, cells)

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
        progress: IterationProgress,
    ) -> Proposal:
        """See `Method.run`. The regions of a crop take turns, an iteration each, and so do their paths."""
        regions = [self._paths(task, index, surrogates, rng) for index in range(len(task.regions))]
        choices = transforms(task.robust_to)
        towards = target_picture(target, task.image)
        perturbation = _start(task, rng)
        done = 0
        step = self.stepper(task, iterations)
        saliency = [torch.zeros_like(perturbation[0, 0]) for _ in surrogates]
        scales: dict[tuple[Edits, int], Tensor] = {}
        for iteration in range(iterations):
            turn, region = divmod(iteration, len(regions))
            sample = self._sample(regions[region], turn, choices, rng)
            gradient = torch.zeros_like(perturbation)
            for index, surrogate in enumerate(surrogates):
                find = partial(self._gradient, perturbation, sample, (index, surrogate), towards, rng)
                one = in_fixed_order(surrogate, rng, find)
                magnitude = one[0].abs().mean(dim=0)
                saliency[index] += magnitude
                # Scaled by its magnitude on trigger edits, so that no surrogate and no path drowns the
                # others.
                scale = scales.get((sample.path, index), magnitude.mean())
                if sample.edit.breaks:
                    scales[sample.path, index] = scale = scale.lerp(magnitude.mean(), 0.3)
                gradient += one / scale.clamp(min=1e-12)
            perturbation = task.project(perturbation - step(gradient, iteration))
            done = iteration + 1
            if task.early_stop and _is_check(done, iterations) and task.early_stop(perturbation):
                progress(iterations, iterations)
                break
            progress(done, iterations)
        return Proposal(perturbation, tuple(plane / done for plane in saliency), done)

    def _paths(
        self, task: Task, region: int, surrogates: Sequence[Editor], rng: np.random.Generator
    ) -> list[list[Edits]]:
        """The edits of a region on each of its paths, in groups, the crop first."""
        (crop,), *others = task.inputs(region)
        few = {"incomplete": INCOMPLETE_ELSEWHERE, "far": FAR_ELSEWHERE}
        return [
            [Edits(crop, surrogates, rng, self.respond, self.shapes)],
            *(
                [Edits(other, surrogates, rng, self.respond, self.shapes, **few) for other in group]
                for group in others
            ),
        ]

    def _sample(
        self,
        paths: Sequence[Sequence[Edits]],
        turn: int,
        choices: Sequence[Transform],
        rng: np.random.Generator,
    ) -> _Sample:
        """What the iteration of that number looks at.

        Every second one looks at the crop; in the others the groups of paths take turns, and so do the paths
        of a group. Half of the time nothing happens to the picture on its way.
        """
        crop, *others = paths
        turn, odd = divmod(turn, 2) if others else (turn, 0)
        turn, group = divmod(turn, len(others)) if odd else (turn, 0)
        paths_now = others[group] if odd else crop
        path = paths_now[turn % len(paths_now)]
        transform = choices[int(rng.integers(len(choices)))] if rng.random() < 0.5 else choices[0]
        draw = int(rng.integers(self.draws)) if self.draws > 1 else 0
        return _Sample(path, transform, draw, path.drawn(draw))

    def _gradient(
        self,
        perturbation: Tensor,
        sample: _Sample,
        numbered: tuple[int, Editor],
        towards: Callable[[Tensor], Tensor] | None,
        rng: np.random.Generator,
    ) -> Tensor:
        """Gradient of the loss by the perturbation, through one surrogate, which comes with its index."""
        index, surrogate = numbered
        mask, clean = sample.edit.mask, sample.edit.clean[index]
        variable = perturbation.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            given = sample.transform(sample.path.given.perturbed(variable), rng)
            with mixed_precision(perturbation.device):
                got = self.respond(surrogate, given, mask, sample.draw)
            cells = mask_at(mask, got, surrogate.multiple)
            if not sample.edit.breaks:
                loss = HIDE_WEIGHT * masked_mse(got, clean, cells)
                if sample.transform == Transform():  # others change an edit by themselves
                    error = float(edit_masks.relative_error(got.detach(), clean, cells))
                    sample.path.note_error(sample.edit, index, error)
            elif towards is None:
                loss = self.away(got, clean, cells)
            else:
                with torch.no_grad(), mixed_precision(perturbation.device):
                    goal = self.goal(surrogate, towards(given), mask, sample.draw)
                loss = masked_mse(got, goal, cells)
        (gradient,) = torch.autograd.grad(loss, variable)
        return gradient


def _is_check(done: int, iterations: int) -> bool:
    """Whether to ask for an early stop now: a few times in the second half, where steps are small."""
    return iterations > done >= iterations / 2 and done % max(iterations // CHECKS, 1) == 0


def _start(task: Task, rng: np.random.Generator) -> Tensor:
    if task.warm and task.start is not None:
        return task.project(task.start)
    drawn = torch.from_numpy(rng.uniform(-1, 1, tuple(task.image.shape)).astype(np.float32))
    noise = task.grained(drawn.to(task.image.device)) * task.budget.unit / 2
    return task.project(noise if task.start is None else task.start + noise)
