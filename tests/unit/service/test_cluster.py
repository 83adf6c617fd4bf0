"""The daemon's end of a cluster, with messages in place of a driver, and the check of what came back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from backfire import config
from backfire.config import Settings
from backfire.errors import Code, ConfigError, JobError
from backfire.pipeline.result import no_progress
from backfire.service.worker import cluster, driver, orders, protocol, returned
from backfire.service.worker.checkers import Checkers
from backfire.service.worker.cluster import Cluster, Seat
from backfire.service.worker.protocol import Failed, Finished, GivenBack, Interrupted, Order, Outcome, Place
from backfire.types import Verdict, job_key
from tests.support.pictures import encoded, photo
from tests.support.sandbox import wait_for

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
        self.ended = False

    def send(self, message: dict[str, Any]) -> None:
        self.got.append(message)

    def receive(self) -> tuple[list[dict[str, Any]], bool]:
        told, self.tells = self.tells, []
        return told, self.ended

    def kill(self) -> None:
        pass


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
        return cast(Any, self.cluster._driver)  # type: ignore[no-any-return]

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


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Desk]]:
    monkeypatch.setattr(cluster, "Driver", Spoken)
    made: list[Desk] = []

    def make(**section: Any) -> Desk:
        made.append(Desk(tmp_path, **section))
        return made[-1]

    yield make
    for one in made:
        one.cluster.close()


def reported(outcome: Outcome) -> dict[str, Any]:
    return {"actor": 1, "report": protocol.to_json(outcome)}


def finished(order: Order, data: bytes) -> Finished:
    sha256 = hashlib.sha256(data).hexdigest()
    return Finished(order.job, order.lease, Verdict.PROTECTED, ".png", sha256, on_weak="fail")


def left(order: Order, data: bytes, *, settings: Settings | None = None) -> Finished:
    """Leave what an actor returns for an order; the receipt may be that of other settings."""
    outcome = finished(order, data)
    key = job_key(hashlib.sha256(PICTURE).hexdigest(), None, (settings or order.settings).sha256)
    files = {"output": data, "receipt.json": json.dumps({"key": key}).encode()}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    told = {"outcome": protocol.to_json(outcome), "digests": digests}
    returned.leave(order.folder, order.lease, told, files)
    return outcome


def test_a_late_and_a_doubled_result_of_an_old_lease_are_dropped(desk: Callable[..., Desk]) -> None:
    home = desk()
    seat = home.order(lease=2)
    old = protocol.to_json(Finished(7, 1, Verdict.PROTECTED, ".png", "0" * 64, on_weak="fail"))
    for _ in range(2):
        home.tell({"actor": 1, "returned": old}, reported(Failed(7, 1, Code.INTERNAL, "late")))
    assert seat.receive(0) == []
    assert seat.jobs == {7: 2}, "it still has its order"
    assert not home.cluster._checking


def test_an_actor_gets_its_next_picture_while_the_last_one_is_checked(desk: Callable[..., Desk]) -> None:
    home = desk()
    first = home.order(lease=1)
    (order,) = [message["order"] for message in home.driver.got if "order" in message]
    outcome = left(orders.unpacked(order, home.base / "spool"), PICTURE)
    (home.base / "spool").joinpath("input").write_bytes(PICTURE)
    home.tell({"actor": 1, "returned": protocol.to_json(outcome)})
    second = home.order(lease=2)
    assert second is not first
    assert second.place.actor == first.place.actor
    (checked,) = wait_for(lambda: first.receive(0.1))
    assert replace(cast(Finished, checked), seconds=0.0) == outcome
    with pytest.raises(EOFError):
        first.receive(0)
    assert second.jobs == {7: 2}


def test_a_node_that_is_lost_gives_the_picture_back_until_that_is_no_accident(
    desk: Callable[..., Desk],
) -> None:
    home, outcomes = desk(), list[Outcome]()
    for lease in range(1, cluster.LOSSES_MAX + 2):
        seat = home.order(lease)
        home.tell(reported(GivenBack(7, lease, "its node is gone")))
        outcomes += seat.receive(0)  # type: ignore[arg-type]
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds == [GivenBack] * cluster.LOSSES_MAX + [Interrupted]


def test_the_driver_s_end_gives_all_pictures_back(desk: Callable[..., Desk]) -> None:
    home = desk()
    seat = home.order(lease=1)
    home.driver.ended = True
    home.cluster.pump()
    assert [type(one) for one in seat.receive(0)] == [GivenBack]
    assert home.cluster.places(3) == ()
    assert "its driver has ended" in home.cluster.trouble
    with pytest.raises(EOFError):
        seat.receive(0)
    with pytest.raises(OSError, match="gone"):
        home.cluster.start(Place(node="a", actor=1))


def test_pictures_are_worked_here_only_where_that_is_allowed_and_the_cluster_is_away_for_long(
    desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = desk(fallback="local")
    home.driver.ended = True
    home.cluster.pump()
    assert home.cluster.places(3) == ()
    home.cluster._gone_at -= cluster.FALLBACK_S
    assert home.cluster.places(3) == (Place(),)
    assert home.cluster.is_shared
    home.cluster._start_at = 0
    home.cluster.pump()
    home.tell({"beat": "", "nodes": 1, "fit": 1}, {"actor": 9, "node": "b"})
    assert home.cluster.places(3) == (Place(node="b", actor=9),)


def test_settings_travel_whole_and_without_secrets(tmp_path: Path) -> None:
    document = {
        "folders": {"inbox": "inbox"},
        "hooks": {"webhook": "https://user:secret@example.org/"},
        "regions": {"detectors": ["faces"], "faces": {"min_px": 20}},
        "protect": {"strength": "strong"},
        "output": {"long_px": 900},
        "editors": {"mine": {"kind": "lama", "weights": "big-lama", "dtype": "bfloat16"}},
    }
    settings = config.parse(document, base=tmp_path)
    order = Order(1, 2, tmp_path, "p.png", (("m.png", "mask-0"),), settings, rung=1)
    packed = json.loads(json.dumps(orders.packed(order)))
    assert "secret" not in json.dumps(packed)
    assert str(tmp_path / "inbox") not in json.dumps(packed)
    there = orders.unpacked(packed, tmp_path / "node")
    assert there.settings.sha256 == settings.sha256
    assert replace(there, settings=settings, folder=tmp_path) == order


def test_what_came_back_as_it_was_ordered_is_taken_over(tmp_path: Path) -> None:
    order = Order(7, 3, tmp_path, "p.png", (), configured(tmp_path))
    (tmp_path / "input").write_bytes(PICTURE)
    outcome = left(order, brighter(order.settings.protect.epsilon))
    assert returned.check(order, no_progress) == outcome
    assert (tmp_path / "output").read_bytes() == brighter(order.settings.protect.epsilon)


def brighter(levels: float) -> bytes:
    """The picture, changed by so many levels at one place."""
    rgb = np.asarray(photo((48, 64))).copy()
    assert rgb[10, 10].max() + levels <= 255
    rgb[10, 10] += np.uint8(levels)
    return encoded(Image.fromarray(rgb))


@pytest.mark.parametrize("wrong", ["damaged", "budget", "came out", "other settings", "another order"])
def test_what_came_back_otherwise_is_refused_and_worked_again(tmp_path: Path, wrong: str) -> None:
    order = Order(7, 3, tmp_path, "p.png", (), configured(tmp_path))
    (tmp_path / "input").write_bytes(PICTURE)
    protect = order.settings.protect.model_copy(update={"margin_px": 17})
    lies_in = returned.folder(tmp_path, 3)
    match wrong:
        case "damaged":
            left(order, PICTURE)
            (lies_in / "output").write_bytes(PICTURE + b"x")
        case "budget":
            left(order, brighter(order.settings.protect.epsilon + 1))
        case "came out":
            left(order, encoded(photo((48, 65))))
        case "other settings":
            left(order, PICTURE, settings=order.settings.model_copy(update={"protect": protect}))
        case "another order":
            left(replace(order, lease=2), PICTURE)
            returned.folder(tmp_path, 2).rename(lies_in)
    with pytest.raises(JobError, match=wrong) as raised:
        returned.check(order, no_progress)
    assert raised.value.retryable, "another node may return what it should"
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"address": "head"}, "host and port"),
        ({"address": "10.0.0.1:99999"}, "host and port"),
        ({"num_gpus": 0, "num_cpus": 0}, "reserve something"),
        ({"actors": 2, "min_actors": 3}, "min_actors"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path: Path, section: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        configured(tmp_path, **section)


def test_a_token_that_is_missing_or_that_others_may_read_is_refused(tmp_path: Path) -> None:
    settings = configured(tmp_path, token_file="auth_token")
    with pytest.raises(ConfigError, match="ray get-auth-token"):
        driver.token_file(settings.cluster)
    (tmp_path / "auth_token").write_text("0" * 64)
    (tmp_path / "auth_token").chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        driver.token_file(settings.cluster)
    (tmp_path / "auth_token").chmod(0o600)
    assert driver.token_file(settings.cluster) == tmp_path / "auth_token"


@pytest.fixture
def checkers() -> Iterator[Checkers]:
    made = Checkers()
    yield made
    made.close()


def test_a_check_that_is_killed_is_made_again(checkers: Checkers, tmp_path: Path) -> None:
    ordered = list[Order]()
    for number in range(2):
        spool = tmp_path / str(number)
        spool.mkdir()
        (spool / "input").write_bytes(PICTURE)
        ordered.append(Order(number, 1, spool, "p.png", (), configured(tmp_path)))
        left(ordered[-1], PICTURE)
        checkers.add(ordered[-1])
    assert checkers.step() == []
    checkers._children[0]._process.kill()  # before it has begun with one of them
    done: list[Outcome] = []

    def all_done() -> bool:
        done.extend(checkers.step())
        return len(done) == len(ordered)

    wait_for(all_done)
    assert {type(outcome) for outcome in done} == {Finished}
    assert (tmp_path / "1" / "output").read_bytes() == PICTURE
