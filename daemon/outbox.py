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
            return _settle(folder, temporary, path, hashlib.sha256(data).hexdigest(), key)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)


def move(root: Path, source: bytes, folder: Path, path: bytes, *, sha256: str, key: str) -> bytes:
    """Move `root`/`source` to `folder`/`path`, across file systems too; returns the path it got.

    The source is unlinked only after its content stands, synced and hashed, in its new place.

    Raises:
        PublishError: no space, no permission, or the content is not `sha256` any more.
    """
    origin = os.path.join(os.fsencode(root), source)
    with _explained(folder, path):
        target = _target(folder, path)
        temporary = _temporary(target, key)
        try:
            try:
                os.link(origin, temporary, follow_symlinks=False)
            except OSError as error:
                if error.errno not in (
                    errno.EXDEV,
                    errno.EPERM,
                    errno.EOPNOTSUPP,
                    errno.ENOSYS,
                    errno.EMLINK,
                ):
                    raise
                with open(origin, "rb") as reader, _create(temporary) as writer:
                    shutil.copyfileobj(reader, writer, 1 << 20)
                    writer.flush()
                    os.fsync(writer.fileno())
                shutil.copystat(origin, temporary)
            placed = _settle(folder, temporary, path, sha256, key)
            os.unlink(origin)
            _sync_folder(os.path.dirname(origin))
            return placed
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)


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


def file_sha256(path: bytes | Path) -> str:
    """Lower-case hex SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def keyed(path: bytes, key: str) -> bytes:
    """The path with the first eight digits of a key before the extension: `a.1f2e3d4c.jpg`."""
    stem, extension = os.path.splitext(path)
    return stem + b"." + key[:8].encode() + extension


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
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
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
        else:
            remedy = f"give uid {os.geteuid()} write access"
        message = f"{shown(path)}: cannot be written in {folder} ({error.strerror}); {remedy}"
        raise PublishError(message) from error
