"""Writing files, putting them in place, and reading them back."""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from backfire.errors import PublishError
from backfire.files import durable, safe_paths
from backfire.files.outbox.folders import explained, named, prepared, share_rights
from backfire.files.outbox.names import around, hidden, names
from backfire.types import shown

PRIVATE = 0o640
"""The rights of files that the daemon keeps to itself: its owner and their group may read them."""


def place(
    content: bytes | Path,
    folder: Path,
    path: bytes,
    *,
    key: str,
    sha256: str | None = None,
    unsynced: set[bytes] | None = None,
    mode: int | None = None,
    into_inbox: bool = False,
) -> bytes:
    """Write new content as `folder`/`path`; returns the relative path it got.

    The file is new in the folder, with the group that files get there, and never a link.

    Args:
        content: bytes, or a private file that holds them.
        folder, path: where to.
        key: the job's, which becomes part of the name if that is taken.
        sha256: the content's SHA-256, if it is known.
        unsynced: takes up the folder, which the caller syncs later; None syncs it here.
        mode: the file's rights, less those that the umask takes; None gives it the rights of its folder.
        into_inbox: whether the folder is the inbox, where others write too: folders that are made get its
            rights, and none is reached through a link.

    Raises:
        PublishError: no space, no permission, a link where none may be, or what was read back differs.
    """
    shared = mode is None
    with _hidden(folder, path, key, shared=shared, into_inbox=into_inbox) as (path, temporary, begun):
        source = io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")
        with source, create(temporary, shared=shared, mode=PRIVATE if mode is None else mode) as file:
            expected = sha256 or durable.digest(source)
            source.seek(0)
            durable.write(file, durable.pieces(source))
        return _settle(folder, temporary, path, expected, key, unsynced, begun=begun, into_inbox=into_inbox)


def put(
    source: Path,
    folder: Path,
    path: bytes,
    *,
    sha256: str,
    key: str,
    unsynced: set[bytes] | None = None,
    into_inbox: bool = False,
) -> bytes:
    """Put a private file in place as `folder`/`path`, by a link or a copy; returns the path it got.

    `source` must have no other writer, because both names share the content on one file system.

    Args:
        source, folder, path: from where to where.
        sha256, key, unsynced, into_inbox: see `place`.

    Raises:
        PublishError: no space, no permission, a link where none may be, or the content is not `sha256`.
    """
    with _hidden(folder, path, key, into_inbox=into_inbox) as (path, temporary, begun):
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        try:
            os.link(source, temporary, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.EXDEV, *safe_paths.NO_LINKS):
                raise
            with open(source, "rb") as reader, create(temporary) as writer:
                durable.write(writer, durable.pieces(reader))
            shutil.copystat(source, temporary)
        return _settle(folder, temporary, path, sha256, key, unsynced, begun=begun, into_inbox=into_inbox)


def replace(
    data: bytes,
    folder: Path,
    path: bytes,
    *,
    key: str = "report",
    unsynced: set[bytes] | None = None,
    mode: int = PRIVATE,
) -> None:
    """Write `folder`/`path` atomically in place of what is there, as for reports, which have one owner.

    Args:
        key: the job's, if `discard` may have to find what a crash leaves of this.
        mode: see `place`.

    Raises:
        PublishError: no space or no permission.
    """
    with _hidden(folder, path, key) as (path, temporary, _):
        with create(temporary, mode=mode) as file:
            durable.write(file, [data])
        target = prepared(folder, path)
        os.replace(temporary, target)
        named(target, unsynced)


@contextmanager
def _hidden(
    folder: Path, path: bytes, key: str, *, shared: bool = False, into_inbox: bool = False
) -> Iterator[tuple[bytes, bytes, bool]]:
    """A temporary name in the folder that a file is to be in, with nothing left under it afterwards.

    Returns:
        The relative path as `around` gives it, the temporary name (absolute), and whether a crash had
        left a file under that name.

    Raises:
        PublishError: what the system refused within, and what to do.
    """
    with explained(folder, path):
        path = around(folder, path)
        shared_by = key if shared or into_inbox else None
        target = prepared(folder, path, shared_by=shared_by, into_inbox=into_inbox)
        temporary = hidden(target, key)
        try:
            yield path, temporary, os.path.lexists(temporary)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)


