"""The driver's actors, with doubles in place of Ray's: no cluster is needed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="needs the extra ray")

import ray
from ray.exceptions import ActorDiedError, RayTaskError

from backfire.errors import Code
from backfire.service.worker import actors, node, orders, protocol
from backfire.service.worker.actors import Actors
from backfire.service.worker.protocol import Failed, GivenBack, Hindered, Interrupted, Order
from tests.support.desk import PICTURE, configured

Message = dict[str, Any]


class Ref(Future[Any]):
    """An object of Ray."""

    def future(self) -> Future[Any]:
        return self


class Method:
    """A method of an actor: each call answers what `answer` says, or with the test's word, later."""

    def __init__(self, answer: Callable[[], Any] | None = None) -> None:
        self._answer, self.calls = answer, list[Ref]()

    def remote(self, *_: Any) -> Ref:
        self.calls.append(Ref())
        if self._answer is not None:
            try:
                self.calls[-1].set_result(self._answer())
            except Exception as error:
                self.calls[-1].set_exception(error)
        return self.calls[-1]


class Double:
    """An actor, on a node of its own or on one that is named."""

    def __init__(self, name: str = "host-abcdef") -> None:
        self.__ray_ready__ = Method(lambda: True)
        self.name, self.progress, self.work = Method(lambda: name), Method(lambda: None), Method()


class Bench:
    """Actors whose daemon and whose cluster the test is."""

    def __init__(self, base: Path, monkeypatch: pytest.MonkeyPatch, **section: Any) -> None:
        self.settings = configured(base, **section)
        self.base, self.told, self.made, self.killed = base, list[Message](), list[Double](), list[Any]()
        (base / "input").write_bytes(PICTURE)
        self.actors = Actors(self, self.settings.cluster, node.Actor)  # type: ignore[arg-type]
        monkeypatch.setattr(self.actors, "_start", self.start)
        monkeypatch.setattr(ray, "kill", self.killed.append)
        self.refuses: Exception | None = None
        self.node = "host-abcdef"

    def start(self) -> Double:
        if self.refuses is not None:
            raise self.refuses
        self.made.append(Double(self.node))
        return self.made[-1]

    def send(self, message: Message) -> None:
        self.told.append(message)

    def order(self, actor: int, lease: int = 1) -> None:
        packed = orders.packed(Order(7, lease, self.base, "p.png", (), self.settings))
        self.actors._hear({"actor": actor, "order": packed, "folder": str(self.base)})

    def reports(self) -> list[Any]:
        return [protocol.from_json(one["report"]) for one in self.told if "report" in one]


Scene = Callable[[Bench], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bench]:
    def play(scene: Scene, **section: Any) -> Bench:
        bench = Bench(tmp_path, monkeypatch, actors=8, **section)

        async def run() -> None:
            await asyncio.wait_for(scene(bench), 30)

        asyncio.run(run())
        return bench

    return play


async def until(what: Callable[[], object]) -> None:
    while not what():
        await asyncio.sleep(0.01)


async def ready(bench: Bench, count: int = 1) -> None:
    bench.actors._hear({"waiting": count})
    await until(lambda: sum("node" in one for one in bench.told) == count)


def test_a_worker_that_does_not_start_for_whatever_reason_is_told_and_not_tried_at_once(
    play: Callable[..., Bench],
) -> None:
    async def scene(bench: Bench) -> None:
        bench.refuses = RuntimeError()  # with no word, and of no kind that Ray has
        bench.actors._hear({"waiting": 1})
        await until(lambda: any(slot.trouble for slot in bench.actors._slots.values()))
        for _ in range(3):
            bench.actors._adjust()
            await asyncio.sleep(0)
        assert bench.actors._numbers == 1
        bench.actors._beat()
        assert bench.told[-1]["beat"] == "a worker does not start: RuntimeError"

    play(scene)


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        (lambda ref: ref.set_exception(ActorDiedError()), GivenBack),
        (lambda ref: ref.set_result(None), GivenBack),
        (lambda ref: ref.set_result(({"outcome": {"type": "Finished"}}, {})), GivenBack),
        (lambda ref: ref.set_exception(KeyError("of unpickling")), GivenBack),
        (lambda ref: None, Interrupted),
    ],
    ids=["died", "nothing", "half an outcome", "unpickling", "deadline"],
)
def test_an_actor_that_is_lost_is_replaced_and_its_order_is_reported_once(
    play: Callable[..., Bench], ends: Callable[[Ref], None], expected: type
) -> None:
    async def scene(bench: Bench) -> None:
        await ready(bench)
        bench.order(1)
        await until(lambda: bench.made[0].work.calls)
        ends(bench.made[0].work.calls[0])
        await until(lambda: {"actor": 1, "gone": True} in bench.told)
        assert [type(one) for one in bench.reports()] == [expected]
        assert bench.killed == [bench.made[0]]
        bench.actors._adjust()
        await until(lambda: len(bench.made) == 2)

    play(scene, deadline_s=0.5)


