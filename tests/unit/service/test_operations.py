"""Metrics, health and heartbeats, asked over real HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from backfire.config import Settings, parse
from backfire.service.health import Operations
from backfire.service.hooks.courier import Courier
from backfire.service.hooks.digest import Digest
from backfire.service.jobs import Jobs
from backfire.service.store.store import Store
from backfire.types import JobState, Verdict


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    found = parse({"folders": {"inbox": "inbox"}, "serve": {"metrics": "127.0.0.1:0"}}, base=tmp_path)
    for folder in found.folders.named().values():
        folder.mkdir()
    return found


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def jobs(settings: Settings, clock: Clock) -> Iterator[Jobs]:
    with Store(settings.folders.state / "jobs.db") as store:
        yield Jobs(store, settings.folders.state / "spool", clock)


@pytest.fixture
def operations(settings: Settings, jobs: Jobs, clock: Clock) -> Iterator[Operations]:
    found = Operations(settings, jobs, monotonic=clock)
    found.start()
    yield found
    found.close()


def get(operations: Operations, page: str, method: str = "GET") -> tuple[int, str]:
    assert operations.endpoint is not None
    request = urllib.request.Request(operations.endpoint.url + page, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def samples(operations: Operations) -> dict[tuple[str, ...], float]:
    status, text = get(operations, "/metrics")
    assert status == 200
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def work(jobs: Jobs, clock: Clock, settings: Settings) -> None:
    """One job published, one failed, one waiting."""
    clock.now -= 50
    good, bad, _ = jobs.add([b"good.png", b"bad.png", b"late.png"])
    clock.now += 50
    jobs.spool(good).folder.mkdir(parents=True)
    jobs.spool(good).input.write_bytes(b"x" * 1000)
    good = jobs.update(good, JobState.READY, input_sha256="a" * 64)
    (settings.folders.outbox / "good.png").write_bytes(b"y" * 3000)
    good = jobs.update(
        good, JobState.PUBLISHED, output_path=b"good.png", output_sha256="b" * 64, verdict=Verdict.WEAK
    )
    jobs.end(good, JobState.ARCHIVED, timings={"optimise": 7.0, "verify": 0.2})
    jobs.end(bad, JobState.FAILED, code="empty", message="bad.png: is empty")


def test_metrics_tell_what_happened(
    operations: Operations, jobs: Jobs, clock: Clock, settings: Settings
) -> None:
    work(jobs, clock, settings)
    clock.now += 10
    found = samples(operations)
    expected: dict[tuple[str, ...], float] = {
        ("backfire_jobs_total", "archived", "weak"): 1,
        ("backfire_jobs_total", "failed", ""): 1,
        ("backfire_failures_total", "empty"): 1,
        ("backfire_active_jobs", "settling"): 1,
        ("backfire_active_jobs", "running"): 0,
        ("backfire_queue_age_seconds",): 60,
        ("backfire_bytes_total", "taken"): 1000,
        ("backfire_bytes_total", "published"): 3000,
        ("backfire_job_seconds_count",): 2,
        ("backfire_job_seconds_sum",): 100,
        ("backfire_stage_seconds_sum", "optimise"): 7,
        ("backfire_stage_seconds_bucket", "5.0", "optimise"): 0,
        ("backfire_stage_seconds_bucket", "10.0", "optimise"): 1,
        ("backfire_heartbeat_age_seconds", "loop"): 10,
        ("backfire_hook_deliveries", "pending"): 0,
    }
    assert {name: found.get(name) for name in expected} == expected
    assert found["backfire_free_bytes", "outbox"] > 0
    assert found["process_resident_memory_bytes",] > 1e6


def test_health_follows_scanner_and_worker(operations: Operations, clock: Clock) -> None:
    assert operations.beat(scan=clock.now, heard=None, trouble="")
    status, text = get(operations, "/healthz")
    assert (status, json.loads(text)["status"]) == (200, "ok")

    clock.now += 125  # the scanner is asked to look each 30 s
    with capture_logs() as lines:
        assert not operations.beat(scan=clock.now - 125, heard=clock.now, trouble="")
    assert "scanner" in lines[0]["parts"][0]
    status, text = get(operations, "/healthz")
    assert (status, json.loads(text)["faults"]) == (
        503,
        ["scanner: has made no progress for 125 s, at most 120 s expected"],
    )
    with capture_logs():
        assert not operations.beat(scan=clock.now, heard=clock.now - 961, trouble="")
    assert "worker" in get(operations, "/healthz")[1]
    assert operations.beat(scan=clock.now, heard=clock.now - 900, trouble="")
    assert get(operations, "/healthz")[0] == 200

    clock.now += 61  # no heartbeat comes
    assert "loop" in get(operations, "/healthz")[1]


def test_an_unreadable_inbox_is_unhealthy_but_no_reason_to_restart(
    operations: Operations, clock: Clock
) -> None:
    assert operations.beat(scan=clock.now, heard=None, trouble="the share is gone")
    status, text = get(operations, "/healthz")
    assert (status, json.loads(text)["faults"]) == (503, ["inbox: the share is gone"])


def test_a_daemon_without_room_for_results_is_unhealthy(operations: Operations, clock: Clock) -> None:
    assert operations.beat(scan=clock.now, heard=None, trouble="", no_room="state: 1 MiB is free")
    status, text = get(operations, "/healthz")
    assert (status, json.loads(text)["faults"]) == (503, ["state: 1 MiB is free"])


def test_a_warning_makes_the_daemon_degraded_but_not_unhealthy(operations: Operations, clock: Clock) -> None:
    assert operations.beat(scan=clock.now, heard=None, trouble="", warnings=["desk: cannot be read"])
    status, text = get(operations, "/healthz")
    document = json.loads(text)
    assert (status, document["status"], document["warnings"]) == (200, "degraded", ["desk: cannot be read"])


def test_other_pages_and_methods(operations: Operations) -> None:
    status, text = get(operations, "/etc/passwd")
    assert (status, text) == (404, "try /metrics, /healthz\n")
    assert get(operations, "/metrics", "HEAD") == (200, "")
    assert get(operations, "/metrics", "POST")[0] == 405
    assert get(operations, "/metrics?name=x")[0] == 200
    assert get(operations, "/metrics/")[0] == 404, "no redirect, whose address the client could choose"


def test_a_daemon_without_metrics_never_loads_the_http_server() -> None:
    code = (
        "import sys, backfire.service.loop\n"
        "sys.exit(bool({'starlette', 'uvicorn', 'anyio', 'prometheus_client'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_metrics_are_off_by_default(tmp_path: Path, jobs: Jobs) -> None:
    operations = Operations(parse({"folders": {"inbox": "i"}}, base=tmp_path), jobs)
    operations.start()
    assert operations.endpoint is None
    assert [type(one) for one in jobs.listeners] == [Courier, Digest], "only the hooks, without receivers"
    operations.close()


def test_listeners_hear_of_a_step_before_it_is_recorded(jobs: Jobs) -> None:
    """A delivery must be on disk when the record says that the job is done."""
    jobs.add([b"p.png"])
    (job,) = jobs.active.values()
    seen = []
    jobs.listeners.append(lambda job, _: seen.append((job.state, jobs.store.history(job.id)[-1].state)))
    jobs.end(job, JobState.SKIPPED)
    assert seen == [(JobState.SKIPPED, JobState.SETTLING)]


def test_an_address_that_changed_in_the_configuration_needs_a_restart(
    operations: Operations, settings: Settings, tmp_path: Path
) -> None:
    other = parse({"folders": {"inbox": "inbox"}, "serve": {"metrics": "127.0.0.1:9"}}, base=tmp_path)
    with capture_logs() as lines:
        operations.configure(settings)
        assert lines == []
        for _ in range(2):
            operations.configure(other)
    assert [(line["event"], line["kept"], line["wanted"]) for line in lines] == [
        ("restart_needed", "127.0.0.1:0", "127.0.0.1:9")
    ] * 2
