"""The daemon's end of a Ray cluster, as a back end of the pool. Imports no Ray: its driver does.

To the driver go, in JSON: the settings of the section `cluster`; how many pictures have work left; an order
for an actor; that an actor is to end. Back come: that an actor is ready, and on which node; what it reports
of its order; that the files of a result lie in the spool, to be checked; that an actor is gone; a heartbeat.
A driver that says anything else is ended, as one that dies is, and its pictures are given back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import wait
from typing import Any

import structlog

from backfire.config import Settings
from backfire.service.worker import orders
from backfire.service.worker.checkers import Checkers
from backfire.service.worker.link import Link
from backfire.service.worker.local import Child, Devices
from backfire.service.worker.pipe import Message
from backfire.service.worker.protocol import (
    Failed,
    Finished,
    GivenBack,
    Hindered,
    Interrupted,
    Order,
    Outcome,
    Place,
    Progress,
    WorkerProcess,
    from_json,
)
from backfire.service.worker.seat import Seat

log = structlog.get_logger()

FALLBACK_S = 60.0
"""How long the cluster must be away before pictures are worked on this machine, where that is allowed."""
LOSSES_MAX = 5
"""How often in a row the node of a picture, or the driver, may be lost, or what a node returned be refused,
before an attempt counts: it may be the picture's doing."""
SUSPICIOUS_S = 3600.0
"""How long pictures make their last attempt alone after one had lost its driver too often."""


