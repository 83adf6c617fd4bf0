"""A region that was drawn on the page: where its mask goes, and that none stays where nothing came of it."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from backfire.admin.retry import put_back
from backfire.cli.page import options_of
from backfire.config import Sidecars
from backfire.detectors.sidecar import marked
from backfire.imaging import decode_painting
from backfire.types import Job, JobState
from backfire.web import actions, paint
from backfire.web.options import Options
from tests.support.page import Desk
from tests.support.pictures import encoded, photo, turned

FORM = {"left": "10", "top": "20", "width": "30", "height": "40"}


class Painting:
    """Paints in this process."""

    def paint(self, what: str, files: list[int], **more: Any) -> bytes | None:
        return paint.ORDERS[what](*map(paint._content, files), **more)


def options(desk: Desk) -> Options:
    told = options_of(desk.settings, desk.config, ("127.0.0.1", desk.port))
    return Options.from_json(told.to_json())


def drawn(desk: Desk, job: Job) -> str:
    return actions.act("region", job, FORM, options(desk), Painting()).key  # type: ignore[arg-type]


def inbox(desk: Desk) -> set[str]:
    return {file.name for file in (desk.base / "inbox").iterdir()}


@pytest.mark.parametrize("colour", ["white", "black"])
def test_what_is_drawn_is_what_is_protected_whichever_paint_that_is(tmp_path: Path, colour: str) -> None:
    regions = {"sidecar": {"protected": colour}}
    desk = Desk(tmp_path, extra={"rules": [{"match": "press/*", "regions": regions}]})
    paint_of = options(desk).mask_paint_of
    assert (paint_of(b"press/a.jpg"), paint_of(b"a.jpg")) == (colour, "white")
    mask = paint.mask(encoded(photo((160, 120))), actions.drawn(FORM), paint=paint_of(b"press/a.jpg"))
    assert mask is not None
    found = marked(decode_painting(mask, name="m.png", max_pixels=10**6), Sidecars(protected=colour))  # type: ignore[arg-type]
    assert found[20:60, 10:40].all()
    assert found.sum() == 30 * 40


def test_no_region_is_offered_or_taken_where_masks_are_not_read(tmp_path: Path) -> None:
    desk = Desk(tmp_path, extra={"regions": {"detectors": ["faces"]}})
    held, failed = desk.held("a.jpg"), desk.failed("b.jpg")
    assert [actions.offered(job, options(desk)) for job in (held, failed)] == [
        ["whole", "release"],
        ["retry"],
    ]
    assert {drawn(desk, job) for job in (held, failed)} == {"no_region_now"}
    assert inbox(desk) == set()


def test_why_there_is_no_mask_is_told(desk: Desk) -> None:
    job = desk.failed("a.jpg")

    class Failing(Painting):
        def paint(self, what: str, files: list[int], **more: Any) -> None:
            return None

    class Sizeless(Painting):
        def paint(self, what: str, files: list[int], **more: Any) -> bytes | None:
            return None if what == "size" else super().paint(what, files, **more)

    def told(form: dict[str, str], painting: Painting) -> str:
        return actions.act("region", job, form, options(desk), painting).key  # type: ignore[arg-type]

    one = {"rectangle": [9, 9, 20, 20]}
    assert told(FORM, Failing()) == "not_painted"
    assert told({**FORM, "drawn_on": "160x120"}, Sizeless()) == "not_painted"
    assert told({}, Failing()) == "no_region_drawn"
    assert told({"shapes": '[{"rectangle": [900, 900, 950, 950]}]'}, Painting()) == "no_region_drawn", (
        "it is outside"
    )
    assert told({"shapes": json.dumps([one] * (actions.MOST_SHAPES + 1))}, Painting()) == "too_much"
    assert inbox(desk) == set()


@pytest.mark.parametrize(("drawn_on", "came"), [("160x120", "drawn_on_other"), ("120x160", None), ("", None)])
def test_a_region_that_was_drawn_on_a_picture_turned_in_another_way_is_refused(
    desk: Desk, drawn_on: str, came: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions, "_command", lambda *_: None)
    job = desk.failed("a.webp", data=turned(photo((160, 120)), "WEBP"))
    form = {**FORM, "drawn_on": drawn_on}
    outcome = actions.act("region", job, form, options(desk), Painting())  # type: ignore[arg-type]
    assert outcome.key == (came or "region_saved")
    assert (inbox(desk) == set()) == bool(came)
    assert outcome.message == ("160x120 / 120x160" if came else "")


def test_a_region_for_a_picture_that_moved_on_is_refused(desk: Desk) -> None:
    assert drawn(desk, desk.published("a.png")) == "no_region_now"
    assert drawn(desk, desk.job("b.jpg", JobState.RELEASING, data=b"b")) == "no_region_now"
    assert inbox(desk) == set()


def test_a_mask_is_not_put_beside_another_picture_of_that_name(desk: Desk) -> None:
    job = desk.failed("a.jpg")
    (desk.base / "inbox/a.jpg").write_bytes(b"another one")
    assert drawn(desk, job) == "name_taken"
    assert inbox(desk) == {"a.jpg"}


def test_a_mask_of_somebody_else_in_the_inbox_is_left_alone(desk: Desk) -> None:
    job = desk.failed("a.jpg")
    (desk.base / "inbox/a.mask.png").write_bytes(b"mine")
    assert drawn(desk, job) == "mask_taken"
    assert (desk.base / "inbox/a.mask.png").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("code", "message", "moved"),
    [
        ("weak", "weak: why", {"a.mask.png", "a.jpg.mask.png"}),
        ("mask_size", "mask press/a.mask.png: has another size", {"a.jpg.mask.png"}),
    ],
)
def test_masks_that_a_failed_picture_came_with_count_beside_what_is_drawn(
    desk: Desk, code: str, message: str, moved: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = desk.failed("press/a.jpg", code)
    (desk.base / "failed/press/a.mask.png").write_bytes(b"came with it")
    digest = sha256(b"came with it").hexdigest()
    job = desk.store.update(job.id, job.state, at=desk.now, message=message, mask_sha256=digest)
    monkeypatch.setattr(actions, "_command", lambda *_: None if put_back(job, desk.settings) else "why")
    assert drawn(desk, job) == "region_saved"
    assert {file.name for file in (desk.base / "inbox/press").iterdir()} == {"a.jpg", *moved}
    kept = desk.base / ("inbox" if "a.mask.png" in moved else "failed") / "press/a.mask.png"
    assert kept.read_bytes() == b"came with it"


def test_no_mask_stays_in_the_inbox_where_the_picture_is_not_tried_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def refuse(*_: object) -> str:
        seen.append(inbox(desk))
        return "it was tried again as job 7"

    monkeypatch.setattr(actions, "_command", refuse)
    assert drawn(desk, desk.failed("a.jpg")) == "action_failed"
    assert (seen, inbox(desk)) == ([{"a.mask.png"}], set())
