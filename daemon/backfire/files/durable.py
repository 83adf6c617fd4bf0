"""Reading, hashing, writing and syncing files, with a heartbeat from every step that may take long.

A scan, a copy or a digest on a slow disk or share may take minutes. Each reports a heartbeat after every
piece of its work, from whatever thread it runs in, so that the loop, and through it systemd's watchdog, can
tell slow from stuck. A system call that hangs reports nothing: that is what a watchdog is for.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

PIECE = 1 << 20
"""Bytes of a file between two heartbeats."""
SYNCED = 64 << 20
"""Bytes that are written between two syncs, since one sync of gigabytes takes minutes without a heartbeat."""

_listeners: list[Callable[[], None]] = []


def on_heartbeat(listener: Callable[[], None]) -> Callable[[], None]:
    """Call `listener` at every heartbeat, many times a second and from any thread.

    Returns:
        What removes the listener again.
    """
    _listeners.append(listener)
    return lambda: _listeners.remove(listener)


def heartbeat() -> None:
    """Report that a long step has made progress."""
    for listener in _listeners:
        listener()


def pieces(file: BinaryIO) -> Iterator[bytes]:
    """The rest of a file, with a heartbeat after each piece."""
    while piece := file.read(PIECE):
        yield piece
        heartbeat()


def digest(file: BinaryIO) -> str:
    """Lower-case hex SHA-256 of the rest of a file."""
    found = hashlib.sha256()
    for piece in pieces(file):
        found.update(piece)
    return found.hexdigest()


def file_sha256(path: bytes | Path, *, from_disk: bool = False) -> str:
    """Lower-case hex SHA-256 of a file's content, with a heartbeat after each piece.

    Args:
        path: the file; links are followed.
        from_disk: read what the disk holds and not what memory still remembers of it.
    """
    with open(path, "rb") as file:
        if from_disk:
            # Only synced pages are dropped, so that a file that was just written must be synced before.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return digest(file)


def write(file: BinaryIO, data: Iterable[bytes]) -> None:
    """Write pieces to a new file and sync it, with a heartbeat after each sync; `data` may report more."""
    unsynced = 0
    for piece in data:
        file.write(piece)
        unsynced += len(piece)
        if unsynced >= SYNCED:
            _sync(file)
            unsynced = 0
    _sync(file)


def sync(path: bytes | Path) -> None:
    """Make a file's content durable, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    heartbeat()


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
    heartbeat()
