"""Opening the SQLite file of the job database, and transactions on it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self
from urllib.parse import quote

import sqlalchemy as sa

from backfire.errors import StoreError
from backfire.service.store import schema
from backfire.service.store.messages import damaged, explain, gone, is_lost, missing, permission
from backfire.service.store.schema import HEAD

BUSY_TIMEOUT_S = 30.0
"""How long to wait for another process's write."""


class Database:
    """One SQLite file on a local disk.

    For one thread at a time; open it anew in a forked child. Any method raises StoreError with its remedy
    when the database is locked for longer than `BUSY_TIMEOUT_S`, full, or damaged.

    Args:
        path: the database file. Where it is opened for writing, it and its folder are created if they are
            missing, and its schema is brought up to date.
        checked: its file is known to be sound and its schema to be up to date.

    Raises:
        StoreError: the file is damaged, was written by a newer Backfire, or cannot be written; of one that
            is opened for reading alone, it is missing or has an older schema.
    """

    _writable: ClassVar[bool] = False

    def __init__(self, path: Path, *, checked: bool = False) -> None:
        self.path = path
        self._open: sa.Connection | None = None
        if self._writable:
            _make_room(path)
        elif is_lost(path):
            raise StoreError(missing(path))
        elif not path.exists():
            raise StoreError(
                f"job database {path}: is not there, as nothing has run yet; what lies in the inbox waits "
                "for `backfire once`, or for the daemon (`backfire run`); or name the configuration "
                "whose state folder holds the database with -c"
            )
        self._engine = sa.create_engine(
            "sqlite://",
            creator=lambda: _connect(path, writable=self._writable),
            poolclass=sa.QueuePool,  # of one connection: threads that meet by mistake wait
            pool_size=1,
            max_overflow=0,
            pool_timeout=BUSY_TIMEOUT_S,
        )
        if not checked:
            try:
                self._prepare()
            except BaseException:
                self.close()
                raise
        self._file = _identity(path)

    def close(self) -> None:
        """Close the file. Harmless when repeated."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def require_file(self) -> None:
        """Refuse to go on with a file that has lost its name: what is recorded in it would be lost.

        Raises:
            StoreError: it was deleted, moved or replaced since it was opened.
        """
        with suppress(OSError):  # nobody can tell, which the next transaction may
            if _identity(self.path) != self._file:
                raise StoreError(gone(self.path))

    @contextmanager
    def _transaction(self, *, write: bool = False) -> Iterator[sa.Connection]:
        """A transaction, or the one that is open already; its errors become StoreError.

        A writer takes the write lock first, because a transaction that reads first and writes later fails
        at once when another process wrote in between, instead of waiting.
        """
        try:
            if self._open is not None:
                yield self._open
                return
            with self._engine.connect() as connection:
                connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
                yield connection
                connection.commit()
        except (sa.exc.SQLAlchemyError, sqlite3.Error) as error:
            text, transient = explain(self.path, error, waited_s=BUSY_TIMEOUT_S)
            raise StoreError(text, transient=transient) from error

    def _prepare(self) -> None:
        """Check the file, and bring its schema to HEAD if it is opened for writing."""
        with self._transaction(write=self._writable) as connection:
            if (
                self._writable
                and (problem := connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()) != "ok"
            ):
                raise StoreError(damaged(self.path, str(problem)))
            found = schema.revision(connection)
            if found == HEAD:
                return
            if found is not None and found > HEAD:
                raise StoreError(
                    f"job database {self.path}: has schema {found}, expected {HEAD} or older; "
                    "it was written by a newer Backfire: install that version or a later one"
                )
            if not self._writable:
                raise StoreError(
                    f"job database {self.path}: has schema {found or 'none'}, expected {HEAD}; "
                    "start the daemon once (`backfire run`), which brings it up to date"
                )
            schema.upgrade(connection)


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of a file; None where there is none."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _connect(path: Path, *, writable: bool) -> sqlite3.Connection:
    uri = f"file:{quote(os.fsencode(path.absolute()))}?mode={'rwc' if writable else 'ro'}"
    connection = sqlite3.connect(
        uri,
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,  # else the driver begins deferred transactions of its own
        check_same_thread=False,
    )
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        if writable:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
    except BaseException:
        connection.close()
        raise
    return connection


def _make_room(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"job database {path}: its folder cannot be made ({error}); make it or name another"
        ) from error
    for place in (path.parent, path):
        # Without this an unwritable file would open, and fail only at the first job.
        if place.exists() and not os.access(place, os.W_OK):
            raise StoreError(f"job database {path}: {place} is not writable; {permission()}")
