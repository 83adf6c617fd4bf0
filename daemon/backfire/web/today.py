"""What happened in the last 24 hours: counts, a plot of throughput and queue, free space."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from backfire.service.store.listing import Ended
from backfire.types import ACTIVE, JobState

HOURS = 24
GPU_S = 3.0
"""How long nvidia-smi may take; it does where a driver hangs."""
WIDE, TALL, FOOT = 720, 160, 18


@dataclass(frozen=True)
class Hour:
    """An hour: its beginning (Unix seconds), how many pictures were finished in it and waited at its end."""

    begins: float
    finished: int
    waiting: int


@dataclass(frozen=True)
class Day:
    """The last 24 hours.

    Attributes:
        marks: how many pictures ended with each mark.
        hours: hour by hour, the oldest first.
    """

    marks: Mapping[str, int]
    hours: Sequence[Hour]

    @property
    def finished(self) -> int:
        """How many pictures were finished."""
        return sum(hour.finished for hour in self.hours)


def day(jobs: Sequence[Ended], now: float) -> Day:
    """Counts the last 24 hours.

    Args:
        jobs: those that changed in that time, and those with work left.
        now: wall clock, Unix seconds.
    """
    end = now - now % 3600 + 3600
    start = end - HOURS * 3600
    ended = [job for job in jobs if job.state not in ACTIVE and job.updated >= start]
    marks = Counter(_mark(job) for job in ended)
    finished = Counter(int((job.updated - start) // 3600) for job in ended)
    # The queue at the end of each hour: those found by then less those that ended by then.
    steps: Counter[int] = Counter()
    for job in jobs:
        steps[_hour(job.created - start)] += 1
        if job.state not in ACTIVE:
            steps[_hour(job.updated - start)] -= 1
    waiting, hours = 0, []
    for index in range(HOURS):
        waiting += steps[index]
        hours.append(Hour(start + index * 3600, finished[index], max(waiting, 0)))
    return Day(marks, hours)


def _hour(seconds: float) -> int:
    return min(max(int(seconds // 3600), 0), HOURS - 1)


def _mark(job: Ended) -> str:
    bad = (JobState.FAILED, JobState.QUARANTINED)
    return job.state.value if job.state in bad or job.verdict is None else job.verdict.value


@dataclass(frozen=True)
class Plot:
    """A plot as numbers for an SVG of `WIDE` x `TALL`.

    Attributes:
        bars: (left, top, width, height) of each hour's bar.
        line: the points of the line, as the attribute of a polyline.
        ticks: (x, text) below.
        most, longest: the largest bar's and the line's highest value.
    """

    bars: Sequence[tuple[float, float, float, float]]
    line: str
    ticks: Sequence[tuple[float, str]]
    most: int
    longest: int
    wide: int = WIDE
    tall: int = TALL


def plot(hours: Sequence[Hour]) -> Plot:
    """Bars for what was finished, and a line for what waited, each to its own scale."""
    most = max((hour.finished for hour in hours), default=0)
    longest = max((hour.waiting for hour in hours), default=0)
    step, high = WIDE / max(len(hours), 1), TALL - FOOT - 4
    bars, points, ticks = [], [], []
    for index, hour in enumerate(hours):
        height = high * hour.finished / max(most, 1)
        bars.append(
            (round(index * step + 3, 1), round(4 + high - height, 1), round(step - 6, 1), round(height, 1))
        )
        points.append(f"{(index + 0.5) * step:.1f},{4 + high - high * hour.waiting / max(longest, 1):.1f}")
        if time.localtime(hour.begins).tm_hour % 6 == 0:
            ticks.append(
                (round(index * step + step / 2, 1), time.strftime("%H:%M", time.localtime(hour.begins)))
            )
    return Plot(bars, " ".join(points), ticks, most, longest)


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name, how busy it is as a share of 1, and its memory in bytes."""

    name: str
    busy: float
    used: int
    total: int


def gpus() -> list[Gpu]:
    """The NVIDIA GPUs of this machine as nvidia-smi tells; none where it is missing or does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    fields = "name,utilization.gpu,memory.used,memory.total"
    asked = [program, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, timeout=GPU_S, check=True).stdout
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return []
    found = []
    for line in told.splitlines():
        name, *figures = map(str.strip, line.rsplit(",", 3))
        with suppress(ValueError):  # `[N/A]`, and what a later version may say
            busy, used, total = map(int, figures)
            found.append(Gpu(name, busy / 100, used << 20, total << 20))
    return found


@dataclass(frozen=True)
class Space:
    """The free space on the disk of some folders, in bytes; None where it cannot be asked."""

    folders: Sequence[str]
    free: int | None
    total: int = 0


def space(folders: Mapping[str, Path]) -> list[Space]:
    """The free space of each disk that folders lie on."""
    disks: dict[tuple[int, int, int], list[str]] = {}
    gone = []
    for name, folder in folders.items():
        try:
            status = os.statvfs(folder)
            device = os.stat(folder).st_dev
        except OSError:
            gone.append(Space([name], None))
            continue
        key = device, status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize
        disks.setdefault(key, []).append(name)
    return [Space(names, free, total) for (_, free, total), names in disks.items()] + gone
