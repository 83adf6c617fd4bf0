"""What all methods share: their task, its projection, their protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar
from weakref import WeakSet

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from backfire.inpaint import hardware
from backfire.inpaint.base import Editor
from backfire.perturb.perception import LUMA
from backfire.types import Budget, Mask

Progress = Callable[[int, int], None]
"""Called as progress(done, total) after each iteration; may raise to stop the work."""


@dataclass(frozen=True, eq=False)
class Sight:
    """What an editor is given of the picture on one path: a cut and size, the crop's change in its place.

    Attributes:
        image: float32 1,3,h,w, RGB in [0,1], unperturbed.
        mask: h,w bool, the region.
        protected: h,w bool, everything protected here.
        rows, columns: h,H and w,W: how the crop's change H,W lies here; None where it is the crop.
    """

    image: Tensor
    mask: Mask
    protected: Mask
    rows: Tensor | None = None
    columns: Tensor | None = None

    def perturbed(self, change: Tensor) -> Tensor:
        """The picture with a change 1,3,H,W of the crop; 1,3,h,w, differentiable."""
        if self.rows is None or self.columns is None:
            return self.image + change
        return self.image + self.rows @ change @ self.columns.T


@dataclass(frozen=True, eq=False)
class Task:
    """What a method works on.

    Attributes:
        image: float32 1,3,H,W, RGB in [0,1].
        regions: one H,W bool mask a protected region.
        protected: H,W bool, everything protected here: the regions and what neighbours reach in.
        area: float32 1,1,H,W in [0,1]: the share of the budget each pixel may use.
        budget: the bound on the change.
        grey: the change must be equal in all three channels.
        start: a change 1,3,H,W already made here, by an overlapping crop or a round before; the area
            admits it.
        warm: the start is of a round before, to go on from without noise.
        paths: for each region, how it may reach an editor otherwise than in this crop, in groups
            that matter alike.
        grain: side of the squares of pixels that change as one.
        luma: 1,1,H,W in [0,1]: the share of the budget by which each pixel's luma may move; its colour may
            use all, of which the eye sees less. None where luma has no bound of its own.
        robust_to: what else the change should survive on its way to an editor: `jpeg`, `blur`.
        enough: whether a change needs no more work; None where all iterations are wanted.
    """

    image: Tensor
    regions: Sequence[Mask]
    protected: Mask
    area: Tensor
    budget: Budget
    grey: bool = False
    start: Tensor | None = None
    warm: bool = False
    paths: Sequence[Sequence[Sequence[Sight]]] = ()
    grain: int = 1
    luma: Tensor | None = None
    robust_to: Sequence[str] = ()
    enough: Callable[[Tensor], bool] | None = None

    def sights(self, region: int) -> list[Sequence[Sight]]:
        """The ways to an editor of the region of that index, in groups: this crop, then its other paths."""
        others = self.paths[region] if self.paths else ()
        return [[Sight(self.image, self.regions[region], self.protected)], *others]

    def grained(self, plane: Tensor) -> Tensor:
        """The mean of 1,3,H,W over each square of `grain` pixels."""
        if self.grain == 1:
            return plane
        small = F.avg_pool2d(plane, self.grain, ceil_mode=True, count_include_pad=False)
        large = small.repeat_interleave(self.grain, dim=2).repeat_interleave(self.grain, dim=3)
        return large[..., : plane.shape[2], : plane.shape[3]]

    def project(self, change: Tensor) -> Tensor:
        """The nearest allowed change: grey if need be, within area x budget, image in [0,1]."""
        bound = self.area * self.budget.unit
        if self.grey:
            change = change.mean(dim=1, keepdim=True).expand_as(self.image)
        change = self._shown(_clipped(change, bound))
        if self.luma is None or self.grey:
            return change
        for _ in range(2):  # what is clipped moves luma once more
            bright = (change * change.new_tensor(LUMA)[:, None, None]).sum(dim=1, keepdim=True)
            back = _clipped(bright, self.luma * self.budget.unit) - bright
            change = self._shown(_clipped(change + back, bound))
        return change

    def _shown(self, change: Tensor) -> Tensor:
        """What a picture in [0,1] shows of a change."""
        return (self.image + change).clamp(0, 1) - self.image


def _clipped(plane: Tensor, bound: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(plane, -bound), bound)


@dataclass(frozen=True, eq=False)
class Proposal:
    """What a method found.

    Attributes:
        change: 1,3,H,W on [0,1] images, to be added to the task's image.
        heat: by surrogate, how hard it pulled at each pixel: H,W, the mean absolute gradient of its
            loss over channels and iterations, before the surrogates are balanced.
        iterations: how many were made.
    """

    change: Tensor
    heat: tuple[Tensor, ...]
    iterations: int

    @property
    def gradients(self) -> tuple[float, ...]:
        """By surrogate, how hard it pulled at a sample of the change on average."""
        return tuple(float(plane.mean()) for plane in self.heat)


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
        progress: Progress,
    ) -> Proposal:
        """See the method's own docstring. Inputs are not mutated."""
        ...


def fast(device: torch.device) -> torch.autocast:
    """Mixed precision where the hardware is quicker at bfloat16; float32 elsewhere."""
    if device.type == "cuda":
        return torch.autocast("cuda", torch.bfloat16, enabled=torch.cuda.is_bf16_supported())
    return torch.autocast("cpu", torch.bfloat16, enabled=hardware.cpu_prefers_bfloat16())


T = TypeVar("T")
_UNORDERED: WeakSet[Editor] = WeakSet()
"""Those with an operator that has no fixed order on their device."""


def in_order(surrogate: Editor, rng: np.random.Generator, work: Callable[[], T]) -> T:
    """What `work` gives, its sums in a fixed order wherever the surrogate's operators have one.

    Where torch is merely asked for order (see `protect.pick_device`), attention still takes gradients in any,
    and only warns. So it is told to, for all of the process; where an operator cannot, `work` is done anew as
    before, now and from then on with this surrogate, with the same draws from `rng`.
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
