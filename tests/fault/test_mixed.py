"""Batches meet the worst days: whatever happens in mid-batch costs the job it happens to, once."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from backfire import config
from backfire.errors import Code
from backfire.files import manifest
from backfire.files.outbox import writing
from backfire.service.dispatcher import Dispatcher
from backfire.service.publisher import Publisher
from backfire.service.retry_policy import RetryPolicy
from backfire.service.worker import local, protocol
from backfire.service.worker.protocol import Failed, GivenBack, Hindered, Order, Outcome, Progress, Result
from backfire.types import Job
from benchmarks.soak import png
from tests.fault.test_batches import attempts, begun, settled
from tests.fault.test_one_only import SOON, failing, is_bad
from tests.support.house import Call, House, lasting

Make = Callable[..., House]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with capture_logs():
        yield


def drop(house: House, *names: str, content: str = "") -> None:
    for name in names:
        file = house.base / "inbox" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(content or name))


# Reload


def test_what_is_handed_back_after_a_reload_is_taken_in_under_the_new_configuration(
    house: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = settled(house, 4)
    monkeypatch.setattr(local, "BATCH_S", -1.0)
    begun(home)
    new = config.parse(
        {
            "folders": {"inbox": "inbox"},
            "regions": {"detectors": ["faces"]},
            "limits": {"free_mb": 0},
            "protect": {"epsilon": 3},
            "watch": {"settle_s": 2, "rescan_s": 1},
        },
        base=home.base,
    )
    assert new.sha256 != home.settings.sha256
    home.service.load = lambda: new
    home.service._reconfigure(home.hints)
    home.service.dispatcher.listen(0)
    monkeypatch.setattr(local, "BATCH_S", 1.0)
    home.turn(1, 8)
    assert home.states() == ["archived"] * 4
    jobs = home.service.jobs.store.jobs()
    keys = {job.name: job.config_sha256 for job in jobs}
    assert [keys[f"{number}.png"] for number in range(4)] == [home.settings.sha256] + [new.sha256] * 3


# The child


def test_a_child_that_died_before_it_began_costs_nobody_an_attempt(
    house: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = house(watch=SOON, protect={"attempts": 1})
    drop(home, "a.png", "b.png")
    with monkeypatch.context() as patch:

        def broken(self: Call, orders: list[Order]) -> None:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

        patch.setattr(Call, "send", broken)
        home.turn(5, 6)
        assert set(attempts(home).values()) == {0}
        assert home.worker.pauses > 0, "no loop of children that cannot live"
    home.turn(40, 6)
    assert home.states() == ["archived"] * 2


def test_a_child_that_hangs_at_its_start_costs_nobody_an_attempt(
    house: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = house(watch=SOON, protect={"attempts": 1}, limits={"silence_s": 1, "free_mb": 0})
    drop(home, "a.png")
    with monkeypatch.context() as patch:
        patch.setattr(Call, "send", lambda self, orders: setattr(self, "heard", time.monotonic() - 5))
        home.turn(5, 6)
        assert set(attempts(home).values()) == {0}
    home.turn(40, 6)
    assert home.states() == ["archived"]


@pytest.mark.parametrize("error", [BrokenPipeError(errno.EPIPE, "Broken pipe"), EOFError()])
def test_an_error_that_looks_like_the_pipes_does_not_end_the_child(
    house: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    def process(*_: Any) -> Outcome:
        raise error

    monkeypatch.setattr(local, "process", process)
    settings = config.parse({"folders": {"inbox": "inbox"}}, base=tmp_path)
    (outcome,) = local.work([Order(1, 1, tmp_path, "p.png", (), settings)], Told())  # type: ignore[arg-type]
    assert isinstance(outcome, Failed | Hindered)
    assert outcome.code == "internal"


class Told:
    """The child's end of a pipe, whose other end is there and silent, or gone."""

    def __init__(self, *, gone: bool = False) -> None:
        self.gone = gone

    def poll(self) -> bool:
        return self.gone

    def recv(self) -> None:
        raise EOFError

    def send(self, messages: list[Any]) -> None:
        pass


def test_a_child_whose_daemon_is_gone_stops(house: Make, tmp_path: Path) -> None:
    settings = config.parse({"folders": {"inbox": "inbox"}}, base=tmp_path)
    orders = [Order(number, 1, tmp_path, "p.png", (), settings) for number in (1, 2)]
    outcomes = local.work(orders, Told(gone=True))  # type: ignore[arg-type]
    assert [type(outcome) for outcome in outcomes] == [GivenBack, GivenBack]


