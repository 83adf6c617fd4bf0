"""Questions to the job database, which change nothing."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Collection, Iterable
from typing import Any

import sqlalchemy as sa

from backfire.service.store.database import Database
from backfire.service.store.listing import COUNTS, NEEDED, SECONDS_EACH, tallied, tally_query
from backfire.service.store.schema import events as _events
from backfire.service.store.schema import facts as _facts
from backfire.service.store.schema import jobs as _jobs
from backfire.service.store.statements import RESULT_OF_KEY, first_row
from backfire.types import ACTIVE, Choice, Event, Job, JobState, Verdict

_FIELDS = tuple(_jobs.c.keys())


def _of_jobs(condition: str) -> sa.ColumnElement[bool]:
    """A condition on a job `j`, as `listing` has them, for the table itself."""
    return sa.literal_column(condition.replace("j.", f"{_jobs.name}."), sa.Boolean)


def _below(folder: bytes) -> sa.ColumnElement[bool]:
    """Whether a job's picture lies in a folder or below it; `0` follows `/`, so that the index finds them."""
    return sa.and_(_jobs.c.path >= folder + b"/", _jobs.c.path < folder + b"0")


_IN_FORCE = _of_jobs(COUNTS)
"""Whether a job counts: one that failed does not any more once its picture is a job again."""


