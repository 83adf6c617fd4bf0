"""The job database: every query that Backfire makes is in this package.

It is SQLite on a local disk, in WAL mode with `synchronous=FULL`: what a method returned survives
the death of the process and of the machine. Every method is one short transaction. Only frozen objects of
`types` leave. Times are Unix seconds, given by the caller.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict, Unpack

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from backfire.errors import StoreError
from backfire.service.store.messages import permission
from backfire.service.store.reader import Reader, all_jobs, job_of
from backfire.service.store.schema import events as _events
from backfire.service.store.schema import facts as _facts
from backfire.service.store.schema import jobs as _jobs
from backfire.service.store.statements import ADD_EVENT, DECIDE, GIVE_BACK, START, change, first_row
from backfire.types import ACTIVE, Choice, Job, JobState, Verdict


class Changes(TypedDict, total=False):
    """The columns of a job that `Store.update` may set beside the state; see `types.Job`.

    `updated` is set to the time of the change where it is not given.
    """

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
    updated: float
    choice: Choice | None


class Store(Reader):
    """Jobs, their history, and facts about the daemon, read and written.

    See `Database` for its arguments and errors.
    """

    _writable = True

    @classmethod
    def beside(cls, path: Path) -> Store:
        """Open for a decision beside a running daemon; creates, checks and migrates nothing.

        Raises:
            StoreError: no database there, no right to write to it, or a schema that is not this version's.
        """
        with Reader(path):
            pass
        if not os.access(path, os.W_OK):
            raise StoreError(f"job database {path}: is not writable; {permission()}")
        return cls(path, checked=True)

    @contextmanager
    def together(self) -> Iterator[None]:
        """One transaction for all that is written within, which is durable at its end or not written at all.

        Nobody else can write while it is open, so that nothing slow may happen within.
        """
        with self._transaction(write=True) as connection:
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
        with self._transaction(write=True) as connection:
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
            return all_jobs(connection, sa.select(_jobs).where(new).order_by(_jobs.c.id))

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

    def start_attempt(self, job_id: int, *, at: float, detail: dict[str, Any] | None = None) -> Job:
        """READY → RUNNING with a new lease and one attempt more, durable on return, before the work begins.

        Args:
            job_id: the job.
            at: time of the start, Unix seconds.
            detail: JSON for the event.

        Raises:
            StoreError: no such job, or it is not READY: somebody else claimed it.
        """
        return self._move(START, job_id, JobState.RUNNING, at, detail, expected=JobState.READY)

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

    def decide(self, job_id: int, choice: Choice, *, by: str, at: float, how: str | None = None) -> Job:
        """REVIEW → RELEASING with what a person decided; a daemon that runs beside this process goes on.

        Args:
            by: the name of the person.
            how: the decision in words, for the history, where the choice alone does not say it.

        Raises:
            StoreError: no such job, it is not held (any more), or its path has an active job.
        """
        detail = {"decided": choice.value, "by": by} | ({"how": how} if how else {})
        return self._move(
            DECIDE, job_id, JobState.RELEASING, at, detail, expected=JobState.REVIEW, choice=choice
        )

    def prune(self, *, before: float, most: int = 1000) -> int:
        """Forget up to `most` jobs that ended before a time, and their events; returns how many.

        Those that a person is still to decide about stay.
        """
        old = sa.select(_jobs.c.id).where(
            _jobs.c.updated < before, _jobs.c.state.not_in(sorted(ACTIVE | {JobState.REVIEW}))
        ).order_by(_jobs.c.updated).limit(most)  # fmt: skip
        with self._transaction(write=True) as connection:
            return connection.execute(sa.delete(_jobs).where(_jobs.c.id.in_(old))).rowcount

    def set_fact(self, key: str, value: Any, *, at: float) -> None:
        """Remember a JSON value under a key, in place of the former one."""
        row = {"value": json.dumps(value), "at": at}
        with self._transaction(write=True) as connection:
            connection.execute(
                insert(_facts).values(key=key, **row).on_conflict_do_update(index_elements=["key"], set_=row)
            )

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
        with self._transaction(write=True) as connection:
            moved = first_row(connection, update, **values)
            if moved is None:
                raise self._refusal(connection, job_id, expected)
            first_row(connection, ADD_EVENT, **event)
            return job_of(moved)

    def _refusal(self, connection: sa.Connection, job_id: int, expected: JobState | None) -> StoreError:
        """The error for an update that met no row."""
        found = connection.execute(sa.select(_jobs).where(_jobs.c.id == job_id)).one_or_none()
        if found is None:
            return StoreError(f"job {job_id}: not in {self.path}; `backfire jobs` lists those that are")
        job = job_of(found)
        return StoreError(
            f"job {job_id} ({job.name}): is {job.state}, expected {expected}; "
            f"another process works on {self.path}: leave one daemon running"
        )


def _text(text: str) -> str:
    """The text without surrogate escapes, which SQLite refuses and file names in messages may hold."""
    return text.encode("utf-8", "backslashreplace").decode()
