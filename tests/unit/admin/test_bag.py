"""Bags are validated by the library bagit and by sha256sum."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import pytest

from backfire.admin.bag import Bagged, bag
from backfire.config import Settings
from backfire.errors import BackfireError, ConfigError
from backfire.files import manifest, outbox
from backfire.files.manifest import Entry
from backfire.service import report_files
from backfire.types import Job, JobState
from tests.support.system import below, failing
from tests.unit.admin.test_audit import KEY, fill, keep, settings
from tests.unit.files.test_manifest import sha256sum

bagit = pytest.importorskip("bagit", reason="the extra archive is not installed")

__all__ = ["settings"]


def validated(made: Bagged) -> set[str]:
    """The payload of a bag, which bagit and sha256sum must both find valid."""
    found = bagit.Bag(str(made.folder))
    found.validate()
    judged = sha256sum(made.folder, "manifest-sha256.txt")
    assert judged.returncode == 0, judged.stderr
    assert made.files == len(found.payload_entries())
    return {path.removeprefix("data/") for path in found.payload_entries()}


def test_a_bag_holds_pictures_originals_and_receipts(settings: Settings, tmp_path: Path) -> None:
    jobs = fill(settings)
    for path in (b"a.png", b"desk/b.png"):
        outbox.replace(b'{"key": "%s"}' % KEY.encode(), settings.folders.reports, path + b".json")
    outbox.replace(b"sheet", settings.folders.reports, b"a.png.sheet.jpg")
    outbox.replace(b"{}", settings.folders.reports, b"failed.png.json")
    seen: list[tuple[str, int, int]] = []
    info = {"Source-Organization": "Photo desk"}
    made = bag(settings, tmp_path / "bag", jobs, info=info, progress=lambda *step: seen.append(step))
    assert validated(made) == {
        "archive/a.png", "archive/a.mask.png", "archive/desk/b.png", "archive/caf%E9.png",
        "outbox/a.png", "outbox/desk/b.png", "outbox/caf%E9.png",
        "reports/a.png.json", "reports/a.png.sheet.jpg", "reports/desk/b.png.json",
    }  # fmt: skip
    assert made.absent == ()
    assert (made.folder / "data" / "archive" / "a.png").read_bytes() == b"original a.png"
    assert "Source-Organization: Photo desk" in (made.folder / "bag-info.txt").read_text()
    assert ("copy", 10, 10) in seen


def test_odd_names_validate(settings: Settings, tmp_path: Path) -> None:
    names = [
        "new line.png",
        "  spaces .png",
        "日本.png",
        unicodedata.normalize("NFD", "é.png"),
        "n" * 251 + ".png",
    ]
    for name in names:
        keep(settings.folders.archive, os.fsencode(name), name.encode())
    assert validated(bag(settings, tmp_path / "bag", [])) == {f"archive/{name}" for name in names}


def test_a_line_break_in_a_name_is_kept(settings: Settings, tmp_path: Path) -> None:
    keep(settings.folders.archive, b"new\nline.png", b"x")
    made = bag(settings, tmp_path / "bag", [])
    bagit.Bag(str(made.folder)).validate()
    assert (made.folder / "data" / "archive" / "new\nline.png").read_bytes() == b"x"


@pytest.mark.parametrize("folder", ["archive", "outbox"])
def test_what_was_changed_is_never_bagged(settings: Settings, tmp_path: Path, folder: str) -> None:
    jobs = fill(settings)
    (settings.folders.named()[folder] / "desk" / "b.png").write_bytes(b"flipped")
    with pytest.raises(BackfireError, match=r"desk/b\.png: is [0-9a-f]{64}, expected"):
        bag(settings, tmp_path / "bag", jobs)
    assert not list(tmp_path.glob("*bag*"))


def test_a_missing_original_is_an_error_and_a_fetched_result_is_not(
    settings: Settings, tmp_path: Path
) -> None:
    jobs = fill(settings)
    (settings.folders.outbox / "a.png").unlink()
    made = bag(settings, tmp_path / "bag", jobs)
    assert made.absent == ("a.png",)
    assert "outbox/a.png" not in validated(made)
    (settings.folders.archive / "a.png").unlink()
    with pytest.raises(BackfireError, match=r"original a\.png: is missing"):
        bag(settings, tmp_path / "second", jobs)


def test_a_link_is_not_followed_into_the_bag(settings: Settings, tmp_path: Path) -> None:
    jobs = fill(settings)
    (settings.folders.outbox / "a.png").unlink()
    (settings.folders.outbox / "a.png").symlink_to(settings.folders.archive / "a.png")
    with pytest.raises(BackfireError, match="cannot be read"):
        bag(settings, tmp_path / "bag", jobs)


def test_a_bag_of_one_day(settings: Settings, tmp_path: Path) -> None:
    fill(settings)  # its files are of the first of January 1970
    later = Entry(
        outbox.place(b"x", settings.folders.archive, b"later.png", key=KEY), hashlib.sha256(b"x").hexdigest()
    )
    manifest.append(settings.folders.archive, [later], at=86_400.0)
    assert validated(bag(settings, tmp_path / "bag", [], days=["1970-01-02"])) == {"archive/later.png"}
    with pytest.raises(BackfireError, match="nothing was published or archived on 1999-01-01"):
        bag(settings, tmp_path / "none", [], days=["1999-01-01"])
    for wrong in ("yesterday", "2026-13-99", "20261124"):
        with pytest.raises(ConfigError, match=f"--day {wrong}: expected days of the calendar, as"):
            bag(settings, tmp_path / "none", [], days=[wrong])


def test_receipts_of_renamed_results_come_along(settings: Settings, tmp_path: Path) -> None:
    name = outbox.keyed(tmp_path, b"a.png", KEY)
    entry = keep(settings.folders.outbox, name, b"second")
    outbox.replace(json.dumps({"key": KEY}).encode(), settings.folders.reports, name + b".json")
    job = Job(
        5, b"a.png", JobState.ARCHIVED, key=KEY, output_path=name, output_sha256=entry.sha256,
    )  # fmt: skip
    assert f"reports/{name.decode()}.json" in validated(bag(settings, tmp_path / "bag", [job]))


def test_a_bag_of_a_day_holds_that_days_picture_and_receipt_where_the_name_was_used_again(
    settings: Settings, tmp_path: Path
) -> None:
    keys, jobs = ("1" * 64, "2" * 64), []
    for day, key in enumerate(keys):
        original = outbox.place(b"original %d" % day, settings.folders.archive, b"a.png", key=key)
        published = outbox.place(b"result %d" % day, settings.folders.outbox, b"a.png", key=key)
        digests = [hashlib.sha256(b"%s %d" % (what, day)).hexdigest() for what in (b"original", b"result")]
        manifest.append(settings.folders.archive, [Entry(original, digests[0])], at=86_400.0 * day)
        manifest.append(settings.folders.outbox, [Entry(published, digests[1])], at=86_400.0 * day)
        jobs.append(
            Job(
                day + 1, b"a.png", JobState.ARCHIVED, key=key, input_sha256=digests[0],
                output_path=published, output_sha256=digests[1],
            )
        )  # fmt: skip
        receipt = report_files.place(settings.folders.reports, jobs[-1], published) + b".json"
        document = {"key": key, "output_sha256": digests[1]}
        outbox.replace(json.dumps(document).encode(), settings.folders.reports, receipt)
        if not day:  # it is fetched, so that the next one gets its name
            (settings.folders.outbox / "a.png").unlink()
    later = [path.replace("a.png", "a.22222222.png") for path in ("archive/a.png", "reports/a.png.json")]
    first = bag(settings, tmp_path / "first", jobs[::-1], days=["1970-01-01"])
    assert validated(first) == {"archive/a.png", "reports/a.png.json"}
    assert first.absent == ("a.png",)
    second = bag(settings, tmp_path / "second", jobs[::-1], days=["1970-01-02"])
    assert validated(second) == {*later, "outbox/a.png"}
    forgotten = bag(settings, tmp_path / "forgotten", [], days=["1970-01-02"])
    assert validated(forgotten) == {later[0], "outbox/a.png"}, "no receipt of another picture"
    assert validated(bag(settings, tmp_path / "all", jobs[::-1])) == {
        "archive/a.png", "reports/a.png.json", *later, "outbox/a.png",
    }  # fmt: skip
    (settings.folders.archive / "a.png").write_bytes(b"result 1")
    with pytest.raises(BackfireError, match="it was changed after it was published or archived"):
        bag(settings, tmp_path / "changed", jobs, days=["1970-01-01"])


def test_nothing_is_overwritten_and_a_lack_of_space_is_an_error(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = fill(settings)
    with pytest.raises(ConfigError, match="exists already"):
        bag(settings, settings.folders.outbox, jobs)
    for name, folder in settings.folders.named().items():
        with pytest.raises(ConfigError, match=f"lies in folders.{name}"):
            bag(settings, folder / "deliveries" / "one", jobs)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    with pytest.raises(ConfigError, match="name another place"):
        bag(settings, tmp_path / "bag", jobs)
    assert not list(tmp_path.glob("*bag*"))


def test_without_the_library_the_error_names_the_extra(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bagit", None)
    with pytest.raises(ConfigError, match=r"pip install 'backfire\[archive\]'"):
        bag(settings, tmp_path / "bag", [])


@pytest.mark.parametrize("call", ["mkdir", "fsync", "rename"])
def test_a_bag_that_cannot_be_written_leaves_nothing(settings: Settings, tmp_path: Path, call: str) -> None:
    jobs = fill(settings)
    (tmp_path / "bags").mkdir()
    with (
        failing(call, number=errno.ENOSPC, when=below(tmp_path / "bags")),
        pytest.raises(
            ConfigError, match=r"cannot be written \(No space left on device\); name another place"
        ),
    ):
        bag(settings, tmp_path / "bags" / "bag", jobs)
    assert list((tmp_path / "bags").iterdir()) == []


def test_a_bag_that_is_interrupted_leaves_nothing(settings: Settings, tmp_path: Path) -> None:
    def interrupted(step: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    jobs = fill(settings)
    (tmp_path / "bags").mkdir()
    with pytest.raises(KeyboardInterrupt):
        bag(settings, tmp_path / "bags" / "bag", jobs, progress=interrupted)
    assert list((tmp_path / "bags").iterdir()) == []
