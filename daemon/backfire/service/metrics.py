"""Metrics for Prometheus; the only module that uses prometheus-client.

Every step of a job is reported to the counters and histograms; gauges are computed at each scrape.
"""

from __future__ import annotations

import os
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from backfire import __version__
from backfire.service.jobs import Jobs
from backfire.types import ACTIVE, Job, JobState

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STAGE_S = (0.01, 0.1, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)
JOB_S = (5, 10, 30, 60, 120, 300, 600, 1800, 3600, 4 * 3600, 24 * 3600)

ENDS = frozenset(JobState) - ACTIVE


class Metrics(Collector):
    """Counts the steps of jobs and writes it in Prometheus' text format.

    Args:
        jobs: the active jobs.
        folders: the configured folders by name, whose free space is shown.
        ages: called at each scrape; gives the seconds since each part of the daemon last made progress.
        hooks: called at each scrape; gives the number of deliveries by state.
        workers: called at each scrape; gives the number of busy and of idle workers by node.
    """

    def __init__(
        self,
        jobs: Jobs,
        folders: Mapping[str, Path],
        ages: Callable[[], Mapping[str, float]],
        hooks: Callable[[], Mapping[str, int]],
        workers: Callable[[], Mapping[str, tuple[int, int]]] = dict,
    ) -> None:
        self._jobs, self._folders, self._ages, self._hooks = jobs, folders, ages, hooks
        self._workers = workers
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        build = Gauge(
            "backfire_build",
            "The version of the software; the value is always 1.",
            ["version"],
            registry=registry,
        )
        build.labels(__version__).set(1)
        self._ended = Counter("backfire_jobs", "Jobs that ended.", ["state", "verdict"], registry=registry)
        self._failures = Counter(
            "backfire_failures", "Jobs that failed, by reason.", ["code"], registry=registry
        )
        self._bytes = Counter(
            "backfire_bytes", "Bytes of pictures taken in and published.", ["direction"], registry=registry
        )
        self._job_seconds = Histogram(
            "backfire_job_seconds",
            "Seconds from the discovery of a file to the end of its job.",
            registry=registry,
            buckets=JOB_S,
        )
        self._stage_seconds = Histogram(
            "backfire_stage_seconds",
            "Seconds of the stages of a job.",
            ["stage"],
            registry=registry,
            buckets=STAGE_S,
        )
        registry.register(self)

    def __call__(self, job: Job, timings: Mapping[str, float] | None = None) -> None:
        """Count a job that is about to be recorded in a new state; `timings` are its seconds by stage."""
        with suppress(OSError):
            if job.state == JobState.READY and job.input_sha256 and not job.attempts:
                self._bytes.labels("taken").inc(self._jobs.spool(job).input.stat().st_size)
            elif job.state == JobState.PUBLISHED and job.output_path:
                published = self._folders["outbox"] / os.fsdecode(job.output_path)
                self._bytes.labels("published").inc(published.stat().st_size)
        if job.state in ENDS:
            self._ended.labels(job.state.value, job.verdict.value if job.verdict else "").inc()
            self._job_seconds.observe(max(job.updated - job.created, 0.0))
            if job.state in (JobState.FAILED, JobState.QUARANTINED):
                self._failures.labels(job.code or "").inc()
            for stage, seconds in (timings or {}).items():
                self._stage_seconds.labels(stage).observe(seconds)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """The gauges of the present moment, called at each scrape.

        The endpoint's thread calls this, so it copies what the loop owns before it looks at it.
        """
        jobs = list(self._jobs.active.values())  # atomic under the interpreter's lock
        now = self._jobs.now()
        active = GaugeMetricFamily("backfire_active_jobs", "Jobs with work left.", labels=["state"])
        tally = Tally(job.state for job in jobs)
        for active_state in sorted(ACTIVE):
            active.add_metric([active_state.value], tally[active_state])
        yield active
        oldest = max((now - job.created for job in jobs), default=0.0)
        yield GaugeMetricFamily("backfire_queue_age_seconds", "Age of the oldest active job.", oldest)
        stuck = len(self._jobs.failed_tries)
        yield GaugeMetricFamily(
            "backfire_postponed_jobs", "Jobs whose next step failed and is tried again later.", stuck
        )
        ages = GaugeMetricFamily(
            "backfire_heartbeat_age_seconds", "Seconds since the part last made progress.", labels=["part"]
        )
        for part, seconds in self._ages().items():
            ages.add_metric([part], seconds)
        yield ages
        hooks = GaugeMetricFamily(
            "backfire_hook_deliveries", "Deliveries since the start, and those that wait.", labels=["state"]
        )
        for state, count in self._hooks().items():
            hooks.add_metric([state], count)
        yield hooks
        workers = GaugeMetricFamily(
            "backfire_workers", "Workers by node; local is the daemon's machine.", labels=["node", "state"]
        )
        for node, (busy, idle) in self._workers().items():
            workers.add_metric([node, "busy"], busy)
            workers.add_metric([node, "idle"], idle)
        yield workers
        free = GaugeMetricFamily(
            "backfire_free_bytes", "Free space on the disk of a folder.", labels=["folder"]
        )
        for name, folder in self._folders.items():
            with suppress(OSError):  # a network folder that is gone has no free space to show
                space = os.statvfs(folder)
                free.add_metric([name], space.f_bavail * space.f_frsize)
        yield free
