"""The daemon's end of a Ray cluster, as a back end of the pool. Imports no Ray: its driver does.

To the driver go, in JSON: the settings of the section `cluster`; how many pictures have work left; an order
for an actor; that an actor is to end. Back come: that an actor is ready, and on which node; what it reports
of its order; that the files of a result lie in the spool, to be checked; that an actor is gone; a heartbeat.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import wait
from typing import Any

import structlog

from backfire.config import Settings
from backfire.service.worker import orders
from backfire.service.worker.checkers import Checkers
from backfire.service.worker.driver import Driver
from backfire.service.worker.local import Child, Devices
from backfire.service.worker.protocol import (
    GivenBack,
    Interrupted,
    Order,
    Outcome,
    Place,
    Progress,
    WorkerProcess,
    from_json,
)

log = structlog.get_logger()

SILENCE_S = 60.0
"""How long the driver may be silent before it is ended: Ray's calls block while a cluster's head is away."""
AGAIN_S, AGAIN_MAX_S = 2.0, 60.0
"""The wait after a driver that has ended, twice as long each time."""
FALLBACK_S = 60.0
"""How long the cluster must be away before pictures are worked on this machine, where that is allowed."""
LOSSES_MAX = 5
"""How often the node of a picture may be lost before an attempt counts: it may be the picture's doing."""


