"""The edits that a method breaks or keeps: their masks, their clean results, their distance."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from backfire.imaging import masks
from backfire.inpaint.base import Editor, rehearsed
from backfire.perturb.methods.base import Sight, fast
from backfire.types import Box, Mask

INCOMPLETE, FAR = 12, 8
"""How many incomplete triggers and far squares a region draws from."""
KEPT = ("ring", "far")
CHANGED = 0.05
"""An edit to keep that is off by such a share of its own variance is looked at more often. It is an SSIM of
some 0.95; a verdict asks for 0.9 beside the region and 0.92 further away. Any lower, edits that are fine cost
the others their turns."""
FLAT = 1e-3
"""Variance that edits have at least, for this: of a plain sky any change would be a large share."""
SHIFT = 16
"""Pixels by which a shifted trigger moves at most."""

Respond = Callable[[Editor, Tensor, Tensor, int], Tensor]
"""(surrogate, image N,3,h,w, mask N,1,h,w, draw) -> what a method looks at of the edit: N,c,y,x, float32.

`draw` numbers the editor's own randomness: the same number, the same noise."""
Shapes = Callable[[Mask, np.random.Generator], list[Mask]]
"""The incomplete triggers of a region."""


@dataclass(frozen=True, eq=False)
class Edit:
    """An edit mask 1,1,h,w of a kind, and each surrogate's response to the clean picture under it, 1,c,y,x.

    Beyond the box around its cells a response is zero: no loss looks there, see `squared`.
    """

    kind: str
    mask: Tensor
    clean: list[Tensor]

    @property
    def breaks(self) -> bool:
        """Whether it is to break, not to be kept."""
        return self.kind not in KEPT


@dataclass(frozen=True, eq=False)
class _Kept:
    """A response, held where it is looked at: those of many small regions fill a crop once, not each anew."""

    part: Tensor
    margins: tuple[int, int, int, int]

    @classmethod
    def of(cls, response: Tensor, cells: Tensor) -> _Kept:
        """Of a response 1,c,y,x what lies in the box around the cells 1,1,y,x."""
        box = Box.around((cells[0, 0] > 0).cpu().numpy())
        height, width = response.shape[-2:]
        margins = box.left, width - box.right, box.top, height - box.bottom
        return cls(response[..., *box.slices].clone(), margins)

    def whole(self) -> Tensor:
        """The response's size again."""
        return F.pad(self.part, self.margins)


def edited(surrogate: Editor, image: Tensor, mask: Tensor, draw: int) -> Tensor:
    """The response that is the edit itself, N,3,h,w. Its noise is always the same, whatever the draw."""
    return rehearsed(surrogate, image, mask)


def triggers(mask: Mask, rng: np.random.Generator) -> list[Mask]:
    """Triggers as people paint them: too little, too much, beside it, half of it, across it."""
    shapes = [masks.bounding(mask), masks.eroded(mask)]
    turn = float(rng.uniform(0, 2 * np.pi))
    shapes += [masks.half(mask, turn + quarter * np.pi / 2) for quarter in range(4)]
    shapes += [masks.covering(mask, share) for share in (0.5, 0.75, 1.5)]
    down, right = rng.integers(-SHIFT, SHIFT + 1, size=2)
    shapes.append(masks.shifted(mask, int(down), int(right)))
    shapes += [masks.stroke(mask, rng) for _ in range(INCOMPLETE - len(shapes))]
    return shapes