def holds(folder: Path, path: bytes, sha256: str, *, size: int | None = None, strict: bool = False) -> bool:
    """Whether `folder`/`path` is a file of that content; a file of another size, in bytes, is not read.

    Raises:
        OSError: only with `strict`, where nobody can tell, as there is something that cannot be read now.
    """
    file = os.path.join(os.fsencode(folder), path)
    try:
        return size in (None, os.stat(file).st_size) and durable.file_sha256(file) == sha256
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False
    except OSError:
        if strict:
            raise
        return False


def confirm(folder: Path, path: bytes, sha256: str) -> None:
    """Read `folder`/`path` back from the disk, under its final name, before its source may go.

    Raises:
        PublishError: it cannot be read, or its content is not `sha256`.
    """
    with explained(folder, path):
        found = durable.file_sha256(os.path.join(os.fsencode(folder), path), from_disk=True)
    if found != sha256:
        raise PublishError(
            f"{shown(path)}: reads back from {folder} as {found[:12]}…, expected {sha256[:12]}…; "
            "the original stays where it is; check the disk, then move the damaged copy away"
        )


def find(
    folder: Path, path: bytes, *, key: str, sha256: str, size: int | None = None, strict: bool = False
) -> bytes | None:
    """The name under which `folder` holds the content, of those it may have; None if there is none.

    Raises:
        OSError: see `holds`; a file that cannot be read does no harm where another one is the right one.
    """
    candidates = names(folder, path, key=key, sha256=sha256)
    found = next((path for path in candidates if holds(folder, path, sha256, size=size)), None)
    if found is None and strict:
        again = (path for path in candidates if holds(folder, path, sha256, size=size, strict=True))
        return next(again, None)
    return found


def destined(folder: Path, path: bytes, *, sha256: str, key: str, size: int | None = None) -> bytes:
    """The path that `place` and `put` would give content in `folder` now."""

    def is_free(path: bytes) -> bool:
        taken = os.path.lexists(os.path.join(os.fsencode(folder), path))
        return not taken or holds(folder, path, sha256, size=size)

    *others, last = names(folder, path, key=key, sha256=sha256)
    return next((path for path in others if is_free(path)), last)


def _settle(
    folder: Path,
    temporary: bytes,
    path: bytes,
    sha256: str,
    key: str,
    unsynced: set[bytes] | None,
    *,
    begun: bool,
    into_inbox: bool,
) -> bytes:
    """Verify the temporary file, then give it its final name without replacing anything."""
    if durable.file_sha256(temporary) != sha256:
        raise PublishError(f"{shown(path)}: reads back different from what was written; check the disk")
    for candidate in names(folder, path, key=key, sha256=sha256):
        target = prepared(folder, candidate, into_inbox=into_inbox)
        try:
            safe_paths.give_name(temporary, target, resume=begun)
        except FileExistsError:
            if not holds(folder, candidate, sha256, size=os.stat(temporary).st_size):
                continue
        named(target, unsynced)
        return candidate
    message = f"{shown(path)}: its names are taken by other content in {folder}; move those files away"
    raise PublishError(message)


def create(path: bytes, *, shared: bool = False, mode: int = PRIVATE) -> BinaryIO:
    """A new temporary file, open for writing; what a crash left under its name is removed.

    Args:
        shared: it gets the rights of its folder in the end.
        mode: its rights, less those that the umask takes.
    """
    with suppress(FileNotFoundError):
        os.unlink(path)  # left by a crash; the name is ours alone
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, mode)
    if shared:
        share_rights(descriptor, os.path.dirname(path))
    return os.fdopen(descriptor, "wb")
