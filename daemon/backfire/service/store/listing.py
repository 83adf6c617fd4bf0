"""The questions of the status page to the job database, in plain SQL over the standard library's driver.

The page is a process of its own that is to stay small: SQLAlchemy, which all other queries use, would add 25
MB to it. The file is opened with `mode=ro`, so that nothing here can change it or keep the daemon from
writing.

It is one long module because its questions share the conditions by which a job needs somebody.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from backfire.errors import StoreError
from backfire.types import ACTIVE, Choice, Event, Job, JobState, Verdict

BUSY_S = 5.0
"""How long to wait for another process's write; readers of a database in WAL mode hardly ever do."""

_COLUMNS = ", ".join(f"j.{field.name}" for field in fields(Job))

_IN_FORCE = f"""
    NOT EXISTS (
        SELECT 1 FROM jobs AS later
        WHERE later.path = j.path AND later.id > j.id AND later.state != '{JobState.SKIPPED.value}'
    )"""
"""Whether a job is the last one of its path: one that was retried does not count any more.

A later one that was skipped has taken no place: its file was taken away again before it was worked.
"""


def _in(states: Sequence[JobState]) -> str:
    return ", ".join(f"'{state.value}'" for state in states)


_BAD = _in((JobState.FAILED, JobState.QUARANTINED))
_FAILED = f"j.state IN ({_BAD}) AND {_IN_FORCE}"
_HELD = f"j.state IN ({_in((JobState.REVIEW,))})"
"""Held pictures wait for a decision each, whatever became of another file of their name."""
_OUT = _in((JobState.PUBLISHED, JobState.ARCHIVED))
_WEAK = f"j.verdict = 'weak' AND j.choice IS NOT 'release' AND +j.state IN ({_OUT}) AND {_IN_FORCE}"
"""The plus keeps SQLite from the index of states, in which nearly all jobs are archived."""
COUNTS = f"(j.state NOT IN ({_BAD}) OR {_IN_FORCE})"
"""Whether a job `j` is counted and listed: a failed one is not once its picture is a job again."""
NEEDS = f"({_FAILED}) OR ({_HELD}) OR ({_WEAK})"
WORKING = f"""
    j.state IN ({_in((JobState.RUNNING, JobState.PUBLISHING, JobState.SETTING_ASIDE, JobState.HOLDING))})"""
WAITING = f"""
    j.state IN ({_in((JobState.READY, JobState.RELEASING, JobState.WAITING_MASK, JobState.SETTLING))})"""
DONE = f"j.state IN ({_OUT}) AND (j.verdict IS NOT 'weak' OR NOT ({_WEAK}))"
"""A weak picture is done when somebody has accepted it; until then it needs a person."""
EVERYTHING = "1"

SECONDS_EACH = f"""
    SELECT (
        SELECT at FROM events WHERE job_id = began.job_id AND id > began.id ORDER BY id LIMIT 1
    ) - began.at FROM (
        SELECT (SELECT max(id) FROM events WHERE job_id = jobs.id AND state = 'running') AS last
        FROM jobs INDEXED BY jobs_updated
        WHERE state IN ({_OUT}) AND verdict IN ('protected', 'weak') ORDER BY updated DESC LIMIT ?
    ) CROSS JOIN events AS began ON began.id = last"""
"""How long a worker took over each of the last pictures that it protected, as many as the parameter says.

The work ends with the next event: a held picture is published when a person has decided. A result that
was taken over from another job was never worked.
"""

SECTIONS = {"needs": NEEDS, "working": WORKING, "waiting": WAITING, "done": DONE, "all": EVERYTHING}
"""What the page's lists hold, as conditions on a job `j`."""

NEEDED = {"failed": _FAILED, "held": _HELD, "weak": _WEAK}
"""What needs a person, by kind, as conditions on a job `j`; no two of them hold the same job."""

PARTS = {"needs": tuple(NEEDED.values())}
"""Lists that are made of several, one after the other, no two of which hold the same job."""

