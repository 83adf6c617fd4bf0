"""A worker on this machine: a child process that turns pictures in the spool into results in the spool.

A device assert, an out-of-memory kill or a crashing decoder ends the child and not the daemon. This is the
daemon's end; what runs in the process is in `child`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Any

from backfire.config import Settings
from backfire.service.worker import child
from backfire.service.worker.protocol import (
    Interrupted,
    Order,
    Outcome,
    Place,
    Progress,
    WorkerProcess,
)

BATCH_MAX = 128
"""The most jobs that a child gets at a time."""


class Child:
    """Starts the process, sends it orders, receives what it reports, and ends it.

    Args:
        memory_mb: how much host memory it may allocate; 0 for no limit.
        process: works one order, in place of `child.process`.

    Attributes:
        jobs: the leases of the jobs that it has, by their ids.
        heard: when it last reported anything, by `time.monotonic`.
    """

    def __init__(self, memory_mb: int = 0, process: child.Process | None = None) -> None:
        self.jobs = dict[int, int]()
        self.heard = time.monotonic()
        self._current = 0
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = (theirs, os.getpid(), memory_mb, *([process] if process else []))
        self._process = context.Process(target=child.serve, args=arguments, name="worker", daemon=True)
        self._process.start()
        theirs.close()

    @property
    def waitables(self) -> list[Any]:
        """What becomes readable when the child reports something or dies."""
        return [self._connection, self._process.sentinel]

    @property
    def exitcode(self) -> int | None:
        """How the process ended, negative for a signal; None while it has not."""
        self._process.join(5)
        return self._process.exitcode

    def send(self, orders: Sequence[Order]) -> None:
        """Hand over some jobs, to be worked in this order; the child must be idle."""
        self.jobs = {order.job: order.lease for order in orders}
        self.heard = time.monotonic()
        self._current = 0
        self._connection.send(orders)

    def receive(self, timeout: float) -> list[Progress | Outcome]:
        """What the child reported within `timeout` seconds; an empty list if nothing.

        Raises:
            EOFError: the child has died; `exitcode` says how.
        """
        wait(self.waitables, timeout)
        messages: list[Progress | Outcome] = []
        try:
            while self._connection.poll():
                messages += self._connection.recv()
        except (EOFError, OSError):
            if not messages:
                raise EOFError from None
        if messages:
            self.heard = time.monotonic()
            for message in messages:
                if isinstance(message, Progress):
                    self._current = message.job
                elif self.jobs.get(message.job) == message.lease:
                    del self.jobs[message.job]
        elif not self._process.is_alive():
            raise EOFError
        return messages

    def stop(self, patience_s: float) -> list[Outcome]:
        """Ask for the running jobs back, then end the process; the outcomes that it still reported.

        A process that has died by itself interrupted the job that it last reported on.
        """
        outcomes: list[Outcome] = []
        deadline = time.monotonic() + patience_s
        with suppress(OSError):  # what a process reported before it died can still be received
            self._connection.send(None)
        try:
            while self.jobs and time.monotonic() < deadline:
                outcomes += [told for told in self.receive(0.2) if not isinstance(told, Progress)]
        except EOFError:
            outcomes += self._interrupted()
        self.kill()
        return outcomes

    def _interrupted(self) -> list[Outcome]:
        """What the death of the process means for the job that it worked."""
        if (lease := self.jobs.get(self._current)) is None:
            return []
        code = self.exitcode
        reason = f"worker died: {exit_reason(code)}"
        return [Interrupted(self._current, lease, reason, killed=code == -signal.SIGKILL)]

    def kill(self) -> None:
        """End the process now."""
        self._connection.close()
        self._process.join(1)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


class Devices:
    """A child for each of `limits.devices`, or one that does all; see `protocol.Backend`.

    Args:
        start_child: starts a process that may allocate so many megabytes of host memory; 0 for no limit.
    """

    batch_max, is_shared, trouble = BATCH_MAX, True, ""

    def __init__(self, settings: Settings, start_child: Callable[[int], WorkerProcess] = Child) -> None:
        self._start_child = start_child
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        self._memory_mb = settings.limits.memory_mb
        self._places = tuple(Place(device) for device in settings.limits.devices or (None,))

    def places(self, waiting: int) -> tuple[Place, ...]:
        return self._places

    def start(self, place: Place) -> WorkerProcess:
        return self._start_child(self._memory_mb)

    def close(self) -> None:
        pass


def exit_reason(exitcode: int | None) -> str:
    """How a process ended, for a person."""
    if exitcode is None or exitcode >= 0:
        return f"exit code {exitcode}"
    try:
        return f"killed by {signal.Signals(-exitcode).name}"
    except ValueError:  # a real-time signal: most have no name
        return f"killed by signal {-exitcode}"


def await_any(children: Sequence[WorkerProcess], timeout: float) -> None:
    """Wait until one of several children reports something or dies, `timeout` seconds at most."""
    wait({waitable for child in children for waitable in child.waitables}, timeout)
