"""Detect, crop, optimise, project, quantise. Knows no database and no folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from daemon import detectors, geometry, methods, perception
from daemon.config import Protect, Regions
from daemon.detectors import Source
from daemon.domain import Box, Budget, Region, Rgb
from daemon.editors.base import Editor
from daemon.errors import Code, InputError, ModelError
from daemon.geometry import Crop
from daemon.methods.base import Progress, Task


def find(rgb: Rgb, source: Source, settings: Regions) -> list[Region]:
    """The regions all configured detectors find, in their order.

    Args:
        rgb: uint8 H,W,3, upright.
        source: the picture's name and its sidecar masks.

    Returns:
        The regions; empty only under `none_found: pass`. Under `whole`, a grid that covers
        the picture stands in.

    Raises:
        InputError: an unusable sidecar, or nothing found under `none_found: fail`.
        ModelError: a detector failed.
    """
    found = [
        region for name in settings.detectors for region in detectors.get(name).detect(rgb, source=source)
    ]
    if found or settings.none_found == "pass":
        return _without_repeats(found)
    if settings.none_found == "whole":
        return _grid(rgb.shape[0], rgb.shape[1])
    names = ", ".join(settings.detectors)
    message = (
        f"{source.name}: no region found by {names}; nothing would be protected; "
        "put a mask beside the picture or set regions.none_found"
    )
    raise InputError(Code.NO_REGION, message)


def _without_repeats(regions: list[Region]) -> list[Region]:
    """Drops a region that an earlier detector's covers: a face under a painted mask."""
    kept: list[Region] = []
    for region in regions:
        rivals = [other for other in kept if other.detector != region.detector]
        if not any(_covers(other, region) for other in rivals):
            kept.append(region)
    return kept


def _covers(region: Region, other: Region) -> bool:
    """Whether 95 % of the other's box lies under this region's shape, not merely in its bounding box."""
    crop = Crop(other.box, (region,), (other.box.height, other.box.width))
    return bool(crop.masks()[0].mean() >= 0.95)


def _grid(height: int, width: int) -> list[Region]:
    """Cells of at least 256 px, at most four a side: a larger edit would have no context."""
    side = max(256, -(-max(height, width) // 4))
    return [
        Region(Box(x, y, min(x + side, width), min(y + side, height)), "whole", 1.0, "whole")
        for y in range(0, height, side)
        for x in range(0, width, side)
    ]


def to_tensor(rgb: Rgb, size: tuple[int, int], device: torch.device) -> Tensor:
    """uint8 H,W,3 -> float32 1,3,h,w in [0,1] at `size`, area-averaged where that is smaller."""
    image = torch.from_numpy(rgb.copy()).to(device).permute(2, 0, 1)[None].float() / 255
    if image.shape[-2:] != size:
        image = F.interpolate(image, size=size, mode="area")
    return image.contiguous(memory_format=torch.channels_last)


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
) -> Rgb:
    """The protected picture, 8 bit: within the budget and equal to `rgb` outside the crops.

    Args:
        rgb: uint8 H,W,3, upright; not mutated.
        grey: whether the change must be grey.
        progress: called with (iterations done, iterations in all); may raise to stop.
    """
    budget = Budget(settings.epsilon)
    method = methods.get(settings.method)
    total = sum(settings.iterations * len(crop.regions) for crop in crops)
    change = np.zeros(rgb.shape, dtype=np.float32)
    done = 0
    for crop in crops:
        fade = geometry.taper(crop.box, rgb.shape[0], rgb.shape[1])
        fade = fade * perception.share(rgb[crop.box.slices], settings.flat_share)
        # What an overlapping crop wrote before stays allowed, else its protection would be cut.
        before = change[crop.box.slices]
        area = np.maximum(fade, np.abs(before).max(axis=2) / budget.unit)
        task = Task(
            image=to_tensor(rgb[crop.box.slices], crop.size, device),
            regions=crop.masks(),
            protected=crop.protected(),
            area=_plane(area, crop.size, device),
            budget=budget,
            grey=grey,
            start=_plane(before, crop.size, device) if before.any() else None,
            withstand=settings.withstand,
        )
        proposed = method.run(
            task,
            surrogates,
            iterations=settings.iterations * len(crop.regions),
            target=settings.target,
            rng=rng,
            progress=_shifted(progress, done, total),
        )
        allowed = task.project(proposed)
        change[crop.box.slices] = _native(allowed, crop, area * budget.unit)
        done += settings.iterations * len(crop.regions)
    result = rgb.copy()
    for crop in crops:  # of the whole picture a float copy would be gigabytes
        here = crop.box.slices
        result[here] = quantised(rgb[here], change[here], budget)
    return result


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


def quantised(rgb: Rgb, change: np.ndarray, budget: Budget) -> Rgb:
    """The picture plus a change on the [0,1] scale, in whole levels within the budget."""
    levels = np.clip(np.rint(change * 255), -budget.levels, budget.levels).astype(np.int16)
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
    torch.backends.cudnn.deterministic = True  # the job's key must give the same bytes again
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        message = f"protect.device {setting}: {torch.cuda.device_count()} CUDA devices here; set auto or cpu"
        raise ModelError(Code.MODEL, message, retryable=False)
    return device


Phase = Callable[[str, int, int], None]
"""Called as phase(name, done, total) while a picture is worked; may raise to stop."""
