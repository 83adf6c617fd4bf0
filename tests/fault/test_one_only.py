"""What one picture, one mask or one fault of ours costs: itself, and not the others."""

from __future__ import annotations

import errno
import itertools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from backfire.cli import jobs
from backfire.errors import Code, InputError, ModelError
from backfire.files import durable, inbox
from backfire.service import heartbeat, loop, pool
from backfire.service.dispatcher import Dispatcher
from backfire.service.inbox import Inbox
from backfire.service.intake import MOST_AHEAD, READY_AHEAD, Intake
from backfire.service.originals import Originals
from backfire.service.publisher import Publisher
from backfire.service.reports import Reports
from backfire.service.retry_policy import RetryPolicy
from backfire.service.set_aside import SetAside
from backfire.service.worker import local, protocol
from backfire.service.worker.protocol import Finished, Order
from backfire.types import Job, JobState, Verdict
from benchmarks import passthrough
from benchmarks.soak import png
from tests.support.house import House, lasting

Make = Callable[..., House]
SOON: dict[str, Any] = {"settle_s": 1, "mask_wait_s": 0, "incomplete_wait_s": 0}


def drop(house: House, *names: str) -> None:
    for name in names:
        file = house.base / "inbox" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(name))


def failing(monkeypatch: pytest.MonkeyPatch, place: type, method: str, when: Callable[..., bool]) -> None:
    """Our own bug: the method raises what nobody foresaw for some of what it is given."""
    real = getattr(place, method)

    def buggy(*given: Any, **more: Any) -> Any:
        if when(*given):
            raise ZeroDivisionError("a bug")
        return real(*given, **more)

    monkeypatch.setattr(place, method, buggy)


def is_bad(given: object) -> bool:
    return isinstance(given, Job) and given.path == b"bad.png"


BEFORE_IT_IS_OUT: dict[str, tuple[type, str]] = {
    "settling": (Intake, "_is_complete"),
    "recording the copy": (Intake, "_record"),
    "starting": (Dispatcher, "_is_taken_over"),
    "concluding": (RetryPolicy, "_finished"),
    "looking at the result": (Publisher, "_result"),
    "reporting": (Reports, "write"),
}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """To print a traceback prettily takes longer than all else here."""
    with capture_logs():
        yield


