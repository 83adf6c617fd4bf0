"""A quick worker gets several jobs at a time; whatever ends it, only the job it was at bears the attempt."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from backfire.files import parallel
from backfire.files.parallel import in_parallel
from backfire.service.worker import local
from backfire.service.worker.protocol import Order, Outcome, Progress
from backfire.types import Job
from benchmarks.soak import png
from tests.support.house import Call, House, lasting

Make = Callable[..., House]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The names of the orders, as often as the child got some."""
    batches: list[list[str]] = []
    send = Call.send

    def noted(self: Call, messages: list[Any]) -> None:
        if isinstance(messages[0], Order):
            batches.append([order.name for order in messages])
        send(self, messages)

    monkeypatch.setattr(Call, "send", noted)
    return batches


def settled(make: Make, count: int, **sections: Any) -> House:
    """A house with so many pictures, which the next turn takes in and has worked."""
    home = make(watch={"settle_s": 2, "rescan_s": 1}, **sections)
    for number in range(count):
        (home.base / "inbox" / f"{number}.png").write_bytes(png(str(number)))
    home.turn(1, 2)
    return home


def attempts(home: House) -> dict[str, int]:
    return {job.name: job.attempts for job in home.service.jobs.active.values()}


def begun(home: House) -> None:
    """All the house's pictures are with the child, together."""
    home.clock += 1
    home.worker.pace = 8
    home.service.intake.step(ahead=8)
    home.service.dispatcher.begin()


def taking(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """Have each picture take so long by the child's word, whatever the machine is up to."""
    worked = local.worked
    patch.setattr(local, "worked", lambda *given: lasting(worked(*given), seconds))


def test_twice_as_many_each_time_as_long_as_they_are_quick(
    house: Make, sent: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = settled(house, 40)
    taking(monkeypatch, 0.0)
    home.turn(1, 6)
    assert home.states() == ["archived"] * 40
    assert [len(batch) for batch in sent][:4] == [1, 2, 4, 8]
    assert sum(map(len, sent)) == 40, "none is worked twice"


def test_one_that_takes_long_is_followed_by_one(
    house: Make, sent: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = settled(house, 12)
    taking(monkeypatch, 2.0)
    home.turn(1, 15)
    assert [len(batch) for batch in sent] == [1] * 12
    assert home.states() == ["archived"] * 12


def test_what_a_child_has_not_begun_in_time_is_handed_back_without_an_attempt(
    house: Make, sent: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = settled(house, 8)
    monkeypatch.setattr(local, "BATCH_S", -1.0)
    begun(home)
    assert set(attempts(home).values()) == {1}, "committed before the danger"
    home.service.dispatcher.listen(0)
    assert sorted(attempts(home).values()) == [0] * 7 + [1]
    assert len(sent) == 1
    monkeypatch.setattr(local, "BATCH_S", 1.0)
    home.turn(1, 6)
    assert home.states() == ["archived"] * 8


def test_a_child_that_dies_costs_only_the_job_it_was_at_an_attempt(
    house: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = settled(house, 8)
    dispatcher = home.service.dispatcher
    monkeypatch.setattr(Call, "send", lambda self, orders: None)
    begun(home)
    running = [*home.worker.running.values()]
    culprit = running[3]
    told = [[Progress(job.id, job.lease, "start", 0, 1)] for job in running[:4]]

    def receive(self: Call, timeout: float) -> list[Progress]:
        if not told:
            raise EOFError
        self.heard = time.monotonic()
        return told.pop(0)

    monkeypatch.setattr(Call, "receive", receive)
    dispatcher.listen(1)
    assert attempts(home) == {job.name: int(job is culprit) for job in running}
    assert "worker died: exit code 3" in home.reasons()


@pytest.mark.parametrize("allowed", [1, 3])
def test_a_daemon_that_dies_again_and_again_sets_no_bystander_aside(
    house: Make, sent: list[list[str]], monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    home = settled(house, 6, protect={"attempts": allowed})
    work = local.work

    class Crash(Exception):
        pass

    def killing(orders: list[Order], connection: Any) -> list[Outcome]:
        if any(order.name == "3.png" for order in orders):
            raise Crash
        return work(orders, connection)

    monkeypatch.setattr(local, "work", killing)
    for _ in range(allowed):
        home.worker.pace = 8
        with pytest.raises(Crash):
            home.turn(1, 8)
        home.crash()
        home.again()
    assert sent[-1] == ["3.png"], "it made its last attempt alone"
    home.turn(1, 8)
    assert sorted(home.states()) == ["archived"] * 5 + ["quarantined"]
    assert set(home.files("failed")) == {"3.png", "3.png.error.json"}


def test_a_drain_gives_all_of_them_back(house: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    home = settled(house, 8)
    monkeypatch.setattr(Call, "send", lambda self, orders: None)
    begun(home)
    home.service.dispatcher.drain()
    assert home.states() == ["ready"] * 8
    assert set(attempts(home).values()) == {0}


def test_a_result_that_was_damaged_in_the_spool_is_worked_again(house: Make, sent: list[list[str]]) -> None:
    home = settled(house, 2)
    publish = home.service.publisher.publish

    def damaging(jobs: list[Job]) -> None:
        for job in jobs:
            if job.name == "1.png":
                (home.service.jobs.spool(job).folder / "output").write_bytes(b"")
        publish(jobs)

    home.service.publisher.publish = damaging  # type: ignore[method-assign,assignment]
    home.turn(1, 1)
    home.service.publisher.publish = publish  # type: ignore[method-assign]
    assert sorted(home.states()) == ["archived", "ready"]
    home.turn(1, 4)
    assert home.files("outbox") == {name: png(name[0]) for name in ("0.png", "1.png")}
    assert sum(batch.count("1.png") for batch in sent) == 2


def test_in_parallel_does_without_threads_where_there_is_no_room_for_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none(threads: int) -> Any:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(parallel, "_pool", none)
    assert in_parallel(lambda number: number + 1, range(20)) == [*range(1, 21)]
