"""Any inpainting model that is one file: TorchScript (`torch.jit.save`) or a `torch.export.save` program.

Such a file is code: whoever wrote it decides what happens in this process. So it is loaded only on
`trust: true`, and only when its SHA-256 is the one that the configuration names. The model takes
(image N,3,H,W in [0,1], mask N,1,H,W, 1 = repainted) and returns the picture N,3,H,W in [0,1].
"""

from __future__ import annotations

import hashlib
import io
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from daemon.editors.base import ModelEditor
from daemon.errors import Code, ConfigError, ModelError

WARNING = "such a file is code and can do whatever this process can"

Call = Callable[[Tensor, Tensor], Any]


class ScriptedEditor(ModelEditor):
    """A model from a file of its own; pixels under the mask are zeroed before it sees them."""

    def __init__(
        self, name: str, weights_sha256: str, on: Callable[[torch.device], Call], multiple: int
    ) -> None:
        """`on` gives the model's forward on a device."""
        super().__init__(weights_sha256)
        self.name, self.multiple, self._on = name, multiple, on
        self._call = on(torch.device("cpu"))

    @classmethod
    def load(
        cls, name: str, path: Path, *, sha256: str | None = None, trust: bool = False, multiple: int = 8
    ) -> Self:
        """Load a TorchScript archive or an exported program; which of them, its contents tell.

        Args:
            name: the editor's name in the configuration and the receipt.
            path: the file.
            sha256: its digest in hex; the very bytes that were digested are the ones that are loaded.
            trust: must be true: the file's author may do anything in this process.
            multiple: what height and width are padded to a multiple of.

        Raises:
            ConfigError: an impossible `multiple`.
            ModelError: not trusted, another digest, missing, or neither kind of file.
        """
        if trust is not True or not isinstance(sha256, str):
            reason = f"{path} is not trusted: {WARNING}"
            raise _error(name, reason, "if you know its author, set trust: true and sha256: 'its SHA-256'")
        if not isinstance(multiple, int) or multiple < 1:
            raise ConfigError(f"editor {name}: multiple: got {multiple!r}, expected whole pixels from 1")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise _error(name, f"{path} cannot be read ({error})", "name the model's file") from error
        digest = hashlib.sha256(data).hexdigest()
        if digest != sha256.strip().lower():
            reason = f"{path} has SHA-256 {digest}, expected {sha256}"
            raise _error(name, reason, f"get the file again; {WARNING}, so it was not loaded")
        try:
            load = _scripted if _is_torchscript(data) else _exported
            return cls(name, digest, load(data), multiple)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a damaged archive fails anywhere in torch, with anything
            reason = (
                f"{path} is neither TorchScript nor an exported program that loads here ({_brief(error)})"
            )
            raise _error(name, reason, "save it with torch.jit.save or torch.export.save") from error

    def to(self, device: torch.device | str) -> None:
        """See `Editor.to`."""
        self._call = self._on(torch.device(device))

    def _fill(self, image: Tensor, mask: Tensor, generator: torch.Generator | None) -> Tensor:
        try:
            out = self._call(image, mask)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the model is a stranger's: whatever it raises is its failure
            if "memory" in str(error):
                raise
            reason = f"failed on an image of {tuple(image.shape)} ({_brief(error)})"
            remedy = "save it for any batch, height and width (torch.export: dynamic_shapes) or set multiple"
            raise _error(self.name, reason, remedy) from error
        if not isinstance(out, Tensor) or out.shape != image.shape:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            reason = f"returned {got}, expected a picture of {tuple(image.shape)}"
            raise _error(self.name, reason, "save a model of (image, mask) that returns the picture alone")
        return out


def _is_torchscript(data: bytes) -> bool:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return any("/code/" in name for name in archive.namelist())


def _scripted(data: bytes) -> Callable[[torch.device], Call]:
    with warnings.catch_warnings():
        # Deprecated in favour of torch.export, but it is how published editors are distributed.
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        module = torch.jit.load(io.BytesIO(data), map_location="cpu")  # type: ignore[no-untyped-call]
    module.eval()
    for parameter in module.parameters():  # ScriptModules have no requires_grad_
        parameter.requires_grad_(False)

    def on(device: torch.device) -> Call:
        moved: Call = module.to(device)
        return moved

    return on


def _exported(data: bytes) -> Callable[[torch.device], Call]:
    from torch.export.passes import move_to_device_pass

    program = torch.export.load(io.BytesIO(data))

    def on(device: torch.device) -> Call:
        # Not module.to(): an exported graph names the device of what it creates.
        module: Any = move_to_device_pass(program, device).module()
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        moved: Call = module
        return moved

    return on


def _brief(error: BaseException) -> str:
    """The last line, at most 300 characters: TorchScript prints its whole stack first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:300]


def _error(name: str, reason: str, remedy: str) -> ModelError:
    return ModelError(Code.MODEL, f"editor {name}: {reason}; {remedy}", retryable=False)
