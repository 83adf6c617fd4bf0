"""Reads the tensors of weights files: safetensors, torch checkpoints and TorchScript archives.

No code in a file ever runs. Checkpoints are read by `torch.load(weights_only=True)`. For two kinds of files,
every class that the pickle names is given to the weights-only unpickler as `_Inert`, a class of ours that
only keeps attributes:

* A Lightning checkpoint names the classes of its callbacks, which are neither imported nor needed.
* A TorchScript archive is a zip of a pickle, tensors and code, which torch refuses because of the code. Its
  modules are pickled as objects that hold their tensors. We copy the archive without code and constants and
  read that; `torch.jit` never gets it.

Classes that extend dict or list cannot be replaced in this way, and give an error that says how to convert
the file. weights_only was unsafe before torch 2.6 (CVE-2025-32434), which is the least version that the
package accepts.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from backfire import weights
from backfire.errors import Code, ModelError


class _Inert:
    """Replaces any class that a checkpoint names. It keeps its attributes and does nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def _plain_dict(*_: Any) -> dict[Any, Any]:
    """Replaces defaultdict, whose items the unpickler would not set."""
    return {}


def read_state(name: str, path: Path) -> tuple[dict[str, Tensor], str]:
    """All named tensors of a weights file, however nested, and the file's SHA-256.

    Args:
        name: the editor's name, for messages.
        path: safetensors, a torch checkpoint or a TorchScript archive, which its contents tell apart.

    Returns:
        Tensors on the CPU by dotted name (`state_dict.generator.model.1.ffc...`), and the digest.

    Raises:
        ModelError: the file is missing, damaged or not a weights file, or it ships inside the package and has
            changed; not retryable.
    """
    shipped = weights.inside().get(path.name) if path.parent == weights.INSIDE else None
    again = "install backfire again" if shipped else ""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if shipped not in (None, digest):
                raise _unusable(name, path, f"SHA-256 is {digest}, expected {shipped}", again)
            file.seek(0)
            state = dict(_named(_load(file)))
    except OSError as error:
        remedy = again or "name a readable file in the editor's settings"
        raise _unusable(name, path, error, remedy) from error
    except (MemoryError, ModelError):
        raise
    except Exception as error:  # an unpickler raises anything for invalid data
        remedy = "fetch the file again, or save its state dict as safetensors"
        raise _unusable(name, path, error, remedy) from error
    if not state:
        raise _unusable(name, path, "it holds no named tensors", "name a file of weights")
    return state, digest


def _load(file: BinaryIO) -> Any:
    head = file.read(9)
    file.seek(0)
    if head[8:] == b"{":
        return load_safetensors(file.read())
    if not zipfile.is_zipfile(file):
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)
    archive = _without_code(file)
    unknown = torch.serialization.get_unsafe_globals_in_checkpoint(archive)
    archive.seek(0)
    known = {"collections.defaultdict": _plain_dict}
    with torch.serialization.safe_globals([(known.get(each, _Inert), each) for each in unknown]):
        return torch.load(archive, map_location="cpu", weights_only=True)


def _without_code(file: BinaryIO) -> Any:
    """The archive itself, or a copy in memory without the records that only TorchScript has."""
    with zipfile.ZipFile(file) as source:
        # torch never compresses records, so a compressed one is not torch's and could exhaust memory.
        records = [each for each in source.infolist() if "code" not in _inside(each.filename)]
        if any(each.compress_type != zipfile.ZIP_STORED for each in records):
            raise ValueError("its records are compressed, torch writes them uncompressed")
        if not any(_inside(each.filename) == ["constants.pkl"] for each in records):
            file.seek(0)
            return file
        copy = io.BytesIO()
        with zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as target:
            for each in records:
                if _inside(each.filename)[:1] in (["data"], ["data.pkl"], ["version"], ["byteorder"]):
                    target.writestr(each.filename, source.read(each))
    copy.seek(0)
    return copy


def _inside(record: str) -> list[str]:
    """The path of a record below the archive's own folder."""
    return record.split("/")[1:]


def _named(tree: Any) -> Iterator[tuple[str, Tensor]]:
    """The pairs (dotted name, tensor) of nested mappings and modules.

    Each is entered once, so that a pickle that refers to itself is no endless loop.
    """
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", tree)]
    while waiting:
        prefix, node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        items = vars(node) if isinstance(node, _Inert) else node if isinstance(node, Mapping) else {}
        for key, value in items.items():
            if isinstance(value, Tensor):
                yield f"{prefix}{key}", value
            else:
                waiting.append((f"{prefix}{key}.", value))


def _unusable(name: str, path: Path, why: object, remedy: str) -> ModelError:
    reason = str(why).splitlines()[0][:300] if str(why) else type(why).__name__
    message = f"editor {name}: weights {path} cannot be loaded ({reason}); {remedy}"
    return ModelError(Code.MODEL, message, retryable=False)
