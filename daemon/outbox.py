"""Putting files in place: outbox, archive, failed, reports. Atomic, durable, never over another file.

A file is written under a hidden name in its destination's own folder, synced, read back, and
linked to its final name, which fails if that is taken. The same content under that name is
adopted instead (a restart re-does a step without harm); other content gets the job's key in the name.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from daemon.domain import shown
from daemon.errors import PublishError

NAME_MAX = 255
"""Bytes of a file name on every common file system."""

NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""How a file system without hard links refuses one."""


def place(data: bytes, folder: Path, path: bytes, *, key: str) -> bytes:
    """Write new content as `folder`/`path`; returns the relative path it got.

    Raises:
        PublishError: no space, no permission, or read back wrong.
    """
    with _explained(folder, path):
        target = _target(folder, path)
        temporary = _temporary(target, key)
        try:
            with _create(temporary) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            return _settle(folder, temporary, path, sha256(data), key)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)


def put(source: Path, folder: Path, path: bytes, *, sha256: str, key: str) -> bytes:
    """Give a private file a second name `folder`/`path`, a copy across file systems; returns the path it got.

    `source` must have no other writer: on one file system both names share the content.

    Raises:
        PublishError: no space, no permission, or the content is not `sha256`.
    """
    with _explained(folder, path):
        target = _target(folder, path)
        temporary = _temporary(target, key)
        try:
            try:
                os.link(source, temporary, follow_symlinks=False)
            except OSError as error:
                if error.errno not in (errno.EXDEV, *NO_LINKS):
                    raise
                with open(source, "rb") as reader, _create(temporary) as writer:
                    shutil.copyfileobj(reader, writer, 1 << 20)
                    writer.flush()
                    os.fsync(writer.fileno())
                shutil.copystat(source, temporary)
            return _settle(folder, temporary, path, sha256, key)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)


def remove(root: Path, path: bytes, *, sha256: str, key: str) -> bool:
    """Unlink `root`/`path` if its content is `sha256`; anything else that has come there stays.

    The file is renamed first, so that what is hashed is what is unlinked, whoever writes meanwhile.

    Returns:
        Whether the content is gone from there; False if other content lies there now.

    Raises:
        PublishError: no permission.
    """
    origin = os.path.join(os.fsencode(root), path)
    with _explained(root, path):
        aside = _temporary(origin, key)
        _clear(aside, root, path, sha256, key)  # what a crash left there
        try:
            os.rename(origin, aside)
        except FileNotFoundError:
            return True
        return _clear(aside, root, path, sha256, key)


def _clear(aside: bytes, root: Path, path: bytes, sha256: str, key: str) -> bool:
    """Unlink a file that stands aside if it has the content, else put it back under a free name."""
    if not os.path.lexists(aside):
        return True
    if file_sha256(aside) == sha256:
        os.unlink(aside)
        return True
    for name in (path, keyed(path, key)):
        with suppress(FileExistsError):
            _name(aside, os.path.join(os.fsencode(root), name))
            with suppress(FileNotFoundError):
                os.unlink(aside)
            break
    return False


def move(root: Path, source: bytes, folder: Path, path: bytes, *, sha256: str, key: str) -> bytes:
    """`put`, then `remove`: for files that have no other writer."""
    placed = put(root / os.fsdecode(source), folder, path, sha256=sha256, key=key)
    remove(root, source, sha256=sha256, key=key)
    return placed


def replace(data: bytes, folder: Path, path: bytes) -> None:
    """Write `folder`/`path` atomically over what may be there: reports, which have one owner.

    Raises:
        PublishError: no space or no permission.
    """
    with _explained(folder, path):
        target = _target(folder, path)
        temporary = _temporary(target, "report")
        try:
            with _create(temporary) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
            _sync_folder(os.path.dirname(target))
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)


def holds(folder: Path, path: bytes, sha256: str) -> bool:
    """Whether `folder`/`path` is a file of that content."""
    try:
        return file_sha256(os.path.join(os.fsencode(folder), path)) == sha256
    except OSError:
        return False


