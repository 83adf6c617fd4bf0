"""The daemon's loop: scan, settle, take in, dispatch, publish, archive; and word to systemd.

One thread owns everything; the child works the pictures. Each step is written so that doing it
again after a crash is harmless: names come from the job's key, the same content is adopted,
and the order is publish, record, archive (DESIGN invariants 1, 2 and 5).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from daemon import detectors, editors, inbox, methods, outbox
from daemon.config import Settings
from daemon.domain import Job, JobState, Verdict, job_key, mask_digest, shown
from daemon.errors import Code, ConfigError, InputError, PublishError, require
from daemon.inbox import Hints, Signature, Tracker
from daemon.store import Store
from daemon.worker import Child, Order, Outcome, Progress

log = structlog.get_logger()

HEARTBEAT_S = 2.0
TICK_S = 0.5
DRAIN_S = 60.0


@dataclass(frozen=True)
class Spool:
    """A job's private folder below `state/spool`, and what was taken into it."""

    folder: Path

    def write(self, taken: dict[bytes, Signature], masks: list[tuple[bytes, str]]) -> None:
        """Note which files, in which condition, the copies were made of; masks as (path, digest)."""
        note = {
            "files": [[os.fsdecode(path), list(signature)] for path, signature in taken.items()],
            "masks": [[os.fsdecode(path), digest] for path, digest in masks],
        }
        (self.folder / "taken.json").write_text(json.dumps(note))

    def _note(self) -> dict[str, Any]:
        try:
            note: dict[str, Any] = json.loads((self.folder / "taken.json").read_text())
        except (OSError, ValueError):
            return {"files": [], "masks": []}
        return note

    def files(self) -> dict[bytes, Signature]:
        """The signatures of the files that were copied; empty if there is no complete copy."""
        return {os.fsencode(path): Signature(*values) for path, values in self._note()["files"]}

    def masks(self) -> list[tuple[bytes, str]]:
        """(path in the inbox, SHA-256) of the masks taken; mask i lies in the folder as `mask-i`."""
        return [(os.fsencode(path), digest) for path, digest in self._note()["masks"]]

    def drop(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True)
class Summary:
    """How many jobs came to rest while the service ran."""

    published: int = 0
    failed: int = 0


