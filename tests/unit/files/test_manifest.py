"""Manifests are read by `sha256sum -c`; crashes, full disks and files of others do not damage them."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from backfire.errors import PublishError
from backfire.files import manifest
from backfire.files.manifest import Entry

DAY = 1_795_500_000.0  # 2026-11-24 UTC
NAMES = [
    b"p.png", b"desk/a b.jpg", b"new\nline.png", b"back\\slash.png", b"return\r.png", b"ends\r",
    b"caf\xe9.png", "日本.png".encode(), b"  spaces .png", b"-dash", b"\\", b"#", b"n" * 255,
]  # fmt: skip


def filled(folder: Path, names: list[bytes]) -> list[Entry]:
    entries = []
    for name in names:
        path = folder / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name * 3)
        entries.append(Entry(name, hashlib.sha256(name * 3).hexdigest()))
    return entries


def sha256sum(folder: Path, *manifests: str) -> subprocess.CompletedProcess[bytes]:
    if shutil.which("sha256sum") is None:
        pytest.skip("needs sha256sum")
    return subprocess.run(
        ["sha256sum", "-c", "--strict", *manifests], cwd=folder, capture_output=True, check=False
    )


def test_sha256sum_accepts_every_name(tmp_path: Path) -> None:
    entries = filled(tmp_path, NAMES)
    for entry in entries:
        manifest.append(tmp_path, [entry], at=DAY)
    result = sha256sum(tmp_path, ".manifest-2026-11-24.sha256")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(b": OK") == len(NAMES)
    assert manifest.read(tmp_path) == manifest.Listing(tuple(entries), ())


def test_a_lock_that_another_process_keeps_is_an_error_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "LOCK_S", 0.05)
    entries = filled(tmp_path, [b"p.png"])
    with (tmp_path / ".manifest-2026-11-24.sha256").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(PublishError, match=r"another process holds its lock.*fuser"):
            manifest.append(tmp_path, entries, at=DAY)
    manifest.append(tmp_path, entries, at=DAY)
    assert manifest.read(tmp_path).entries == tuple(entries)


def test_on_a_file_system_without_locks_lines_are_added_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    manifest.append(tmp_path, [Entry(b"a.png", "0" * 64)], at=0.0)
    assert manifest.read(tmp_path).entries == (Entry(b"a.png", "0" * 64),)


def test_lines_are_those_of_sha256sum(tmp_path: Path) -> None:
    entries = filled(tmp_path, [name for name in NAMES if b"/" not in name])
    command = ["sha256sum", "--", *(os.fsdecode(entry.path) for entry in entries)]
    if shutil.which("sha256sum") is None:
        pytest.skip("needs sha256sum")
    written = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout
    assert b"".join(map(manifest.line, entries)) == written


@pytest.mark.parametrize("damage", ["flipped", "removed"])
def test_sha256sum_finds_damaged_files(tmp_path: Path, damage: str) -> None:
    manifest.append(tmp_path, filled(tmp_path, NAMES), at=DAY)
    target = tmp_path / "p.png"
    if damage == "flipped":
        data = bytearray(target.read_bytes())
        data[0] ^= 1
        target.write_bytes(data)
    else:
        target.unlink()
    result = sha256sum(tmp_path, ".manifest-2026-11-24.sha256")
    assert result.returncode == 1
    assert result.stdout.count(b": OK") == len(NAMES) - 1


def test_a_new_day_has_a_new_file(tmp_path: Path) -> None:
    first, second = filled(tmp_path, [b"a", b"b"])
    manifest.append(tmp_path, [first], at=DAY)
    manifest.append(tmp_path, [second], at=DAY + 86_400)
    assert sorted(path.name for path in tmp_path.glob(".manifest-*")) == [
        ".manifest-2026-11-24.sha256",
        ".manifest-2026-11-25.sha256",
    ]
    assert manifest.read(tmp_path).entries == (first, second)


@pytest.mark.parametrize("cut", [1, 30, 64, 66, 70])
def test_an_incomplete_line_is_reported_and_then_removed(tmp_path: Path, cut: int) -> None:
    """Killed, or power lost, after `cut` bytes of the second line."""
    first, second = filled(tmp_path, [b"first.png", b"second.png"])
    manifest.append(tmp_path, [first], at=DAY)
    path = tmp_path / os.fsdecode(manifest.name(DAY))
    whole = path.read_bytes()
    path.write_bytes(whole + manifest.line(second)[:cut])
    assert manifest.read(tmp_path) == manifest.Listing((first,), (f"{path.name}, line 2",))
    manifest.append(tmp_path, [second], at=DAY)
    assert path.read_bytes() == whole + manifest.line(second)
    assert sha256sum(tmp_path, path.name).returncode == 0


@pytest.mark.parametrize("left", [b"", b"\0" * 90, b"0123abcd", b"0" * 64 + b"  p"])
def test_an_incomplete_first_line_is_removed_too(tmp_path: Path, left: bytes) -> None:
    (entry,) = filled(tmp_path, [b"p.png"])
    path = tmp_path / os.fsdecode(manifest.name(DAY))
    path.write_bytes(left)
    manifest.append(tmp_path, [entry], at=DAY)
    assert path.read_bytes() == manifest.line(entry)


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n....", b"somebody's words", b"x" * 100_000])
def test_a_file_that_is_no_manifest_is_left_alone(tmp_path: Path, content: bytes) -> None:
    (entry,) = filled(tmp_path, [b"p.png"])
    path = tmp_path / os.fsdecode(manifest.name(DAY))
    path.write_bytes(content)
    with pytest.raises(PublishError, match="move it away"):
        manifest.append(tmp_path, [entry], at=DAY)
    assert path.read_bytes() == content


def test_damage_in_the_last_line_does_not_stop_the_daemon(tmp_path: Path) -> None:
    """The audit reports a flipped bit; the daemon goes on."""
    first, second, third = filled(tmp_path, [b"first.png", b"second.png", b"third.png"])
    manifest.append(tmp_path, [first, second], at=DAY)
    path = tmp_path / os.fsdecode(manifest.name(DAY))
    path.write_bytes(path.read_bytes().replace(b"  second", b" !second"))
    manifest.append(tmp_path, [third], at=DAY)
    assert manifest.read(tmp_path) == manifest.Listing((first, third), (f"{path.name}, line 2",))


def test_a_manifest_that_is_longer_than_the_part_searched_is_added_to(tmp_path: Path) -> None:
    entries = [Entry(b"x" * 200 + b"%d" % number, "0" * 64) for number in range(1000)]
    manifest.append(tmp_path, entries, at=DAY)
    path = tmp_path / os.fsdecode(manifest.name(DAY))
    path.write_bytes(path.read_bytes()[:-5])
    manifest.append(tmp_path, entries[-1:], at=DAY)
    assert manifest.read(tmp_path) == manifest.Listing(tuple(entries), ())


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"")
    folder = tmp_path / "archive"
    folder.mkdir()
    (folder / os.fsdecode(manifest.name(DAY))).symlink_to(outside)
    with pytest.raises(PublishError, match="cannot be written"):
        manifest.append(folder, [Entry(b"p", "0" * 64)], at=DAY)
    assert outside.read_bytes() == b""


def test_a_full_disk_adds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = filled(tmp_path, [b"first.png", b"second.png"])
    manifest.append(tmp_path, [first], at=DAY)
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) <= 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[:40])  # a short write comes first

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(PublishError, match="free some space") as caught:
        manifest.append(tmp_path, [second], at=DAY)
    assert caught.value.retryable
    assert (tmp_path / os.fsdecode(manifest.name(DAY))).read_bytes() == manifest.line(first)


@pytest.mark.parametrize(
    "text",
    [b"", b"words", b"0" * 63 + b"  p", b"G" * 64 + b"  p", b"0" * 64 + b"  ../p", b"0" * 64 + b"  /etc/p",
     b"0" * 64 + b"  a//b", b"0" * 64 + b"  "],
)  # fmt: skip
def test_malformed_lines_and_paths_out_of_the_folder_count_as_damage(text: bytes) -> None:
    assert manifest.parse(text) is None