class Cluster:
    """The workers of a cluster; see `protocol.Backend`.

    Args:
        settings: the configuration, whose `cluster.address` is set.
        start_child: starts a worker on this machine, for `cluster.fallback: local`.
    """

    batch_max = 1

    def __init__(self, settings: Settings, start_child: Callable[[int], WorkerProcess] = Child) -> None:
        self._settings = settings
        self._local = Devices(settings, start_child)
        self._link = Link(settings.cluster)
        self._ready: dict[int, Seat] = {}
        self._checking: dict[tuple[int, int], Seat] = {}
        self._checkers = Checkers(settings.limits.memory_mb)
        self._losses: dict[int, int] = {}
        self._places: tuple[Place, ...] = ()
        self._suspicious_until = 0.0
        self._lock = threading.Lock()

    def configure(self, settings: Settings) -> None:
        """Work by other settings; under another address what the actors have is given back."""
        self._settings = settings
        self._local.configure(settings)
        self._checkers.memory_mb = settings.limits.memory_mb
        if self._link.needs_another(settings.cluster):
            self._lose_all("the cluster's settings changed")
            self._link.leave()
        self._link.configure(settings.cluster)

    @property
    def is_shared(self) -> bool:
        return self._is_local or time.monotonic() < self._suspicious_until

    @property
    def trouble(self) -> str:
        said = self._link.trouble
        return f"cluster {self._settings.cluster.address}: {said}" if said else ""

    @property
    def waitables(self) -> list[Any]:
        """What becomes readable when an actor reports something, the driver dies or a check is done."""
        return self._link.waitables + self._checkers.waitables

    def places(self, waiting: int) -> tuple[Place, ...]:
        self.pump()
        self._link.wait_for(waiting)
        return self._places

    def start(self, place: Place) -> WorkerProcess:
        if place.node is None:
            return self._local.start(place)
        if place.actor not in self._ready:
            raise OSError(f"the worker on {place.node} is gone")
        return self._ready[place.actor]

    def close(self) -> None:
        self._link.close()
        self._checkers.close()

    # From and to the seats

    def order(self, seat: Seat, order: Order) -> None:
        """Give an actor its order.

        Raises:
            OSError: the actor or the driver is gone.
        """
        if seat.gone:
            raise OSError(f"the worker on {seat.place.node} is gone")
        self._link.send(actor=seat.place.actor, order=orders.packed(order), folder=str(order.folder))

    def await_check(self, order: Order, patience_s: float) -> None:
        """Wait, from any thread, until what came back for an order is checked, if it has come."""
        deadline = time.monotonic() + patience_s
        while (order.job, order.lease) in self._checking and time.monotonic() < deadline:
            with self._lock:
                self._step_checks()
                waitables = self._checkers.waitables
            wait(waitables, 0.1)

    def end(self, seat: Seat, order: Order | None) -> None:
        """End an actor; the driver starts another in its place if one is needed. From any thread.

        Args:
            order: what the seat had; a check of what came back for it is ended, too, since it would put its
                files where the next start of the job has its own.
        """
        with self._lock:
            if order is not None and self._checking.pop((order.job, order.lease), None) is not None:
                self._checkers.drop(order)
            if not seat.gone:
                self._link.send(actor=seat.place.actor)
                self._forget(seat)

    def _lose(self, seat: Seat, reason: str) -> None:
        if seat.order is not None:
            seat.conclude(GivenBack(seat.order.job, seat.order.lease, reason))
        self._forget(seat)

    def _lost(self, order: Order, reason: str) -> GivenBack | Interrupted:
        """What it means for an order that its node is lost: no attempt, unless that happens on and on."""
        lost = self._losses[order.job] = self._losses.get(order.job, 0) + 1
        if lost > LOSSES_MAX:
            return Interrupted(order.job, order.lease, f"{reason}, {lost} times in a row")
        return GivenBack(order.job, order.lease, reason)

    def _forget(self, seat: Seat) -> None:
        seat.gone = True
        self._ready.pop(seat.place.actor, None)
        self._replace()

    def _replace(self) -> None:
        self._places = tuple(seat.place for seat in [*self._ready.values()])

    # The driver

    def pump(self) -> None:
        """Take in what driver and checkers have reported, and start what is missing."""
        messages = self._link.receive()
        try:
            for message in messages:
                self._take(message)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            self._link.ended = f"says what nobody understands ({error!r:.200})"
        if self._link.ended:
            self._lose_driver()
        self._step_checks()
        self._fall_back()

    def _step_checks(self) -> None:
        now = time.monotonic()
        for seat in self._checking.values():
            seat.heard = now  # a check that hangs is the checkers' matter
        for outcome in self._checkers.step():
            if (checked := self._checking.pop((outcome.job, outcome.lease), None)) is not None:
                self._checked(checked, outcome)

    def _take(self, message: Message) -> None:
        """Act on one message.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: it is none that a driver sends.
        """
        if "beat" in message:
            self._link.beat(str(message["beat"]), int(message["nodes"]))
            for present in self._ready.values():
                present.heard = time.monotonic()  # a driver that lives kills actors at their deadline
        elif "ended" in message:
            self._link.says_why(str(message["ended"]))
        elif "admitted" in message:
            pass  # that it was heard is all
        elif "node" in message:
            place = Place(node=str(message["node"]), actor=int(message["actor"]))
            if place.actor in self._ready:
                raise ValueError(f"worker {place.actor} is there already")
            self._ready[place.actor] = Seat(self, place)
            self._replace()
            log.info("worker_joined", node=place.node)
        elif (seat := self._ready.get(int(message["actor"]))) is None:
            pass  # it was ended, and what it had is given back
        elif "gone" in message:
            log.info("worker_left", node=seat.place.node)
            self._lose(seat, "its worker is gone")
        elif "returned" in message:
            # What comes late, of an order that this actor has no more, is dropped.
            told = from_json(message["returned"])
            if seat.order is not None and seat.jobs == {told.job: told.lease}:
                self._returned(seat, seat.order, told)
        else:
            self._report(seat, from_json(message["report"]))

    def _returned(self, seat: Seat, order: Order, outcome: Progress | Outcome) -> None:
        """What a node returned: an outcome is believed, a result is checked first."""
        if not isinstance(outcome, Finished | Failed | Hindered):
            raise TypeError(f"{type(outcome).__name__} is not what a node returns")
        if isinstance(outcome, Finished):
            self._checking[order.job, order.lease] = seat
            self._checkers.add(order)
            self._forget(seat)
            place = replace(seat.place, turn=seat.place.turn + 1)
            self._ready[place.actor] = Seat(self, place)
            self._replace()
        else:
            self._losses.pop(order.job, None)
            seat.conclude(outcome)

    def _checked(self, seat: Seat, outcome: Outcome) -> None:
        """Believe the check; what it refused is the node's doing, and that node's worker is replaced."""
        assert seat.order is not None
        if isinstance(outcome, Failed):
            log.error("result_refused", node=seat.place.node, path=seat.order.name, error=outcome.message)
            lost = self._lost(seat.order, outcome.message)
            outcome = lost if isinstance(lost, GivenBack) else outcome
            if (again := self._ready.get(seat.place.actor)) is not None:
                self._link.send(actor=again.place.actor)
                self._lose(again, "its worker was replaced")
        elif isinstance(outcome, Interrupted):
            log.error("worker_died", path=seat.order.name, how=outcome.reason)
        elif isinstance(outcome, Finished):
            self._losses.pop(outcome.job, None)
        seat.conclude(outcome)

    def _report(self, seat: Seat, report: Progress | Outcome) -> None:
        order, node = seat.order, seat.place.node
        if order is None or (report.job, report.lease) != (order.job, order.lease):
            return  # of an order that this actor has no more
        if isinstance(report, Progress):
            seat.told.append(report)
            return
        if isinstance(report, Finished):
            raise TypeError("a result is not believed before it is checked")
        if isinstance(report, GivenBack):
            log.warning("node_lost", node=node, path=order.name, reason=report.reason)
            report = self._lost(order, report.reason)
        if isinstance(report, Interrupted):
            log.error("worker_died", node=node, path=order.name, how=report.reason)
        seat.conclude(report)

    def _lose_driver(self) -> None:
        """Give back what the actors had; another driver is started after a while."""
        reason = "the cluster is gone"
        for seat in self._ready.values():
            if seat.order is not None:
                lost = self._lost(seat.order, reason)
                seat.conclude(lost)
                if isinstance(lost, Interrupted):  # whose doing it is nobody knows
                    self._suspicious_until = time.monotonic() + SUSPICIOUS_S
        self._lose_all(reason)
        self._link.drop()

    def _lose_all(self, reason: str) -> None:
        for seat in [*self._ready.values()]:
            self._lose(seat, reason)

    def _fall_back(self) -> None:
        """Have workers on this machine while the cluster is away for long, where that is allowed."""
        allowed = self._settings.cluster.fallback == "local" and not self._link.reached
        if allowed and time.monotonic() - self._link.gone_at > FALLBACK_S:
            if not self._places:
                log.warning("cluster_fallback", address=self._settings.cluster.address)
            self._places = self._local.places(0)
        elif self._is_local:
            self._replace()

    @property
    def _is_local(self) -> bool:
        return any(place.node is None for place in self._places)
