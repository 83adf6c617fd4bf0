"""How files leave a folder: only those that are meant, whoever writes there meanwhile."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from backfire.errors import PublishError
from backfire.files import durable, safe_paths
from backfire.files.outbox.folders import explained, prepared
from backfire.files.outbox.names import around, hidden, hidden_by, keyed, names
from backfire.files.outbox.writing import put
from backfire.types import shown

Meant = Callable[[int, bytes], bool]
"""Whether a name in a folder (its descriptor) is that of the file which is meant."""


def remove(root: Path, path: bytes, *, sha256: str, key: str) -> bool:
    """Unlink `root`/`path` if its content is `sha256`; anything else that has come there stays.

    The file is renamed first, so that what is hashed is what is unlinked, whoever writes meanwhile.

    Returns:
        Whether the content is gone from there; False if other content lies there now.

    Raises:
        PublishError: no permission.
    """
    with explained(root, path):
        try:
            with safe_paths.folder_of(root, path) as (folder, name):
                return _unlink(folder, name, key, lambda inside, one: _digest(inside, one) == sha256)
        except FileNotFoundError:  # its folder went too
            return True


def shift(
    root: Path, source: bytes, folder: Path, path: bytes, *, key: str, same: Callable[[os.stat_result], bool]
) -> bool:
    """Move a file by its names alone, unread, be it terabytes: `root`/`source` to `folder`/`path`.

    Args:
        root, source, folder, path: from where to where.
        key: for the name, where that is taken.
        same: whether a status is that of the file that is meant.

    Returns:
        Whether it is gone from there; False if another file lies there now.

    Raises:
        PublishError: no permission, or `folder` lies on another file system.
    """
    with explained(folder, path):
        places = [os.path.join(os.fsencode(folder), one) for one in names(folder, path, key=key)]

        def named_there(inside: int, name: bytes) -> bool:
            return any(_is_same(_status(inside, name), _status(None, place)) for place in places)

        try:
            with safe_paths.folder_of(root, source) as (inside, name):
                _clear(inside, hidden(name, key), name, key, named_there)  # what a crash left there
                found = _status(inside, name)
                if found is not None and same(found):
                    target = _given_name(inside, name, places, folder)
                    if (there := _status(None, target)) is None or not same(there):
                        _put_back(target, inside, name)  # another had come there in that moment
                        return False
                    durable.sync(os.path.dirname(target))
                    return _unlink(inside, name, key, named_there)
                return found is None
        except FileNotFoundError:  # its folder went too
            return True


def vacant(folder: Path, path: bytes, *, key: str, same: Callable[[os.stat_result], bool]) -> bytes:
    """The path that `shift` would give now, or has given."""
    found = [
        (one, _status(None, os.path.join(os.fsencode(folder), one))) for one in names(folder, path, key=key)
    ]
    given = (one for one, status in found if status is not None and same(status))
    free = (one for one, status in found if status is None)
    return next(given, next(free, found[-1][0]))


def discard(folder: Path, path: bytes, *, key: str) -> None:
    """Delete what a crash left of a job's writing beside `folder`/`path`, where it will not be done again."""
    with suppress(OSError):
        place = os.path.dirname(os.path.join(os.fsencode(folder), around(folder, path)))
        for name in os.listdir(place):
            if name.startswith(hidden_by(key)):
                os.unlink(os.path.join(place, name))


def move(root: Path, source: bytes, folder: Path, path: bytes, *, sha256: str, key: str) -> bytes:
    """`put`, then `remove`: for files that have no other writer."""
    placed = put(root / os.fsdecode(source), folder, path, sha256=sha256, key=key)
    remove(root, source, sha256=sha256, key=key)
    return placed


def _given_name(inside: int, name: bytes, places: list[bytes], folder: Path) -> bytes:
    """Give a file of an open folder the first free of some names elsewhere; which that was."""
    for place in places:
        prepared(folder, os.path.relpath(place, os.fsencode(folder)))
        try:
            safe_paths.give_name(name, place, folder=inside)
        except FileExistsError:
            if not _is_same(_status(inside, name), _status(None, place)):
                continue
        return place
    raise PublishError(f"{shown(name)}: its names are taken in {folder}; move those files away")


def _put_back(target: bytes, inside: int, name: bytes) -> None:
    """Take a name back that a file was given by mistake."""
    with suppress(FileExistsError):  # as after a link; where there are none it had been moved
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


def _digest(folder: int, name: bytes) -> str | None:
    """The SHA-256 of a regular file; None of anything else, unread."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        return durable.digest(file) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None


def _unlink(folder: int, name: bytes, key: str, meant: Meant) -> bool:
    """Unlink a file if it is the one that is meant; whether it is gone from there."""
    aside = hidden(name, key)
    _clear(folder, aside, name, key, meant)  # what a crash left there
    try:
        os.rename(name, aside, src_dir_fd=folder, dst_dir_fd=folder)
    except FileNotFoundError:
        return True
    return _clear(folder, aside, name, key, meant)


def _clear(folder: int, aside: bytes, name: bytes, key: str, meant: Meant) -> bool:
    """Unlink a file that stands aside if it is the one that is meant, else put it back under a free name."""
    if _status(folder, aside) is None:
        return True
    if meant(folder, aside):
        os.unlink(aside, dir_fd=folder)
        return True
    for free in (name, keyed(name, key)):
        with suppress(FileExistsError):
            safe_paths.give_name(aside, free, folder=folder)
            with suppress(FileNotFoundError):
                os.unlink(aside, dir_fd=folder)
            break
    return False
