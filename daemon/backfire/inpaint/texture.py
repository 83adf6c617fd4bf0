"""What a cell of a picture looks like, whatever the phase of its texture: by this the shift-map compares."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CELL = 8
"""Side of a cell in pixels."""
FEATURES = 13

COLOUR, STRENGTH = 4.0, 0.8
"""Bring colours in [0,1] and logarithms to about the same spread."""
FAINT = 0.02
"""Differences of luma below this are all alike."""
DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))


def described(image: Tensor) -> Tensor:
    """N,3,H,W in [0,1] -> float32 N,13,H/8,W/8: a cell's mean colour, and how strong its detail is.

    Strengths are logarithms: of differences of luma to neighbours in four directions, at full and half
    size, and of the deviation of chroma and of luma from the cell's mean. A fill is held to these, not to
    the pixels: of those it could only predict the blurred mean. And they are taken of pixels, not of latents,
    which a change of a few levels turns into anything: edits far from it would choose otherwise, too.
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
