"""A cluster as the daemon sees it, whose driver a test speaks for, and results as nodes return them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from backfire import config
from backfire.config import Settings
from backfire.service.worker import protocol, returned
from backfire.service.worker.cluster import Cluster
from backfire.service.worker.protocol import Finished, Order, Outcome
from backfire.service.worker.seat import Seat
from backfire.types import Verdict, job_key
from tests.support.pictures import encoded, photo

PICTURE = encoded(photo((48, 64)))


def configured(base: Path, **section: Any) -> Settings:
    return config.parse(
        {"folders": {"inbox": "inbox"}, "cluster": {"address": "127.0.0.1:6379", **section}}, base=base
    )


class Spoken:
    """Takes the driver's place: what it tells is what the test puts into `tells`."""

    def __init__(self) -> None:
        self.waitables: list[Any] = []
        self.heard = 1e12
        self.got: list[dict[str, Any]] = []
        self.tells: list[dict[str, Any]] = []
        self.ended = ""
        self.killed = False

    def send(self, message: dict[str, Any]) -> None:
        self.got.append(message)

    def receive(self) -> tuple[list[dict[str, Any]], str]:
        told, self.tells = self.tells, []
        return told, self.ended

    def kill(self) -> None:
        self.killed = True


class Desk:
    """A cluster with one actor, whose driver the test speaks for."""

    def __init__(self, base: Path, **section: Any) -> None:
        self.settings = configured(base, **section)
        self.cluster = Cluster(self.settings)
        self.cluster.places(3)
        self.base = base
        self.tell({"beat": "", "nodes": 1, "fit": 1}, {"actor": 1, "node": "a"})

    @property
    def driver(self) -> Spoken:
        return cast(Any, self.cluster._link._driver)  # type: ignore[no-any-return]

    def tell(self, *messages: dict[str, Any]) -> None:
        self.driver.tells += messages
        self.cluster.pump()

    def order(self, lease: int) -> Seat:
        """Give the actor an order, as the pool does."""
        (place,) = self.cluster.places(3)
        seat = self.cluster.start(place)
        assert isinstance(seat, Seat)
        folder = self.base / "spool"
        folder.mkdir(exist_ok=True)
        (folder / "input").write_bytes(PICTURE)
        seat.send([Order(7, lease, folder, "p.png", (), self.settings)])
        return seat


def reported(outcome: Outcome) -> dict[str, Any]:
    return {"actor": 1, "report": protocol.to_json(outcome)}


def finished(order: Order, data: bytes) -> Finished:
    sha256 = hashlib.sha256(data).hexdigest()
    on_weak, on_none = order.settings.verify.on_weak, protocol.on_none(order.settings)
    verdict = Verdict.UNPROTECTED if data == PICTURE else Verdict.PROTECTED
    return Finished(order.job, order.lease, verdict, ".png", sha256, on_weak, on_none)


def left(order: Order, data: bytes, *, settings: Settings | None = None, extension: str = ".png") -> Finished:
    """Leave what an actor returns for an order; the receipt may be that of other settings."""
    outcome = replace(finished(order, data), extension=extension)
    key = job_key(hashlib.sha256(PICTURE).hexdigest(), None, (settings or order.settings).sha256)
    receipt = {"key": key, "output_sha256": outcome.output_sha256, "verdict": outcome.verdict.value}
    files = {"output": data, "receipt.json": json.dumps(receipt).encode()}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    told = {"outcome": protocol.to_json(outcome), "digests": digests}
    returned.leave(order.folder, order.lease, told, files)
    return outcome
