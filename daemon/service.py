"""The daemon's loop: take in, dispatch to the worker, publish; and word to systemd.

One thread owns everything; the child works the pictures. Each step is written so that doing it
again after a crash is harmless (DESIGN invariants 1, 2 and 5).
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from daemon import detectors, editors, methods
from daemon.config import Settings
from daemon.domain import Job, JobState, shown
from daemon.errors import Code, ConfigError, require
from daemon.inbox import Hints
from daemon.intake import Intake
from daemon.ledger import Ledger
from daemon.operations import Operations
from daemon.publish import Publisher
from daemon.store import Store
from daemon.worker import Child, Order, Outcome, Progress

log = structlog.get_logger()

HEARTBEAT_S = 2.0
TICK_S = 0.5
DRAIN_S = 60.0
SILENCE_S = 900.0
"""A worker that says nothing for so long hangs; the longest silent step takes a minute on two cores."""
PAUSE_S = 30.0
"""After trouble that is not the picture's: no space for the spool, weights that do not load."""
PATIENCE = 3
"""How often in a row `once` sees a step put off before it leaves the job for later."""


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
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        on_progress: Callable[[Job, str, int, int], None] = lambda job, phase, done, total: None,
    ) -> None:
        _require_names(settings)
        self.settings = settings
        self._monotonic, self._on_progress = monotonic, on_progress
        _make_folders(settings)
        self._locks = [_locked(settings.folders.state / "lock"), _locked(settings.folders.inbox)]
        store = Store(settings.folders.state / "backfire.sqlite")
        self._ledger = Ledger(store, settings.folders.state / "spool", now)
        self._wake = threading.Event()
        self._intake = Intake(settings, self._ledger, self._wake, monotonic)
        self._publisher = Publisher(settings, self._ledger, self._intake)
        self._operations = Operations(settings, self._ledger, silence_s=SILENCE_S, monotonic=monotonic)
        self._child: Child | None = None
        self._running: Job | None = None
        self._paused_until = self._next_beat = 0.0
        self._pauses = 0
        self._stopping = False

    def stop(self) -> None:
        """Ask the loop to end: no new job, the running one is given back. Safe in a signal handler."""
        # A plain flag: an Event's lock may be held by the very code the signal interrupted.
        self._stopping = True

    def run(self, *, until_idle: bool = False) -> Summary:
        """Work until stopped, or until nothing waits any more but what cannot go on now."""
        self._ledger.load()
        hints = Hints(self.settings.folders.inbox, self.settings.watch.mode, self._wake)
        if hints.trouble:
            log.warning("polling", reason=hints.trouble, every_s=self.settings.watch.rescan_s)
        log.info("ready", inbox=str(self._intake.root), mode=hints.mode, waiting=len(self._ledger.jobs))
        self._operations.start()
        notify("READY=1", "STATUS=watching")
        try:
            self._resume()
            while not self._stopping and not (until_idle and self._idle()):
                self._intake.step()
                self._publisher.step()
                self._dispatch()
                self._listen()
                self._beat()
        finally:
            hints.close()
            self._drain()
        return Summary(self._ledger.published, self._ledger.failed, len(self._ledger.jobs))

    def close(self) -> None:
        """Give up the store and the locks."""
        self._operations.close()
        self._ledger.store.close()
        for lock in self._locks:
            if lock is not None:
                os.close(lock)

    def _idle(self) -> bool:
        """Whether nothing is left to do, or only what was put off again and again."""
        if self._running is not None:
            return False
        if self._intake.trouble or self._pauses >= PATIENCE:
            return True
        stuck = all(self._ledger.troubles.get(job.id, 0) >= PATIENCE for job in self._ledger.jobs.values())
        return self._intake.scanned and stuck and not self._wake.is_set()

    def _resume(self) -> None:
        """Put the jobs a crash left half done where they can go on."""
        for job in list(self._ledger.jobs.values()):
            spool = self._ledger.spool(job)
            if job.state == JobState.RUNNING:
                finished = Outcome.read(spool.folder)
                if finished is not None:
                    self._conclude(job, finished)
                    continue
                detail = {"reason": "the daemon ended in mid-job"}
                job = self._ledger.update(job, JobState.READY, detail=detail)
            if job.state == JobState.READY:
                if job.config_sha256 != self.settings.sha256:
                    detail = {"reason": "the configuration changed"}
                    self._ledger.update(job, JobState.SETTLING, detail=detail)
                elif not spool.files():
                    self._ledger.update(job, JobState.SETTLING, detail={"reason": "the private copy is gone"})

    # The child

    def _dispatch(self) -> None:
        if self._running is not None or self._stopping or self._monotonic() < self._paused_until:
            return
        job = self._ledger.store.next_ready(at=self._ledger.now())
        if job is None:
            return
        if job.attempts >= self.settings.protect.attempts:
            message = f"{job.name}: the worker died {job.attempts} times on this picture; it is set aside"
            self._publisher.fail(job, Code.WORKER_DIED, message)
            return
        if self._child is None:
            self._child = Child()
        job = self._ledger.remember(self._ledger.store.start_attempt(job.id, at=self._ledger.now()))
        spool = self._ledger.spool(job)
        (spool.folder / "result.json").unlink(missing_ok=True)
        masks = tuple((shown(path), spool.mask(i).name) for i, (path, _) in enumerate(spool.masks()))
        self._running = job
        try:
            self._child.send(Order(job.id, spool.folder, job.name, masks, self.settings))
        except OSError:
            self._died(job)

    def _listen(self) -> None:
        """Hear the child out for a moment; this is where the loop waits."""
        if self._child is None or self._running is None:
            waiting = self._ledger.jobs.values()
            if not any(job.state == JobState.READY and self._ledger.due(job) for job in waiting) or (
                self._monotonic() < self._paused_until
            ):
                self._wake.wait(TICK_S)
                time.sleep(0.05)  # let a burst of events gather
            return
        job = self._running
        try:
            messages = self._child.receive(TICK_S)
        except EOFError:
            self._died(job)
            return
        for message in messages:
            if isinstance(message, Progress):
                self._on_progress(job, message.phase, message.done, message.total)
            else:
                self._running = None
                self._conclude(job, message)
        if self._running is not None and time.monotonic() - self._child.heard > SILENCE_S:
            log.error("worker hangs", path=job.name, silent_s=SILENCE_S)
            self._child.kill()
            self._died(job)

    def _died(self, job: Job) -> None:
        how = "never started"
        if self._child is not None:
            how = self._child.exitcode()
            self._child.kill()
        self._child = self._running = None
        finished = Outcome.read(self._ledger.spool(job).folder)
        if finished is not None:
            self._conclude(job, finished)
            return
        log.error("worker died", path=job.name, how=how, attempt=job.attempts)
        self._ledger.update(job, JobState.READY, detail={"reason": f"worker died: {how}"})

    def _conclude(self, job: Job, outcome: Outcome) -> None:
        """What the child's outcome means for the job."""
        store = self._ledger.store
        if outcome.stopped:
            self._ledger.remember(store.give_back(job.id, at=self._ledger.now()))
        elif outcome.transient:
            detail = {"code": outcome.code, "reason": outcome.message}
            self._ledger.remember(store.give_back(job.id, at=self._ledger.now(), detail=detail))
            self._pauses += 1
            self._paused_until = self._monotonic() + (PAUSE_S if self._pauses > PATIENCE else 2.0)
            log.error("paused", path=job.name, code=outcome.code, error=outcome.message)
        elif outcome.code is None:
            self._pauses = 0
            self._publisher.conclude(job, outcome)
        elif outcome.retryable and job.attempts < self.settings.protect.attempts:
            wait = 5.0 * 4 ** (job.attempts - 1)
            log.warning("retry", path=job.name, code=outcome.code, error=outcome.message, in_s=wait)
            detail = {"code": outcome.code, "reason": outcome.message}
            self._ledger.update(job, JobState.READY, not_before=self._ledger.now() + wait, detail=detail)
        else:
            self._publisher.fail(job, Code(outcome.code), outcome.message)

    def _drain(self) -> None:
        """Give the running job back without burning its attempt, and end the child."""
        if self._child is None:
            return
        notify("STOPPING=1", f"EXTEND_TIMEOUT_USEC={int(DRAIN_S * 1e6)}")
        job, self._running = self._running, None
        outcome = self._child.stop(DRAIN_S if job else 0)
        self._child = None
        if job is not None:
            finished = Outcome.read(self._ledger.spool(job).folder)
            self._conclude(job, outcome or finished or Outcome(job.id, stopped=True))
            log.info("drained", path=job.name)

    def _beat(self) -> None:
        """Tell systemd and `backfire status` that scanner and worker are alive."""
        now = self._monotonic()
        if now < self._next_beat:
            return
        self._next_beat = now + HEARTBEAT_S
        working, waiting = self._running.name if self._running else None, len(self._ledger.jobs)
        fact = {"pid": os.getpid(), "working": working, "waiting": waiting, "trouble": self._intake.trouble}
        self._ledger.store.set_fact("daemon", fact, at=self._ledger.now())
        heard = self._child.heard if self._child and self._running else None
        alive = self._operations.beat(scan=self._intake.last_scan, heard=heard, trouble=self._intake.trouble)
        status = f"STATUS={'working ' + working if working else 'watching'}, {waiting} waiting"
        notify(*["WATCHDOG=1"] * alive, status)


