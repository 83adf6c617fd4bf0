"""What trigger edits are moved towards (`protect.target`); the optimiser and the replay both use it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def furthest_colour(image: Tensor) -> Tensor:
    """The published target colour (arXiv 2410.14966) for a picture 1,3,H,W in [0,1].

    Returns:
        1,3,1,1: pure red, green or blue, whichever is furthest from the picture's mean colour.
    """
    mean = image.mean(dim=(2, 3))
    pure = torch.eye(3, device=image.device)
    distance = ((pure - mean) ** 2).sum(dim=1)
    return pure[int(distance.argmax())][None, :, None, None]


def target_picture(target: str, image: Tensor) -> Callable[[Tensor], Tensor] | None:
    """The picture that trigger edits are to resemble.

    Args:
        target: `away`; `flat`, the furthest colour; `inverted`, the picture's negative.
        image: 1,3,H,W in [0,1], the unperturbed crop: `flat` is the colour furthest from it.

    Returns:
        A function from a picture N,3,h,w as an editor is given it to the target N,3,h,w; None for `away`,
        which moves edits away from the clean edit and has no such picture.
    """
    if target == "flat":
        return furthest_colour(image).expand_as
    return (lambda given: 1 - given.detach()) if target == "inverted" else None
