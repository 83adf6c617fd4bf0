"""What each outcome means for its job, with the real store and pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from backfire import config
from backfire.errors import Code
from backfire.service.inbox import Inbox
from backfire.service.jobs import STUCK_AFTER, Jobs
from backfire.service.pool import Pool
from backfire.service.retry_policy import INTERNAL_ERRORS_MAX, RetryPolicy
from backfire.service.store.store import Store
from backfire.service.worker.protocol import Failed, Finished, GivenBack, Hindered, Interrupted, Outcome
from backfire.types import Job, JobState, Verdict

S = JobState


class Desk:
    """A policy and all that it needs; `start` gives a job to the only worker."""

    def __init__(self, base: Path, store: Store) -> None:
        settings = config.parse(
            {"folders": {"inbox": "inbox"}, "protect": {"attempts": 2}, "watch": {"incomplete_wait_s": 0}},
            base=base,
        )
        self.settings, self.clock = settings, 100.0
        self.jobs = Jobs(store, base / "spool", lambda: 1e9, lambda: self.clock)
        self.pool = Pool(settings, lambda: self.clock)
        self.policy = RetryPolicy(
            settings, self.jobs, Inbox(settings, self.jobs, lambda: self.clock), self.pool
        )

    def start(self, name: bytes = b"a.png") -> Job:
        job = self.jobs.active.get(name) or self.jobs.add([name])[0]
        if job.state != S.READY:
            job = self.jobs.update(job, S.READY, input_sha256="a" * 64, key=name.decode())
        job = self.jobs.start(job, self.settings)
        self.pool.workers[0].running[job.id] = job
        return job

    def conclude(self, job: Job, outcome: Outcome) -> Job:
        self.policy.conclude(job, outcome)
        assert self.pool.running == [], "the worker does not have it any more"
        return self.jobs.active[job.path]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with Store(tmp_path / "state" / "jobs.db") as store:
        yield Desk(tmp_path, store)


def finished(job: Job, verdict: Verdict = Verdict.PROTECTED, on_weak: str = "publish") -> Finished:
    return Finished(
        job.id, job.lease, verdict, ".png", "b" * 64, on_weak="fail" if on_weak == "fail" else "publish"
    )


@pytest.mark.parametrize(
    ("outcome", "state", "code", "attempts"),
    [
        (finished, S.PUBLISHING, None, 1),
        (lambda job: finished(job, Verdict.WEAK), S.PUBLISHING, None, 1),
        (lambda job: finished(job, Verdict.WEAK, "fail"), S.SETTING_ASIDE, Code.WEAK, 1),
        (lambda job: finished(job, Verdict.FAILED), S.SETTING_ASIDE, Code.NOT_PROTECTED, 1),
        (lambda job: Failed(job.id, job.lease, Code.UNREADABLE, "m"), S.SETTING_ASIDE, Code.UNREADABLE, 1),
        (lambda job: Failed(job.id, job.lease, Code.DETECTOR, "m", retryable=True), S.READY, None, 1),
        (lambda job: Hindered(job.id, job.lease, Code.MODEL, "m"), S.READY, None, 0),
        (lambda job: GivenBack(job.id, job.lease, "stopped"), S.READY, None, 0),
        (lambda job: Interrupted(job.id, job.lease, "worker died: killed"), S.READY, None, 1),
    ],
    ids=[
        "protected",
        "weak",
        "too weak",
        "failed verdict",
        "bad",
        "retry",
        "hindered",
        "back",
        "interrupted",
    ],
)
def test_what_an_outcome_means(
    desk: Desk, outcome: Callable[[Job], Outcome], state: JobState, code: Code | None, attempts: int
) -> None:
    job = desk.start()
    after = desk.conclude(job, outcome(job))
    assert (after.state, after.code, after.attempts) == (state, code, attempts)


def test_why_a_result_is_weak_is_kept_until_a_better_one(desk: Desk) -> None:
    job = desk.start()
    reasons = ("region 0: far edit changes to SSIM 0.900, at least 0.92 asked", "another", "a third")
    weak = desk.conclude(job, replace(finished(job, Verdict.WEAK), reasons=reasons))
    assert weak.message == f"{reasons[0]} (and 2 more)"
    job = desk.start()  # as after its result was lost
    assert desk.conclude(job, finished(job)).message is None, "the reasons of the former result are gone"


def test_another_attempt_waits_and_the_last_one_is_final(desk: Desk) -> None:
    job = desk.start()
    job = desk.conclude(job, Failed(job.id, job.lease, Code.DETECTOR, "m", retryable=True))
    assert job.state == S.READY
    assert not desk.jobs.due(job)
    job = desk.start()
    job = desk.conclude(job, Failed(job.id, job.lease, Code.DETECTOR, "m", retryable=True))
    assert (job.state, job.code, job.attempts) == (S.SETTING_ASIDE, Code.DETECTOR, 2)


def test_a_killed_worker_needs_less_memory_next_time_until_the_picture_has_a_result(desk: Desk) -> None:
    for rung in (1, 2):
        job = desk.start()
        desk.conclude(job, Interrupted(job.id, job.lease, "killed by SIGKILL", killed=True))
        assert desk.policy.rung(job) == rung
    job = desk.start()
    desk.conclude(job, finished(job))
    assert desk.policy.rung(job) == 0


def test_a_hindrance_of_all_pauses_the_worker_and_one_of_a_single_picture_fails_it(desk: Desk) -> None:
    job = desk.start()
    bad = desk.conclude(job, Hindered(job.id, job.lease, Code.INTERNAL, "m", suspicious=True))
    assert (bad.state, desk.pool.workers[0].pauses) == (S.READY, 1)
    for number in range(STUCK_AFTER - 1):
        other = desk.start(b"%d.png" % number)
        desk.conclude(other, finished(other))
        job = desk.start()
        bad = desk.conclude(job, Hindered(job.id, job.lease, Code.INTERNAL, "m", suspicious=True))
    assert desk.pool.workers[0].pauses == 0, "other jobs succeed"
    assert bad.state == S.SETTING_ASIDE
    assert "others were worked while this one was refused 3 times" in str(bad.message)


def test_an_outage_of_days_costs_no_picture(desk: Desk) -> None:
    """The wait grows with each refusal, and stays finite however many there were."""
    job = desk.start()
    desk.jobs.hindered[job.id] = 5000, 0
    job = desk.conclude(job, Hindered(job.id, job.lease, Code.MODEL, "weights do not load"))
    assert (job.state, job.code) in [(S.READY, None), (S.SETTLING, None)]


@pytest.mark.parametrize("is_out", [False, True])
def test_a_bug_fails_the_job_after_some_tries_unless_its_result_is_out(desk: Desk, is_out: bool) -> None:
    job = desk.start()
    (desk.jobs.spool(job).folder).mkdir(parents=True)
    (desk.jobs.spool(job).folder / "taken.json").write_text(
        '{"files": [["a.png", [1, 1, 1, 1, 1]]], "masks": [], "proof": []}'
    )
    for _ in range(INTERNAL_ERRORS_MAX):
        job = desk.jobs.active[job.path]
        assert job.state == S.RUNNING
        desk.policy.internal_error(job, ZeroDivisionError("a bug"), is_out=is_out)
    after = desk.jobs.active[job.path]
    assert (after.state, after.code) == ((S.RUNNING, None) if is_out else (S.SETTING_ASIDE, Code.INTERNAL))
