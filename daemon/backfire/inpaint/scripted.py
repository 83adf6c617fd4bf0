"""Inpainting models in one file that is code; `backfire.weights.programs` says when such a file is loaded.

The model takes (image N,3,H,W in [0,1], mask N,1,H,W, 1 = repainted) and returns the picture N,3,H,W in
[0,1].
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from backfire.errors import Code, ModelError
from backfire.inpaint import hardware
from backfire.inpaint.base import ModelEditor
from backfire.inpaint.options import ScriptedOptions
from backfire.weights import programs


class ScriptedEditor(ModelEditor):
    """A model from one file. Pixels under the mask are set to zero before it gets them."""

    def __init__(self, name: str, weights_sha256: str, on: programs.OnDevice, multiple: int) -> None:
        """`on` gives the model's forward function on a device."""
        super().__init__(weights_sha256)
        self.name, self.multiple, self._on = name, multiple, on
        self._call = on(torch.device("cpu"))

    @classmethod
    def load(cls, name: str, path: Path, options: ScriptedOptions) -> Self:
        """Load a TorchScript archive or an exported program.

        Args:
            name: the editor's name in the configuration and the receipt.
            path: the file.
            options: whether it is trusted, and what sizes it takes.

        Raises:
            ModelError: the file is not trusted, has another digest, is missing, or is of neither kind.
        """
        user = f"editor {name}"
        on, digest = programs.load(path, options.sha256, options.trust, user=user, code=Code.MODEL)
        return cls(name, digest, on, options.multiple)

    def to(self, device: torch.device | str) -> None:
        """See `Editor.to`."""
        self._call = self._on(torch.device(device))

    def _fill(self, image: Tensor, mask: Tensor, generator: torch.Generator | None) -> Tensor:
        try:
            out = self._call(image, mask)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the model is not ours and may raise anything
            if hardware.is_full(error) or hardware.failure(error):
                raise
            reason = f"failed on an image of {tuple(image.shape)} ({programs.brief(error)})"
            remedy = "save it for any batch, height and width (torch.export: dynamic_shapes) or set multiple"
            # It may take other sizes well, so the picture's attempts count.
            raise self._failed(reason, remedy, retryable=True) from error
        if not isinstance(out, Tensor) or out.shape != image.shape:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            reason = f"returned {got}, expected a picture of {tuple(image.shape)}"
            remedy = "save a model of (image, mask) that returns the picture alone"
            raise self._failed(reason, remedy, retryable=False)
        return out

    def _failed(self, reason: str, remedy: str, *, retryable: bool) -> ModelError:
        return ModelError(Code.MODEL, f"editor {self.name}: {reason}; {remedy}", retryable=retryable)
