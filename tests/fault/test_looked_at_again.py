"""What lies beside a picture is looked at again before it is published, by the same rules as at first."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.support.house import House
from tests.support.jobs import picture

Make = Callable[..., House]
SOON = {"settle_s": 1, "rescan_s": 1, "mask_wait_s": 0, "incomplete_wait_s": 0}


@pytest.mark.parametrize(
    ("ignore", "ignored"),
    [
        (None, ".__annotations.coco.json"),  # what macOS leaves on a share
        (["*.json"], "p.json"),
        (["masks"], "masks/p.png"),
    ],
)
def test_what_is_ignored_is_ignored_then_too(house: Make, ignore: list[str] | None, ignored: str) -> None:
    home = house(watch=SOON if ignore is None else {**SOON, "ignore": ignore})
    home.drop("p.png", content=picture(1))
    home.drop(ignored, content=b"not read")
    home.turn(times=6)
    assert home.states() == ["archived"]
    assert set(home.files("outbox")) == {"p.png"}
    assert "changed" not in home.reasons()


@pytest.mark.parametrize("shut", ["d", "d/masks"])
def test_a_folder_that_cannot_be_read_then_is_waited_for(
    house: Make, monkeypatch: pytest.MonkeyPatch, shut: str
) -> None:
    home = house(watch=SOON, regions={"detectors": ["sidecar", "faces"]})
    home.drop("d/p.png", "d/masks/p.png", "other.png")
    home.silent = True
    home.turn(times=4)
    home.silent = False
    scandir = os.scandir

    def refused(path: bytes) -> object:
        if path == os.fsencode(home.base / "inbox" / shut):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    home.turn(5, times=3)
    assert sorted(home.files("outbox")) == ["other.png"]
    assert "Permission denied" in home.reasons()
    assert "changed" not in home.reasons()
    monkeypatch.undo()
    home.turn(60, times=4)
    assert home.states() == ["archived", "archived"]
    assert set(home.files("archive")) == {"d/p.png", "d/masks/p.png", "other.png"}
    assert [name for batch in home.sent for name in batch].count("d/p.png") == 1
