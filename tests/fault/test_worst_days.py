"""Several troubles at once, and what one of them must not do to the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from daemon import worker
from tests.fault.books import picture
from tests.fault.house import House

Make = Callable[..., House]
SOON: dict[str, Any] = {"settle_s": 1, "mask_wait_s": 0, "incomplete_wait_s": 0}


def drop(house: House, name: str, data: bytes) -> None:
    file = house.base / "inbox" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)


def test_an_outcome_that_waited_out_a_database_failure_is_not_taken_for_the_next_job(house: Make) -> None:
    home = house(watch=SOON)
    drop(home, "a.png", picture(1)[:-20])
    drop(home, "b.png", picture(2))
    dispatcher, books = home.service._dispatcher, home.service._ledger
    home.service._intake.step()
    home.clock += 5
    home.service._intake.step()
    home.clock += 5
    home.service._intake.step()
    assert dispatcher.step(), "the child works a.png and tells, while the database fails"
    books.load()
    dispatcher.resume(crashed=False)
    home.turn(5, times=5)
    assert (list(home.files("outbox")), home.states()) == (["b.png"], ["failed", "archived"])
    assert set(home.files("failed")) == {"a.png", "a.png.error.json"}


def test_an_error_of_a_library_about_one_picture_does_not_hold_up_the_others(
    house: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = house(watch=SOON)
    good = worker._process

    def process(order: worker.Order, progress: Any) -> worker.Outcome:
        if order.name == "a.png":
            raise OSError("encoder error -2 when writing image file")  # as Pillow raises it, without errno
        return good(order, progress)

    monkeypatch.setattr(worker, "_process", process)
    drop(home, "a.png", picture(1))
    drop(home, "b.png", picture(2))
    home.turn(5, times=8)
    assert (list(home.files("outbox")), home.states()) == (["b.png"], ["failed", "archived"])


def test_a_result_that_cannot_be_written_down_burns_no_attempt(
    house: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = house(watch=SOON)
    write = worker.Outcome.write

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(worker.Outcome, "write", full)
    drop(home, "a.png", picture(1))
    home.turn(5, times=6)
    (job,) = home.service._ledger.jobs.values()
    assert (job.state, job.attempts) == ("ready", 0)
    monkeypatch.setattr(worker.Outcome, "write", write)
    home.turn(40, times=4)
    assert home.states() == ["archived"]


def test_a_rule_decides_how_often_its_pictures_are_tried(
    house: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from daemon.errors import Code, ModelError

    home = house(watch=SOON, rules=[{"match": "once/**", "attempts": 1}])

    def process(order: worker.Order, progress: Any) -> worker.Outcome:
        raise ModelError(Code.DETECTOR, "no luck")

    monkeypatch.setattr(worker, "_process", process)
    drop(home, "once/a.png", picture(1))
    home.turn(5, times=6)
    assert home.states() == ["failed"]
