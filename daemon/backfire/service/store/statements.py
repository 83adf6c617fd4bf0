"""The statements that every job meets, compiled once and run by SQLite itself.

SQLAlchemy takes several times as long over one of them as SQLite does.
"""

from __future__ import annotations

import sqlite3
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import dialect as sqlite_dialect
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.sql.compiler import SQLCompiler

from backfire.service.store.schema import events, jobs
from backfire.types import JobState


@cache
def change(*names: str) -> sa.Update:
    """The update of a job's state and of these columns; kept, since it takes longer to build than to run."""
    new: dict[str, Any] = {name: sa.bindparam(f"new_{name}") for name in ("state", "updated", *names)}
    return sa.update(jobs).where(jobs.c.id == sa.bindparam("of_job")).values(new).returning(*jobs.c)


RESULT_OF_KEY = sa.select(jobs).where(
    jobs.c.key == sa.bindparam("key", ""),
    jobs.c.state.in_([JobState.PUBLISHED, JobState.ARCHIVED]),
    jobs.c.output_sha256.is_not(None),
).order_by(jobs.c.id.desc()).limit(1)  # fmt: skip
_EXPECTED = jobs.c.state == sa.bindparam("expected")
START = change().where(_EXPECTED).values(attempts=jobs.c.attempts + 1, lease=jobs.c.lease + 1)
GIVE_BACK = change().where(_EXPECTED).values(attempts=sa.func.max(jobs.c.attempts - 1, 0))
DECIDE = change("choice").where(_EXPECTED)
ADD_EVENT = insert(events).values({name: sa.bindparam(name) for name in ("job_id", "at", "state", "detail")})


@cache
def _sql(statement: sa.ClauseElement) -> tuple[str, tuple[tuple[str, Any], ...]]:
    """A statement as SQLite takes it, and its parameters in order, each with its preset value."""
    compiled = statement.compile(dialect=sqlite_dialect(), compile_kwargs={"render_postcompile": True})
    assert isinstance(compiled, SQLCompiler)
    return str(compiled), tuple((name, compiled.params[name]) for name in compiled.positiontup or ())


def first_row(
    connection: sa.Connection, statement: sa.ClauseElement, **values: Any
) -> tuple[Any, ...] | None:
    """Run a statement of this module within the transaction that is open, and return its first row.

    Args:
        connection: holds the transaction.
        statement: what to run.
        values: by the names of the statement's parameters; others keep their preset value.
    """
    text, parameters = _sql(statement)
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    cursor = driver.execute(text, tuple(values.get(name, given) for name, given in parameters))
    row: tuple[Any, ...] | None = cursor.fetchone()
    cursor.close()
    return row