@pytest.mark.parametrize("place", BEFORE_IT_IS_OUT)
def test_a_fault_of_ours_costs_the_one_job(house: Make, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    home = house(watch=SOON)
    drop(home, "a.png", "bad.png", "c.png")
    failing(monkeypatch, *BEFORE_IT_IS_OUT[place], when=lambda *given: any(map(is_bad, given)))
    if place == "reporting":  # it is in the way of setting aside, too: that is tried for ever, alone
        home.live(10, times=12)
        assert set(home.files("inbox")) == {"bad.png"}
        return
    with capture_logs() as lines:
        home.live(10, times=12)
    assert set(home.files("outbox")) == {"a.png", "c.png"}
    assert home.files("inbox") == {}
    assert home.files("failed")["bad.png"] == png("bad.png")
    told = json.loads(home.files("failed")["bad.png.error.json"])
    assert told["code"] == "internal"
    assert "ZeroDivisionError: a bug" in told["message"]
    faults = [line for line in lines if line["event"] == "internal_error"]
    assert [line["path"] for line in faults] == ["bad.png"] * 3, "bounded"
    assert isinstance(faults[0]["exc_info"], ZeroDivisionError), "with its traceback"


@pytest.mark.parametrize(("place", "method"), [(Originals, "copy"), (Reports, "add_archived")])
def test_a_fault_of_ours_while_archiving_keeps_that_original_and_no_other(
    house: Make, monkeypatch: pytest.MonkeyPatch, place: type, method: str
) -> None:
    home = house(watch=SOON)
    drop(home, "a.png", "bad.png", "c.png")
    with monkeypatch.context() as patch:
        failing(patch, place, method, when=lambda *given: any(map(is_bad, given)))
        home.live(10, times=12)
        assert set(home.files("outbox")) == {"a.png", "bad.png", "c.png"}
        assert {"a.png", "c.png"} <= set(home.files("archive"))
        assert "bad.png" in {**home.files("inbox"), **home.files("archive")}
        assert [job.name for job in home.service.jobs.active.values()] == ["bad.png"]
    home.live(70, times=3)
    assert home.states() == ["archived"] * 3


def test_a_fault_of_the_loop_is_outlasted_for_a_while(house: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    home = house(watch=SOON)
    with monkeypatch.context() as patch:
        failing(patch, Inbox, "look", when=lambda *_: True)
        home.live(10, times=loop.FAILED_ROUNDS_MAX)
    drop(home, "a.png")
    home.live(10, times=5)
    assert home.states() == ["archived"]
    failing(monkeypatch, Inbox, "look", when=lambda *_: True)
    with pytest.raises(ZeroDivisionError):
        home.live(10, times=loop.FAILED_ROUNDS_MAX + 1)


def test_a_fault_met_while_another_is_recorded_costs_no_other(
    house: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = house(watch=SOON)
    drop(home, "a.png", "bad.png", "c.png")
    failing(monkeypatch, Intake, "_is_complete", when=lambda *given: any(map(is_bad, given)))
    failing(monkeypatch, RetryPolicy, "internal_error", when=lambda *_: True)
    home.live(10, times=3 * loop.FAILED_ROUNDS_MAX)
    assert sorted(home.states()) == ["archived", "archived", "settling"]
    assert home.files("inbox").keys() == {"bad.png"}


def test_many_that_wait_for_another_try_leave_the_worker_to_others(
    house: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_memory(order: Order, progress: Any) -> Finished:
        if order.name.startswith("a"):
            raise ModelError(Code.OUT_OF_MEMORY, "no memory now", retryable=True)
        return passthrough.process(order, progress)

    worked = local.worked
    monkeypatch.setattr(local, "process", without_memory)
    # Slow ones: a quick worker would have more copied ahead.
    monkeypatch.setattr(local, "worked", lambda *given: lasting(worked(*given), 1.0))
    home = house(watch=SOON, protect={"attempts": 20})
    drop(home, *(f"a{number}.png" for number in range(40)), "z, the largest.png")
    home.turn(1, 6)
    assert set(home.files("archive")) == {"z, the largest.png"}
    assert home.states().count("ready") <= MOST_AHEAD * READY_AHEAD


def test_a_running_job_is_resumed_after_a_fault_elsewhere(
    house: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = house(watch=SOON)
    drop(home, "a.png")
    with monkeypatch.context() as patch:
        failing(patch, Dispatcher, "_conclude_all", when=lambda *_: True)
        home.live(10, times=2)
        assert home.states() == ["running"]
    home.live(10, times=3)
    assert home.states() == ["archived"]
    assert home.service.jobs.store.jobs()[0].attempts == 1


# The system says no


def refusing(monkeypatch: pytest.MonkeyPatch, error: Exception, *names: str) -> list[str]:
    """The child meets an error with some pictures; returns the names of those that it was given."""
    good, given = local.process, []

    def process(order: Order, progress: Any) -> Finished:
        given.append(order.name)
        if order.name in names:
            raise error
        return good(order, progress)

    monkeypatch.setattr(local, "process", process)
    return given


def test_a_picture_that_the_system_refuses_again_and_again_ends_while_others_are_worked(
    house: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = house(watch={**SOON, "priorities": {"urgent": 9}})
    refusing(monkeypatch, OSError(errno.EINVAL, "Invalid argument"), "urgent/bad.png")
    drop(home, "urgent/bad.png")
    for number in range(8):
        drop(home, f"{number}.png")
        home.turn(5, times=4)
    home.turn(5, times=4)
    assert len(home.files("outbox")) == 8
    told = json.loads(home.files("failed")["urgent/bad.png.error.json"])
    assert told["code"] == "internal"
    assert "others were worked while this one was refused" in told["message"]
    assert "Invalid argument" in told["message"]


def test_where_nobody_can_be_worked_nobody_fails(house: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    home = house(watch=SOON)
    with monkeypatch.context() as patch:
        refusing(patch, OSError(errno.EIO, "Input/output error"), "a.png", "b.png")
        drop(home, "a.png", "b.png")
        home.turn(20, times=20)
        assert home.files("failed") == {}
    home.turn(20, times=10)
    assert home.states() == ["archived"] * 2
    assert [job.attempts for job in home.service.jobs.store.jobs()] == [1, 1]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        ModelError(Code.MODEL, "weights are damaged", retryable=False),
    ],
    ids=["no space", "weights"],
)
def test_many_that_cannot_be_worked_now_let_others_pass(
    house: Make, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    home = house(watch=SOON)
    hindered = [f"{number:02}.png" for number in range(20)]
    with monkeypatch.context() as patch:
        given = refusing(patch, error, *hindered)
        drop(home, *hindered)
        home.turn(5, times=4)
        drop(home, "late.png")
        home.turn(5, times=60)
        assert set(home.files("outbox")) == {"late.png"}, "though twenty stood before it"
        assert home.files("failed") == {}, "a person can mend that"
        passed = given.index("late.png")
        drop(home, "later.png")
        home.turn(5, times=4)
        assert "later.png" in home.files("outbox")
        assert len(given) - passed < 200, "each waits longer every time"
    home.turn(120, times=20)
    assert set(home.files("outbox")) == {*hindered, "late.png", "later.png"}
    assert all(job.attempts == 1 for job in home.service.jobs.store.jobs())


def test_a_worker_that_cannot_be_started_is_waited_for(house: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    home = house(watch=SOON)
    drop(home, "a.png")

    def none(*_: object) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(pool, "Child", none)
        home.turn(5, times=6)
        assert home.states() == ["ready"]
    home.turn(40, times=3)
    assert home.states() == ["archived"]


def test_a_private_copy_that_somebody_cleared_away_is_made_anew(
    house: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = house(watch=SOON)
    drop(home, "a.png")
    with monkeypatch.context() as patch:
        patch.setattr(Dispatcher, "begin", lambda self: 0)
        home.turn(5, times=3)
    (job,) = home.service.jobs.active.values()
    assert job.state == JobState.READY
    home.service.jobs.spool(job).drop()
    home.turn(5, times=9)
    assert home.states() == ["archived"]


# Files that are too large


def test_a_file_of_terabytes_is_set_aside_unread(house: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    home = house(watch=SOON, limits={"free_mb": 0, "max_bytes": 1000})
    drop(home, "a.png")
    for name in ("huge.png", "small.png", "small.mask.png"):
        with (home.base / "inbox" / name).open("wb") as file:
            os.truncate(file.fileno(), 10 << 40 if name != "small.png" else 10)
    drop(home, "huge.mask.png")
    inodes = {path.name: path.stat().st_ino for path in (home.base / "inbox").iterdir()}
    opened: list[bytes] = []
    take = inbox.take

    def noted(root: Path, path: bytes, *rest: Any, **more: Any) -> inbox.Taken:
        opened.append(path)
        return take(root, path, *rest, **more)

    monkeypatch.setattr(inbox, "take", noted)
    home.turn(5, times=6)
    assert home.states() == ["archived", "failed", "failed"]
    assert opened == [b"a.png"]
    failed = home.base / "failed"
    found = {path.name: path.stat().st_ino for path in failed.iterdir() if path.suffix == ".png"}
    assert found == {name: inodes[name] for name in inodes if name != "a.png"}, "moved, not copied"
    for name in ("huge.png", "small.png"):
        told = json.loads((failed / f"{name}.error.json").read_bytes())
        assert told["code"] == "too_large"
        assert "limits.max_bytes allows 1000" in told["message"]
    assert "small.mask.png: has 10995116277760 bytes" in told["message"]
    for job in home.service.jobs.store.jobs(JobState.FAILED):
        assert jobs._put_back(job, home.settings), "retry, once the limit is higher"
    assert {path.name: path.stat().st_ino for path in (home.base / "inbox").iterdir()} == found
    assert list(failed.iterdir()) == []


def test_a_file_that_is_too_large_is_set_aside_once_however_often_we_die(
    house: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(BaseException):
        pass

    for call in ("link", "rename", "unlink", "fsync"):
        for number in range(20):
            home = house(watch=SOON, limits={"free_mb": 0, "max_bytes": 10})
            drop(home, "p.png")
            inode = (home.base / "inbox" / "p.png").stat().st_ino
            home.turn(5, times=2)
            real, left = getattr(os, call), number

            def dying(*given: Any, do: Any = real, **more: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    raise Crash
                return do(*given, **more)

            died = False
            with monkeypatch.context() as patch:
                patch.setattr(os, call, dying)
                try:
                    home.turn(5, times=3)
                except Crash:
                    died = True
            home.crash()
            home.again()
            home.turn(5, times=3)
            assert set(home.files("failed")) == {"p.png", "p.png.error.json"}
            assert (home.base / "failed" / "p.png").stat().st_ino == inode
            assert not [path for path in home.base.rglob(".backfire-*.part") if path.parent.name != "spool"]
            assert home.files("inbox") == {}
            home.crash()
            for path in (home.base / "failed").iterdir():
                path.unlink()
            if not died:
                break


def test_one_that_is_too_large_and_was_replaced_is_taken_after_all(
    house: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = house(watch=SOON, limits={"free_mb": 0, "max_bytes": 5000})
    (home.base / "inbox" / "p.png").write_bytes(b"0" * 5001)
    with monkeypatch.context() as patch:
        patch.setattr(SetAside, "step", lambda *_: None)
        home.turn(5, times=3)
    drop(home, "p.png")
    home.turn(5, times=9)
    assert home.states() == ["archived"]
    assert home.files("failed") == {}


def test_on_another_file_system_it_stays_where_it_is_until_somebody_moves_it(
    house: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = house(watch=SOON, limits={"free_mb": 0, "max_bytes": 10})
    drop(home, "p.png")
    link = os.link

    def across(source: Any, target: Any, **more: Any) -> None:
        if b"failed" in os.fsencode(target):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        link(source, target, **more)

    monkeypatch.setattr(os, "link", across)
    home.turn(5, times=6)
    assert home.states() == ["setting_aside"]
    assert "move it away yourself" in home.reasons()
    assert set(home.files("failed")) == {"p.png.error.json"}, "that says why"
    (home.base / "inbox" / "p.png").unlink()
    home.turn(60, times=3)
    assert home.states() == ["failed"]


def test_a_file_that_grows_for_ever_does_not_fill_the_spool(tmp_path: Path) -> None:
    source, length = tmp_path / "p.png", 3 << 20
    source.write_bytes(b"1" * length)
    copied = tmp_path / "copy"
    before = inbox.signature(tmp_path, b"p.png")
    assert before is not None

    class Growing:
        """Whatever is read of it, as much again is written."""

        def __init__(self) -> None:
            self.signs = 0

        def __call__(self) -> None:
            self.signs += 1
            assert self.signs < 50
            with source.open("ab") as file:
                file.write(b"1" * length)

    stop = durable.on_heartbeat(Growing())
    try:
        with pytest.raises(InputError) as caught:
            inbox.take(tmp_path, b"p.png", copied, before)
    finally:
        stop()
    assert caught.value.code == Code.CHANGED
    assert copied.stat().st_size <= length + (1 << 20)


# Originals whose private copy a power cut took


@pytest.mark.parametrize("then", ["overwritten in place", "replaced", "taken away", "left alone"])
def test_an_original_without_its_private_copy_is_archived_as_it_was_or_not_at_all(
    house: Make, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    class Crash(BaseException):
        pass

    def dying(*_: object, **__: object) -> None:
        raise Crash

    home = house(watch=SOON)
    drop(home, "p.png")
    source = home.base / "inbox" / "p.png"
    with monkeypatch.context() as patch:
        patch.setattr(Publisher, "archive", lambda *_: None)
        home.turn(5, times=3)
    (job,) = home.service.jobs.active.values()
    home.service.jobs.spool(job).drop()
    if then == "overwritten in place":  # after the copy was made, before the original was removed
        with monkeypatch.context() as patch:
            patch.setattr(Originals, "remove", dying)
            with pytest.raises(Crash):
                home.turn(5)
        with source.open("r+b") as file:
            file.write(png("newer"))
    elif then == "replaced":
        source.write_bytes(png("newer"))
    elif then == "taken away":
        source.unlink()
    home.crash()
    home.again()
    home.turn(5, times=12)
    assert home.states()[0] == "archived"
    archived = set(home.files("archive").values())
    known = then in ("overwritten in place", "left alone")
    assert (png("p.png") in archived) == known
    assert ("before it could be archived" in home.reasons()) != known
    if then in ("overwritten in place", "replaced"):
        assert png("newer") in home.files("outbox").values(), "the newer one has its turn"
        assert png("newer") in archived


# Masks that others need


@pytest.mark.parametrize("seen", [False, True], ids=["just dropped", "waiting"])
def test_a_mask_stays_for_another_picture_that_needs_it(house: Make, seen: bool) -> None:
    home = house(watch={**SOON, "settle_s": 2})
    drop(home, "p.png", "p.mask.png")
    home.turn(1, times=2)
    if seen:
        drop(home, "p.jpg")
    publish = home.service.publisher.archive

    def dropping(jobs: Any) -> None:
        if jobs and not seen:
            drop(home, "p.jpg")  # no scan has seen it
        publish(jobs)

    home.service.publisher.archive = dropping  # type: ignore[method-assign]
    while "archived" not in home.states():
        home.turn(1)
    assert set(home.files("inbox")) == {"p.jpg", "p.mask.png"}
    home.turn(1, times=8)
    assert home.files("inbox") == {}
    masks = [job.mask_sha256 for job in home.service.jobs.store.jobs()]
    assert masks[0] == masks[1] is not None, "both were worked under it"
    assert "p.mask.png" in home.files("archive")


def test_a_mask_stays_for_a_newer_picture_of_the_same_name(house: Make) -> None:
    home = house(watch=SOON)
    drop(home, "p.png", "p.mask.png")
    publish = home.service.publisher.archive

    def replacing(jobs: Any) -> None:
        if jobs:
            (home.base / "inbox" / "p.png").write_bytes(png("newer"))
        publish(jobs)

    home.service.publisher.archive = replacing  # type: ignore[method-assign]
    while "archived" not in home.states():
        home.turn(1)
    assert set(home.files("inbox")) == {"p.png", "p.mask.png"}


# Under which configuration


@pytest.mark.parametrize(("before", "after"), [("fail", "publish"), ("publish", "fail")])
@pytest.mark.parametrize("restart", [False, True])
def test_a_weak_result_is_judged_under_the_settings_it_was_worked_under(
    house: Make, monkeypatch: pytest.MonkeyPatch, before: str, after: str, restart: bool
) -> None:
    home = house(watch=SOON, verify={"on_weak": before})
    good = local.process

    def weak(order: Order, progress: Any) -> Finished:
        return replace(good(order, progress), verdict=Verdict.WEAK)

    monkeypatch.setattr(local, "process", weak)
    drop(home, "p.png")
    with monkeypatch.context() as patch:
        patch.setattr(RetryPolicy, "conclude", lambda *_: None)  # it is at work
        home.turn(5, times=2)
    other = home.settings.model_copy(
        update={"verify": home.settings.verify.model_copy(update={"on_weak": after})}
    )
    if restart:
        home.settings = other
        home.crash()
        home.again()
    else:
        home.service.load = lambda: other
        home.service.reload()
        home.turn(1)
        home.service.dispatcher.resume(crashed=False)  # it tells now
    home.turn(1, times=2)
    assert home.states() == ["failed" if before == "fail" else "archived"]


# A watchdog that watches


def test_a_scan_and_copies_of_many_minutes_leave_the_watchdog_fed(
    house: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = house(watch=SOON)
    drop(home, *(f"{number}/p.png" for number in range(10)))
    monkeypatch.setattr(durable, "PIECE", 16)
    monkeypatch.setattr(durable, "SYNCED", 64)
    # The worker's syncs belong to another process, by rights.
    monkeypatch.setattr(protocol, "durable", SimpleNamespace(sync=lambda path: None))

    def slowly(call: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*given: Any, **more: Any) -> Any:
            home.clock += 40
            return call(*given, **more)

        return slow

    for name in ("scandir", "fsync"):
        monkeypatch.setattr(os, name, slowly(getattr(os, name)))
    fed, rounds = [home.clock], [home.clock]
    monkeypatch.setattr(
        heartbeat, "notify", lambda *lines, **_: fed.append(home.clock) if "WATCHDOG=1" in lines else None
    )
    step = Intake.step

    def stopping(self: Intake, **more: Any) -> None:
        home.clock += 1
        rounds.append(home.clock)
        step(self, **more)
        if home.service.jobs.published == 10 or len(rounds) > 1000:
            home.service.stop()

    monkeypatch.setattr(Intake, "step", stopping)
    monkeypatch.setattr(loop, "Hints", lambda *_: home.hints)
    home.service.run()
    assert home.service.jobs.published == 10
    longest = [max(after - before for before, after in itertools.pairwise(times)) for times in (rounds, fed)]
    assert longest[0] > 1000, "a round of the loop took long"
    assert longest[1] < 120, "as WatchdogSec in the unit has it"
