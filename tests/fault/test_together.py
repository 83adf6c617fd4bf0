"""What is finished at the same time is put in place together, and no job is another's trouble for it."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from backfire.files.outbox import writing
from backfire.files.parallel import in_parallel
from backfire.service.worker.protocol import Order
from benchmarks.soak import png
from tests.support.house import Call, House


@pytest.fixture
def worked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the orders that the child got."""
    names: list[str] = []
    send = Call.send

    def noted(self: Call, messages: list[object]) -> None:
        names.extend(message.name for message in messages if isinstance(message, Order))
        send(self, messages)

    monkeypatch.setattr(Call, "send", noted)
    return names


def drop(house: House, *names: str, content: str = "") -> None:
    for name in names:
        target = house.base / "inbox" / name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(png(content or name))


def test_they_share_the_syncs_of_folders(
    house: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = house(watch={"settle_s": 2, "rescan_s": 1})
    names = [f"{number}.png" for number in range(12)]
    drop(home, *names)
    home.turn(1, 2)
    synced: Counter[str] = Counter()
    fsync = os.fsync

    def counted(descriptor: int) -> None:
        fsync(descriptor)
        place = os.readlink(f"/proc/self/fd/{descriptor}")
        synced[os.path.relpath(place, home.base) if os.path.isdir(place) else "files"] += 1

    monkeypatch.setattr(os, "fsync", counted)
    home.turn(1, 3)
    assert set(home.files("outbox")) == set(home.files("archive")) == set(names)
    # The receipts are written twice; outbox and archive hold a new manifest too.
    assert {place: synced[place] for place in ("reports", "outbox", "archive")} == {
        "reports": 2,
        "outbox": 2,
        "archive": 2,
    }


def test_one_that_cannot_be_placed_holds_up_no_other(
    house: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = house(watch={"settle_s": 2, "rescan_s": 1})
    create = writing.create

    def refusing(path: bytes, **rights: Any) -> Any:
        if b"/outbox/sub/" in path:
            raise PermissionError(errno.EACCES, "Permission denied")
        return create(path, **rights)

    with monkeypatch.context() as patch:
        patch.setattr(writing, "create", refusing)
        drop(home, "a.png", "sub/b.png", "c.png")
        home.turn(1, 8)
    assert set(home.files("archive")) == {"a.png", "c.png"}
    assert set(home.files("inbox")) == {"sub/b.png"}
    home.turn(5, 3)
    assert set(home.files("outbox")) == {"a.png", "sub/b.png", "c.png"}


def test_the_same_content_is_worked_once_though_it_comes_together(
    house: Callable[..., House], worked: list[str]
) -> None:
    home = house(watch={"settle_s": 2, "rescan_s": 1})
    drop(home, "a.png", "b.png", "c.png", content="the same")
    home.turn(1, 8)
    assert set(home.files("outbox")) == {"a.png", "b.png", "c.png"}
    assert len(worked) == 1


def test_in_parallel_keeps_the_order_and_ends_all_before_it_raises() -> None:
    assert in_parallel(lambda number: number * number, range(20)) == [number * number for number in range(20)]
    done: list[int] = []

    def step(number: int) -> None:
        if number == 3:
            raise OSError(number)
        done.append(number)

    with pytest.raises(OSError, match="3"):
        in_parallel(step, range(20))
    assert sorted(done) == [number for number in range(20) if number != 3]
