"""A quick worker gets several jobs at a time; if it dies, only the job that it worked on loses an attempt."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backfire import config
from backfire.service.worker import child
from backfire.service.worker.protocol import Finished, Order, Outcome, Progress
from backfire.types import Job
from benchmarks import passthrough
from benchmarks.soak import png
from tests.support.house import House
from tests.support.system import Died

Make = Callable[..., House]


def settled(make: Make, count: int, **sections: Any) -> House:
    """A house with that many pictures, which the next turn takes in and has worked."""
    home = make(watch={"settle_s": 2, "rescan_s": 1}, **sections)
    home.live()  # the first round takes up what a crash left: nothing
    home.drop(*(f"{number}.png" for number in range(count)))
    home.turn(1, 2)
    return home


def attempts(home: House) -> dict[str, int]:
    return {job.name: job.attempts for job in home.service.jobs.active.values()}


def begin(home: House) -> None:
    """Give all pictures to the worker as one batch."""
    home.clock += 1
    home.worker.pace = 8
    home.service.intake.step(ahead=8)
    home.service.dispatcher.begin()


def test_batches_double_while_the_worker_is_quick(house: Make) -> None:
    home = settled(house, 40)
    home.seconds = 0.0
    home.turn(1, 6)
    assert home.states() == ["archived"] * 40
    assert [len(batch) for batch in home.sent][:4] == [1, 2, 4, 8]
    assert sum(map(len, home.sent)) == 40, "none is worked twice"


def test_a_slow_worker_gets_one_job_at_a_time(house: Make) -> None:
    home = settled(house, 12)
    home.seconds = 2.0
    home.turn(1, 15)
    assert [len(batch) for batch in home.sent] == [1] * 12
    assert home.states() == ["archived"] * 12


def test_what_a_worker_has_not_begun_in_time_is_handed_back_without_an_attempt(house: Make) -> None:
    home = settled(house, 8)
    home.batch_s = -1.0
    begin(home)
    assert set(attempts(home).values()) == {1}, "recorded before the work, which may kill the daemon"
    home.service.dispatcher.listen(0)
    assert sorted(attempts(home).values()) == [0] * 7 + [1]
    assert len(home.sent) == 1
    home.batch_s = 1.0
    home.turn(1, 6)
    assert home.states() == ["archived"] * 8


class Heard:
    """The daemon's end of a worker's pipe, which notes what it hears."""

    def __init__(self) -> None:
        self.outcomes: list[list[str]] = []

    def poll(self) -> bool:
        return False

    def recv(self) -> object:
        raise AssertionError

    def send(self, obj: Sequence[Progress | Outcome]) -> None:
        if ended := [type(one).__name__ for one in obj if not isinstance(one, Progress)]:
            self.outcomes.append(ended)


def test_what_has_ended_is_reported_while_a_long_picture_is_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(child, "time", SimpleNamespace(monotonic=lambda: now))
    orders = []
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "input").write_bytes(png("a"))
        settings = config.parse({"folders": {"inbox": "inbox"}}, base=tmp_path)
        orders.append(Order(number, 1, folder, f"{number}.png", (), settings))
    heard = Heard()

    def process(order: Order, progress: Callable[[str, int, int], None]) -> Finished:
        nonlocal now
        if order.job == 1:
            now += 2 * child.BATCH_S
            progress("optimise", 1, 2)
            assert heard.outcomes == [["Finished"]], "the first one is known before this one ends"
            assert (orders[0].folder / "result.json").exists(), "and outlasts a crash of both"
        return passthrough.process(order, progress)

    rest = child.work(orders, heard, process)
    assert [type(one).__name__ for one in rest] == ["Finished", "GivenBack"]
    assert heard.outcomes == [["Finished"]], "none is reported twice"


def test_a_worker_that_dies_costs_only_the_job_that_it_worked_on_an_attempt(house: Make) -> None:
    home = settled(house, 8)
    home.stuck = True
    begin(home)
    running = [*home.worker.running.values()]
    culprit = running[3]
    home.children[-1].report_and_die(Progress(job.id, job.lease, "start", 0, 1) for job in running[:4])
    home.service.dispatcher.listen(1)
    assert attempts(home) == {job.name: int(job is culprit) for job in running}
    assert "worker died: exit code 3" in home.reasons()


@pytest.mark.parametrize("allowed", [1, 3])
def test_a_daemon_that_dies_again_and_again_sets_aside_no_picture_but_the_culprit(
    house: Make, allowed: int
) -> None:
    home = settled(house, 6, protect={"attempts": allowed})

    def killing(order: Order, progress: Callable[[str, int, int], None]) -> Finished:
        if order.name == "3.png":
            raise Died
        return passthrough.process(order, progress)

    home.process = killing
    for _ in range(allowed):
        home.worker.pace = 8
        with pytest.raises(Died):
            home.turn(1, 8)
        home.crash()
        home.again()
    assert home.sent[-1] == ["3.png"], "it made its last attempt alone"
    home.turn(1, 8)
    assert sorted(home.states()) == ["archived"] * 5 + ["quarantined"]
    assert set(home.files("failed")) == {"3.png", "3.png.error.json"}


def test_when_the_daemon_ends_it_takes_all_jobs_of_a_batch_back(house: Make) -> None:
    home = settled(house, 8)
    home.stuck = True
    begin(home)
    home.service.dispatcher.drain()
    assert home.states() == ["ready"] * 8
    assert set(attempts(home).values()) == {0}


def test_a_result_that_was_damaged_in_the_spool_is_worked_again(house: Make) -> None:
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
    assert home.files("outbox") == {name: png(name) for name in ("0.png", "1.png")}
    assert sum(batch.count("1.png") for batch in home.sent) == 2


WITHOUT_THREADS = """
import resource, threading
from backfire.files.parallel import in_parallel
threading.stack_size(1 << 30)
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
print(in_parallel(lambda number: number + 1, range(20)) == [*range(1, 21)], threading.active_count())
"""


def test_in_parallel_does_without_threads_where_none_can_be_started() -> None:
    """The stack of a thread is larger than all memory that the process may have."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_THREADS], capture_output=True, text=True, check=True)
    assert done.stdout == "True 1\n"
