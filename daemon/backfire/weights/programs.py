"""Models in files that are code: TorchScript (`torch.jit.save`) and exported programs (`torch.export.save`).

Such a file can do whatever this process can. It is therefore loaded only with `trust: true`, and only if its
SHA-256 is the one in the configuration.
"""

from __future__ import annotations

import hashlib
import io
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from backfire.errors import Code, ModelError

WARNING = "such a file is code and can do whatever this process can"

Call = Callable[..., Any]
OnDevice = Callable[[torch.device], Call]
"""Gives the model's forward function on a device."""


def load(path: Path, sha256: object, trust: object, *, user: str, code: Code) -> tuple[OnDevice, str]:
    """Load a TorchScript archive or an exported program, which its contents tell apart.

    Args:
        path: the file.
        sha256: its digest in hex. The bytes that are loaded are those that were hashed.
        trust: must be true, because the file's author may do anything in this process.
        user: the detector or editor that needs the model, for messages.
        code: the code of the errors.

    Returns:
        The forward function by device, with frozen weights, and the file's SHA-256.

    Raises:
        ModelError: the file is not trusted, has another digest, is missing, or is of neither kind.
    """

    def refused(reason: str, remedy: str) -> ModelError:
        return ModelError(code, f"{user}: {path} {reason}; {remedy}", retryable=False)

    if trust is not True or not isinstance(sha256, str):
        remedy = "if you know its author, set trust: true and sha256: 'its SHA-256'"
        raise refused(f"is not trusted: {WARNING}", remedy)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise refused(f"cannot be read ({error})", "name the model's file") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256.strip().lower():
        remedy = f"get the file again; {WARNING}, so it was not loaded"
        raise refused(f"has SHA-256 {digest}, expected {sha256}", remedy)
    with suppress(Exception):  # registers operators that many detectors use; optional
        import_module("torchvision")
    try:
        return (_scripted if _is_torchscript(data) else _exported)(data), digest
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # torch raises anything for a damaged archive
        reason = f"is neither TorchScript nor an exported program that loads here ({brief(error)})"
        remedy = "save it with torch.jit.save or torch.export.save"
        if "torchvision::" in str(error):
            remedy = "it uses torchvision's operators: install torchvision"
        raise refused(reason, remedy) from error


def brief(error: BaseException) -> str:
    """The last line of an error, at most 300 characters, because TorchScript puts its whole stack before
    it.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:300]


def _is_torchscript(data: bytes) -> bool:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return any("/code/" in name for name in archive.namelist())


def _scripted(data: bytes) -> OnDevice:
    with warnings.catch_warnings():
        # torch.jit is deprecated in favour of torch.export, but many published models are TorchScript.
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        module = torch.jit.load(io.BytesIO(data), map_location="cpu")  # type: ignore[no-untyped-call]
    module.eval()
    for parameter in module.parameters():  # a ScriptModule has no requires_grad_
        parameter.requires_grad_(False)

    def on(device: torch.device) -> Call:
        moved: Call = module.to(device)
        return moved

    return on


def _exported(data: bytes) -> OnDevice:
    from torch.export.passes import move_to_device_pass

    program = torch.export.load(io.BytesIO(data))

    def on(device: torch.device) -> Call:
        # module.to() is not enough, because an exported graph names the device of the tensors it creates.
        module: Any = move_to_device_pass(program, device).module()
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        moved: Call = module
        return moved

    return on
