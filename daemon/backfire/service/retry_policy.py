"""What an outcome means for its job: publish it, try it again, let it wait for others, or set it aside.

Every outcome passes through `RetryPolicy.conclude`: what a worker reports, what was found in the spool after
a crash, a result that was taken over from another job, the death of a worker, the drain, and internal errors.
"""

from __future__ import annotations

import traceback
from dataclasses import replace
from typing import assert_never

import structlog

from backfire.config import Settings
from backfire.errors import Code
from backfire.evaluate.receipt import in_short
from backfire.service.inbox import INCOMPLETE, Inbox
from backfire.service.jobs import RETRY_MAX_S, STUCK_AFTER, Jobs
from backfire.service.pool import Pool, Worker
from backfire.service.store.store import Changes
from backfire.service.worker.protocol import Failed, Finished, GivenBack, Hindered, Interrupted, Outcome
from backfire.types import Choice, Job, JobState, Verdict

log = structlog.get_logger()

HINDERED_S = 30.0
"""The longest wait of a hindered job for its next try, unless other jobs are worked in the meantime."""
HELD_AS = {Verdict.WEAK: Code.WEAK, Verdict.UNPROTECTED: Code.NO_REGION}
"""The verdicts of which a person may decide, each with the code under which such a result is held."""
INTERNAL_ERRORS_MAX = 3
"""The internal errors after which a job fails, if nothing of it has been published yet."""


