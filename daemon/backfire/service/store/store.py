"""The job database: every query that Backfire makes.

It is SQLite on a local disk, in WAL mode with `synchronous=FULL`: what a method returned survives
the death of the process and of the machine. Every method is one short transaction. Writers take the
write lock first (BEGIN IMMEDIATE), because a transaction that reads first and writes later fails at
once when another process wrote in between, instead of waiting. Only frozen objects of `types` leave.
Times are Unix seconds, given by the caller.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from backfire.errors import StoreError
from backfire.service.store import schema
from backfire.service.store.messages import damaged, explain, permission
from backfire.service.store.schema import HEAD
from backfire.service.store.schema import events as _events
from backfire.service.store.schema import facts as _facts
from backfire.service.store.schema import jobs as _jobs
from backfire.service.store.statements import ADD_EVENT, GIVE_BACK, RESULT_OF_KEY, START, change, first_row
from backfire.types import ACTIVE, Event, Job, JobState, Verdict

BUSY_TIMEOUT_S = 30.0
"""How long to wait for another process's write."""

_READ, _WRITE = "BEGIN", "BEGIN IMMEDIATE"

_FIELDS = tuple(_jobs.c.keys())


class Changes(TypedDict, total=False):
    """The columns of a job that `Store.update` may set beside the state; see `types.Job`."""

    attempts: int
    key: str | None
    input_sha256: str | None
    mask_sha256: str | None
    config_sha256: str | None
    output_path: bytes | None
    output_sha256: str | None
    verdict: Verdict | None
    code: str | None
    message: str | None
    not_before: float


