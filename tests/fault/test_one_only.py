"""One bad picture, one bad mask or one internal error costs one job, and the other jobs go on."""

from __future__ import annotations

import errno
import itertools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from backfire.admin import retry
from backfire.errors import Code, InputError, ModelError
from backfire.files import durable, inbox
from backfire.pipeline.result import PhaseProgress
from backfire.service import loop
from backfire.service.dispatcher import Dispatcher
from backfire.service.inbox import Inbox
from backfire.service.intake import MOST_AHEAD, READY_AHEAD, Intake
from backfire.service.originals import Originals
from backfire.service.publisher import Publisher
from backfire.service.reports import Reports
from backfire.service.retry_policy import RetryPolicy
from backfire.service.worker import child
from backfire.service.worker.protocol import Finished, Order
from backfire.types import JobState, Verdict
from benchmarks import passthrough
from benchmarks.soak import png
from tests.support.bugs import about, bug
from tests.support.house import SOON, Call, House
from tests.support.notified import Notified
from tests.support.system import Died, below, calling, dying, failing, full, named

Make = Callable[..., House]

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
    """Printing tracebacks would take longer than everything else here."""
    with capture_logs():
        yield


@pytest.mark.parametrize("place", BEFORE_IT_IS_OUT)
def test_an_internal_error_costs_the_one_job(house: Make, place: str) -> None:
    home = house(watch=SOON)
    home.drop("a.png", "bad.png", "c.png")
    with bug(*BEFORE_IT_IS_OUT[place], when=about("bad.png")):
        if place == "reporting":  # setting it aside needs a report, too, and is tried for ever
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
def test_an_internal_error_while_archiving_keeps_that_original_and_no_other(
    house: Make, place: type, method: str
) -> None:
    home = house(watch=SOON)
    home.drop("a.png", "bad.png", "c.png")
    with bug(place, method, when=about("bad.png")):
        home.live(10, times=12)
        assert set(home.files("outbox")) == {"a.png", "bad.png", "c.png"}
        assert {"a.png", "c.png"} <= set(home.files("archive"))
        assert "bad.png" in {**home.files("inbox"), **home.files("archive")}
        assert [job.name for job in home.service.jobs.active.values()] == ["bad.png"]
    home.live(70, times=3)
    assert home.states() == ["archived"] * 3


def test_an_internal_error_of_the_loop_ends_the_daemon_only_if_it_stays(house: Make) -> None:
    home = house(watch=SOON)
    with bug(Inbox, "look"):
        home.live(10, times=loop.FAILED_ROUNDS_MAX)
    home.drop("a.png")
    home.live(10, times=5)
    assert home.states() == ["archived"]
    with bug(Inbox, "look"), pytest.raises(ZeroDivisionError):
        home.live(10, times=loop.FAILED_ROUNDS_MAX + 1)


def test_an_internal_error_while_another_is_recorded_costs_no_other_job(house: Make) -> None:
    home = house(watch=SOON)
    home.drop("a.png", "bad.png", "c.png")
    with bug(Intake, "_is_complete", when=about("bad.png")), bug(RetryPolicy, "internal_error"):
        home.live(10, times=3 * loop.FAILED_ROUNDS_MAX)
    assert sorted(home.states()) == ["archived", "archived", "settling"]
    assert home.files("inbox").keys() == {"bad.png"}


def test_many_that_wait_for_another_attempt_leave_the_worker_to_others(house: Make) -> None:
    def without_memory(order: Order, progress: PhaseProgress) -> Finished:
        if order.name.startswith("a"):
            raise ModelError(Code.OUT_OF_MEMORY, "no memory now", retryable=True)
        return passthrough.process(order, progress)

    home = house(watch=SOON, protect={"attempts": 20})
    # Slow, because for a quick worker more pictures are copied ahead.
    home.process, home.seconds = without_memory, 1.0
    home.drop(*(f"a{number}.png" for number in range(40)), "z, the largest.png")
    home.turn(1, 6)
    assert set(home.files("archive")) == {"z, the largest.png"}
    assert home.states().count("ready") <= MOST_AHEAD * READY_AHEAD


def test_a_running_job_is_resumed_after_an_internal_error_elsewhere(house: Make) -> None:
    home = house(watch=SOON)
    home.drop("a.png")
    with bug(Dispatcher, "_conclude_all"):
        home.live(10, times=2)
        assert home.states() == ["running"]
    home.live(10, times=3)
    assert home.states() == ["archived"]
    assert home.service.jobs.store.jobs()[0].attempts == 1


# Errors of the system


def refusing(error: Exception, *names: str) -> child.Process:
    """A worker that meets an error with some pictures."""

    def process(order: Order, progress: PhaseProgress) -> Finished:
        if order.name in names:
            raise error
        return passthrough.process(order, progress)

    return process