class Service:
    """The daemon over one configuration.

    Args:
        settings: the configuration.
        monotonic: the settling clock.
        now: wall clock for records, Unix seconds.
        on_progress: called as (job, phase, done, total) while the child works.

    Raises:
        ConfigError: another daemon works in the same state folder.
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
        self._monotonic, self._now, self._on_progress = monotonic, now, on_progress
        folders = settings.folders
        for folder in folders.named().values():
            folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._lock = _locked(folders.state)
        self._store = Store(folders.state / "backfire.sqlite")
        self._tracker = Tracker(settings.watch.settle_s)
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._child: Child | None = None
        self._running: Job | None = None
        self._jobs: dict[bytes, Job] = {job.path: job for job in self._store.active()}
        self._present: dict[bytes, Signature] = {}
        self._retry_at: dict[int, float] = {}
        self._orphans: set[bytes] = set()
        self._published = self._failed = 0
        self._next_scan = self._next_beat = 0.0
        self._scanned = False

    def stop(self) -> None:
        """Ask the loop to end: no new job, the running one is given back. Safe in a signal handler."""
        self._stopping.set()
        self._wake.set()

    def run(self, *, until_idle: bool = False) -> Summary:
        """Work until stopped, or until nothing in the inbox waits any more."""
        hints = Hints(self.settings.folders.inbox, self.settings.watch.mode, self._wake)
        if hints.trouble:
            log.warning("polling", reason=hints.trouble, every_s=self.settings.watch.rescan_s)
        log.info("ready", inbox=str(self.settings.folders.inbox), mode=hints.mode, waiting=len(self._jobs))
        notify("READY=1", "STATUS=watching")
        try:
            self._resume()
            while not self._stopping.is_set():
                self._step()
                if until_idle and self._idle():
                    break
        finally:
            hints.close()
            self._drain()
        return Summary(self._published, self._failed)

    def close(self) -> None:
        """Give up the store and the lock."""
        self._store.close()
        os.close(self._lock)

    # One turn of the loop

    def _step(self) -> None:
        if self._monotonic() >= self._next_scan or self._wake.is_set():
            self._scan()
        self._finish_pending()
        self._dispatch()
        self._collect()
        self._beat()

    def _idle(self) -> bool:
        return self._scanned and not self._jobs and self._running is None and not self._wake.is_set()

    def _scan(self) -> None:
        self._wake.clear()
        try:
            present = inbox.scan(self.settings.folders.inbox, self.settings.watch.ignore)
        except OSError as error:
            # A share that went away must not look like an inbox that was emptied.
            log.warning("inbox unreadable", error=str(error), retry_s=self.settings.watch.rescan_s)
            self._next_scan = self._monotonic() + min(self.settings.watch.rescan_s, 5)
            return
        now = self._monotonic()
        self._present = present
        self._tracker.observe(present, now)
        pictures = [path for path in present if not inbox.is_mask(path)]
        for job in self._store.sight([p for p in pictures if p not in self._jobs], at=self._now()):
            self._jobs[job.path] = job
        for job in list(self._jobs.values()):
            self._advance(job, now)
        self._mention_orphans()
        unsettled = any(
            job.state in (JobState.SETTLING, JobState.WAITING_MASK) for job in self._jobs.values()
        )
        pause = min(self.settings.watch.rescan_s, max(self.settings.watch.settle_s / 4, TICK_S))
        self._next_scan = now + (pause if unsettled else self.settings.watch.rescan_s)
        self._scanned = True

    def _advance(self, job: Job, now: float) -> None:
        """Bring a job that waits in the inbox one step on, or back."""
        if job.state not in (JobState.SETTLING, JobState.WAITING_MASK, JobState.READY):
            return
        if job.path not in self._present:
            self._vanished(job)
        elif job.state == JobState.READY:
            if self._as_taken(job):
                return
            self._update(job, JobState.SETTLING, detail={"reason": "picture or mask changed while queued"})
        elif self._tracker.settled(job.path, now) and self._due(job):
            self._take_when_paired(job, now)

    def _as_taken(self, job: Job) -> bool:
        """Whether the picture and its masks still are what was copied."""
        taken = self._spool(job).files()
        names = {job.path, *inbox.masks_of(job.path, self._present)}
        return set(taken) == names and all(self._present.get(path) == taken[path] for path in names)

    def _take_when_paired(self, job: Job, now: float) -> None:
        watch = self.settings.watch
        masks = inbox.masks_of(job.path, self._present)
        if any(not self._tracker.settled(mask, now) for mask in masks):
            return
        expects_mask = "sidecar" in self.settings.regions.detectors and not masks
        if expects_mask and self._tracker.still_for(job.path, now) < watch.settle_s + watch.mask_wait_s:
            if job.state != JobState.WAITING_MASK:
                self._update(job, JobState.WAITING_MASK)
            return
        self._take(job, masks)

    def _take(self, job: Job, masks: list[bytes]) -> None:
        """Copy picture and masks into the spool and make the job ready."""
        spool = self._spool(job)
        spool.drop()
        spool.folder.mkdir(parents=True)
        root = self.settings.folders.inbox
        try:
            picture = inbox.take(root, job.path, spool.folder / "input", self._present[job.path])
            taken = {job.path: picture.signature}
            digests: list[tuple[bytes, str]] = []
            for index, mask in enumerate(masks):
                copy = inbox.take(root, mask, spool.folder / f"mask-{index}", self._present[mask])
                taken[mask] = copy.signature
                digests.append((mask, copy.sha256))
        except InputError as error:
            if error.code != Code.CHANGED:
                log.warning("unreadable", path=job.name, error=error.message)
                self._postpone(job, 30)
            return  # the next scan sees what it is now
        except OSError as error:
            log.warning("spool", path=job.name, error=str(error))
            self._postpone(job, 30)
            return
        spool.write(taken, digests)
        mask_sha = mask_digest([digest for _, digest in digests])
        self._update(
            job,
            JobState.READY,
            input_sha256=picture.sha256,
            mask_sha256=mask_sha,
            config_sha256=self.settings.sha256,
            key=job_key(picture.sha256, mask_sha, self.settings.sha256),
            detail={"masks": [shown(mask) for mask in masks]} if masks else None,
        )

    def _vanished(self, job: Job) -> None:
        """A waiting job whose file is gone: moved by us before a crash, or taken away by somebody."""
        failed = self.settings.folders.failed
        if job.input_sha256 and any(
            outbox.holds(failed, path, job.input_sha256)
            for path in (job.path, outbox.keyed(job.path, job.key or ""))
        ):
            self._rest(job, JobState.FAILED, detail={"reason": "found in failed after a restart"})
        else:
            self._rest(job, JobState.SKIPPED, detail={"reason": "left the inbox before it was worked"})

    def _mention_orphans(self) -> None:
        """Say once of a settled mask that no picture claims it."""
        claimed = {mask for path in self._present for mask in inbox.mask_names(path)}
        orphans = {path for path in self._present if inbox.is_mask(path) and path not in claimed}
        for path in sorted(orphans - self._orphans):
            log.warning("mask without picture", path=shown(path))
        self._orphans = orphans

    # The child

    def _dispatch(self) -> None:
        if self._running is not None or self._stopping.is_set():
            return
        job = self._store.next_ready(at=self._now())
        if job is None:
            return
        if job.attempts >= self.settings.protect.attempts:
            reason = f"{job.name}: the worker died {job.attempts} times on this picture; it is set aside"
            self._fail(job, Code.WORKER_DIED, reason, quarantined=True)
            return
        if self._child is None:
            self._child = Child()
        job = self._remember(self._store.start_attempt(job.id, at=self._now()))
        spool = self._spool(job)
        (spool.folder / "result.json").unlink(missing_ok=True)
        masks = tuple((shown(path), f"mask-{index}") for index, (path, _) in enumerate(spool.masks()))
        self._running = job
        try:
            self._child.send(Order(job.id, spool.folder, job.name, masks, self.settings))
        except OSError:
            self._died(job)

    def _collect(self) -> None:
        """Hear the child out for a moment; this is where the loop waits."""
        if self._child is None or self._running is None:
            if not self._ready_now():
                self._wake.wait(TICK_S)
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

    def _ready_now(self) -> bool:
        return any(job.state == JobState.READY and self._due(job) for job in self._jobs.values())

    def _died(self, job: Job) -> None:
        how = self._child.exitcode() if self._child else "never started"
        if self._child is not None:
            self._child.kill()
        self._child = self._running = None
        finished = Outcome.read(self._spool(job).folder)
        if finished is not None:
            self._conclude(job, finished)
            return
        log.error("worker died", path=job.name, how=how, attempt=job.attempts)
        self._update(job, JobState.READY, detail={"reason": f"worker died: {how}"})

    def _conclude(self, job: Job, outcome: Outcome) -> None:
        """Decide what the child's outcome means for the job."""
        if outcome.stopped:
            self._remember(self._store.give_back(job.id, at=self._now()))
        elif outcome.code is not None:
            if outcome.retryable and job.attempts < self.settings.protect.attempts:
                wait = 5.0 * 4 ** (job.attempts - 1)
                log.warning("retry", path=job.name, code=outcome.code, error=outcome.message, in_s=wait)
                detail = {"code": outcome.code, "message": outcome.message}
                self._update(job, JobState.READY, not_before=self._now() + wait, detail=detail)
            else:
                self._fail(job, Code(outcome.code), outcome.message)
        else:
            verdict = Verdict(outcome.verdict or "failed")
            reasons = "; ".join(outcome.reasons)
            if verdict == Verdict.FAILED:
                message = f"{job.name}: verification failed: {reasons}; see the sheet in the reports folder"
                self._fail(job, Code.NOT_PROTECTED, message, verdict=verdict)
            elif verdict == Verdict.WEAK and self.settings.verify.on_weak == "fail":
                message = (
                    f"{job.name}: protection is weak: {reasons}; verify.on_weak: publish would let it pass"
                )
                self._fail(job, Code.WEAK, message, verdict=verdict)
            else:
                job = self._update(job, JobState.PUBLISHING, verdict=verdict)
                self._publish(job)

    # Publish, record, archive

    def _finish_pending(self) -> None:
        """Take up again what a crash or a full disk interrupted."""
        for job in list(self._jobs.values()):
            if job.state in (JobState.PUBLISHING, JobState.PUBLISHED) and self._due(job):
                (self._publish if job.state == JobState.PUBLISHING else self._archive)(job)

    def _publish(self, job: Job) -> None:
        spool = self._spool(job)
        outcome = Outcome.read(spool.folder)
        if outcome is None or outcome.verdict is None:
            self._update(job, JobState.READY, detail={"reason": "the result is gone from the spool"})
            return
        if inbox.signature(self.settings.folders.inbox, job.path) != spool.files().get(job.path):
            # Somebody replaced or withdrew the picture meanwhile: this result is not theirs any more.
            self._rest(job, JobState.SKIPPED, detail={"reason": "replaced or removed while it was worked"})
            self._wake.set()
            return
        folders = self.settings.folders
        wanted = job.path
        if os.path.splitext(job.path)[1].lower() not in _same_extensions(outcome.extension):
            wanted = os.path.splitext(job.path)[0] + os.fsencode(outcome.extension)
        try:
            data = (spool.folder / "output").read_bytes()
            placed = outbox.place(data, folders.outbox, wanted, key=job.key or "")
            self._report(spool, placed if placed != wanted else job.path)
        except (PublishError, OSError) as error:
            self._postpone(job, 15, error)
            return
        job = self._update(
            job, JobState.PUBLISHED, output_path=placed, output_sha256=outcome.output_sha256,
            detail={"output": shown(placed)},
        )  # fmt: skip
        self._archive(job)

    def _report(self, spool: Spool, path: bytes) -> None:
        """Receipt and sheet beside each other in the reports folder."""
        for file, suffix in (("receipt.json", b".json"), ("sheet.jpg", b".sheet.jpg")):
            with suppress(FileNotFoundError):
                outbox.replace(
                    (spool.folder / file).read_bytes(), self.settings.folders.reports, path + suffix
                )

    def _archive(self, job: Job) -> None:
        spool = self._spool(job)
        try:
            self._put_away(job, spool, self.settings.folders.archive)
        except (PublishError, OSError) as error:
            self._postpone(job, 15, error)
            return
        self._published += 1
        outcome = Outcome.read(spool.folder)
        self._rest(job, JobState.ARCHIVED, timings=outcome.timings_s if outcome else None)

    def _put_away(self, job: Job, spool: Spool, folder: Path) -> None:
        """Move the original and its masks out of the inbox; of a replaced one, the copy we worked on."""
        root, sha, key = self.settings.folders.inbox, job.input_sha256 or "", job.key or ""
        taken = spool.files()
        if inbox.signature(root, job.path) == taken.get(job.path) and job.path in taken:
            outbox.move(root, job.path, folder, job.path, sha256=sha, key=key)
        elif not any(outbox.holds(folder, path, sha) for path in (job.path, outbox.keyed(job.path, key))):
            copy = spool.folder / "input"
            outbox.place(copy.read_bytes(), folder, job.path, key=key)
        others = {
            name
            for path in self._jobs
            if path != job.path and path in self._present
            for name in inbox.mask_names(path)
        }
        for mask, digest in spool.masks():
            if mask not in others and inbox.signature(root, mask) == taken.get(mask):
                outbox.move(root, mask, folder, mask, sha256=digest, key=key)

    def _fail(
        self,
        job: Job,
        code: Code,
        message: str,
        *,
        quarantined: bool = False,
        verdict: Verdict | None = None,
    ) -> None:
        """Set the original aside with its error file; the record follows."""
        spool = self._spool(job)
        folder = self.settings.folders.failed
        document = {
            "file": job.name,
            "code": code.value,
            "message": message,
            "attempts": job.attempts,
            "input_sha256": job.input_sha256,
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._now())),
        }
        try:
            text = json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n"
            outbox.replace(text.encode("utf-8", "replace"), folder, job.path + b".error.json")
            self._report(spool, job.path)
            self._put_away(job, spool, folder)
        except (PublishError, OSError) as error:
            # Still in the inbox and recorded as ready: it is worked again when the folder takes it.
            log.error("failed folder", path=job.name, error=str(error))
            self._update(job, JobState.READY, not_before=self._now() + 30, attempts=max(job.attempts - 1, 0))
            return
        self._failed += 1
        state = JobState.QUARANTINED if quarantined else JobState.FAILED
        self._rest(job, state, code=code.value, message=message, verdict=verdict)

    # Bookkeeping

    def _resume(self) -> None:
        """Put the jobs a crash left half done where they can go on."""
        for job in list(self._jobs.values()):
            spool = self._spool(job)
            if job.state == JobState.RUNNING:
                finished = Outcome.read(spool.folder)
                if finished is not None:
                    self._conclude(job, finished)
                else:
                    self._update(job, JobState.READY, detail={"reason": "the daemon ended in mid-job"})
            elif job.state == JobState.READY and not spool.files():
                self._update(job, JobState.SETTLING, detail={"reason": "the private copy is gone"})
        known = {str(job.id) for job in self._jobs.values()}
        with suppress(FileNotFoundError):
            for folder in (self.settings.folders.state / "spool").iterdir():
                if folder.name not in known:
                    shutil.rmtree(folder, ignore_errors=True)

    def _drain(self) -> None:
        """Give the running job back without burning its attempt, and end the child."""
        if self._child is None:
            return
        notify("STOPPING=1", f"EXTEND_TIMEOUT_USEC={int(DRAIN_S * 1e6)}")
        job, self._running = self._running, None
        outcome = self._child.stop(DRAIN_S if job else 0)
        self._child = None
        if job is not None:
            self._conclude(
                job, outcome or Outcome.read(self._spool(job).folder) or Outcome(job.id, stopped=True)
            )
            log.info("drained", path=job.name)

    def _spool(self, job: Job) -> Spool:
        return Spool(self.settings.folders.state / "spool" / str(job.id))

    def _remember(self, job: Job) -> Job:
        self._jobs[job.path] = job
        return job

    def _update(
        self, job: Job, state: JobState, *, detail: dict[str, Any] | None = None, **fields: Any
    ) -> Job:
        return self._remember(self._store.update(job.id, state, at=self._now(), detail=detail, **fields))

    def _rest(
        self,
        job: Job,
        state: JobState,
        *,
        detail: dict[str, Any] | None = None,
        timings: dict[str, float] | None = None,
        **fields: Any,
    ) -> None:
        """Record a job's end, log its one line, forget it and its spool."""
        job = self._update(job, state, detail=detail, **fields)
        del self._jobs[job.path]
        self._retry_at.pop(job.id, None)
        self._spool(job).drop()
        log.info(
            "job",
            id=job.id,
            path=job.name,
            state=job.state.value,
            verdict=job.verdict.value if job.verdict else None,
            code=job.code,
            message=job.message,
            output=shown(job.output_path) if job.output_path else None,
            attempts=job.attempts,
            seconds=round(job.updated - job.created, 1),
            timings_s=timings,
            **(detail or {}),
        )

    def _due(self, job: Job) -> bool:
        return self._now() >= max(job.not_before, self._retry_at.get(job.id, 0.0))

    def _postpone(self, job: Job, seconds: float, error: Exception | None = None) -> None:
        """Try a step again later without burning an attempt."""
        self._retry_at[job.id] = self._now() + seconds
        if error is not None:
            log.warning("postponed", path=job.name, state=job.state.value, error=str(error), in_s=seconds)

    def _beat(self) -> None:
        """Tell systemd and `backfire status` that we are alive."""
        now = self._monotonic()
        if now < self._next_beat:
            return
        self._next_beat = now + HEARTBEAT_S
        working = self._running.name if self._running else None
        fact = {"pid": os.getpid(), "working": working, "waiting": len(self._jobs)}
        self._store.set_fact("daemon", fact, at=self._now())
        notify(
            "WATCHDOG=1",
            f"STATUS={'working ' + working if working else 'watching'}, {len(self._jobs)} waiting",
        )


def _require_names(settings: Settings) -> None:
    """A name that no detector, editor or method has is an error at start, not in the first job."""
    for name in settings.regions.detectors:
        require(name, detectors.NAMES, "regions.detectors")
    require(settings.protect.method, methods.NAMES, "protect.method")
    for name in settings.protect.surrogates:
        require(name, editors.NAMES, "protect.surrogates")
    for name in settings.verify.held_out:
        require(name, editors.NAMES, "verify.held_out")


def _same_extensions(extension: str) -> set[bytes]:
    families = ({b".jpg", b".jpeg", b".jpe", b".jfif"}, {b".tif", b".tiff"}, {b".png"}, {b".webp"})
    own = os.fsencode(extension.lower())
    return next((family for family in families if own in family), {own})


def _locked(state: Path) -> int:
    """A lock on the state folder that ends with the process."""
    descriptor = os.open(state / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        message = (
            f"{state}: another backfire daemon works here; stop it, or give this one its own folders.state"
        )
        raise ConfigError(message) from None
    return descriptor


def notify(*lines: str) -> None:
    """Tell systemd, where it started us (sd_notify: one datagram to $NOTIFY_SOCKET)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        connection.sendto("\n".join(lines).replace("\0", "").encode("utf-8", "replace"), address)
