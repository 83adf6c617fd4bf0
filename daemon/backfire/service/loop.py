"""The daemon's loop: take in, dispatch to the worker, publish; and word to systemd.

One thread owns everything; the children work the pictures. Each step is written so that doing it
again after a crash is harmless (DESIGN invariants 1, 2 and 5). Longer than 300 lines so that a round, and all
that may go wrong in it, is read in one place.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from backfire.config import Settings
from backfire.errors import ConfigError, StoreError
from backfire.files import durable
from backfire.files.inbox import Hints
from backfire.service import preflight
from backfire.service.dispatcher import PATIENCE, Dispatcher
from backfire.service.health import Operations
from backfire.service.intake import Intake
from backfire.service.jobs import LONGEST_S, Ledger, Unforeseen
from backfire.service.publisher import Publisher
from backfire.service.store.retention import History
from backfire.service.store.store import Store
from backfire.service.systemd import notify
from backfire.types import Job

log = structlog.get_logger()

HEARTBEAT_S = 2.0
BEAT_PATIENCE_S = 0.5
"""A heartbeat that is not heard is followed by another."""
TICK_S = 0.5
BURST_S = 0.05
"""So that one scan serves a burst of events."""
STORE_PAUSE_S = 5.0
PRUNE_S = 3600.0
BEARABLE = 10
"""Rounds without a good one between that may fail of one job, or of themselves, before the daemon ends."""


@dataclass(frozen=True)
class Summary:
    """How many jobs came to rest, and how many `once` left waiting."""

    published: int = 0
    failed: int = 0
    left: int = 0


class Service:
    """The daemon over one configuration.

    Args:
        settings: the configuration.
        load: reads the configuration again, for `reload`.
        monotonic: the settling clock.
        now: wall clock for records, Unix seconds.
        on_progress: called as (job, phase, done, total) while the child works.

    Raises:
        ConfigError: an unknown name, a folder that cannot be made, another daemon at work here.
        StoreError: the database cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        load: Callable[[], Settings] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        on_progress: Callable[[Job, str, int, int], None] = lambda job, phase, done, total: None,
    ) -> None:
        preflight.require_names(settings)
        self.settings = settings
        self._load = load or (lambda: settings)
        self._monotonic = monotonic
        preflight.make_folders(settings)
        self._locks = [
            preflight.lock(settings.folders.state / "lock"),
            preflight.lock(settings.folders.inbox),
        ]
        store = Store(settings.folders.database)
        self._ledger = Ledger(store, settings.folders.state / "spool", now, monotonic)
        self._history = History(store, now, monotonic)
        self._wake = threading.Event()
        self._intake = Intake(settings, self._ledger, self._wake, monotonic)
        self._publisher = Publisher(settings, self._ledger, self._intake)
        self._dispatcher = Dispatcher(
            settings, self._ledger, self._intake, self._publisher, monotonic, on_progress
        )
        self._operations = Operations(
            settings, self._ledger, silence_s=settings.limits.silence_s, monotonic=monotonic
        )
        self._next_beat = self._next_prune = self._next_sign = 0.0
        self._resuming: bool | None = True
        """Whether jobs are to be taken up as after a crash, or as after a fault of the store; None if not."""
        self._faults: Counter[int | None] = Counter()
        """Rounds since the last good one that failed of a job, or, None, of themselves."""
        self._want_of_space = self._refused_config = ""
        # Plain flags: an Event's lock may be held by the very code that a signal interrupted.
        self._stopping = self._reloading = False

    def stop(self) -> None:
        """Ask the loop to end: no new job, the running one is given back. Safe in a signal handler."""
        self._stopping = True

    def reload(self) -> None:
        """Ask the loop to read the configuration again. Safe in a signal handler."""
        self._reloading = True

    def run(self, *, until_idle: bool = False) -> Summary:
        """Work until stopped, or until nothing waits any more but what cannot go on now."""
        self._ledger.load()
        hints = Hints(self.settings.folders.inbox, self.settings.watch.mode, self._wake)
        self._tell_mode(hints)
        log.info("ready", inbox=str(self._intake.root), mode=hints.mode, waiting=len(self._ledger.jobs))
        self._operations.start()
        notify("READY=1", "STATUS=watching")
        deafen = durable.on_heartbeat(self._alive)
        try:
            while not self._stopping and not (until_idle and self._idle()):
                self.go_on(hints)
        finally:
            hints.close()
            notify("STOPPING=1")
            self._end()
            deafen()
        return Summary(self._ledger.published, self._ledger.failed, len(self._ledger.jobs))

    def _end(self) -> None:
        """Give back what is being worked, and publish what is finished as far as no fault is in the way."""
        for step in (self._dispatcher.drain, self._publisher.step):
            try:
                step()
            except Unforeseen as fault:
                log.error("unforeseen", path=fault.job.name, exc_info=fault.__cause__)

    def go_on(self, hints: Hints) -> None:
        """One round, whatever happens in it.

        Raises:
            StoreError: the database needs a person.
            Exception: the daemon itself fails round after round; the service manager restarts it.
        """
        try:
            if self._resuming is not None:
                self._dispatcher.resume(crashed=self._resuming)
                self._resuming = None
            self._turn(hints)
        except StoreError as error:
            if not error.transient:
                raise
            self._resuming = bool(self._resuming)
            self._outlast(error)
        except Unforeseen as fault:
            self._bear(fault.__cause__ or fault, fault.job)
        except Exception as error:
            self._bear(error, None)
            self._wake.wait(TICK_S)
        else:
            self._faults.clear()

    def _bear(self, error: BaseException, job: Job | None) -> None:
        """Take up the books as a restart would, and let a fault of ours cost the one job that it met."""
        culprit = job.id if job else None
        self._faults[culprit] += 1
        if self._faults[culprit] > BEARABLE:
            raise error
        log.error("unforeseen", path=job.name if job else None, exc_info=error)
        self._resuming = bool(self._resuming)
        try:
            self._ledger.load()
            if job is not None and (job := self._ledger.jobs.get(job.path)) is not None:
                self._dispatcher.let_go(job)
                self._publisher.bear(job, error)
        except StoreError as trouble:
            if not trouble.transient:
                raise
            self._outlast(trouble)
        except Exception as worse:  # the books of a fault may have one too
            log.error("unforeseen", path=job.name if job else None, exc_info=worse)
            if job is not None:
                self._ledger.put_off(job, LONGEST_S)

    def _turn(self, hints: Hints) -> None:
        """One round: whatever can go on goes one step on; waits for the child or for a moment."""
        if self._reloading:
            self._reloading = False
            self._reconfigure(hints)
        room = not self._want_of_space
        self._intake.step(may_take=room, ahead=self._dispatcher.pace)
        began = room and self._dispatcher.step()
        placed = self._publisher.step()  # while the child works the next job
        if self._dispatcher.running:
            self._dispatcher.listen(TICK_S)
        elif not (began or placed or self._intake.busy):
            self._wake.wait(TICK_S)
            time.sleep(BURST_S)
        self._beat(hints)

    def _outlast(self, error: StoreError) -> None:
        """Wait, then take up the store as a restart would: what failed was rolled back."""
        log.error("database unusable", error=str(error), again_in_s=STORE_PAUSE_S)
        deadline = time.monotonic() + STORE_PAUSE_S
        while not self._stopping:
            notify("WATCHDOG=1", "STATUS=waiting for the database", patience_s=BEAT_PATIENCE_S)
            time.sleep(min(TICK_S, STORE_PAUSE_S))
            if time.monotonic() < deadline:
                continue
            try:
                self._ledger.load()
            except StoreError as again:
                if not again.transient:
                    raise
                deadline = time.monotonic() + STORE_PAUSE_S
            else:
                return

    def close(self) -> None:
        """Give up the store and the locks."""
        self._operations.close()
        self._ledger.store.close()
        for lock in self._locks:
            if lock is not None:
                os.close(lock)

    def _idle(self) -> bool:
        """Whether nothing is left to do, or only what was put off again and again."""
        if self._dispatcher.running:
            return False
        if self._intake.trouble or self._want_of_space or self._dispatcher.pauses >= PATIENCE:
            return True
        stuck = all(
            self._ledger.troubles.get(job.id, 0) >= PATIENCE or self._dispatcher.is_stuck(job)
            for job in self._ledger.jobs.values()
        )
        return self._intake.scanned and stuck and not self._wake.is_set()

    def _reconfigure(self, hints: Hints) -> None:
        """Swap the configuration if all of it is good, else keep the old one and say so.

        The running job ends under the settings it was started with; its receipt names them.
        """
        notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            settings = self._load()
            preflight.require_names(settings)
            if settings.folders != self.settings.folders:
                raise ConfigError("folders: cannot change while the daemon runs; restart it")
        except ConfigError as error:
            self._refused_config = str(error)
            log.error("configuration refused", error=str(error), kept=self.settings.sha256[:12])
        else:
            self._refused_config = ""
            self.settings = settings
            for part in (self._intake, self._publisher, self._dispatcher):
                part.configure(settings)
            self._operations.configure(settings)
            self._dispatcher.reconsider()
            if hints.watch(settings.watch.mode):
                self._tell_mode(hints)
            log.info("configuration reloaded", sha256=settings.sha256[:12])
        self._next_beat = 0.0
        notify("READY=1")

    def _tell_mode(self, hints: Hints) -> None:
        if hints.trouble:
            log.warning("polling", reason=hints.trouble, every_s=self.settings.watch.rescan_s)

    def _beat(self, hints: Hints) -> None:
        """Look after what changes slowly, and tell systemd and `backfire status` that we are alive."""
        now = self._monotonic()
        if now < self._next_beat:
            return
        self._next_beat = now + HEARTBEAT_S
        if not self._intake.trouble and hints.renew():
            log.warning("watching anew", mode=hints.mode)
            self._wake.set()
        want = preflight.want_of_space(self.settings)
        if bool(want) != bool(self._want_of_space):
            log.warning("no space", error=want) if want else log.info("space again")
        self._want_of_space = want
        if now >= self._next_prune:
            self._prune(now)
        waiting = len(self._ledger.jobs)
        working = ", ".join(job.name for job in self._dispatcher.running) or None
        refused = self._refused_config and f"new configuration refused: {self._refused_config}"
        fact = {
            "pid": os.getpid(),
            "working": working,
            "waiting": waiting,
            "trouble": "; ".join(filter(None, (self._intake.trouble, want, refused))),
        }
        self._ledger.store.set_fact("daemon", fact, at=self._ledger.now())
        # After a scan that took long the next one is late on purpose.
        self._operations.pulse.rescan_s = max(self.settings.watch.rescan_s, self._intake.pause)
        alive = self._operations.beat(
            scan=self._intake.last_scan, heard=self._dispatcher.heard, trouble=self._intake.trouble
        )
        status = f"STATUS={'working ' + working if working else 'watching'}, {waiting} waiting"
        notify(*["WATCHDOG=1"] * alive, status, patience_s=BEAT_PATIENCE_S)

    def _alive(self) -> None:
        """A long step moves on, perhaps in another thread: for once the loop cannot say so itself."""
        now = self._monotonic()
        self._operations.pulse.moved(now)
        if now >= self._next_sign:
            self._next_sign = now + HEARTBEAT_S
            notify("WATCHDOG=1", patience_s=BEAT_PATIENCE_S)

    def _prune(self, now: float) -> None:
        pruned = self._history.prune(self.settings.limits.history_days)
        # A little at a time: the next heartbeat goes on where there is more.
        self._next_prune = now if pruned else now + PRUNE_S