class Seat:
    """An actor as the daemon sees it, until it has returned a picture; see `protocol.WorkerProcess`.

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
        told = [one for one in self.told if not isinstance(one, Progress)]
        if self.order is not None:
            told.append(GivenBack(self.order.job, self.order.lease))
        self.kill()
        return told

    def kill(self) -> None:
        self.order, self.jobs, self.told = None, {}, []
        self._cluster.end(self)


class Cluster:
    """The workers of a cluster; see `protocol.Backend`.

    Args:
        settings: the configuration, whose `cluster.address` is set.
        start_child: starts a worker on this machine, for `cluster.fallback: local`.
    """

    batch_max = 1

    def __init__(self, settings: Settings, start_child: Callable[[int], WorkerProcess] = Child) -> None:
        self._local = Devices(settings, start_child)
        self._driver: Driver | None = None
        self._ready: dict[int, Seat] = {}
        self._checking: dict[tuple[int, int], Seat] = {}
        self._checkers = Checkers()
        self._losses: dict[int, int] = {}
        self._places: tuple[Place, ...] = ()
        self._waiting = -1
        self._start_at, self._pause = 0.0, AGAIN_S
        self._gone_at = time.monotonic()
        self._said = self._ended = ""
        self._reached = False
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        self._settings = settings
        self._local.configure(settings)
        if self._driver is not None:
            self._send(settings=settings.cluster.model_dump(mode="json"))

    @property
    def is_shared(self) -> bool:
        return any(place.node is None for place in self._places)

    @property
    def trouble(self) -> str:
        return f"cluster {self._settings.cluster.address}: {self._said}" if self._said else ""

    @property
    def waitables(self) -> list[Any]:
        """What becomes readable when an actor reports something, the driver dies or a check is done."""
        driver = [] if self._driver is None else self._driver.waitables
        return driver + self._checkers.waitables

    def places(self, waiting: int) -> tuple[Place, ...]:
        self.pump()
        if waiting != self._waiting:
            self._waiting = waiting
            self._send(waiting=waiting)
        return self._places

    def start(self, place: Place) -> WorkerProcess:
        if place.node is None:
            return self._local.start(place)
        if place.actor not in self._ready:
            raise OSError(f"the worker on {place.node} is gone")
        return self._ready[place.actor]

    def close(self) -> None:
        if self._driver is not None:
            self._driver.kill()
            self._driver = None
        self._checkers.close()

    # From and to the seats

    def order(self, seat: Seat, order: Order) -> None:
        """Give an actor its order.

        Raises:
            OSError: the actor or the driver is gone.
        """
        if seat.gone:
            raise OSError(f"the worker on {seat.place.node} is gone")
        self._send(actor=seat.place.actor, order=orders.packed(order), folder=str(order.folder))

    def end(self, seat: Seat) -> None:
        """End an actor; the driver starts another in its place if one is needed."""
        if not seat.gone:
            self._send(actor=seat.place.actor)
            self._forget(seat)

    def _lose(self, seat: Seat, reason: str) -> None:
        if seat.order is not None:
            seat.conclude(GivenBack(seat.order.job, seat.order.lease, reason))
        self._forget(seat)

    def _forget(self, seat: Seat) -> None:
        seat.gone = True
        self._ready.pop(seat.place.actor, None)
        self._replace()

    def _replace(self) -> None:
        self._places = tuple(seat.place for seat in self._ready.values())

    # The driver

    def pump(self) -> None:
        """Take in what driver and checkers have reported, and start what is missing."""
        if self._driver is None:
            self._start_driver()
        else:
            messages, ended = self._driver.receive()
            for message in messages:
                self._take(message)
            silent = time.monotonic() - self._driver.heard > SILENCE_S
            if ended or silent:
                self._lose_driver("does not answer" if silent else "")
        for outcome in self._checkers.step():
            if (seat := self._checking.pop((outcome.job, outcome.lease), None)) is not None:
                seat.conclude(outcome)
        self._fall_back()

    def _start_driver(self) -> None:
        if time.monotonic() < self._start_at:
            return
        self._driver = Driver()
        self._send(settings=self._settings.cluster.model_dump(mode="json"))
        self._send(waiting=max(self._waiting, 0))

    def _send(self, **message: Any) -> None:
        if self._driver is not None:
            self._driver.send(message)

    def _take(self, message: dict[str, Any]) -> None:
        if "beat" in message:
            self._beat(message)
        elif "ended" in message:
            self._ended = message["ended"]
        elif "node" in message:
            place = Place(node=message["node"], actor=message["actor"])
            self._ready[place.actor] = Seat(self, place)
            self._replace()
            log.info("worker_joined", node=place.node)
        elif (seat := self._ready.get(message["actor"])) is None:
            pass  # it was ended, and what it had is given back
        elif "gone" in message:
            log.info("worker_left", node=seat.place.node)
            self._lose(seat, "its worker is gone")
        elif "returned" in message:
            # What comes late, of an order that this actor has no more, is dropped.
            told = message["returned"]
            if seat.order is not None and seat.jobs == {told["job"]: told["lease"]}:
                self._returned(seat, seat.order, told)
        else:
            self._report(seat, from_json(message["report"]))

    def _beat(self, message: dict[str, Any]) -> None:
        if not self._reached:
            log.info("cluster_joined", address=self._settings.cluster.address, nodes=message["nodes"])
        self._reached, self._pause = True, AGAIN_S
        self._say(message["beat"])
        for seat in self._ready.values():
            seat.heard = time.monotonic()  # a driver that lives kills actors at their deadline

    def _say(self, trouble: str) -> None:
        if trouble and trouble != self._said:
            log.warning("cluster_trouble", address=self._settings.cluster.address, error=trouble)
        self._said = trouble

    def _returned(self, seat: Seat, order: Order, outcome: dict[str, Any]) -> None:
        self._losses.pop(order.job, None)
        if outcome["type"] == "Finished":
            self._checking[order.job, order.lease] = seat
            self._checkers.add(order)
            self._forget(seat)
            place = replace(seat.place, turn=seat.place.turn + 1)
            self._ready[place.actor] = Seat(self, place)
            self._replace()
        else:
            self._report(seat, from_json(outcome))

    def _report(self, seat: Seat, report: Progress | Outcome) -> None:
        if isinstance(report, Progress):
            seat.told.append(report)
            return
        if isinstance(report, GivenBack):
            lost = self._losses[report.job] = self._losses.get(report.job, 0) + 1
            log.warning("node_lost", node=seat.place.node, reason=report.reason)
            if lost > LOSSES_MAX:
                report = Interrupted(report.job, report.lease, f"{report.reason}, for the {lost}th time")
        elif isinstance(report, Interrupted):
            log.error("worker_died", node=seat.place.node, how=report.reason)
        seat.conclude(report)

    def _lose_driver(self, why: str) -> None:
        """Give back what the actors had, and start another driver after a while."""
        assert self._driver is not None
        self._driver.kill()
        self._driver = None
        self._say(why or self._ended or "its driver has ended")
        self._ended = ""
        if self._reached:
            log.error("cluster_lost", address=self._settings.cluster.address, error=self._said)
        for seat in [*self._ready.values()]:
            self._lose(seat, "the cluster is gone")
        now = time.monotonic()
        if self._reached:
            self._gone_at = now
        self._reached = False
        self._start_at, self._pause = now + self._pause, min(2 * self._pause, AGAIN_MAX_S)

    def _fall_back(self) -> None:
        """Have workers on this machine while the cluster is away for long, where that is allowed."""
        allowed = self._settings.cluster.fallback == "local" and not self._reached
        if allowed and time.monotonic() - self._gone_at > FALLBACK_S:
            if not self._places:
                log.warning("cluster_fallback", address=self._settings.cluster.address)
                self._places = self._local.places(0)
        elif self._places and self.is_shared:
            self._replace()
