"""The edits that a method breaks or keeps: their masks, the clean responses, how responses are compared."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from backfire.imaging import masks
from backfire.inpaint.base import Editor, differentiable_edit
from backfire.perturb.methods.base import EditorInput, mixed_precision
from backfire.types import Box, Mask

INCOMPLETE, FAR = 12, 8
"""How many incomplete triggers and far squares a region draws from."""
BENIGN = ("ring", "far")
TOLERATED = 0.05
"""A benign edit whose `relative_error` is larger is drawn more often. It comes to an SSIM of some 0.95; a
verdict asks for 0.9 beside the region and 0.92 further away. With a lower bound, benign edits that are fine
would take iterations from the others."""
FLAT = 1e-3
"""The variance that every edit is taken to have at least: of a plain sky any error would be a large share."""
SHIFT = 16
"""Pixels by which a shifted trigger moves at most."""

Respond = Callable[[Editor, Tensor, Tensor, int], Tensor]
"""(surrogate, image N,3,h,w, mask N,1,h,w, draw) -> the response: what a method looks at of the edit.

N,c,y,x, float32. `draw` numbers the editor's own randomness: the same number means the same noise."""
Shapes = Callable[[Mask, np.random.Generator], list[Mask]]
"""The incomplete triggers of a region."""


@dataclass(frozen=True, eq=False)
class Edit:
    """An edit mask 1,1,h,w of a kind, and by surrogate its response to the clean picture under it, 1,c,y,x.

    Outside the box around the mask a response is zero: no loss looks there, see `masked_mse`.
    """

    kind: str
    mask: Tensor
    clean: Mapping[int, Tensor]

    @property
    def breaks(self) -> bool:
        """Whether it is a trigger edit, which is to break; a benign one is to be kept."""
        return self.kind not in BENIGN


@dataclass(frozen=True, eq=False)
class _Stored:
    """A response, stored only in the box that is looked at, so that many small regions take little memory."""

    part: Tensor
    margins: tuple[int, int, int, int]

    @classmethod
    def of(cls, response: Tensor, cells: Tensor) -> _Stored:
        """The part of a response 1,c,y,x in the box around the mask `cells`, 1,1,y,x."""
        box = Box.around((cells[0, 0] > 0).cpu().numpy())
        height, width = response.shape[-2:]
        margins = box.left, width - box.right, box.top, height - box.bottom
        return cls(response[..., *box.slices].clone(), margins)

    def whole(self) -> Tensor:
        """The response at its full size, zero outside the box."""
        return F.pad(self.part, self.margins)


def edited(surrogate: Editor, image: Tensor, mask: Tensor, draw: int) -> Tensor:
    """The response that is the edit itself, N,3,h,w. Its noise is always the same, whatever the draw."""
    return differentiable_edit(surrogate, image, mask)


def triggers(mask: Mask, rng: np.random.Generator) -> list[Mask]:
    """The region as people paint it: too small, too large, shifted, half of it, a stroke across it."""
    shapes = [masks.bounding(mask), masks.eroded(mask)]
    turn = float(rng.uniform(0, 2 * np.pi))
    shapes += _halves(mask, turn)
    shapes += [masks.covering(mask, share) for share in (0.5, 0.75, 1.5)]
    down, right = rng.integers(-SHIFT, SHIFT + 1, size=2)
    shapes.append(masks.shifted(mask, int(down), int(right)))
    shapes += [masks.stroke(mask, rng) for _ in range(INCOMPLETE - len(shapes))]
    return shapes


def repainted(mask: Mask, rng: np.random.Generator, shapes: Shapes = triggers) -> list[Mask]:
    """`shapes`, and as many again and more: contours as uneven as a hand's, shifts, strokes, a quarter more.

    After DiffusionGuard (arXiv 2410.05694), which draws another contour in each iteration. A large stock
    takes its place, since the clean edit of each is made but once.
    """
    found = shapes(mask, rng)
    found += [masks.uneven(mask, rng) for _ in range(8)] + [masks.stroke(mask, rng) for _ in range(4)]
    for down, right in rng.integers(-SHIFT, SHIFT + 1, size=(4, 2)):
        found.append(masks.shifted(mask, int(down), int(right)))
    return [*found, masks.covering(mask, 1.25)]


