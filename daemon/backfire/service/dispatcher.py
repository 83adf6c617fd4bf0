"""Jobs to the workers and their outcomes back: chooses who is next, and hands each outcome to the policy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import structlog

from backfire.config import Settings
from backfire.errors import Code
from backfire.service import deduplicate
from backfire.service.digests import Digests
from backfire.service.jobs import InternalError, Jobs, isolated
from backfire.service.pool import BATCH_MAX, DRAIN_S, QUICK_S, Death, Pool, Worker, bury
from backfire.service.queue import priority
from backfire.service.retry_policy import RetryPolicy
from backfire.service.systemd import notify
from backfire.service.worker.protocol import (
    Failed,
    GivenBack,
    Hindered,
    Interrupted,
    Order,
    Outcome,
    Progress,
    read_result,
)
from backfire.types import Job, JobState, shown

log = structlog.get_logger()

OnProgress = Callable[[Job, str, int, int], None]


class Dispatcher:
    """Gives the workers their jobs.

    Args:
        settings: the configuration.
        jobs: what waits.
        pool: the workers.
        policy: concludes the jobs.
        on_progress: called as (job, phase, done, total) while a worker works.
    """

    def __init__(
        self, settings: Settings, jobs: Jobs, pool: Pool, policy: RetryPolicy, on_progress: OnProgress
    ) -> None:
        self._jobs, self._pool, self._policy, self._on_progress = jobs, pool, policy, on_progress
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        """Work by other settings from the next job on."""
        self._settings, self._digests = settings, Digests(settings)

    # After a start, a failure of the store or a reload

    def resume(self, *, crashed: bool) -> None:
        """Take up the jobs that were being worked.

        Args:
            crashed: the daemon was restarted, and the picture may be why it had ended. Otherwise only the
                store failed for a while, the workers may still be busy, and no attempt is counted.
        """
        self._pool.forget_running()
        for job in self._jobs.of(JobState.RUNNING):
            with isolated(job):
                result = read_result(self._jobs.spool(job).folder, job)
                if result is not None:
                    self._policy.conclude(job, result)
                elif crashed:
                    reason = "the daemon ended while the job was running"
                    self._policy.conclude(job, Interrupted(job.id, job.lease, reason))
                elif not self._pool.adopt(job):
                    reason = "the daemon was interrupted while the job was running"
                    self._policy.conclude(job, GivenBack(job.id, job.lease, reason))
        self.reconsider()

    def reconsider(self) -> None:
        """Send ready jobs back to intake whose copy is gone or whose configuration has changed."""
        for job in self._jobs.of(JobState.READY):
            self._is_outdated(job)

    def _is_outdated(self, job: Job) -> bool:
        """Whether a ready job had to be sent back; it may also have become ready since the last reload."""
        if job.config_sha256 != self._digests.of(job.path):
            reason = "the configuration changed"
        elif not self._jobs.spool(job).files():
            reason = "the private copy is gone"
        else:
            return False
        self._jobs.update(job, JobState.SETTLING, detail={"reason": reason})
        return True

    def let_go(self, job: Job) -> None:
        """End the process that has this job; `resume` gives back all the jobs that it had."""
        if (worker := self._pool.worker_of(job)) is not None:
            worker.end()
            worker.running = {}

    # To the workers

    def step(self) -> bool:
        """Give idle workers their next jobs, more while they are quick; whether there were any."""
        self._listen_once(0)
        begun = 0
        while begun < BATCH_MAX and (some := self.begin()):
            begun += some
            self.listen(QUICK_S)
        self._pool.dismiss()
        return begun > 0

    def begin(self) -> int:
        """Give each idle worker its next jobs; how many jobs went a step on."""
        return sum(self._begin_at(worker) for worker in self._pool.idle())

    def _begin_at(self, worker: Worker) -> int:
        # The last attempt is made alone: no picture is set aside for what another one did to the daemon.
        others = [job for other in self._pool.workers for job in other.running.values()]
        if any(job.attempts >= self._policy.attempts_allowed(job) for job in others):
            return 0
        begun, batch = 0, list[Job]()
        for job in self._by_priority():
            is_last = self._policy.is_last(job)
            if others and is_last:
                break
            if not self._pool.suits(worker, self._settings.for_path(job.path).protect.device):
                continue
            if batch and (len(batch) >= worker.pace or is_last or self._policy.is_last(batch[0])):
                break
            begun += 1
            with isolated(job):
                if not (self._is_given_up(job) or self._is_outdated(job) or self._is_taken_over(job)):
                    batch.append(job)
            if begun >= BATCH_MAX:
                break
        if batch:
            self._start(worker, batch)
        return begun

    def _by_priority(self) -> Iterator[Job]:
        """The jobs that may be started now, by priority, then those first that have been ready longest.

        Those that the system hindered come after all others. One whose key another job has that is being
        worked or published waits, to take over the result, unless that cannot be published now.
        """
        priorities = self._settings.watch.priorities

        def rank(job: Job) -> tuple[bool, int, float, int]:
            return job.id in self._jobs.hindered, -priority(job.path, priorities), job.updated, job.id

        active = self._jobs.of(JobState.RUNNING, JobState.PUBLISHING)
        keys = {job.key for job in active if job.id not in self._jobs.failed_tries}
        due = [job for job in self._jobs.of(JobState.READY) if self._jobs.due(job)]
        for job in sorted(due, key=rank):
            if job.key not in keys:
                keys.add(job.key)
                yield job

    def _is_given_up(self, job: Job) -> bool:
        """Whether a job has used up its attempts: each ended with the death of its worker."""
        if job.attempts < self._policy.attempts_allowed(job):
            return False
        message = f"{job.name}: the worker died {job.attempts} times on this picture; it is set aside"
        self._policy.conclude(job, Failed(job.id, job.lease, Code.WORKER_DIED, message))
        return True

    def _is_taken_over(self, job: Job) -> bool:
        """Whether there was a published result of the same key, which the job takes over."""
        settings = self._settings.for_path(job.path)
        result = deduplicate.take_over(job, settings, self._jobs)
        if result is None:
            return False
        self._policy.conclude(job, result)
        return True

    def _start(self, worker: Worker, jobs: Sequence[Job]) -> None:
        try:
            child = self._pool.start(worker)
        except OSError as error:
            message = f"the worker cannot be started ({error.strerror})"
            self._policy.pause(worker, jobs[0], Code.INTERNAL, message)
            return
        with self._jobs.together():
            started = [self._jobs.start(job, self._settings.for_path(job.path)) for job in jobs]
        worker.running = {job.id: job for job in started}
        worker.current = 0
        orders: list[Order] = []
        for job in started:
            with isolated(job):
                orders.append(self._order(job, worker))
        try:
            child.send(orders)
        except OSError:
            self._died(worker, bury(worker))

    def _order(self, job: Job, worker: Worker) -> Order:
        spool = self._jobs.spool(job)
        masks = tuple((shown(path), spool.mask(i).name) for i, (path, _) in enumerate(spool.masks()))
        return Order(
            job.id,
            job.lease,
            folder=spool.folder,
            name=job.name,
            masks=masks,
            settings=self._jobs.settings[job.id],
            rung=self._policy.rung(job),
            device=worker.device,
        )

    # From the workers

    def listen(self, seconds: float) -> None:
        """Take in what the workers report for so many seconds, at most until one of them is done."""
        deadline, busy = time.monotonic() + seconds, len(self._pool.running)
        self._listen_once(seconds)
        while self._pool.running and len(self._pool.running) >= busy:
            if (left := deadline - time.monotonic()) <= 0:
                break
            self._listen_once(left)

    def _listen_once(self, seconds: float) -> None:
        for worker, report in self._pool.listen(seconds):
            if isinstance(report, Death):
                self._died(worker, report)
            else:
                self._hear(worker, report)

    def _hear(self, worker: Worker, messages: Sequence[Progress | Outcome]) -> None:
        """Take in what a worker reported; what concerns an earlier start of a job is dropped."""
        ended: list[tuple[Job, Outcome]] = []
        for message in messages:
            job = worker.running.get(message.job)
            if job is None or not message.concerns(job):
                continue
            if isinstance(message, Progress):
                worker.current = job.id
                self._on_progress(job, message.phase, message.done, message.total)
            else:
                ended.append((job, message))
        if ended:
            self._conclude_all(worker, ended)

    def _conclude_all(self, worker: Worker, ended: Sequence[tuple[Job, Outcome]]) -> None:
        """Conclude several jobs of a worker in one commit; until then a crash finds results in the spool."""
        with self._jobs.together():
            for job, outcome in ended:
                with isolated(job):
                    self._policy.conclude(job, outcome)
        outcomes = [outcome for _, outcome in ended]
        if any(isinstance(outcome, Hindered) and outcome.unusable for outcome in outcomes):
            worker.end()
        worker.adapt(outcomes)

    def _died(self, worker: Worker, death: Death) -> None:
        """A process has ended: the attempt of the job it worked on counts, its others are given back.

        Where it had begun none of them it counts for no job: the process would have died with any of them.
        """
        culprit = worker.running.get(worker.current)
        worker.pace = 1
        jobs = [*worker.running.values()]
        # The culprit first: if an internal error meets another job, the culprit's attempt is on record.
        for job in sorted(jobs, key=lambda job: job is not culprit):
            with isolated(job):
                outcome: Outcome | None = read_result(self._jobs.spool(job).folder, job)
                if outcome is None and job is culprit:
                    log.error("worker_died", path=job.name, how=death.reason, attempt=job.attempts)
                    reason = f"worker died: {death.reason}"
                    outcome = Interrupted(job.id, job.lease, reason, killed=death.killed)
                elif outcome is None:
                    where = f"on {culprit.name}" if culprit else "before it began"
                    outcome = GivenBack(job.id, job.lease, f"the worker died {where}")
                self._policy.conclude(job, outcome)
        worker.running.clear()
        if culprit is None and jobs:
            message = f"the worker died before it began ({death.reason})"
            self._policy.pause(worker, jobs[0], Code.INTERNAL, message)

    def drain(self) -> None:
        """End the workers' processes and give the running jobs back without counting their attempts."""
        if all(worker.child is None for worker in self._pool.workers):
            return
        notify(f"EXTEND_TIMEOUT_USEC={int(DRAIN_S * 1e6)}")
        running = [job for worker in self._pool.workers if worker.child for job in worker.running.values()]
        told = self._pool.stop()
        with self._jobs.together():
            for job in running:
                outcome = told.get(job.id)
                if outcome is None or not outcome.concerns(job):
                    outcome = read_result(self._jobs.spool(job).folder, job)
                try:
                    with isolated(job):
                        self._policy.conclude(job, outcome or GivenBack(job.id, job.lease))
                except InternalError as error:  # it must not affect the other jobs
                    log.error("internal_error", path=job.name, exc_info=error.__cause__)
                else:
                    log.info("drained", path=job.name)
