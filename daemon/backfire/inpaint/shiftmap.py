"""A soft shift-map, which fills a hole in a plane of latents with latents from elsewhere in the plane.

Each cell of the hole takes the latents of the cell that is one shift away. The evidence around decides which
shift: how similar the known cells are to those the same shift away, and how similar the features wanted in
the hole are to those that would be taken. Neighbours prefer the same shift, so that whole patches of texture
are copied. Shift-maps were introduced by Pritch, Kav-Venaki and Peleg (ICCV 2009), who find them by graph
cuts. Here a steep softmax weighs all shifts, so that gradients pass through.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

GRID = 12
"""The shifts go up to this many steps in each direction."""
STEPS = 16
"""The longer side has about this many steps, so the farthest shifts are some three quarters of it."""
BREADTHS = (2.0, 6.0, 20.0)
"""The reach of evidence in cells: its weight is exp(-d / breadth) at a distance of d rows, and columns."""
FAR = 0.5
"""The cost of a shift by the length of the longer side, as a difference of features."""
LEAN, LEAN_TO = 0.2, 0.6
"""Shifts towards the angle, in radians, count as longer by this share, and opposite ones as shorter."""
MARGIN = 16
"""Cells that are more rows or columns than this away from the hole give no evidence."""
FLOOR = 1e-4
"""The weight of the prior, which is a difference of one."""
STEEPNESS = 64.0
"""The slope of the softmax per unit of difference. With less the result blurs; with more, or with a smaller
`FAR`, noise decides."""
ROUNDS, COHERENCE, NEAR = 3, 20.0, 3.0
"""The rounds of a mean field iteration, the gain of a shift that all neighbours chose, and the reach of
neighbours in cells. Without it, all of a wide hole would take the one cell that is most similar to what is
wanted."""
FRUGAL = 2**22
"""The number of values of all shifts from which gradients recompute them instead of keeping some fifty
copies."""
NEVER = -1e9
"""The score of a shift that leads outside of the picture or into the hole."""


class _Lattice(NamedTuple):
    """The cells that are whole steps apart, so that every shift leads from one of them to another."""

    sources: Tensor  # P,K: the cell one shift from each
    inside: Tensor  # P,K: whether there is one
    lengths: Tensor  # K, in steps


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # gradients may need it another time
def _lattice(height: int, width: int, device: torch.device) -> _Lattice:
    steps = torch.arange(-GRID, GRID + 1)
    dy, dx = (plane.flatten() for plane in torch.meshgrid(steps, steps, indexing="ij"))
    moves = (dy != 0) | (dx != 0)
    dy, dx = dy[moves], dx[moves]
    y = torch.arange(height).repeat_interleave(width)[:, None] + dy
    x = torch.arange(width).repeat(height)[:, None] + dx
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    sources = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    length = torch.hypot(dy.float(), dx.float())
    # Equally long shifts get different costs, so that noise does not decide between them.
    lengths = length * (1 + LEAN * torch.cos(torch.atan2(dy.float(), dx.float()) - LEAN_TO))
    return _Lattice(sources.to(device), inside.to(device), lengths.to(device))


def filled(latents: Tensor, have: Tensor, want: Tensor, hole: Tensor, rings: Tensor, trust: Tensor) -> Tensor:
    """The latents with the hole filled from outside of it.

    Args:
        latents: N,c,h,w; those in the hole are kept only if no shift leads out of it.
        have: N,f,h,w, the features of each cell.
        want: N,f,h,w, the features that each cell should have, which outside the hole are the same.
        hole: N,1,h,w bool, the cells to fill.
        rings: 3, the weight of evidence for each of `BREADTHS`.
        trust: scalar, the weight of evidence in the hole relative to that of known cells.

    Returns:
        float32 N,c,h,w.
    """
    with torch.autocast(latents.device.type, enabled=False):
        # Distances are small differences of products, for which half precision is too coarse.
        return _filled(latents.float(), have.float(), want.float(), hole, rings, trust)


def _filled(
    latents: Tensor, have: Tensor, want: Tensor, hole: Tensor, rings: Tensor, trust: Tensor
) -> Tensor:
    window = _window(hole)
    if window is None:
        return latents
    rows, columns = window
    height, width = hole.shape[2:]
    step = max(1, round(max(height, width) / STEPS))
    lattice = _lattice(-(-height // step), -(-width // step), hole.device)
    known = _folded((~hole).float(), step)[..., 0] > 0
    possible = lattice.inside & known[:, :, lattice.sources]

    values = len(hole) * len(lattice.lengths) * (rows.stop - rows.start) * (columns.stop - columns.start)
    frugal = torch.is_grad_enabled() and values >= FRUGAL
    asked = have, want, hole, possible, lattice, window, step, rings, trust
    share = checkpoint(_shares, *asked, use_reentrant=False) if frugal else _shares(*asked)

    edges = (columns.start, width - columns.stop, rows.start, height - rows.stop)
    shares = _folded(F.pad(share, edges), step)
    shifts = lattice.sources.expand(*known.shape[:2], -1, -1)
    mixture = shares.new_zeros(*known.shape, known.shape[2]).scatter_add(3, shifts, shares)
    taken = _unfolded(mixture @ _folded(latents, step), step, hole)
    return torch.where(hole & _unfolded(possible, step, hole).any(dim=1, keepdim=True), taken, latents)


def _shares(
    have: Tensor,
    want: Tensor,
    hole: Tensor,
    possible: Tensor,
    lattice: _Lattice,
    window: tuple[slice, slice],
    step: int,
    rings: Tensor,
    trust: Tensor,
) -> Tensor:
    """The share of each shift at each cell of the window, N,K,y,x."""
    rows, columns = window
    shifts = lattice.sources.expand(*possible.shape[:2], -1, -1)
    apart = _differences(_folded(want, step), _folded(have, step)).gather(3, shifts)
    evidence = _unfolded(possible, step, hole)[..., rows, columns]
    inside = hole[..., rows, columns]
    weight = evidence * (_around(hole)[..., rows, columns] * torch.where(inside, trust, 1.0))
    total = _unfolded(apart, step, hole)[..., rows, columns] * weight
    difference = (_spread(total, rings) + FLOOR) / (_spread(weight, rings) + FLOOR)

    cost = difference + FAR * (step / max(hole.shape[2:]) * lattice.lengths)[:, None, None]
    score = (-STEEPNESS * cost).masked_fill(~evidence, NEVER)
    share = score.softmax(dim=1)
    neighbours = _near(inside.float()).clamp(min=1e-6)
    for _ in range(ROUNDS):
        share = (score + COHERENCE * _near(share * inside) / neighbours).softmax(dim=1)
    return share


def _folded(planes: Tensor, step: int) -> Tensor:
    """N,c,h,w -> N,L,P,c: L = step * step lattices of P cells that are whole steps apart, padded with 0."""
    count, channels, height, width = planes.shape
    planes = F.pad(planes, (0, -width % step, 0, -height % step))
    planes = F.pixel_unshuffle(planes, step).reshape(count, channels, step * step, -1)
    return planes.permute(0, 2, 3, 1)


def _unfolded(lattices: Tensor, step: int, like: Tensor) -> Tensor:
    """The inverse of `_folded`: N,L,P,c -> N,c,h,w of `like`."""
    height, width = like.shape[2:]
    planes = lattices.permute(0, 3, 1, 2)
    planes = planes.reshape(len(planes), -1, -(-height // step), -(-width // step))
    return F.pixel_shuffle(planes, step)[..., :height, :width]


def _differences(want: Tensor, have: Tensor) -> Tensor:
    """N,L,P,P: the root mean square differences between cells N,L,P,c."""
    squares = want.square().sum(dim=3)[..., None] + have.square().sum(dim=3)[:, :, None]
    return ((squares - 2 * want @ have.mT).clamp(min=1e-6) / want.shape[3]).sqrt()


def _around(hole: Tensor) -> Tensor:
    """N,1,h,w: 1 in the rows and columns of each picture from which evidence is taken."""
    down, across = (
        F.max_pool1d(hole.any(dim=dim).float(), 2 * MARGIN + 1, 1, MARGIN).unsqueeze(dim) for dim in (3, 2)
    )
    return down * across


def _window(hole: Tensor) -> tuple[slice, slice] | None:
    """The bounding box of `_around` over all pictures; None if there is no hole."""
    lines = torch.cat([hole.any(dim=3).any(dim=0).flatten(), hole.any(dim=2).any(dim=0).flatten()]).tolist()
    bounds = []
    for line in (lines[: hole.shape[2]], lines[hole.shape[2] :]):
        if not any(line):
            return None
        first, end = line.index(True), len(line) - line[::-1].index(True)
        bounds.append(slice(max(0, first - MARGIN), min(len(line), end + MARGIN)))
    return bounds[0], bounds[1]


def _spread(planes: Tensor, rings: Tensor) -> Tensor:
    """The weighted sums of planes N,K,h,w around each cell over all `BREADTHS`."""
    each = [weight * _sums(planes, breadth) for breadth, weight in zip(BREADTHS, rings, strict=True)]
    return torch.stack(each).sum(dim=0)


def _near(planes: Tensor) -> Tensor:
    return _sums(planes, NEAR)


def _sums(planes: Tensor, breadth: float) -> Tensor:
    down, across = (_decay(length, breadth, planes) for length in planes.shape[2:])
    return down @ planes @ across


def _decay(length: int, breadth: float, like: Tensor) -> Tensor:
    at = torch.arange(length, device=like.device, dtype=like.dtype)
    return torch.exp(-(at[:, None] - at).abs() / breadth)