class Edits:
    """The edits of one region on one attack path. Clean responses are computed once, when first asked for.

    Args:
        given: what editors are given on that path.
        surrogates: the editors; `given` says which of them are looked at.
        rng: draws the shapes.
        respond: what is looked at of an edit.
        shapes: the incomplete triggers.
        incomplete, far: at most so many of them are drawn from. Without incomplete triggers the dilated
            region is not drawn either: trigger edits are then those of the region alone.

    Attributes:
        surrogates: by number, the editors that are looked at.
    """

    def __init__(
        self,
        given: EditorInput,
        surrogates: Sequence[Editor],
        rng: np.random.Generator,
        respond: Respond = edited,
        shapes: Shapes = triggers,
        *,
        incomplete: int = INCOMPLETE,
        far: int = FAR,
    ) -> None:
        self.given = given
        numbers = range(len(surrogates)) if given.surrogates is None else given.surrogates
        self.surrogates = {index: surrogates[index] for index in numbers}
        self._rng, self._respond, self._shapes = rng, respond, shapes
        self._incomplete, self._far = incomplete, far
        self._known: dict[tuple[str, int, int], dict[int, _Stored]] = {}
        self._schedule = self._kinds()
        self._errors: dict[tuple[str, int], float] = {}

    @cached_property
    def _planes(self) -> dict[str, list[Mask]]:
        """The masks of each kind; drawn when first needed, as few iterations do not reach every path."""
        given = self.given
        # As the verdict does, which asks for half of a region that is the whole picture.
        full = [given.mask] if self._depends(given.mask) else [*_halves(given.mask)]
        if given.alone:
            return {"full": full, "dilated": [], "incomplete": [], "ring": [], "far": []}
        ring = masks.ring(given.mask) & ~given.protected
        squares = (masks.far(given.protected, self._rng) for _ in range(self._far))
        shapes = self._shapes(given.mask, self._rng)
        parts = [plane for plane in shapes if plane.any() and self._depends(plane)]
        return {
            "full": full,
            "dilated": [*filter(self._depends, [masks.dilated(given.mask)])],
            "incomplete": [parts[i] for i in self._rng.permutation(len(parts))[: self._incomplete]],
            "ring": [ring] if ring.any() else [],
            "far": [plane for plane in squares if plane is not None],
        }

    def _depends(self, mask: Mask) -> bool:
        """Whether edits under a mask depend on the picture: a blind editor sees nothing under a full one."""
        return not mask.all() or not any(one.blind for one in self.surrogates.values())

    def drawn(self, draw: int = 0) -> Edit:
        """The edit of the next iteration; where there is no room for one of its kind, the region itself."""
        edits = (self.take(kind, draw) for kind in (*next(self._schedule), "full"))
        return next(edit for edit in edits if edit is not None)

    def note_error(self, edit: Edit, surrogate: int, error: float) -> None:
        """Note the `relative_error` of an edit, through the surrogate of that index; not finite, it says
        nothing.
        """
        if math.isfinite(error):
            self._errors[edit.kind, surrogate] = error

    @property
    def broken(self) -> float:
        """How far the kind of trigger edits that breaks least was from the clean ones when last looked at.

        The mean over surrogates of the relative errors, each at most 1; 0 at first.
        """
        kinds = {kind for kind, _ in self._errors} - {*BENIGN}
        return min(map(self._broken, kinds), default=0.0)

    @property
    def spoilt(self) -> set[str]:
        """The kinds of benign edits that were off by more than is tolerated when last looked at."""
        return {kind for (kind, _), error in self._errors.items() if kind in BENIGN and error > TOLERATED}

    def _broken(self, kind: str) -> float:
        noted = [min(error, 1.0) for (of, _), error in self._errors.items() if of == kind]
        return sum(noted) / max(len(noted), 1)

    def _kinds(self) -> Iterator[Sequence[str]]:
        """For each iteration the kinds of edits to draw from: the first that there is room for.

        The region itself, a benign edit and an incomplete trigger take turns. The incomplete trigger is the
        dilated region, as in the published method, or another shape, whichever breaks less. While benign
        edits are off by more than is tolerated another one follows, so that they cost no more of the effect
        than they must.
        """
        drawn = {kind: 0 for kind in ("dilated", "incomplete") if self._planes[kind]}
        for turn in itertools.count():
            yield ("full",)
            yield BENIGN if turn % 2 else BENIGN[::-1]
            if self._incomplete and drawn:
                kind = min(drawn, key=lambda kind: (self._broken(kind), drawn[kind]))
                drawn[kind] += 1
                yield (kind,)
            if self.spoilt:
                yield BENIGN if "ring" in self.spoilt else BENIGN[::-1]

    def take(self, kind: str, draw: int = 0) -> Edit | None:
        """An edit of a kind: `full`, `dilated`, `incomplete`, `ring`, `far`; None where there is no room."""
        planes = self._planes[kind]
        if not planes:
            return None
        pick = int(self._rng.integers(len(planes))) if len(planes) > 1 else 0
        key = kind, pick, draw
        mask = torch.from_numpy(planes[pick])[None, None].to(self.given.image)
        if key not in self._known:
            self._known[key] = {
                index: self._clean(surrogate, mask, draw) for index, surrogate in self.surrogates.items()
            }
        return Edit(kind, mask, {index: stored.whole() for index, stored in self._known[key].items()})

    def _clean(self, surrogate: Editor, mask: Tensor, draw: int) -> _Stored:
        image = self.given.image
        with torch.no_grad(), mixed_precision(image.device):
            clean = self._respond(surrogate, image, mask, draw)
        return _Stored.of(clean, mask_at(mask, clean, surrogate.multiple))


def _halves(mask: Mask, turn: float = 0.0) -> Iterator[Mask]:
    """The halves of a mask on four sides, turned by an angle in radians."""
    for quarter in range(4):
        yield masks.half(mask, turn + quarter * np.pi / 2)


def mask_at(mask: Tensor, response: Tensor, multiple: int) -> Tensor:
    """The mask N,1,h,w at the response's size: a cell of `multiple` pixels is in it if one of them is."""
    if mask.shape[-2:] == response.shape[-2:]:
        return mask
    height, width = mask.shape[-2:]
    return F.max_pool2d(F.pad(mask, (0, -width % multiple, 0, -height % multiple)), multiple)


def masked_mse(got: Tensor, want: Tensor, mask: Tensor) -> Tensor:
    """Sum over the batch of the mean squared difference under each mask; N,c,h,w twice and N,1,h,w."""
    each = ((got - want) ** 2 * mask).sum(dim=(1, 2, 3))
    return (each / (got.shape[1] * mask.sum(dim=(1, 2, 3))).clamp(min=1)).sum()


def relative_error(got: Tensor, want: Tensor, mask: Tensor) -> Tensor:
    """The squared error of `got` as a share of the variance of `want`, under the mask; as `masked_mse`.

    While it is small it is near one less the SSIM.
    """
    mean = (want * mask).sum(dim=(2, 3), keepdim=True) / mask.sum(dim=(2, 3), keepdim=True).clamp(min=1)
    return masked_mse(got, want, mask) / (masked_mse(want, mean, mask) + FLAT)
