"""The job database: all SQL, and the only SQLAlchemy door.

SQLite on a local disk, in WAL mode with `synchronous=FULL`: what a method returned survives
the death of the process and of the machine. Every method is one short transaction; writers take the
write lock first (BEGIN IMMEDIATE), because a reader that turns writer half-way fails at once
instead of waiting. Only frozen `domain` objects leave. Times are Unix seconds from the caller.

The tables below are what `migrations/` makes up to `HEAD`; triggers there keep events append-only.
Longer than 300 lines so that tables, queries and the wording of SQLite's errors share the one door.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import dialect as sqlite_dialect
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.sql.compiler import SQLCompiler

from backfire.errors import StoreError
from backfire.types import ACTIVE, Event, Job, JobState, Verdict

if TYPE_CHECKING:
    from alembic.config import Config

BUSY_TIMEOUT_S = 30.0
"""How long to wait for another process's write."""

TRANSIENT = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL)

_READ, _WRITE = "BEGIN", "BEGIN IMMEDIATE"

HEAD = "0003"
"""The newest migration; revisions are numbers of four digits, so that they compare as text."""

metadata = sa.MetaData()

# Text and not JSON or Enum types: SQLite gives a column declared JSON numeric affinity.
_jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("path", sa.LargeBinary, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("key", sa.Text),
    sa.Column("input_sha256", sa.Text),
    sa.Column("mask_sha256", sa.Text),
    sa.Column("config_sha256", sa.Text),
    sa.Column("output_path", sa.LargeBinary),
    sa.Column("output_sha256", sa.Text),
    sa.Column("verdict", sa.Text),
    sa.Column("code", sa.Text),
    sa.Column("message", sa.Text),
    sa.Column("not_before", sa.Float, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("updated", sa.Float, nullable=False),
    sa.Column("lease", sa.Integer, nullable=False, server_default="0"),
    sqlite_autoincrement=True,  # an id is never given twice, not even after pruning
)
_events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("job_id", sa.Integer, sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
)
_facts = sa.Table(
    "facts",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
)
sa.Index(
    "jobs_active_path",
    _jobs.c.path,
    unique=True,
    sqlite_where=_jobs.c.state.in_(sorted(ACTIVE)),
)
sa.Index("jobs_path", _jobs.c.path)
sa.Index("jobs_key", _jobs.c.key)
sa.Index("jobs_updated", _jobs.c.updated)
sa.Index("jobs_state", _jobs.c.state, _jobs.c.id, _jobs.c.not_before)
sa.Index("events_job", _events.c.job_id)


_FIELDS = tuple(_jobs.c.keys())


@cache
def _change(*names: str) -> sa.Update:
    """A job's change of state, and of these columns. Kept: building it costs more than running it."""
    new: dict[str, Any] = {name: sa.bindparam(f"new_{name}") for name in ("state", "updated", *names)}
    return sa.update(_jobs).where(_jobs.c.id == sa.bindparam("of_job")).values(new).returning(*_jobs.c)


_TWIN = sa.select(_jobs).where(
    _jobs.c.key == sa.bindparam("key", ""),
    _jobs.c.state.in_([JobState.PUBLISHED, JobState.ARCHIVED]),
    _jobs.c.output_sha256.is_not(None),
).order_by(_jobs.c.id.desc()).limit(1)  # fmt: skip
_EXPECTED = _jobs.c.state == sa.bindparam("expected")
_START = _change().where(_EXPECTED).values(attempts=_jobs.c.attempts + 1, lease=_jobs.c.lease + 1)
_GIVE_BACK = _change().where(_EXPECTED).values(attempts=sa.func.max(_jobs.c.attempts - 1, 0))
_NOTE = insert(_events).values({name: sa.bindparam(name) for name in ("job_id", "at", "state", "detail")})


@cache
def _sql(statement: sa.ClauseElement) -> tuple[str, tuple[tuple[str, Any], ...]]:
    """A statement as SQLite takes it, and its parameters in their order, each with its own value.

    For the few statements that every job meets: SQLAlchemy takes several times as long over one as SQLite.
    """
    compiled = statement.compile(dialect=sqlite_dialect(), compile_kwargs={"render_postcompile": True})
    assert isinstance(compiled, SQLCompiler)
    return str(compiled), tuple((name, compiled.params[name]) for name in compiled.positiontup or ())


def _row(connection: sa.Connection, statement: sa.ClauseElement, **values: Any) -> tuple[Any, ...] | None:
    """Run such a statement in the transaction that is open; its first row."""
    text, parameters = _sql(statement)
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    cursor = driver.execute(text, tuple(values.get(name, given) for name, given in parameters))
    row: tuple[Any, ...] | None = cursor.fetchone()
    cursor.close()
    return row


class Changes(TypedDict, total=False):
    """The columns of a job that `Store.update` may set beside the state; see `domain.Job`."""

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
                f"job database {path}: is not there; start the daemon once (`backfire run`), "
                "or name the configuration whose state folder holds it with -c"
            )
        self._engine = sa.create_engine(
            "sqlite://",
            creator=lambda: _connect(path, writable=writable),
            poolclass=sa.QueuePool,  # of one: threads that meet by mistake take turns
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
        """One transaction for all that is written within: durable at its end, or none of it happened.

        For records alone: while it is open nobody else can write.
        """
        with self._transaction(_WRITE) as connection:
            self._open = connection
            try:
                yield
            finally:
                self._open = None

    @property
    def is_together(self) -> bool:
        """Whether such a transaction is open."""
        return self._open is not None

    def sight(self, paths: Iterable[bytes], *, at: float) -> list[Job]:
        """Record files seen in the inbox.

        Args:
            paths: relative to the inbox; repeats are harmless.
            at: time of the sighting, Unix seconds.

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
            new = _jobs.c.id > last  # the write lock is ours: nobody else adds jobs meanwhile
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
        return self._move(_change(*fields), job_id, state, at, detail, **fields)

    def start_attempt(self, job_id: int, *, at: float) -> Job:
        """READY → RUNNING, a new lease and one attempt more, durable on return, before the dangerous work.

        Raises:
            StoreError: no such job, or it is not READY: somebody else claimed it.
        """
        return self._move(_START, job_id, JobState.RUNNING, at, None, expected=JobState.READY)

    def give_back(
        self,
        job_id: int,
        *,
        at: float,
        state: JobState = JobState.READY,
        detail: dict[str, Any] | None = None,
    ) -> Job:
        """RUNNING → `state` and the attempt is not counted: it was stopped, it did not fail.

        Raises:
            StoreError: no such job, or it is not RUNNING.
        """
        return self._move(_GIVE_BACK, job_id, state, at, detail, expected=JobState.RUNNING)

    def prune(self, *, before: float, most: int = 1000) -> int:
        """Forget up to `most` jobs that ended before a time, and their events; how many these were."""
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

    def twin(self, key: str) -> Job | None:
        """The newest published job of that key: the same picture, mask and configuration."""
        with self._transaction(_READ) as connection:
            row = _row(connection, _TWIN, key=key)
        return None if row is None else _job(row)

    def active(self) -> list[Job]:
        """All jobs in one of the `domain.ACTIVE` states, oldest first."""
        return self._select(sa.select(_jobs).where(_jobs.c.state.in_(sorted(ACTIVE))).order_by(_jobs.c.id))

    def by_path(self, path: bytes) -> list[Job]:
        """All jobs there ever were for a path relative to the inbox, newest first."""
        return self._select(sa.select(_jobs).where(_jobs.c.path == path).order_by(_jobs.c.id.desc()))

    def jobs(self, state: JobState | None = None, limit: int = 100) -> list[Job]:
        """The newest jobs, of one state or of all, newest first."""
        query = sa.select(_jobs) if state is None else sa.select(_jobs).where(_jobs.c.state == state)
        return self._select(query.order_by(_jobs.c.id.desc()).limit(limit))

    def counts(self) -> dict[JobState, int]:
        """How many jobs there are in each state; every state is a key."""
        query = sa.select(_jobs.c.state, sa.func.count()).group_by(_jobs.c.state)
        with self._transaction(_READ) as connection:
            found = {row[0]: row[1] for row in connection.execute(query)}
        return {state: found.get(state, 0) for state in JobState}

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
        change: sa.Update,
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
            moved = _row(connection, change, **values)
            if moved is None:
                raise self._refusal(connection, job_id, expected)
            _row(connection, _NOTE, **event)
            return _job(moved)

    def _refusal(self, connection: sa.Connection, job_id: int, expected: JobState | None) -> StoreError:
        """Why a change met no row."""
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
            text, transient = _explain(self.path, error)
            raise StoreError(text, transient=transient) from error

    def _prepare(self, *, writable: bool) -> None:
        """Check the file, and bring its schema to HEAD where we may write."""
        with self._transaction(_WRITE if writable else _READ) as connection:
            if writable and (problem := connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()) != "ok":
                raise StoreError(_damaged(self.path, str(problem)))
            found = _revision(connection)
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
            _upgrade(connection)


def _all_jobs(connection: sa.Connection, query: sa.Select[Any]) -> list[Job]:
    return [_job(row) for row in connection.execute(query)]


def _job(row: sa.Row[Any] | tuple[Any, ...]) -> Job:
    fields = dict(zip(_FIELDS, row, strict=True))
    fields["state"] = JobState(fields["state"])
    fields["verdict"] = fields["verdict"] and Verdict(fields["verdict"])
    return Job(**fields)


def _text(text: str) -> str:
    """Text that SQLite takes: messages may quote file names with surrogate escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _connect(path: Path, *, writable: bool) -> sqlite3.Connection:
    uri = f"file:{quote(os.fsencode(path.absolute()))}?mode={'rwc' if writable else 'ro'}"
    connection = sqlite3.connect(
        uri,
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,  # the driver would begin deferred transactions of its own
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
            raise StoreError(f"job database {path}: {place} is not writable; {_permission()}")


def _revision(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()


def _upgrade(connection: sa.Connection) -> None:
    """Run the missing migrations in the transaction that is open."""
    from alembic import command

    command.upgrade(alembic_config(connection), "head")


def alembic_config(connection: sa.Connection) -> Config:
    """What alembic's commands need to work on a connection; no ini file, no logging set-up."""
    from alembic.config import Config

    config = Config(attributes={"connection": connection, "metadata": metadata})
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    return config


def _explain(path: Path, error: Exception) -> tuple[str, bool]:
    """Subject, got, expected, remedy for whatever SQLite says, and whether it passes by itself."""
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF  # the primary code of an extended one
    match code:
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return _damaged(path, str(cause)), False
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            remedy = f"locked for over {BUSY_TIMEOUT_S:g} s; end the process that `fuser {path}` names"
        case sqlite3.SQLITE_FULL:
            remedy = "no space; free some on its filesystem"
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            remedy = _permission()
        case sqlite3.SQLITE_IOERR:
            remedy = "the disk fails or is a network share; keep it on a sound local disk"
        case sqlite3.SQLITE_CONSTRAINT:
            remedy = "the change breaks a rule; a path has one active job at a time, history is only added to"
        case _:
            remedy = "unexpected; please report it"
    return f"job database {path}: {cause}: {remedy}", code in TRANSIENT


def _damaged(path: Path, problem: str) -> str:
    return (
        f"job database {path}: is damaged or no database ({problem}); stop the daemon, move the file aside "
        f"together with {path.name}-wal and {path.name}-shm, put a backup in its place or none: "
        "pictures still in the inbox are taken in again"
    )


def _permission() -> str:
    # Readers too: the last to leave a WAL database cleans up, the first to come sets its index up.
    who = f"uid {os.geteuid()}"
    return f"{who} needs the right to write it and its folder, even to read while no daemon runs; chown them"
