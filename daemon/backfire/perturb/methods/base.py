"""What all methods share: the task, its projection, the proposal, and the protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar
from weakref import WeakSet

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from backfire.inpaint import hardware
from backfire.inpaint.base import Editor
from backfire.perturb.bounds import coarse_colour, within
from backfire.types import Box, Budget, Mask

IterationProgress = Callable[[int, int], None]
"""Called as progress(done, total) after each iteration; may raise to stop the work."""


@dataclass(frozen=True, eq=False)
class EditorInput:
    """What an editor is given on one attack path: part of the picture at some size.

    Attributes:
        image: float32 1,3,h,w, RGB in [0,1], unperturbed.
        mask: h,w bool, True in the region.
        protected: h,w bool, True in everything that is protected here.
        place: what becomes of a perturbation 1,3,H,W of the crop on this path, 1,3,h,w, linear; None where
            the input is the crop itself.
        before: what happens to the picture on its way to this path, such as `transforms.chained`: from
            1,3,y,x to 1,3,h,w, differentiable; None for nothing.
        untouched: 1,3,y,x, the unperturbed picture before that; `place` places a perturbation in it.
        first: whether it is on a surrogate's first attack path, where the verdict asks edits of every kind.
        alone: whether the edit of the region is the only one to look at in this input, see `Paths`.
        surrogates: the numbers of those that are looked at in this input, since the verdict replays an editor
            in its own tools alone; None for all.
    """

    image: Tensor
    mask: Mask
    protected: Mask
    place: Callable[[Tensor], Tensor] | None = None
    before: Callable[[Tensor], Tensor] | None = None
    untouched: Tensor | None = None
    first: bool = False
    alone: bool = False
    surrogates: tuple[int, ...] | None = None

    def perturbed(self, perturbation: Tensor) -> Tensor:
        """The input with a perturbation 1,3,H,W of the crop; 1,3,h,w, differentiable."""
        placed = perturbation if self.place is None else self.place(perturbation)
        if self.before is None or self.untouched is None:
            return self.image + placed
        return self.before(self.untouched + placed)


@dataclass(frozen=True, eq=False)
class Task:
    """What a method works on: one crop.

    Attributes:
        image: float32 1,3,H,W, RGB in [0,1].
        regions: one H,W bool mask for each protected region.
        protected: H,W bool, everything protected here: the regions and what of neighbours reaches in.
        area: float32 1,1,H,W in [0,1]: the share of the budget that each pixel may use.
        budget: the bound on the perturbation.
        start: a perturbation 1,3,H,W that is there already, made by an overlapping crop or in a round
            before; the area admits it.
        there: the part of it, 1,3,H,W, that an overlapping crop made and that must stay.
        warm: whether the start was made in a round before, to go on from without noise.
        paths: for each region, the inputs of editors, in groups that matter alike, the most important one
            first; empty for this crop alone.
        grain: side, in pixels, of the squares that are perturbed as one.
        grids: how many grids of such squares the perturbation is a sum of, each twice as coarse as the one
            before: what a tool shrinks keeps the coarse ones.
        by_need: whether each iteration draws one of a region's paths, more often those that are further from
            broken; else every second one is for the first group, and the others take turns.
        apart: 1,3,H,W: the shares of the budget by which luma, Cb and Cr of each pixel may move, see
            `bounds`; None where these have no bounds of their own.
        starts: tiles K,3,h,w in [-1,1] of the budget that were stored for the surrogates, see `starts`.
        hide_weight: the weight of the hide loss, which keeps benign edits, against each of the two others,
            whose gradients may weigh more on a first path (`iterative.FIRST_WEIGHT`);
            the published one is 2. Edits further away than `area` reaches are left alone anyway.
        decay: the share of the perturbation that each iteration takes back, see `decayed`.
        coarse_colour_decay: the share of what is coarse and in colour that it takes back beside that.
        robust_to: what the perturbation is to survive: the transforms `jpeg` and `blur`, and `masks` that are
            painted otherwise.
        early_stop: whether a perturbation 1,3,H,W needs no more work; None where all iterations are wanted.
    """

    image: Tensor
    regions: Sequence[Mask]
    protected: Mask
    area: Tensor
    budget: Budget
    start: Tensor | None = None
    there: Tensor | None = None
    warm: bool = False
    paths: Sequence[Sequence[Sequence[EditorInput]]] = ()
    grain: int = 1
    grids: int = 1
    by_need: bool = False
    apart: Tensor | None = None
    starts: Tensor | None = None
    hide_weight: float = 1.5
    decay: float = 0.0
    coarse_colour_decay: float = 0.0
    robust_to: Sequence[str] = ()
    early_stop: Callable[[Tensor], bool] | None = None

    def inputs(self, region: int) -> list[Sequence[EditorInput]]:
        """What editors are given of the region of that index, in groups."""
        paths = self.paths[region] if self.paths else ()
        return [*paths] or [[EditorInput(self.image, self.regions[region], self.protected, first=True)]]

    def stored_starts(self) -> Iterator[Tensor]:
        """Each of the stored starts, repeated over the crop: 1,3,H,W."""
        if self.starts is not None:
            for tile in self.starts:
                yield tiled(tile, self.image) * self.budget.unit

    def grained(self, plane: Tensor, grid: int = 0) -> Tensor:
        """The mean of 1,3,H,W over each square of the grid of that number."""
        side = self.grain << grid
        if side == 1:
            return plane
        small = F.avg_pool2d(plane, side, ceil_mode=True, count_include_pad=False)
        large = small.repeat_interleave(side, dim=2).repeat_interleave(side, dim=3)
        return large[..., : plane.shape[2], : plane.shape[3]]

    def active(self) -> Box:
        """The part in which anything may change, out to whole squares of the coarsest grid."""
        side = self.grain << (self.grids - 1)
        height, width = self.image.shape[-2:]
        allowed = (self.area[0, 0] > 0).cpu().numpy()
        box = Box.around(allowed) if allowed.any() else Box(0, 0, width, height)
        right, bottom = (-(-end // side) * side for end in (box.right, box.bottom))
        return Box(box.left // side * side, box.top // side * side, min(right, width), min(bottom, height))

    def part(self, box: Box) -> Task:
        """The same for a part of the crop, as far as `project`, `grained` and `decayed` go."""
        here = (..., *box.slices)
        apart, there = (None if plane is None else plane[here] for plane in (self.apart, self.there))
        return replace(self, image=self.image[here], area=self.area[here], apart=apart, there=there)

    def decayed(self, perturbation: Tensor) -> Tensor:
        """A perturbation 1,3,H,W but for the shares that an iteration takes back.

        What gradients do not renew fades, so that pixels which hardly matter hardly change (weight decay).
        What an overlapping crop made stays.
        """
        if not (self.decay or self.coarse_colour_decay):
            return perturbation
        kept = perturbation * (1 - self.decay)
        if self.there is not None:
            kept = kept + self.there * self.decay
        if self.coarse_colour_decay:
            own = perturbation if self.there is None else perturbation - self.there
            kept = kept - self.coarse_colour_decay * coarse_colour(own)
        return kept

    def project(self, perturbation: Tensor) -> Tensor:
        """An allowed perturbation near it: within area x budget and the bounds apart, image in [0,1]."""
        unit = self.budget.unit
        apart = None if self.apart is None else self.apart * unit
        return within(perturbation, self.area * unit, apart, self.image)


def tiled(tile: Tensor, like: Tensor) -> Tensor:
    """A tile 3,h,w repeated from the top left corner over a picture 1,3,H,W; the picture's shape."""
    height, width = like.shape[-2:]
    down, across = -(-height // tile.shape[-2]), -(-width // tile.shape[-1])
    return tile.to(like).repeat(1, down, across)[None, :, :height, :width]


@dataclass(frozen=True, eq=False)
class Proposal:
    """What a method found.

    Attributes:
        perturbation: 1,3,H,W on [0,1] images, to be added to the task's image.
        saliency: by surrogate, its saliency map H,W: the mean absolute gradient of its loss over channels
            and iterations, before the surrogates are balanced.
        iterations: how many were made.
    """

    perturbation: Tensor
    saliency: tuple[Tensor, ...]
    iterations: int

    @property
    def gradients(self) -> tuple[float, ...]:
        """By surrogate, the mean of its saliency map."""
        return tuple(float(plane.mean()) for plane in self.saliency)


class Method(Protocol):
    """Finds a perturbation; deterministic given `rng`."""

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
        """See the method's own docstring. Inputs are not mutated."""
        ...


def mixed_precision(device: torch.device) -> torch.autocast:
    """A context of mixed precision where the hardware is quicker at bfloat16; float32 elsewhere."""
    if device.type == "cuda":
        return torch.autocast("cuda", torch.bfloat16, enabled=torch.cuda.is_bf16_supported())
    return torch.autocast("cpu", torch.bfloat16, enabled=hardware.cpu_prefers_bfloat16())


T = TypeVar("T")
_UNORDERED: WeakSet[Editor] = WeakSet()
"""Editors with an operator that has no fixed order on their device."""


def in_fixed_order(surrogate: Editor, rng: np.random.Generator, work: Callable[[], T]) -> T:
    """What `work` returns, its sums taken in a fixed order wherever the surrogate's operators have one.

    Where torch is merely asked for determinism (see `hardware.pick_device`), attention still sums its
    gradients in any order, and only warns. So torch is told to be strict while `work` runs. If an operator
    cannot be, `work` is done again without, with the same draws from `rng`, and so is all later work of this
    surrogate.
    """
    if surrogate in _UNORDERED or not torch.are_deterministic_algorithms_enabled():
        return work()
    state = rng.bit_generator.state
    try:
        with _strict():
            return work()
    except Exception as error:  # torch's own, or a model's that wraps it
        if "deterministic" not in str(error):
            raise
    _UNORDERED.add(surrogate)
    rng.bit_generator.state = state
    return work()


@contextmanager
def _strict() -> Iterator[None]:
    lenient = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=lenient)
