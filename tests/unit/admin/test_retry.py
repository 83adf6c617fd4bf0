"""What `backfire retry` moves back, and what it leaves behind."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from hashlib import sha256

import numpy as np
import pytest

from backfire.admin.retry import put_back, retry
from backfire.detectors import Sidecar, Source
from backfire.detectors.sidecar import SidecarDetector
from backfire.errors import InputError, PublishError
from backfire.types import Job, JobState, mask_digest
from tests.support.page import Desk, desk
from tests.support.pictures import encoded, photo

__all__ = ["desk"]

GOOD = encoded(photo((160, 120)), "PNG")


def failed_by_masks(desk: Desk, masks: Mapping[str, bytes]) -> Job:
    """A picture that failed because of its masks, with the message that the detector gives."""
    sidecars = tuple(Sidecar(f"press/{name}", data) for name, data in masks.items())
    with pytest.raises(InputError) as refused:
        SidecarDetector().detect(np.zeros((120, 160, 3), np.uint8), source=Source("a.jpg", sidecars))
    job = desk.failed("press/a.jpg", refused.value.code)
    for name, data in masks.items():
        (desk.base / "failed/press" / name).write_bytes(data)
    digest = mask_digest([sha256(data).hexdigest() for data in masks.values()])
    return desk.store.update(
        job.id, job.state, at=desk.now, message=refused.value.message, mask_sha256=digest
    )


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.regions.json", b"{"),
        ("a.jpg.mask.png", b"no picture"),
        ("a.mask.png", encoded(photo((9, 9)), "PNG")),
    ],
)
def test_the_mask_that_failed_it_stays_behind_where_there_is_another(
    desk: Desk, name: str, data: bytes
) -> None:
    job = failed_by_masks(desk, {name: data})
    new = desk.base / "inbox/press/masks/a.png"
    new.parent.mkdir(parents=True)
    new.write_bytes(GOOD)
    assert put_back(job, desk.settings)
    assert {file.name for file in (desk.base / "inbox/press").iterdir()} == {"a.jpg", "masks"}
    assert (desk.base / "failed/press" / name).read_bytes() == data


def test_other_masks_and_the_only_one_go_back(desk: Desk) -> None:
    job = failed_by_masks(desk, {"a.mask.png": GOOD, "a.regions.json": b"{"})
    (desk.base / "inbox/press/masks").mkdir(parents=True)
    (desk.base / "inbox/press/masks/a.png").write_bytes(GOOD)
    assert put_back(job, desk.settings)
    inbox = {file.name for file in (desk.base / "inbox/press").iterdir()}
    assert inbox == {"a.jpg", "a.mask.png", "masks"}, "what it marks is protected, too"


def test_the_only_mask_goes_back_to_be_mended_there(desk: Desk) -> None:
    job = failed_by_masks(desk, {"a.regions.json": b"{"})
    assert put_back(job, desk.settings)
    assert {file.name for file in (desk.base / "inbox/press").iterdir()} == {"a.jpg", "a.regions.json"}


@pytest.mark.parametrize("read", [True, False])
def test_a_folder_that_it_makes_in_the_inbox_is_the_desks(desk: Desk, read: bool) -> None:
    job = desk.failed("press/a.jpg")
    if not read:  # as one that is too large to read
        told = {"file": "press/a.jpg", "input_sha256": None}
        (desk.base / "failed/press/a.jpg.error.json").write_text(json.dumps(told))
        job = desk.store.update(job.id, job.state, at=desk.now, input_sha256=None)
    (desk.base / "inbox").chmod(0o2770)
    before = os.umask(0o027)
    try:
        assert put_back(job, desk.settings)
    finally:
        os.umask(before)
    assert stat.S_IMODE((desk.base / "inbox/press").stat().st_mode) == 0o2770


def test_an_original_is_not_put_back_through_a_link(desk: Desk) -> None:
    job = desk.failed("press/a.jpg")
    (desk.base / "inbox/press").symlink_to("../outbox")
    with pytest.raises(PublishError, match="replace the link by a folder"):
        put_back(job, desk.settings)
    assert [*(desk.base / "outbox").iterdir()] == []
    assert (desk.base / "failed/press/a.jpg").exists()


@pytest.mark.parametrize("told", ["of it", "of another", "of none"])
def test_what_was_mended_in_failed_goes_back(desk: Desk, told: str) -> None:
    job = desk.failed("press/a.jpg")
    file, note = desk.base / "failed/press/a.jpg", desk.base / "failed/press/a.jpg.error.json"
    about = job.input_sha256 if told == "of it" else "f" * 64
    if told != "of none":
        note.write_text(json.dumps({"file": "press/a.jpg", "input_sha256": about}))
    file.write_bytes(GOOD)
    assert put_back(job, desk.settings) == (told == "of it")
    assert (desk.base / "inbox/press/a.jpg").exists() == (told == "of it")
    assert file.exists() == (told != "of it")
    assert note.exists() == (told == "of another")


def test_a_later_file_that_was_taken_away_is_no_other_try(desk: Desk) -> None:
    job = desk.failed("a.jpg")
    (desk.base / "failed/a.jpg").unlink()
    desk.job("a.jpg", JobState.SKIPPED)
    why = retry(job, desk.settings, desk.config, desk.store)
    assert why is not None
    assert "its original is gone" in why
