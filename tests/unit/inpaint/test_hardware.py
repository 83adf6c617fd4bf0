"""Number formats, the peak of memory, and which processors compute in bfloat16."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from backfire.errors import ConfigError
from backfire.inpaint.hardware import PeakMemory, cpu_prefers_bfloat16, dtype_named

KEEPING = """
import resource, torch
from backfire.inpaint.hardware import memory_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(24 * 2**20)  # 96 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():  # proc(5), statm
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() // 2**20

plain = faults()
with memory_kept():
    faults()  # the first blocks come from the system
    kept = faults()
    held = resident()
print(plain, kept, held - resident())
"""


def test_number_formats_by_name() -> None:
    assert dtype_named("bfloat16") == torch.bfloat16
    with pytest.raises(ConfigError, match="editor sd: dtype: got 'bfloat'; did you mean 'bfloat16'"):
        dtype_named("bfloat", "editor sd: dtype")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process restart its peak")
def test_the_peak_counts_freed_memory_but_none_from_before_the_count() -> None:
    megabyte = 2**20
    torch.ones(100 * megabyte)  # 400 MiB, freed before the count starts
    peak = PeakMemory(torch.device("cpu"))
    before = peak.bytes
    torch.ones(50 * megabyte)  # 200 MiB
    assert peak.since_start
    assert 150 * megabyte < peak.bytes - before < 250 * megabyte


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="only glibc has mallopt"
)
def test_freed_memory_is_kept_while_it_is_needed_and_given_back_then() -> None:
    """In a process of its own: in this one other tests have left free blocks that are as large.

    What went back is what is no longer resident. Page faults do not tell: where a small block was put after
    the large free one, glibc serves later blocks from its addresses and keeps their pages.
    """
    told = subprocess.run([sys.executable, "-c", KEEPING], capture_output=True, text=True, check=True)
    plain, kept, given_back = map(int, told.stdout.split())
    assert kept * 4 < plain
    assert given_back > 90  # MiB, of a block of 96


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_peak_on_a_cuda_device_is_torchs_own() -> None:
    device = torch.device("cuda:0")
    peak = PeakMemory(device)
    before = peak.bytes
    torch.ones(50 * 2**20, device=device)
    assert 190 * 2**20 < peak.bytes - before < 210 * 2**20


@pytest.mark.parametrize(
    ("features", "vendor", "prefers"),
    [
        ({"_is_amx_tile_supported"}, "GenuineIntel", True),
        ({"_is_avx512_bf16_supported"}, "AuthenticAMD", True),
        ({"_is_avx512_bf16_supported"}, "GenuineIntel", False),
        (set(), "AuthenticAMD", False),
    ],
)
def test_bfloat16_is_used_only_on_processors_that_are_faster_in_it(
    tmp_path: Path, features: set[str], vendor: str, prefers: bool
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"vendor_id\t: {vendor}\n")
    assert cpu_prefers_bfloat16(lambda feature: feature in features, cpuinfo) is prefers