def test_a_picture_that_the_system_refuses_again_and_again_ends_while_others_are_worked(house: Make) -> None:
    home = house(watch={**SOON, "priorities": {"urgent": 9}})
    home.process = refusing(OSError(errno.EINVAL, "Invalid argument"), "urgent/bad.png")
    home.drop("urgent/bad.png")
    for number in range(8):
        home.drop(f"{number}.png")
        home.turn(5, times=4)
    home.turn(5, times=4)
    assert len(home.files("outbox")) == 8
    told = json.loads(home.files("failed")["urgent/bad.png.error.json"])
    assert told["code"] == "internal"
    assert "others were worked while this one was refused" in told["message"]
    assert "Invalid argument" in told["message"]


def test_where_no_picture_can_be_worked_none_fails(house: Make) -> None:
    home = house(watch=SOON)
    home.process = refusing(OSError(errno.EIO, "Input/output error"), "a.png", "b.png")
    home.drop("a.png", "b.png")
    home.turn(20, times=20)
    assert home.files("failed") == {}
    home.process = passthrough.process
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
def test_many_that_cannot_be_worked_now_let_others_pass(house: Make, error: Exception) -> None:
    home = house(watch=SOON)
    hindered = [f"{number:02}.png" for number in range(20)]
    home.process = refusing(error, *hindered)
    home.drop(*hindered)
    home.turn(5, times=4)
    home.drop("late.png")
    home.turn(5, times=60)
    assert set(home.files("outbox")) == {"late.png"}, "though twenty stood before it"
    assert home.files("failed") == {}, "a person can mend that"
    given = [name for batch in home.sent for name in batch]
    home.drop("later.png")
    home.turn(5, times=4)
    assert "later.png" in home.files("outbox")
    since = sum(map(len, home.sent)) - given.index("late.png")
    assert since < 200, "each waits longer every time"
    home.process = passthrough.process
    home.turn(120, times=20)
    assert set(home.files("outbox")) == {*hindered, "late.png", "later.png"}
    assert all(job.attempts == 1 for job in home.service.jobs.store.jobs())


def unstartable(house: House) -> Call:
    raise OSError(errno.EAGAIN, "Resource temporarily unavailable")


def test_a_worker_that_cannot_be_started_is_waited_for(house: Make) -> None:
    home = house(watch=SOON)
    home.drop("a.png")
    home.hire = unstartable
    home.turn(5, times=6)
    assert home.states() == ["ready"]
    home.hire = Call
    home.turn(40, times=3)
    assert home.states() == ["archived"]


def test_a_private_copy_that_somebody_cleared_away_is_made_anew(house: Make) -> None:
    home = house(watch=SOON)
    home.drop("a.png")
    home.hire = unstartable
    home.turn(5, times=3)
    (job,) = home.service.jobs.active.values()
    assert job.state == JobState.READY
    home.service.jobs.spool(job).drop()
    home.hire = Call
    home.turn(5, times=9)
    assert home.states() == ["archived"]


# Files that are too large


def test_a_file_of_terabytes_is_set_aside_unread(house: Make) -> None:
    home = house(watch=SOON, limits={"free_mb": 0, "max_bytes": 1000})
    home.drop("a.png")
    for name in ("huge.png", "small.png", "small.mask.png"):
        with (home.base / "inbox" / name).open("wb") as file:
            os.truncate(file.fileno(), 10 << 40 if name != "small.png" else 10)
    home.drop("huge.mask.png")
    inodes = {path.name: path.stat().st_ino for path in (home.base / "inbox").iterdir()}
    opened: set[bytes] = set()

    def noted(real: Callable[..., int], path: Any, *given: Any, **more: Any) -> int:
        opened.add(os.path.basename(os.fsencode(path)))
        return real(path, *given, **more)

    with calling("open", noted):
        home.turn(5, times=6)
    assert home.states() == ["archived", "failed", "failed"]
    assert opened & set(map(os.fsencode, inodes)) == {b"a.png"}
    failed = home.base / "failed"
    found = {path.name: path.stat().st_ino for path in failed.iterdir() if path.suffix == ".png"}
    assert found == {name: inodes[name] for name in inodes if name != "a.png"}, "moved, not copied"
    for name in ("huge.png", "small.png"):
        told = json.loads((failed / f"{name}.error.json").read_bytes())
        assert told["code"] == "too_large"
        assert "limits.max_bytes allows 1000" in told["message"]
    assert "small.mask.png: has 10995116277760 bytes" in told["message"]
    for job in home.service.jobs.store.jobs(JobState.FAILED):
        assert retry.put_back(job, home.settings), "retry, once the limit is higher"
    assert {path.name: path.stat().st_ino for path in (home.base / "inbox").iterdir()} == found
    assert list(failed.iterdir()) == []


def test_a_file_that_is_too_large_is_set_aside_once_however_often_the_daemon_dies(house: Make) -> None:
    for call in ("link", "rename", "unlink", "fsync"):
        for number in range(20):
            home = house(watch=SOON, limits={"free_mb": 0, "max_bytes": 10})
            home.drop("p.png")
            inode = (home.base / "inbox" / "p.png").stat().st_ino
            home.turn(5, times=2)
            died = False
            with dying(call, after=number):
                try:
                    home.turn(5, times=3)
                except Died:
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


