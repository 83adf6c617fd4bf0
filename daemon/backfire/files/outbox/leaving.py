"""How files leave a folder: only the intended ones, even while others write there."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from backfire.errors import PublishError
from backfire.files import durable, inbox, safe_paths
from backfire.files.outbox.folders import explained, prepared
from backfire.files.outbox.names import around, hidden_by, keyed, leaving_as, names
from backfire.files.outbox.writing import put
from backfire.types import shown

Meant = Callable[[int, bytes], bool]
"""Whether a name in a folder, given by its descriptor, is that of the intended file."""


class _StillWritten(PublishError):
    """A file has the intended content, and a process on this machine has it open for writing."""


def remove(root: Path, path: bytes, *, sha256: str, key: str) -> bool:
    """Unlink `root`/`path` if its content is `sha256`; any other file under that name stays.

    The file is renamed first, so that what was hashed is what is unlinked, even while others write there.

    Returns:
        Whether the content is gone from there; False if there is other content now.

    Raises:
        PublishError: no permission, or a process on this machine has the file open for writing.
    """

    def meant(inside: int, one: bytes) -> bool:
        return _has_content(inside, one, sha256, path)

    with explained(root, path):
        try:
            with safe_paths.folder_of(root, path) as (folder, name):
                _clear(folder, leaving_as(name, key), name, key, meant)  # a crash may have left it
                # Asked before it is renamed, or it would be missing while it is hashed, at every try again.
                if _is_being_written(folder, name) and not meant(folder, name):
                    return False
                return _unlink(folder, name, key, meant)
        except FileNotFoundError:  # its folder went too
            return True


def shift(
    root: Path,
    source: bytes,
    folder: Path,
    path: bytes,
    *,
    key: str,
    same: Callable[[os.stat_result], bool],
    into_inbox: bool = False,
) -> bool:
    """Move `root`/`source` to `folder`/`path` without reading it, however large it is.

    Args:
        root, source, folder, path: from where to where.
        key: becomes part of the name if that is taken.
        same: whether a status is that of the intended file.
        into_inbox: see `place`.

    Returns:
        Whether it is gone from there; False if there is another file now.

    Raises:
        PublishError: no permission, a link where none may be, or `folder` is on another file system.
    """
    with explained(folder, path):
        places = [os.path.join(os.fsencode(folder), one) for one in names(folder, path, key=key)]

        def named_there(inside: int, name: bytes) -> bool:
            return any(_is_same(_status(inside, name), _status(None, place)) for place in places)

        try:
            with safe_paths.folder_of(root, source) as (inside, name):
                _clear(inside, leaving_as(name, key), name, key, named_there)  # a crash may have left it
                found = _status(inside, name)
                if found is not None and same(found):
                    target = _given_name(inside, name, places, folder, key, into_inbox=into_inbox)
                    if (there := _status(None, target)) is None or not same(there):
                        _put_back(target, inside, name)  # another file had just replaced it
                        return False
                    durable.sync(os.path.dirname(target))
                    return _unlink(inside, name, key, named_there)
                return found is None
        except FileNotFoundError:  # its folder went too
            return True


def vacant(folder: Path, path: bytes, *, key: str, same: Callable[[os.stat_result], bool]) -> bytes:
    """The path to which `shift` would move a file now, or has moved it."""
    found = [
        (one, _status(None, os.path.join(os.fsencode(folder), one))) for one in names(folder, path, key=key)
    ]
    given = (one for one, status in found if status is not None and same(status))
    free = (one for one, status in found if status is None)
    return next(given, next(free, found[-1][0]))


def discard(folder: Path, path: bytes, *, key: str) -> None:
    """Delete the temporary files that a crash left of a job beside `folder`/`path`, and folders above it."""
    place = os.fsencode(folder)
    with suppress(OSError):
        for part in (b"", *around(folder, path).split(b"/")[:-1]):
            place = os.path.join(place, part)
            for name in os.listdir(place):
                if name.startswith(hidden_by(key)):
                    left = os.path.join(place, name)
                    (os.rmdir if os.path.isdir(left) else os.unlink)(left)


def move(
    root: Path, source: bytes, folder: Path, path: bytes, *, sha256: str, key: str, into_inbox: bool = False
) -> bytes:
    """Move a file that nobody else writes: `put`, then `remove`; returns its new path."""
    placed = put(root / os.fsdecode(source), folder, path, sha256=sha256, key=key, into_inbox=into_inbox)
    remove(root, source, sha256=sha256, key=key)
    return placed


def _given_name(
    inside: int, name: bytes, places: list[bytes], folder: Path, key: str, *, into_inbox: bool
) -> bytes:
    """Give a file of an open folder the first free one of some names elsewhere; returns that name."""
    for place in places:
        below = os.path.relpath(place, os.fsencode(folder))
        prepared(folder, below, shared_by=key if into_inbox else None, into_inbox=into_inbox)
        try:
            safe_paths.give_name(name, place, folder=inside)
        except FileExistsError:
            if not _is_same(_status(inside, name), _status(None, place)):
                continue
        return place
    raise PublishError(f"{shown(name)}: its names are taken in {folder}; move those files away")


def _put_back(target: bytes, inside: int, name: bytes) -> None:
    """Undo the naming of a file that was not the intended one."""
    with suppress(FileExistsError):  # a hard link has left the first name; else the file was moved
        safe_paths.give_name(target, name, folder=inside)
    if _is_same(_status(inside, name), _status(None, target)):
        os.unlink(target)


def _status(folder: int | None, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _is_same(one: os.stat_result | None, other: os.stat_result | None) -> bool:
    return one is not None and other is not None and os.path.samestat(one, other)


def _has_content(folder: int, name: bytes, sha256: str, path: bytes) -> bool:
    """Whether `name` is a regular file with this content; anything else is not read.

    Raises:
        _StillWritten: it is, and a process on this machine has it open for writing and may save a new one.
    """
    with _opened(folder, name) as file:
        if file is None:
            return False
        is_being_written = inbox.is_being_written(file.fileno())  # asked first: it may be closed meanwhile
        if durable.digest(file) != sha256:
            return False
    if is_being_written:
        raise _StillWritten(
            f"{shown(path)}: another program has it open for writing; close it there, it is tried again"
        )
    return True


def _is_being_written(folder: int, name: bytes) -> bool:
    with _opened(folder, name) as file:
        return file is not None and inbox.is_being_written(file.fileno())


@contextmanager
def _opened(folder: int, name: bytes) -> Iterator[BinaryIO | None]:
    """A regular file; None for anything else, and where it cannot be opened."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        yield None
        return
    with os.fdopen(descriptor, "rb") as file:
        yield file if stat.S_ISREG(os.fstat(descriptor).st_mode) else None


