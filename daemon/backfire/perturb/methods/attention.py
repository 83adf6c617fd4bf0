"""The entropy of attention, bound to a region, after the idea of VETO (2026).

A transformer that edits a picture decides in its first blocks where each cell looks. Under trigger masks the
attention of the repainted cells in the first block with both picture and prompt is flattened, so that they
attend to everything alike and the picture guides them no more (`target: away`), or it is moved towards that
for another picture (`target: flat`, `inverted`). Under benign masks it is kept. An iteration takes the
encoder and one block of the network. The starting noise and the prompt are drawn anew each time.

VETO's loss is the entropy of attention in the first double-stream block of FLUX.2 and FIBO. Whether it raises
or lowers that is not confirmed: neither its paper nor its code could be read (2026-11-29). It is raised here,
because a cell that attends to everything alike has the largest entropy and gets the mean of the picture,
whatever its content; one of the lowest entropy still gets some part of it. No published transformer was at
hand to measure which of the two breaks more.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from backfire.inpaint.base import Attentive, Editor
from backfire.perturb.edit_masks import masked_mse
from backfire.perturb.methods.iterative import IterativeMethod


class Attention(IterativeMethod):
    """See the module's docstring; satisfies `Method` for surrogates that are `Attentive`."""

    draws = 4

    def respond(self, surrogate: Editor, image: Tensor, mask: Tensor, draw: int) -> Tensor:
        """The entropy of attention, N,1,y,x."""
        generator = torch.Generator().manual_seed(draw)
        return cast(Attentive, surrogate).attention_entropy(image, mask, generator=generator)

    def away(self, got: Tensor, clean: Tensor, cells: Tensor) -> Tensor:
        """The distance to the largest entropy, whatever the clean one is."""
        return masked_mse(got, torch.ones_like(got), cells)