def confirm(folder: Path, path: bytes, sha256: str) -> None:
    """Read `folder`/`path` back from the disk, under its final name, before its source may go.

    Raises:
        PublishError: it cannot be read, or its content is not `sha256`.
    """
    with _explained(folder, path):
        found = file_sha256(os.path.join(os.fsencode(folder), path), from_disk=True)
    if found != sha256:
        raise PublishError(
            f"{shown(path)}: reads back from {folder} as {found[:12]}…, expected {sha256[:12]}…; "
            "the original stays where it is; check the disk, then move the damaged copy away"
        )


def sha256(data: bytes) -> str:
    """Lower-case hex SHA-256."""
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: bytes | Path, *, from_disk: bool = False) -> str:
    """Lower-case hex SHA-256 of a file's content.

    Args:
        path: the file; links are followed.
        from_disk: read what the disk holds rather than what memory still remembers of it.
    """
    with open(path, "rb") as file:
        if from_disk:
            # Only synced pages are dropped, so a file that was just written needs its fsync before.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return hashlib.file_digest(file, "sha256").hexdigest()


def keyed(path: bytes, key: str) -> bytes:
    """The path with the first eight digits of a key before the extension: `a.1f2e3d4c.jpg`."""
    stem, extension = os.path.splitext(path)
    return _fitted(stem, b"." + key[:8].encode() + extension)


def beside(path: bytes, suffix: bytes, key: str) -> bytes:
    """The path with a suffix; a name too long for it is shortened and gets the key."""
    if len(os.path.basename(path)) + len(suffix) <= NAME_MAX:
        return path + suffix
    return _fitted(path, b"." + key[:8].encode() + suffix)


def _fitted(stem: bytes, ending: bytes) -> bytes:
    folder, name = os.path.split(stem)
    return os.path.join(folder, name[: NAME_MAX - len(ending)] + ending)


def destined(folder: Path, path: bytes, *, sha256: str, key: str) -> bytes:
    """The path that content would get in `folder` now: what `place` and `put` do, without doing it."""
    taken = os.path.lexists(os.path.join(os.fsencode(folder), path))
    return keyed(path, key) if taken and not holds(folder, path, sha256) else path


def _settle(folder: Path, temporary: bytes, path: bytes, sha256: str, key: str) -> bytes:
    """Verify the temporary file, then give it its final name without replacing anything."""
    if file_sha256(temporary) != sha256:
        raise PublishError(f"{shown(path)}: reads back different from what was written; check the disk")
    for candidate in (path, keyed(path, key)):
        target = _target(folder, candidate)
        try:
            _name(temporary, target)
        except FileExistsError:
            if not holds(folder, candidate, sha256):
                continue
        _sync_folder(os.path.dirname(target))
        return candidate
    message = f"{shown(path)}: both names are taken by other content in {folder}; move those files away"
    raise PublishError(message)


def _name(temporary: bytes, target: bytes) -> None:
    """Link without clobbering; without hard links, claim the name with O_EXCL and rename over it."""
    try:
        os.link(temporary, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640))
        os.rename(temporary, target)


def _target(folder: Path, path: bytes) -> bytes:
    """The absolute path, its parents made; `path` must stay inside `folder`."""
    parts = path.split(b"/")
    if path.startswith(b"/") or any(part in (b"", b".", b"..") for part in parts):
        raise PublishError(f"{shown(path)}: is not a plain relative path; it would leave {folder}")
    target = os.path.join(os.fsencode(folder), path)
    os.makedirs(os.path.dirname(target), mode=0o750, exist_ok=True)
    return target


def _temporary(target: bytes, key: str) -> bytes:
    # Not derived from the name: a 255-byte name has no room for a suffix.
    tag = hashlib.sha256(os.path.basename(target)).hexdigest()[:12]
    return os.path.join(os.path.dirname(target), f".backfire-{key[:16]}-{tag}.part".encode())


def _create(path: bytes) -> BinaryIO:
    with suppress(FileNotFoundError):
        os.unlink(path)  # left by a crash; the name is ours alone
    return os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o640), "wb")


def _sync_folder(path: bytes) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _explained(folder: Path, path: bytes) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "free some space; it is tried again"
        elif error.errno == errno.ENAMETOOLONG:
            remedy = "shorten the name"
        else:
            remedy = f"give uid {os.geteuid()} write access"
        message = f"{shown(path)}: cannot be written in {folder} ({error.strerror}); {remedy}"
        raise PublishError(message) from error
