"""Signs of life from steps that may take long on a slow disk or share: a scan, a copy, a digest.

A step gives a sign at each piece of its work, from whatever thread; who watches over the process listens.
No sign within a system call that hangs is what a watchdog is for.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

PIECE = 1 << 20
"""Bytes of a file between two signs."""
SYNCED = 64 << 20
"""Bytes that are written between two syncs: one sync of gigabytes would stand still for minutes."""

_listeners: list[Callable[[], None]] = []


def listen(listener: Callable[[], None]) -> Callable[[], None]:
    """Call `listener` at every sign, many times a second and in any thread; returns how to end that."""
    _listeners.append(listener)
    return lambda: _listeners.remove(listener)


def sign() -> None:
    """Say that something has moved on."""
    for listener in _listeners:
        listener()


def pieces(file: BinaryIO) -> Iterator[bytes]:
    """The rest of a file, with a sign after each piece."""
    while piece := file.read(PIECE):
        yield piece
        sign()


def digest(file: BinaryIO) -> str:
    """Lower-case hex SHA-256 of the rest of a file."""
    found = hashlib.sha256()
    for piece in pieces(file):
        found.update(piece)
    return found.hexdigest()


def write(file: BinaryIO, data: Iterable[bytes]) -> None:
    """Write pieces to a new file and sync it; signs are those of `data`, and one for each sync."""
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
    sign()


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
    sign()
