"""Optimise the perturbation of each crop within its bounds, and write it into the picture."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from backfire import attack_paths
from backfire.attack_paths import variants
from backfire.attack_paths.cropping import Crop
from backfire.attack_paths.hand_over import handing_over
from backfire.attack_paths.handed import MOST_CALLS, Handed
from backfire.attack_paths.tensors import crop_tensor, handed_pictures, to_tensor
from backfire.config import Protect
from backfire.inpaint.base import Editor
from backfire.perturb import methods, starts
from backfire.perturb.bounds import Bounds, plane, quantised
from backfire.perturb.methods.base import EditorInput, IterationProgress, Method, Task
from backfire.perturb.transforms import chained, half_of
from backfire.types import Box, Budget, Mask, Region, Rgb

CROPPED_AS = "iopaint"
"""The tool as which crops are planned: with `protect.paths: first` a crop stands for what it hands over."""

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


@dataclass(eq=False)
class Paths:
    """The attack paths on which the regions of a picture may reach an editor.

    Those are the tools' own, or the crops themselves, and sizes to be robust to, see `variants`.

    Attributes:
        rgb: uint8 H,W,3, the picture.
        crops: all crops of it.
        robust_to: `protect.robust_to`.
        through: the names of the attack paths by surrogate, its first one before others; the crop itself
            takes their place where there are none. Each surrogate is
            looked at on its own paths alone, as the verdict does. On those that are not its first and scale
            to the mask only the edit of the region is looked at: others would reach the model at other
            scales, and looked at in the region's own crop they hold up its edit.
        work_px: the long side, in pixels, at which what tools hand over at its own scale is worked at most.
        first_alone: whether the first path of each surrogate is the only one. Where that is `CROPPED_AS`, it
            is the crop itself, in which all regions of a crop are seen alike.
    """

    rgb: Rgb
    crops: Sequence[Crop]
    robust_to: Sequence[str]
    through: Sequence[Sequence[str]]
    device: torch.device
    work_px: int = 800
    first_alone: bool = False
    _whole: Tensor | None = field(default=None, init=False)
    _pictures: dict[Hashable, Tensor] = field(default_factory=dict, init=False)

    def of(self, region: Region, crop: Crop, rng: np.random.Generator) -> list[list[EditorInput]]:
        height, width = self.rgb.shape[:2]
        everything = [one for other in self.crops for one in other.regions]
        resized = variants.for_optimiser(region, crop, everything, height, width, self.robust_to, rng)
        tools = self._tools(region, crop) or [
            replace(_cropped(self.rgb, crop, region, self.device), first=True)
        ]
        others = [self._input(crop, one) for one in resized]
        if "chain" in self.robust_to:
            others.append(self._chained(region, crop, everything))
        groups = [tools, others]
        return [group for group in groups if group]

    def _tools(self, region: Region, crop: Crop) -> list[EditorInput]:
        """What each tool hands over, once for the surrogates of which it is the first and once for others."""
        handed: dict[str, list[EditorInput]] = {}

        def edits(name: str) -> bool:
            if name not in handed:
                handed[name] = self._handed(name, region, crop)
            return bool(handed[name])

        users: dict[tuple[str, bool], list[int]] = {}
        for index, paths in enumerate(self.through):
            # As the verdict does, which asks most of the first tool that edits anything of the region.
            own = filter(edits, paths)
            for number, name in enumerate(islice(own, 1) if self.first_alone else own):
                users.setdefault((name, number == 0), []).append(index)
        found, further = list[EditorInput](), list[EditorInput]()
        for (name, first), surrogates in users.items():
            alone = attack_paths.get(name).scales_to_mask and not first
            one, *others = (
                replace(given, first=first, alone=alone, surrogates=tuple(surrogates))
                for given in handed[name]
            )
            found.append(one)
            further += others
        # Last, since regions share what is remembered of their paths by place, and few have several contours.
        return found + further

    def _input(self, crop: Crop, variant: Crop) -> EditorInput:
        rows, columns = (torch.from_numpy(axis).to(self.device) for axis in variants.placement(crop, variant))

        def place(perturbation: Tensor) -> Tensor:
            return rows @ perturbation @ columns.T

        return EditorInput(self._tensor(variant), variant.masks()[0], variant.protected(), place)

    def _chained(self, region: Region, crop: Crop, everything: Sequence[Region]) -> EditorInput:
        """The surroundings of a region after `transforms.chained`, which halves them."""
        height, width = self.rgb.shape[:2]
        whole = variants.surroundings(region, crop, everything, height, width)
        given = self._input(crop, whole)
        half = replace(whole, size=(half_of(whole.size[0]), half_of(whole.size[1])))
        return EditorInput(
            chained(given.image),
            half.masks()[0],
            half.protected(),
            given.place,
            before=chained,
            untouched=given.image,
        )

    @cached_property
    def _protected(self) -> Mask:
        """H,W bool: every region of the picture."""
        height, width = self.rgb.shape[:2]
        together = np.zeros((height, width), np.bool_)
        for crop in self.crops:
            for one in crop.regions:
                together |= one.plane(height, width)
        return together

    def _handed(self, name: str, region: Region, crop: Crop) -> list[EditorInput]:
        """What a tool hands over for an edit of the region: an input for each call that the verdict follows.

        The worst of them counts there. A mask may have thousands of contours, and what the model gets of each
        takes time and memory.
        """
        if self.first_alone and name == CROPPED_AS:
            return [_cropped(self.rgb, crop, region, self.device)]
        calls = attack_paths.get(name).handed(region.plane(*self.rgb.shape[:2]))
        ranked = sorted(calls, key=lambda one: -one.edited_pixels)
        found = (self._called(one, region, crop) for one in ranked)
        return [*islice((one for one in found if one is not None), MOST_CALLS)]

    def _called(self, handed: Handed, region: Region, crop: Crop) -> EditorInput | None:
        """What the model gets in one call; None where that repaints nothing."""
        if handed.box == crop.box and handed.filters is None:
            return _cropped(self.rgb, crop, region, self.device)
        handed = handed.at_most(self.work_px)
        if not handed.repaints:
            return None
        protected = replace(handed, edited=self._protected).mask | handed.mask
        return EditorInput(
            self._picture(handed), handed.mask, protected, handing_over(handed, crop.box, crop.size)
        )

    def _picture(self, handed: Handed) -> Tensor:
        """What the model gets; of the whole picture it is the same for all regions, and kept."""
        if handed.inside != Box(0, 0, self.rgb.shape[1], self.rgb.shape[0]):
            return handed_pictures([self.rgb], handed, self.device)
        key = handed.box, handed.scaled, handed.filters, handed.padding, handed.outside
        if key not in self._pictures:
            self._pictures[key] = handed_pictures([self.rgb], handed, self.device)
        return self._pictures[key]

    def _tensor(self, variant: Crop) -> Tensor:
        """The whole picture is scaled once for all regions, as it may be a hundred megapixels."""
        if (variant.box.height, variant.box.width) != self.rgb.shape[:2]:
            return crop_tensor(self.rgb, variant, self.device)
        if self._whole is None or self._whole.shape[-2:] != variant.size:
            self._whole = crop_tensor(self.rgb, variant, self.device)
        return self._whole


def _cropped(rgb: Rgb, crop: Crop, region: Region, device: torch.device) -> EditorInput:
    """The crop itself, as editors are given it for an edit of one of its regions."""
    (mask,) = Crop(crop.box, (region,), crop.size).masks()
    return EditorInput(to_tensor(rgb[crop.box.slices], crop.size, device), mask, crop.protected())


def _shifted(progress: IterationProgress, offset: int, total: int) -> IterationProgress:
    return lambda done, _: progress(offset + done, total)
