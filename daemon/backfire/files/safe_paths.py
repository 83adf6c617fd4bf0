"""Files reached without following a link, and renamed without replacing another.

Somebody may replace a folder by a link between a check and the use of what was checked. So every
component of a path is opened relative to the one before (openat(2), O_NOFOLLOW).
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
"""The errors with which file systems that have no hard links refuse one."""

NOT_REGULAR = "is a folder, a pipe or a device and no regular file"
_RENAME_NOREPLACE = 1
_AT_FDCWD = -100


def parts(path: bytes) -> list[bytes]:
    """The components of a plain relative path.

    Raises:
        OSError: EINVAL, where it is absolute or holds an empty, `.` or `..` component.
    """
    found = path.split(b"/")
    if any(part in (b"", b".", b"..") for part in found):
        raise OSError(errno.EINVAL, "not a plain path below its folder")
    return found


@contextmanager
def folder_of(root: Path, path: bytes) -> Iterator[tuple[int, bytes]]:
    """The descriptor of the folder that holds `root`/`path`, and the name in it.

    `root` itself may be a link; what lies below it may not.

    Raises:
        OSError: it is not there, a component is a link or no folder, or the path is not plain.
    """
    *parents, name = parts(path)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    folder = os.open(root, flags)
    try:
        for part in parents:
            inner = os.open(part, flags | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
        yield folder, name
    finally:
        os.close(folder)


def require_regular(path: Path) -> None:
    """Make sure that a name leads to a regular file, so that opening it cannot wait for ever.

    Raises:
        OSError: it cannot be reached, or is no regular file.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, NOT_REGULAR, str(path))


def is_regular(file: Path) -> bool:
    """Whether there is a regular file; False for a name that no file can have."""
    try:
        require_regular(file)
    except (OSError, ValueError):
        return False
    return True


def read_regular(path: Path, most: int) -> bytes:
    """The content of a file that a person named; links are followed.

    Raises:
        OSError: it cannot be read, is no regular file, such as a pipe that nobody writes to or a device that
            never ends, or has more than `most` bytes.
    """
    # NONBLOCK, because opening a pipe would wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, NOT_REGULAR, str(path))
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"has more than the {most} bytes that limits.max_bytes allows", str(path))
    return data


def give_name(source: bytes, target: bytes, *, folder: int | None = None, resume: bool = False) -> None:
    """Give a file its final name without replacing anything; the first name may be gone afterwards.

    This takes a hard link where the file system has them, else renameat2(RENAME_NOREPLACE). Else an empty
    file claims the name and is renamed over. A crash in between leaves the empty file behind.

    Args:
        source, target: names, relative to `folder` where that is given.
        folder: the descriptor of a folder.
        resume: whether this step was begun before, so that an empty file at `target` is what it left.

    Raises:
        FileExistsError: `target` is taken.
    """
    try:
        os.link(source, target, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        return
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
    try:
        rename_noreplace(source, target, folder)
        return
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    if resume and _is_empty(target, folder):
        os.unlink(target, dir_fd=folder)
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o640, dir_fd=folder))
    os.rename(source, target, src_dir_fd=folder, dst_dir_fd=folder)


def _is_empty(path: bytes, folder: int | None) -> bool:
    try:
        return os.stat(path, dir_fd=folder, follow_symlinks=False).st_size == 0
    except OSError:
        return False


def rename_noreplace(source: bytes, target: bytes, folder: int | None) -> None:
    """Rename within `folder` (a descriptor; None for absolute names), never over another file.

    Raises:
        OSError: EEXIST where the target exists; EINVAL or ENOSYS where the system cannot do this.
    """
    at = _AT_FDCWD if folder is None else folder
    if _renameat2()(at, source, at, target, _RENAME_NOREPLACE) != 0:
        number = ctypes.get_errno()
        kind = FileExistsError if number == errno.EEXIST else OSError
        raise kind(number, os.strerror(number), os.fsdecode(target))


@cache
def _renameat2() -> Callable[[int, bytes, int, bytes, int], int]:
    """The call of glibc or musl, or one that fails with ENOSYS where there is none."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):

        def missing(*_: object) -> int:
            ctypes.set_errno(errno.ENOSYS)
            return -1

        return missing
    call.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    return call
