"""Decisions about held and weak pictures, as they are recorded: what is refused, and what stays as it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backfire.admin import review
from backfire.errors import StoreError
from backfire.files import outbox
from backfire.service.held import masks_beside
from backfire.service.store.store import Store
from backfire.types import JobState, Verdict
from tests.support.page import Desk, desk
from tests.support.pictures import encoded, mask_picture

__all__ = ["desk"]

MASK = encoded(mask_picture((160, 120), (10, 10, 60, 60)))
MINE = encoded(mask_picture((160, 120), (70, 70, 90, 90)))


@pytest.mark.parametrize(
    "extra",
    [
        {"regions": {"detectors": ["faces"]}},
        {"rules": [{"match": "press/*", "regions": {"detectors": ["faces"]}}]},
    ],
)
def test_a_mask_that_nothing_would_read_is_refused(tmp_path: Path, extra: dict[str, object]) -> None:
    desk = Desk(tmp_path, extra=extra)
    job = desk.held("press/a.jpg")
    with pytest.raises(review.DecisionRefused, match=r"regions\.detectors are faces, expected sidecar"):
        review.add_mask(desk.settings, job.id, "drawn.png", MASK, by="anna")
    assert desk.store.get(job.id).state == JobState.REVIEW  # type: ignore[union-attr]
    assert [file.name for file in (tmp_path / "review/press").iterdir()] == ["a.jpg"]


def test_a_mask_replaces_none_that_lies_beside_the_picture_or_waits_in_the_inbox(desk: Desk) -> None:
    job = desk.held("a.jpg")
    (desk.base / "review/a.mask.png").write_bytes(MINE)
    (desk.base / "inbox/a.jpg.mask.png").write_bytes(MINE)
    review.add_mask(desk.settings, job.id, "drawn.png", MASK, by="anna")
    assert (desk.base / "review/a.mask.png").read_bytes() == MINE
    assert (desk.base / "review/masks/a.png").read_bytes() == MASK
    assert set(masks_beside(desk.base / "review", job, b"a.jpg", {}, {}, ())) == {
        b"a.mask.png",
        b"masks/a.png",
    }


def test_where_all_names_are_taken_a_mask_is_refused(desk: Desk) -> None:
    job = desk.held("a.jpg")
    (desk.base / "review/masks").mkdir()
    for name in ("a.mask.png", "a.jpg.mask.png", "masks/a.png", "masks/a.jpg.png"):
        (desk.base / "review" / name).write_bytes(MINE)
    with pytest.raises(review.DecisionRefused, match="files lie under all names of its masks"):
        review.add_mask(desk.settings, job.id, "drawn.png", MASK, by="anna")


def test_the_mask_of_a_picture_whose_name_was_taken_is_found_when_it_is_released(desk: Desk) -> None:
    desk.held("a.jpg")
    job = desk.held("a.jpg")
    key = "f" * 64
    job = desk.store.update(job.id, job.state, at=desk.now, key=key)
    place = desk.base / "review" / outbox.keyed(desk.base / "review", b"a.jpg", key).decode()
    (desk.base / "review/a.jpg").rename(place)
    (desk.base / "review/a.jpg").write_bytes(b"another held picture")
    review.add_mask(desk.settings, job.id, "drawn.png", MASK, by="anna")
    (mask,) = masks_beside(desk.base / "review", job, os.fsencode(place.name), {}, {}, ())
    assert mask == outbox.keyed(desk.base / "review", b"a.mask.png", key)


def test_a_decision_that_comes_too_late_leaves_the_masks_as_they_were(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = desk.held("a.jpg")
    (desk.base / "review/a.mask.png").write_bytes(MINE)

    def late(*_: object, **__: object) -> None:
        raise StoreError("another process was first")

    monkeypatch.setattr(Store, "decide", late)
    with pytest.raises(StoreError):
        review.add_mask(desk.settings, job.id, "drawn.png", MASK, by="anna")
    assert sorted(file.name for file in (desk.base / "review").iterdir()) == ["a.jpg", "a.mask.png"]
    assert (desk.base / "review/a.mask.png").read_bytes() == MINE


def test_what_is_accepted_stays_a_picture_of_the_day_on_which_it_was_published(desk: Desk) -> None:
    desk.now -= 700_000
    job = desk.published("a.png", Verdict.WEAK)
    accepted = review.accept(desk.settings, job.id, by="anna")
    assert (accepted.updated, accepted.is_accepted) == (job.updated, True)
    assert desk.store.history(job.id)[-1].at > job.updated + 600_000, "the history says when that was"


def test_a_weak_picture_whose_original_is_not_archived_yet_is_accepted_later(desk: Desk) -> None:
    job = desk.job("a.png", JobState.PUBLISHED, verdict=Verdict.WEAK)
    with pytest.raises(review.DecisionRefused, match="its original is still being archived; accept it after"):
        review.accept(desk.settings, job.id, by="anna")