_SUMS = {"needs": [(1, part) for part in NEEDED.values()], "done": [(1, f"j.state IN ({_OUT})"), (-1, _WEAK)]}
"""How lists are counted as sums and differences of others: nearly all jobs are done, and to ask of each
whether it is weak takes several times as long as to count all that are out and the few that are weak."""

_ORDER = {"waiting": "j.state = 'ready' DESC, j.updated, j.id", "working": "j.updated, j.id"}


@dataclass(frozen=True)
class Filters:
    """What a list is narrowed to; what is empty narrows nothing.

    Attributes:
        text: a part of the path, upper and lower case alike (of ASCII letters).
        verdict: a verdict; `failed` also finds what could not be worked.
        folder: a folder below the inbox.
        since, until: when the job last changed, Unix seconds; `until` is exclusive.
    """

    text: str = ""
    verdict: Verdict | None = None
    folder: str = ""
    since: float | None = None
    until: float | None = None

    def conditions(self) -> tuple[list[str], list[Any]]:
        """SQL conditions, and the values of their parameters in order."""
        found: list[tuple[str, list[Any]]] = []
        if self.text:
            spellings = [_like(unicodedata.normalize(form, self.text)) for form in ("NFC", "NFD")]
            like = "CAST(j.path AS TEXT) LIKE ? ESCAPE '\\'"
            found.append((f"({like} OR {like})", spellings))
        if self.verdict == Verdict.FAILED:  # most that failed were never judged, and all have this mark
            found.append((f"(j.state IN ({_BAD}) OR j.verdict = ?)", [self.verdict.value]))
        elif self.verdict is not None:
            found.append(("j.verdict = ?", [self.verdict.value]))
        if self.folder:
            top = os.fsencode(self.folder) + b"/"
            found.append(("substr(j.path, 1, ?) = ?", [len(top), top]))
        if self.since is not None:
            found.append(("j.updated >= ?", [self.since]))
        if self.until is not None:
            found.append(("j.updated < ?", [self.until]))
        return [condition for condition, _ in found], [value for _, values in found for value in values]


def _like(text: str) -> str:
    """A LIKE pattern for a part of a text."""
    for special in "\\%_":
        text = text.replace(special, f"\\{special}")
    return f"%{text}%"


class Ended(NamedTuple):
    """When a job was found and when it last changed (Unix seconds), how it stands, and whether it counts."""

    created: float
    updated: float
    state: JobState
    verdict: Verdict | None
    counts: bool = True


