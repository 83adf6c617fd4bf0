"""Locks on files and folders, which end with the process that holds them (flock(2))."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

TAKEN = (errno.EACCES, errno.EAGAIN)
"""The errors that say that another process holds a lock."""


def is_locked(path: Path) -> bool | None:
    """Whether a process holds the lock on a file; None where nobody can tell."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return True if error.errno in TAKEN else None
    finally:
        os.close(descriptor)
    return False
