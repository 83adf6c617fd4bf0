"""Networks in ONNX files, run on the processor: found in a package, checked, and worded when they fail."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

# Before it is first imported: from 1.29 on it else tells Microsoft of each network it loads, and keeps an
# identity of the machine in the home folder (its Privacy.md).
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from backfire.errors import Code, ModelError

Floats = NDArray[np.float32]
Network = Callable[[Floats], list[Floats]]
"""A network's first input in, all its outputs out."""

THREADS = 2
"""The optimiser needs the other cores, and idle threads must not spin on them."""


class NetworkFailed(Exception):
    """Names the network; its cause is what onnxruntime raised."""


def packaged(package: str, name: str, sha256: str, *, detector: str, remedy: str) -> Network:
    """A network from an installed package, which is found without being imported.

    Args:
        package: its importable name.
        name: the file, relative to the package's folder.
        sha256: what the file must be: thresholds are chosen for one network and no other.
        detector, remedy: for the message.

    Raises:
        ModelError: `Code.DETECTOR`, the package or file is missing, or another one than expected.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        message = f"detector {detector}: no package {package}, expected its network {name}; {remedy}"
        raise ModelError(Code.DETECTOR, message, retryable=False)
    return loaded(Path(spec.submodule_search_locations[0]) / name, sha256, detector=detector, remedy=remedy)


def loaded(path: Path, sha256: str | None, *, detector: str, remedy: str) -> Network:
    """A network from a file; `sha256` None takes any. Raises as `packaged`."""
    try:
        model = path.read_bytes()
    except OSError as error:
        message = f"detector {detector}: its network {path} cannot be read ({error}); {remedy}"
        raise ModelError(Code.DETECTOR, message, retryable=False) from error
    digest = hashlib.sha256(model).hexdigest()
    if sha256 not in (None, digest):
        message = f"detector {detector}: its network {path} has SHA-256 {digest}, expected {sha256}; {remedy}"
        raise ModelError(Code.DETECTOR, message, retryable=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = False  # the arena would keep the largest picture's memory for good
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        entry = session.get_inputs()[0].name
    except Exception as error:  # onnxruntime has no public base class of its exceptions
        message = f"detector {detector}: its network {path} cannot be used ({error}); {remedy}"
        raise ModelError(Code.DETECTOR, message, retryable=False) from error

    def look(batch: Floats) -> list[Floats]:
        try:
            outputs: list[Floats] = session.run(None, {entry: batch})
        except Exception as error:
            raise NetworkFailed(path.name) from error
        return outputs

    return look


def failed(error: NetworkFailed, *, detector: str, picture: str, width: int, height: int) -> ModelError:
    """A network that failed on one picture, in words."""
    return ModelError(
        Code.DETECTOR,
        f"detector {detector}: {error} failed on {picture} of {width}x{height} ({error.__cause__}); "
        f"free memory and try again, or take '{detector}' out of regions.detectors",
    )
