"""The device that the editors run on: its choice, its number formats, its memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch

from backfire.errors import Code, ModelError, require

BROKEN = re.compile(r"\b(CUDA( driver)?|cuDNN|cuBLAS|cusolver|HIP) error\b[^\n]*")
"""The start of torch's message if a device fails, for example after an illegal access or if a GPU is lost."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""By name in the configuration: the number format."""

_PROC = Path("/proc/self")
_RESET_PEAK = "5"  # proc(5), clear_refs
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
_KEPT = 2**29
"""The bytes of the largest block that `memory_kept` keeps."""
_ADAPTED = 2**25
"""The threshold to which glibc adapts by itself where large blocks come and go, in bytes; see mallopt(3)."""


def pick_device(setting: str) -> torch.device:
    """The device of a setting: `auto` is the first CUDA device if there is one, else the CPU.

    Raises:
        ModelError: a CUDA device was named and is not there.
    """
    if setting == "auto":
        setting = "cuda:0" if torch.cuda.is_available() else "cpu"
    device = torch.device(setting)
    if device.type == "cuda":
        if (device.index or 0) >= torch.cuda.device_count():
            message = (
                f"device {setting}: {torch.cuda.device_count()} CUDA devices here; "
                "set protect.device to auto or cpu, or take it out of limits.devices"
            )
            raise ModelError(Code.MODEL, message, retryable=False)
        _make_repeatable()
    return device


def _make_repeatable() -> None:
    """Make torch compute the same again, since a job's key must give the same bytes again.

    Sums by atomics differ in their last bit from run to run, and eighty iterations make whole levels of that.
    An operator that has no fixed order warns and goes on.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # slow, for debugging


def _cpu_has(feature: str) -> bool:
    probe = getattr(torch.cpu, feature, None)
    return bool(probe and probe())


@cache
def cpu_prefers_bfloat16(
    has: Callable[[str], bool] = _cpu_has, cpuinfo: Path = Path("/proc/cpuinfo")
) -> bool:
    """Whether this processor computes convolutions faster in bfloat16 than in float32.

    This is decided by its features and not measured, so that the same machine always gives the same bytes. On
    an Intel Xeon with AVX512-BF16 but without AMX, an edit with its gradient took 1.1 to 1.6 times as long in
    bfloat16 (1 and 2 cores, crops of 152x224 and 464x560, one and three edits at a time).

    Args:
        has: whether a probe of that name in `torch.cpu` finds its feature.
        cpuinfo: Linux's description of the processor.
    """
    if has("_is_amx_tile_supported"):
        return True
    with contextlib.suppress(OSError):
        return "AuthenticAMD" in cpuinfo.read_text() and has("_is_avx512_bf16_supported")
    return False


def failure(error: BaseException) -> str | None:
    """Torch's message of a device that failed; None for all other errors, such as a lack of memory."""
    broken = BROKEN.search(str(error))
    return None if broken is None or re.search("out of memory|ALLOC_FAILED", broken[0]) else broken[0]


def is_full(error: BaseException) -> bool:
    """Whether an error of torch says that the memory of the device or of the host is exhausted."""
    return failure(error) is None and re.search("memory|ALLOC_FAILED", str(error)) is not None


def dtype_named(name: str, setting: str = "dtype") -> torch.dtype:
    """The number format of a name. Raises a ConfigError that suggests the nearest valid name."""
    require(name, DTYPES, setting)
    return DTYPES[name]


@contextlib.contextmanager
def memory_kept() -> Iterator[None]:
    """Let what is freed meanwhile stay with this process, so that the next tensor of its size finds it.

    An iteration allocates and frees the same large tensors again and again. Glibc gives each back to the
    system at once and asks for it anew, and the system clears every page: a tenth of the processor time of a
    picture on a virtual machine (AMD EPYC, 480 px). What is computed stays the same. At the end everything
    that is free goes back. Blocks larger than `_KEPT` are treated as before, as a spare one would cost too
    much; other systems and C libraries are left alone.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    mallopt, trim = (getattr(libc, name, None) for name in ("mallopt", "malloc_trim"))
    if mallopt is None or trim is None:
        yield
        return
    mallopt(_M_MMAP_THRESHOLD, _KEPT)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        mallopt(_M_MMAP_THRESHOLD, _ADAPTED)
        mallopt(_M_TRIM_THRESHOLD, 2 * _ADAPTED)
        trim(0)


class PeakMemory:
    """The peak of the memory in use since this object was made.

    On a CUDA device these are the bytes of tensors by torch's count. On a CPU they are the resident bytes of
    the process by Linux's count, with libraries and weights, because Python's tracemalloc does not see torch.
    Linux can restart that count; if it cannot (old kernels, other systems), it is the peak since the process
    started, and `since_start` is False. Use one object at a time, because a second one restarts the count.

    Attributes:
        device: the device on which the work is done.
        since_start: whether the count was restarted, so that it does not include earlier work.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.since_start = True
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            try:
                (_PROC / "clear_refs").write_text(_RESET_PEAK)
            except OSError:
                self.since_start = False

    @property
    def bytes(self) -> int:
        """The peak until now, in bytes."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        with contextlib.suppress(OSError):
            found = re.search(r"^VmHWM:\s+(\d+) kB$", (_PROC / "status").read_text(), re.MULTILINE)
            if found:
                return int(found[1]) * 1024
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
