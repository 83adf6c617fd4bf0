"""Runs the service inside the test process, with a clock set by the test and a function as its worker."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
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
from backfire.service.worker import child
from backfire.service.worker.protocol import GivenBack, Interrupted, Order, Outcome, Progress
from benchmarks import passthrough
from benchmarks.soak import png

SOON: dict[str, Any] = {"settle_s": 1, "mask_wait_s": 0, "incomplete_wait_s": 0}
"""Settings of `watch` under which a picture is taken in soon."""


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
    """Stands in for a worker's process: carries out orders at once, in this process; reports when asked.

    Args:
        house: says by its attributes what the worker does.
    """

    def __init__(self, house: House) -> None:
        self.house = house
        self.jobs = dict[int, int]()
        self.heard = time.monotonic()
        self.exitcode: int | None = 3
        self.waitables: list[Any] = []
        self._told: deque[Progress | Outcome] = deque()
        self._last_words: deque[Progress] | None = None

    # Called by the worker's code in place of its end of the pipe; orders are lists, reports of progress too.

    def poll(self) -> bool:
        return False

    # Called by the daemon

    def send(self, message: Any) -> None:
        if not isinstance(message[0], Order):  # the worker's code reports progress, or what has ended
            self._told += [self.house.timed(one) for one in message if not isinstance(one, Progress)]
            return
        assert not self.house.service.jobs.store.is_together, "no transaction is open while a worker works"
        self.heard = time.monotonic()
        self.jobs = {order.job: order.lease for order in message}
        self.house.sent.append([order.name for order in message])
        if not self.house.stuck:
            process, batch_s = self.house.process, self.house.batch_s
            outcomes = child.work(message, self, process, batch_s=batch_s)  # type: ignore[arg-type]
            self._told += [self.house.timed(outcome) for outcome in outcomes]

    def receive(self, timeout: float) -> list[Progress | Outcome]:
        if self._last_words is not None:
            if not self._last_words:
                raise EOFError
            self.heard = time.monotonic()
            return [self._last_words.popleft()]
        if self.house.silent:
            return []
        told = [*self._told]
        self._told.clear()
        for message in told:
            self.heard = time.monotonic()
            self.jobs.pop(message.job, None)
        return told

    def stop(self, patience_s: float) -> list[Outcome]:
        return [told for told in self._told if not isinstance(told, Progress)]

    def kill(self) -> None:
        pass

    # Called by tests

    def say(self, outcome: Outcome) -> None:
        """Have it report an outcome when it is asked next."""
        self._told.append(outcome)

    def report_and_die(self, messages: Iterable[Progress]) -> None:
        """Have it report these one by one, and then no more: its process has ended."""
        self._last_words = deque(messages)


class House:
    """A service with its folders below `base`; `again` starts it anew, as after a crash.

    Attributes:
        base: the folder that holds inbox, outbox and the others.
        clock, wall: what the service's clocks show, seconds.
        tick: seconds by which `clock` advances whenever it is read.
        process: what the workers do with an order.
        seconds: how long each order takes by what the workers report; None for as long as it does take.
        batch_s: seconds after which a worker hands back what it has not begun of a batch.
        stuck: the workers take orders and neither work on them nor report anything.
        silent: the workers carry out orders, but do not report it yet.
        hire: starts a worker's process; a subclass of `Call` that misbehaves may take its place.
        sent: the names of the orders in each batch that a worker got.
        children: the processes that were started, oldest first.
    """

    def __init__(self, base: Path, **sections: Any) -> None:
        self.base, self.clock, self.wall, self.tick = base, 1000.0, 1e9, 0.0
        self.process: child.Process = passthrough.process
        self.seconds: float | None = None
        self.batch_s = child.BATCH_S
        self.stuck = self.silent = False
        self.hire: Callable[[House], Call] = Call
        self.sent: list[list[str]] = []
        self.children: list[Call] = []
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

    def timed(self, outcome: Outcome) -> Outcome:
        """The outcome of an order that took as long as `seconds` says."""
        if self.seconds is None or isinstance(outcome, GivenBack | Interrupted):
            return outcome
        return replace(outcome, seconds=self.seconds)

    def _start_worker(self, memory_mb: int) -> Call:
        child = self.hire(self)
        self.children.append(child)
        return child

    @property
    def worker(self) -> pool.Worker:
        """The first worker, which without `limits.devices` is the only one."""
        return self.service.pool.workers[0]

    def again(self) -> None:
        """Start a service on the folders as they are; like a new process, it knows none of them as synced."""
        folders.forget()
        self.service = Service(
            self.settings,
            monotonic=self.monotonic,
            now=lambda: self.wall,
            start_worker=self._start_worker,
        )
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

    def drop(self, *names: str, content: bytes | str = "") -> None:
        """Put pictures into the inbox: the bytes, or small ones made of the text, or each of its own name."""
        for name in names:
            file = self.base / "inbox" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content if isinstance(content, bytes) else png(content or name))

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
    """Remove all waiting, and everything that makes one run differ from the next."""
    # With a single thread, an injected crash always happens at the same call.
    patch.setattr(parallel, "THREADS", 1)
    patch.setattr(loop, "TICK_S", 0)
    patch.setattr(loop, "BURST_S", 0)
    patch.setattr(loop, "STORE_PAUSE_S", 0.05)
