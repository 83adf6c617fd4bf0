"""A model in a file that is code: TorchScript (`torch.jit.save`) or a `torch.export.save` program.

Whoever wrote such a file decides what happens in this process. So it is loaded only on `trust: true`,
and only when its SHA-256 is the one that the configuration names.
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
"""Gives a model's forward on a device."""


def load(path: Path, sha256: object, trust: object, *, user: str, code: Code) -> tuple[OnDevice, str]:
    """Load a TorchScript archive or an exported program; which of them, its contents tell.

    Args:
        path: the file.
        sha256: its digest in hex; the very bytes that were digested are the ones that are loaded.
        trust: must be true: the file's author may do anything in this process.
        user: who wants it, and `code` which kind of failure it is to them, for the error.

    Returns:
        Its forward by device, with frozen weights; and its SHA-256.

    Raises:
        ModelError: not trusted, another digest, missing, or neither kind of file.
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
    with suppress(Exception):  # operators that many detectors use exist from then on; broken is absent
        import_module("torchvision")
    try:
        return (_scripted if _is_torchscript(data) else _exported)(data), digest
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a damaged archive fails anywhere in torch, with anything
        reason = f"is neither TorchScript nor an exported program that loads here ({brief(error)})"
        remedy = "save it with torch.jit.save or torch.export.save"
        if "torchvision::" in str(error):
            remedy = "it uses torchvision's operators: install torchvision"
        raise refused(reason, remedy) from error


def brief(error: BaseException) -> str:
    """The last line, at most 300 characters: TorchScript prints its whole stack first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:300]


def _is_torchscript(data: bytes) -> bool:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return any("/code/" in name for name in archive.namelist())


def _scripted(data: bytes) -> OnDevice:
    with warnings.catch_warnings():
        # Deprecated in favour of torch.export, but it is how published models are distributed.
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        module = torch.jit.load(io.BytesIO(data), map_location="cpu")  # type: ignore[no-untyped-call]
    module.eval()
    for parameter in module.parameters():  # ScriptModules have no requires_grad_
        parameter.requires_grad_(False)

    def on(device: torch.device) -> Call:
        moved: Call = module.to(device)
        return moved

    return on


def _exported(data: bytes) -> OnDevice:
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
