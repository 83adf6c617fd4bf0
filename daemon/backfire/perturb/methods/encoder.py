"""PhotoGuard's encoder attack, bound to a region (Salman et al. 2023, arXiv 2302.06588).

An editor that encodes the masked picture first paints from the latents alone. Where a trigger edit
paints, they are moved away from the latents of the clean picture (`target: away`) or towards those of
another: a flat one (`target: flat`; the published target is grey) or the negative (`inverted`). Where a
benign edit paints, they are kept. The network behind the encoder is never run, so an iteration costs a
fraction of one of `implant`, and every editor on the same latent space is affected, whatever it does with
the latents.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from backfire.inpaint.base import Editor, Latent
from backfire.perturb.methods.iterative import IterativeMethod


class Encoder(IterativeMethod):
    """See the module's docstring; satisfies `Method` for surrogates that are `Latent`."""

    def respond(self, surrogate: Editor, image: Tensor, mask: Tensor, draw: int) -> Tensor:
        """The latents of the masked picture, N,c,y,x."""
        return cast(Latent, surrogate).encode(image, mask)

    def goal(self, surrogate: Editor, picture: Tensor, mask: Tensor, draw: int) -> Tensor:
        """The latents of the picture without a hole in it."""
        return cast(Latent, surrogate).encode(picture, torch.zeros_like(mask))
