"""The iterative optimisation that our methods share; each says only what it looks at of an edit.

An iteration draws an attack path (`base.EditorInput`), a transform of the picture on its way (`transforms`)
and one edit of one region (`edit_masks`): expectation over transforms (EOT), one sample at a time. It asks
each surrogate that is judged on that path how it responds to the perturbed picture under the edit's mask, and
takes a momentum step (`budget_step`, after MI-FGSM, arXiv 1710.06081) that pushes the response of a trigger
edit away and keeps that of a benign edit. The momentum, of which each attack path has its own (`Search`),
averages the last few iterations: three steps on one edit each cost what one step on three edits does, and
get further. The responses to the clean picture are constant and computed once.

It is one long module because the steps of a method and the search that asks it for gradients are understood
together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from backfire.errors import Code, ModelError
from backfire.inpaint.base import Editor
from backfire.inpaint.targets import target_picture
from backfire.perturb import edit_masks
from backfire.perturb.bounds import gradient_in_ycbcr, to_rgb
from backfire.perturb.edit_masks import FAR, INCOMPLETE, Edit, Edits, mask_at, masked_mse
from backfire.perturb.methods.base import (
    EditorInput,
    IterationProgress,
    Proposal,
    Task,
    in_fixed_order,
    mixed_precision,
)
from backfire.perturb.transforms import Transform, transforms
from backfire.types import Mask

MOMENTUM = 0.6
"""Less than is usual (0.9): at 80 steps 0.5 to 0.7 break more than 0.8, and that more than 0.9."""
STEPS = 0.5, 0.1
"""The first and the last step, in shares of the budget."""
FULL = 3.0
"""How large the gain of a pixel must be for a full step, as its inverse share of the root mean square."""
CHECKS = 8
"""Into how many parts the iterations are divided; from the middle on each ends with an early-stop check."""
NEED = 0.1
"""Added to how far the edits of a path are from the clean ones, before paths are drawn by its inverse: a path
on which nothing breaks is drawn some ten times as often as one on which everything does."""
FIRST_WEIGHT, SPOILT_WEIGHT = 2.0, 3.0
"""The weights on the first path of a surrogate, where the verdict asks most, of trigger edits and of benign
ones that are off by more than is tolerated, beside edits on each other path that is drawn by need."""
INCOMPLETE_ELSEWHERE, FAR_ELSEWHERE = 0, 2
"""Shapes drawn on attack paths that are no surrogate's first; the verdict asks for the region's edit."""
MOST_PASSED_OVER = 5
"""So many gradients of a surrogate in a row that are not finite are an error; fewer are passed over."""
REPAINTED, REPAINTED_ELSEWHERE = 32, 8
"""Incomplete triggers drawn with `robust_to: [masks]` on first attack paths and on others, unless the edit of
the region is looked at there alone."""


Step = Callable[[Tensor, int], Tensor]
"""(averaged gradient 1,3,H,W, iteration) -> what is subtracted from the perturbation, 1,3,H,W; may keep a
state."""


def budget_step(task: Task, iterations: int) -> Step:
    """The steps of MI-FGSM: large ones first to cross the budget, small ones last to settle.

    Where luma and colour have bounds of their own, the step is made in these: one in red, green and blue is
    mostly one in luma, which a flat area may not take. And it is shorter where it gains less, see `FULL`, so
    that pixels which hardly matter hardly change.
    """

    apart = None if task.apart is None else [task.grained(task.apart, grid) for grid in range(task.grids)]

    def on_grid(gradient: Tensor, grid: int) -> Tensor:
        slope = task.grained(gradient, grid)
        if apart is None:
            return slope.sign()
        bound = apart[grid]
        gain = (slope * bound).nan_to_num(0, 0, 0)
        size = gain.square().sum().div((bound > 0).sum().clamp(min=1)).sqrt()
        return bound * (FULL * gain / size.clamp(min=1e-20)).clamp(-1, 1)

    def step(gradient: Tensor, iteration: int) -> Tensor:
        first, last = STEPS
        share = first + (last - first) * iteration / max(iterations - 1, 1)
        slopes = gradient if apart is None else gradient_in_ycbcr(gradient)
        direction = sum((on_grid(slopes, grid) for grid in range(task.grids)), torch.zeros(())) / task.grids
        return share * task.budget.unit * (direction if apart is None else to_rgb(direction))

    return step


def summed(gradients: Sequence[Tensor]) -> Tensor:
    """The gradients of all surrogates as one, each of which is scaled to the same magnitude before."""
    return torch.stack([*gradients]).sum(dim=0)


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
        decays: whether all of the perturbation decays, see `Task.decayed`, which was measured with `implant`
            alone; coarse colour does with any method.
        stepper: the optimiser: (task, iterations) -> `Step`, made anew for each run.
        combine: makes one gradient of those of the surrogates, 1,3,H,W each.
    """

    draws = 1
    decays = False
    combine: Callable[[Sequence[Tensor]], Tensor] = staticmethod(summed)
    stepper: Callable[[Task, int], Step] = staticmethod(budget_step)

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
        search = Search(self, task, surrogates, target, rng)
        perturbation = search.start()
        # Most of a crop is beyond the reach of its regions, and there nothing is ever changed.
        active = task.active()
        here, part = (..., *active.slices), task.part(active)
        if not self.decays:
            part = replace(part, decay=0.0)
        step = self.stepper(part, iterations)
        for iteration in range(iterations):
            gradient = search.gradient(perturbation)[here]
            before = perturbation[here]
            perturbation[here] = part.project(part.decayed(before) - step(gradient, iteration))
            done = iteration + 1
            if task.early_stop and _is_check(done, iterations) and task.early_stop(perturbation):
                progress(iterations, iterations)
                break
            progress(done, iterations)
        looked = zip(search.saliency, search.looks, strict=True)
        return Proposal(perturbation, tuple(plane / max(count, 1) for plane, count in looked), done)


