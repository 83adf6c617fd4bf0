"""The processes on the daemon's machine that check what came back from another one."""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from typing import Any

from backfire.service.worker import local, returned
from backfire.service.worker.local import Child
from backfire.service.worker.protocol import GivenBack, Interrupted, Order, Outcome, Progress

MOST = max(len(os.sched_getaffinity(0)) - 1, 1)
"""How many there are, at most."""


class Checkers:
    """Children whose work is `returned.check`; each gets what has come back since the last time."""

    def __init__(self) -> None:
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

    def step(self) -> list[Outcome]:
        """How checks have ended since the last time; those that wait are begun."""
        done: list[Outcome] = []
        for child in [*self._children]:
            try:
                reports = child.receive(0) if child.jobs else []
            except EOFError:
                reports = self._bury(child)
            for report in reports:
                if isinstance(report, Progress):
                    self._begun[child] = report.job
                elif isinstance(report, GivenBack):  # it was not begun
                    self._waiting.append(self._orders[report.job, report.lease])
                else:
                    del self._orders[report.job, report.lease]
                    done.append(report)
        if self._waiting:
            self._hand_out()
        return done

    def close(self) -> None:
        """End the processes."""
        for child in self._children:
            child.kill()
        self._children = []

    def _bury(self, child: Child) -> list[Progress | Outcome]:
        """What the end of a process means: an attempt for the picture that it was at, none for the others."""
        self._children.remove(child)
        begun = self._begun.pop(child, None)
        reason = f"the check of what came back died: {local.exit_reason(child.exitcode)}"
        left = [*child.jobs.items()]
        child.kill()
        return [
            Interrupted(job, lease, reason) if job == begun else GivenBack(job, lease) for job, lease in left
        ]

    def _hand_out(self) -> None:
        free = next((child for child in self._children if not child.jobs), None)
        if free is None and len(self._children) < MOST:
            free = Child(process=returned.check)
            self._children.append(free)
        if free is not None:
            batch = [*self._waiting]
            self._waiting.clear()
            self._begun.pop(free, None)
            with suppress(OSError):  # it has died, which the next step finds out
                free.send(batch)
