"""The edits that a method breaks or keeps: their masks, their clean results, their distance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from daemon import geometry
from daemon.domain import Mask
from daemon.editors.base import Denoiser, Editor
from daemon.methods.base import Task, fast

INCOMPLETE, FAR = 12, 4
"""How many incomplete triggers and far squares a region draws from."""
SHIFT = 16
"""Pixels by which a shifted trigger moves at most."""


@dataclass(frozen=True, eq=False)
class Edit:
    """An edit mask 1,1,h,w and each surrogate's clean edit under it, 1,3,h,w."""

    mask: Tensor
    clean: list[Tensor]


class Edits:
    """The edits of one region. A clean edit is constant: computed when first asked for, and kept.

    Args:
        task: the crop.
        index: which of its regions.
        surrogates: the editors.
        rng: draws the shapes.
    """

    def __init__(
        self, task: Task, index: int, surrogates: Sequence[Editor], rng: np.random.Generator
    ) -> None:
        mask = task.regions[index]
        self._task, self._surrogates, self._rng = task, surrogates, rng
        self._known: dict[tuple[str, int, tuple[int, int]], Edit] = {}
        ring = geometry.ring(mask) & ~task.protected
        far = (geometry.far(task.protected, rng) for _ in range(FAR))
        self._planes: dict[str, list[Mask]] = {
            "full": [mask],
            "dilated": [geometry.dilated(mask)],
            "incomplete": _shapes(mask, rng),
            "ring": [ring] if ring.any() else [],
            "far": [plane for plane in far if plane is not None],
        }

    def take(self, kind: str, size: tuple[int, int]) -> Edit | None:
        """One of that kind (`full`, `dilated`, `incomplete`, `ring`, `far`) at (height, width).

        None where the crop has no room for one.
        """
        planes = self._planes[kind]
        if not planes:
            return None
        pick = int(self._rng.integers(len(planes))) if len(planes) > 1 else 0
        key = kind, pick, size
        if key not in self._known:
            self._known[key] = self._clean(planes[pick], size)
        return self._known[key]

    def _clean(self, plane: Mask, size: tuple[int, int]) -> Edit:
        image = self._task.image
        mask = torch.from_numpy(plane)[None, None].to(image)
        if image.shape[-2:] != size:
            image, mask = resized(image, size), F.interpolate(mask, size=size, mode="nearest")
        with torch.no_grad(), fast(image.device):
            # The clean edit must be of the sort that the gradient compares with it.
            clean = [
                (editor.one_step if isinstance(editor, Denoiser) else editor.inpaint)(image, mask)
                for editor in self._surrogates
            ]
        return Edit(mask, clean)


def _shapes(mask: Mask, rng: np.random.Generator) -> list[Mask]:
    """Triggers as people paint them: too little, too much, beside it, half of it, across it."""
    shapes = [geometry.bounding(mask), geometry.eroded(mask)]
    turn = float(rng.uniform(0, 2 * np.pi))
    shapes += [geometry.half(mask, turn + quarter * np.pi / 2) for quarter in range(4)]
    shapes += [geometry.covering(mask, share) for share in (0.5, 0.75, 1.5)]
    down, right = rng.integers(-SHIFT, SHIFT + 1, size=2)
    shapes.append(geometry.shifted(mask, int(down), int(right)))
    shapes += [geometry.stroke(mask, rng) for _ in range(INCOMPLETE - len(shapes))]
    return shapes


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """N,C,H,W at (height, width); area-averaged down, bilinear up."""
    if image.shape[-2:] == size:
        return image
    if size[0] < image.shape[-2]:
        return F.interpolate(image, size=size, mode="area")
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False)


def squared(got: Tensor, want: Tensor, mask: Tensor) -> Tensor:
    """Sum over the batch of the mean squared difference under each mask."""
    each = ((got - want) ** 2 * mask).sum(dim=(1, 2, 3))
    return (each / (3 * mask.sum(dim=(1, 2, 3))).clamp(min=1)).sum()