class Search:
    """The gradients of one run: what each iteration looks at, and what is remembered of those before.

    Each attack path has an average of the gradients of its trigger edits and one of its benign edits. The sum
    of all is followed. Otherwise what one iteration does for a tool, or for the edits beside a region,
    would be undone by the next ones, which look at others.

    Args:
        method: says what is looked at of an edit.
        target: as in `Method.run`.

    Attributes:
        saliency: by surrogate, H,W: the summed mean absolute gradient over channels.
        looks: by surrogate, of how many iterations that is the sum.
    """

    def __init__(
        self,
        method: IterativeMethod,
        task: Task,
        surrogates: Sequence[Editor],
        target: str,
        rng: np.random.Generator,
    ) -> None:
        self._method, self._task, self._surrogates, self._rng = method, task, surrogates, rng
        self._regions = [self._paths(index) for index in range(len(task.regions))]
        self._transforms = transforms(task.robust_to)
        self._towards = target_picture(target, task.image)
        self._scales: dict[tuple[Edits, int], Tensor] = {}
        self._averages: dict[tuple[int, bool], Tensor] = {}
        self._active = (..., *task.active().slices)
        self._made = 0
        self.saliency = [torch.zeros_like(task.image[0, 0]) for _ in surrogates]
        self.looks = [0 for _ in surrogates]
        self._passed_over = [0 for _ in surrogates]

    def start(self) -> Tensor:
        """Where to begin, 1,3,H,W: what is there already, the best of the stored starts, or noise."""
        task = self._task
        if task.warm and task.start is not None:
            return task.project(task.start)
        drawn = torch.from_numpy(self._rng.uniform(-1, 1, tuple(task.image.shape)).astype(np.float32))
        noise = task.grained(drawn.to(task.image.device)) * task.budget.unit / 2
        stored = [task.project(plane) for plane in task.stored_starts()]
        best = max(stored, key=self.broken) if stored else noise
        return task.project(best if task.start is None else task.start + best)

    def broken(self, perturbation: Tensor) -> float:
        """How far edits of the regions are from the clean ones, the mean over regions, paths and surrogates.

        Of each the relative error counts, at most 1: what breaks on every path is better than what breaks
        altogether on one.
        """
        errors = []
        for path in (path for groups in self._regions for group in groups for path in group):
            edit = path.take("full")
            assert edit is not None
            for index, surrogate in path.surrogates.items():
                with torch.no_grad(), mixed_precision(perturbation.device):
                    got = self._method.respond(surrogate, path.given.perturbed(perturbation), edit.mask, 0)
                cells = mask_at(edit.mask, got, surrogate.multiple)
                error = float(edit_masks.relative_error(got, edit.clean[index], cells))
                errors.append(min(error, 1.0) if math.isfinite(error) else 0.0)
        return sum(errors) / len(errors)

    @property
    def noted(self) -> float:
        """As `broken`, of what the iterations have looked at, without another look."""
        paths = [path for groups in self._regions for group in groups for path in group]
        return sum(path.broken for path in paths) / len(paths)

    def gradient(self, perturbation: Tensor) -> Tensor:
        """The averaged gradient 1,3,H,W after one more look: at one edit of one region on one path.

        It is zero outside of `Task.active`.

        A surrogate whose gradient is not finite there is passed over, as it would ruin all averages for good.

        Raises:
            ModelError: it was so several times in a row.
        """
        turn, region = divmod(self._made, len(self._regions))
        self._made += 1
        paths, rng = self._regions[region], self._rng
        path = neediest(paths, rng) if self._task.by_need else _next(paths, turn)
        sample = self._sample(path)
        gradients: list[Tensor] = []
        for index, surrogate in path.surrogates.items():
            find = partial(self._of_one, perturbation, sample, index)
            one = in_fixed_order(surrogate, rng, find)
            magnitude = one[0].abs().mean(dim=0)
            if not magnitude.mean().isfinite():
                self._pass_over(index)
                continue
            self._passed_over[index] = 0
            self.saliency[index] += magnitude
            self.looks[index] += 1
            # Scaled by its magnitude on trigger edits, so that no surrogate and no path drowns the others.
            scale = self._scales.get((path, index), magnitude.mean())
            if sample.edit.breaks:
                self._scales[path, index] = scale = scale.lerp(magnitude.mean(), 0.3)
            gradients.append(one / scale.clamp(min=1e-12))
        if gradients:
            gradient = self._method.combine(gradients)
            # The regions of a crop share the averages, as there may be many regions and a plane is large.
            every = [one for group in paths for one in group]
            slot = every.index(path), sample.edit.breaks
            weight = self._weight(path, sample.edit) if len(every) > 1 else 1.0
            part = gradient[self._active]
            known = self._averages.setdefault(slot, torch.zeros_like(part))
            known.mul_(MOMENTUM).add_(part, alpha=weight)
        total = torch.zeros_like(perturbation)
        for average in self._averages.values():
            total[self._active] += average
        return total

    def _pass_over(self, index: int) -> None:
        """Count a gradient that is not finite, through the surrogate of that index."""
        self._passed_over[index] += 1
        if self._passed_over[index] == MOST_PASSED_OVER:
            subject = f"editor {self._surrogates[index].name}"
            got = f"its gradient was not finite in {MOST_PASSED_OVER} iterations in a row"
            remedy = "let it compute in float32, or leave it out of protect.surrogates"
            # Retryable, since it may be this picture's own trouble: others must not wait for it.
            raise ModelError(Code.MODEL, f"{subject}: {got}, expected finite numbers; {remedy}")

    def _weight(self, path: Edits, edit: Edit) -> float:
        """The weight of an edit's gradient in the average of its path, see `FIRST_WEIGHT`."""
        if not (self._task.by_need and path.given.first):
            return 1.0
        if edit.breaks:
            return FIRST_WEIGHT
        return SPOILT_WEIGHT if edit.kind in path.spoilt else 1.0

    def _paths(self, region: int) -> list[list[Edits]]:
        """The edits of a region on each of its paths, in groups, the most important path first."""
        return [[self._edits(given) for given in group] for group in self._task.inputs(region)]

    def _edits(self, given: EditorInput) -> Edits:
        method = self._method
        incomplete, far = (INCOMPLETE, FAR) if given.first else (INCOMPLETE_ELSEWHERE, FAR_ELSEWHERE)
        shapes = method.shapes
        if "masks" in self._task.robust_to:
            incomplete = REPAINTED if given.first else REPAINTED_ELSEWHERE
            shapes = partial(edit_masks.repainted, shapes=shapes)
        drawn_from = method.respond, shapes
        return Edits(given, self._surrogates, self._rng, *drawn_from, incomplete=incomplete, far=far)

    def _sample(self, path: Edits) -> _Sample:
        """What an iteration looks at on a path. Half of the time nothing happens to the picture before."""
        choices, rng, draws = self._transforms, self._rng, self._method.draws
        transform = choices[int(rng.integers(len(choices)))] if rng.random() < 0.5 else choices[0]
        draw = int(rng.integers(draws)) if draws > 1 else 0
        return _Sample(path, transform, draw, path.drawn(draw))

    def _of_one(self, perturbation: Tensor, sample: _Sample, index: int) -> Tensor:
        """Gradient of the loss by the perturbation, through the surrogate of that index."""
        method, surrogate = self._method, self._surrogates[index]
        mask, clean = sample.edit.mask, sample.edit.clean[index]
        variable = perturbation.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            given = sample.transform(sample.path.given.perturbed(variable), self._rng)
            with mixed_precision(perturbation.device):
                got = method.respond(surrogate, given, mask, sample.draw)
            cells = mask_at(mask, got, surrogate.multiple)
            if not sample.edit.breaks:
                loss = self._task.hide_weight * masked_mse(got, clean, cells)
            elif self._towards is None:
                loss = method.away(got, clean, cells)
            else:
                with torch.no_grad(), mixed_precision(perturbation.device):
                    goal = method.goal(surrogate, self._towards(given), mask, sample.draw)
                loss = masked_mse(got, goal, cells)
            if sample.transform == Transform():  # others change an edit by themselves
                error = float(edit_masks.relative_error(got.detach(), clean, cells))
                sample.path.note_error(sample.edit, index, error)
        (gradient,) = torch.autograd.grad(loss, variable)
        return gradient


