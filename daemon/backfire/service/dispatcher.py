"""Jobs to the workers and their outcomes back: leases, retries, hangs, deaths, the drain.

Longer than 300 lines so that all that may become of a running job is read in one place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from backfire.config import Settings
from backfire.errors import Code
from backfire.files.parallel import in_parallel
from backfire.service import deduplicate
from backfire.service.intake import INCOMPLETE, Intake
from backfire.service.jobs import LONGEST_S, Ledger, Unforeseen, blaming
from backfire.service.publisher import Publisher
from backfire.service.queue import priority
from backfire.service.systemd import notify
from backfire.service.worker.local import KILLED, Child, Order, Outcome, await_any
from backfire.types import Job, JobState, shown

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


@dataclass(eq=False)
class Worker:
    """A child and the jobs that it has: one at a time, and more at a time as long as it is quick with them.

    Attributes:
        device: of `limits.devices`; None where that names none, and one child does all.
        running: its jobs by their ids.
        terms: the settings under which each of them was started.
        at: the last job that it told of; 0 while it has told of none since its orders.
        pace: how many jobs it gets at a time.
        pauses: how often in a row it could not work for reasons that are not the picture's.
        retired: its device is not named any more; it ends what it is at.
    """

    device: str | None = None
    child: Child | None = None
    running: dict[int, Job] = field(default_factory=dict)
    terms: dict[int, Settings] = field(default_factory=dict)
    at: int = 0
    pace: int = 1
    pauses: int = 0
    paused_until: float = 0.0
    retired: bool = False

    @property
    def job(self) -> Job | None:
        """Which of its jobs it is at, as far as it told; None while it has none."""
        return self.running.get(self.at) or next(iter(self.running.values()), None)

    def end(self) -> None:
        """Kill the child, if there is one."""
        if self.child is not None:
            self.child.kill()
        self.child = None


class Dispatcher:
    """Owns the workers: one for each of `limits.devices`, so that what befalls one holds up no other."""

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
        self._workers: list[Worker] = []
        self._killed: dict[int, int] = {}
        self._worked = 0
        self._finished: list[tuple[Job, Outcome]] = []
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        """Work by other settings from the next job on; the worker of a device that is gone ends its jobs."""
        self._settings = settings
        wanted: tuple[str | None, ...] = settings.limits.devices or (None,)
        known = {worker.device: worker for worker in self._workers}
        for worker in self._workers:
            worker.retired = worker.device not in wanted
        gone = [worker for worker in self._workers if worker.retired]
        self._workers = [known.get(device) or Worker(device) for device in wanted] + gone
        self._dismiss()

    def _dismiss(self) -> None:
        """End the children of devices that are not named any more, once they have nothing to do."""
        for worker in [worker for worker in self._workers if worker.retired and not worker.running]:
            worker.end()
            self._workers.remove(worker)

    @property
    def running(self) -> list[Job]:
        """Which job each worker is at that has any."""
        return [job for worker in self._workers if (job := worker.job) is not None]

    @property
    def pace(self) -> int:
        """How many jobs the workers get at a time."""
        return sum(worker.pace for worker in self._workers)

    @property
    def pauses(self) -> int:
        """How often in a row no worker at all could work for reasons that are not the picture's."""
        return min(worker.pauses for worker in self._workers)

    @property
    def heard(self) -> float | None:
        """When the most silent child at work last said something, by the monotonic clock; None if none is."""
        busy = (worker.child for worker in self._workers if worker.running)
        return min((child.heard for child in busy if child is not None), default=None)

    def resume(self, *, crashed: bool) -> None:
        """Put the jobs that were left half done where they can go on.

        Args:
            crashed: the daemon was started anew, and the picture may be why it ended; else only the
                store failed for a while, the children may still be at work, and no attempt is burned.
        """
        for worker in self._workers:
            worker.running = {}
        self._finished.clear()  # each lies in its spool too
        for job in self._ledger.of(JobState.RUNNING):
            with blaming(job):
                finished = Outcome.read(self._ledger.spool(job).folder, job.lease)
                if finished is not None:
                    self._conclude(job, finished)
                elif crashed:
                    detail = {"reason": "the daemon ended in mid-job"}
                    self._ledger.update(job, JobState.READY, detail=detail)
                elif (still := self._at_work_on(job)) is not None:
                    still.running[job.id] = job
                else:
                    self._give_back(job, "the daemon was interrupted in mid-job")
        self._record()
        self.reconsider()

    def _at_work_on(self, job: Job) -> Worker | None:
        """Whose child still has this start of a job."""
        for worker in self._workers:
            if worker.child is not None and worker.child.jobs.get(job.id) == job.lease:
                return worker
        return None

    def _worker_of(self, job: Job) -> Worker | None:
        return next((worker for worker in self._workers if job.id in worker.running), None)

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
        coming = {job.key for job in active if job.id not in self._ledger.troubles}
        priorities = self._settings.watch.priorities
        due = [job for job in self._ledger.of(JobState.READY) if self._ledger.due(job)]
        for job in sorted(due, key=rank):
            if job.key not in coming:
                coming.add(job.key)
                yield job

    def step(self) -> bool:
        """Give workers without jobs their next ones, more while they are quick; whether there were any."""
        self._hear(0)
        began = 0
        while began < AT_ONCE and (some := self._begin()):
            began += some
            self._listen(QUICK_S)
        self._record()
        self._dismiss()
        return began > 0

    def _begin(self) -> int:
        """Go on with the jobs whose turn it is; with how many."""
        idle = (worker for worker in self._workers if not (worker.running or worker.retired))
        return sum(self._begin_at(worker) for worker in idle if self._monotonic() >= worker.paused_until)

    def _begin_at(self, worker: Worker) -> int:
        # The last attempt is made alone: nobody is set aside for what another did to the daemon.
        others = [job for other in self._workers for job in other.running.values()]
        if any(job.attempts >= self._attempts(job) for job in others):
            return 0
        begun, batch = 0, list[Job]()
        for job in self._in_turn():
            if others and self._is_last(job):
                break
            if not self._suits(worker, job):
                continue
            if batch and (len(batch) >= worker.pace or self._is_last(job) or self._is_last(batch[0])):
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
            self._start(worker, batch)
        return begun

    def _suits(self, worker: Worker, job: Job) -> bool:
        """Whether a job may go to a worker: `auto` to any, a device that no worker has to the first."""
        named = self._settings.for_path(job.path).protect.device
        named = "cuda:0" if named == "cuda" else named
        devices = [one.device for one in self._workers if not one.retired]
        return named == "auto" or worker.device == (named if named in devices else devices[0])

    def let_go(self, job: Job) -> None:
        """End the child that has this job; `resume` gives all of its jobs back."""
        if (worker := self._worker_of(job)) is not None:
            worker.end()
            worker.running = {}

    def _adopted(self, job: Job) -> bool:
        """Take over a twin's result, if there is one; whether it was."""
        settings = self._settings.for_path(job.path)
        found = deduplicate.adopted(job, settings, self._ledger)
        if found is None:
            return False
        outcome, twin = found
        self._publisher.conclude(job, outcome, detail={"worked_as": twin.name})
        return True

    def _start(self, worker: Worker, jobs: Sequence[Job]) -> None:
        if worker.child is not None and worker.child.jobs:
            worker.end()  # left at work by a fault of ours: it would take new orders for a wish to stop
        if worker.child is None:
            try:
                worker.child = Child(self._settings.limits.memory_mb)
            except OSError as error:
                self._pause(
                    worker, jobs[0], Code.INTERNAL, f"the worker cannot be started ({error.strerror})"
                )
                return
        with self._ledger.together():
            started = [self._ledger.store.start_attempt(job.id, at=self._ledger.now()) for job in jobs]
        worker.running = {job.id: self._ledger.remember(job) for job in started}
        worker.terms = {job.id: self._settings.for_path(job.path) for job in started}
        worker.at = 0
        orders: list[Order] = []
        for job in started:
            with blaming(job):
                orders.append(self._order(job, worker))
        try:
            worker.child.send(orders)
        except OSError:
            self._died(worker)

    def _order(self, job: Job, worker: Worker) -> Order:
        spool, settings = self._ledger.spool(job), worker.terms[job.id]
        masks = tuple((shown(path), spool.mask(i).name) for i, (path, _) in enumerate(spool.masks()))
        rung = self._killed.get(job.id, 0)
        return Order(job.id, spool.folder, job.name, masks, settings, job.lease, rung, worker.device)

    def listen(self, seconds: float) -> None:
        """Hear the children out for a while, at most until one of them is done."""
        self._listen(seconds)
        self._record()

    def _listen(self, seconds: float) -> None:
        deadline, busy = time.monotonic() + seconds, len(self.running)
        self._hear(seconds)
        while self.running and len(self.running) >= busy and (left := deadline - time.monotonic()) > 0:
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
        busy = [worker for worker in self._workers if worker.running]
        if len(busy) > 1:
            await_any([worker.child for worker in busy if worker.child is not None], seconds)
        for worker in busy:
            self._hear_from(worker, 0 if len(busy) > 1 else seconds)

    def _hear_from(self, worker: Worker, seconds: float) -> None:
        if worker.child is None:
            return
        try:
            messages = worker.child.receive(seconds)
        except EOFError:
            self._died(worker)
            return
        outcomes: list[tuple[Job, Outcome]] = []
        for message in messages:
            job = worker.running.get(message.job)
            if job is None:  # what an earlier job left in the pipe is void
                continue
            if isinstance(message, Outcome):
                outcomes += [(job, message)] if _of(message, job) else []
            else:
                worker.at = job.id
                self._on_progress(job, message.phase, message.done, message.total)
        self._conclude_all(worker, outcomes)
        silence = self._settings.limits.silence_s
        if (job := worker.job) is not None and time.monotonic() - worker.child.heard > silence:
            log.error("worker hangs", path=job.name, silent_s=silence)
            worker.child.kill()
            self._died(worker, f"hung for {silence:g} s")

    def _died(self, worker: Worker, how: str = "") -> None:
        """A child is gone: the job it was at bears the attempt, its others are given back.

        Where it was at none yet nobody bears it: it would not have lived with any.
        """
        culprit = worker.running.get(worker.at)
        if worker.child is not None and not how:
            how = worker.child.exitcode()
            # What the kernel does when memory runs out: the next attempt needs less.
            if how == KILLED and culprit is not None:
                self._killed[culprit.id] = self._killed.get(culprit.id, 0) + 1
            worker.child.kill()
        worker.child = None
        worker.pace = 1
        jobs = [*worker.running.values()]
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
        worker.running.clear()
        if culprit is None and jobs:
            self._pause(worker, jobs[0], Code.INTERNAL, f"the worker died before it began ({how})")

    def _give_back(self, job: Job, reason: str) -> None:
        """Have a job that was started wait again, as if it had not been."""
        now = self._ledger.now()
        self._ledger.remember(self._ledger.store.give_back(job.id, at=now, detail={"reason": reason}))

    def _conclude_all(self, worker: Worker, ended: Sequence[tuple[Job, Outcome]]) -> None:
        """What a child told of several jobs, in one commit; more at a time next time if it was quick."""
        if not ended:
            return
        with self._ledger.together():
            for job, outcome in ended:
                with blaming(job):
                    self._conclude(job, outcome)
        begun = [outcome for _, outcome in ended if not outcome.stopped]
        if any(outcome.spent for outcome in begun):
            worker.end()
        if any(outcome.transient for outcome in begun):
            worker.pace = 1  # whoever is next may be hindered as well
        elif sum(outcome.seconds for outcome in begun) <= QUICK_S * len(begun):
            # Where some were handed back it had no time for more.
            most = 2 * worker.pace if len(begun) == len(ended) else len(begun)
            worker.pace = max(min(most, AT_ONCE), 1)
        else:
            worker.pace = max(min(worker.pace, len(begun)) // 2, 1)

    def _conclude(self, job: Job, outcome: Outcome) -> None:
        """What the child's outcome means for the job."""
        store, now, worker = self._ledger.store, self._ledger.now, self._worker_of(job)
        told = {"code": outcome.code, "reason": outcome.message}
        if outcome.stopped:
            self._ledger.remember(store.give_back(job.id, at=now()))
        elif outcome.transient:
            self._hinder(job, worker or self._workers[0], outcome, told)
        elif outcome.code is None:
            if worker is not None:
                worker.pauses = 0
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
        if worker is not None:
            worker.running.pop(job.id, None)

    def _hinder(self, job: Job, worker: Worker, outcome: Outcome, told: dict[str, Any]) -> None:
        """The system was in the way: of the worker, which pauses, or of this picture and its like alone.

        Those whom others get past wait behind them, uncopied, longer each time; what may be the picture's
        own trouble ends so after a while.
        """
        count, worked_before = self._ledger.hindered.get(job.id, (0, self._worked))
        self._ledger.hindered[job.id] = count + 1, worked_before
        # By others of several workers: of this one's own trouble that says nothing.
        alone = self._worked > worked_before and (len(self._workers) == 1 or worker.pauses == 0)
        if alone and outcome.doubtful and count + 1 >= PATIENCE:
            del self._ledger.hindered[job.id]
            message = f"{job.name}: others were worked while this one was refused {count + 1} times: "
            self._publisher.fail(job, Code(outcome.code or Code.INTERNAL), message + outcome.message)
            return
        # So many may be hindered that they fill the room of all others.
        behind = alone or worker.pauses > PATIENCE
        state = JobState.SETTLING if behind else JobState.READY
        job = self._ledger.remember(
            self._ledger.store.give_back(job.id, at=self._ledger.now(), state=state, detail=told)
        )
        self._ledger.put_off(job, min(2.0 * 2**count, LONGEST_S if alone else PAUSE_S))
        if behind:
            self._ledger.spool(job).drop()
        if not alone:
            self._pause(worker, job, outcome.code, outcome.message)

    def _pause(self, worker: Worker, job: Job, code: str | None, error: str) -> None:
        """Have a worker work nothing for a while."""
        now = self._monotonic()
        if now >= worker.paused_until:  # several of one batch are one trouble
            worker.pauses += 1
        # One that was not tried yet may be of another kind: no long pause before it had its turn.
        fresh = any(job.id not in self._ledger.hindered for job in self._ledger.of(JobState.READY))
        worker.paused_until = now + (PAUSE_S if worker.pauses > PATIENCE and not fresh else 2.0)
        log.error("paused", path=job.name, code=code, error=error, device=worker.device)

    def drain(self) -> None:
        """Give the running jobs back without burning their attempts, and end the children."""
        manned = [worker for worker in self._workers if worker.child is not None]
        if not manned:
            return
        notify(f"EXTEND_TIMEOUT_USEC={int(DRAIN_S * 1e6)}")
        told = {outcome.job: outcome for some in in_parallel(_stopped, manned) for outcome in some}
        with self._ledger.together():
            for worker in manned:
                worker.child = None
                for job in [*worker.running.values()]:
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
        terms = (worker.terms[job.id] for worker in self._workers if job.id in worker.terms)
        return next(terms, None) or self._settings.for_path(job.path)

    def _attempts(self, job: Job) -> int:
        return self._settings.for_path(job.path).protect.attempts


def _of(outcome: Outcome, job: Job) -> bool:
    """Whether an outcome is of this start of this job."""
    return (outcome.job, outcome.lease) == (job.id, job.lease)


def _stopped(worker: Worker) -> list[Outcome]:
    """Ask a child for its jobs back and end it; what it told meanwhile."""
    assert worker.child is not None
    return worker.child.stop(DRAIN_S if worker.running else 0)
