"""Jobs to the workers and their outcomes back: chooses who is next, and hands each outcome to the policy."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import structlog

from backfire.config import Settings
from backfire.errors import Code
from backfire.service import deduplicate
from backfire.service.job_settings import JobSettings
from backfire.service.jobs import InternalError, Jobs, isolated
from backfire.service.pool import DRAIN_S, QUICK_S, Death, Pool, Worker, bury
from backfire.service.queue import priority
from backfire.service.retry_policy import RetryPolicy
from backfire.service.systemd import notify
from backfire.service.worker.local import BATCH_MAX
from backfire.service.worker.protocol import (
    Failed,
    GivenBack,
    Hindered,
    Interrupted,
    Order,
    Outcome,
    Progress,
    WorkerProcess,
    read_result,
)
from backfire.types import Job, JobState, shown

log = structlog.get_logger()

Batch = tuple[Worker, list[Job]]
"""Jobs that a worker is to get together."""
Ended = tuple[Worker, Job, Outcome]
"""How a worker's job has ended."""
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
        self._settings, self._job_settings = settings, JobSettings(settings)

    # After a start, a failure of the store or a reload

    def resume(self, *, crashed: bool) -> None:
        """Take up the jobs that were being worked.

        Args:
            crashed: the daemon was restarted. Where a picture was worked on this machine, it may be why the
                daemon had ended; otherwise no attempt is counted. If only the store failed for a while, the
                workers may still be busy.
        """
        self._pool.forget_running()
        for job in self._jobs.of(JobState.RUNNING):
            with isolated(job):
                result = read_result(self._jobs.spool(job).folder, job)
                if result is not None:
                    self._policy.conclude(job, result)
                elif crashed:
                    reason = "the daemon ended while the job was running"
                    ended = GivenBack if self._jobs.ran_on_node(job) else Interrupted
                    self._policy.conclude(job, ended(job.id, job.lease, reason))
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
        if job.config_sha256 != self._job_settings.digest(job):
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
        self._pool.refresh(len(self._jobs.active))
        begun = 0
        while begun < BATCH_MAX and (some := self.begin()):
            begun += some
            self.listen(QUICK_S)
            self._pool.refresh(len(self._jobs.active))
        self._pool.dismiss()
        return begun > 0

    def begin(self) -> int:
        """Give each idle worker its next jobs, all in one commit; how many jobs went a step on."""
        begun, queue, batches = 0, None, list[Batch]()
        for worker in self._pool.idle():
            queue = deque(self._by_priority()) if queue is None else queue
            some, batch = self._batch(worker, queue, batches)
            begun += some
            if batch:
                batches.append((worker, batch))
        self._start(batches)
        return begun

    def _batch(self, worker: Worker, queue: deque[Job], chosen: Sequence[Batch]) -> tuple[int, list[Job]]:
        """What a worker gets of the queue, from which it is taken; and how many jobs went a step on."""
        # The last attempt is made alone, so that no picture is set aside for what another one did.
        others = list[Job]()
        if self._pool.is_shared:
            running = [job for other in self._pool.workers for job in other.running.values()]
            next_ones = [job for _, batch in chosen for job in batch]
            if any(job.attempts >= self._policy.attempts_allowed(job) for job in running):
                return 0, []
            if any(self._policy.is_last(job) for job in next_ones):
                return 0, []
            others = running + next_ones
        begun, batch, unsuited = 0, list[Job](), list[Job]()
        while queue and begun < BATCH_MAX:
            job = queue[0]
            is_last = self._policy.is_last(job)
            if others and is_last:
                break
            if not self._pool.suits(worker, self._settings.for_path(job.path).protect.device):
                unsuited.append(queue.popleft())
                continue
            if batch and (len(batch) >= worker.pace or is_last or self._policy.is_last(batch[0])):
                break
            queue.popleft()
            begun += 1
            with isolated(job):
                if not (self._is_given_up(job) or self._is_outdated(job) or self._is_taken_over(job)):
                    batch.append(job)
        queue.extendleft(reversed(unsuited))
        return begun, batch

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
        settings = self._job_settings.of(job)
        result = deduplicate.take_over(job, settings, self._jobs)
        if result is None:
            return False
        self._policy.conclude(job, result)
        return True

    def _start(self, batches: Sequence[Batch]) -> None:
        ready: list[tuple[Worker, WorkerProcess, Sequence[Job]]] = []
        for worker, jobs in batches:
            try:
                ready.append((worker, self._pool.start(worker), jobs))
            except OSError as error:
                message = f"the worker cannot be started ({error.strerror or error})"
                self._policy.pause(worker, jobs[0], Code.INTERNAL, message)
        if not ready:
            return
        with self._jobs.together():
            started = [
                [self._jobs.start(job, self._job_settings.of(job), worker.place.node) for job in jobs]
                for worker, _, jobs in ready
            ]
        for (worker, _, _), jobs in zip(ready, started, strict=True):
            worker.running = {job.id: job for job in jobs}
            worker.current = 0
        for (worker, child, _), jobs in zip(ready, started, strict=True):
            orders: list[Order] = []
            for job in jobs:
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
        """Take in what the workers report for so many seconds, at most until one of them is done or new."""
        deadline, busy = time.monotonic() + seconds, len(self._pool.running)
        self._listen_once(seconds)
        while self._pool.running and len(self._pool.running) >= busy:
            if (left := deadline - time.monotonic()) <= 0 or self._pool.is_changed:
                break
            self._listen_once(left)

    def _listen_once(self, seconds: float) -> None:
        ended: list[Ended] = []
        for worker, report in self._pool.listen(seconds):
            if isinstance(report, Death):
                self._died(worker, report)
            else:
                ended += self._heard(worker, report)
        if ended:
            self._conclude_all(ended)

    def _heard(self, worker: Worker, messages: Sequence[Progress | Outcome]) -> Iterator[Ended]:
        """What has ended by a worker's reports; what concerns an earlier start of a job is dropped."""
        for message in messages:
            job = worker.running.get(message.job)
            if job is None or not message.concerns(job):
                continue
            if isinstance(message, Progress):
                worker.current = job.id
                self._on_progress(job, message.phase, message.done, message.total)
            else:
                yield worker, job, message

    def _conclude_all(self, ended: Sequence[Ended]) -> None:
        """Conclude several jobs in one commit; until then a crash finds results in the spool."""
        with self._jobs.together():
            for _, job, outcome in ended:
                with isolated(job):
                    self._policy.conclude(job, outcome)
        for worker in dict.fromkeys(worker for worker, *_ in ended):
            outcomes = [outcome for one, _, outcome in ended if one is worker]
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
        # The culprit comes first, so that its attempt is recorded even if another job meets a bug.
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
        """End the workers' processes and give the running jobs back.

        An attempt counts only if its worker had died of itself.
        """
        if all(worker.child is None for worker in self._pool.workers):
            return
        notify(f"EXTEND_TIMEOUT_USEC={int(DRAIN_S * 1e6)}")
        running = [job for worker in self._pool.workers if worker.child for job in worker.running.values()]
        told = self._pool.stop()
        with self._jobs.together():
            for job in running:
                outcome = told.get(job.id)
                if outcome is not None and not outcome.concerns(job):
                    outcome = None
                if outcome is None or isinstance(outcome, Interrupted):
                    outcome = read_result(self._jobs.spool(job).folder, job) or outcome
                try:
                    with isolated(job):
                        self._policy.conclude(job, outcome or GivenBack(job.id, job.lease))
                except InternalError as error:  # it must not affect the other jobs
                    log.error("internal_error", path=job.name, exc_info=error.__cause__)
                else:
                    # Also what was hindered, or may succeed at another attempt, was put back.
                    now = self._jobs.active[job.path].state
                    log.info("drained", path=job.name, again=now in (JobState.READY, JobState.SETTLING))