class Edits:
    """The edits of one region on one path. A clean response is constant: computed once, when asked for.

    Args:
        sight: what editors are given.
        surrogates: the editors.
        rng: draws the shapes.
        respond: what of an edit is kept.
        shapes: the incomplete triggers.
        incomplete, far: at most so many of them are drawn from.
    """

    def __init__(
        self,
        sight: Sight,
        surrogates: Sequence[Editor],
        rng: np.random.Generator,
        respond: Respond = edited,
        shapes: Shapes = triggers,
        *,
        incomplete: int = INCOMPLETE,
        far: int = FAR,
    ) -> None:
        self.sight = sight
        self._surrogates, self._rng, self._respond, self._shapes = surrogates, rng, respond, shapes
        self._incomplete, self._far = incomplete, far
        self._known: dict[tuple[str, int, int], list[_Kept]] = {}
        self._turns = self._kinds()
        self._off: dict[tuple[str, int], float] = {}

    @cached_property
    def _planes(self) -> dict[str, list[Mask]]:
        """The masks of each kind; drawn when first needed, as short work does not come to every path."""
        sight = self.sight
        ring = masks.ring(sight.mask) & ~sight.protected
        squares = (masks.far(sight.protected, self._rng) for _ in range(self._far))
        parts = [plane for plane in self._shapes(sight.mask, self._rng) if plane.any()]
        return {
            "full": [sight.mask],
            "dilated": [masks.dilated(sight.mask)],
            "incomplete": [parts[i] for i in self._rng.permutation(len(parts))[: self._incomplete]],
            "ring": [ring] if ring.any() else [],
            "far": [plane for plane in squares if plane is not None],
        }

    def drawn(self, draw: int = 0) -> Edit:
        """The edit of one iteration; where there is no room for one of its kind, the region itself."""
        edits = (self.take(kind, draw) for kind in (*next(self._turns), "full"))
        return next(edit for edit in edits if edit is not None)

    def saw(self, edit: Edit, surrogate: int, off: float) -> None:
        """By what share (see `off_by`) an edit to keep was off when one of its kind was last looked at."""
        self._off[edit.kind, surrogate] = off

    def _kinds(self) -> Iterator[Sequence[str]]:
        """What the iterations look at; the first there is room for.

        The region itself, an edit to keep and the region painted otherwise take turns. Every second time
        that is the dilated region, as published: it is the edit people make. As long as edits to keep were
        off another one follows, so that effect is paid for what must be kept, no more.
        """
        for turn in itertools.count():
            yield ("full",)
            yield KEPT if turn % 2 else KEPT[::-1]
            yield ("incomplete",) if turn % 2 else ("dilated",)
            off = {kind for (kind, _), share in self._off.items() if share > CHANGED}
            if off:
                yield KEPT if "ring" in off else KEPT[::-1]

    def take(self, kind: str, draw: int = 0) -> Edit | None:
        """One of that kind: `full`, `dilated`, `incomplete`, `ring`, `far`.

        None where there is no room for one.
        """
        planes = self._planes[kind]
        if not planes:
            return None
        pick = int(self._rng.integers(len(planes))) if len(planes) > 1 else 0
        key = kind, pick, draw
        mask = torch.from_numpy(planes[pick])[None, None].to(self.sight.image)
        if key not in self._known:
            self._known[key] = [self._clean(surrogate, mask, draw) for surrogate in self._surrogates]
        return Edit(kind, mask, [kept.whole() for kept in self._known[key]])

    def _clean(self, surrogate: Editor, mask: Tensor, draw: int) -> _Kept:
        image = self.sight.image
        with torch.no_grad(), fast(image.device):
            clean = self._respond(surrogate, image, mask, draw)
        return _Kept.of(clean, under(mask, clean, surrogate.multiple))


def under(mask: Tensor, response: Tensor, multiple: int) -> Tensor:
    """The mask N,1,h,w at the response's size: a cell of `multiple` pixels counts if one of them does."""
    if mask.shape[-2:] == response.shape[-2:]:
        return mask
    height, width = mask.shape[-2:]
    return F.max_pool2d(F.pad(mask, (0, -width % multiple, 0, -height % multiple)), multiple)


def squared(got: Tensor, want: Tensor, mask: Tensor) -> Tensor:
    """Sum over the batch of the mean squared difference under each mask; N,c,h,w twice and N,1,h,w."""
    each = ((got - want) ** 2 * mask).sum(dim=(1, 2, 3))
    return (each / (got.shape[1] * mask.sum(dim=(1, 2, 3))).clamp(min=1)).sum()


def off_by(got: Tensor, want: Tensor, mask: Tensor) -> Tensor:
    """By what share of the variance of `want` under the mask `got` is off; arguments as of `squared`.

    Near one less the SSIM while that is small.
    """
    mean = (want * mask).sum(dim=(2, 3), keepdim=True) / mask.sum(dim=(2, 3), keepdim=True).clamp(min=1)
    return squared(got, want, mask) / (squared(want, mean, mask) + FLAT)
