"""The active jobs: in memory, each as it stands in the store, with when its next step may be tried.

Decides nothing: intake, retry policy and publisher record their decisions here.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import structlog

from backfire import advice
from backfire.config import Settings
from backfire.errors import Code, StoreError
from backfire.files.inbox import Signature
from backfire.service.spool import Spool
from backfire.service.store.store import Changes, Store
from backfire.types import Job, JobState, shown

log = structlog.get_logger()

RETRY_MAX_S = 600.0
"""The longest wait of a step for its next try; a later time means that the clock was set back."""
STUCK_AFTER = 3
"""The failed tries in a row after which `once` no longer waits for a job or a worker."""


class InternalError(Exception):
    """A bug of Backfire, or trouble of the system, met one job's step; `__cause__` is what was raised."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.name)
        self.job = job


@contextmanager
def isolated(job: Job, *expected: type[Exception]) -> Iterator[None]:
    """Attribute an unexpected exception to the job whose step raised it, so that it costs no other job.

    Args:
        job: whose step it is.
        expected: what the caller handles itself.

    Raises:
        InternalError: in place of anything but what is expected, and errors of the store, which concern all.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, (StoreError, InternalError, *expected)):
            raise
        raise InternalError(job) from error


class FailedTries(NamedTuple):
    """How often in a row a step could not be done, and why the last time."""

    times: int = 0
    why: str = ""


@dataclass
class Jobs:
    """The active jobs by path.

    Attributes:
        store: the job database.
        spools: the folder of the jobs' spool folders.
        now: wall clock, Unix seconds.
        monotonic: the clock for waiting, which no setting of the wall clock affects.
        listeners: called as listener(job, timings) with the job as it is about to be recorded.
        active: the jobs by their paths in the inbox.
        failed_tries: by job id, how often in a row its next step could not be done, and why; the first
            to fail come first.
        internal_errors: by job id, how often a bug of Backfire met it.
        hindered: by job id, how often the system prevented its work, and how many jobs had been worked
            before the first time.
        settings: by job id, under which it was last started in this process.
        published, held, failed: how many jobs were so since the start.
    """

    store: Store
    spools: Path
    now: Callable[[], float]
    monotonic: Callable[[], float] = time.monotonic
    listeners: list[Callable[[Job, dict[str, float] | None], None]] = field(default_factory=list)
    active: dict[bytes, Job] = field(default_factory=dict)
    failed_tries: dict[int, FailedTries] = field(default_factory=dict)
    internal_errors: dict[int, int] = field(default_factory=dict)
    hindered: dict[int, tuple[int, int]] = field(default_factory=dict)
    settings: dict[int, Settings] = field(default_factory=dict)
    published: int = 0
    held: int = 0
    failed: int = 0
    _retry_at: dict[int, float] = field(default_factory=dict)
    _ended: list[tuple[Job, dict[str, Any]]] = field(default_factory=list)
    _begun_at: dict[int, float] = field(default_factory=dict)
    _worked_s: dict[int, float] = field(default_factory=dict)
    _by_state: dict[JobState, dict[int, Job]] = field(default_factory=lambda: defaultdict(dict))

    def load(self) -> None:
        """Read the active jobs from the store, and delete what no job needs any more from the spool."""
        self.active.clear()
        self._by_state.clear()
        self._ended.clear()
        # Those that are held are read first: one about which a person decides in between is then in both
        # lists, and not in neither, which would cost its result.
        held = self.store.all_in(JobState.REVIEW)
        for job in self.store.active():
            self._remember(job)
        for job in held:
            self.spool(job).keep_result()
        known = {str(job.id) for job in (*self.active.values(), *held)}
        with suppress(FileNotFoundError):
            for folder in self.spools.iterdir():
                if folder.is_dir() and folder.name not in known:
                    shutil.rmtree(folder, ignore_errors=True)
                elif not folder.is_dir():  # half a copy of a companion
                    with suppress(OSError):  # somebody else's, which takes no room of ours
                        folder.unlink()

    def take_up_decided(self) -> None:
        """Take up the held jobs about which a person has decided, in another process, since the last time."""
        for job in self.store.all_in(JobState.RELEASING):
            if job.path not in self.active:
                self._remember(job)

    # Looking up

    def spool(self, job: Job) -> Spool:
        """The job's private folder."""
        return Spool(self.spools / str(job.id))

    def of(self, *states: JobState) -> list[Job]:
        """The active jobs in these states; the cost does not grow with the jobs in other states."""
        return [job for state in states for job in self._by_state[state].values()]

    # Recording

    @contextmanager
    def together(self) -> Iterator[None]:
        """One commit for all that is recorded within; only after it the jobs that ended are forgotten."""
        with self.store.together():
            yield
        while self._ended:
            self._forget(*self._ended.pop())

    def add(self, paths: list[bytes]) -> list[Job]:
        """A new job for each path, relative to the inbox, that has no active one."""
        return [self._remember(job) for job in self.store.add(paths, at=self.now())]

    def start(self, job: Job, settings: Settings, node: str | None = None) -> Job:
        """READY → RUNNING under these settings and a new lease, with one attempt more.

        Args:
            job, settings: which job, and the configuration that it is worked by.
            node: of a cluster, that it is worked on; None for this machine.
        """
        self.settings[job.id] = settings
        self._begun_at[job.id] = self.monotonic()
        detail = {"node": node} if node is not None else None
        return self._remember(self.store.start_attempt(job.id, at=self.now(), detail=detail))

    def ran_on_node(self, job: Job) -> bool:
        """Whether a job was last started on a node of a cluster, and not on this machine."""
        starts = [event for event in self.store.history(job.id) if event.state == JobState.RUNNING]
        return bool(starts) and "node" in starts[-1].detail

    def give_back(
        self, job: Job, state: JobState = JobState.READY, *, detail: dict[str, Any] | None = None
    ) -> Job:
        """RUNNING → `state`; the attempt does not count."""
        self._begun_at.pop(job.id, None)
        return self._remember(self.store.give_back(job.id, at=self.now(), state=state, detail=detail))

    def update(
        self,
        job: Job,
        state: JobState,
        *,
        detail: dict[str, Any] | None = None,
        timings: dict[str, float] | None = None,
        **changes: Unpack[Changes],
    ) -> Job:
        """Tell the listeners of a step, then record it.

        In this order, so that what the listeners write down survives a crash in between.

        Args:
            job, state: which job, and its new state.
            detail: JSON for the job's history.
            timings: seconds by stage, for the listeners.
            changes: other columns of the job.
        """
        self.failed_tries.pop(job.id, None)
        if (begun := self._begun_at.pop(job.id, None)) is not None:
            self._worked_s[job.id] = round(self.monotonic() - begun, 1)
        now = self.now()
        for listen in self.listeners:
            listen(replace(replace(job, state=state, updated=now), **changes), timings)
        return self._remember(self.store.update(job.id, state, at=now, detail=detail, **changes))

    def refuse(self, job: Job, files: dict[bytes, Signature], code: Code, message: str) -> None:
        """Have a job set aside whose files are not to be read.

        Args:
            job: one that was not started.
            files: the picture and what lies beside it as a scan saw them; empty if it saw none.
            code, message: why.
        """
        if job.path not in files:
            return  # the next scan finds out what became of it
        try:
            self.spool(job).refuse(files)
        except OSError as error:
            self.retry_later(job, error)
            return
        self.update(
            job,
            JobState.SETTING_ASIDE,
            code=code.value,
            message=message,
            input_sha256=None,
            mask_sha256=None,
            key=_unread_key(files[job.path]),
        )

    def end(
        self,
        job: Job,
        state: JobState,
        *,
        detail: dict[str, Any] | None = None,
        timings: dict[str, float] | None = None,
        **changes: Unpack[Changes],
    ) -> None:
        """Record a job's end, log its one line, and forget the job and its spool folder; see `update`."""
        job = self.update(job, state, detail=detail, timings=timings, **changes)
        self._ended.append((job, {"timings_s": timings, **(detail or {})}))
        if not self.store.is_together:
            self._forget(*self._ended.pop())

    def _remember(self, job: Job) -> Job:
        """Keep a row as the store returned it."""
        before = self.active.get(job.path)
        if before is not None:
            self._by_state[before.state].pop(before.id, None)
        self.active[job.path] = job
        self._by_state[job.state][job.id] = job
        return job

    def _forget(self, job: Job, told: dict[str, Any]) -> None:
        del self.active[job.path]
        del self._by_state[job.state][job.id]
        self._retry_at.pop(job.id, None)
        self.internal_errors.pop(job.id, None)
        self.hindered.pop(job.id, None)
        self.settings.pop(job.id, None)
        self.held += job.state == JobState.REVIEW
        if job.state == JobState.REVIEW:
            self.spool(job).keep_result()
        else:
            self.spool(job).drop()
        self.published += job.state == JobState.ARCHIVED
        self.failed += job.state in (JobState.FAILED, JobState.QUARANTINED)
        said = advice.of(job)
        line = {
            "id": job.id,
            "path": job.name,
            "state": job.state.value,
            "verdict": job.verdict.value if job.verdict else None,
            "code": job.code,
            "message": str(said) if said else job.message,
            "sentence": said.sentence if said else None,
            "details": said.details if said else None,
            "output": shown(job.output_path) if job.output_path else None,
            "attempts": job.attempts,
            "seconds": round(job.updated - job.created, 1),
            "worked_s": self._worked_s.pop(job.id, None),
            **told,
        }
        if job.state in (JobState.FAILED, JobState.QUARANTINED):
            log.warning("job", **line)
        else:
            log.info("job", **line)

    # Waiting

    def due(self, job: Job) -> bool:
        """Whether the job's next step may be tried now."""
        held = self.now() < job.not_before <= self.now() + RETRY_MAX_S
        return not held and self.monotonic() >= self._retry_at.get(job.id, 0.0)

    def wait(self, job: Job, seconds: float) -> None:
        """Try the job's next step no sooner than in so many seconds."""
        self._retry_at[job.id] = self.monotonic() + seconds

    def retry_later(self, job: Job, error: BaseException) -> None:
        """Try a step that failed again, later each time; no attempt is counted.

        The first failure and every tenth one after it are logged and added to the job's history.
        """
        count = self.tries(job) + 1
        self.failed_tries[job.id] = FailedTries(count, str(error))
        wait = min(2.0 * 2 ** min(count, 10), 60.0)
        self.wait(job, wait)
        if count % 10 == 1:
            log.warning("postponed", path=job.name, state=job.state.value, error=str(error), retry_s=wait)
            self.store.update(job.id, job.state, at=self.now(), detail={"reason": str(error)})

    def note_output(self, job: Job, path: bytes, sha256: str) -> None:
        """Note where a result was put that cannot be recorded yet: it may be taken before it is."""
        told = {"output": shown(path)}
        at, state = self.now(), job.state
        self._remember(
            self.store.update(job.id, state, at=at, detail=told, output_path=path, output_sha256=sha256)
        )

    def is_stuck(self, job: Job) -> bool:
        """Whether the job failed or was hindered so often in a row that `once` need not wait for it."""
        hindered = self.hindered.get(job.id, (0, 0))[0]
        return max(self.tries(job), hindered) >= STUCK_AFTER

    def tries(self, job: Job) -> int:
        """How often in a row the job's next step could not be done."""
        return self.failed_tries.get(job.id, FailedTries()).times

    @property
    def trouble(self) -> str:
        """Why the step fails again and again that has done so longest; empty where none does."""
        stuck = (tries.why for tries in self.failed_tries.values() if tries.times >= STUCK_AFTER)
        return next(stuck, "")


def _unread_key(signature: Signature) -> str:
    """A key for a picture whose content nobody read."""
    return hashlib.sha256(repr(tuple(signature)).encode()).hexdigest()