def test_what_a_node_raises_is_the_picture_s_and_its_actor_goes_on(play: Callable[..., Bench]) -> None:
    async def scene(bench: Bench) -> None:
        await ready(bench)
        bench.order(1)
        await until(lambda: bench.made[0].work.calls)
        error = RayTaskError("work", "a bug", TimeoutError("of a socket there")).as_instanceof_cause()
        bench.made[0].work.calls[0].set_exception(error)
        await until(bench.reports)
        bench.order(1, lease=2)
        await until(lambda: len(bench.made[0].work.calls) == 2)

    assert [type(one) for one in play(scene).reports()] == [Failed]


def test_a_spool_that_cannot_be_used_is_no_fault_of_picture_or_node(play: Callable[..., Bench]) -> None:
    async def scene(bench: Bench) -> None:
        await ready(bench)
        (bench.base / "input").unlink()
        bench.order(1)
        await until(bench.reports)
        assert 1 in bench.actors._slots

    (report,) = play(scene).reports()
    assert isinstance(report, Hindered)
    assert "the daemon's spool" in report.message


def test_of_a_node_that_is_gone_only_one_picture_finds_out(play: Callable[..., Bench]) -> None:
    async def scene(bench: Bench) -> None:
        await ready(bench, 6)
        bench.node = "other-123456"
        await ready(bench, 7)
        bench.order(1)
        await until(lambda: bench.made[0].work.calls)
        bench.made[0].work.calls[0].set_exception(ActorDiedError())
        await until(bench.reports)
        gone = {one["actor"] for one in bench.told if "gone" in one}
        told = [one["actor"] for one in bench.told if "report" in one or "gone" in one]
        assert gone >= {2, 3, 4, 5, 6}, "they were idle on the same node"
        assert 7 not in gone
        assert told.index(1) == 5, "the daemon hears of those first, and gives the picture to none of them"

    play(scene)


def test_idle_actors_of_a_node_that_the_cluster_has_no_more_are_ended(
    play: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actors, "LOOK_S", 0.01)
    alive = [{"Alive": True, "NodeID": "abcdef" + "0" * 50, "Resources": {"CPU": 8.0, "GPU": 8.0}}]
    monkeypatch.setattr(ray, "nodes", lambda: alive)

    async def scene(bench: Bench) -> None:
        look = asyncio.ensure_future(bench.actors._look())
        await ready(bench, 2)
        await asyncio.sleep(0.1)
        assert len(bench.actors._slots) == 2
        alive[0] = {**alive[0], "NodeID": "123456" + "0" * 50}
        await until(lambda: len(bench.killed) == 2)
        look.cancel()

    play(scene)


def test_workers_follow_what_they_are_to_reserve_and_end_their_pictures_first(
    play: Callable[..., Bench],
) -> None:
    async def scene(bench: Bench) -> None:
        await ready(bench, 2)
        bench.order(1)
        await until(lambda: bench.made[0].work.calls)
        other = configured(bench.base, actors=8, num_gpus=0.5).cluster
        bench.actors._hear({"settings": other.model_dump(mode="json")})
        bench.actors._adjust()
        await until(lambda: {"actor": 2, "gone": True} in bench.told)
        assert {"actor": 1, "gone": True} not in bench.told
        outcome = protocol.to_json(Failed(7, 1, Code.INTERNAL, "no picture"))
        bench.made[0].work.calls[0].set_result(({"outcome": outcome, "digests": {}}, {}))
        await until(lambda: {"actor": 1, "gone": True} in bench.told)
        assert {"actor": 1, "returned": outcome} in bench.told
        bench.actors._adjust()
        await until(lambda: len(bench.made) >= 4)
        assert {slot.needs["GPU"] for slot in bench.actors._slots.values()} == {0.5}

    play(scene)


def test_an_order_for_an_actor_that_is_gone_comes_back(play: Callable[..., Bench]) -> None:
    async def scene(bench: Bench) -> None:
        bench.order(99)

    assert [type(one) for one in play(scene).reports()] == [GivenBack]


@pytest.mark.parametrize("said", ["one", (1, 2), ("decode", "many", 3), ("decode", 1, 2)], ids=str)
def test_progress_is_passed_on_if_it_is_some(
    play: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, said: object
) -> None:
    monkeypatch.setattr(actors, "ASK_S", 0.05)
    monkeypatch.setattr(actors, "ASKED_MOST", 1000)

    async def scene(bench: Bench) -> None:
        await ready(bench)
        bench.made[0].progress = Method(lambda: said)
        bench.order(1)
        await until(lambda: len(bench.made[0].progress.calls) > 2)

    known = {(one.phase, one.done, one.total) for one in play(scene).reports()}
    assert known == ({said} if said == ("decode", 1, 2) else set())
