"""Private copies of files of the inbox, hashed while they are copied; nothing about the files is trusted."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from backfire.errors import Code, InputError
from backfire.files import durable, safe_paths
from backfire.files.inbox.mounts import is_on_network
from backfire.files.inbox.seen import Signature
from backfire.types import shown


class Taken(NamedTuple):
    """A private copy of a file.

    Attributes:
        sha256: of its content, lower-case hex.
        signature: of the file when it was copied.
        zeros: how many bytes at its end are 0.
    """

    sha256: str
    signature: Signature
    zeros: int

    @property
    def hollow(self) -> bool:
        """Whether the end looks like preallocated space; even flat pictures end in fewer zeros."""
        return self.zeros > max(64, self.signature.size // 8)


def take(
    root: Path, path: bytes, copy: Path, expected: Signature | None = None, *, most: int | None = None
) -> Taken:
    """Copy a file of the inbox to `copy` while hashing it; nothing outside `root` is ever opened.

    Args:
        root, path: the inbox, and the file relative to it.
        copy: where to; what lies there is lost.
        expected: the file's signature when it was scanned; None takes any.
        most: how many bytes it may have; None sets no limit.

    Raises:
        InputError: CHANGED (retryable) if it is gone, is not `expected`, changed while being read, or
            somebody on this machine has it open for writing; UNREADABLE if it is no regular file
            or may not be read; TOO_LARGE if it has more than `most` bytes, before any is copied.
        OSError: it cannot be written, or there is no room for it, before any of it is copied.
    """
    name = shown(path)
    try:
        descriptor = _opened(root, path)
    except FileNotFoundError as error:
        raise InputError(Code.CHANGED, f"{name}: is gone", retryable=True) from error
    except OSError as error:
        raise InputError(Code.UNREADABLE, _why_not(root, path, error), retryable=True) from error
    with os.fdopen(descriptor, "rb") as source:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise InputError(Code.UNREADABLE, f"{name}: is not a regular file; only pictures are taken in")
        if is_being_written(descriptor):
            raise InputError(Code.CHANGED, f"{name}: is still open for writing", retryable=True)
        require_size(name, before.st_size, most)
        _require_room(copy.parent, before.st_size)
        read = _Read(source, before.st_size)
        # What lies there is not written over: on one file system it may be the very file in the archive.
        copy.unlink(missing_ok=True)
        try:
            with copy.open("xb") as target:
                durable.write(target, read)
        except BaseException:  # half a copy would fill the disk, and could be taken for a whole one
            copy.unlink(missing_ok=True)
            raise
        after = os.fstat(descriptor)
    signature = Signature.of(after)
    stood = Signature.of(before) == signature and read.length == signature.size
    if not stood or (expected is not None and signature != expected):
        raise InputError(
            Code.CHANGED, f"{name}: changed while it was read; it is tried again", retryable=True
        )
    return Taken(read.digest.hexdigest(), signature, read.zeros)


def head(root: Path, path: bytes, most: int) -> bytes:
    """The first `most` bytes of a file of the inbox; nothing outside `root` is ever opened.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    with os.fdopen(descriptor := _opened(root, path), "rb") as source:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", shown(path))
        return source.read(most)


def digest(root: Path, path: bytes) -> tuple[str, Signature]:
    """The SHA-256 of a file of the inbox, and its signature before; nothing outside `root` is ever opened.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    with os.fdopen(descriptor := _opened(root, path), "rb") as source:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", shown(path))
        return durable.digest(source), Signature.of(status)


def _opened(root: Path, path: bytes) -> int:
    """The descriptor of a file, open for reading; no link is followed."""
    with safe_paths.folder_of(root, path) as (folder, last):
        # NONBLOCK, because opening a FIFO would wait for its writer.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        return os.open(last, flags, dir_fd=folder)


def require_size(name: str, size: int, most: int | None) -> None:
    """Raise InputError, TOO_LARGE, if a file has more than `most` bytes."""
    if most is not None and size > most:
        raise InputError(
            Code.TOO_LARGE,
            f"{name}: has {size} bytes, limits.max_bytes allows {most}; make it smaller or raise the limit",
        )


def _require_room(folder: Path, size: int) -> None:
    """Refuse to fill a disk, on which the job database may lie, with what does not fit on it."""
    if shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


class _Read:
    """The pieces of a file, hashed as they are read, up to the size that it had; it may grow for ever."""

    def __init__(self, source: BinaryIO, size: int) -> None:
        self._source, self._size = source, size
        self.digest, self.zeros, self.length = hashlib.sha256(), 0, 0

    def __iter__(self) -> Iterator[bytes]:
        for piece in durable.pieces(self._source):
            self.digest.update(piece)
            kept = len(piece.rstrip(b"\0"))
            self.zeros = len(piece) - kept if kept else self.zeros + len(piece)
            self.length += len(piece)
            if self.length > self._size:  # the file grows
                return
            yield piece


def is_being_written(descriptor: int) -> bool:
    """Whether a process on this machine has the file open for writing; False where that cannot be told.

    The kernel grants a read lease only on a file without writers (fcntl(2), F_SETLEASE). There are no
    leases on files of other users (without CAP_LEASE) and on some file systems. NFSv4 and CIFS refuse one
    with the same error wherever the server has not delegated the file, so that it says nothing there.
    """
    if not hasattr(fcntl, "F_SETLEASE"):
        return False
    try:
        # The kernel announces a writer that comes meanwhile by a signal; SIGURG is ignored by default.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN and not is_on_network(descriptor)
    return False


def _why_not(root: Path, path: bytes, error: OSError) -> str:
    """Which user was refused which file, for the person who can give access."""
    try:
        status = os.lstat(os.path.join(os.fsencode(root), path))
        mode = f", the file is of uid {status.st_uid} with mode {status.st_mode & 0o7777:04o}"
    except OSError:
        mode = ""
    return (
        f"{shown(path)}: cannot be read as uid {os.geteuid()}{mode} ({error.strerror}); give it read access"
    )
