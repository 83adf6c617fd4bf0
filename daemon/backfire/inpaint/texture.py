"""Features of a cell's texture that do not depend on its phase, which the shift-map compares."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CELL = 8
"""The side of a cell in pixels."""
FEATURES = 13

COLOUR, STRENGTH = 4.0, 0.8
"""The factors that give colours in [0,1] and logarithms about the same spread."""
FAINT = 0.02
"""Differences of luma below this count as equal."""
DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))


def described(image: Tensor) -> Tensor:
    """N,3,H,W in [0,1] -> float32 N,13,H/8,W/8: the mean colour of a cell, and the strength of its detail.

    Strengths are logarithms of the differences of luma to neighbours in four directions, at full and at half
    size, and of the deviations of chroma and luma from the cell's mean. A fill is trained on these features
    and not on pixels, of which it could only predict the blurred mean. They are computed from pixels and not
    from latents, which a perturbation of a few levels can change completely, so that edits far from it would
    change, too.
    """
    image = image.float()
    luma = image.mean(dim=1, keepdim=True)
    parts = [COLOUR * F.avg_pool2d(image, CELL)]
    for size in (1, 2):
        plane = F.avg_pool2d(luma, size)
        height, width = plane.shape[-2:]
        padded = F.pad(plane, (1, 1, 1, 1), mode="replicate")
        for dy, dx in DIRECTIONS:
            moved = padded[..., 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
            parts.append(_strength((moved - plane).square(), CELL // size))
    for plane in (image - luma, luma):
        mean = F.interpolate(F.avg_pool2d(plane, CELL), scale_factor=CELL)
        parts.append(_strength((plane - mean).square().sum(dim=1, keepdim=True), CELL))
    out = torch.cat(parts, dim=1)
    assert out.shape[1] == FEATURES
    return out


def _strength(energy: Tensor, cell: int) -> Tensor:
    return STRENGTH * ((F.avg_pool2d(energy, cell) + 1e-5).sqrt() + FAINT).log()
