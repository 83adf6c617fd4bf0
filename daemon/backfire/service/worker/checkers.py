"""The processes on the daemon's machine that check what came back from another one."""

from __future__ import annotations

import os
import time
from collections import deque
from contextlib import suppress
from typing import Any

from backfire.service.worker import local, returned
from backfire.service.worker.local import Child
from backfire.service.worker.protocol import GivenBack, Interrupted, Order, Outcome, Progress

MOST = max(len(os.sched_getaffinity(0)) - 1, 1)
"""How many there are, at most."""
CHECK_S = 300.0
"""How long the check of one picture may take: whoever waits behind it must not pay for bytes that hang."""


class Checkers:
    """Children whose work is `returned.check`; each gets what has come back since the last time.

    Attributes:
        memory_mb: how much host memory each that is started may allocate; 0 for no limit.
    """

    def __init__(self, memory_mb: int = 0) -> None:
        self.memory_mb = memory_mb
        self._children: list[Child] = []
        self._begun: dict[Child, int] = {}
        self._orders: dict[tuple[int, int], Order] = {}
        self._waiting: deque[Order] = deque()

    @property
    def waitables(self) -> list[Any]:
        """What becomes readable when a check is done."""
        return [one for child in self._children if child.jobs for one in child.waitables]

    def add(self, order: Order) -> None:
        """Have what came back for an order checked."""
        self._orders[order.job, order.lease] = order
        self._waiting.append(order)

    def drop(self, order: Order) -> None:
        """Check no more what came back for an order; a process that is at it is ended."""
        self._orders.pop((order.job, order.lease), None)
        if order in self._waiting:
            self._waiting.remove(order)
        for child in [*self._children]:
            if child.jobs.get(order.job) == order.lease:
                others = [one for about in child.jobs.items() if (one := self._orders.get(about))]
                self._end(child)
                self._waiting.extend(others)

    def step(self) -> list[Outcome]:
        """How checks have ended since the last time; those that wait are begun."""
        done: list[Outcome] = []
        for child in [*self._children]:
            try:
                reports = child.receive(0) if child.jobs else []
            except EOFError:
                reports = self._bury(child, local.exit_reason(child.exitcode))
            if child.jobs and time.monotonic() - child.heard > CHECK_S:
                reports += self._bury(child, f"it hung for {CHECK_S:g} s")
            for report in reports:
                about = report.job, report.lease
                if isinstance(report, Progress):
                    self._begun[child] = report.job
                elif about not in self._orders:
                    pass  # it was dropped
                elif isinstance(report, GivenBack):  # it was not begun
                    self._waiting.append(self._orders[about])
                else:
                    del self._orders[about]
                    done.append(report)
        if self._waiting:
            self._hand_out()
        return done

    def close(self) -> None:
        """End the processes."""
        for child in self._children:
            child.kill()
        self._children = []

    def _bury(self, child: Child, how: str) -> list[Progress | Outcome]:
        """What the end of a process means: an attempt for the picture that it was at, none for the others."""
        begun, left = self._begun.get(child), [*child.jobs.items()]
        self._end(child)
        reason = f"the check of what came back died: {how}"
        return [
            Interrupted(job, lease, reason) if job == begun else GivenBack(job, lease) for job, lease in left
        ]

    def _end(self, child: Child) -> None:
        """End a process; what it had of others is checked by the next one."""
        self._children.remove(child)
        self._begun.pop(child, None)
        child.kill()

    def _hand_out(self) -> None:
        free = next((child for child in self._children if not child.jobs), None)
        if free is None and len(self._children) < MOST:
            with suppress(OSError):  # where no process can be started now, the next step tries again
                free = Child(self.memory_mb, returned.check)
                self._children.append(free)
        if free is not None:
            batch = [*self._waiting]
            self._waiting.clear()
            self._begun.pop(free, None)
            with suppress(OSError):  # it has died, which the next step finds out
                free.send(batch)