def test_a_child_that_is_still_at_work_gets_no_further_orders(
    house: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take them for a request to stop, and nobody would work them."""
    home = settled(house, 8)
    busy: list[Call] = []
    with monkeypatch.context() as patch:

        def send(self: Call, orders: list[Order]) -> None:
            assert self not in busy, "it has not ended"
            busy.append(self)
            self.jobs = {order.job: order.lease for order in orders}

        patch.setattr(Call, "send", send)
        begun(home)
        home.worker.running = {}  # whatever fault led there
        home.service.dispatcher.resume(crashed=False)
        home.clock += 60
        home.service.dispatcher.begin()
    assert set(attempts(home).values()) == {1}


# Pace and pauses


def test_what_was_handed_back_does_not_count_as_quick(house: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    home = settled(house, 16)
    worked = local.worked
    monkeypatch.setattr(local, "BATCH_S", -1.0)
    monkeypatch.setattr(local, "worked", lambda *given: lasting(worked(*given), 0.2))
    begun(home)
    home.worker.pace = 8
    home.service.dispatcher.listen(0)
    assert home.worker.pace == 1, "the one that it began took 0.2 s"


def test_many_hindered_at_once_are_one_pause(house: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    home = settled(house, 8)

    def full(folder: Path, result: Result) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(protocol, "write_result", full)
        begun(home)
        home.service.dispatcher.listen(0)
    assert home.worker.pauses == 1
    assert set(attempts(home).values()) == {0}
    home.turn(5, 8)
    assert home.states() == ["archived"] * 8


# Duplicates


def test_a_result_that_cannot_be_published_holds_up_neither_duplicates_nor_strangers(
    house: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = house(watch=SOON)
    create = writing.create

    def refusing(path: bytes, **rights: Any) -> Any:
        if b"/outbox/sub/" in path:
            raise PermissionError(errno.EACCES, "Permission denied")
        return create(path, **rights)

    monkeypatch.setattr(writing, "create", refusing)
    drop(home, *(f"sub/{number}.png" for number in range(20)), content="the same")
    home.turn(5, 3)
    drop(home, "duplicate.png", content="the same")
    drop(home, "stranger.png")
    home.turn(5, 40)
    assert set(home.files("archive")) == {"duplicate.png", "stranger.png"}


# Publishing


def taken(home: House) -> list[str]:
    """Results that somebody takes out of the outbox."""
    found = [*home.files("outbox")]
    for name in found:
        (home.base / "outbox" / name).unlink()
    return found


def test_a_result_taken_before_it_was_recorded_is_not_published_again(
    house: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = house(watch=SOON)
    monkeypatch.setattr(manifest, "LOCK_S", 0)
    drop(home, "a.png", "b.png")
    lock = os.open(home.base / "outbox" / os.fsdecode(manifest.name(home.wall)), os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    home.turn(5, 4)
    assert sorted(taken(home)) == ["a.png", "b.png"]
    os.close(lock)
    home.turn(10, 6)
    assert home.states() == ["archived"] * 2
    assert taken(home) == []


@pytest.mark.parametrize("crashed", [False, True])
def test_a_result_that_was_out_when_its_picture_was_replaced_is_in_the_manifest(
    house: Make, monkeypatch: pytest.MonkeyPatch, crashed: bool
) -> None:
    home = house(watch=SOON)
    drop(home, "a.png", content="former")
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "_write", _no_space)
        home.turn(5, 4)
    assert set(home.files("outbox")) == {"a.png"}
    drop(home, "a.png", content="later")
    if crashed:
        home.crash()
        home.again()
    home.turn(100, 6)
    listed = {entry.sha256 for entry in manifest.read(home.base / "outbox").entries}
    assert listed == {hashlib.sha256(png(content)).hexdigest() for content in ("former", "later")}
    assert len(home.files("outbox")) == 2, "the former one was published: it stays"
    assert [*home.files("archive").values()] == [png("later")]


def _no_space(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_fault_of_ours_publishes_the_others_once(house: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    home = house(watch=SOON)
    drop(home, "a.png", "bad.png", "c.png")
    place, got = writing.place, list[str]()

    def buggy(content: Any, folder: Path, path: bytes, **more: Any) -> bytes:
        if path == b"bad.png":
            raise ZeroDivisionError("a bug")
        return place(content, folder, path, **more)

    monkeypatch.setattr("backfire.files.outbox.place", buggy)
    for _ in range(12):
        home.live(10)
        got += taken(home)
    assert sorted(got) == ["a.png", "c.png"]
    assert "bad.png" in home.files("failed")


def test_a_fault_of_ours_after_a_result_is_out_does_not_set_its_original_aside(
    house: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = house(watch=SOON)
    drop(home, "bad.png")
    update = home.service.jobs.update

    def buggy(job: Job, state: Any, **more: Any) -> Job:
        if is_bad(job) and state == "published":
            raise ZeroDivisionError("a bug")
        return update(job, state, **more)

    monkeypatch.setattr(home.service.jobs, "update", buggy)
    home.live(10, times=12)
    assert set(home.files("outbox")) == {"bad.png"}
    assert home.files("failed") == {}
    monkeypatch.undo()


def test_a_mask_without_its_private_copy_stays_in_the_inbox(
    house: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = house(watch=SOON)
    drop(home, "p.png", "p.mask.png")
    with monkeypatch.context() as patch:
        patch.setattr(Publisher, "archive", lambda *_: None)
        home.turn(5, times=3)
    (job,) = home.service.jobs.active.values()
    home.service.jobs.spool(job).mask(0).unlink()
    home.turn(5, times=4)
    kept = {**home.files("inbox"), **home.files("archive")}
    assert set(kept) == {"p.png", "p.mask.png"}


# The drain, and faults of ours with several jobs running


def test_a_fault_of_ours_while_draining_costs_no_other_an_attempt(
    house: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = settled(house, 4)
    monkeypatch.setattr(Call, "send", lambda self, orders: None)
    begun(home)
    bad = next(iter(home.worker.running.values()))
    failing(monkeypatch, RetryPolicy, "conclude", when=lambda self, job, outcome: job.id == bad.id)
    home.service.dispatcher.drain()
    states = {job.name: (job.state.value, job.attempts) for job in home.service.jobs.store.jobs()}
    assert states.pop(bad.name) == ("running", 1)
    assert set(states.values()) == {("ready", 0)}


@pytest.mark.parametrize(("place", "method"), [(Dispatcher, "_order"), (RetryPolicy, "_hindered")])
def test_a_fault_of_ours_in_mid_batch_costs_one_job(
    house: Make, monkeypatch: pytest.MonkeyPatch, place: type, method: str
) -> None:
    home = settled(house, 6)
    failing(monkeypatch, place, method, when=lambda self, job, *_: job.name == "3.png")
    if method == "_hindered":
        process = local.process

        def refused(order: Order, progress: Any) -> Outcome:
            if order.name == "3.png":
                raise OSError(errno.EIO, "Input/output error")
            return process(order, progress)

        monkeypatch.setattr(local, "process", refused)
    home.worker.pace = 8
    home.live(10, times=14)
    assert sorted(home.states()) == ["archived"] * 5 + ["failed"]
    assert [job.attempts for job in home.service.jobs.store.jobs() if job.state == "archived"] == [1] * 5


def test_a_fault_of_ours_when_the_child_dies_leaves_the_attempt_with_the_culprit(
    house: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = settled(house, 4)
    monkeypatch.setattr(Call, "send", lambda self, orders: None)
    begun(home)
    running = [*home.worker.running.values()]
    told = [[Progress(job.id, job.lease, "start", 0, 1)] for job in running[:2]]
    first, culprit = running[:2]
    spool = home.service.jobs.spool(first)
    protocol.write_result(spool.folder, Failed(first.id, first.lease, Code.UNREADABLE, "m"))

    def receive(self: Call, timeout: float) -> list[Progress]:
        if not told:
            raise EOFError
        self.heard = time.monotonic()
        return told.pop(0)

    monkeypatch.setattr(Call, "receive", receive)
    failing(
        monkeypatch,
        RetryPolicy,
        "conclude",
        when=lambda self, job, outcome: getattr(outcome, "code", None) == Code.UNREADABLE,
    )
    home.service._resuming = None
    home.worker.paused_until = 1e12
    home.live(10, times=6)
    found = attempts(home)
    assert found[culprit.name] == 1
    assert all(found[job.name] == 0 for job in running[2:])
