"""The audit of folders that were filled by the functions of the daemon."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from backfire.admin.audit import Audit, Kind, audit
from backfire.config import Settings, parse
from backfire.files import durable, manifest, outbox
from backfire.files.manifest import Entry
from backfire.types import Job, JobState

KEY = "0123456789abcdef" * 4


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    found = parse({"folders": {"inbox": "inbox"}}, base=tmp_path)
    for folder in found.folders.named().values():
        folder.mkdir()
    return found


def keep(folder: Path, path: bytes, data: bytes) -> Entry:
    entry = Entry(outbox.place(data, folder, path, key=KEY), hashlib.sha256(data).hexdigest())
    manifest.append(folder, [entry], at=0.0)
    return entry


def fill(settings: Settings) -> list[Job]:
    """Three jobs published and archived, one of them in a subfolder, one with a mask."""
    jobs = []
    for number, path in enumerate([b"a.png", b"desk/b.png", b"caf\xe9.png"], start=1):
        original = keep(settings.folders.archive, path, b"original " + path)
        published = keep(settings.folders.outbox, path, b"published " + path)
        jobs.append(
            Job(
                number, path, JobState.ARCHIVED, key=KEY, input_sha256=original.sha256,
                output_path=published.path, output_sha256=published.sha256,
            )
        )  # fmt: skip
    keep(settings.folders.archive, b"a.mask.png", b"mask")
    return jobs


def found(result: Audit) -> list[tuple[str, str, Kind]]:
    return [(finding.folder, finding.path, finding.kind) for finding in result.findings]


def test_unchanged_folders_have_no_findings(settings: Settings) -> None:
    jobs = fill(settings)
    seen: list[tuple[str, int, int]] = []
    result = audit(settings, lambda: jobs, progress=lambda *step: seen.append(step))
    assert (result.ok, result.files, found(result)) == (True, 7, [])
    assert result.size == sum(
        path.stat().st_size
        for folder in (settings.folders.archive, settings.folders.outbox)
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".manifest")
    )
    assert seen[2] == ("outbox", 3, 3)
    assert seen[-1] == ("archive", 4, 4)


def test_a_flipped_bit_a_removed_file_and_an_added_one_are_found(settings: Settings) -> None:
    jobs = fill(settings)
    target = settings.folders.archive / "desk" / "b.png"
    before = durable.file_sha256(target)
    data = bytearray(target.read_bytes())
    data[-1] ^= 0x80
    target.write_bytes(data)
    (settings.folders.outbox / "a.png").unlink()
    (settings.folders.archive / "desk" / "added.png").write_bytes(b"new")
    (settings.folders.outbox / "link").symlink_to("/etc/passwd")
    result = audit(settings, lambda: jobs)
    assert found(result) == [
        ("archive", "desk/b.png", Kind.CHANGED),
        ("archive", "desk/added.png", Kind.UNKNOWN),
        ("outbox", "a.png", Kind.MISSING),
        ("outbox", "link", Kind.UNKNOWN),
    ]
    changed = result.findings[0]
    assert (changed.expected, changed.found) == (before, hashlib.sha256(data).hexdigest())
    assert result.files == 5


def test_a_link_in_a_files_place_is_a_change(settings: Settings) -> None:
    jobs = fill(settings)
    target = settings.folders.archive / "a.png"
    (settings.folders.state / "copy").write_bytes(target.read_bytes())
    target.unlink()
    target.symlink_to(settings.folders.state / "copy")
    assert found(audit(settings, lambda: jobs, folders=["archive"])) == [("archive", "a.png", Kind.CHANGED)]


def test_a_deleted_manifest_hides_nothing(settings: Settings) -> None:
    """The database still names every file but the masks."""
    jobs = fill(settings)
    for folder in (settings.folders.outbox, settings.folders.archive):
        for path in folder.glob(".manifest-*"):
            path.unlink()
    (settings.folders.archive / "a.png").write_bytes(b"other")
    (settings.folders.outbox / "a.png").unlink()
    assert found(audit(settings, lambda: jobs)) == [
        ("archive", "a.png", Kind.CHANGED),
        ("archive", "a.mask.png", Kind.UNKNOWN),
        ("outbox", "a.png", Kind.MISSING),
    ]


def test_a_deleted_database_hides_nothing_either(settings: Settings) -> None:
    fill(settings)
    assert audit(settings, list).ok
    (settings.folders.archive / "a.png").unlink()
    assert found(audit(settings, list)) == [("archive", "a.png", Kind.MISSING)]


def test_a_damaged_line_is_found(settings: Settings) -> None:
    fill(settings)
    path = settings.folders.archive / os.fsdecode(manifest.name(0.0))
    path.write_bytes(path.read_bytes().replace(b"  a.png", b" a.png"))
    assert found(audit(settings, list)) == [
        ("archive", "a.png", Kind.UNKNOWN),
        ("archive", f"{path.name}, line 1", Kind.DAMAGED),
    ]


def test_a_name_used_again_may_hold_either_content(settings: Settings) -> None:
    fill(settings)
    (settings.folders.archive / "a.png").unlink()  # taken away by its owner
    keep(settings.folders.archive, b"a.png", b"a later picture")
    assert audit(settings, list).ok
    (settings.folders.archive / "a.png").write_bytes(b"neither")
    (finding,) = audit(settings, list).findings
    assert finding.kind == Kind.CHANGED
    assert " or " in (finding.expected or "")


def test_a_file_that_the_daemon_is_just_archiving_is_not_unknown(settings: Settings) -> None:
    jobs = fill(settings)
    outbox.place(b"x", settings.folders.archive, b"now.png", key=KEY)  # its line is not written yet
    outbox.place(b"x", settings.folders.archive, b"other.png", key=KEY)
    jobs.append(replace(jobs[0], id=9, path=b"now.png", state=JobState.PUBLISHED))
    assert found(audit(settings, lambda: jobs, folders=["archive"])) == [
        ("archive", "other.png", Kind.UNKNOWN)
    ]


def test_a_folder_that_is_gone_is_found(settings: Settings) -> None:
    fill(settings)
    os.rename(settings.folders.archive, settings.folders.archive.with_name("elsewhere"))
    assert found(audit(settings, list)) == [("archive", str(settings.folders.archive), Kind.MISSING)]


def test_an_original_beside_a_file_that_has_the_name_of_its_folder_is_not_missing(settings: Settings) -> None:
    keep(settings.folders.archive, b"scan", b"a file")
    original = keep(settings.folders.archive, b"scan/b.png", b"original")
    assert original.path == b"scan.d/b.png"
    job = Job(1, b"scan/b.png", JobState.ARCHIVED, key=KEY, input_sha256=original.sha256)
    assert audit(settings, lambda: [job], folders=["archive"]).ok
