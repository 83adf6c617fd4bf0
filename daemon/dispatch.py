"""Jobs to the worker's child and its outcomes back: leases, retries, hangs, deaths, the drain.

Longer than 300 lines so that all that may become of a running job is read in one place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import structlog

from daemon import twins
from daemon.config import Settings
from daemon.domain import Job, JobState, shown
from daemon.errors import Code
from daemon.intake import INCOMPLETE, Intake
from daemon.ledger import LONGEST_S, Ledger, Unforeseen, blaming
from daemon.line import priority
from daemon.publish import Publisher
from daemon.systemd import notify
from daemon.worker import KILLED, Child, Order, Outcome

log = structlog.get_logger()

DRAIN_S = 60.0
PAUSE_S = 30.0
"""After trouble that is not the picture's: no space for the spool, weights that do not load."""
QUICK_S = 0.05
AT_ONCE = 128
"""So many jobs a child that is done with each within QUICK_S gets at a time."""
PATIENCE = 3
"""How often in a row that may happen before the pause is a long one, and `once` gives up."""

Heard = Callable[[Job, str, int, int], None]


class Dispatcher:
    """Owns the child process. It gets one job at a time, and more at a time as long as it is quick with them.

    Attributes:
        pace: how many jobs it gets at a time.
        pauses: how often in a row it could not work for reasons that are not the picture's.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        intake: Intake,
        publisher: Publisher,
        monotonic: Callable[[], float],
        on_progress: Heard,
    ) -> None:
        self._ledger, self._intake, self._publisher = ledger, intake, publisher
        self._monotonic, self._on_progress = monotonic, on_progress
        self._child: Child | None = None
        self._killed: dict[int, int] = {}
        self._worked = 0
        self._running: dict[int, Job] = {}
        self._terms: dict[int, Settings] = {}
        """The settings under which each running job was started."""
        self._at = 0
        """The last job that the child told of; 0 while it has told of none since its orders."""
        self._finished: list[tuple[Job, Outcome]] = []
        self._paused_until = 0.0
        self.pace = 1
        self.pauses = 0
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        """Work by other settings from the next job on."""
        self._settings = settings

    @property
    def running(self) -> Job | None:
        """Which of its jobs the child is at, as far as it told; None while it has none."""
        return self._running.get(self._at) or next(iter(self._running.values()), None)

    @property
    def paused(self) -> bool:
        """Whether it waits for trouble to pass."""
        return self._monotonic() < self._paused_until

    @property
    def heard(self) -> float | None:
        """When the child last said something, by the monotonic clock; None while it has nothing to do."""
        return self._child.heard if self._child is not None and self.running is not None else None

    def resume(self, *, crashed: bool) -> None:
        """Put the jobs that were left half done where they can go on.

        Args:
            crashed: the daemon was started anew, and the picture may be why it ended; else only the
                store failed for a while, the child may still be at work, and no attempt is burned.
        """
        self._running = {}
        self._finished.clear()  # each lies in its spool too
        for job in self._ledger.of(JobState.RUNNING):
            with blaming(job):
                finished = Outcome.read(self._ledger.spool(job).folder, job.lease)
                if finished is not None:
                    self._conclude(job, finished)
                elif crashed:
                    detail = {"reason": "the daemon ended in mid-job"}
                    self._ledger.update(job, JobState.READY, detail=detail)
                elif self._child is not None and self._child.jobs.get(job.id) == job.lease:
                    self._running[job.id] = job
                else:
                    self._give_back(job, "the daemon was interrupted in mid-job")
        self._record()
        self.reconsider()

    def reconsider(self) -> None:
        """Send waiting jobs back to be taken anew whose copy or configuration is not what it should be."""
        for job in self._ledger.of(JobState.READY):
            self._is_outdated(job)

    def _is_outdated(self, job: Job) -> bool:
        """Whether a waiting job had to be sent back: it may also be ready again since a reload."""
        if job.config_sha256 != self._intake.config_sha(job.path):
            reason = "the configuration changed"
        elif not self._ledger.spool(job).files():
            reason = "the private copy is gone"
        else:
            return False
        self._ledger.update(job, JobState.SETTLING, detail={"reason": reason})
        return True

    def is_stuck(self, job: Job) -> bool:
        """Whether the system was in the job's way so often that `once` need not wait for it."""
        return self._ledger.hindered.get(job.id, (0, 0))[0] >= PATIENCE

    def _in_turn(self) -> Iterator[Job]:
        """The jobs whose turn it is: by priority, then those first that have been ready longest.

        Those that the system was in the way of come after all others. One whose result another job
        is about to publish waits, to take it over, unless that cannot be published now.
        """

        def rank(job: Job) -> tuple[bool, int, float, int]:
            return job.id in self._ledger.hindered, -priority(job.path, priorities), job.updated, job.id

        active = self._ledger.of(JobState.RUNNING, JobState.PUBLISHING)
        coming = {job.key for job in active if job.code is None and job.id not in self._ledger.troubles}
        priorities = self._settings.watch.priorities
        due = [job for job in self._ledger.of(JobState.READY) if self._ledger.due(job)]
        for job in sorted(due, key=rank):
            if job.key not in coming:
                coming.add(job.key)
                yield job

    def step(self) -> bool:
        """Give the child its next jobs if it has none, and more while it is quick; whether there were any."""
        self._hear(0)
        began = 0
        while not self._running and began < AT_ONCE and (some := self._begin()):
            began += some
            self._listen(QUICK_S)
        self._record()
        return began > 0

    def _begin(self) -> int:
        """Go on with the jobs whose turn it is; with how many."""
        if self.paused:
            return 0
        begun, batch = 0, list[Job]()
        for job in self._in_turn():
            # The last attempt is made alone: nobody is set aside for what another did to the daemon.
            if batch and (len(batch) >= self.pace or self._is_last(job) or self._is_last(batch[0])):
                break
            begun += 1
            with blaming(job):
                if job.attempts >= self._attempts(job):
                    died = f"the worker died {job.attempts} times on this picture; it is set aside"
                    self._publisher.fail(job, Code.WORKER_DIED, f"{job.name}: {died}")
                elif not self._is_outdated(job) and not self._adopted(job):
                    batch.append(job)
            if begun >= AT_ONCE:
                break
        if batch:
            self._start(batch)
        return begun

    def let_go(self, job: Job) -> None:
        """End the child if it has this job; `resume` gives all of its jobs back."""
        if job.id in self._running and self._child is not None:
            self._child.kill()
            self._child = None
            self._running = {}

    def _adopted(self, job: Job) -> bool:
        """Take over a twin's result, if there is one; whether it was."""
        settings = self._settings.for_path(job.path)
        found = twins.adopted(job, settings, self._ledger)
        if found is None:
            return False
        outcome, twin = found
        self._publisher.conclude(job, outcome, detail={"worked_as": twin.name})
        return True

    def _start(self, jobs: Sequence[Job]) -> None:
        if self._child is not None and self._child.jobs:
            self._child.kill()  # left at work by a fault of ours: it would take new orders for a wish to stop
            self._child = None
        if self._child is None:
            try:
                self._child = Child(self._settings.limits.memory_mb)
            except OSError as error:
                self._pause(jobs[0], Code.INTERNAL, f"the worker cannot be started ({error.strerror})")
                return
        with self._ledger.together():
            started = [self._ledger.store.start_attempt(job.id, at=self._ledger.now()) for job in jobs]
        self._running = {job.id: self._ledger.remember(job) for job in started}
        self._terms = {job.id: self._settings.for_path(job.path) for job in started}
        self._at = 0
        orders: list[Order] = []
        for job in started:
            with blaming(job):
                orders.append(self._order(job))
        try:
            self._child.send(orders)
        except OSError:
            self._died()

    def _order(self, job: Job) -> Order:
        spool, settings = self._ledger.spool(job), self._terms[job.id]
        masks = tuple((shown(path), spool.mask(i).name) for i, (path, _) in enumerate(spool.masks()))
        return Order(job.id, spool.folder, job.name, masks, settings, job.lease, self._killed.get(job.id, 0))

    def listen(self, seconds: float) -> None:
        """Hear the child out for a while, at most until it is done."""
        self._listen(seconds)
        self._record()

    def _listen(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        self._hear(seconds)
        while self._running and (left := deadline - time.monotonic()) > 0:
            self._hear(left)

    def _record(self) -> None:
        """Record what was finished. Until then a crash finds it in the spool."""
        if not self._finished:
            return
        with self._ledger.together():
            for job, outcome in self._finished:
                with blaming(job):
                    self._publisher.conclude(job, outcome)
        self._finished.clear()

    def _hear(self, seconds: float) -> None:
        if self._child is None or not self._running:
            return
        try:
            messages = self._child.receive(seconds)
        except EOFError:
            self._died()
            return
        outcomes: list[tuple[Job, Outcome]] = []
        for message in messages:
            job = self._running.get(message.job)
            if job is None:  # what an earlier job left in the pipe is void
                continue
            if isinstance(message, Outcome):
                outcomes += [(job, message)] if _of(message, job) else []
            else:
                self._at = job.id
                self._on_progress(job, message.phase, message.done, message.total)
        self._conclude_all(outcomes)
        silence = self._settings.limits.silence_s
        if (job := self.running) is not None and time.monotonic() - self._child.heard > silence:
            log.error("worker hangs", path=job.name, silent_s=silence)
            self._child.kill()
            self._died(f"hung for {silence:g} s")

    def _died(self, how: str = "") -> None:
        """The child is gone: the job it was at bears the attempt, the others are given back.

        Where it was at none yet nobody bears it: it would not have lived with any.
        """
        culprit = self._running.get(self._at)
        if self._child is not None and not how:
            how = self._child.exitcode()
            # What the kernel does when memory runs out: the next attempt needs less.
            if how == KILLED and culprit is not None:
                self._killed[culprit.id] = self._killed.get(culprit.id, 0) + 1
            self._child.kill()
        self._child = None
        self.pace = 1
        jobs = [*self._running.values()]
        # The culprit first: should a fault of ours meet another, its attempt is on record.
        for job in sorted(jobs, key=lambda job: job is not culprit):
            with blaming(job):
                finished = Outcome.read(self._ledger.spool(job).folder, job.lease)
                if finished is not None:
                    self._conclude(job, finished)
                elif job is culprit:
                    log.error("worker died", path=job.name, how=how, attempt=job.attempts)
                    self._ledger.update(job, JobState.READY, detail={"reason": f"worker died: {how}"})
                else:
                    where = f"on {culprit.name}" if culprit else "before it began"
                    self._give_back(job, f"the worker died {where}")
        self._running.clear()
        if culprit is None and jobs:
            self._pause(jobs[0], Code.INTERNAL, f"the worker died before it began ({how})")

    def _give_back(self, job: Job, reason: str) -> None:
        """Have a job that was started wait again, as if it had not been."""
        now = self._ledger.now()
        self._ledger.remember(self._ledger.store.give_back(job.id, at=now, detail={"reason": reason}))

    def _conclude_all(self, ended: Sequence[tuple[Job, Outcome]]) -> None:
        """What the child told of several jobs, in one commit; more at a time next time if it was quick."""
        if not ended:
            return
        with self._ledger.together():
            for job, outcome in ended:
                with blaming(job):
                    self._conclude(job, outcome)
        begun = [outcome for _, outcome in ended if not outcome.stopped]
        if any(outcome.transient for outcome in begun):
            self.pace = 1  # whoever is next may be hindered as well
        elif sum(outcome.seconds for outcome in begun) <= QUICK_S * len(begun):
            # Where some were handed back it had no time for more.
            most = 2 * self.pace if len(begun) == len(ended) else len(begun)
            self.pace = max(min(most, AT_ONCE), 1)
        else:
            self.pace = max(min(self.pace, len(begun)) // 2, 1)

    def _conclude(self, job: Job, outcome: Outcome) -> None:
        """What the child's outcome means for the job."""
        store, now = self._ledger.store, self._ledger.now
        told = {"code": outcome.code, "reason": outcome.message}
        if outcome.stopped:
            self._ledger.remember(store.give_back(job.id, at=now()))
        elif outcome.transient:
            self._hinder(job, outcome, told)
        elif outcome.code is None:
            self.pauses = 0
            self._worked += 1
            self._finished.append((job, outcome))
        elif Code(outcome.code) in INCOMPLETE and self._intake.may_grow(job):
            self._intake.suspect(job)
            told["reason"] = f"{outcome.message}; waits for the rest"
            self._ledger.remember(store.give_back(job.id, at=now(), state=JobState.SETTLING, detail=told))
        elif outcome.retryable and job.attempts < self._terms_of(job).protect.attempts:
            wait = min(5.0 * 4 ** (job.attempts - 1), LONGEST_S)
            log.warning("retry", path=job.name, code=outcome.code, error=outcome.message, in_s=wait)
            self._ledger.update(job, JobState.READY, not_before=now() + wait, detail=told)
        else:
            self._publisher.fail(job, Code(outcome.code), outcome.message)
        if not (outcome.stopped or outcome.transient):
            self._killed.pop(job.id, None)
            self._ledger.hindered.pop(job.id, None)
        self._running.pop(job.id, None)

    def _hinder(self, job: Job, outcome: Outcome, told: dict[str, Any]) -> None:
        """The system was in the way: of everybody, so that all pause, or of this picture and its like alone.

        Those whom others get past wait behind them, uncopied, longer each time; what may be the picture's
        own trouble ends so after a while.
        """
        count, worked_before = self._ledger.hindered.get(job.id, (0, self._worked))
        self._ledger.hindered[job.id] = count + 1, worked_before
        alone = self._worked > worked_before
        if alone and outcome.doubtful and count + 1 >= PATIENCE:
            del self._ledger.hindered[job.id]
            message = f"{job.name}: others were worked while this one was refused {count + 1} times: "
            self._publisher.fail(job, Code(outcome.code or Code.INTERNAL), message + outcome.message)
            return
        # So many may be hindered that they fill the room of all others.
        behind = alone or self.pauses > PATIENCE
        state = JobState.SETTLING if behind else JobState.READY
        job = self._ledger.remember(
            self._ledger.store.give_back(job.id, at=self._ledger.now(), state=state, detail=told)
        )
        self._ledger.put_off(job, min(2.0 * 2**count, LONGEST_S if alone else PAUSE_S))
        if behind:
            self._ledger.spool(job).drop()
        if not alone:
            self._pause(job, outcome.code, outcome.message)

    def _pause(self, job: Job, code: str | None, error: str) -> None:
        """Work nothing for a while."""
        if not self.paused:  # several of one batch are one trouble
            self.pauses += 1
        # One that was not tried yet may be of another kind: no long pause before it had its turn.
        fresh = any(job.id not in self._ledger.hindered for job in self._ledger.of(JobState.READY))
        self._paused_until = self._monotonic() + (PAUSE_S if self.pauses > PATIENCE and not fresh else 2.0)
        log.error("paused", path=job.name, code=code, error=error)

    def drain(self) -> None:
        """Give the running jobs back without burning their attempts, and end the child."""
        if self._child is None:
            return
        notify(f"EXTEND_TIMEOUT_USEC={int(DRAIN_S * 1e6)}")
        jobs = [*self._running.values()]
        told = {outcome.job: outcome for outcome in self._child.stop(DRAIN_S if jobs else 0)}
        self._child = None
        with self._ledger.together():
            for job in jobs:
                try:
                    with blaming(job):
                        self._drained(job, told.get(job.id))
                except Unforeseen as fault:  # the others are not to bear it
                    log.error("unforeseen", path=job.name, exc_info=fault.__cause__)
        self._record()

    def _drained(self, job: Job, outcome: Outcome | None) -> None:
        if outcome is None or not _of(outcome, job):
            outcome = Outcome.read(self._ledger.spool(job).folder, job.lease)
        self._conclude(job, outcome or Outcome(job.id, job.lease, stopped=True))
        log.info("drained", path=job.name)

    def _is_last(self, job: Job) -> bool:
        """Whether no attempt would be left after the next one."""
        return job.attempts + 1 >= self._attempts(job)

    def _terms_of(self, job: Job) -> Settings:
        """The settings under which a job was worked; after a restart they are those it is ready under."""
        return self._terms.get(job.id) or self._settings.for_path(job.path)

    def _attempts(self, job: Job) -> int:
        return self._settings.for_path(job.path).protect.attempts


def _of(outcome: Outcome, job: Job) -> bool:
    """Whether an outcome is of this start of this job."""
    return (outcome.job, outcome.lease) == (job.id, job.lease)
