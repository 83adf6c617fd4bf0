"""The daemon's loop: take in, dispatch to the workers, publish.

One thread does everything but work on pictures, which the workers' processes do. Each step is written so that
doing it again after a crash is harmless: nothing is lost, and nothing is published twice.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import structlog

from backfire.config import Settings
from backfire.errors import ConfigError, StoreError
from backfire.files import durable, outbox
from backfire.files.inbox import Hints
from backfire.service import preflight
from backfire.service.dispatcher import Dispatcher, OnProgress
from backfire.service.health import Operations
from backfire.service.heartbeat import Heartbeat
from backfire.service.inbox import Inbox
from backfire.service.intake import Intake
from backfire.service.jobs import RETRY_MAX_S, STUCK_AFTER, InternalError, Jobs
from backfire.service.pool import Pool
from backfire.service.publisher import Publisher
from backfire.service.retry_policy import RetryPolicy
from backfire.service.store.store import Store
from backfire.service.systemd import notify
from backfire.service.worker.cluster import Cluster
from backfire.service.worker.local import Child, Devices
from backfire.service.worker.protocol import WorkerProcess
from backfire.types import Job

log = structlog.get_logger()

TICK_S = 0.5
BURST_S = 0.05
"""The wait after an event, so that one scan serves a burst of them."""
STORE_PAUSE_S = 5.0
"""The time between two tries to use a database that cannot be used."""
FAILED_ROUNDS_MAX = 10
"""How many rounds in a row may fail because of one job, or of the loop itself, before the daemon ends."""


@dataclass(frozen=True)
class Summary:
    """How many jobs were published, held for review, failed and left waiting, how many folders could not be
    read, and why nothing could be done in one of its own, empty if in all."""

    published: int = 0
    held: int = 0
    failed: int = 0
    left: int = 0
    unreadable: int = 0
    trouble: str = ""


class Service:
    """The daemon over one configuration.

    Args:
        settings: the configuration.
        load: reads the configuration again, for `reload`.
        monotonic: the clock by which it waits.
        now: wall clock for records, Unix seconds.
        on_progress: called as (job, phase, done, total) while a worker works.
        start_worker: starts a worker's process that may allocate so many megabytes; 0 for no limit.

    Attributes:
        settings: the configuration in force.
        load: reads the configuration again.
        jobs, inbox, pool: what the stages share.
        intake, dispatcher, policy, publisher: the stages, in the order of a picture's trip.
        operations, heartbeat: what an operator sees of them.

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
        on_progress: OnProgress = lambda job, phase, done, total: None,
        start_worker: Callable[[int], WorkerProcess] = Child,
    ) -> None:
        preflight.require_names(settings)
        preflight.require_signer(settings)
        preflight.require_cluster(settings)
        self.settings = settings
        self.load = load or (lambda: settings)
        preflight.require_database(settings)
        preflight.make_folders(settings)
        self._lock = preflight.lock(settings.folders.state / "lock")
        self._inbox_lock = preflight.InboxLock(settings.folders.inbox)
        store = Store(settings.folders.database)
        outbox.hide_as(_own_digits(store, now()))
        self._wake = threading.Event()
        self.jobs = Jobs(store, settings.folders.spool, now, monotonic)
        self.inbox = Inbox(settings, self.jobs, monotonic, self._inbox_lock.renew)
        self.intake = Intake(settings, self.jobs, self.inbox, self._wake, monotonic)
        backend = (Cluster if settings.cluster.address else Devices)(settings, start_worker)
        self.pool = Pool(settings, monotonic, backend)
        self.policy = RetryPolicy(settings, self.jobs, self.inbox, self.pool)
        self._on_progress = on_progress
        self.dispatcher = Dispatcher(settings, self.jobs, self.pool, self.policy, self._progressed)
        self.publisher = Publisher(settings, self.jobs, self.inbox)
        self.operations = Operations(settings, self.jobs, monotonic=monotonic)
        self.heartbeat = Heartbeat(
            settings, self.jobs, self.inbox, self.intake, self.pool, self.operations, self._wake
        )
        self._resuming: bool | None = True
        """Whether running jobs are to be taken up as after a crash, or as after a failure of the store; None
        if they are not."""
        self._failed_rounds: Counter[int | None] = Counter()
        """Rounds since the last good one that failed because of a job, by its id, or, None, of themselves."""
        # Plain flags and no Event, whose lock may be held by the very code that a signal interrupted.
        self._stopping = self._reloading = False

    def stop(self) -> None:
        """Ask the loop to end and to give running jobs back. Safe in a signal handler."""
        self._stopping = True

    def reload(self) -> None:
        """Ask the loop to read the configuration again. Safe in a signal handler."""
        self._reloading = True

    def run(self, *, until_idle: bool = False) -> Summary:
        """Work until stopped, or until nothing waits any more but what cannot go on now."""
        self.jobs.load()
        hints = Hints(self.settings.folders.inbox, self.settings.watch.mode, self._wake)
        self._log_polling(hints)
        log.info("ready", inbox=str(self.inbox.root), mode=hints.mode, waiting=len(self.jobs.active))
        self.operations.start()
        notify("READY=1", "STATUS=watching")
        stop_listening = durable.on_heartbeat(self.heartbeat.progress)
        try:
            while not self._stopping and not (until_idle and self._is_idle()):
                self.round(hints)
            if until_idle:
                self.inbox.unused.tell_all()
                with suppress(StoreError):
                    self.heartbeat.report()
        finally:
            hints.close()
            notify("STOPPING=1")
            if self._stopping:
                log.info("stopping")
            self._end()
            stop_listening()
        jobs, unreadable = self.jobs, len(self.inbox.unreadable)
        trouble = self.inbox.trouble or self.heartbeat.unmounted
        return Summary(jobs.published, jobs.held, jobs.failed, len(jobs.active), unreadable, trouble)

    def close(self) -> None:
        """Give up the store and the locks."""
        self.operations.close()
        self.pool.close()
        self.jobs.store.close()
        self._inbox_lock.close()
        if self._lock is not None:
            os.close(self._lock)

    # A round, and what may go wrong in it

    def round(self, hints: Hints) -> None:
        """One round of the loop, whatever happens in it.

        Raises:
            StoreError: the database needs a person.
            Exception: the daemon itself fails round after round; the service manager restarts it.
        """
        try:
            if self._resuming is not None:
                self.dispatcher.resume(crashed=self._resuming)
                self._resuming = None
            self.step(hints)
        except StoreError as error:
            if not error.transient:
                raise
            self._resuming = bool(self._resuming)
            self._await_database(error)
        except InternalError as error:
            self._recover(error.__cause__ or error, error.job)
        except Exception as error:
            self._recover(error, None)
            self._wake.wait(TICK_S)
        else:
            self._failed_rounds.clear()

    def step(self, hints: Hints) -> None:
        """Whatever can go on goes one step on; then wait for the workers, or for a moment."""
        if self._reloading:
            self._reloading = False
            self._reconfigure(hints)
        room = not self.heartbeat.no_room
        self.intake.step(may_copy=room, ahead=self.pool.pace)
        began = room and self.dispatcher.step()
        self.jobs.take_up_decided()
        placed = self.publisher.step()  # while the workers work the next jobs
        if self.pool.running:
            self.dispatcher.listen(TICK_S)
        elif not (began or placed or self.intake.busy):
            self._wake.wait(TICK_S)
            time.sleep(BURST_S)
        self.heartbeat.beat(hints)

    def _recover(self, error: BaseException, job: Job | None) -> None:
        """Load the jobs as a restart would, and let an internal error cost only the job that it met."""
        culprit = job.id if job else None
        self._failed_rounds[culprit] += 1
        if self._failed_rounds[culprit] > FAILED_ROUNDS_MAX:
            raise error
        log.error("internal_error", path=job.name if job else None, exc_info=error)
        self._resuming = bool(self._resuming)
        try:
            self.jobs.load()
            if job is not None and (job := self.jobs.active.get(job.path)) is not None:
                self.dispatcher.let_go(job)
                if isinstance(error, OSError):  # it says nothing against the picture
                    self.jobs.retry_later(job, error)
                else:
                    self.policy.internal_error(job, error, is_out=self.publisher.is_out(job))
        except StoreError as failure:
            if not failure.transient:
                raise
            self._await_database(failure)
        except Exception as second:  # what handles an internal error may meet one too
            log.error("internal_error", path=job.name if job else None, exc_info=second)
            if job is not None:
                self.jobs.wait(job, RETRY_MAX_S)

    def _await_database(self, error: StoreError) -> None:
        """Wait until the database can be used, then load the jobs: what failed was rolled back."""
        log.error("database_unavailable", error=str(error), again_in_s=STORE_PAUSE_S)
        deadline = time.monotonic() + STORE_PAUSE_S
        while not self._stopping:
            self.heartbeat.waiting_for_database()
            time.sleep(min(TICK_S, STORE_PAUSE_S))
            if time.monotonic() < deadline:
                continue
            try:
                self.jobs.load()
            except StoreError as again:
                if not again.transient:
                    raise
                deadline = time.monotonic() + STORE_PAUSE_S
            else:
                return

    def _progressed(self, job: Job, phase: str, done: int, total: int) -> None:
        self.heartbeat.working(job, phase, done, total)
        self._on_progress(job, phase, done, total)

    # Ending and reloading

    def _is_idle(self) -> bool:
        """Whether nothing is left to do but what fails again and again, or waits for somebody."""
        if self.pool.running:
            return False
        if self.inbox.trouble or self.heartbeat.no_room or self.pool.pauses >= STUCK_AFTER:
            return True
        inbox = self.inbox
        stuck = all(
            self.jobs.is_stuck(job) or inbox.is_out_of_reach(job) or inbox.is_left_waiting(job)
            for job in self.jobs.active.values()
        )
        return self.intake.scanned and stuck and not self._wake.is_set()

    def _end(self) -> None:
        """Give back what is being worked, and publish what is finished."""
        for step in (self.dispatcher.drain, self.publisher.step):
            try:
                step()
            except InternalError as error:
                log.error("internal_error", path=error.job.name, exc_info=error.__cause__)

    def _reconfigure(self, hints: Hints) -> None:
        """Use the new configuration if all of it is good, else keep the old one and log why.

        Running jobs end under the settings with which they were started; their receipts name them.
        """
        notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            settings = self.load()
            preflight.require_names(settings)
            preflight.require_signer(settings)
            preflight.require_cluster(settings)
            if (settings.cluster.address is None) != (self.settings.cluster.address is None):
                raise ConfigError(
                    "cluster.address: the daemon cannot go from this machine to a cluster, or back, while it "
                    "runs; restart it"
                )
            if settings.folders != self.settings.folders:
                raise ConfigError("folders: cannot change while the daemon runs; restart it")
        except ConfigError as error:
            self.heartbeat.refused_config = str(error)
            log.error("configuration_refused", error=str(error), kept=self.settings.sha256[:12])
        else:
            self.heartbeat.refused_config = ""
            self._configure(settings)
            if hints.watch(settings.watch.mode):
                self._log_polling(hints)
            log.info("configuration_reloaded", sha256=settings.sha256[:12])
        self.heartbeat.configure(self.settings)
        notify("READY=1")
        # This comes last because the store may be busy; all parts have the new settings by then.
        self.dispatcher.reconsider()

    def _configure(self, settings: Settings) -> None:
        self.settings = settings
        for part in (self.inbox, self.intake, self.pool, self.policy, self.dispatcher):
            part.configure(settings)
        self.operations.configure(settings)

    def _log_polling(self, hints: Hints) -> None:
        if hints.trouble:
            log.warning("polling", reason=hints.trouble, every_s=self.settings.watch.rescan_s)


def _own_digits(store: Store, now: float) -> str:
    """Eight random hex digits that the job database keeps; see `outbox.hide_as`."""
    if (known := store.fact("own_digits")) is None:
        digits = secrets.token_hex(4)
        store.set_fact("own_digits", digits, at=now)
        return digits
    return str(known[0])