class RetryPolicy:
    """Records in `jobs` what follows from outcomes, and has workers pause.

    Args:
        settings: the configuration.
        jobs: where it is recorded.
        inbox: asked whether a file may still be growing.
        pool: which worker has a job.
    """

    def __init__(self, settings: Settings, jobs: Jobs, inbox: Inbox, pool: Pool) -> None:
        self._jobs, self._inbox, self._pool = jobs, inbox, pool
        self._worked = 0
        self._kills: dict[int, int] = {}
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        """Decide by other settings from now on."""
        self._settings = settings

    def conclude(self, job: Job, outcome: Outcome) -> None:
        """Record what an outcome means for its job.

        Args:
            job: as it stands in the store.
            outcome: of its last start; of a job that was not started, what became of it instead.
        """
        worker = self._pool.worker_of(job)
        if isinstance(outcome, Finished | Failed):
            self._kills.pop(job.id, None)
            self._jobs.hindered.pop(job.id, None)
            if worker is not None:
                worker.hindered_by = ""
        match outcome:
            case Finished():
                self._finished(job, outcome, worker)
            case Failed():
                self._failed(job, outcome)
            case Hindered():
                self._hindered(job, outcome, worker or next(iter(self._pool.workers), Worker()))
            case GivenBack():
                self._jobs.give_back(job, detail={"reason": outcome.reason} if outcome.reason else None)
            case Interrupted():
                if outcome.killed:
                    self._kills[job.id] = self._kills.get(job.id, 0) + 1
                self._jobs.update(job, JobState.READY, detail={"reason": outcome.reason})
            case _:
                assert_never(outcome)
        if worker is not None:
            del worker.running[job.id]

    def _finished(self, job: Job, outcome: Finished, worker: Worker | None) -> None:
        """The verdict decides whether a result is published."""
        if job.state == JobState.RUNNING:  # else its result was taken over, and no worker did anything
            self._worked += 1
            if worker is not None:
                worker.pauses = 0
        verdict, reasons = outcome.verdict, "; ".join(outcome.reasons)
        if job.choice == Choice.RELEASE and not self._was_held_as(job, verdict):
            job = replace(job, choice=None)  # the result that was released is gone, and this one nobody saw
        if verdict == Verdict.FAILED:
            message = f"{job.name}: verification failed: {reasons}; see the sheet in the reports folder"
            self._set_aside(job, Code.NOT_PROTECTED, message, verdict)
        elif verdict == Verdict.WEAK and outcome.on_weak == "fail":
            message = f"{job.name}: protection is weak: {reasons}; verify.on_weak: publish would let it pass"
            self._set_aside(job, Code.WEAK, message, verdict)
        elif job.choice != Choice.RELEASE and verdict == Verdict.WEAK and outcome.on_weak == "review":
            message = f"{job.name}: protection is weak: {reasons}; backfire accept {job.id} publishes it"
            self._hold(job, Code.WEAK, message, verdict)
        elif job.choice != Choice.RELEASE and verdict == Verdict.UNPROTECTED and outcome.on_none == "review":
            message = f"{job.name}: {reasons}; backfire release {job.id} publishes it as it is"
            self._hold(job, Code.NO_REGION, message)
        else:
            detail = {"worked_as": outcome.worked_as} if outcome.worked_as is not None else None
            # A weak result keeps its reasons, too, so that nobody has to open the receipt to learn them.
            missed = in_short(outcome.reasons) if verdict == Verdict.WEAK else None
            self._jobs.update(
                job,
                JobState.PUBLISHING,
                detail=detail,
                verdict=verdict,
                message=missed,
                choice=job.choice,
            )

    def _was_held_as(self, job: Job, verdict: Verdict) -> bool:
        """Whether the result about which a person decided had this verdict."""
        history = self._jobs.store.history(job.id)
        held = [event.detail for event in history if event.state == JobState.HOLDING]
        codes = [detail["code"] for detail in held if "code" in detail]
        return bool(codes) and codes[-1] == HELD_AS.get(verdict)

    def _failed(self, job: Job, outcome: Failed) -> None:
        """Wait for the rest of the file, try again later, or give up."""
        detail = {"code": outcome.code.value, "reason": outcome.message}
        if outcome.code in INCOMPLETE and self._inbox.may_grow(job):
            self._inbox.note_incomplete(job)
            detail["reason"] = f"{outcome.message}; waits for the rest"
            self._jobs.give_back(job, JobState.SETTLING, detail=detail)
        elif outcome.retryable and job.attempts < self._attempts_of(job):
            wait = min(5.0 * 4 ** (job.attempts - 1), RETRY_MAX_S)
            log.warning("retry", path=job.name, code=outcome.code, error=outcome.message, in_s=wait)
            self._jobs.update(job, JobState.READY, not_before=self._jobs.now() + wait, detail=detail)
        else:
            waited = self._inbox.waited(job) if outcome.code in INCOMPLETE else ""
            self._set_aside(job, outcome.code, outcome.message + waited)

    def _hindered(self, job: Job, outcome: Hindered, worker: Worker) -> None:
        """Decide whether the system prevents all work, or only that on this picture and others like it.

        In the first case the worker pauses. In the second the job waits behind all others, without a copy and
        longer each time; what may be the picture's own trouble fails after a while.
        """
        count, worked_before = self._jobs.hindered.get(job.id, (0, self._worked))
        count += 1
        self._jobs.hindered[job.id] = count, worked_before
        # With several workers, what the others have worked says nothing about the trouble of this one.
        alone = self._worked > worked_before and (len(self._pool.workers) == 1 or worker.pauses == 0)
        if alone and outcome.suspicious and count >= STUCK_AFTER:
            del self._jobs.hindered[job.id]
            message = f"{job.name}: others were worked while this one was refused {count} times: "
            self._set_aside(job, outcome.code, message + outcome.message)
            return
        # If very many jobs are hindered, their copies would leave no room for those of others.
        behind = alone or worker.pauses > STUCK_AFTER
        detail = {"code": outcome.code.value, "reason": outcome.message}
        job = self._jobs.give_back(job, JobState.SETTLING if behind else JobState.READY, detail=detail)
        self._jobs.wait(job, min(2.0 ** min(count, 10), RETRY_MAX_S if alone else HINDERED_S))
        if behind:
            self._jobs.spool(job).drop()
        if not alone:
            self.pause(worker, job, outcome.code, outcome.message)

    def pause(self, worker: Worker, job: Job, code: Code, error: str) -> None:
        """Give a worker no jobs for a while, because the system prevented its work on one of them."""
        # A job that was not tried yet may not be hindered: it is tried before a long pause.
        untried = any(job.id not in self._jobs.hindered for job in self._jobs.of(JobState.READY))
        self._pool.pause(worker, error, long=not untried)
        place = worker.place
        log.error(
            "worker_paused", path=job.name, code=code, error=error, device=place.device, node=place.node
        )

    def internal_error(self, job: Job, error: BaseException, *, is_out: bool) -> None:
        """Try the step of a job that met a bug of Backfire again; after some such errors the job fails.

        Args:
            job: any active one.
            error: what was raised.
            is_out: its result stands in the outbox already, so that it must not fail any more.
        """
        count = self._jobs.internal_errors[job.id] = self._jobs.internal_errors.get(job.id, 0) + 1
        self._jobs.retry_later(job, error)
        moving = job.state in (JobState.SETTING_ASIDE, JobState.HOLDING, JobState.RELEASING)
        if count < INTERNAL_ERRORS_MAX or is_out or moving:
            return
        text = "".join(traceback.format_exception(error, limit=20))
        if job.input_sha256 is None or not self._jobs.spool(job).files():  # there is no copy to set aside
            self._jobs.refuse(job, self._inbox.files_of(job.path), Code.INTERNAL, text)
        else:
            self.conclude(job, Failed(job.id, job.lease, Code.INTERNAL, text))

    def _set_aside(self, job: Job, code: Code, message: str, verdict: Verdict | None = None) -> None:
        """Record why a job cannot be protected; `step` of the publisher moves its original away."""
        self._jobs.update(job, JobState.SETTING_ASIDE, code=code.value, message=message, verdict=verdict)

    def _hold(self, job: Job, code: Code, message: str, verdict: Verdict | None = None) -> None:
        """Record that a person is to decide about a result; the publisher moves its original to review."""
        changes: Changes = {"code": code.value, "message": message, "verdict": verdict, "choice": job.choice}
        self._jobs.update(job, JobState.HOLDING, detail={"code": code.value}, **changes)

    # Before the next attempt

    def attempts_allowed(self, job: Job) -> int:
        """How many attempts a job has under the settings of today."""
        return self._settings.for_path(job.path).protect.attempts

    def is_last(self, job: Job) -> bool:
        """Whether no attempt would be left after the next one."""
        return job.attempts + 1 >= self.attempts_allowed(job)

    def rung(self, job: Job) -> int:
        """How many rungs of the memory ladder the next attempt skips: one for each worker that was killed."""
        return self._kills.get(job.id, 0)

    def _attempts_of(self, job: Job) -> int:
        """How many attempts it had when it was started; after a restart, how many it has today."""
        settings = self._jobs.settings.get(job.id) or self._settings.for_path(job.path)
        return settings.protect.attempts
