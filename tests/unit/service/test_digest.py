"""One message for a folder and batch, over jobs of a service whose worker is a function."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from backfire.service.hooks.digest import Digest
from backfire.service.worker.protocol import Finished, Order
from backfire.types import Verdict
from benchmarks import passthrough
from tests.support.house import House, house
from tests.support.pictures import encoded, photo

__all__ = ["house"]

HOOKS = {"events": ["digest"], "command": ["/bin/true"], "digest_s": 10}
SOON = {"settle_s": 1, "mask_wait_s": 0, "incomplete_wait_s": 0, "rescan_s": 1}


@pytest.fixture
def home(house: Callable[..., House]) -> House:
    """Pictures called weak are published as weak; what is no picture fails."""

    def process(order: Order, progress: Callable[[str, int, int], None]) -> Finished:
        done = passthrough.process(order, progress)
        return replace(done, verdict=Verdict.WEAK if "weak" in order.name else Verdict.PROTECTED)

    home = house(watch=SOON, hooks=HOOKS)
    home.process = process
    return home


def drop(home: House, *names: str, data: bytes | None = None) -> None:
    for number, name in enumerate(names):
        file = home.base / "inbox" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(encoded(photo(seed=number)) if data is None else data)


def told(home: House) -> list[dict[str, Any]]:
    """The messages that wait to be delivered, oldest first."""
    files = (home.base / "state" / "hooks").glob("*.json")
    messages = [json.loads(file.read_bytes())["payload"] for file in files]
    return sorted(messages, key=lambda message: (message["at"], message["folder"]))


def test_one_message_is_sent_for_a_batch_once_it_is_done_and_quiet(home: House) -> None:
    drop(home, "desk/a.png", "desk/b.png", "desk/weak.png")
    drop(home, "desk/bad.png", data=b"")
    home.turn(times=12)
    assert sorted(home.states()) == ["archived", "archived", "archived", "failed"]
    assert told(home) == []
    home.turn(times=12)
    (message,) = told(home)
    assert message["message"] == "desk: 2 protected, 1 weak, 1 failed"
    assert message["files"] == {"weak": ["desk/weak.png"], "failed": ["desk/bad.png"]}
    home.turn(seconds=20, times=5)
    assert len(told(home)) == 1


def test_each_folder_and_each_later_batch_has_a_message_of_its_own(home: House) -> None:
    drop(home, "desk/a.png")
    drop(home, "b.png")
    home.turn(times=30)
    drop(home, "desk/c.png")
    home.turn(times=30)
    messages = sorted(message["message"] for message in told(home))
    assert messages == ["desk: 1 protected", "desk: 1 protected", "inbox: 1 protected"]
    assert len({message["id"] for message in told(home)}) == 3


def test_jobs_that_ended_before_a_crash_are_in_one_message_after_it(
    home: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.turn(times=4)
    drop(home, "desk/a.png", "desk/b.png")
    home.turn(times=8)
    assert told(home) == []
    with monkeypatch.context() as killed:  # as by SIGKILL: nothing is sent at the end
        killed.setattr(Digest, "step", lambda *_, **__: None)
        home.crash()
    assert told(home) == []
    home.again()
    home.turn(times=30)
    (message,) = told(home)
    assert message["message"] == "desk: 2 protected"
    home.crash()
    home.again()
    home.turn(times=30)
    assert told(home) == [message]


def test_at_the_end_of_the_process_the_message_is_sent_at_once(home: House) -> None:
    drop(home, "desk/a.png")
    home.turn(times=8)
    assert told(home) == []
    home.crash()
    assert [message["message"] for message in told(home)] == ["desk: 1 protected"]


def test_a_folder_that_is_never_quiet_has_a_message_every_hour(house: Callable[..., House]) -> None:
    home = house(watch=SOON, hooks={**HOOKS, "digest_s": 900})
    for number in range(9):
        drop(home, f"desk/{number}.png")
        home.turn(times=4)
        home.turn(seconds=600)
    (message,) = told(home)
    assert message["counts"] == {"protected": 6}


def test_without_a_receiver_no_message_is_sent(house: Callable[..., House]) -> None:
    home = house(watch=SOON, hooks={"command": ["/bin/true"]})
    drop(home, "desk/a.png")
    home.turn(times=30)
    assert [message["event"] for message in told(home)] == ["published"]
