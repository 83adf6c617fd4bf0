"""What an operator sees of the loop: heartbeats of its parts, `/metrics` and `/healthz`, hooks.

This module only reports: it changes no job, and no job waits for a report.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import structlog

from backfire.config import Settings
from backfire.errors import StoreError
from backfire.service.hooks.courier import Courier
from backfire.service.hooks.digest import Digest
from backfire.service.jobs import Jobs

if TYPE_CHECKING:
    from backfire.service.endpoint import Answer, Endpoint

log = structlog.get_logger()

STILL_S = 60.0
"""A round of the loop takes half a second at most; a loop that has made no progress for so long is stuck."""


@dataclass
class Pulse:
    """When each part of the daemon last moved, by the monotonic clock.

    Attributes:
        rescan_s: seconds between two scans of the inbox.
        silence_s: how long a busy worker may report nothing.
        loop: when the last round of the loop ended.
        scan: when the last scan was tried.
        heard: when the busy worker that is silent longest last reported; None while none is busy.
        trouble: why the inbox cannot be read; no reason to restart, because that does not mount a share.
        no_room: why nothing is begun, as there is no place for results; no reason to restart either.
        warnings: what needs a person but stops nothing else, such as a subfolder that cannot be read.
    """

    rescan_s: float
    silence_s: float
    loop: float
    scan: float
    heard: float | None = None
    trouble: str = ""
    no_room: str = ""
    warnings: Sequence[str] = ()

    def moved(self, now: float) -> None:
        """Note that a long step of the loop makes progress; scans wait until it is over."""
        self.loop = self.scan = now

    def ages(self, now: float) -> dict[str, float]:
        """Seconds since each part moved."""
        times = {"loop": self.loop, "scanner": self.scan, "worker": self.heard}
        return {part: max(now - at, 0.0) for part, at in times.items() if at is not None}

    def stuck(self, now: float) -> list[str]:
        """What is stuck, in words; empty while loop, scanner and worker all make progress."""
        limits = {"loop": STILL_S, "scanner": 2 * self.rescan_s + STILL_S, "worker": self.silence_s + STILL_S}
        return [
            f"{part}: has made no progress for {age:.0f} s, at most {limits[part]:.0f} s expected"
            for part, age in self.ages(now).items()
            if age > limits[part]
        ]


class Operations:
    """Health, metrics and hooks of one configuration.

    Args:
        settings: `serve`, `hooks`, `watch.rescan_s`, `limits.silence_s` and the folders are used.
        jobs: the active jobs; hooks and metrics are told of their steps.
        monotonic: the clock of the heartbeats.

    Raises:
        ConfigError: the address of `serve.metrics` is taken.
    """

    def __init__(
        self,
        settings: Settings,
        jobs: Jobs,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monotonic, now = monotonic, monotonic()
        self.pulse = Pulse(settings.watch.rescan_s, settings.limits.silence_s, loop=now, scan=now)
        self._serve = settings.serve
        self._workers: Mapping[str, tuple[int, int]] = {}
        self._courier = Courier(settings, now=jobs.now)
        self._digest, self._jobs = Digest(self._courier, jobs.store), jobs
        jobs.listeners += [self._courier, self._digest]
        self.endpoint: Endpoint | None = None
        if settings.serve.address is not None:
            # Imported only here, because the HTTP server's libraries cost memory.
            from backfire.service.endpoint import Endpoint
            from backfire.service.metrics import CONTENT_TYPE, Metrics

            metrics = Metrics(
                jobs,
                settings.folders.named(),
                lambda: self.pulse.ages(self._monotonic()),
                self._deliveries,
                lambda: self._workers,
            )
            jobs.listeners.append(metrics)
            pages = {"/metrics": lambda: (200, CONTENT_TYPE, metrics.text()), "/healthz": self._health}
            self.endpoint = Endpoint(settings.serve.address, pages, settings.serve.allowed_hosts)

    def start(self) -> None:
        """Begin to answer and to deliver."""
        self._courier.start()
        if self.endpoint is not None:
            self.endpoint.start()
            log.info("metrics_served", url=self.endpoint.url + "/metrics")

    def beat(
        self,
        *,
        scan: float,
        heard: float | None,
        trouble: str,
        no_room: str = "",
        warnings: Sequence[str] = (),
        workers: Mapping[str, tuple[int, int]] = MappingProxyType({}),
    ) -> bool:
        """Note the end of a round, see `Pulse`; returns whether scanner and worker make progress."""
        self._digest.step(self._jobs.active.values(), now=self._jobs.now())
        now = self._monotonic()
        self.pulse.loop, self.pulse.scan = now, max(scan, self.pulse.scan)
        self._workers = workers
        self.pulse.heard, self.pulse.trouble, self.pulse.no_room = heard, trouble, no_room
        self.pulse.warnings = warnings
        stuck = self.pulse.stuck(now)
        if stuck:
            log.error("heartbeat_missed", parts=stuck)
        return not stuck

    def configure(self, settings: Settings) -> None:
        """Take over `hooks`, `limits` and `watch` of a reloaded configuration.

        `serve` needs a restart, and the log says so where it has changed.
        """
        if settings.serve != self._serve:
            kept, wanted = self._serve.model_dump(), settings.serve.model_dump()
            for name in kept:
                if kept[name] != wanted[name]:
                    setting = f"serve.{name}"
                    log.warning("restart_needed", setting=setting, kept=kept[name], wanted=wanted[name])
        self.pulse.rescan_s = settings.watch.rescan_s
        self.pulse.silence_s = settings.limits.silence_s
        self._courier.configure(settings.hooks)

    def close(self) -> None:
        """Stop answering; tell of the batches that are done; give deliveries that are due their try."""
        with suppress(StoreError):  # after the next start they are told
            self._digest.step(self._jobs.active.values(), now=self._jobs.now(), ending=True)
        if self.endpoint is not None:
            self.endpoint.close()
        self._courier.close()

    def _deliveries(self) -> Mapping[str, int]:
        courier = self._courier
        return {
            "delivered": courier.delivered,
            "given_up": courier.given_up,
            "pending": courier.pending,
        }

    def _health(self) -> Answer:
        now = self._monotonic()
        faults = self.pulse.stuck(now)
        if self.pulse.trouble:
            faults.append(f"inbox: {self.pulse.trouble}")
        if self.pulse.no_room:
            faults.append(self.pulse.no_room)
        ages = {part: round(age, 1) for part, age in self.pulse.ages(now).items()}
        warnings = [*self.pulse.warnings]
        status = "failing" if faults else "degraded" if warnings else "ok"
        document = {"status": status, "faults": faults, "warnings": warnings, "ages_s": ages}
        return 503 if faults else 200, "application/json", (json.dumps(document) + "\n").encode()
