"""From a file in the inbox to a job that is ready: settle, pair with masks, copy, hash."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from daemon import inbox, outbox
from daemon.config import Settings
from daemon.domain import Job, JobState, job_key, mask_digest, shown
from daemon.errors import Code, InputError
from daemon.inbox import Scan, Tracker
from daemon.ledger import Ledger

log = structlog.get_logger()

WAITING = (JobState.SETTLING, JobState.WAITING_MASK, JobState.READY)
READY_AHEAD = 8
"""Jobs copied ahead of the worker: enough to keep it busy, few enough that no copy of a backlog is made."""
LEAST_S = 0.5
"""Between two scans, however many events there are."""


class Intake:
    """Watches the inbox through scans; `wake` is set by whoever thinks one is due."""

    def __init__(
        self, settings: Settings, ledger: Ledger, wake: threading.Event, monotonic: Callable[[], float]
    ) -> None:
        self._settings, self._ledger, self._wake, self._monotonic = settings, ledger, wake, monotonic
        self._tracker = Tracker(settings.watch.settle_s)
        self._scan = Scan()
        self._orphans: set[bytes] = set()
        self._next = 0.0
        self._last = -LEAST_S
        self.scanned = False
        self.trouble = ""
        """Why the inbox cannot be read at present; empty while it can."""

    @property
    def root(self) -> Path:
        """The inbox."""
        return self._settings.folders.inbox

    @property
    def last_scan(self) -> float:
        """When the inbox was last looked at, by the monotonic clock; also in vain."""
        return self._last

    def step(self) -> None:
        """Scan if one is due, and bring every waiting job one step on."""
        now = self._monotonic()
        if now < self._next and not (self._wake.is_set() and now >= self._last + LEAST_S):
            return
        self._wake.clear()
        self._last = now
        if not self._look(now):
            return
        known = self._ledger.jobs
        fresh = [path for path in self._scan.pictures if path not in known]
        for job in self._ledger.store.sight(fresh, at=self._ledger.now()) if fresh else ():
            self._ledger.remember(job)
        ready = sum(job.state == JobState.READY for job in known.values())
        for job in list(known.values()):
            if job.state in WAITING:
                ready += self._advance(job, now, may_take=ready < READY_AHEAD)
        self._mention_orphans(now)
        watch = self._settings.watch
        unsettled = any(job.state in (JobState.SETTLING, JobState.WAITING_MASK) for job in known.values())
        pause = min(watch.rescan_s, max(watch.settle_s / 4, LEAST_S)) if unsettled else watch.rescan_s
        self._next = now + pause
        self.scanned = True

    def _look(self, now: float) -> bool:
        """Scan; False where the inbox cannot be read: that must not look like an inbox that was emptied."""
        try:
            self._require_mount()
            self._scan = inbox.scan(self.root, self._settings.watch.ignore)
        except OSError as error:
            if not self.trouble:
                log.warning("inbox unreadable", error=str(error))
            self.trouble = str(error)
            self._next = now + min(self._settings.watch.rescan_s, 5)
            return False
        if self.trouble:
            log.info("inbox back", inbox=str(self.root))
            self.trouble = ""
        self._tracker.observe(self._scan.files, now)
        return True

    def _require_mount(self) -> None:
        """An inbox that was a mount point once and is none now is a share that went away."""
        mounted = os.path.ismount(self.root)
        fact = self._ledger.store.fact("inbox")
        known: dict[str, Any] = fact[0] if fact else {}
        before = known.get("path") == str(self.root) and known.get("mounted", False)
        if before and not mounted:
            raise OSError(f"{self.root}: was a mount point and is none now; mount it again")
        if mounted != before:
            self._ledger.store.set_fact(
                "inbox", {"path": str(self.root), "mounted": mounted}, at=self._ledger.now()
            )

    def _advance(self, job: Job, now: float, *, may_take: bool) -> int:
        """One step for a waiting job; returns by how much the number of ready ones changed."""
        if job.path not in self._scan.files:
            if self._scan.knows(job.path):
                self._vanished(job)
            return -(job.state == JobState.READY)
        if job.state == JobState.READY:
            if self.unchanged(job, self._scan):
                return 0
            detail = {"reason": "picture or mask changed while queued"}
            self._ledger.update(job, JobState.SETTLING, detail=detail)
            return -1
        if may_take and self._ledger.due(job) and self._paired(job, now):
            return self._take(job)
        return 0

    def unchanged(self, job: Job, scan: Scan | None = None) -> bool:
        """Whether the picture and its masks are still what was copied; without a scan, looks afresh."""
        taken = self._ledger.spool(job).files()
        scan = scan or inbox.scan_beside(self.root, job.path)
        names = {job.path, *scan.masks_of(job.path)}
        return set(taken) == names and all(scan.files.get(path) == taken[path] for path in names)

    def _paired(self, job: Job, now: float) -> bool:
        """Whether picture and masks stand still and no further mask is waited for."""
        watch = self._settings.watch
        masks = self._scan.masks_of(job.path)
        if any(not self._tracker.settled(path, now) for path in (job.path, *masks)):
            return False
        expects = "sidecar" in self._settings.regions.detectors and not masks
        if expects and self._tracker.still_for(job.path, now) < watch.settle_s + watch.mask_wait_s:
            if job.state != JobState.WAITING_MASK:
                self._ledger.update(job, JobState.WAITING_MASK)
            return False
        return True

    def _take(self, job: Job) -> int:
        """Copy picture and masks into the spool and make the job ready; 1 if that went well."""
        spool = self._ledger.spool(job)
        masks = self._scan.masks_of(job.path)
        try:
            spool.drop()
            spool.folder.mkdir(parents=True)
            picture = inbox.take(self.root, job.path, spool.input, self._scan.files[job.path])
            taken = {job.path: picture.signature}
            digests: list[tuple[bytes, str]] = []
            for index, mask in enumerate(masks):
                copy = inbox.take(self.root, mask, spool.mask(index), self._scan.files[mask])
                taken[mask] = copy.signature
                digests.append((mask, copy.sha256))
            spool.note(taken, digests)
        except InputError as error:
            if error.code != Code.CHANGED:  # the next scan sees a changed one as it is now
                self._ledger.postpone(job, error)
            return 0
        except OSError as error:
            self._ledger.postpone(job, error)
            return 0
        mask_sha = mask_digest([digest for _, digest in digests])
        config_sha = self._settings.sha256
        self._ledger.update(
            job,
            JobState.READY,
            input_sha256=picture.sha256,
            mask_sha256=mask_sha,
            config_sha256=config_sha,
            key=job_key(picture.sha256, mask_sha, config_sha),
            attempts=job.attempts if job.input_sha256 == picture.sha256 else 0,
            detail={"masks": [shown(mask) for mask in masks]} if masks else None,
        )
        return 1

    def _vanished(self, job: Job) -> None:
        """A waiting job whose file is gone: set aside just before a crash, or taken away by somebody."""
        failed, key = self._settings.folders.failed, job.key or ""
        places = (job.path, outbox.keyed(job.path, key))
        if job.input_sha256 and any(outbox.holds(failed, path, job.input_sha256) for path in places):
            self._ledger.rest(job, JobState.FAILED, detail={"reason": "found in failed after a restart"})
        else:
            self._ledger.rest(job, JobState.SKIPPED, detail={"reason": "left the inbox before it was worked"})

    def _mention_orphans(self, now: float) -> None:
        """Say once of a mask that has long stood there that no picture claims it."""
        long = self._settings.watch.settle_s + max(self._settings.watch.mask_wait_s, 60)
        orphans = {path for path in self._scan.orphans() if self._tracker.still_for(path, now) > long}
        for path in sorted(orphans - self._orphans):
            log.warning("mask without picture", path=shown(path))
        self._orphans = orphans
