"""What the errors of SQLite mean for the job database, and what to do about them."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

TRANSIENT = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL)
"""Codes of errors that may pass without a change by somebody."""
UNWRITTEN = (sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_FSYNC)
"""The extended codes of a write that failed, which may pass, too: SQLite has none of its own for a quota."""

ANEW = (
    "put a backup in its place, or none and move the folder spool beside it away, too: pictures still in the "
    "inbox are taken in again"
)
BACK = f"stop the daemon if it was started again, move the file back, or {ANEW}; then start the daemon"


def explain(path: Path, error: Exception, *, waited_s: float) -> tuple[str, bool]:
    """The message for an error of SQLite, and whether it is transient: it may pass by itself.

    Args:
        path: the database.
        error: what SQLite or SQLAlchemy raised.
        waited_s: how long a locked database was waited for, seconds.
    """
    cause = getattr(error, "orig", None) or error  # SQLAlchemy wraps what SQLite raised
    extended = getattr(cause, "sqlite_errorcode", 0)
    code = extended & 0xFF
    match code:
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return damaged(path, str(cause)), False
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            remedy = f"locked for over {waited_s:g} s; end the process that `fuser {path}` names"
        case sqlite3.SQLITE_FULL:
            remedy = "no space; free some on its filesystem"
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            remedy = permission()
        case sqlite3.SQLITE_IOERR if extended in UNWRITTEN:
            remedy = (
                f"it cannot be written; if the disk quota of uid {os.geteuid()} is used up, free some space "
                "or raise it; if the disk fails or is a network share, keep it on a sound local disk"
            )
        case sqlite3.SQLITE_IOERR:
            remedy = "the disk fails or is a network share; keep it on a sound local disk"
        case sqlite3.SQLITE_CONSTRAINT:
            remedy = "a path has one active job at a time, and history is only added to; please report it"
        case _:
            remedy = "unexpected; please report it"
    return f"job database {path}: {cause}: {remedy}", code in TRANSIENT or extended in UNWRITTEN


def damaged(path: Path, problem: str) -> str:
    """The message for a file that is damaged or holds no database."""
    return (
        f"job database {path}: is damaged or no database ({problem}); stop the daemon, move the file aside "
        f"together with {path.name}-wal and {path.name}-shm, {ANEW}"
    )


def gone(path: Path) -> str:
    """The message for a file that was deleted, moved or replaced while it was in use."""
    return f"job database {path}: was deleted, moved or replaced while the daemon ran; {BACK}"


def is_lost(path: Path) -> bool:
    """Whether a job database is missing or empty although jobs have left a spool beside it.

    Raises:
        OSError: nobody can tell.
    """
    try:
        if path.stat().st_size:
            return False
    except FileNotFoundError:
        pass
    spool = path.with_name("spool")
    return spool.is_dir() and any(spool.iterdir())


def missing(path: Path) -> str:
    """The message for a file that is missing or empty, though its jobs have left a spool."""
    return f"job database {path}: is gone or empty, and the results in spool beside it belong to it; {BACK}"


def permission() -> str:
    """What to do where the right to write is missing."""
    # Readers need it too: the last process to close a WAL database cleans up, the first sets up its index.
    who = f"uid {os.geteuid()}"
    return f"{who} needs the right to write it and its folder, even to read while no daemon runs; chown them"