def _next(paths: Sequence[Sequence[Edits]], turn: int) -> Edits:
    """The path of an iteration: every second one is of the first group; in the others the further groups take
    turns, and so do the paths of a group.
    """
    most, *others = paths
    turn, odd = divmod(turn, 2) if others else (turn, 0)
    turn, group = divmod(turn, len(others)) if odd else (turn, 0)
    now = others[group] if odd else most
    return now[turn % len(now)]


def neediest(paths: Sequence[Sequence[Edits]], rng: np.random.Generator) -> Edits:
    """Half of the time a first path of a surrogate, on which the verdict asks edits of every kind.

    Else one of the others, drawn more often the less its trigger edits break.
    """
    every = [path for group in paths for path in group]
    first = [path for path in every if path.given.first]
    others = [path for path in every if not path.given.first]
    if first and (not others or rng.random() < 0.5):
        return first[int(rng.integers(len(first)))] if len(first) > 1 else first[0]
    needs = np.array([1 / (NEED + path.broken) for path in others])
    return others[int(rng.choice(len(others), p=needs / needs.sum()))]


def _is_check(done: int, iterations: int) -> bool:
    """Whether to ask for an early stop now: a few times in the second half, where steps are small."""
    return iterations > done >= iterations / 2 and done % max(iterations // CHECKS, 1) == 0
