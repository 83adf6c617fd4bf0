"""The daemon's end of a cluster, with messages in place of a driver."""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from backfire import config
from backfire.errors import Code, ConfigError
from backfire.files.parallel import in_parallel
from backfire.service.worker import cluster, driver, link, orders, protocol, returned
from backfire.service.worker.pipe import DaemonsEnd
from backfire.service.worker.protocol import (
    Failed,
    Finished,
    GivenBack,
    Interrupted,
    Order,
    Outcome,
    Place,
    Progress,
)
from backfire.service.worker.seat import Seat
from backfire.types import Verdict
from tests.support.desk import PICTURE, Desk, Spoken, configured, finished, left, reported
from tests.support.sandbox import wait_for


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Desk]]:
    monkeypatch.setattr(link, "Driver", Spoken)
    made: list[Desk] = []

    def make(**section: Any) -> Desk:
        made.append(Desk(tmp_path, **section))
        return made[-1]

    yield make
    for one in made:
        one.cluster.close()


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
    home.driver.ended = "has ended"
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
    home.driver.ended = "has ended"
    home.cluster.pump()
    assert home.cluster.places(3) == ()
    home.cluster._link.gone_at -= cluster.FALLBACK_S
    assert home.cluster.places(3) == (Place(),)
    assert home.cluster.is_shared
    home.cluster._link._start_at = 0
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


# A driver, or a node, that is not to be trusted


@pytest.mark.parametrize(
    "nonsense",
    [
        {},
        {"actor": "one", "gone": True},
        {"actor": 1, "returned": {"type": "Finished", "job": 7, "lease": 1}},
        {"actor": 1, "returned": {"type": "Settings", "job": 7, "lease": 1}},
        {"actor": 1, "returned": protocol.to_json(Progress(7, 1, "optimise", 1, 2))},
        {"actor": 1, "returned": protocol.to_json(GivenBack(7, 1))},
        {"actor": 1, "report": {**protocol.to_json(Failed(7, 1, Code.INTERNAL, "")), "code": "nonsense"}},
        {"actor": 1, "report": {**protocol.to_json(Failed(7, 1, Code.INTERNAL, "")), "seconds": "long"}},
        {"actor": 1, "report": [1]},
        reported(finished(Order(7, 1, Path("spool"), "p.png", (), configured(Path())), PICTURE)),
        {"beat": "", "nodes": "many"},
        {"actor": 1, "node": "another"},
    ],
    ids=str,
)
def test_a_driver_that_talks_nonsense_is_ended_and_no_picture_is_lost(
    desk: Callable[..., Desk], nonsense: dict[str, Any]
) -> None:
    home = desk()
    seat = home.order(lease=1)
    home.tell(nonsense, {"beat": "", "nodes": 1, "fit": 1})
    assert [type(one) for one in seat.receive(0)] == [GivenBack]
    assert "nobody understands" in home.cluster.trouble