def _require_names(settings: Settings) -> None:
    """A name that no detector, editor or method has is an error at start, not in the first job."""
    for name in settings.regions.detectors:
        require(name, detectors.NAMES, "regions.detectors")
    require(settings.protect.method, methods.NAMES, "protect.method")
    editors.require_known(settings)


def _make_folders(settings: Settings) -> None:
    known = (settings.folders.state / "backfire.sqlite").exists()
    for name, folder in settings.folders.named().items():
        if name == "inbox" and known and not folder.exists():
            message = (
                f"inbox {folder}: was there before and is gone; mount the share or make the folder again"
            )
            raise ConfigError(message)
        try:
            folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        except OSError as error:
            remedy = f"make it, or give uid {os.geteuid()} access"
            raise ConfigError(f"{name} {folder}: cannot be made ({error.strerror}); {remedy}") from error


def _locked(path: Path) -> int | None:
    """A lock that ends with the process, on a file or folder; None where the file system has no locks."""
    flags = os.O_RDONLY if path.is_dir() else os.O_CREAT | os.O_RDWR
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be opened ({error.strerror}); give uid {os.geteuid()} access"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EACCES, errno.EAGAIN):
            message = f"{path}: another backfire daemon works here; stop it, or give this one its own folders"
            raise ConfigError(message) from None
        return None
    return descriptor


def notify(*lines: str) -> None:
    """Tell systemd, where it started us (sd_notify: one datagram to $NOTIFY_SOCKET)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        connection.sendto("\n".join(lines).replace("\0", "").encode("utf-8", "replace"), address)
