"""Runs the service inside the test process, with a clock set by the test and a function as its worker."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backfire import config
from backfire.config import Settings
from backfire.files import parallel
from backfire.files.inbox import Hints
from backfire.files.outbox import folders
from backfire.service import loop, pool
from backfire.service.loop import Service
from backfire.service.worker import local
from backfire.service.worker.protocol import GivenBack, Interrupted, Order, Outcome, Progress
from benchmarks import passthrough


class Deaf(Hints):
    """Delivers no file events, so that files are found by scans alone."""

    def __init__(self) -> None:
        self.mode, self.trouble = "polling", ""

    def watch(self, mode: str) -> bool:
        return False

    def renew(self) -> bool:
        return False

    def close(self) -> None:
        pass


class Call:
    """Stands in for the worker process: carries out orders at once, in this process; reports when asked."""

    def __init__(self, memory_mb: int = 0) -> None:
        self.jobs = dict[int, int]()
        self.heard = 0.0
        self.exitcode: int | None = 3
        self.waitables: list[Any] = []
        self._told: deque[Progress | Outcome] = deque()

    # Called by the worker's code in place of its end of the pipe.

    def poll(self) -> bool:
        return False

    # Called by the daemon.

    def send(self, message: Any) -> None:
        if isinstance(message[0], Order):
            self._told += local.work(message, self)  # type: ignore[arg-type]

    def receive(self, timeout: float) -> list[Progress | Outcome]:
        told = [*self._told]
        self._told.clear()
        return told

    def stop(self, patience_s: float) -> list[Outcome]:
        return [told for told in self._told if not isinstance(told, Progress)]

    def kill(self) -> None:
        pass


def lasting(outcome: Outcome, seconds: float) -> Outcome:
    """The same outcome, from a worker that took that many seconds."""
    assert not isinstance(outcome, GivenBack | Interrupted)
    return replace(outcome, seconds=seconds)


class House:
    """A service with its folders below `base`; `again` starts it anew, as after a crash."""

    def __init__(self, base: Path, **sections: Any) -> None:
        self.base, self.clock, self.wall = base, 1000.0, 1e9
        self.tick = 0.0
        """Seconds by which the clock advances whenever it is read."""
        self.settings: Settings = config.parse(
            {
                "folders": {"inbox": "inbox"},
                "regions": {"detectors": ["faces"]},
                "limits": {"free_mb": 0},
                **sections,
            },
            base=base,
        )
        self.hints = Deaf()
        self.again()

    def monotonic(self) -> float:
        self.clock += self.tick
        return self.clock

    @property
    def worker(self) -> pool.Worker:
        """The first worker, which without `limits.devices` is the only one."""
        return self.service.pool.workers[0]

    def again(self) -> None:
        """Start a service on the folders as they are; like a new process, it knows none of them as synced."""
        folders.forget()
        self.service = Service(self.settings, monotonic=self.monotonic, now=lambda: self.wall)
        self.service.jobs.load()
        self.service.dispatcher.resume(crashed=True)

    def crash(self) -> None:
        """End as SIGKILL does, without any clean-up but that of locks and database handles."""
        self.service.close()

    def turn(self, seconds: float = 1.0, times: int = 1) -> None:
        """Run rounds of the loop, advancing the clock by `seconds` before each; a fault fails the test."""
        for _ in range(times):
            self.clock += seconds
            self.wall += seconds
            self.service.step(self.hints)

    def live(self, seconds: float = 1.0, times: int = 1) -> None:
        """Like `turn`, but faults are handled as the running daemon handles them."""
        for _ in range(times):
            self.clock += seconds
            self.wall += seconds
            self.service.round(self.hints)

    def files(self, folder: str) -> dict[str, bytes]:
        top = self.base / folder
        return {
            str(path.relative_to(top)): path.read_bytes()
            for path in sorted(top.rglob("*"))
            if path.is_file() and not path.name.startswith(".")
        }

    def states(self) -> list[str]:
        return [job.state.value for job in reversed(self.service.jobs.store.jobs(limit=10_000))]

    def reasons(self) -> str:
        store = self.service.jobs.store
        return "\n".join(str(e.detail) for job in store.jobs(limit=1000) for e in store.history(job.id))


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., House]:
    """A function that makes a `House` with the given configuration sections."""
    furnish(monkeypatch)
    return lambda **sections: House(tmp_path, **sections)


def furnish(patch: pytest.MonkeyPatch) -> None:
    """Replace worker processes by `Call`, and remove all waiting."""
    patch.setattr(pool, "Child", Call)
    patch.setattr(local, "process", passthrough.process)
    # With a single thread, an injected crash always happens at the same call.
    patch.setattr(parallel, "THREADS", 1)
    patch.setattr(loop, "TICK_S", 0)
    patch.setattr(loop, "BURST_S", 0)
    patch.setattr(loop, "STORE_PAUSE_S", 0.05)
