"""What the daemon says of the jobs in work when it stops, with the real policy and store."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from backfire.errors import Code
from backfire.service.worker.protocol import Failed, GivenBack, Hindered, Outcome
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
