"""Optimise the perturbation of each crop within its bounds, and write it into the picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from backfire.attack_paths.cropping import Crop
from backfire.attack_paths.tensors import to_tensor
from backfire.config import Protect
from backfire.inpaint.base import Editor
from backfire.perturb import methods, starts
from backfire.perturb.bounds import Bounds, plane, quantised
from backfire.perturb.methods.base import EditorInput, IterationProgress, Method, Task
from backfire.perturb.paths import Paths
from backfire.types import Budget, Region, Rgb

EarlyStop = Callable[[Rgb, Crop, Budget | None], bool]
"""Called as early_stop(picture so far, crop, after): whether the crop needs no more work.

The picture is in whole levels. Within a round `after` is None. At the end of a round it is the budget of the
picture so far, and then it is enough that the edits of the region break, whatever becomes of others."""


@dataclass(frozen=True, eq=False)
class Optimised:
    """What was optimised.

    Attributes:
        rgb: uint8 H,W,3: the picture within the budget, equal to the original outside the crops.
        crops: what was optimised.
        gradients: by surrogate, the mean absolute gradient before balancing: the mean of
            `Proposal.gradients` over the rounds of all crops, weighed by their iterations.
        iterations: how many were made, in all.
        rounds: by crop, how many it took, see `Protect.rounds`.
        budget: the largest that was needed.
        saliency: by crop and surrogate, `Proposal.saliency` of its last round: float32 h,w at the
            crop's working size.
    """

    rgb: Rgb
    crops: tuple[Crop, ...]
    gradients: tuple[float, ...]
    iterations: int
    rounds: tuple[int, ...]
    budget: Budget
    saliency: tuple[tuple[np.ndarray, ...], ...]

    def crop_of(self, region: Region) -> int:
        """The index of the crop in which a region was optimised."""
        return next(at for at, crop in enumerate(self.crops) if any(one is region for one in crop.regions))


@dataclass(frozen=True, eq=False)
class Optimiser:
    """Optimises pictures under one set of settings.

    Attributes:
        method: proposes the perturbations; None takes the one that the settings name.
        through: by surrogate, the attack paths to optimise through, its most important one first, which alone
            counts if `protect.paths` says `first`. Without any the crop itself is looked at.

    Raises:
        ValueError: from `optimise`, there are attack paths, but not those of each surrogate.
        ConfigError: from `optimise`, the method cannot use one of the surrogates.
    """

    settings: Protect
    surrogates: Sequence[Editor]
    device: torch.device
    method: Method | None = None
    through: Sequence[Sequence[str]] = ()

    def optimise(
        self,
        rgb: Rgb,
        crops: Sequence[Crop],
        *,
        grey: bool,
        rng: np.random.Generator,
        progress: IterationProgress,
        early_stop: EarlyStop | None = None,
    ) -> Optimised:
        """The protected picture, 8 bit.

        A crop goes through the rounds of the settings, each of which begins with the perturbation of the
        one before, until it needs no more of them.

        Args:
            rgb: uint8 H,W,3, upright; not mutated.
            grey: whether the perturbation must be grey.
            progress: called with (iterations done, iterations in all); may raise to stop.
            early_stop: asked with `stop_early` now and then within a round, and before each further round.
        """
        if self.through and len(self.through) != len(self.surrogates):
            expected = f"expected those of {len(self.surrogates)} surrogates"
            raise ValueError(f"through: got attack paths of {len(self.through)}, {expected}")
        each = sum(one.iterations for one in self.settings.rounds())
        work = _Work(rgb, self, grey, rng, each * sum(len(crop.regions) for crop in crops))
        paths = Paths(
            rgb,
            crops,
            self.settings.robust_to,
            self.through,
            self.device,
            self.settings.work_px,
            first_alone=self.settings.paths == "first",
        )
        for crop in crops:
            end = work.done + each * len(crop.regions)
            work.crop(crop, [paths.of(region, crop, rng) for region in crop.regions], progress, early_stop)
            if work.done < end:
                progress(end, work.total)
            work.done = end
        budget = Budget(self.settings.rounds()[max(work.rounds, default=1) - 1].epsilon)
        gradients = tuple((work.gradients / max(work.made, 1)).tolist())
        rounds, saliency = tuple(work.rounds), tuple(work.saliency)
        return Optimised(work.result, tuple(crops), gradients, work.made, rounds, budget, saliency)


class _Work:
    """One picture while it is optimised, crop by crop.

    Attributes:
        result: uint8 H,W,3, the picture so far.
        done: iterations done or skipped; `total` is how many there may be.
        made: iterations made.
        rounds, saliency: by crop, as in `Optimised`.
        gradients: by surrogate, summed over iterations.
    """

    def __init__(
        self, rgb: Rgb, optimiser: Optimiser, grey: bool, rng: np.random.Generator, total: int
    ) -> None:
        self._rgb, self._optimiser, self._grey, self._rng = rgb, optimiser, grey, rng
        self._method = optimiser.method or methods.get(optimiser.settings.method, optimiser.surrogates)
        self._perturbation = np.zeros(rgb.shape, dtype=np.float32)
        self.result = rgb.copy()
        self.total, self.done, self.made = total, 0, 0
        self.rounds: list[int] = []
        self.saliency: list[tuple[np.ndarray, ...]] = []
        self.gradients = np.zeros(len(optimiser.surrogates))

    def crop(
        self,
        crop: Crop,
        paths: Sequence[Sequence[Sequence[EditorInput]]],
        progress: IterationProgress,
        early_stop: EarlyStop | None,
    ) -> None:
        """Optimise one crop; `paths` are those of its regions, see `Task.paths`."""
        settings, device, here = self._optimiser.settings, self._optimiser.device, crop.box.slices
        # What an overlapping crop wrote before stays allowed, or its protection would be cut off here.
        before = self._perturbation[here].copy()
        task = partial(
            Task,
            image=to_tensor(self._rgb[here], crop.size, device),
            regions=crop.masks(),
            protected=crop.protected(),
            paths=paths,
            grain=settings.grain_px,
            grids=settings.grids,
            by_need=settings.paths == "all" and bool(self._optimiser.through),
            starts=starts.stored(self._optimiser.surrogates) if settings.stored_start else None,
            hide_weight=settings.hide_weight,
            decay=settings.decay,
            coarse_colour_decay=settings.coarse_colour_decay,
            robust_to=settings.robust_to,
        )
        start = there = plane(before, crop.size, device) if before.any() else None
        rounds = settings.rounds()
        for number, now in enumerate(rounds, 1):
            budget = Budget(now.epsilon)
            bounds = Bounds.of(self._rgb, crop, now, before, grey=self._grey)
            apart = None if bounds.apart is None else plane(bounds.apart / budget.unit, crop.size, device)
            work = task(
                area=plane(bounds.most / budget.unit, crop.size, device),
                apart=apart,
                budget=budget,
                start=start,
                there=there,
                warm=number > 1,
            )
            if early_stop is not None and settings.stop_early:
                work = replace(work, early_stop=self._stopping(work, crop, bounds, early_stop))
            iterations = now.iterations * len(crop.regions)
            proposed = self._method.run(
                work,
                self._optimiser.surrogates,
                iterations=iterations,
                target=settings.target,
                rng=self._rng,
                progress=_shifted(progress, self.done, self.total),
            )
            start = work.project(proposed.perturbation)
            self._perturbation[here] = bounds.at_own_size(start, crop, self._rgb[here])
            self.result[here] = quantised(self._rgb[here], self._perturbation[here])
            self.gradients += np.array(proposed.gradients) * proposed.iterations
            self.made, self.done = self.made + proposed.iterations, self.done + iterations
            if number == len(rounds) or proposed.iterations < iterations:
                break
            largest = Budget(rounds[max([*self.rounds, number]) - 1].epsilon)
            if early_stop is not None and early_stop(self.result, crop, largest):
                break
        self.rounds.append(number)
        self.saliency.append(tuple(plane.cpu().numpy() for plane in proposed.saliency))

    def _stopping(
        self, task: Task, crop: Crop, bounds: Bounds, early_stop: EarlyStop
    ) -> Callable[[Tensor], bool]:
        """`early_stop`, asked of a perturbation. It writes into `result`, as a copy may be large."""
        here = crop.box.slices

        def asked(perturbation: Tensor) -> bool:
            at_own_size = bounds.at_own_size(task.project(perturbation), crop, self._rgb[here])
            self.result[here] = quantised(self._rgb[here], at_own_size)
            return early_stop(self.result, crop, None)

        return asked


def _shifted(progress: IterationProgress, offset: int, total: int) -> IterationProgress:
    return lambda done, _: progress(offset + done, total)
