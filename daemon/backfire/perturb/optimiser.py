"""Optimise, project, quantise. Knows no database and no folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from backfire.attack_paths import cuts, geometry
from backfire.attack_paths.geometry import Crop
from backfire.attack_paths.tensors import crop_tensor, to_tensor
from backfire.config import Protect
from backfire.errors import Code, ModelError
from backfire.inpaint.base import Editor
from backfire.perturb import methods, perception
from backfire.perturb.methods.base import Progress, Sight, Task
from backfire.types import Budget, Region, Rgb

Enough = Callable[[Rgb, Crop, Budget | None], bool]
"""Called as enough(picture so far, crop, after), the picture in whole levels. `after`: the budget of the
picture so far, at the end of a round, when it is enough that the edits of the region break, whatever
others do; None within a round."""


@dataclass(frozen=True, eq=False)
class Protected:
    """What was optimised.

    Attributes:
        rgb: uint8 H,W,3: the picture within the budget, and equal to the original outside the crops.
        gradients: by surrogate, how hard it pulled before balancing: the mean of
            `Proposal.gradients` over the rounds of all crops, weighed by their iterations.
        iterations: how many were made, in all.
        rounds: by crop, how many it took, see `Protect.rounds`.
        budget: the largest that was needed.
        heat: by crop and surrogate, `Proposal.heat` of its last round: float32 h,w at the crop's
            working size.
    """

    rgb: Rgb
    gradients: tuple[float, ...]
    iterations: int
    rounds: tuple[int, ...]
    budget: Budget
    heat: tuple[tuple[np.ndarray, ...], ...]


def optimise(
    rgb: Rgb,
    grey: bool,
    crops: Sequence[Crop],
    settings: Protect,
    surrogates: Sequence[Editor],
    *,
    device: torch.device,
    rng: np.random.Generator,
    progress: Progress,
    enough: Enough | None = None,
) -> Protected:
    """The protected picture, 8 bit.

    A crop goes through the rounds of the settings, each from the change of the one before, until
    it has had enough of them.

    Args:
        rgb: uint8 H,W,3, upright; not mutated.
        grey: whether the change must be grey.
        progress: called with (iterations done, iterations in all); may raise to stop.
        enough: asked whether a crop needs no more work: with `stop_early` now and then within a
            round, and before a further round, which could not mend what happens to other edits.

    Raises:
        ConfigError: the method cannot use one of the surrogates.
    """
    method = methods.get(settings.method, surrogates)
    rounds = settings.rounds()
    each = sum(one.iterations for one in rounds)
    total = each * sum(len(crop.regions) for crop in crops)
    change = np.zeros(rgb.shape, dtype=np.float32)
    gradients = np.zeros(len(surrogates))
    heat: list[tuple[np.ndarray, ...]] = []
    needed: list[int] = []
    done = made = 0
    result = rgb.copy()
    paths = _Paths(rgb, crops, settings.robust_to, device)
    for crop in crops:
        here, end = crop.box.slices, done + each * len(crop.regions)
        # What an overlapping crop wrote before stays allowed, else its protection would be cut.
        before = change[here].copy()
        task = partial(
            Task,
            image=to_tensor(rgb[here], crop.size, device),
            regions=crop.masks(),
            protected=crop.protected(),
            grey=grey,
            paths=[paths.of(region, crop, rng) for region in crop.regions],
            grain=settings.grain_px,
            robust_to=settings.robust_to,
        )
        start = _plane(before, crop.size, device) if before.any() else None
        for number, now in enumerate(rounds, 1):
            budget = Budget(now.epsilon)
            bound, luma = _bounds(rgb, crop, now, before)
            work = task(
                area=_plane(bound / budget.unit, crop.size, device),
                luma=None if luma is None else _plane(luma / budget.unit, crop.size, device),
                budget=budget,
                start=start,
                warm=number > 1,
            )
            if enough is not None and settings.stop_early:
                work = replace(work, enough=_so_far(rgb, result, work, crop, bound, enough))
            iterations = now.iterations * len(crop.regions)
            proposed = method.run(
                work,
                surrogates,
                iterations=iterations,
                target=settings.target,
                rng=rng,
                progress=_shifted(progress, done, total),
            )
            start = work.project(proposed.change)
            change[here] = _native(start, crop, bound)
            result[here] = quantised(rgb[here], change[here])
            gradients += np.array(proposed.gradients) * proposed.iterations
            made, done = made + proposed.iterations, done + iterations
            if number == len(rounds) or proposed.iterations < iterations:
                break
            largest = Budget(rounds[max([*needed, number]) - 1].epsilon)
            if enough is not None and enough(result, crop, largest):
                break
        if done < end:
            progress(end, total)
        done = end
        needed.append(number)
        heat.append(tuple(plane.cpu().numpy() for plane in proposed.heat))
    budget = Budget(rounds[max(needed, default=1) - 1].epsilon)
    weighed = tuple((gradients / max(made, 1)).tolist())
    return Protected(result, weighed, made, tuple(needed), budget, tuple(heat))


def _bounds(
    rgb: Rgb, crop: Crop, settings: Protect, before: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """How far pixels of a crop may move, on [0,1] images, and their luma where it has a bound; H,W float32.

    Args:
        before: H,W,3, the change that is there already: both admit it.
    """
    own = geometry.taper(crop.box, rgb.shape[0], rgb.shape[1]) * Budget(settings.epsilon).unit
    own = own * perception.share(rgb[crop.box.slices], settings.flat_share)
    own = own * geometry.reached(crop, settings.reach_px, settings.reach_share)
    if settings.keep_region_exact:
        own[crop.inside()] = 0
    bound: np.ndarray = np.maximum(own, np.abs(before).max(axis=2))
    if settings.luma_share == 1:
        return bound, None
    return bound, np.maximum(settings.luma_share * own, np.abs(before @ perception.LUMA))


def _so_far(
    rgb: Rgb, result: Rgb, task: Task, crop: Crop, bound: np.ndarray, enough: Enough
) -> Callable[[Tensor], bool]:
    """Whether a change is enough, seen in `result`, which is written to: a copy may be large."""
    here = crop.box.slices

    def asked(change: Tensor) -> bool:
        result[here] = quantised(rgb[here], _native(task.project(change), crop, bound))
        return enough(result, crop, None)

    return asked


class _Paths:
    """The other paths on which the regions of a picture may reach an editor, see `cuts`."""

    def __init__(
        self, rgb: Rgb, crops: Sequence[Crop], robust_to: Sequence[str], device: torch.device
    ) -> None:
        self._rgb, self._robust_to, self._device = rgb, robust_to, device
        self._everything = [region for crop in crops for region in crop.regions]
        self._whole: Tensor | None = None

    def of(self, region: Region, crop: Crop, rng: np.random.Generator) -> list[list[Sight]]:
        height, width = self._rgb.shape[:2]
        groups = cuts.cuts(region, crop, self._everything, height, width, self._robust_to, rng)
        return [[self._sight(crop, cut) for cut in group] for group in groups]

    def _sight(self, crop: Crop, cut: Crop) -> Sight:
        rows, columns = (torch.from_numpy(axis).to(self._device) for axis in cuts.placed(crop, cut))
        return Sight(self._seen(cut), cut.masks()[0], cut.protected(), rows, columns)

    def _seen(self, cut: Crop) -> Tensor:
        """The whole picture is scaled once for all regions: that may be a hundred megapixels."""
        if (cut.box.height, cut.box.width) != self._rgb.shape[:2]:
            return crop_tensor(self._rgb, cut, self._device)
        if self._whole is None or self._whole.shape[-2:] != cut.size:
            self._whole = crop_tensor(self._rgb, cut, self._device)
        return self._whole


def _shifted(progress: Progress, offset: int, total: int) -> Progress:
    return lambda done, _: progress(offset + done, total)


def _plane(plane: np.ndarray, size: tuple[int, int], device: torch.device) -> Tensor:
    """H,W or H,W,C float32 -> 1,C,h,w."""
    tensor = torch.from_numpy(np.atleast_3d(plane)).to(device).permute(2, 0, 1)[None].contiguous()
    return tensor if tensor.shape[-2:] == size else F.interpolate(tensor, size=size, mode="area")


def _native(change: Tensor, crop: Crop, bound: np.ndarray) -> np.ndarray:
    """1,3,h,w -> H,W,3 float32 at the crop's own size, within the bound H,W."""
    if crop.scaled:
        change = F.interpolate(
            change, size=(crop.box.height, crop.box.width), mode="bicubic", align_corners=False
        )
    native = change[0].permute(1, 2, 0).cpu().numpy()
    clipped: np.ndarray = np.clip(native, -bound[:, :, None], bound[:, :, None])
    return clipped


def quantised(rgb: Rgb, change: np.ndarray) -> Rgb:
    """The picture plus a change on the [0,1] scale, in whole levels."""
    levels = np.rint(change * 255).astype(np.int16)
    result: Rgb = np.clip(rgb.astype(np.int16) + levels, 0, 255).astype(np.uint8)
    return result


def pick_device(setting: str) -> torch.device:
    """`auto` is the first CUDA device if there is one, else the CPU.

    Raises:
        ModelError: a CUDA device was named and is not there.
    """
    if setting == "auto":
        setting = "cuda:0" if torch.cuda.is_available() else "cpu"
    device = torch.device(setting)
    if device.type == "cuda":
        if (device.index or 0) >= torch.cuda.device_count():
            message = (
                f"device {setting}: {torch.cuda.device_count()} CUDA devices here; "
                "set protect.device to auto or cpu, or take it out of limits.devices"
            )
            raise ModelError(Code.MODEL, message, retryable=False)
        _repeatable()
    return device


def _repeatable() -> None:
    """The job's key must give the same bytes again: sums by atomics differ from run to run in their last
    bit, and eighty steps make levels of it. What has no other way warns and goes on.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # slow, for debugging
