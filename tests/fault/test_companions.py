"""Files that are no pictures: they go where their picture's original goes, or stay, and nothing fails."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from backfire import config
from backfire.admin import review
from backfire.admin.audit import audit
from backfire.files import inbox
from backfire.service.intake import READY_AHEAD
from backfire.service.store.store import Store
from tests.support import nothing_found
from tests.support.house import House
from tests.support.jobs import picture
from tests.support.sandbox import Sandbox
from tests.support.system import below, failing

Make = Callable[..., House]
SOON = {"settle_s": 2, "rescan_s": 1, "mask_wait_s": 0, "incomplete_wait_s": 0}
XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"


def drop(home: House, name: str, data: bytes) -> None:
    target = home.base / "inbox" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)


@pytest.mark.parametrize(
    "name",
    [
        "a.xmp", "a.png.xmp", "A.AAE", "a.MOV", "a.png.dop", "a.pp3", "a.txt", "a.cr3",
        "a.png:Zone.Identifier", "a.pngZone.Identifier",
    ],
)  # fmt: skip
def test_a_companion_goes_into_the_archive_and_never_into_the_outbox(house: Make, name: str) -> None:
    home = house(watch=SOON)
    drop(home, f"d/{name}", b"beside it")
    drop(home, "d/a.png", picture())
    home.turn(times=10)
    assert home.states() == ["archived"]
    assert set(home.files("archive")) == {"d/a.png", f"d/{name}"}
    assert set(home.files("outbox")) == {"d/a.png"}
    assert home.files("inbox") == {}
    kept = audit(home.settings, list)
    assert kept.findings == ()


def test_where_the_picture_fails_they_go_with_it(house: Make) -> None:
    home = house(watch=SOON)
    drop(home, "a.xmp", XMP)
    drop(home, "a.png", picture()[:-30])
    home.turn(times=10)
    assert home.states() == ["failed"]
    assert set(home.files("failed")) == {"a.png", "a.xmp", "a.png.error.json"}


def test_they_go_to_review_and_back(house: Make) -> None:
    home = house(watch=SOON)
    home.process = nothing_found.process
    drop(home, "a.xmp", XMP)
    drop(home, "a.png", picture())
    home.turn(times=10)
    assert home.states() == ["review"]
    assert set(home.files("review")) == {"a.png", "a.xmp", "a.png.review.json"}
    review.release(home.settings, 1, by="anna")
    home.turn(times=10)
    assert home.states() == ["archived"]
    assert set(home.files("archive")) == {"a.png", "a.xmp"}
    assert home.files("review") == home.files("inbox") == {}


def test_one_that_comes_late_follows(house: Make) -> None:
    home = house(watch=SOON)
    drop(home, "a.png", picture())
    home.turn(times=10)
    drop(home, "a.xmp", XMP)
    home.turn(times=8)
    assert set(home.files("archive")) == {"a.png", "a.xmp"}
    assert home.files("inbox") == {}
    assert audit(home.settings, list).findings == ()


def test_several_that_come_late_follow_without_a_warning(house: Make) -> None:
    home = house(watch={**SOON, "rescan_s": 30})
    drop(home, "a.png", picture())
    home.turn(times=40)
    drop(home, "a.xmp", XMP)
    drop(home, "a.aae", XMP)
    with structlog.testing.capture_logs() as lines:
        home.turn(0.1, times=400)  # several rounds for each scan
    assert set(home.files("archive")) == {"a.png", "a.xmp", "a.aae"}
    assert not {"postponed", "no_picture"} & {line["event"] for line in lines}


def test_one_that_comes_before_its_picture_does_not_follow_an_older_one_of_the_name(house: Make) -> None:
    home = house(watch={**SOON, "mask_wait_s": 5})
    drop(home, "a.png", picture()[:-30])
    drop(home, "b.png", picture(1))
    home.turn(times=20)
    assert home.states() == ["failed", "archived"]
    drop(home, "b.xmp", XMP)
    home.turn(times=5)
    drop(home, "b.png", picture(2))
    home.turn(3600 + 60)
    drop(home, "a.xmp", XMP)
    home.turn(times=20)
    assert set(home.files("inbox")) == {"a.xmp"}, "it waits, however long the next picture takes"
    assert "would go with a picture" in home.service.inbox.unused.reasons()["a.xmp"]
    drop(home, "a.png", picture(3))
    home.turn(times=20)
    assert home.files("inbox") == {}
    assert "b.xmp" in home.service.jobs.store.history(3)[-1].detail["archived"]
    assert home.service.jobs.store.history(4)[-1].detail["archived"] == ["a.png", "a.xmp"]
    assert set(home.files("failed")) == {"a.png", "a.png.error.json"}


def test_those_of_pictures_that_were_taken_away_are_looked_up_once(
    house: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = house(watch={**SOON, "settle_s": 9})
    drop(home, "a.png", picture())
    drop(home, "a.xmp", XMP)
    home.turn(times=3)
    (home.base / "inbox" / "a.png").unlink()
    asked: list[list[bytes]] = []
    latest_of = Store.latest_of

    def counted(store: Store, paths: list[bytes]) -> Any:
        asked.append(paths)
        return latest_of(store, paths)

    monkeypatch.setattr(Store, "latest_of", counted)
    home.turn(times=30)
    assert home.states() == ["skipped"]
    assert len(asked) == 1
    assert set(home.files("inbox")) == {"a.xmp"}


def test_one_that_still_grows_is_not_taken(house: Make) -> None:
    """A film is copied after its picture, and takes longer."""
    home = house(watch=SOON)
    drop(home, "a.png", picture())
    for size in range(8):
        drop(home, "a.mov", b"film" * (size + 1))
        home.turn()
    assert home.states() == ["archived"]
    assert "a.mov" in home.files("inbox")
    home.turn(times=6)
    assert home.files("archive")["a.mov"] == b"film" * 8


def test_of_two_pictures_the_last_one_takes_it_along(house: Make) -> None:
    home = house(watch=SOON)
    drop(home, "a.xmp", XMP)
    drop(home, "a.png", picture(1))
    home.turn(times=2)
    drop(home, "a.jpg", picture(2, "JPEG"))
    home.turn(times=2)
    kept = home.files("inbox")
    home.turn(times=10)
    assert home.states() == ["archived", "archived"]
    assert "a.xmp" in kept
    assert {"a.xmp", "a.png", "a.jpg"} <= set(home.files("archive"))
    assert home.files("inbox") == {}


def test_what_belongs_to_no_picture_stays_and_is_told_once(house: Make) -> None:
    home = house(watch=SOON)
    others = {
        "notes.docx": b"PK\x03\x04" + b"x" * 99,
        "list.csv": b"a,b\n",
        "b.xmp": XMP,
        "b.txt": b"caption",
        "empty": b"",
    }
    for name, data in others.items():
        drop(home, name, data)
    with structlog.testing.capture_logs() as lines:
        home.turn(times=20)
    assert home.states() == []
    assert home.files("inbox") == others
    told = [line for line in lines if line["event"] == "no_picture"]
    assert [line["paths"] for line in told] == [sorted(others)]
    unused = home.service.inbox.unused.reasons()
    assert set(unused) == set(others)
    assert "is no picture" in unused["notes.docx"]
    assert "would go with a picture of the same name" in unused["b.xmp"]


def test_a_picture_without_an_ending_is_one(house: Make) -> None:
    home = house(watch=SOON)
    drop(home, "IMG_1", picture())
    home.turn(times=10)
    assert home.states() == ["archived"]


def test_what_turns_out_to_be_none_is_no_failure(house: Make) -> None:
    """The first bytes come later than the name."""
    home = house(watch=SOON)
    drop(home, "IMG_1", bytes(5000))
    home.turn()
    assert home.states() == ["settling"]
    drop(home, "IMG_1", b"just words\n" * 20)
    home.turn(times=6)
    assert home.states() == ["skipped"]
    assert set(home.files("inbox")) == {"IMG_1"}


@pytest.mark.parametrize("ending", ["cr3", "NEF", "arw", "dng", "raf"])
def test_a_raw_file_is_named_without_waiting_for_a_mask(house: Make, ending: str) -> None:
    home = house(watch={**SOON, "mask_wait_s": 3600}, regions={"detectors": ["sidecar", "faces"]})
    drop(home, f"a.{ending}", b"II*\0" + bytes(range(256)) * 9)
    home.turn(times=6)
    assert home.states() == ["failed"]
    (job,) = home.service.jobs.store.jobs()
    assert (job.code, job.attempts) == ("unsupported", 0)
    assert "export it as JPEG or TIFF" in (job.message or "")
    assert f".{ending.lower()}" in (job.message or "")


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("z.nef", b"II*\0" + bytes(range(256)) * 99, "unsupported"),
        ("z.jpg", b"<!doctype html><p>Not found" + b" " * 9000, "unsupported"),
        ("z.jpg", b"just words\n" * 2000, "unsupported"),
        ("z.png", b"", "empty"),
    ],
)
def test_what_is_no_picture_is_named_at_once_though_a_backlog_waits(
    house: Make, name: str, content: bytes, code: str
) -> None:
    detectors = {"detectors": ["sidecar", "faces"]}
    home = house(watch={**SOON, "incomplete_wait_s": 2, "mask_wait_s": 3600}, regions=detectors)
    home.stuck = True
    for number in range(2 * READY_AHEAD):
        home.drop(f"{number:02}.png", f"{number:02}.mask.png")
    home.turn(times=6)
    assert home.states().count("ready") + home.states().count("running") <= READY_AHEAD + 1
    drop(home, name, content)
    home.turn(times=8)
    (job,) = home.service.jobs.store.by_path(name.encode())
    assert (job.state, job.code, job.attempts) == ("failed", code, 0)
    assert ("; nothing was added to it for" in (job.message or "")) == (code == "empty")
    assert (home.base / "failed" / name).read_bytes() == content
    assert home.states().count("settling") >= READY_AHEAD - 1, "the others still wait"


def test_what_becomes_a_picture_while_it_waits_is_worked(house: Make) -> None:
    home = house(watch={**SOON, "settle_s": 1, "incomplete_wait_s": 60})
    drop(home, "a.png", b"")
    home.turn(times=4)
    assert home.states() == ["settling"]
    assert "is empty" in home.reasons()
    drop(home, "a.png", picture())
    home.turn(times=8)
    assert home.states() == ["archived"]


def test_a_picture_that_is_only_called_raw_is_worked(house: Make) -> None:
    home = house(watch=SOON)
    drop(home, "a.nef", picture(1, "JPEG"))
    home.turn(times=10)
    assert home.states() == ["archived"]


def test_one_that_does_not_fit_leaves_no_half_copy(house: Make) -> None:
    home = house(watch=SOON)
    drop(home, "a.png", picture())
    home.turn(times=10)
    drop(home, "a.mov", b"large" * 1000)
    spool = home.base / "state/spool"
    with failing("fsync", number=errno.ENOSPC, when=below(spool)):
        home.turn(times=10)
    assert [*spool.iterdir()] == []
    (spool / "companion").write_bytes(b"half of one, as a crash leaves it")
    home.crash()
    home.again()
    assert [*spool.iterdir()] == []
    home.turn(60, times=10)
    assert set(home.files("archive")) == {"a.png", "a.mov"}


def test_nothing_is_copied_to_a_disk_that_it_does_not_fit_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.mov").write_bytes(bytes(1000))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2000, 1001, 999))
    with pytest.raises(OSError, match="No space left"):
        inbox.take(tmp_path, b"a.mov", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("step", ["after follow", "before leave"])
def test_a_crash_while_it_follows_loses_nothing(
    house: Make, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    home = house(watch=SOON)
    drop(home, "a.png", picture())
    home.turn(times=10)
    drop(home, "a.xmp", XMP)
    name = step.split()[1]
    owner: Any = type(home.service.publisher._originals)
    real, died = getattr(owner, name), list[str]()

    def dies(self: Any, *arguments: Any) -> Any:
        done = real(self, *arguments) if step.startswith("after") else None
        if not died:
            died.append(step)
            raise KeyboardInterrupt
        return done if step.startswith("after") else real(self, *arguments)

    monkeypatch.setattr(owner, name, dies)
    with pytest.raises(KeyboardInterrupt):
        home.turn(times=10)
    assert home.files("inbox") == {"a.xmp": XMP}, "it is still there"
    home.crash()
    home.again()
    home.turn(times=10)
    assert home.files("archive")["a.xmp"] == XMP
    assert home.files("inbox") == {}
    assert audit(home.settings, list).findings == ()


def test_with_real_processes(sandbox: Sandbox) -> None:
    sandbox.module = "benchmarks.passthrough"
    config_file = sandbox.configure()
    for name, data in {
        "a.jpg": picture(1, "JPEG"), "a.xmp": XMP, "a.cr2": b"II*\0" + os.urandom(5000),
        "b.nef": b"II*\0" + os.urandom(5000), "c.txt": b"words", "c.docx": b"PK\x03\x04" + os.urandom(50),
    }.items():  # fmt: skip
        sandbox.drop(data, name)
    done = sandbox.backfire("once")
    assert done.returncode == 3
    assert sandbox.files("inbox") == {"c.txt", "c.docx"}
    assert sandbox.files("archive") == {"a.jpg", "a.xmp", "a.cr2"}
    assert sandbox.files("failed") == {"b.nef", "b.nef.error.json"}
    assert "export it as JPEG or TIFF" in sandbox.error("b.nef")["message"]
    status = sandbox.backfire("status").stdout
    assert "c.txt: would go with a picture of the same name, and there is none" in status
    assert "c.docx: is no picture" in status
    assert audit(config.load(config_file), list).findings == ()
    told = [json.loads(line) for line in done.stderr.splitlines() if '"no_picture"' in line]
    assert [line["paths"] for line in told] == [["c.docx", "c.txt"]]
