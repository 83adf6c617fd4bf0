"""What all editors share: the protocol, and the sizes, padding and compositing around a model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class Editor(Protocol):
    """An inpainting model. Differentiable, so that it can serve as a surrogate.

    Attributes:
        name: its name in the configuration and the receipt.
        multiple: the model itself works on sizes that are multiples of this; callers may pass any size.
        blind: whether pixels under the mask are hidden from the model. Editors that fill a hole do not
            see them; editors that render the whole picture again (encode and decode) do.
        weights_sha256: SHA-256 of the weights file.
    """

    name: str
    multiple: int
    blind: bool
    weights_sha256: str

    def to(self, device: torch.device | str) -> None:
        """Move the model to a device."""
        ...

    def inpaint(self, image: Tensor, mask: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Repaint where the mask is 1.

        Args:
            image: float32 N,3,H,W, RGB in [0,1].
            mask: N,1,H,W in {0,1}, 1 = repainted.
            generator: source of randomness for editors that draw noise.

        Returns:
            N,3,H,W in [0,1]; pixels where the mask is 0 are the image's own, exactly.
        """
        ...


def mirror(x: Tensor, height: int, width: int) -> Tensor:
    """Extend N,C,H,W to the right and below with its mirror image, again and again (numpy's "symmetric")."""
    for dim, size in ((2, height), (3, width)):
        length = x.shape[dim]
        index = torch.arange(size, device=x.device) % (2 * length)
        x = x.index_select(dim, torch.minimum(index, 2 * length - 1 - index))
    return x


@runtime_checkable
class Latent(Editor, Protocol):
    """An editor that encodes the masked picture first, as Stable Diffusion and its heirs do."""

    def encode(self, image: Tensor, mask: Tensor) -> Tensor:
        """The latents of the masked picture, as the denoising net is given them. Differentiable in `image`.

        Args:
            image: float32 N,3,H,W, RGB in [0,1].
            mask: N,1,H,W in {0,1}, 1 = repainted; those pixels are not seen where the editor is `blind`.

        Returns:
            float32 N,c,h,w with h = ceil(H / multiple), w likewise, in the scale that the network works in
            (about unit variance).
        """
        ...


@runtime_checkable
class Denoiser(Latent, Protocol):
    """A latent editor that paints by denoising in many steps, too many to differentiate through."""

    def first_step(self, image: Tensor, mask: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The network's first prediction, without guidance. Differentiable in `image`.

        Args:
            image, mask: as in `encode`.
            generator: draws the starting noise, one for the whole batch; None is always the same noise.

        Returns:
            float32 N,c,h,w: noise, velocity or latents, whatever the network was trained to predict.
        """
        ...

    def one_step(self, image: Tensor, mask: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The edit as the first step predicts it, differentiable in `image`.

        A loss that compares a surrogate's edit with its clean edit must take both from here.
        Arguments and result as in `Editor.inpaint`.
        """
        ...


@runtime_checkable
class Attentive(Denoiser, Protocol):
    """A denoiser whose network is a transformer, in which picture and prompt attend to each other."""

    def attention_entropy(
        self, image: Tensor, mask: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """How widely each cell of the edit attends in the first such block. Differentiable in `image`.

        Args:
            image, mask, generator: as in `Denoiser.first_step`, which makes the block's input.

        Returns:
            float32 N,1,h,w in [0,1]: the entropy of each cell's attention as a share of the largest one; the
            cells are those of `encode`.
        """
        ...


def differentiable_edit(surrogate: Editor, image: Tensor, mask: Tensor) -> Tensor:
    """A surrogate's edit by steps that gradients flow through: a denoiser's one step, else `inpaint`.

    A loss must compare it with clean edits that are made here, too. Arguments and result as in
    `Editor.inpaint`.
    """
    # By attribute: from Python 3.12 on isinstance does not see methods that a wrapper passes on.
    edit: Callable[[Tensor, Tensor], Tensor] = getattr(surrogate, "one_step", surrogate.inpaint)
    return edit(image, mask)


class ModelEditor:
    """Checks, padding, masking and compositing around a network; subclasses say how it fills.

    Subclasses set `name`, `multiple` and `hole` and implement `_fill`. It is given sizes that are multiples
    of `multiple`, with the pixels under the mask set to `hole`, and may return anything for known pixels and
    values outside [0,1].
    """

    name: str
    multiple: int = 8
    smallest: int = 1
    """Shorter sides are padded up to this."""
    square: bool = False
    """Whether the model takes squares only; the picture is then mirrored out to one, as IOPaint does."""
    blind: bool = True
    hole: float = 0.0
    """What pixels under the mask become on the [0,1] scale before the network sees them."""
    arithmetic: torch.dtype | None = None
    """Number format of the network's convolutions and matrix products; its weights stay in float32.
    None: that of the caller, which is float32 to verify and the machine's faster one to optimise."""

    def __init__(self, weights_sha256: str, *modules: nn.Module) -> None:
        self.weights_sha256 = weights_sha256
        self._modules = modules
        for module in modules:
            module.eval().requires_grad_(False)

    def to(self, device: torch.device | str) -> None:
        """Move the networks; channels-last, which CPU and GPU convolutions prefer, but those of videos."""
        for module in self._modules:
            flat = all(parameter.dim() < 5 for parameter in module.parameters())
            layout = {"memory_format": torch.channels_last} if flat else {}
            module.to(device=device, **layout)  # type: ignore[call-overload]

    def _fill(self, image: Tensor, mask: Tensor, generator: torch.Generator | None) -> Tensor:
        raise TypeError(f"{type(self).__name__} lacks _fill")

    def inpaint(self, image: Tensor, mask: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """See `Editor.inpaint`."""
        with self._computing(image.device):
            filled = self._fill(*self._ready(image, mask), generator)
        return self._composited(filled, image, mask)

    def _computing(self, device: torch.device) -> contextlib.AbstractContextManager[object]:
        """What the network runs under, so that `arithmetic` holds whatever the caller computes in."""
        if self.arithmetic is None:
            return contextlib.nullcontext()
        if self.arithmetic is torch.float32:
            return torch.autocast(device.type, torch.bfloat16, enabled=False)
        return torch.autocast(device.type, self.arithmetic)

    def _edited(self, mask: Tensor) -> Tensor:
        """The mask the network works under, from the user's; N,1,H,W in {0,1} both."""
        return mask

    def _ready(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Picture and mask as the network sees them: checked, padded, the hole emptied."""
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"image: got shape {tuple(image.shape)}, expected N,3,H,W")
        if mask.shape != (image.shape[0], 1, *image.shape[2:]):
            expected = (image.shape[0], 1, *image.shape[2:])
            raise ValueError(f"mask: got shape {tuple(mask.shape)}, expected {expected}")
        image, mask = self._padded(image), self._edited(self._padded(mask))
        return (torch.where(mask > 0.5, self.hole, image) if self.blind else image), mask

    @staticmethod
    def _composited(filled: Tensor, image: Tensor, mask: Tensor) -> Tensor:
        height, width = image.shape[2:]
        filled = filled[..., :height, :width].to(image.dtype)
        # where(), not arithmetic: known pixels must come back bit for bit.
        return torch.where(mask > 0.5, filled.clamp(0, 1), image)

    def _padded(self, x: Tensor) -> Tensor:
        """Below and on the right, to the sizes the model needs."""
        height, width = (max(side, self.smallest) for side in x.shape[2:])
        if self.square:
            height = width = max(height, width)
        return mirror(x, height + -height % self.multiple, width + -width % self.multiple)
