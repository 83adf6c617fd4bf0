"""An actor of a cluster as the daemon's pool sees it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

from backfire.service.worker.protocol import GivenBack, Order, Outcome, Place, Progress

if TYPE_CHECKING:
    from backfire.service.worker.cluster import Cluster


class Seat:
    """An actor until it has returned a picture; see `protocol.WorkerProcess`.

    While that is checked here, its seat keeps the order, and the actor has a new seat with the next one.
    """

    exitcode: int | None = None

    def __init__(self, cluster: Cluster, place: Place) -> None:
        self._cluster, self.place = cluster, place
        self.jobs = dict[int, int]()
        self.heard = time.monotonic()
        self.order: Order | None = None
        self.told: list[Progress | Outcome] = []
        self.gone = False

    @property
    def waitables(self) -> list[Any]:
        return self._cluster.waitables

    def send(self, orders: Sequence[Order]) -> None:
        (self.order,) = orders  # `Cluster.batch_max` is one
        self.jobs = {self.order.job: self.order.lease}
        self.heard = time.monotonic()
        self._cluster.order(self, self.order)

    def receive(self, timeout: float) -> list[Progress | Outcome]:
        if not self.told:
            if timeout:
                wait(self.waitables, timeout)
            self._cluster.pump()
        told, self.told = self.told, []
        if not told and self.gone and self.order is None:
            raise EOFError
        return told

    def conclude(self, outcome: Outcome) -> None:
        """Report how the order ended."""
        if self.order is not None and (outcome.job, outcome.lease) == (self.order.job, self.order.lease):
            self.order, self.jobs = None, {}
            self.told.append(outcome)

    def stop(self, patience_s: float) -> list[Outcome]:
        if self.order is not None:  # a node has worked on it long enough, so that it is not thrown away
            self._cluster.await_check(self.order, patience_s)
        told = [one for one in self.told if not isinstance(one, Progress)]
        if self.order is not None:
            told.append(GivenBack(self.order.job, self.order.lease))
        self.kill()
        return told

    def kill(self) -> None:
        order, self.order, self.jobs, self.told = self.order, None, {}, []
        self._cluster.end(self, order)