def test_a_driver_that_cannot_be_started_is_told_and_tried_again(
    desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = desk()
    home.driver.ended = "has ended"
    home.cluster.pump()

    def refuse() -> Spoken:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(link, "Driver", refuse)
    home.cluster._link._start_at = 0
    home.cluster.pump()
    assert "Resource temporarily unavailable" in home.cluster.trouble
    monkeypatch.setattr(link, "Driver", Spoken)
    home.cluster._link._start_at = 0
    home.cluster.pump()
    assert home.driver.got


def test_a_driver_that_dies_with_a_picture_again_and_again_costs_an_attempt_in_the_end(
    desk: Callable[..., Desk],
) -> None:
    home, outcomes = desk(), list[Outcome]()
    for lease in range(1, cluster.LOSSES_MAX + 2):
        seat = home.order(lease)
        home.driver.ended = "has ended (killed by SIGKILL)"
        home.cluster.pump()
        outcomes += seat.receive(0)  # type: ignore[arg-type]
        home.cluster._link._start_at = 0
        home.cluster.pump()
        home.tell({"actor": 1, "node": "a"})
    assert [type(outcome) for outcome in outcomes] == [GivenBack] * cluster.LOSSES_MAX + [Interrupted]
    assert home.cluster.is_shared, "whose doing it was nobody knows: last attempts are made alone"


def test_a_worker_that_ends_by_itself_is_no_loss(desk: Callable[..., Desk]) -> None:
    home = desk()
    for lease in range(1, 3 * cluster.LOSSES_MAX):
        seat = home.order(lease)
        home.tell({"actor": 1, "gone": True}, {"actor": 1, "node": "a"})
        assert [type(one) for one in seat.receive(0)] == [GivenBack]
    assert not home.cluster.is_shared


def returns(home: Desk, seat: Seat, data: bytes, *, damage: bytes = b"") -> Outcome:
    """What becomes of an order when its node returns some bytes, changed on their way."""
    assert seat.order is not None
    outcome = left(seat.order, data)
    (returned.folder(seat.order.folder, outcome.lease) / "output").write_bytes(data + damage)
    home.tell({"actor": 1, "returned": protocol.to_json(outcome)})
    (ended,) = wait_for(lambda: seat.receive(0.1))
    assert not isinstance(ended, Progress)
    return ended


def test_a_node_whose_results_are_refused_gets_a_new_worker_and_the_picture_bears_nothing(
    desk: Callable[..., Desk],
) -> None:
    home = desk()
    ended = returns(home, home.order(lease=1), PICTURE, damage=b"x")
    assert isinstance(ended, GivenBack)
    assert "damaged" in ended.reason
    assert {"actor": 1} in home.driver.got, "the next result of this worker would be no better"
    assert home.cluster.places(3) == ()


def test_a_picture_whose_results_are_always_refused_fails_in_the_end_with_the_reason(
    desk: Callable[..., Desk],
) -> None:
    home = desk()
    for lease in range(1, cluster.LOSSES_MAX + 1):
        assert isinstance(returns(home, home.order(lease), PICTURE, damage=b"x"), GivenBack)
        home.tell({"actor": 1, "node": "a"})
    ended = returns(home, home.order(cluster.LOSSES_MAX + 1), PICTURE, damage=b"x")
    assert isinstance(ended, Failed)
    assert ended.retryable
    assert "damaged" in ended.message


def test_a_check_ends_with_the_order_that_it_is_of(desk: Callable[..., Desk]) -> None:
    home = desk()
    seat = home.order(lease=1)
    assert seat.order is not None
    spool, outcome = seat.order.folder, left(seat.order, PICTURE)
    home.tell({"actor": 1, "returned": protocol.to_json(outcome)})
    assert home.cluster._checkers.waitables
    seat.kill()  # as after an internal error; the next start of the job has the same spool
    assert not home.cluster._checkers.waitables
    again = home.order(lease=2)
    second = returns(home, again, PICTURE)
    assert isinstance(second, Finished)
    result = protocol.from_json(json.loads((spool / protocol.RESULT).read_bytes()))
    assert result.lease == 2, "no check of the first start writes here any more"


def test_what_came_back_is_checked_before_a_stop_and_what_did_not_is_given_back(
    desk: Callable[..., Desk],
) -> None:
    home = desk()
    seat = home.order(lease=1)
    assert seat.order is not None
    home.tell({"actor": 1, "returned": protocol.to_json(left(seat.order, PICTURE))})
    assert [type(one) for one in seat.stop(60)] == [Finished]
    assert [type(one) for one in home.order(lease=2).stop(60)] == [GivenBack]


def test_a_picture_that_is_checked_is_not_taken_for_hung(desk: Callable[..., Desk]) -> None:
    home = desk()
    seat = home.order(lease=1)
    assert seat.order is not None
    home.tell({"actor": 1, "returned": protocol.to_json(left(seat.order, PICTURE))})
    seat.heard -= 10_000
    home.cluster.pump()
    assert time.monotonic() - seat.heard < 60


def test_many_seats_are_ended_at_the_same_time(desk: Callable[..., Desk]) -> None:
    home = desk()
    home.tell(*({"actor": number, "node": "a"} for number in range(2000)))
    seats = [home.cluster.start(place) for place in home.cluster.places(3)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        in_parallel(lambda seat: seat.stop(0), seats)
    finally:
        sys.setswitchinterval(before)
    assert home.cluster.places(3) == ()


# A reload


def test_another_address_is_joined_by_another_driver_and_running_jobs_are_given_back(
    desk: Callable[..., Desk],
) -> None:
    home = desk()
    seat, first = home.order(lease=1), home.driver
    home.cluster.configure(configured(home.base, address="127.0.0.1:6380"))
    assert first.killed
    (ended,) = seat.receive(0)
    assert ended == GivenBack(7, 1, "the cluster's settings changed")
    home.cluster.pump()
    assert home.driver is not first
    assert home.driver.got[0]["settings"]["address"] == "127.0.0.1:6380"
    assert home.cluster.trouble == ""


def test_other_settings_are_told_to_the_driver_that_runs(desk: Callable[..., Desk]) -> None:
    home = desk()
    seat, first = home.order(lease=1), home.driver
    home.cluster.configure(configured(home.base, actors=7, num_gpus=0.5))
    assert home.driver is first
    assert first.got[-1]["settings"]["num_gpus"] == 0.5
    assert seat.jobs == {7: 1}


def test_devices_of_this_machine_follow_a_reload_while_they_stand_in(desk: Callable[..., Desk]) -> None:
    home = desk(fallback="local")
    home.driver.ended = "has ended"
    home.cluster.pump()
    home.cluster._link.gone_at -= cluster.FALLBACK_S
    assert home.cluster.places(3) == (Place(),)
    document = {"cluster": {"address": "127.0.0.1:6379", "fallback": "local"}, "limits": {"devices": ["cpu"]}}
    home.cluster.configure(config.parse({"folders": {"inbox": "inbox"}, **document}, base=home.base))
    assert home.cluster.places(3) == (Place("cpu"),)


@pytest.mark.parametrize(
    ("with_token", "without", "said"),
    [
        ("silent", "silent", "does not answer"),
        ("refuses", "refuses", "refuses the token"),
        ("admits", "admits", "RAY_AUTH_MODE=token"),
        ("admits", "silent", "does not answer"),  # it was not asked, so that it may be open
        ("admits", "refuses", ""),
    ],
)
def test_only_a_cluster_that_admits_with_a_token_and_refuses_without_is_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_token: str, without: str, said: str
) -> None:
    def asked(section: Any, environment: dict[str, str] | None = None) -> str:
        return without if environment else with_token

    for name in ("RAY_AUTH_MODE", "RAY_gcs_rpc_server_reconnect_timeout_s"):
        monkeypatch.setenv(name, "restored after the test")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    monkeypatch.setattr(driver, "_asked", asked)
    section = configured(tmp_path).cluster
    if said:
        with pytest.raises((ConfigError, ConnectionError), match=said):
            driver.join(section)
    else:
        driver.join(section)


class Gone:
    """A driver's process that ends just after it was asked whether it lives."""

    sentinel, exitcode = 0, -9

    def __init__(self) -> None:
        self.lives = True

    def is_alive(self) -> bool:
        lives, self.lives = self.lives, False
        return lives

    def join(self, timeout: float | None = None) -> None:
        pass


def test_what_a_driver_told_before_its_end_is_heard_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = multiprocessing.Pipe()
    made = object.__new__(driver.Driver)
    made.heard, made._pipe, made._process = 0.0, DaemonsEnd(ours), cast(Any, Gone())
    assert made.receive() == ([], "")
    theirs.send_bytes(json.dumps({"ended": "lets in anybody"}).encode())
    assert made.receive() == ([{"ended": "lets in anybody"}], "")
    theirs.close()
    assert made.receive() == ([], "has ended (killed by SIGKILL)")
    ours.close()