def test_a_file_that_was_too_large_and_is_replaced_by_a_small_one_is_worked(house: Make) -> None:
    home = house(watch=SOON, limits={"free_mb": 0, "max_bytes": 5000})
    home.drop("p.png", content=bytes(5001))
    with full(home.base / "failed"):
        home.turn(5, times=3)
    assert home.states() == ["setting_aside"]
    home.drop("p.png")
    home.turn(5, times=12)
    assert home.states() == ["archived"]
    assert home.files("failed") == {}


def test_a_file_that_is_too_large_stays_where_it_is_if_the_failed_folder_is_on_another_file_system(
    house: Make,
) -> None:
    home = house(watch=SOON, limits={"free_mb": 0, "max_bytes": 10})
    home.drop("p.png")
    with failing("link", number=errno.EXDEV, when=below(home.base / "failed")):
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
        """Writes as much again for each piece that is read."""

        def __init__(self) -> None:
            self.pieces = 0

        def __call__(self) -> None:
            self.pieces += 1
            assert self.pieces < 50
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


# Originals whose private copies were lost in a power cut


@pytest.mark.parametrize("then", ["overwritten in place", "replaced", "taken away", "left alone"])
def test_an_original_without_its_private_copy_is_archived_as_it_was_or_not_at_all(
    house: Make, then: str
) -> None:
    home = house(watch=SOON)
    home.drop("p.png")
    source = home.base / "inbox" / "p.png"
    with full(home.base / "archive"):
        home.turn(5, times=3)
    (job,) = home.service.jobs.active.values()
    assert job.state == JobState.PUBLISHED
    home.service.jobs.spool(job).drop()
    if then == "overwritten in place":  # after the copy was made, before the original was removed
        with dying("rename", after=0), pytest.raises(Died):
            home.turn(5, times=12)
        assert home.files("archive")["p.png"] == png("p.png")
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
        assert png("newer") in home.files("outbox").values(), "the newer one is worked, too"
        assert png("newer") in archived


# Masks that others need


@pytest.mark.parametrize("seen", [False, True], ids=["just dropped", "waiting"])
def test_a_mask_stays_for_another_picture_that_needs_it(house: Make, seen: bool) -> None:
    home = house(watch={**SOON, "settle_s": 2})
    home.drop("p.png", "p.mask.png")
    home.turn(1, times=2)
    if seen:
        home.drop("p.jpg")
    publish = home.service.publisher.archive

    def dropping(jobs: Any) -> None:
        if jobs and not seen:
            home.drop("p.jpg")  # no scan has seen it
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
    home.drop("p.png", "p.mask.png")
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
    house: Make, before: str, after: str, restart: bool
) -> None:
    home = house(watch=SOON, verify={"on_weak": before})

    def weak(order: Order, progress: PhaseProgress) -> Finished:
        return replace(passthrough.process(order, progress), verdict=Verdict.WEAK)

    home.process, home.silent = weak, True
    home.drop("p.png")
    home.turn(5, times=2)
    assert home.states() == ["running"]
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
    home.silent = False
    home.turn(1, times=2)
    assert home.states() == ["failed" if before == "fail" else "archived"]


# The watchdog of systemd


def test_a_scan_and_copies_that_take_many_minutes_leave_the_watchdog_fed(
    house: Make, monkeypatch: pytest.MonkeyPatch, notified: Notified
) -> None:
    home = house(watch={**SOON, "mode": "polling"})
    home.drop(*(f"{number}/p.png" for number in range(10)))
    # Each file has several pieces.
    monkeypatch.setattr(durable, "PIECE", 16)
    monkeypatch.setattr(durable, "SYNCED", 64)
    home.seconds = 0.0  # a quick worker, so that several results are published in one round
    fed, rounds = [home.clock], [home.clock]

    def note() -> None:
        if "WATCHDOG=1" in notified.read():
            fed.append(home.clock)

    # A worker syncs in a process of its own.
    by_worker = named("output", "receipt.json", "result.json.part")

    def slowly(real: Callable[..., Any], *given: Any, **more: Any) -> Any:
        if not by_worker(*given):
            note()
            home.clock += 40
        return real(*given, **more)

    step = home.service.intake.step

    def in_rounds(**more: Any) -> None:
        note()
        home.clock += 1
        rounds.append(home.clock)
        step(**more)

    home.service.intake.step = in_rounds  # type: ignore[method-assign]
    with calling("scandir", slowly), calling("fsync", slowly):
        home.service.run(until_idle=True)
    note()
    rounds.append(home.clock)
    assert home.service.jobs.published == 10
    longest = [max(after - before for before, after in itertools.pairwise(times)) for times in (rounds, fed)]
    assert longest[0] > 1000, "a round of the loop took long"
    assert longest[1] < 120, "as WatchdogSec in the unit has it"