def _unlink(folder: int, name: bytes, key: str, meant: Meant) -> bool:
    """Unlink a file if it is the intended one; returns whether it is gone from there."""
    aside = leaving_as(name, key)
    # A crash may have left it. Where it is another file, whose own names are taken, it stays there.
    if not _clear(folder, aside, name, key, meant) and _status(folder, aside) is not None:
        return False
    try:
        os.rename(name, aside, src_dir_fd=folder, dst_dir_fd=folder)
    except FileNotFoundError:
        return True
    return _clear(folder, aside, name, key, meant)


def _clear(folder: int, aside: bytes, name: bytes, key: str, meant: Meant) -> bool:
    """Unlink a file that was renamed if it is the intended one, else give it a free name again."""
    if _status(folder, aside) is None:
        return True
    is_meant = False
    try:
        is_meant = meant(folder, aside)
    except _StillWritten:
        # A file that was saved under its name meanwhile would have replaced it, together with what its writer
        # may add. With another name it would be taken for a new picture.
        newer = _status(folder, name)
        is_meant = newer is not None and stat.S_ISREG(newer.st_mode)
        if not is_meant:
            raise
    finally:  # also where nobody can tell, so that its owner finds it under its name
        if not is_meant:
            _name_again(folder, aside, name, key)
    if is_meant:
        os.unlink(aside, dir_fd=folder)
    return is_meant


def _name_again(folder: int, aside: bytes, name: bytes, key: str) -> None:
    """Give a file that was renamed its name, or a free one, again."""
    for free in (name, keyed(folder, name, key)):
        with suppress(FileExistsError):
            safe_paths.give_name(aside, free, folder=folder)
            with suppress(FileNotFoundError):
                os.unlink(aside, dir_fd=folder)
            break
