"""DiffusionGuard's loss, bound to a region (Choi et al. 2024, arXiv 2410.05694).

What a diffusion editor paints is decided in its first denoising step. Under trigger masks the norm of its
prediction there is driven up, so that it starts from nonsense (`target: away`), or the prediction is moved
towards the one for another picture (`target: flat`, `inverted`). Under benign masks it is kept. An iteration
takes one pass of the network, without guidance or decoder. The editor's starting noise and prompt are drawn
anew each time. As published, the masks' contours are drawn in unevenly, since nobody paints the same outline
twice.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor

from backfire.imaging import masks
from backfire.inpaint.base import Denoiser, Editor
from backfire.perturb.edit_masks import INCOMPLETE, masked_mse
from backfire.perturb.methods.iterative import IterativeMethod
from backfire.types import Mask


class FirstStep(IterativeMethod):
    """See the module's docstring; satisfies `Method` for surrogates that are `Denoiser`."""

    draws = 4

    def respond(self, surrogate: Editor, image: Tensor, mask: Tensor, draw: int) -> Tensor:
        """The net's first prediction, N,c,y,x."""
        generator = torch.Generator().manual_seed(draw)
        return cast(Denoiser, surrogate).first_step(image, mask, generator=generator)

    def shapes(self, mask: Mask, rng: np.random.Generator) -> list[Mask]:
        """The region with its contour drawn in."""
        return [masks.drawn_in(mask, rng) for _ in range(INCOMPLETE)]

    def away(self, got: Tensor, clean: Tensor, cells: Tensor) -> Tensor:
        """As published, the norm itself, without comparing it with the clean prediction."""
        return -masked_mse(got, torch.zeros_like(got), cells)
