"""What the daemon says of the jobs in work when it stops, with the real policy and store."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from backfire.config import parse
from backfire.errors import Code
from backfire.pipeline.result import PhaseProgress
from backfire.service.worker.local import Child
from backfire.service.worker.protocol import (
    Failed,
    Finished,
    GivenBack,
    Hindered,
    Interrupted,
    Order,
    Outcome,
    Progress,
    write_result,
)
from backfire.types import Job
from tests.support.house import SOON, House, house

__all__ = ["house"]


@pytest.mark.parametrize(
    ("outcome", "state", "again"),
    [
        (lambda job: Failed(job.id, job.lease, Code.DETECTOR, "m"), "setting_aside", False),
        (lambda job: Failed(job.id, job.lease, Code.DETECTOR, "m", retryable=True), "ready", True),
        (lambda job: Hindered(job.id, job.lease, Code.MODEL, "m"), "ready", True),
        (lambda job: GivenBack(job.id, job.lease), "ready", True),
    ],
    ids=["failed", "retryable", "hindered", "given back"],
)
def test_what_a_worker_says_last_decides_whether_a_picture_is_done_again(
    house: Callable[..., House], outcome: Callable[[Job], Outcome], state: str, again: bool
) -> None:
    home = house(watch=SOON)
    home.stuck = True
    home.drop("a.png")
    home.turn(times=5)
    (job,) = home.worker.running.values()
    home.children[-1].say(outcome(job))
    with capture_logs() as logs:
        home.service.dispatcher.drain()
    assert home.states() == [state]
    assert [line["again"] for line in logs if line["event"] == "drained"] == [again]


def test_a_picture_that_kills_the_worker_before_each_stop_is_set_aside(house: Callable[..., House]) -> None:
    """As when the kernel kills the worker and the service manager then stops the daemon, again and again."""
    home = house(watch=SOON, protect={"attempts": 2})
    home.stuck = True
    home.drop("bad.png")
    for attempt in (1, 2):
        home.turn(5, times=6)
        (job,) = home.worker.running.values()
        home.children[-1].say(Interrupted(job.id, job.lease, "worker died: killed by SIGKILL", killed=True))
        home.service.stop()
        home.service.run()
        assert [job.attempts for job in home.service.jobs.store.jobs()] == [attempt]
        home.crash()
        home.again()
    home.turn(5, times=6)
    assert home.states() == ["quarantined"]
    (job,) = home.service.jobs.store.jobs()
    assert "died 2 times" in str(job.message)


def test_a_result_that_a_worker_left_before_it_died_is_used(house: Callable[..., House]) -> None:
    home = house(watch=SOON)
    home.stuck = True
    home.drop("a.png")
    home.turn(times=5)
    (job,) = home.worker.running.values()
    write_result(home.service.jobs.spool(job).folder, Failed(job.id, job.lease, Code.DETECTOR, "m"))
    home.children[-1].say(Interrupted(job.id, job.lease, "worker died"))
    home.service.dispatcher.drain()
    assert home.states() == ["setting_aside"]


def killed(order: Order, progress: PhaseProgress) -> Finished:
    """Works as a picture that exhausts the memory; at module level, so that the process can import it."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def test_a_worker_that_had_died_before_the_stop_says_on_which_picture(tmp_path: Path) -> None:
    settings = parse({"folders": {"inbox": "inbox"}}, base=tmp_path)
    orders = [Order(number, 5, tmp_path, f"{number}.png", (), settings) for number in (1, 2)]
    for has_heard in (True, False):  # what it reported may lie in the pipe still
        child = Child(process=killed)
        child.send(orders)
        child._process.join(60)  # a busy machine takes a while to start it
        assert child.exitcode == -signal.SIGKILL
        if has_heard:
            child.receive(60)
        assert child.stop(60) == [Interrupted(1, 5, "worker died: killed by SIGKILL", killed=True)]


def asleep(order: Order, progress: PhaseProgress) -> Finished:
    """Hangs: it neither reports nor hears anything."""
    time.sleep(3600)
    raise AssertionError


def test_a_worker_that_hangs_is_killed(tmp_path: Path) -> None:
    child = Child(process=asleep)
    child.send([Order(1, 1, tmp_path, "p.png", (), parse({"folders": {"inbox": "inbox"}}, base=tmp_path))])
    assert [type(told) for told in child.receive(60)] == [Progress]
    child.kill()
    assert child.exitcode == -signal.SIGKILL
