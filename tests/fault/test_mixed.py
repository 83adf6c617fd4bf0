"""Faults in the middle of a batch: each costs the job that it happens to, once, and no other."""

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
from backfire.files import manifest, outbox
from backfire.pipeline.result import PhaseProgress
from backfire.service.dispatcher import Dispatcher
from backfire.service.jobs import Jobs
from backfire.service.retry_policy import RetryPolicy
from backfire.service.worker import child, protocol
from backfire.service.worker.protocol import Failed, Finished, GivenBack, Hindered, Order, Outcome, Progress
from backfire.types import Job, JobState
from benchmarks import passthrough
from benchmarks.soak import png
from tests.fault.test_batches import attempts, begin, settled
from tests.support.bugs import about, bug
from tests.support.house import SOON, Call, House
from tests.support.system import below, failing, full, named

Make = Callable[..., House]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with capture_logs():
        yield


# Reload


def test_what_is_handed_back_after_a_reload_is_taken_in_under_the_new_configuration(
    house: Make,
) -> None:
    home = settled(house, 4)
    home.batch_s = -1.0
    begin(home)
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
    home.batch_s = 1.0
    home.turn(1, 8)
    assert home.states() == ["archived"] * 4
    jobs = home.service.jobs.store.jobs()
    keys = {job.name: job.config_sha256 for job in jobs}
    assert [keys[f"{number}.png"] for number in range(4)] == [home.settings.sha256] + [new.sha256] * 3


# The worker's process


class Broken(Call):
    """A process that has died before it gets its orders."""

    def send(self, message: Any) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


class Hung(Call):
    """A process that takes orders and was last heard of long ago."""

    def send(self, message: Any) -> None:
        self.heard = time.monotonic() - 5


def test_a_worker_that_died_before_it_began_costs_no_picture_an_attempt(house: Make) -> None:
    home = house(watch=SOON, protect={"attempts": 1})
    home.drop("a.png", "b.png")
    home.hire = Broken
    home.turn(5, 6)
    assert set(attempts(home).values()) == {0}
    assert home.worker.pauses > 0, "it does not start processes that cannot live in a loop"
    home.hire = Call
    home.turn(40, 6)
    assert home.states() == ["archived"] * 2


def test_a_worker_that_hangs_at_its_start_costs_no_picture_an_attempt(house: Make) -> None:
    home = house(watch=SOON, protect={"attempts": 1}, limits={"silence_s": 1, "free_mb": 0})
    home.drop("a.png")
    home.hire = Hung
    home.turn(5, 6)
    assert set(attempts(home).values()) == {0}
    home.hire = Call
    home.turn(40, 6)
    assert home.states() == ["archived"]


@pytest.mark.parametrize("error", [BrokenPipeError(errno.EPIPE, "Broken pipe"), EOFError()])
def test_an_error_that_looks_like_that_of_a_closed_pipe_does_not_end_the_worker(
    tmp_path: Path, error: Exception
) -> None:
    def process(*_: Any) -> Finished:
        raise error

    settings = config.parse({"folders": {"inbox": "inbox"}}, base=tmp_path)
    orders = [Order(1, 1, tmp_path, "p.png", (), settings)]
    (outcome,) = child.work(orders, Told(), process)  # type: ignore[arg-type]
    assert isinstance(outcome, Failed | Hindered)
    assert outcome.code == "internal"


class Told:
    """The worker's end of a pipe, whose other end is silent, or closed."""

    def __init__(self, *, gone: bool = False) -> None:
        self.gone = gone

    def poll(self) -> bool:
        return self.gone

    def recv(self) -> None:
        raise EOFError

    def send(self, messages: list[Any]) -> None:
        pass


def test_a_worker_whose_daemon_is_gone_stops(tmp_path: Path) -> None:
    settings = config.parse({"folders": {"inbox": "inbox"}}, base=tmp_path)
    orders = [Order(number, 1, tmp_path, "p.png", (), settings) for number in (1, 2)]
    outcomes = child.work(orders, Told(gone=True))  # type: ignore[arg-type]
    assert [type(outcome) for outcome in outcomes] == [GivenBack, GivenBack]


class Busy(Call):
    """A process that never ends what it was given first."""

    def send(self, message: Any) -> None:
        assert not self.jobs, "it is still at work"
        self.jobs = {order.job: order.lease for order in message}


def test_a_worker_that_is_still_at_work_gets_no_further_orders(house: Make) -> None:
    """It would take them for a request to stop, and nobody would work on them."""
    home = settled(house, 8)
    home.hire = Busy
    begin(home)
    home.worker.running = {}  # as an internal error may leave it
    home.service.dispatcher.resume(crashed=False)
    home.clock += 60
    home.service.dispatcher.begin()
    assert set(attempts(home).values()) == {1}


# Pace and pauses


def test_what_was_handed_back_does_not_count_as_quick(house: Make) -> None:
    home = settled(house, 16)
    home.batch_s, home.seconds = -1.0, 0.2
    begin(home)
    home.worker.pace = 8
    home.service.dispatcher.listen(0)
    assert home.worker.pace == 1, "the one that it began took 0.2 s"


def test_one_cause_that_hinders_many_jobs_at_once_is_one_pause(house: Make) -> None:
    home = settled(house, 8)
    with failing("fsync", number=errno.ENOSPC, when=named("result.json.part")):
        begin(home)
        home.service.dispatcher.listen(0)
    assert home.worker.pauses == 1
    assert set(attempts(home).values()) == {0}
    home.turn(5, 8)
    assert home.states() == ["archived"] * 8