class Listing:
    """Reads jobs for the page; safe to call from several threads, which then wait for each other.

    The file need not be there yet: methods raise StoreError until the daemon has made it, and find it then.

    Args:
        path: the database file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._openings = 0

    def news(self) -> tuple[Any, ...]:
        """A value that differs from the last one if a job or the daemon's record has changed since.

        Raises:
            StoreError: it cannot be read.
        """
        query = """
            SELECT (SELECT max(id) FROM events), (SELECT min(id) FROM jobs),
                   (SELECT value FROM facts WHERE key = 'daemon')"""
        return (self._openings, *self._rows(query, [])[0])

    def count(self, section: str, filters: Filters = Filters()) -> int:
        """How many jobs a list holds."""
        parts = _SUMS.get(section, [(1, SECTIONS[section])])
        return sum(sign * self._count(_where(part, filters)) for sign, part in parts)

    def jobs(
        self,
        section: str,
        filters: Filters = Filters(),
        *,
        most: int,
        skip: int = 0,
    ) -> list[Job]:
        """A part of a list: what waits and is worked on in the order of its time, all else newest first, and
        of those that need a person the failed before the held and the weak.

        Args:
            section: one of `SECTIONS`.
            filters: what it is narrowed to.
            most: how many jobs.
            skip: how many to leave out at the beginning.
        """
        chosen: list[int] = []
        for part in PARTS.get(section, (SECTIONS[section],)):
            where = _where(part, filters)
            found = self._ids(section, where, most - len(chosen), skip)
            chosen += found
            if len(chosen) == most:
                break
            skip = 0 if found else max(skip - self._count(where), 0) if skip else 0
        return self._jobs(chosen)

    def latest_out(self) -> Job | None:
        """The job whose result was published last, whether or not it still needs a person."""
        found = self._ids("all", _where(f"j.state IN ({_OUT})", Filters()), 1, 0)
        return next(iter(self._jobs(found)), None)

    def of_each_kind(self, section: str, *, most: int) -> list[Job]:
        """The beginning of a list that is made of several: the first of each, so that each kind is seen.

        They stand in the order of `jobs`. Where one has fewer than its share, the others have more.
        """
        parts = PARTS[section]
        found = [self._ids(section, _where(part, Filters()), most, 0) for part in parts]
        shares = [0] * len(parts)
        while sum(shares) < most and any(share < len(ids) for share, ids in zip(shares, found, strict=True)):
            # The next one is of the kind of which the fewest are chosen and some are left.
            left = (kind for kind, ids in enumerate(found) if shares[kind] < len(ids))
            shares[min(left, key=lambda kind: shares[kind])] += 1
        return self._jobs([one for ids, share in zip(found, shares, strict=True) for one in ids[:share]])

    def _ids(self, section: str, where: tuple[str, list[Any]], most: int, skip: int) -> list[int]:
        """The first jobs under a condition, in the order of a list."""
        # SQLite would rather find the state by its index, and then sort a hundred thousand rows.
        index = "INDEXED BY jobs_updated" if section in ("done", "all") else ""
        order = _ORDER.get(section, "j.updated DESC, j.id DESC")
        query = f"SELECT j.id FROM jobs AS j {index} WHERE {where[0]} ORDER BY {order} LIMIT ? OFFSET ?"
        return [row[0] for row in self._rows(query, [*where[1], most, skip])]

    def _jobs(self, ids: Sequence[int]) -> list[Job]:
        """Jobs by their ids, in that order."""
        query = f"SELECT {_COLUMNS} FROM jobs AS j WHERE j.id IN ({', '.join('?' * len(ids))})"
        jobs = {job.id: job for job in map(_job, self._rows(query, ids))}
        return [jobs[one] for one in ids if one in jobs]

    def _count(self, where: tuple[str, list[Any]]) -> int:
        return int(self._rows(f"SELECT count(*) FROM jobs AS j WHERE {where[0]}", where[1])[0][0])

    def get(self, job_id: int) -> Job | None:
        """The job of that id."""
        rows = self._rows(f"SELECT {_COLUMNS} FROM jobs AS j WHERE j.id = ?", [job_id])
        return _job(rows[0]) if rows else None

    def of_path(self, path: bytes) -> list[Job]:
        """All jobs of a path relative to the inbox, newest first."""
        query = f"SELECT {_COLUMNS} FROM jobs AS j WHERE j.path = ? ORDER BY j.id DESC"
        return [_job(row) for row in self._rows(query, [path])]

    def history(self, job_id: int) -> list[Event]:
        """A job's events in the order in which they were written."""
        query = "SELECT at, state, detail FROM events WHERE job_id = ? ORDER BY id"
        return [
            Event(at, JobState(state), json.loads(detail))
            for at, state, detail in self._rows(query, [job_id])
        ]

    def started(self, job_id: int) -> float | None:
        """When the job was last started, Unix seconds."""
        query = "SELECT max(at) FROM events WHERE job_id = ? AND state = 'running'"
        found: float | None = self._rows(query, [job_id])[0][0]
        return found

    def seconds_each(self, of_last: int = 50) -> list[float]:
        """How long the work on each of the last published pictures took, in seconds, newest first."""
        return [row[0] for row in self._rows(SECONDS_EACH, [of_last]) if row[0] is not None and row[0] >= 0]

    def since(self, at: float) -> list[Ended]:
        """The jobs that changed since a time (Unix seconds), and all that have work left."""
        query = f"""
            SELECT j.created, j.updated, j.state, j.verdict, {COUNTS} FROM jobs AS j WHERE j.updated >= ?
            UNION ALL
            SELECT j.created, j.updated, j.state, j.verdict, 1 FROM jobs AS j
            WHERE j.state IN ({_in(sorted(ACTIVE))}) AND j.updated < ?"""
        return [
            Ended(created, updated, JobState(state), verdict and Verdict(verdict), bool(counts))
            for created, updated, state, verdict, counts in self._rows(query, [at, at])
        ]

    def reviews(self, at: float) -> list[tuple[float, float]]:
        """From when to when jobs that changed since a time were held for a person, in Unix seconds."""
        query = """
            SELECT began.at, (
                SELECT next.at FROM events AS next
                WHERE next.job_id = j.id AND next.id > began.id AND next.state != 'review'
                ORDER BY next.id LIMIT 1
            ) AS decided
            FROM jobs AS j CROSS JOIN events AS began ON began.job_id = j.id
            WHERE j.updated >= ? AND j.choice IS NOT NULL
                AND began.state = 'review' AND decided IS NOT NULL"""
        return [(began, decided) for began, decided in self._rows(query, [at])]

    def tally(self, since: float) -> dict[tuple[JobState, Verdict | None], int]:
        """How many jobs have changed since a time, by state and verdict; see `Reader.tally`."""
        return tallied(self._rows(tally_query(since), [since]))

    def folders(self) -> list[bytes]:
        """The folders directly below the inbox that jobs come from."""
        query = "SELECT DISTINCT substr(path, 1, instr(path, x'2f') - 1) FROM jobs WHERE instr(path, x'2f')"
        return sorted(folder for (folder,) in self._rows(query, []))

    def fact(self, key: str) -> tuple[Any, float] | None:
        """The value last set under a key and when, Unix seconds."""
        rows = self._rows("SELECT value, at FROM facts WHERE key = ?", [key])
        return (json.loads(rows[0][0]), rows[0][1]) if rows else None

    def close(self) -> None:
        """Close the file. Harmless when repeated."""
        with self._lock:
            self._forget()

    def _rows(self, query: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        with self._reading() as connection:
            return connection.execute(query, values).fetchall()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._opened()
            except (sqlite3.Error, OSError) as error:
                self._forget()
                raise StoreError(
                    f"job database {self._path}: cannot be read ({error}); start the daemon "
                    "(`backfire run`), which makes it or brings it up to date",
                    transient=True,
                ) from error

    def _opened(self) -> sqlite3.Connection:
        """The connection; a new one where another file has taken the place of the one that was opened."""
        status = os.stat(self._path)
        identity = status.st_dev, status.st_ino
        if self._connection is None or identity != self._identity:
            self._forget()
            self._connection = sqlite3.connect(
                f"file:{quote(os.fsencode(self._path.absolute()))}?mode=ro",
                uri=True,
                timeout=BUSY_S,
                isolation_level=None,
                check_same_thread=False,
            )
            self._identity = identity
            self._openings += 1
        return self._connection

    def _forget(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
        self._connection = None


def _where(condition: str, filters: Filters) -> tuple[str, list[Any]]:
    conditions, values = filters.conditions()
    return " AND ".join([f"({condition})", *conditions]), values


def tally_query(since: float) -> str:
    """How many jobs have changed since a time, its parameter, by state and verdict, for page and commands."""
    # SQLite would rather group by its index of states, and read every job there is for those of a day.
    index = "INDEXED BY jobs_updated" if since > 0 else ""
    return f"""
        SELECT j.state, j.verdict, count(*) FROM jobs AS j {index}
        WHERE {COUNTS} AND j.updated >= ? GROUP BY j.state, j.verdict"""


def tallied(rows: Iterable[Sequence[Any]]) -> dict[tuple[JobState, Verdict | None], int]:
    """The rows of `tally_query` by state and verdict."""
    return {(JobState(state), Verdict(verdict) if verdict else None): count for state, verdict, count in rows}


def _job(row: tuple[Any, ...]) -> Job:
    values = dict(zip((field.name for field in fields(Job)), row, strict=True))
    values["state"] = JobState(values["state"])
    values["verdict"] = values["verdict"] and Verdict(values["verdict"])
    values["choice"] = values["choice"] and Choice(values["choice"])
    return Job(**values)
