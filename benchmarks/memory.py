"""Measures the peak memory of a piece of work (Linux only)."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Peak:
    """Peak memory of the work in MiB, beyond what the process held before it."""

    mb: int = 0


@contextmanager
def peak() -> Iterator[Peak]:
    """Measure the work in the `with` block; the result is set at its end."""
    # Free memory that the allocator keeps would be reused by the work, which would hide that part of it.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark, proc_pid_clear_refs(5)
    before, found = _kib("VmRSS"), Peak()
    yield found
    found.mb = max(_kib("VmHWM") - before, 0) // 1024


def _kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])