# Duplicates


def test_a_result_that_cannot_be_published_delays_neither_duplicates_nor_others(house: Make) -> None:
    home = house(watch=SOON)
    with failing("open", number=errno.EACCES, when=below(home.base / "outbox" / "sub")):
        home.drop(*(f"sub/{number}.png" for number in range(20)), content="the same")
        home.turn(5, 3)
        home.drop("duplicate.png", content="the same")
        home.drop("other.png")
        home.turn(5, 40)
    assert set(home.files("archive")) == {"duplicate.png", "other.png"}


# Publishing


def taken(home: House) -> list[str]:
    """Take all results out of the outbox, as a user may do; returns their names."""
    found = [*home.files("outbox")]
    for name in found:
        (home.base / "outbox" / name).unlink()
    return found


def test_a_result_taken_before_it_was_recorded_is_not_published_again(
    house: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = house(watch=SOON)
    monkeypatch.setattr(manifest, "LOCK_S", 0)
    home.drop("a.png", "b.png")
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
    house: Make, crashed: bool
) -> None:
    home = house(watch=SOON)
    home.drop("a.png", content="former")
    with failing("write", number=errno.ENOSPC, when=named(".sha256")):
        home.turn(5, 4)
    assert set(home.files("outbox")) == {"a.png"}
    home.drop("a.png", content="later")
    if crashed:
        home.crash()
        home.again()
    home.turn(100, 6)
    listed = {entry.sha256 for entry in manifest.read(home.base / "outbox").entries}
    assert listed == {hashlib.sha256(png(content)).hexdigest() for content in ("former", "later")}
    assert len(home.files("outbox")) == 2, "the former one was published and stays"
    assert [*home.files("archive").values()] == [png("later")]


def test_an_internal_error_while_publishing_leaves_the_others_published_once(house: Make) -> None:
    home = house(watch=SOON)
    home.drop("a.png", "bad.png", "c.png")
    got = list[str]()
    with bug(outbox, "place", when=lambda content, folder, path: path == b"bad.png"):
        for _ in range(12):
            home.live(10)
            got += taken(home)
    assert sorted(got) == ["a.png", "c.png"]
    assert "bad.png" in home.files("failed")


def test_an_internal_error_after_a_result_is_out_does_not_set_its_original_aside(house: Make) -> None:
    home = house(watch=SOON)
    home.drop("bad.png")
    with bug(Jobs, "update", when=lambda self, job, state: job.name == "bad.png" and state == "published"):
        home.live(10, times=12)
    assert set(home.files("outbox")) == {"bad.png"}
    assert home.files("failed") == {}


def test_a_mask_without_its_private_copy_stays_in_the_inbox(house: Make) -> None:
    home = house(watch=SOON)
    home.drop("p.png", "p.mask.png")
    with full(home.base / "archive"):
        home.turn(5, times=3)
    (job,) = home.service.jobs.active.values()
    assert job.state == JobState.PUBLISHED
    home.service.jobs.spool(job).mask(0).unlink()
    home.turn(5, times=4)
    kept = {**home.files("inbox"), **home.files("archive")}
    assert set(kept) == {"p.png", "p.mask.png"}


# The end of the daemon, and internal errors while several jobs run


def test_an_internal_error_when_the_daemon_ends_costs_no_other_job_an_attempt(house: Make) -> None:
    home = settled(house, 4)
    home.stuck = True
    begin(home)
    bad = next(iter(home.worker.running.values()))
    with bug(RetryPolicy, "conclude", when=about(bad.name)):
        home.service.dispatcher.drain()
    states = {job.name: (job.state.value, job.attempts) for job in home.service.jobs.store.jobs()}
    assert states.pop(bad.name) == ("running", 1)
    assert set(states.values()) == {("ready", 0)}


@pytest.mark.parametrize(("place", "method"), [(Dispatcher, "_order"), (RetryPolicy, "_hindered")])
def test_an_internal_error_in_the_middle_of_a_batch_costs_one_job(
    house: Make, place: type, method: str
) -> None:
    home = settled(house, 6)

    def process(order: Order, progress: PhaseProgress) -> Finished:
        if order.name == "3.png" and method == "_hindered":
            raise OSError(errno.EIO, "Input/output error")
        return passthrough.process(order, progress)

    home.process = process
    home.worker.pace = 8
    with bug(place, method, when=about("3.png")):
        home.live(10, times=14)
    assert sorted(home.states()) == ["archived"] * 5 + ["failed"]
    assert [job.attempts for job in home.service.jobs.store.jobs() if job.state == "archived"] == [1] * 5


def test_an_internal_error_when_a_worker_dies_leaves_the_attempt_with_the_culprit(house: Make) -> None:
    home = settled(house, 4)
    home.stuck = True
    begin(home)
    running = [*home.worker.running.values()]
    first, culprit = running[:2]
    home.children[-1].report_and_die(Progress(job.id, job.lease, "start", 0, 1) for job in running[:2])
    spool = home.service.jobs.spool(first)
    protocol.write_result(spool.folder, Failed(first.id, first.lease, Code.UNREADABLE, "m"))

    def unreadable(self: RetryPolicy, job: Job, outcome: Outcome) -> bool:
        return isinstance(outcome, Failed) and outcome.code == Code.UNREADABLE

    home.worker.paused_until = 1e12
    with bug(RetryPolicy, "conclude", when=unreadable):
        home.live(10, times=6)
    found = attempts(home)
    assert found[culprit.name] == 1
    assert all(found[job.name] == 0 for job in running[2:])
