"""One message about a batch of pictures: `desk: 48 protected, 9 weak, 3 failed`.

A batch is what was dropped into one folder together: it ends when nothing of the folder waits any more and
nothing has ended there for `hooks.digest_s`. Until when each folder was told is kept in the job database, so
that after a restart what was not told yet is found again there.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from backfire.service.hooks.courier import Courier
from backfire.service.store.store import Store
from backfire.types import Job, JobState, Verdict, shown

FACT = "digest"
LOOK_BACK_S = 86400.0
"""After a restart, how old the end of a job may be that was not told yet, in seconds."""
LONGEST_S = 3600.0
"""A folder in which pictures keep coming is told of after so many seconds all the same."""
NAMED_MOST = 20
"""The most pictures that a message names."""

ENDS = (JobState.ARCHIVED, JobState.FAILED, JobState.QUARANTINED, JobState.REVIEW)
ORDER = ("protected", "weak", "unprotected", "failed", "held")


@dataclass
class Batch:
    """What has ended in a folder and was not told yet.

    Attributes:
        jobs: by job id, the path in the inbox and how it ended.
        first, last: when the first and the last of them ended, Unix seconds.
    """

    jobs: dict[int, tuple[str, str]] = field(default_factory=dict)
    first: float = 0.0
    last: float = 0.0

    def add(self, job: Job) -> None:
        """Count a job that has ended."""
        self.first = self.first or job.updated
        self.last = max(self.last, job.updated)
        self.jobs[job.id] = job.name, _ended(job)


class Digest:
    """Collects what has ended by folder, and has each batch told once.

    Args:
        courier: delivers.
        store: the job database.
    """

    def __init__(self, courier: Courier, store: Store) -> None:
        self._courier, self._store = courier, store
        self._batches: dict[bytes, Batch] = {}
        self._told: dict[str, float] = {}
        self._loaded = False

    def __call__(self, job: Job, timings: Mapping[str, float] | None = None) -> None:
        """Count a job that is about to be recorded as ended."""
        if self._courier.wants("digest") and job.state in ENDS:
            self._batches.setdefault(os.path.dirname(job.path), Batch()).add(job)

    def step(self, active: Iterable[Job], *, now: float, ending: bool = False) -> None:
        """Tell of the batches that are complete.

        Args:
            active: the jobs with work left.
            now: wall clock, Unix seconds.
            ending: tell at once of folders in which nothing waits, because the process ends.
        """
        if not self._courier.wants("digest"):
            self._batches.clear()
            return
        if not self._loaded:
            self._load(now)
        if not self._batches:
            return
        busy = {os.path.dirname(job.path) for job in active}
        told = False
        for folder, batch in list(self._batches.items()):
            quiet = ending or not 0 <= now - batch.last < self._courier.digest_s
            if (folder not in busy and quiet) or now - batch.first >= LONGEST_S:
                self._courier.send(payload(folder, batch))
                self._told[shown(folder)] = batch.last
                del self._batches[folder]
                told = True
        if told:
            self._told = {name: at for name, at in self._told.items() if at > now - LOOK_BACK_S}
            self._store.set_fact(FACT, self._told, at=now)

    def _load(self, now: float) -> None:
        """Find what ended before a restart and was not told yet."""
        self._loaded = True
        fact = self._store.fact(FACT)
        if fact is None:  # digests are new here: what ended before is not told
            self._store.set_fact(FACT, {}, at=now)
            return
        self._told = dict(fact[0])
        for job in reversed(self._store.latest(100_000, states=ENDS, since=now - LOOK_BACK_S)):
            folder = os.path.dirname(job.path)
            if job.updated > self._told.get(shown(folder), 0.0):
                self._batches.setdefault(folder, Batch()).add(job)


def payload(folder: bytes, batch: Batch) -> dict[str, Any]:
    """The JSON that tells of a batch; see the guide on hooks."""
    counts = Counter(ended for _, ended in batch.jobs.values())
    said = ", ".join(f"{counts[one]} {one}" for one in ORDER if counts[one])
    where = shown(folder) or "inbox"
    ids = sorted(batch.jobs)
    digest = hashlib.sha256(repr((folder, ids)).encode()).hexdigest()
    return {
        "id": f"{digest[:16]}-{ids[-1]}-digest",
        "event": "digest",
        "at": _at(batch.last),
        "since": _at(batch.first),
        "folder": where,
        "message": f"{where}: {said}",
        "counts": {one: counts[one] for one in ORDER if counts[one]},
        "files": {
            one: [name for name, ended in batch.jobs.values() if ended == one][:NAMED_MOST]
            for one in ORDER[1:]
            if counts[one]
        },
    }


def _at(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def _ended(job: Job) -> str:
    if job.state == JobState.REVIEW:
        return "held"
    return "failed" if job.state != JobState.ARCHIVED else (job.verdict or Verdict.UNPROTECTED).value
