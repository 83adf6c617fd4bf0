"""What the lists show: the daemon in a sentence, and a row for each picture with its reason and action."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from backfire import advice
from backfire.files.locks import is_locked
from backfire.service.queue import priority
from backfire.service.store.listing import Filters, Listing
from backfire.types import Job, JobState, Verdict, shown
from backfire.web.options import Options
from backfire.web.words import Words

PAGE = 48
"""How many pictures a page of a list shows."""
FIRST = {"needs": 12, "working": 12, "waiting": 8, "done": 12}
"""How many of each list the first page shows."""
HEARTBEAT_S = 30.0
RANKED = 5000
"""Up to how many waiting pictures are ranked by the priorities of their folders."""

ENDED_BADLY = (JobState.FAILED, JobState.QUARANTINED)
TO_DECIDE = (*ENDED_BADLY, JobState.REVIEW)
WORKED = (JobState.RUNNING, JobState.PUBLISHING, JobState.SETTING_ASIDE, JobState.HOLDING)


@dataclass(frozen=True)
class Row:
    """One picture in a list.

    Attributes:
        job: its job.
        name, folder: the parts of its path, as text.
        mark: how it stands, the key of a text and of a mark's shape: a verdict or `failed`, `waiting`,
        `working`. says: a sentence on how it stands. advice: what to do about it; empty where nothing is to
        be done. done, total: how far the work is; total 0 where nobody knows. picture: whether there may be a
        thumbnail.
    """

    job: Job
    name: str
    folder: str
    mark: str
    says: str
    advice: str = ""
    done: int = 0
    total: int = 0
    picture: bool = True


@dataclass(frozen=True)
class Section:
    """A list, or its beginning."""

    name: str
    rows: list[Row]
    count: int


@dataclass(frozen=True)
class Daemon:
    """What the daemon last recorded of itself.

    Attributes:
        alive: whether it runs.
        fact: its record; None where it never ran.
        at: when that was, Unix seconds.
    """

    alive: bool
    fact: Mapping[str, Any] | None
    at: float

    @property
    def troubles(self) -> list[str]:
        """What keeps the daemon from its work, in its own words; nothing while it does not run."""
        fact = (self.fact or {}) if self.alive else {}
        unreadable = (f"{path}: {why}" for path, why in fact.get("unreadable", {}).items())
        return [*filter(None, [fact.get("trouble")]), *unreadable]

    @property
    def moves(self) -> bool:
        """Whether it gets on, so that the time of what waits can be told."""
        return self.alive and not self.troubles

    @property
    def unused(self) -> list[str]:
        """The files of the inbox that no picture uses, and why they stay there; of many the first."""
        return [f"{path}: {why}" for path, why in (self.fact or {}).get("unused", {}).items()]

    @property
    def unused_in_all(self) -> int:
        """How many there are."""
        count: int = (self.fact or {}).get("in_all", {}).get("unused", len(self.unused))
        return count

    @property
    def nodes(self) -> dict[str, tuple[int, int]]:
        """How many workers are busy and idle by node; empty where all are on this machine."""
        found: dict[str, tuple[int, int]] = (self.fact or {}).get("nodes", {})
        return found if {*found} - {"local"} else {}

    @property
    def workers(self) -> int:
        """How many workers it has."""
        found = (self.fact or {}).get("workers", 1)
        return found if isinstance(found, int) and found > 0 else 1

    def progress(self, job: Job) -> tuple[str, int, int] | None:
        """Phase, steps done and steps in all of a job in work, as last recorded."""
        found = (self.fact or {}).get("progress", {}).get(str(job.id))
        return None if found is None else (str(found[0]), int(found[1]), int(found[2]))


class Board:
    """Computes the lists.

    Args:
        options: the folders and priorities.
        listing: the job database.
        now: wall clock, Unix seconds.
    """

    def __init__(self, options: Options, listing: Listing, now: Callable[[], float] = time.time) -> None:
        self.options, self.listing, self._now = options, listing, now

    def daemon(self) -> Daemon:
        """What the daemon does."""
        fact = self.listing.fact("daemon")
        value, at = fact or (None, 0.0)
        return Daemon(self.alive(at) and value is not None, value, at)

    def alive(self, at: float | None = None) -> bool:
        """Whether the daemon runs: it holds its lock or, without locks, had a heartbeat of late."""
        locked = is_locked(self.options.folders["state"] / "lock")
        if locked is not None:
            return locked
        if at is None:
            at = (self.listing.fact("daemon") or (None, 0.0))[1]
        return self._now() - at < HEARTBEAT_S

    def seconds_each(self) -> float | None:
        """The mean time that the last pictures took, as the commands tell it; None where nobody knows."""
        found = self.listing.seconds_each()
        return statistics.mean(found) if found else None

    def section(
        self, name: str, words: Words, daemon: Daemon, *, most: int, count: int | None = None
    ) -> Section:
        """The beginning of a list.

        Args:
            name: the list.
            words: the language.
            daemon: what the daemon does.
            most: how many rows at most.
            count: how many pictures the list holds, if that is known.
        """
        count = self.listing.count(name) if count is None else count
        match name:
            case _ if not count:  # to find nothing, every job would be looked at
                jobs = []
            case "waiting":
                jobs = self._ranked(most)
            case "needs":
                jobs = self.listing.of_each_kind(name, most=most)
            case _:
                jobs = self.listing.jobs(name, most=most)
        return Section(name, self.rows(jobs, words, daemon), count)

    def _ranked(self, most: int) -> list[Job]:
        """The first waiting jobs; those in folders of a higher priority come first."""
        priorities = self.options.priorities or {}
        if not priorities:
            return self.listing.jobs("waiting", most=most)
        jobs = self.listing.jobs("waiting", most=RANKED)
        jobs.sort(key=lambda job: (job.state != JobState.READY, -priority(job.path, priorities)))
        return jobs[:most]

    def page(self, name: str, filters: Filters, number: int, words: Words, daemon: Daemon) -> Section:
        """A page of a list, counted from 1."""
        skip = PAGE * (number - 1)
        jobs = self.listing.jobs(name, filters, most=PAGE, skip=skip)
        # Only a list of all that waits, in its order, tells how many are ahead.
        is_line = name == "waiting" and filters == Filters() and not self.options.priorities
        rows = self.rows(jobs, words, daemon, first=skip if is_line else None)
        return Section(name, rows, self.listing.count(name, filters))

    def rows(self, jobs: list[Job], words: Words, daemon: Daemon, *, first: int | None = 0) -> list[Row]:
        """A row for each job; `first` is how many are ahead of them in the line, None if nobody knows."""
        each = self.seconds_each()
        return [
            self.row(job, words, daemon, 0 if first is None else first + number, each)
            for number, job in enumerate(jobs, start=1)
        ]

    def row(
        self, job: Job, words: Words, daemon: Daemon, position: int = 0, each: float | None = None
    ) -> Row:
        """How one job stands, in words.

        Args:
            job, words, daemon: the job, the language, and what the daemon does.
            position: the job's place in the line of those that wait for a worker, counted from 1; 0 if it
                is not known.
            each: how long the work on a picture takes, seconds; None where nobody knows.
        """
        folder, name = os.path.split(job.path)
        mark, says, what_to_do, done, total = mark_of(job), "", "", 0, 0
        if needs_a_person(job):
            masks = bool(self.options.mask_paint_of(job.path))
            said = advice.of(job, words.language, "status_page", masks=masks)
            says, what_to_do = (said.sentence, said.action) if said else (words(job.state.value), "")
        elif job.state == JobState.RUNNING:
            says = words("running")
            if (progress := daemon.progress(job)) is not None:
                phase, done, total = progress
                says = words("phase", phase=words(phase), done=done, total=total) if total else words(phase)
            started = self.listing.started(job.id)
            left = started + each - self._now() if each is not None and started is not None else 0
            if daemon.alive and left > 1:
                says += ", " + words("about_left", time=words.duration(left))
        elif job.state == JobState.READY:
            later = job.not_before > self._now()
            line = words("ready", position=position) if position else words("ready_somewhere")
            says = words("ready_later") if later else line
            if each is not None and position and daemon.moves and not later:
                ahead = each * position / daemon.workers
                says += ", " + words("starts_in", time=words.duration(ahead))
        elif job.state == JobState.WAITING_MASK and self._now() >= job.updated + self.options.mask_wait_s:
            says = words("uncopied")
        elif job.state in (JobState.ARCHIVED, JobState.SKIPPED):
            says = words.clock(job.updated)
        else:
            says = words(job.state.value)
        picture = job.input_sha256 is not None
        return Row(job, shown(name), shown(folder), mark, says, what_to_do, done, total, picture)


def mark_of(job: Job) -> str:
    """The key of the mark of a job: its verdict, or how it stands."""
    if job.state in TO_DECIDE:
        return job.state.value
    if job.verdict is not None:
        return job.verdict.value
    return "working" if job.state in WORKED else "waiting"


def needs_a_person(job: Job) -> bool:
    """Whether a job waits for a person, as far as that can be told from it alone."""
    is_out = job.state in (JobState.PUBLISHED, JobState.ARCHIVED)
    return job.state in TO_DECIDE or (is_out and job.verdict == Verdict.WEAK and not job.is_accepted)
