"""What the daemon reports of itself every few seconds: to systemd, to `backfire status`, to `/healthz`."""

from __future__ import annotations

import os
import threading
from itertools import islice
from typing import Any

import structlog

from backfire.config import Settings
from backfire.files.inbox import Hints
from backfire.service import preflight
from backfire.service.health import Operations
from backfire.service.inbox import Inbox
from backfire.service.intake import Intake
from backfire.service.jobs import Jobs
from backfire.service.pool import Pool
from backfire.service.store.retention import History
from backfire.service.systemd import notify
from backfire.types import Job

log = structlog.get_logger()

EVERY_S = 2.0
REPEATED_S = 0.5
"""How long a heartbeat may wait to be sent, since another one follows soon."""
PRUNE_EVERY_S = 3600.0
TOLD_MOST = 20
"""The most unreadable folders, unused masks and pictures in work that are named."""


class Heartbeat:
    """Reports that the daemon is alive, and looks after what changes slowly.

    Attributes:
        unmounted: which folder's share is gone; empty where none is.
        disk_space: which folder's disk has too little room left; empty where none has.
        refused_config: why the configuration of the last reload was refused; empty if it was not.
    """

    def __init__(
        self,
        settings: Settings,
        jobs: Jobs,
        inbox: Inbox,
        intake: Intake,
        pool: Pool,
        operations: Operations,
        wake: threading.Event,
    ) -> None:
        self._settings, self._jobs, self._inbox, self._intake = settings, jobs, inbox, intake
        self._pool, self._operations, self._wake = pool, operations, wake
        self._history = History(jobs.store, jobs.now, jobs.monotonic)
        self._next = self._next_prune = self._next_moved = 0.0
        self.unmounted = self.disk_space = self.refused_config = ""
        self._config_read = jobs.now()
        self._progress: dict[int, tuple[str, int, int]] = {}

    def configure(self, settings: Settings) -> None:
        """Work by other settings from now on, and report at once."""
        self._settings = settings
        self._config_read = self._jobs.now()
        self._next = 0.0

    def beat(self, hints: Hints) -> None:
        """Report, if it is time to.

        Raises:
            StoreError: the job database cannot be used, or is not there any more.
        """
        now = self._jobs.monotonic()
        if now < self._next:
            return
        self._next = now + EVERY_S
        if not self._inbox.trouble and hints.renew():
            log.warning("watch_renewed", mode=hints.mode)
            self._wake.set()
        self._jobs.store.require_file()
        self._check_mounts()
        self._check_disk_space()
        if now >= self._next_prune:
            pruned = self._history.prune(self._settings.limits.history_days)
            # It prunes a little at a time, and the next heartbeat goes on if there is more.
            self._next_prune = now if pruned else now + PRUNE_EVERY_S
        fact = self.report()
        # After a long scan the next one is late on purpose.
        self._operations.pulse.rescan_s = max(self._settings.watch.rescan_s, self._intake.pause)
        alive = self._operations.beat(
            scan=self._intake.last_scan,
            heard=self._pool.heard,
            trouble=self._inbox.trouble,
            no_room=self.no_room,
            warnings=[*(f"{path}: {why}" for path, why in fact["unreadable"].items()), *self._warnings],
            workers=fact["nodes"],
        )
        working, waiting = fact["working"], fact["waiting"]
        status = f"STATUS={'working ' + working if working else 'watching'}, {waiting} waiting"
        notify(*["WATCHDOG=1"] * alive, status, patience_s=REPEATED_S)

    def report(self) -> dict[str, Any]:
        """Record for `status` and `explain` what the daemon does and what needs a person; returns the record.

        Raises:
            StoreError: it cannot be recorded.
        """
        names = [job.name for job in self._pool.running]
        more = [f"{len(names) - TOLD_MOST} more"] if len(names) > TOLD_MOST else []
        working = ", ".join([*names[:TOLD_MOST], *more]) or None
        unreadable, unused = self._inbox.unreadable, self._inbox.unused.reasons()
        fact: dict[str, Any] = {
            "pid": os.getpid(),
            "working": working,
            "waiting": len(self._jobs.active),
            "workers": len(self._pool.present),
            "nodes": self._pool.by_node,
            "trouble": "; ".join(
                # Where a share is gone, each step that needs it fails for the same reason.
                dict.fromkeys(filter(None, (self._inbox.trouble, self.no_room, *self._warnings)))
            ),
            "progress": {job.id: self._progress.get(job.id) for job in self._pool.running},
            "config": {"at": self._config_read, "refused": self.refused_config},
            "unreadable": dict(islice(unreadable.items(), TOLD_MOST)),
            "unused": dict(islice(unused.items(), TOLD_MOST)),
            "in_all": {"unreadable": len(unreadable), "unused": len(unused)},
        }
        self._jobs.store.set_fact("daemon", fact, at=self._jobs.now())
        return fact

    def working(self, job: Job, phase: str, done: int, total: int) -> None:
        """Note how far a worker is with a job: `done` of `total` steps of a phase."""
        if job.id not in self._progress:
            running = {other.id for other in self._pool.running}
            self._progress = {one: told for one, told in self._progress.items() if one in running}
        self._progress[job.id] = phase, done, total

    def progress(self) -> None:
        """Note that a long step makes progress, perhaps in another thread, until the next heartbeat."""
        now = self._jobs.monotonic()
        self._operations.pulse.moved(now)
        if now >= self._next_moved:
            self._next_moved = now + EVERY_S
            notify("WATCHDOG=1", patience_s=REPEATED_S)

    def waiting_for_database(self) -> None:
        """The loop does nothing but wait for the database."""
        notify("WATCHDOG=1", "STATUS=waiting for the database", patience_s=REPEATED_S)

    @property
    def no_room(self) -> str:
        """Why nothing new may be begun, as there is no place for results; empty while there is."""
        return self.unmounted or self.disk_space

    @property
    def _warnings(self) -> list[str]:
        """What the refusal of the last reload means, and why workers or steps cannot go on, as far as so."""
        refused = self.refused_config and (
            f"a reload was refused, and the former configuration stays in use: {self.refused_config}"
        )
        return [why for why in (refused, self._pool.trouble, self._jobs.trouble) if why]

    def _check_mounts(self) -> None:
        try:
            self._inbox.mounts.require_written()
        except OSError as error:
            if not self.unmounted:
                log.warning("share_gone", error=str(error))
            self.unmounted = str(error)
        else:
            if self.unmounted:
                log.info("share_back")
            self.unmounted = ""

    def _check_disk_space(self) -> None:
        missing = preflight.missing_space(self._settings)
        if missing and not self.disk_space:
            log.warning("disk_space_low", error=missing)
        elif self.disk_space and not missing:
            log.info("disk_space_restored")
        self.disk_space = missing
