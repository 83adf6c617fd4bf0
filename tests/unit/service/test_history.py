"""Which ended jobs are forgotten, and that a clock that leaps ahead costs none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from backfire.service.store.retention import DAY_S, History
from backfire.service.store.store import Store
from backfire.types import JobState

YEAR = 365 * DAY_S


class Clocks:
    wall, steady = 1e9, 50.0

    def pass_(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "jobs.db") as found:
        (job,) = found.add([b"p.png"], at=1e9)
        found.update(job.id, JobState.SKIPPED, at=1e9)
        yield found


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


def started(store: Store, clocks: Clocks) -> History:
    clocks.steady = 0.0  # as after a boot
    return History(store, lambda: clocks.wall, lambda: clocks.steady)


def test_what_is_old_is_forgotten(store: Store, clocks: Clocks) -> None:
    history = started(store, clocks)
    forgotten = 0
    for _ in range(366):
        clocks.pass_(DAY_S)
        assert history.prune(0) == 0
        forgotten += history.prune(365)
    assert forgotten == 1


def test_a_clock_that_leaps_forgets_nothing_until_it_is_set_right(store: Store, clocks: Clocks) -> None:
    history = started(store, clocks)
    assert history.prune(365) == 0
    clocks.wall += 10 * YEAR
    with capture_logs() as lines:
        for _ in range(23):
            clocks.pass_(3600)
            assert history.prune(365) == 0
    assert [line["event"] for line in lines] == ["clock_jump"], "it is logged once"
    clocks.wall -= 10 * YEAR
    clocks.pass_(2 * DAY_S)
    assert history.prune(365) == 0
    assert len(store.jobs()) == 1


def test_a_clock_that_leapt_before_a_restart_forgets_nothing(store: Store, clocks: Clocks) -> None:
    started(store, clocks).prune(365)
    clocks.wall += 10 * YEAR
    for _ in range(5):
        history = started(store, clocks)
        store.set_fact("daemon", {}, at=clocks.wall)  # a heartbeat
        clocks.pass_(7200)
        assert history.prune(365) == 0


def test_a_clock_that_leapt_before_an_upgrade_forgets_nothing(store: Store, clocks: Clocks) -> None:
    store.set_fact("daemon", {}, at=clocks.wall)
    clocks.wall += 10 * YEAR
    assert started(store, clocks).prune(365) == 0


def test_after_a_year_out_of_use_it_forgets_again_a_day_later(store: Store, clocks: Clocks) -> None:
    started(store, clocks).prune(365)
    clocks.wall += 2 * YEAR
    history = started(store, clocks)
    assert history.prune(365) == 0
    clocks.pass_(DAY_S)
    assert history.prune(365) == 1


def test_a_clock_that_is_set_back_forgets_nothing(store: Store, clocks: Clocks) -> None:
    history = started(store, clocks)
    clocks.wall -= 5 * YEAR
    assert history.prune(365) == 0
    assert store.jobs()
