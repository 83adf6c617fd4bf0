"""Networks in ONNX files, run on the processor: found in a package, checked, and run with clear errors."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

# Set before the first import. From 1.29 on, onnxruntime would otherwise report each network it loads to
# Microsoft and keep an identity of the machine in the home folder (see its Privacy.md).
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from backfire.errors import Code, ModelError
from backfire.types import Rgb

Floats = NDArray[np.float32]
Network = Callable[[Floats], list[Floats]]
"""Takes the network's first input and gives all its outputs."""

THREADS = 2
"""The threads of a network; the optimiser needs the other cores."""


class NetworkFailed(Exception):
    """A network failed on a picture. Its text is the network's name, its cause is what onnxruntime raised."""


def packaged(package: str, name: str, sha256: str, *, detector: str, remedy: str) -> Network:
    """A network from an installed package, whose code is not imported.

    Args:
        package: the package's importable name.
        name: the file, relative to the package's folder.
        sha256: the digest that the file must have, because thresholds are chosen for one network.
        detector, remedy: for the messages of errors.

    Raises:
        ModelError: `Code.DETECTOR`, the package or the file is missing, or the file has another digest.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        message = f"detector {detector}: no package {package}, expected its network {name}; {remedy}"
        raise ModelError(Code.DETECTOR, message, retryable=False)
    return loaded(Path(spec.submodule_search_locations[0]) / name, sha256, detector=detector, remedy=remedy)


def loaded(path: Path, sha256: str | None, *, detector: str, remedy: str) -> Network:
    """A network from a file, of any content where `sha256` is None. Raises the same as `packaged`."""
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
    # Idle threads must not spin on the cores that the optimiser uses.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = False  # the arena never gives back the memory of the largest picture
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


@contextmanager
def reported(detector: str, picture: str, image: Rgb) -> Iterator[None]:
    """Turns a `NetworkFailed` into a ModelError that names the detector, the picture and its size."""
    try:
        yield
    except NetworkFailed as error:
        height, width = image.shape[:2]
        raise ModelError(
            Code.DETECTOR,
            f"detector {detector}: {error} failed on {picture} of {width}x{height} ({error.__cause__}); "
            f"free memory and try again, or take '{detector}' out of regions.detectors",
        ) from error