class Store:
    """Jobs, their history, and facts about the daemon, in one SQLite file.

    For one thread at a time; open a store anew in a forked child. Any method raises StoreError
    with its remedy when the database is locked for longer than `BUSY_TIMEOUT_S`, full, or damaged.

    Args:
        path: the database file. It and its folder are created where missing, and its schema is
            brought up to date.
        writable: False behaves as `Store.read_only`.

    Raises:
        StoreError: damaged file, schema of a newer Backfire, no right to write.
    """

    def __init__(self, path: Path, *, writable: bool = True) -> None:
        self.path = path
        self._open: sa.Connection | None = None
        if writable:
            _make_room(path)
        elif not path.exists():
            raise StoreError(
                f"job database {path}: is not there, as nothing has run yet; what lies in the inbox waits "
                "for `backfire once`, or for the daemon (`backfire run`); or name the configuration "
                "whose state folder holds the database with -c"
            )
        self._engine = sa.create_engine(
            "sqlite://",
            creator=lambda: _connect(path, writable=writable),
            poolclass=sa.QueuePool,  # of one connection: threads that meet by mistake wait
            pool_size=1,
            max_overflow=0,
            pool_timeout=BUSY_TIMEOUT_S,
        )
        try:
            self._prepare(writable=writable)
        except BaseException:
            self.close()
            raise

    @classmethod
    def read_only(cls, path: Path) -> Store:
        """Open for reading beside a running daemon; creates and migrates nothing.

        Raises:
            StoreError: no database there, or a schema that is not this version's.
        """
        return cls(path, writable=False)

    def close(self) -> None:
        """Close the file. Harmless when repeated."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Writing

    @contextmanager
    def together(self) -> Iterator[None]:
        """One transaction for all that is written within, which is durable at its end or not written at all.

        Nobody else can write while it is open, so that nothing slow may happen within.
        """
        with self._transaction(_WRITE) as connection:
            self._open = connection
            try:
                yield
            finally:
                self._open = None

    @property
    def is_together(self) -> bool:
        """Whether a transaction of `together` is open."""
        return self._open is not None

    def add(self, paths: Iterable[bytes], *, at: float) -> list[Job]:
        """Record files that were found in the inbox.

        Args:
            paths: relative to the inbox; repeats are harmless.
            at: when they were found, Unix seconds.

        Returns:
            A new SETTLING job for each path that had no active one, in the order given.
        """
        fresh = {"state": JobState.SETTLING, "attempts": 0, "not_before": 0.0, "created": at, "updated": at}
        rows = [{**fresh, "path": path} for path in paths]
        if not rows:
            return []
        with self._transaction(_WRITE) as connection:
            last = connection.execute(sa.select(sa.func.coalesce(sa.func.max(_jobs.c.id), 0))).scalar_one()
            connection.execute(insert(_jobs).on_conflict_do_nothing(), rows)
            new = _jobs.c.id > last  # nobody else can have added jobs, since this transaction holds the lock
            connection.execute(
                insert(_events).from_select(
                    ["job_id", "at", "state", "detail"],
                    sa.select(
                        _jobs.c.id, _jobs.c.created, _jobs.c.state, sa.literal("{}")
                    ).where(new).order_by(_jobs.c.id),
                )
            )  # fmt: skip
            return _all_jobs(connection, sa.select(_jobs).where(new).order_by(_jobs.c.id))

    def update(
        self,
        job_id: int,
        state: JobState,
        *,
        at: float,
        detail: dict[str, Any] | None = None,
        **fields: Unpack[Changes],
    ) -> Job:
        """Move a job to a state, set columns, and add an event, all or nothing.

        Args:
            job_id: the job.
            state: its new state; the present one is allowed.
            at: time of the change, Unix seconds.
            detail: JSON for the event.
            fields: columns to set; `Changes` lists them.

        Returns:
            The job as it is now.

        Raises:
            StoreError: no such job, or its path has another active job.
            TypeError: unknown field, or `detail` is not JSON.
        """
        if unknown := fields.keys() - Changes.__annotations__.keys():
            raise TypeError(f"update() got {sorted(unknown)}, expected {sorted(Changes.__annotations__)}")
        return self._move(change(*fields), job_id, state, at, detail, **fields)

    def start_attempt(self, job_id: int, *, at: float) -> Job:
        """READY → RUNNING with a new lease and one attempt more, durable on return, before the work begins.

        Raises:
            StoreError: no such job, or it is not READY: somebody else claimed it.
        """
        return self._move(START, job_id, JobState.RUNNING, at, None, expected=JobState.READY)

    def give_back(
        self,
        job_id: int,
        *,
        at: float,
        state: JobState = JobState.READY,
        detail: dict[str, Any] | None = None,
    ) -> Job:
        """RUNNING → `state` without counting the attempt, which was stopped and did not fail.

        Raises:
            StoreError: no such job, or it is not RUNNING.
        """
        return self._move(GIVE_BACK, job_id, state, at, detail, expected=JobState.RUNNING)

    def prune(self, *, before: float, most: int = 1000) -> int:
        """Forget up to `most` jobs that ended before a time, and their events; returns how many."""
        old = sa.select(_jobs.c.id).where(
            _jobs.c.updated < before, _jobs.c.state.not_in(sorted(ACTIVE))
        ).order_by(_jobs.c.updated).limit(most)  # fmt: skip
        with self._transaction(_WRITE) as connection:
            return connection.execute(sa.delete(_jobs).where(_jobs.c.id.in_(old))).rowcount

    def set_fact(self, key: str, value: Any, *, at: float) -> None:
        """Remember a JSON value under a key, in place of the former one."""
        row = {"value": json.dumps(value), "at": at}
        with self._transaction(_WRITE) as connection:
            connection.execute(
                insert(_facts).values(key=key, **row).on_conflict_do_update(index_elements=["key"], set_=row)
            )

    # Reading

    def get(self, job_id: int) -> Job | None:
        """The job of that id."""
        return next(iter(self._select(sa.select(_jobs).where(_jobs.c.id == job_id))), None)

    def latest_result(self, key: str) -> Job | None:
        """The newest published job of that key, which means of that picture, mask and configuration."""
        with self._transaction(_READ) as connection:
            row = first_row(connection, RESULT_OF_KEY, key=key)
        return None if row is None else _job(row)

    def active(self) -> list[Job]:
        """All jobs in one of the `types.ACTIVE` states, oldest first."""
        return self._select(sa.select(_jobs).where(_jobs.c.state.in_(sorted(ACTIVE))).order_by(_jobs.c.id))

    def by_path(self, path: bytes) -> list[Job]:
        """All jobs there ever were for a path relative to the inbox, newest first."""
        return self._select(sa.select(_jobs).where(_jobs.c.path == path).order_by(_jobs.c.id.desc()))

    def jobs(
        self, state: JobState | None = None, limit: int = 100, *, verdict: Verdict | None = None
    ) -> list[Job]:
        """The newest jobs, newest first; only those of a state and of a verdict where they are given."""
        query = sa.select(_jobs)
        query = query if state is None else query.where(_jobs.c.state == state)
        query = query if verdict is None else query.where(_jobs.c.verdict == verdict)
        return self._select(query.order_by(_jobs.c.id.desc()).limit(limit))

    def paths(self, limit: int) -> list[bytes]:
        """The paths of the newest jobs, each once, newest first."""
        query = sa.select(_jobs.c.path).group_by(_jobs.c.path).order_by(sa.func.max(_jobs.c.id).desc())
        with self._transaction(_READ) as connection:
            return [row[0] for row in connection.execute(query.limit(limit))]

    def counts(self) -> dict[JobState, int]:
        """How many jobs there are in each state; every state is a key."""
        query = sa.select(_jobs.c.state, sa.func.count()).group_by(_jobs.c.state)
        with self._transaction(_READ) as connection:
            found = {row[0]: row[1] for row in connection.execute(query)}
        return {state: found.get(state, 0) for state in JobState}

    def verdicts(self) -> dict[Verdict, int]:
        """How many jobs there are with each verdict; those without one are not counted."""
        query = sa.select(_jobs.c.verdict, sa.func.count()).group_by(_jobs.c.verdict)
        with self._transaction(_READ) as connection:
            found = {row[0]: row[1] for row in connection.execute(query)}
        return {verdict: found[verdict] for verdict in Verdict if verdict in found}

    def history(self, job_id: int) -> list[Event]:
        """A job's events in the order in which they were written."""
        query = sa.select(_events).where(_events.c.job_id == job_id).order_by(_events.c.id)
        with self._transaction(_READ) as connection:
            return [
                Event(at=row.at, state=JobState(row.state), detail=json.loads(row.detail))
                for row in connection.execute(query)
            ]

    def fact(self, key: str) -> tuple[Any, float] | None:
        """The value last set under a key and when, Unix seconds."""
        with self._transaction(_READ) as connection:
            row = connection.execute(sa.select(_facts).where(_facts.c.key == key)).one_or_none()
        return None if row is None else (json.loads(row.value), row.at)

    # Within

    def _select(self, query: sa.Select[Any]) -> list[Job]:
        with self._transaction(_READ) as connection:
            return _all_jobs(connection, query)

    def _move(
        self,
        update: sa.Update,
        job_id: int,
        state: JobState,
        at: float,
        detail: dict[str, Any] | None,
        *,
        expected: JobState | None = None,
        **fields: Any,
    ) -> Job:
        event = {"job_id": job_id, "at": at, "state": state, "detail": json.dumps(detail or {})}
        values = {"of_job": job_id, "new_state": state, "new_updated": at}
        values |= {"expected": expected} if expected else {}
        for name, field in fields.items():
            values[f"new_{name}"] = _text(field) if isinstance(field, str) else field
        with self._transaction(_WRITE) as connection:
            moved = first_row(connection, update, **values)
            if moved is None:
                raise self._refusal(connection, job_id, expected)
            first_row(connection, ADD_EVENT, **event)
            return _job(moved)

    def _refusal(self, connection: sa.Connection, job_id: int, expected: JobState | None) -> StoreError:
        """The error for an update that met no row."""
        found = connection.execute(sa.select(_jobs).where(_jobs.c.id == job_id)).one_or_none()
        if found is None:
            return StoreError(f"job {job_id}: not in {self.path}; `backfire jobs` lists those that are")
        job = _job(found)
        return StoreError(
            f"job {job_id} ({job.name}): is {job.state}, expected {expected}; "
            f"another process works on {self.path}: leave one daemon running"
        )

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sa.Connection]:
        try:
            if self._open is not None:
                yield self._open
                return
            with self._engine.connect() as connection:
                connection.exec_driver_sql(begin)
                yield connection
                connection.commit()
        except (sa.exc.SQLAlchemyError, sqlite3.Error) as error:
            text, transient = explain(self.path, error, waited_s=BUSY_TIMEOUT_S)
            raise StoreError(text, transient=transient) from error

    def _prepare(self, *, writable: bool) -> None:
        """Check the file, and bring its schema to HEAD if it is opened for writing."""
        with self._transaction(_WRITE if writable else _READ) as connection:
            if writable and (problem := connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()) != "ok":
                raise StoreError(damaged(self.path, str(problem)))
            found = schema.revision(connection)
            if found == HEAD:
                return
            if found is not None and found > HEAD:
                raise StoreError(
                    f"job database {self.path}: has schema {found}, expected {HEAD} or older; "
                    "it was written by a newer Backfire: install that version or a later one"
                )
            if not writable:
                raise StoreError(
                    f"job database {self.path}: has schema {found or 'none'}, expected {HEAD}; "
                    "start the daemon once (`backfire run`), which brings it up to date"
                )
            schema.upgrade(connection)


def _all_jobs(connection: sa.Connection, query: sa.Select[Any]) -> list[Job]:
    return [_job(row) for row in connection.execute(query)]


def _job(row: sa.Row[Any] | tuple[Any, ...]) -> Job:
    fields = dict(zip(_FIELDS, row, strict=True))
    fields["state"] = JobState(fields["state"])
    fields["verdict"] = fields["verdict"] and Verdict(fields["verdict"])
    return Job(**fields)


def _text(text: str) -> str:
    """The text without surrogate escapes, which SQLite refuses and file names in messages may hold."""
    return text.encode("utf-8", "backslashreplace").decode()


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
