"""The daemon's books: the active jobs in memory beside their rows in the store.

Owns no decision; intake, publisher and dispatcher record theirs here.
"""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog

from backfire.errors import BackfireError
from backfire.service.spool import Spool
from backfire.service.store.store import Store
from backfire.types import Job, JobState, shown

log = structlog.get_logger()


LONGEST_S = 600.0
"""No step is put off for longer: a later time means that the clock was set back."""


class Unforeseen(Exception):
    """A fault of ours in the midst of one job's step; `__cause__` is what was raised."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.name)
        self.job = job


@contextmanager
def blaming(job: Job) -> Iterator[None]:
    """Bring what nobody foresaw within home to the job: it is to cost that one, and no other.

    Raises:
        Unforeseen: in place of anything but what has its handlers, a BackfireError or an OSError.
    """
    try:
        yield
    except (BackfireError, OSError, Unforeseen):
        raise
    except Exception as error:
        raise Unforeseen(job) from error


@dataclass
class Ledger:
    """The active jobs by path, each as it stands in the store.

    Attributes:
        now: wall clock, Unix seconds.
        monotonic: for waiting; no clock change touches it.
        listeners: called as listener(job, timings) with the job as it is about to be recorded.
        troubles: how often in a row a job's next step was put off.
        faults: how often a fault of ours met a job.
        hindered: how often the system was in a job's way, and how many had been worked before the first time.
        published, failed: jobs that came to rest since the start.
    """

    store: Store
    spools: Path
    now: Callable[[], float]
    monotonic: Callable[[], float] = time.monotonic
    listeners: list[Callable[[Job, dict[str, float] | None], None]] = field(default_factory=list)
    jobs: dict[bytes, Job] = field(default_factory=dict)
    troubles: dict[int, int] = field(default_factory=dict)
    faults: dict[int, int] = field(default_factory=dict)
    hindered: dict[int, tuple[int, int]] = field(default_factory=dict)
    published: int = 0
    failed: int = 0
    _retry_at: dict[int, float] = field(default_factory=dict)
    _ended: list[tuple[Job, dict[str, Any]]] = field(default_factory=list)
    _by_state: dict[JobState, dict[int, Job]] = field(default_factory=lambda: defaultdict(dict))

    def load(self) -> None:
        """Read the active jobs, and drop the spools of all others."""
        self.jobs.clear()
        self._by_state.clear()
        self._ended.clear()
        for job in self.store.active():
            self.remember(job)
        known = {str(job.id) for job in self.jobs.values()}
        with suppress(FileNotFoundError):
            for folder in self.spools.iterdir():
                if folder.name not in known:
                    shutil.rmtree(folder, ignore_errors=True)

    def spool(self, job: Job) -> Spool:
        """The job's private folder."""
        return Spool(self.spools / str(job.id))

    def of(self, *states: JobState) -> list[Job]:
        """The active jobs in these states; a backlog of other states costs nothing."""
        return [job for state in states for job in self._by_state[state].values()]

    def count(self, state: JobState) -> int:
        """How many active jobs are in a state."""
        return len(self._by_state[state])

    def remember(self, job: Job) -> Job:
        """Take over a row that the store returned."""
        before = self.jobs.get(job.path)
        if before is not None:
            self._by_state[before.state].pop(before.id, None)
        self.jobs[job.path] = job
        self._by_state[job.state][job.id] = job
        return job

    @contextmanager
    def together(self) -> Iterator[None]:
        """One commit for what is recorded within; only then the jobs that ended are forgotten."""
        with self.store.together():
            yield
        while self._ended:
            self._forget(*self._ended.pop())

    def update(
        self,
        job: Job,
        state: JobState,
        *,
        detail: dict[str, Any] | None = None,
        timings: dict[str, float] | None = None,
        **fields: Any,
    ) -> Job:
        """Tell the listeners of a step, then record it: what they write down survives a crash in between."""
        self.troubles.pop(job.id, None)
        now = self.now()
        for listen in self.listeners:
            listen(replace(job, state=state, updated=now, **fields), timings)
        return self.remember(self.store.update(job.id, state, at=now, detail=detail, **fields))

    def rest(
        self,
        job: Job,
        state: JobState,
        *,
        detail: dict[str, Any] | None = None,
        timings: dict[str, float] | None = None,
        **fields: Any,
    ) -> None:
        """Record a job's end, log its one line, forget it and its spool."""
        job = self.update(job, state, detail=detail, timings=timings, **fields)
        self._ended.append((job, {"timings_s": timings, **(detail or {})}))
        if not self.store.is_together:
            self._forget(*self._ended.pop())

    def _forget(self, job: Job, told: dict[str, Any]) -> None:
        del self.jobs[job.path]
        del self._by_state[job.state][job.id]
        self._retry_at.pop(job.id, None)
        self.faults.pop(job.id, None)
        self.hindered.pop(job.id, None)
        self.spool(job).drop()
        self.published += job.state == JobState.ARCHIVED
        self.failed += job.state in (JobState.FAILED, JobState.QUARANTINED)
        log.info(
            "job",
            id=job.id,
            path=job.name,
            state=job.state.value,
            verdict=job.verdict.value if job.verdict else None,
            code=job.code,
            message=job.message,
            output=shown(job.output_path) if job.output_path else None,
            attempts=job.attempts,
            seconds=round(job.updated - job.created, 1),
            **told,
        )

    def due(self, job: Job) -> bool:
        """Whether the job's next step may be tried now."""
        held = self.now() < job.not_before <= self.now() + LONGEST_S
        return not held and self.monotonic() >= self._retry_at.get(job.id, 0.0)

    def put_off(self, job: Job, seconds: float) -> None:
        """Try the job's next step again no sooner than that."""
        self._retry_at[job.id] = self.monotonic() + seconds

    def postpone(self, job: Job, error: BaseException) -> None:
        """Try the job's next step again later, without burning an attempt; said at every tenth time."""
        count = self.troubles[job.id] = self.troubles.get(job.id, 0) + 1
        wait = min(2.0 * 2 ** min(count, 10), 60.0)
        self.put_off(job, wait)
        if count % 10 == 1:
            log.warning("postponed", path=job.name, state=job.state.value, error=str(error), retry_s=wait)
            self.store.update(job.id, job.state, at=self.now(), detail={"reason": str(error)})
