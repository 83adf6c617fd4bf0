"""What the page says of the day: a plot of throughput and queue over 24 hours, GPUs."""

from __future__ import annotations

import math
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from backfire.admin.outcomes import Outcome, outcome
from backfire.service.store.listing import Ended
from backfire.types import ACTIVE

HOURS = 24
GPU_S = 3.0
"""How long nvidia-smi may take."""
GPU_EVERY_S = 10.0
"""How often it is asked at most, while a page that tells of GPUs is open."""
GPU_OLD_S = 60.0
"""From what age on its answer is not shown any more."""
WIDE, TALL, FOOT, LEFT = 720, 160, 18, 40
"""The plot's size, and the room below and on the left for the figures of its axes."""


ALWAYS = (Outcome.PROTECTED, Outcome.WEAK, Outcome.FAILED)
"""The outcomes that are told of a day even where there are none."""
SHOWN = [one for one in Outcome if one not in (Outcome.WORKING, Outcome.WAITING)]
"""The outcomes of a day, as `backfire today` counts them; what is to be done stands on the first page."""


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
        hours: hour by hour, the oldest first.
    """

    hours: Sequence[Hour]

    @property
    def finished(self) -> int:
        """How many pictures were finished."""
        return sum(hour.finished for hour in self.hours)


def day(jobs: Sequence[Ended], reviews: Sequence[tuple[float, float]], now: float) -> Day:
    """Counts the last 24 hours: a failed picture that was tried again once, and none that left unworked.

    Args:
        jobs: those that changed in that time, and those with work left.
        reviews: from when to when jobs of that time were held for a person, and so waited for no worker.
        now: wall clock, Unix seconds.
    """
    end = now - now % 3600 + 3600
    start = end - HOURS * 3600
    ended = [job for job in jobs if job.counts and job.updated >= start and _is_finished(job)]
    finished = Counter(int((job.updated - start) // 3600) for job in ended)
    # The queue at the end of each hour: those found by then less those that ended by then.
    steps: Counter[int] = Counter()
    for job in jobs:
        steps[_hour(job.created - start)] += 1
        if job.state not in ACTIVE:
            steps[_hour(job.updated - start)] -= 1
    for began, decided in reviews:
        steps[_hour(began - start)] -= 1
        steps[_hour(decided - start)] += 1
    waiting, hours = 0, []
    for index in range(HOURS):
        waiting += steps[index]
        hours.append(Hour(start + index * 3600, finished[index], max(waiting, 0)))
    return Day(hours)


def _hour(seconds: float) -> int:
    return min(max(int(seconds // 3600), 0), HOURS - 1)


def _is_finished(job: Ended) -> bool:
    return outcome(job.state, job.verdict) not in (Outcome.WORKING, Outcome.WAITING, Outcome.SKIPPED)


@dataclass(frozen=True)
class Plot:
    """A plot as numbers for an SVG of `WIDE` x `TALL`.

    Attributes:
        bars: (left, top, width, height) of each hour's bar.
        line: the points of the line, as the attribute of a polyline.
        ticks: (x, text) below.
        levels: (y, text) on the left, of bars and line alike.
        most, longest: the largest bar's and the line's highest value.
    """

    bars: Sequence[tuple[float, float, float, float]]
    line: str
    ticks: Sequence[tuple[float, str]]
    levels: Sequence[tuple[float, str]]
    most: int
    longest: int
    wide: int = WIDE
    tall: int = TALL
    left: int = LEFT


def plot(hours: Sequence[Hour]) -> Plot:
    """Bars for what was finished and a line for what waited, on one scale, so that one axis serves both."""
    most = max((hour.finished for hour in hours), default=0)
    longest = max((hour.waiting for hour in hours), default=0)
    top, levels = _scale(max(most, longest))
    step, high = (WIDE - LEFT) / max(len(hours), 1), TALL - FOOT - 8

    def y(value: float) -> float:
        return round(8 + high * (1 - value / top), 1)

    bars, points, ticks = [], [], []
    for index, hour in enumerate(hours):
        left, up = LEFT + index * step, y(hour.finished)
        bars.append((round(left + 3, 1), up, round(step - 6, 1), round(y(0) - up, 1)))
        points.append(f"{left + step / 2:.1f},{y(hour.waiting):.1f}")
        if time.localtime(hour.begins).tm_hour % 6 == 0:
            ticks.append((round(left + step / 2, 1), time.strftime("%H:%M", time.localtime(hour.begins))))
    return Plot(bars, " ".join(points), ticks, [(y(value), f"{value:,}") for value in levels], most, longest)


def _scale(largest: int) -> tuple[int, Sequence[int]]:
    """The top of an axis that reaches a value, and the whole numbers on it, two to five of them."""
    step = 1
    while 4 * step < largest:  # 1, 2, 5, 10, 20, 50 ...
        step = step * 5 // 2 if str(step).startswith("2") else step * 2
    top = max(-(-largest // step), 1) * step
    return top, range(0, top + 1, step)


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name, how busy it is as a share of 1, and its memory in bytes."""

    name: str
    busy: float
    used: int
    total: int


class Gpus:
    """Asks nvidia-smi for the GPUs of this machine, one call at a time.

    Where a driver hangs, the call cannot even be killed; so it runs in a thread of its own, for which nobody
    waits long.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._asked = self._told = -math.inf
        self._last: list[Gpu] = []

    def __call__(self) -> list[Gpu]:
        """The GPUs as they were some seconds ago; none where nvidia-smi is missing or does not answer."""
        with self._lock:
            now = time.monotonic()
            if now - self._asked >= GPU_EVERY_S and (self._thread is None or not self._thread.is_alive()):
                self._asked = now
                self._thread = threading.Thread(target=self._ask, name="nvidia-smi", daemon=True)
                self._thread.start()
        if self._thread is not None and now - self._told >= GPU_OLD_S:
            self._thread.join(max(self._asked + GPU_S - now, 0))
        return self._last if time.monotonic() - self._told < GPU_OLD_S else []

    def _ask(self) -> None:
        self._last = _gpus()
        self._told = time.monotonic()


def _gpus() -> list[Gpu]:
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
