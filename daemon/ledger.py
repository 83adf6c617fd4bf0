"""The daemon's books: the active jobs in memory beside their rows in the store, and the spool.

Owns no decision; intake, publisher and service record theirs here. The spool is a private
folder a job, below `state/spool`: copies of picture and masks, then the worker's result.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog

from daemon.domain import Job, JobState, shown
from daemon.inbox import Signature
from daemon.store import Store

log = structlog.get_logger()


@dataclass(frozen=True)
class Spool:
    """A job's private folder, and what was taken into it."""

    folder: Path

    @property
    def input(self) -> Path:
        """The picture's copy; mask i lies beside it as `mask-i`."""
        return self.folder / "input"

    def mask(self, index: int) -> Path:
        """The copy of a mask."""
        return self.folder / f"mask-{index}"

    def note(self, files: dict[bytes, Signature], masks: list[tuple[bytes, str]]) -> None:
        """Write down of which files, in which condition, the copies were made; masks as (path, digest)."""
        document = {
            "files": [[os.fsdecode(path), list(signature)] for path, signature in files.items()],
            "masks": [[os.fsdecode(path), digest] for path, digest in masks],
        }
        (self.folder / "taken.json").write_text(json.dumps(document))

    def _noted(self) -> dict[str, Any]:
        try:
            document: dict[str, Any] = json.loads((self.folder / "taken.json").read_text())
        except (OSError, ValueError):
            return {"files": [], "masks": []}
        return document

    def files(self) -> dict[bytes, Signature]:
        """The signatures of the files copied; empty if there is no complete copy."""
        return {os.fsencode(path): Signature(*values) for path, values in self._noted()["files"]}

    def masks(self) -> list[tuple[bytes, str]]:
        """(path in the inbox, SHA-256) of the masks taken."""
        return [(os.fsencode(path), digest) for path, digest in self._noted()["masks"]]

    def drop(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass
class Ledger:
    """The active jobs by path, each as it stands in the store.

    Attributes:
        now: wall clock, Unix seconds.
        listeners: called as listener(job, timings) with the job as it is about to be recorded.
        troubles: how often in a row a job's next step was put off.
        published, failed: jobs that came to rest since the start.
    """

    store: Store
    spools: Path
    now: Callable[[], float]
    listeners: list[Callable[[Job, dict[str, float] | None], None]] = field(default_factory=list)
    jobs: dict[bytes, Job] = field(default_factory=dict)
    troubles: dict[int, int] = field(default_factory=dict)
    published: int = 0
    failed: int = 0
    _retry_at: dict[int, float] = field(default_factory=dict)

    def load(self) -> None:
        """Read the active jobs, and drop the spools of all others."""
        self.jobs = {job.path: job for job in self.store.active()}
        known = {str(job.id) for job in self.jobs.values()}
        with suppress(FileNotFoundError):
            for folder in self.spools.iterdir():
                if folder.name not in known:
                    shutil.rmtree(folder, ignore_errors=True)

    def spool(self, job: Job) -> Spool:
        """The job's private folder."""
        return Spool(self.spools / str(job.id))

    def remember(self, job: Job) -> Job:
        """Take over a row that the store returned."""
        self.jobs[job.path] = job
        return job

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
        del self.jobs[job.path]
        self._retry_at.pop(job.id, None)
        self.spool(job).drop()
        self.published += state == JobState.ARCHIVED
        self.failed += state in (JobState.FAILED, JobState.QUARANTINED)
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
            timings_s=timings,
            **(detail or {}),
        )

    def due(self, job: Job) -> bool:
        """Whether the job's next step may be tried now."""
        return self.now() >= max(job.not_before, self._retry_at.get(job.id, 0.0))

    def postpone(self, job: Job, error: Exception) -> None:
        """Try the job's next step again later, without burning an attempt; said at every tenth time."""
        count = self.troubles[job.id] = self.troubles.get(job.id, 0) + 1
        wait = min(2.0 * 2**count, 60.0)
        self._retry_at[job.id] = self.now() + wait
        if count % 10 == 1:
            log.warning("postponed", path=job.name, state=job.state.value, error=str(error), retry_s=wait)
            self.store.update(job.id, job.state, at=self.now(), detail={"reason": str(error)})