class Reader(Database):
    """Jobs, their history, and facts about the daemon, read beside a running daemon or without one.

    It creates and migrates nothing; see `Database` for its arguments and errors.
    """

    def get(self, job_id: int) -> Job | None:
        """The job of that id."""
        return next(iter(self._select(sa.select(_jobs).where(_jobs.c.id == job_id))), None)

    def latest_result(self, key: str) -> Job | None:
        """The newest published job of that key, which means of that picture, mask and configuration."""
        with self._transaction() as connection:
            row = first_row(connection, RESULT_OF_KEY, key=key)
        return None if row is None else job_of(row)

    def active(self) -> list[Job]:
        """All jobs in one of the `types.ACTIVE` states, oldest first."""
        return self._select(sa.select(_jobs).where(_jobs.c.state.in_(sorted(ACTIVE))).order_by(_jobs.c.id))

    def masks_in(self, folder: bytes) -> tuple[int, int]:
        """How many pictures of a folder itself, not below it, are known, and how many of them had masks."""
        above = folder + b"/" if folder else b""
        inside = sa.func.instr(sa.func.substr(_jobs.c.path, len(above) + 1), b"/") == 0
        if above:
            inside = sa.and_(_below(folder), inside)
        read = sa.and_(inside, _jobs.c.input_sha256.is_not(None))
        query = sa.select(sa.func.count(), sa.func.count(_jobs.c.mask_sha256)).where(read)
        with self._transaction() as connection:
            pictures, masks = connection.execute(query).one()
        return pictures, masks

    def latest_of(self, paths: Iterable[bytes]) -> Job | None:
        """The newest job of any of some paths."""
        query = sa.select(_jobs).where(_jobs.c.path.in_(list(paths))).order_by(_jobs.c.id.desc()).limit(1)
        return next(iter(self._select(query)), None)

    def all_in(self, state: JobState) -> list[Job]:
        """All jobs in a state, oldest first."""
        return self._select(sa.select(_jobs).where(_jobs.c.state == state).order_by(_jobs.c.id))

    def held_alike(self, path: bytes) -> list[Job]:
        """The jobs in the review folder, or on their way, whose paths begin like a picture's, oldest first.

        They are all that may share its name, or its masks: those of the same path but for its extension too.
        """
        stem = os.path.splitext(path)[0]
        alike = sa.func.substr(_jobs.c.path, 1, len(stem)) == stem
        held = _jobs.c.state.in_([JobState.HOLDING, JobState.REVIEW, JobState.RELEASING])
        return self._select(sa.select(_jobs).where(held, alike).order_by(_jobs.c.id))

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

    def latest(
        self,
        limit: int = 100,
        *,
        states: Collection[JobState] = tuple(JobState),
        verdict: Verdict | None = None,
        since: float = 0.0,
        search: str = "",
        folder: bytes = b"",
    ) -> list[Job]:
        """The newest jobs, newest first, without failed ones whose picture was tried again as another job.

        Args:
            limit: how many at most.
            states, verdict: only those in one of these states, and with this verdict.
            since: only those that changed at this time or later, Unix seconds.
            search: only those whose path has this part, whatever its case.
            folder: only those in this folder below the inbox, and in those below it.
        """
        query = sa.select(_jobs).where(_IN_FORCE, _jobs.c.updated >= since)
        query = query.where(_jobs.c.state.in_(sorted(states)))
        query = query if verdict is None else query.where(_jobs.c.verdict == verdict)
        query = query.where(_below(folder)) if folder else query
        return self._select(_searched(query, search).order_by(_jobs.c.id.desc()).limit(limit))

    def tally(self, since: float = 0.0) -> dict[tuple[JobState, Verdict | None], int]:
        """How many jobs have changed since a time (Unix seconds), by state and verdict.

        A failed job whose picture was tried again as another job does not count.
        """
        with self._transaction() as connection:
            return tallied(connection.exec_driver_sql(tally_query(since), (since,)).all())

    def needing(self, kind: str, limit: int) -> list[Job]:
        """The jobs that need a person for one reason, the newest first; the page lists the same.

        Args:
            kind: `failed`, `held` or `weak`; see `listing.NEEDED`.
            limit: how many at most.
        """
        query = sa.select(_jobs).where(_of_jobs(NEEDED[kind])).order_by(_jobs.c.id.desc())
        return self._select(query.limit(limit))

    def found_since(self, at: float) -> int:
        """How many pictures were found since a time, Unix seconds; one that was tried again counts once."""
        query = sa.select(sa.func.count()).where(_IN_FORCE, _jobs.c.created >= at)
        with self._transaction() as connection:
            return int(connection.execute(query).scalar_one())

    def named(self, name: bytes) -> list[bytes]:
        """The paths of pictures whose own file name, or that of their result, is this; newest first."""
        end = b"/" + name
        matches = [
            sa.or_(column == name, sa.func.substr(column, -len(end)) == end)
            for column in (_jobs.c.path, _jobs.c.output_path)
        ]
        query = sa.select(_jobs.c.path).where(sa.or_(*matches)).group_by(_jobs.c.path)
        with self._transaction() as connection:
            return [row[0] for row in connection.execute(query.order_by(sa.func.max(_jobs.c.id).desc()))]

    def of_result(self, sha256: str, place: bytes | None) -> list[Job]:
        """The jobs whose result has this digest, then those whose result was put in this place, newest first.

        Args:
            sha256: of the published file, lower-case hex.
            place: its path in the outbox; None where it lies elsewhere.
        """
        there = _jobs.c.output_path == place if place is not None else sa.false()
        query = sa.select(_jobs).where(sa.or_(_jobs.c.output_sha256 == sha256, there))
        found = self._select(query.order_by(_jobs.c.id.desc()))
        return sorted(found, key=lambda job: job.output_sha256 != sha256)

    def seconds_each(self, of_last: int = 50) -> list[float]:
        """How long a worker took over each of the last pictures that it protected, newest first."""
        with self._transaction() as connection:
            rows = connection.exec_driver_sql(SECONDS_EACH, (of_last,)).all()
        return [row[0] for row in rows if row[0] is not None and row[0] >= 0]

    def paths(self, limit: int) -> list[bytes]:
        """The paths of the newest jobs, each once, newest first."""
        query = sa.select(_jobs.c.path).group_by(_jobs.c.path).order_by(sa.func.max(_jobs.c.id).desc())
        with self._transaction() as connection:
            return [row[0] for row in connection.execute(query.limit(limit))]

    def counts(self) -> dict[JobState, int]:
        """How many jobs there are in each state; every state is a key."""
        query = sa.select(_jobs.c.state, sa.func.count()).group_by(_jobs.c.state)
        with self._transaction() as connection:
            found = {row[0]: row[1] for row in connection.execute(query)}
        return {state: found.get(state, 0) for state in JobState}

    def verdicts(self) -> dict[Verdict, int]:
        """How many jobs there are with each verdict; those without one are not counted."""
        query = sa.select(_jobs.c.verdict, sa.func.count()).group_by(_jobs.c.verdict)
        with self._transaction() as connection:
            found = {row[0]: row[1] for row in connection.execute(query)}
        return {verdict: found[verdict] for verdict in Verdict if verdict in found}

    def history(self, job_id: int) -> list[Event]:
        """A job's events in the order in which they were written."""
        query = sa.select(_events).where(_events.c.job_id == job_id).order_by(_events.c.id)
        with self._transaction() as connection:
            return [
                Event(at=row.at, state=JobState(row.state), detail=json.loads(row.detail))
                for row in connection.execute(query)
            ]

    def fact(self, key: str) -> tuple[Any, float] | None:
        """The value last set under a key and when, Unix seconds."""
        with self._transaction() as connection:
            row = connection.execute(sa.select(_facts).where(_facts.c.key == key)).one_or_none()
        return None if row is None else (json.loads(row.value), row.at)

    def _select(self, query: sa.Select[Any]) -> list[Job]:
        with self._transaction() as connection:
            return all_jobs(connection, query)


def _searched(query: sa.Select[Any], text: str) -> sa.Select[Any]:
    """The query for paths with a part, which may be spelt in either of Unicode's two forms for é."""
    if not text:
        return query
    text = os.fsencode(text).decode("utf-8", "replace")  # SQLite takes no half of a surrogate pair
    path = sa.cast(_jobs.c.path, sa.Text)
    spellings = {unicodedata.normalize(form, text) for form in ("NFC", "NFD")}
    return query.where(sa.or_(*(path.icontains(one, autoescape=True) for one in spellings)))


def all_jobs(connection: sa.Connection, query: sa.Select[Any]) -> list[Job]:
    """The jobs that a query of all their columns finds."""
    return [job_of(row) for row in connection.execute(query)]


def job_of(row: sa.Row[Any] | tuple[Any, ...]) -> Job:
    """The job of a row that holds all its columns."""
    fields = dict(zip(_FIELDS, row, strict=True))
    fields["state"] = JobState(fields["state"])
    fields["verdict"] = fields["verdict"] and Verdict(fields["verdict"])
    fields["choice"] = fields["choice"] and Choice(fields["choice"])
    return Job(**fields)
