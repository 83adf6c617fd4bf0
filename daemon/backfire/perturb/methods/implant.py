"""The paper's method on a crop: implant, incomplete and hide (arXiv 2410.14966).

Three losses over edits of the perturbed picture, each under its own mask:

* implant: the full region as the edit mask; the edit must break;
* incomplete: a region painted differently (dilated, shrunk, shifted, halved, boxed, stroked
  over); the edit must break too;
* hide: the ring around the region or a far square; the edit must equal the clean edit.

"Break" means away from the clean edit (`target: away`, the default, which was measured to be stronger
than the published flat colour), towards the pure colour furthest from the picture (`target: flat`, the
published one), or towards its negative (`inverted`). What differs from the published script: the clean
edits are constant and computed once; an iteration looks at one edit instead of three, and there are four
times as many; momentum steps that fit the budget replace Adam at four times the budget; and on request
(`protect.robust_to`) iterations look at other crops and sizes of the picture, at JPEG and at blur.
"""

from __future__ import annotations

from torch import Tensor

from backfire.inpaint.base import Editor
from backfire.perturb import edit_masks
from backfire.perturb.methods.iterative import IterativeMethod


class Implant(IterativeMethod):
    """See the module's docstring; satisfies `Method`."""

    decays = True

    def respond(self, surrogate: Editor, image: Tensor, mask: Tensor, draw: int) -> Tensor:
        """The edit itself, N,3,h,w."""
        return edit_masks.edited(surrogate, image, mask, draw)

    def goal(self, surrogate: Editor, picture: Tensor, mask: Tensor, draw: int) -> Tensor:
        """The picture itself, whatever the editor would make of it."""
        return picture
