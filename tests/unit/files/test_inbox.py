"""Scanning the inbox, pairing pictures with masks, waiting until files settle, and file events."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from backfire.config import IGNORE
from backfire.errors import Code, InputError
from backfire.files import inbox
from backfire.files.inbox import Hints, Scan, Signature, Tracker
from tests.support.sandbox import wait_for


def signature(size: int = 1, mtime: int = 1) -> Signature:
    return Signature(1, 2, size, mtime, mtime)


def test_scan_finds_regular_files_at_any_depth_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("x.png", "a/y.png", "a/b/z.png", ".hidden", "w.part", "a/Thumbs.db"):
        (tmp_path / name).write_bytes(b"1")
    (tmp_path / "@eaDir").mkdir()
    (tmp_path / "@eaDir" / "t.png").write_bytes(b"1")
    (tmp_path / "link.png").symlink_to(tmp_path / "x.png")
    (tmp_path / "linked").symlink_to(tmp_path / "a")
    os.mkfifo(tmp_path / "pipe.png")
    assert set(inbox.scan(tmp_path, IGNORE).files) == {b"x.png", b"a/y.png", b"a/b/z.png"}


def test_a_missing_root_is_an_error_and_not_an_empty_inbox(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        inbox.scan(tmp_path / "gone", IGNORE)


def test_names_need_not_be_utf8(tmp_path: Path) -> None:
    name = b"caf\xe9\n.png"
    Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).write_bytes(b"1")
    assert set(inbox.scan(tmp_path, IGNORE).files) == {name}


@pytest.mark.parametrize(
    ("picture", "mask"),
    [
        (b"p.jpg", b"p.mask.png"),
        (b"p.jpg", b"p.jpg.mask.png"),
        (b"p.jpg", b"masks/p.png"),
        (b"p.jpg", b"masks/p.jpg.png"),
        (b"a/b/p.q.tif", b"a/b/p.q.mask.png"),
        (b"a/b/p.q.tif", b"a/b/masks/p.q.png"),
        (b"p.JPG", b"P.Mask.PNG"),
        (b"p.jpg", b"Masks/p.png"),
        ("é.jpg".encode(), "e\u0301.mask.png".encode()),
        ("E\u0301.jpg".encode(), "masks/é.png".encode()),
    ],
)
def test_masks_are_paired_by_name(picture: bytes, mask: bytes) -> None:
    assert inbox.is_mask(mask)
    assert not inbox.is_mask(picture)
    scan = Scan({picture: signature(), mask: signature(), b"other.mask.png": signature()})
    assert scan.masks_of(picture) == [mask]
    assert scan.pictures == [picture]
    assert scan.orphans() == {b"other.mask.png"}


@pytest.mark.parametrize("note", [b"a.png.error.json", b"d/A.PNG.REVIEW.JSON"])
def test_a_note_that_was_moved_back_with_its_picture_is_told_to_be_deleted(note: bytes) -> None:
    signature = Signature(1, 2, 3, 4, 5)
    scan = Scan({b"a.png": signature, b"d/A.PNG": signature, note: signature})
    assert scan.orphans() == {note}
    assert "delete it" in inbox.why_unused(note)


def test_of_two_names_that_differ_in_spelling_each_has_its_own_mask() -> None:
    stems = ("é".encode(), "e\u0301".encode(), b"a", b"A")
    scan = Scan({stem + end: signature() for stem in stems for end in (b".png", b".mask.png")})
    for stem in stems:
        assert scan.masks_of(stem + b".png") == [stem + b".mask.png"]


def test_a_proof_of_nearly_the_same_name_is_that_of_the_picture_of_its_own_spelling() -> None:
    scan = Scan({name: signature() for name in (b"p.jpg", b"P.jpg", b"P.jpg.done", b"q.jpg")}, proof=b".done")
    assert scan.proof_of(b"P.jpg") == b"P.jpg.done"
    assert scan.proof_of(b"p.jpg") is None
    both = Scan({name: signature() for name in (b"q.jpg", b"q.done", b"Q.JPG.done")}, proof=b".done")
    assert both.proof_of(b"q.jpg") == b"q.done"


def test_ignored_names_are_known_in_either_spelling_of_unicode(tmp_path: Path) -> None:
    for name in ("é.neu", "e\u0301.neu", "e.neu"):
        (tmp_path / name).write_bytes(b"1")
    for pattern in ("é.*", "e\u0301.*"):
        assert set(inbox.scan(tmp_path, [pattern]).files) == {b"e.neu"}


@pytest.mark.parametrize("mask", [b"p.mask.png", b"b/p.mask.png", b"a/pq.mask.png", b"masks/p.png"])
def test_masks_of_other_pictures_are_not_paired(mask: bytes) -> None:
    assert Scan({mask: signature()}).masks_of(b"a/p.jpg") == []


def test_a_file_settles_only_after_it_was_unchanged_for_a_while() -> None:
    tracker = Tracker(settle_s=5)
    tracker.observe({b"p": signature(1)}, now=0)
    assert not tracker.settled(b"p", now=4.9)
    assert tracker.settled(b"p", now=5)
    tracker.observe({b"p": signature(2)}, now=6)
    assert not tracker.settled(b"p", now=10.9), "it grew, and the time starts again"
    tracker.observe({b"p": signature(2)}, now=11)
    assert tracker.settled(b"p", now=11)


def test_an_old_mtime_settles_like_any_other() -> None:
    tracker = Tracker(settle_s=5)
    tracker.observe({b"p": signature(mtime=0)}, now=1000)
    assert not tracker.settled(b"p", now=1001), "its age on the wall clock says nothing"
    assert tracker.settled(b"p", now=1005)


def test_a_file_that_vanished_and_came_back_waits_the_whole_time_again() -> None:
    tracker = Tracker(settle_s=5)
    tracker.observe({b"p": signature()}, now=0)
    tracker.observe({}, now=3)
    tracker.observe({b"p": signature()}, now=4)
    assert not tracker.settled(b"p", now=8)
    assert not tracker.settled(b"never seen", now=100)


def test_take_copies_and_hashes(tmp_path: Path) -> None:
    root = tmp_path / "in"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "p.png").write_bytes(b"pixels" * 1000)
    expected = inbox.signature(root, b"sub/p.png")
    taken = inbox.take(root, b"sub/p.png", tmp_path / "copy", expected)
    assert (tmp_path / "copy").read_bytes() == b"pixels" * 1000
    assert taken.sha256 == hashlib.sha256(b"pixels" * 1000).hexdigest()
    assert taken.signature == expected


def test_a_copy_that_was_linked_elsewhere_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "p.xmp").write_bytes(b"first")
    inbox.take(tmp_path, b"p.xmp", tmp_path / "copy")
    (tmp_path / "archived").hardlink_to(tmp_path / "copy")
    (tmp_path / "p.xmp").write_bytes(b"another")
    inbox.take(tmp_path, b"p.xmp", tmp_path / "copy")
    assert (tmp_path / "archived").read_bytes() == b"first"
    assert (tmp_path / "copy").read_bytes() == b"another"


def test_take_refuses_what_changed_since_the_scan(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(b"1")
    seen = inbox.signature(tmp_path, b"p")
    (tmp_path / "p").write_bytes(b"22")
    with pytest.raises(InputError, match="changed") as caught:
        inbox.take(tmp_path, b"p", tmp_path / "copy", seen)
    assert caught.value.code == Code.CHANGED
    assert caught.value.retryable


@pytest.mark.parametrize("path", [b"link", b"dir/p", b"pipe", b"../secret"])
def test_take_opens_nothing_but_regular_files_below_the_root(tmp_path: Path, path: bytes) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    root = tmp_path / "in"
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "p").write_bytes(b"secret")
    (root / "dir").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(root / "pipe")
    with pytest.raises(InputError):
        inbox.take(root, path, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_hints_wake_on_new_files(tmp_path: Path) -> None:
    wake = threading.Event()
    hints = Hints(tmp_path, "inotify", wake)
    try:
        assert hints.mode == "inotify"
        (tmp_path / "p.png").write_bytes(b"1")
        wait_for(wake.is_set, seconds=20, because="a file event")
    finally:
        hints.close()


def test_reading_the_inbox_sets_no_event(tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(b"1")
    wake = threading.Event()
    hints = Hints(tmp_path, "inotify", wake)
    try:
        (tmp_path / "p.png").read_bytes()
        inbox.scan(tmp_path, IGNORE)
        assert not wake.wait(0.5)
    finally:
        hints.close()


def test_without_inotify_it_polls_and_says_why(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        hints = Hints(tmp_path, "auto", threading.Event())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    hints.close()
    assert hints.mode == "polling"
    assert hints.trouble.startswith("inotify would not start ([Errno 24] ")


def test_network_file_systems_are_polled(tmp_path: Path) -> None:
    hints = Hints(tmp_path, "auto", threading.Event(), filesystem=lambda _: "nfs4")
    assert hints.mode == "polling"
    assert "nfs4" in hints.trouble


def test_filesystem_names_the_innermost_mount() -> None:
    assert inbox.filesystem(Path("/proc/self")) == "proc"


def test_scan_beside_finds_the_same_masks_as_a_scan(tmp_path: Path) -> None:
    (tmp_path / "sub" / "masks").mkdir(parents=True)
    for name in ("sub/p.jpg", "sub/P.mask.png", "sub/masks/p.png", "sub/other.jpg", "top.mask.png"):
        (tmp_path / name).write_bytes(name.encode())
    beside, whole = inbox.scan_beside(tmp_path, [b"sub/p.jpg"], IGNORE), inbox.scan(tmp_path, IGNORE)
    assert beside.masks_of(b"sub/p.jpg") == whole.masks_of(b"sub/p.jpg") != []
    assert beside.files[b"sub/p.jpg"] == whole.files[b"sub/p.jpg"]


def test_the_folder_that_hides_a_file_is_named() -> None:
    scan = inbox.Scan({}, {b"a": "cannot be read", b"b": "is lost"})
    with pytest.raises(OSError, match=r"^b/p\.png: may be there or gone, as b is lost$"):
        scan.require_known([b"b/p.png"])
    scan.require_known([b"c/p.png"])


def test_an_unreadable_subfolder_hides_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shut").mkdir()
    (tmp_path / "p.png").write_bytes(b"1")
    scandir = os.scandir

    def refusing(path: bytes) -> object:
        if path.endswith(b"shut"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    scan = inbox.scan(tmp_path, IGNORE)
    assert set(scan.files) == {b"p.png"}
    assert not scan.knows(b"shut/q.png"), "a file there is unknown, and not gone"
    assert scan.knows(b"q.png")


def test_an_archive_or_outbox_below_the_inbox_is_left_alone_and_told(tmp_path: Path) -> None:
    for name in (b"a.png", b"b/c.png", b".manifest-2026-11-24.sha256", b"d/e.png", b"z.png"):
        for folder in (b"", b"desk/archive/"):
            path = tmp_path / os.fsdecode(folder + name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
    (tmp_path / "desk" / "p.png").write_bytes(b"x")
    seen = inbox.scan(tmp_path, IGNORE)
    assert set(seen.files) == {b"a.png", b"b/c.png", b"d/e.png", b"z.png", b"desk/p.png"}
    assert "move it out of the inbox" in seen.unreadable[b"desk/archive"]
    assert not seen.knows(b"desk/archive/b/c.png"), "it is not gone"


def test_an_entry_of_which_the_system_says_nothing_hides_no_other_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lost").mkdir()
    (tmp_path / "p.png").write_bytes(b"1")
    scandir = os.scandir

    class Entry:
        def __init__(self, entry: Any) -> None:
            self.name, self._entry = entry.name, entry

        def stat(self, **options: Any) -> os.stat_result:
            if self.name == b"lost":
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            return self._entry.stat(**options)  # type: ignore[no-any-return]

    @contextmanager
    def listed(path: bytes) -> Iterator[Iterator[Entry]]:
        with scandir(path) as entries:
            yield map(Entry, entries)

    monkeypatch.setattr(os, "scandir", listed)
    scan = inbox.scan(tmp_path, IGNORE)
    assert set(scan.files) == {b"p.png"}
    assert not scan.knows(b"lost"), "it may be a picture, and is not gone"
    assert not scan.knows(b"lost/q.png"), "it may be a folder"
    assert "check the disk or the network share" in scan.unreadable[b"lost"]


@pytest.mark.parametrize(
    "sidecar",
    [b"d/p.json", b"d/p.regions.json", b"d/P.JPG.REGIONS.JSON", b"d/masks/p.json", b"d/p.mask.png"],
)
def test_annotations_are_sidecars_like_masks(sidecar: bytes, tmp_path: Path) -> None:
    for name in (b"d/p.jpg", b"d/other.jpg", sidecar):
        path = tmp_path / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    seen = inbox.scan(tmp_path, ())
    assert sorted(seen.pictures) == [b"d/other.jpg", b"d/p.jpg"]
    assert seen.masks_of(b"d/p.jpg") == [sidecar]
    assert seen.masks_of(b"d/other.jpg") == []
    assert inbox.scan_beside(tmp_path, [b"d/p.jpg"], ()).masks_of(b"d/p.jpg") == [sidecar]
