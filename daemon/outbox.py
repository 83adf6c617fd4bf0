"""Putting files in place: outbox, archive, failed, reports. Atomic, durable, never over another file.

A file is written under a hidden name in its destination's own folder, synced, read back, and
given its final name, which fails if that is taken. The same content under that name is
adopted instead (a restart re-does a step without harm); other content gets the job's key in the name.

A name is durable once its folder is synced. Steps for several jobs hand in a set, `unsynced`, which takes
up the folders instead, and `sync` it before anything relies on the names: one sync serves all of them.
Longer than 300 lines so that every way in which a name is given stands beside the others.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from daemon import paths
from daemon.domain import shown
from daemon.errors import PublishError

NAME_MAX = 255
"""Bytes of a file name on every common file system."""


def place(
    content: bytes | Path,
    folder: Path,
    path: bytes,
    *,
    key: str,
    sha256: str | None = None,
    unsynced: set[bytes] | None = None,
) -> bytes:
    """Write new content as `folder`/`path`; returns the relative path it got.

    The file is a new one of the folder, with the group and rights that come with it, and never a link.

    Args:
        content: bytes, or a private file of ours that holds them.
        sha256: their SHA-256, where it is known.

    Raises:
        PublishError: no space, no permission, or read back wrong.
    """
    with _explained(folder, path):
        target = _target(folder, path)
        temporary = _temporary(target, key)
        begun = os.path.lexists(temporary)
        try:
            with _create(temporary) as file:
                with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as source:
                    expected = sha256 or hashlib.file_digest(source, "sha256").hexdigest()
                    source.seek(0)
                    shutil.copyfileobj(source, file, 1 << 20)
                file.flush()
                os.fsync(file.fileno())
            return _settle(folder, temporary, path, expected, key, begun=begun, unsynced=unsynced)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)


def put(
    source: Path, folder: Path, path: bytes, *, sha256: str, key: str, unsynced: set[bytes] | None = None
) -> bytes:
    """Give a private file a second name `folder`/`path`, a copy across file systems; returns the path it got.

    `source` must have no other writer: on one file system both names share the content.

    Raises:
        PublishError: no space, no permission, or the content is not `sha256`.
    """
    with _explained(folder, path):
        target = _target(folder, path)
        temporary = _temporary(target, key)
        begun = os.path.lexists(temporary)
        try:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            try:
                os.link(source, temporary, follow_symlinks=False)
            except OSError as error:
                if error.errno not in (errno.EXDEV, *paths.NO_LINKS):
                    raise
                with open(source, "rb") as reader, _create(temporary) as writer:
                    shutil.copyfileobj(reader, writer, 1 << 20)
                    writer.flush()
                    os.fsync(writer.fileno())
                shutil.copystat(source, temporary)
            return _settle(folder, temporary, path, sha256, key, begun=begun, unsynced=unsynced)
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
    with _explained(root, path):
        try:
            with paths.folder_of(root, path) as (folder, name):
                aside = _temporary(name, key)
                _clear(folder, aside, name, sha256, key)  # what a crash left there
                try:
                    os.rename(name, aside, src_dir_fd=folder, dst_dir_fd=folder)
                except FileNotFoundError:
                    return True
                return _clear(folder, aside, name, sha256, key)
        except FileNotFoundError:  # its folder went too
            return True


def _clear(folder: int, aside: bytes, name: bytes, sha256: str, key: str) -> bool:
    """Unlink a file that stands aside if it has the content, else put it back under a free name."""
    try:
        descriptor = os.open(aside, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return True
    except OSError:  # a link has come there: back with it, unread
        same = False
    else:
        with os.fdopen(descriptor, "rb") as file:
            regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            same = regular and hashlib.file_digest(file, "sha256").hexdigest() == sha256
    if same:
        os.unlink(aside, dir_fd=folder)
        return True
    for free in (name, keyed(name, key)):
        with suppress(FileExistsError):
            paths.give_name(aside, free, folder=folder)
            with suppress(FileNotFoundError):
                os.unlink(aside, dir_fd=folder)
            break
    return False


def move(root: Path, source: bytes, folder: Path, path: bytes, *, sha256: str, key: str) -> bytes:
    """`put`, then `remove`: for files that have no other writer."""
    placed = put(root / os.fsdecode(source), folder, path, sha256=sha256, key=key)
    remove(root, source, sha256=sha256, key=key)
    return placed


def replace(data: bytes, folder: Path, path: bytes, *, unsynced: set[bytes] | None = None) -> None:
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
            _named(target, unsynced)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)


def sync(unsynced: set[bytes]) -> None:
    """Make the names durable that were given in these folders, and empty the set.

    Raises:
        PublishError: a folder cannot be synced.
    """
    while unsynced:
        folder = unsynced.pop()
        with _explained(Path(os.fsdecode(folder)), b"."):
            _sync_folder(folder)


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


def _settle(
    folder: Path,
    temporary: bytes,
    path: bytes,
    sha256: str,
    key: str,
    *,
    begun: bool,
    unsynced: set[bytes] | None,
) -> bytes:
    """Verify the temporary file, then give it its final name without replacing anything."""
    if file_sha256(temporary) != sha256:
        raise PublishError(f"{shown(path)}: reads back different from what was written; check the disk")
    for candidate in (path, keyed(path, key)):
        target = _target(folder, candidate)
        try:
            paths.give_name(temporary, target, resume=begun)
        except FileExistsError:
            if not holds(folder, candidate, sha256):
                continue
        _named(target, unsynced)
        return candidate
    message = f"{shown(path)}: both names are taken by other content in {folder}; move those files away"
    raise PublishError(message)


def _target(folder: Path, path: bytes) -> bytes:
    """The absolute path, its parents made; `path` must stay inside `folder`."""
    try:
        paths.parts(path)
    except OSError:
        message = f"{shown(path)}: is not a plain relative path; it would leave {folder}"
        raise PublishError(message) from None
    target = os.path.join(os.fsencode(folder), path)
    _make_folder(os.path.dirname(target))
    return target


def _make_folder(path: bytes) -> None:
    """Make a folder and those above it; a new one is a name too, which a power cut must not take."""
    if os.path.isdir(path):
        return
    above = os.path.dirname(path)
    _make_folder(above)
    with suppress(FileExistsError):
        os.mkdir(path, mode=0o750)
    _sync_folder(above)


def _temporary(target: bytes, key: str) -> bytes:
    # Not derived from the name: a 255-byte name has no room for a suffix.
    tag = hashlib.sha256(os.path.basename(target)).hexdigest()[:12]
    return os.path.join(os.path.dirname(target), f".backfire-{key[:16]}-{tag}.part".encode())


def _create(path: bytes) -> BinaryIO:
    with suppress(FileNotFoundError):
        os.unlink(path)  # left by a crash; the name is ours alone
    return os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o640), "wb")


def _named(target: bytes, unsynced: set[bytes] | None) -> None:
    folder = os.path.dirname(target)
    if unsynced is None:
        _sync_folder(folder)
    else:
        unsynced.add(folder)


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
