"""The folders of the files that are put in place: made where they are missing, and made durable."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from backfire.errors import PublishError
from backfire.files import durable
from backfire.files.outbox.names import hidden
from backfire.types import shown

KNOWN_MOST = 10_000
_known: dict[bytes, tuple[int, int]] = {}
"""Folders whose names are known to be on the disk, with device and inode; at most `KNOWN_MOST`."""
FOLDERS = 0o775
"""The rights that a folder may have from the one above it."""
REFUSED_NAMES = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)
"""The errors of a name that a file system does not take: too long, or with `:`, say, on FAT, NTFS or CIFS."""
_making = threading.Lock()
"""Held while a shared folder is made, because several files may be put into it at once."""


def forget() -> None:
    """Take no folder's name for durable any more, as a new process does."""
    _known.clear()


def sync(unsynced: set[bytes]) -> None:
    """Make all names in these folders durable, and empty the set.

    Raises:
        PublishError: a folder cannot be synced.
    """
    while unsynced:
        folder = unsynced.pop()
        with explained(Path(os.fsdecode(folder)), b"."):
            durable.sync(folder)


@contextmanager
def explained(folder: Path, path: bytes) -> Iterator[None]:
    """Turns an error of the system into a PublishError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "free some space; it is tried again"
        elif error.errno == errno.ENAMETOOLONG:
            remedy = "shorten the name and those of its folders"
        elif error.errno in REFUSED_NAMES:
            remedy = "rename it or its folders, as the file system does not take such a name"
        elif error.errno == errno.EXDEV:
            remedy = "it lies on another file system and is too much to copy; move it away yourself"
        else:
            remedy = f"give uid {os.geteuid()} write access"
        message = f"{shown(path)}: cannot be written in {folder} ({error.strerror}); {remedy}"
        raise PublishError(message, lasting=error.errno in REFUSED_NAMES) from error


def prepared(folder: Path, path: bytes, *, shared_by: str | None = None, into_inbox: bool = False) -> bytes:
    """The absolute path of a file that is to be put in place; its folders are made. `around` gave `path`.

    Args:
        shared_by: the key of the job for which folders are made that get the rights of `folder`. Without one,
            only owner and group may see into the folders that are made.
        into_inbox: whether `folder` is the inbox, where no folder below it may be a link: anybody who drops
            pictures may make one, to a place that the daemon may write to and they may not.

    Raises:
        PublishError: there is a link where none may be.
        OSError: a folder cannot be made.
    """
    top = os.fsencode(folder)
    if into_inbox:
        _refuse_links(top, path)
    target = os.path.join(top, path)
    _make_folder(os.path.dirname(target), top, shared_by)
    return target


def _refuse_links(top: bytes, path: bytes) -> None:
    place = top
    for part in path.split(b"/")[:-1]:
        place = os.path.join(place, part)
        if os.path.islink(place):
            raise PublishError(
                f"{shown(path)}: is not put through the link {shown(place)}, expected a folder; "
                "replace the link by a folder"
            )


def _make_folder(path: bytes, top: bytes, shared_by: str | None) -> None:
    """Make a folder and those above it, and make the names of those below `top` durable.

    A folder that exists may have been made just before a crash, or this moment by another thread, so that
    its name is durable only after the folder above it was synced here.
    """
    found = _identity(path)
    if found is not None and (_known.get(path) == found or not path.startswith(top + b"/")):
        return
    above = os.path.dirname(path)
    _make_folder(above, top, shared_by)
    with suppress(FileExistsError):
        if shared_by is None:
            os.mkdir(path, 0o750)
        else:
            _make_shared(path, above, shared_by)
    durable.sync(above)
    if (found := _identity(path)) is not None:
        if len(_known) >= KNOWN_MOST:
            _known.clear()
        _known[path] = found


def _make_shared(path: bytes, above: bytes, key: str) -> None:
    """Make a folder with the rights of the one above it.

    It has a temporary name until it has those rights: one that a crash left without them under its own name
    could not be told from one that a person made.

    Raises:
        FileExistsError: `path` is there already.
    """
    begun = hidden(path, key)
    with _making:
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fsdecode(path))
        with suppress(FileNotFoundError):
            os.rmdir(begun)  # left by a crash
        mode = os.stat(above).st_mode
        if mode & stat.S_ISGID:
            # Here and not only below: systemd's RestrictSUIDSGID= forbids to change the rights of a folder
            # with a setgid bit, but not to make one in a folder that hands its own down. Threads share the
            # umask: what another one makes at this moment gets it, too, so that it is changed only here.
            rights = mode & (FOLDERS | stat.S_ISVTX)
            umask = os.umask(0o777 & ~rights)
            try:
                os.mkdir(begun, 0o777 | rights)
            finally:
                os.umask(umask)
        else:
            os.mkdir(begun, 0o777)
        try:
            # Opened without following a link, which somebody may have put there in the meantime.
            made = os.open(begun, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                share_rights(made, above)
            finally:
                os.close(made)
            os.rename(begun, path)
        except OSError as error:
            with suppress(OSError):
                os.rmdir(begun)
            # Somebody made the folder in the meantime, and perhaps put something into it.
            if error.errno in (errno.ENOTEMPTY, errno.ENOTDIR):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fsdecode(path)) from None
            raise


def share_rights(descriptor: int, folder: bytes) -> None:
    """Give a new, open file or folder the rights of the folder that it lies in; a file gets none to execute.

    The process's umask says nothing about a folder that several people work in. A setgid bit and a default
    ACL of that folder had their effect when the file was made, and stay. Nobody outside owner and group may
    write: what was verified must stay what it is.
    """
    with suppress(OSError):  # file systems without such rights
        above, status = os.stat(folder).st_mode, os.fstat(descriptor)
        mode = stat.S_IMODE(status.st_mode)
        allowed = FOLDERS | stat.S_ISVTX if stat.S_ISDIR(status.st_mode) else 0o664
        wanted = (mode & ~0o777) | (above & allowed)
        # Of a group that is not ours the kernel would take the setgid bit away without a word.
        ours = status.st_gid in (os.getegid(), *os.getgroups()) or os.geteuid() == 0
        if mode != wanted and (ours or not mode & stat.S_ISGID):
            os.fchmod(descriptor, wanted)


def _identity(path: bytes) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def named(target: bytes, unsynced: set[bytes] | None) -> None:
    """Make a new name durable, or note its folder in `unsynced`."""
    folder = os.path.dirname(target)
    if unsynced is None:
        durable.sync(folder)
    else:
        unsynced.add(folder)
