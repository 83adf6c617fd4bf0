"""Results that are finished at the same time are put in place together, and no job harms another by that."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable

import pytest

from backfire.files.parallel import in_parallel
from tests.support.house import House
from tests.support.system import below, calling, failing


def test_they_share_the_syncs_of_folders(house: Callable[..., House]) -> None:
    home = house(watch={"settle_s": 2, "rescan_s": 1})
    names = [f"{number}.png" for number in range(12)]
    home.drop(*names)
    home.turn(1, 2)
    synced: Counter[str] = Counter()

    def counted(real: Callable[[int], None], descriptor: int) -> None:
        real(descriptor)
        place = os.readlink(f"/proc/self/fd/{descriptor}")
        synced[os.path.relpath(place, home.base) if os.path.isdir(place) else "files"] += 1

    with calling("fsync", counted):
        home.turn(1, 3)
    assert set(home.files("outbox")) == set(home.files("archive")) == set(names)
    # The receipts are written twice; outbox and archive hold a new manifest too.
    assert {place: synced[place] for place in ("reports", "outbox", "archive")} == {
        "reports": 2,
        "outbox": 2,
        "archive": 2,
    }


def test_one_that_cannot_be_placed_holds_up_no_other(house: Callable[..., House]) -> None:
    home = house(watch={"settle_s": 2, "rescan_s": 1})
    with failing("open", number=errno.EACCES, when=below(home.base / "outbox" / "sub")):
        home.drop("a.png", "sub/b.png", "c.png")
        home.turn(1, 8)
    assert set(home.files("archive")) == {"a.png", "c.png"}
    assert set(home.files("inbox")) == {"sub/b.png"}
    home.turn(5, 3)
    assert set(home.files("outbox")) == {"a.png", "sub/b.png", "c.png"}


def test_the_same_content_under_several_names_at_once_is_worked_once(house: Callable[..., House]) -> None:
    home = house(watch={"settle_s": 2, "rescan_s": 1})
    home.drop("a.png", "b.png", "c.png", content="the same")
    home.turn(1, 8)
    assert set(home.files("outbox")) == {"a.png", "b.png", "c.png"}
    assert sum(map(len, home.sent)) == 1


def test_in_parallel_keeps_the_order_and_tries_all_before_it_raises() -> None:
    assert in_parallel(lambda number: number * number, range(20)) == [number * number for number in range(20)]
    done: list[int] = []

    def step(number: int) -> None:
        if number == 3:
            raise OSError(number)
        done.append(number)

    with pytest.raises(OSError, match="3"):
        in_parallel(step, range(20))
    assert sorted(done) == [number for number in range(20) if number != 3]
