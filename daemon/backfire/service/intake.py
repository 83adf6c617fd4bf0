"""From a file in the inbox to a job that is ready: wait until it is complete, copy it, hash it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice

import structlog

from backfire.config import Settings
from backfire.errors import Code, InputError
from backfire.files import outbox
from backfire.files.inbox import is_raw
from backfire.files.parallel import in_parallel
from backfire.imaging import formats
from backfire.service.first_bytes import FirstBytes
from backfire.service.inbox import INCOMPLETE, Inbox
from backfire.service.job_settings import JobSettings
from backfire.service.jobs import Jobs, isolated
from backfire.service.queue import WaitingQueue, priority
from backfire.service.spool import Copies
from backfire.service.store.store import Changes
from backfire.types import Choice, Job, JobState, job_key, mask_digest, shown

log = structlog.get_logger()

UNCOPIED = (JobState.SETTLING, JobState.WAITING_MASK)
READY_AHEAD = 16
"""How many jobs are copied ahead of the workers: enough to keep them busy, but not a whole backlog."""
MOST_AHEAD = 4
"""The factor on `READY_AHEAD` while ready jobs wait for their next try, so that others may pass them."""
COPY_BYTES = 64 << 20
"""The bytes that one step of the loop copies, and one more picture: the workers wait for the first."""
COPY_S = 1.0
"""How long one step of the loop chooses what to copy; the loop also has to publish, to report and to stop."""
NEW_JOBS = 2000
"""How many new jobs one step of the loop records."""
LEFT_JOBS = 200
"""How many jobs whose files have left the inbox are ended after one scan."""
MASK_WAITS = 50
"""How many jobs one step of the loop records as waiting for a mask."""
SCAN_EVERY_S = 0.5
"""The least time between two scans, whatever events there are. A long scan waits ten times as long."""


class Intake:
    """Makes jobs of the pictures in the inbox, and copies of them for the workers.

    Args:
        settings: the configuration.
        jobs: where jobs are recorded.
        inbox: what is known of the folder.
        wake: set by whoever thinks that a scan is due.
        monotonic: the clock of the scans.
    """

    def __init__(
        self,
        settings: Settings,
        jobs: Jobs,
        inbox: Inbox,
        wake: threading.Event,
        monotonic: Callable[[], float],
    ) -> None:
        self._jobs, self._inbox, self._wake, self._monotonic = jobs, inbox, wake, monotonic
        self._first_bytes = FirstBytes(inbox, monotonic)
        self._queue: Iterator[tuple[int, Job]] = iter(())
        self._first: tuple[int, Job] | None = None
        self._new: list[bytes] = []
        self._next_scan = 0.0
        self._last_scan = -SCAN_EVERY_S
        self._scan_took = 0.0
        self.pause = 0.0
        """Seconds from the last scan to the next one."""
        self.scanned = False
        """Whether the inbox has been read since the start."""
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        """Work by other settings from now on; the folders must be the same."""
        self._settings, self._job_settings = settings, JobSettings(settings)
        self._first_bytes.most = settings.limits.max_bytes

    @property
    def last_scan(self) -> float:
        """When a scan was last tried, by the monotonic clock."""
        return self._last_scan

    @property
    def busy(self) -> bool:
        """Whether files that a scan found still wait to be recorded, so that there is no time to sleep."""
        return bool(self._new)

    def step(self, *, may_copy: bool = True, ahead: int = READY_AHEAD) -> None:
        """Scan if one is due, record what it found, and copy pictures as long as the workers need any.

        Args:
            may_copy: False where there is no room for copies.
            ahead: how many jobs should be ready for the workers; `READY_AHEAD` where that is more.
        """
        now = self._monotonic()
        asked = self._wake.is_set() and now >= self._last_scan + max(SCAN_EVERY_S, 10 * self._scan_took)
        if now >= self._next_scan or asked:
            self._wake.clear()
            self._last_scan = now
            if self._inbox.look():
                self._reconcile(now)
                self._scan_took = self._monotonic() - now
            else:
                self._next_scan = now + min(self._settings.watch.rescan_s, 5)
        if self._new:
            part, self._new = self._new[:NEW_JOBS], self._new[NEW_JOBS:]
            self._jobs.add(part)
        if may_copy and not self._inbox.trouble:
            self._fill(max(ahead, READY_AHEAD))

    def _reconcile(self, now: float) -> None:
        """Bring the jobs in line with what a scan found."""
        jobs, inbox, watch = self._jobs, self._inbox, self._settings.watch
        self._new = sorted(
            (path for path in inbox.pictures if path not in jobs.active),
            key=lambda path: (-priority(path, watch.priorities), path),
        )
        uncopied, ready = jobs.of(*UNCOPIED), jobs.of(JobState.READY)
        gone = (job for job in (*uncopied, *ready) if inbox.is_gone(job.path))
        for job in list(islice(gone, LEFT_JOBS)):
            with isolated(job):
                self._end_missing(job)
        for job in (*uncopied, *ready):
            if why := inbox.unused.why_no_picture(job.path):
                with isolated(job):
                    jobs.end(job, JobState.SKIPPED, detail={"reason": why})
        uncopied, ready = jobs.of(*UNCOPIED), jobs.of(JobState.READY)
        for job in ready:
            with isolated(job):
                if job.path in inbox.files and self._is_changed(job):
                    detail = {"reason": "picture or mask changed while queued"}
                    jobs.update(job, JobState.SETTLING, detail=detail)
        waiting = [(job, inbox.files[job.path].size) for job in uncopied if job.path in inbox.files]
        # What is no picture is refused before any work, and whoever dropped it is to know that at once.
        self._first_bytes.look([job.path for job in uncopied])
        refused = [entry for entry in waiting if self._is_refused(entry[0].path)]
        rest = [entry for entry in waiting if not self._is_refused(entry[0].path)] if refused else waiting
        hindered = [entry for entry in rest if entry[0].id in jobs.hindered]
        fresh = [entry for entry in rest if entry[0].id not in jobs.hindered] if hindered else rest
        queues = (WaitingQueue(entries, watch.priorities) for entries in (refused, fresh, hindered))
        self._queue, self._first = chain(*queues), None
        unsettled = bool(waiting or self._new or inbox.unused.is_about_to_tell)
        pause = min(watch.rescan_s, max(watch.settle_s / 4, SCAN_EVERY_S)) if unsettled else watch.rescan_s
        self.pause = max(pause, 10 * self._scan_took)
        self._next_scan = now + self.pause
        self.scanned = True

    def _is_changed(self, job: Job) -> bool:
        """Whether the last scan shows other files than those that were copied, as far as it can tell."""
        try:
            return not self._inbox.is_unchanged(job)
        except OSError:  # it is asked again before anything is published
            return False

    def _fill(self, ahead: int) -> None:
        """Copy pictures until the workers have enough of them, those first in the queue first."""
        now, priorities = self._monotonic(), self._settings.watch.priorities
        chosen: list[Job] = []
        size = waits = 0
        copied = [(priority(job.path, priorities), job) for job in self._jobs.of(JobState.READY)]
        held = [rank for rank, _ in copied]
        due = [rank for rank, job in copied if self._jobs.due(job)]
        while size < COPY_BYTES and (entry := self._first or next(self._queue, None)) is not None:
            self._first, (rank, job) = None, entry
            # Only jobs of the same or a higher priority count, so that an urgent picture never waits for room
            # behind others. The time is limited, because ten thousand files that cannot be read would
            # otherwise block the loop.
            late = self._monotonic() > now + COPY_S
            enough = sum(other >= rank for other in due) >= ahead
            full = enough or sum(other >= rank for other in held) >= MOST_AHEAD * ahead
            if late or (full and not self._is_refused(job.path)):
                self._first = entry
                break
            if self._jobs.active.get(job.path) is not job or not self._jobs.due(job):
                continue
            with isolated(job):
                if self._is_complete(job):
                    chosen.append(job)
                    due.append(rank)
                    held.append(rank)
                    size += self._inbox.files[job.path].size
                elif waits < MASK_WAITS:
                    waits += self._note_mask_wait(job)
        self._copy(chosen)

    def _is_complete(self, job: Job) -> bool:
        """Whether its files stand still, and neither more bytes nor a proof nor a mask are waited for."""
        inbox = self._inbox
        return inbox.is_settled(job.path) and not (
            inbox.awaits_rest(job) or inbox.lacks_proof(job.path) or self._awaits_mask(job)
        )

    def _awaits_mask(self, job: Job) -> bool:
        """Whether a mask may still come; a person who decided about a picture would have given it one."""
        return job.choice is None and not self._is_refused(job.path) and self._inbox.awaits_mask(job.path)

    def _note_mask_wait(self, job: Job) -> bool:
        """Record for `explain` that the job waits for a mask; whether that was not known yet."""
        settling = job.state == JobState.SETTLING and self._inbox.is_settled(job.path)
        if settling and self._awaits_mask(job):
            self._jobs.update(job, JobState.WAITING_MASK)
            return True
        return False

    def _copy(self, jobs: Sequence[Job]) -> None:
        """Copy pictures, masks and proofs into the spool and make their jobs ready."""
        if not jobs:
            return
        copied = in_parallel(self._try_to_copy, jobs)
        with self._jobs.together():
            for job, found in zip(jobs, copied, strict=True):
                if isinstance(found, tuple):
                    with isolated(job):
                        self._record(job, *found)
        for job, error in zip(jobs, copied, strict=True):
            if isinstance(error, InputError) and error.code == Code.TOO_LARGE:
                self._jobs.refuse(job, self._inbox.files_of(job.path), error.code, error.message)
            # A file that changed is left to the next scan, which sees it as it is then.
            elif isinstance(error, OSError) or (isinstance(error, InputError) and error.code != Code.CHANGED):
                self._jobs.retry_later(job, error)

    def _try_to_copy(self, job: Job) -> tuple[Copies, InputError | None] | InputError | OSError:
        """What was copied and the error if the picture's end is missing; or why nothing could be copied."""
        try:
            with isolated(job, InputError, OSError):
                # The look belongs to the copying: a system that cannot do it hinders this job alone.
                return self._inbox.copy(job), self._jobs.spool(job).cut_short(job.name)
        except (InputError, OSError) as error:
            self._jobs.spool(job).drop()
            return error

    def _record(self, job: Job, copies: Copies, cut_short: InputError | None) -> None:
        """Make a job ready, unless something says that its files are not whole.

        Args:
            job, copies: the job, and what was copied for it.
            cut_short: the error if the picture's end is missing. A worker would find the same, but only after
                what is before it; by then a file that is still to come looks like one that never will.
        """
        mask_sha256 = mask_digest([mask.sha256 for mask in copies.masks])
        # What a person decided was about other content, or a release about another mask.
        other = job.input_sha256 != copies.picture.sha256
        if other or (job.choice == Choice.RELEASE and job.mask_sha256 != mask_sha256):
            job = replace(job, choice=None)
        config_sha256 = self._job_settings.digest(job)
        content: Changes = {
            "input_sha256": copies.picture.sha256,
            "mask_sha256": mask_sha256,
            "config_sha256": config_sha256,
            "key": job_key(copies.picture.sha256, mask_sha256, config_sha256),
            "choice": job.choice,
        }
        doubt = self._jobs.spool(job).doubt(job.name, copies, checksum=self._settings.watch.proof == "sha256")
        refusal = self._refusal(job)
        refusal = refusal or cut_short
        if doubt is None and refusal is not None and refusal.code in INCOMPLETE:
            doubt = refusal
        if doubt is not None and self._inbox.may_grow(job):
            self._inbox.note_incomplete(job)
            more = "; waits for the rest" if doubt.code in INCOMPLETE else ""
            reason = {"code": doubt.code.value, "reason": doubt.message + more}
            self._jobs.update(job, JobState.SETTLING, detail=reason)
            return
        if doubt is None or doubt.code != Code.CHECKSUM:
            doubt = refusal
        if doubt is not None:
            waited = self._inbox.waited(job) if doubt.code in INCOMPLETE else ""
            content["code"], content["message"] = doubt.code.value, doubt.message + waited
            self._jobs.update(job, JobState.SETTING_ASIDE, **content)
            return
        content["attempts"] = job.attempts if job.input_sha256 == copies.picture.sha256 else 0
        masks = [shown(path) for path in self._inbox.masks_of(job.path)]
        detail = {"masks": masks} if masks else None
        self._jobs.update(job, JobState.READY, detail=detail, **content)

    def _is_refused(self, path: bytes) -> bool:
        """Whether a file is refused by its name or its first bytes, without a worker."""
        return is_raw(path) or self._first_bytes.refuses(path)

    def _refusal(self, job: Job) -> InputError | None:
        """The error for a file that is refused without a worker, by the first bytes of its copy."""
        if not self._is_refused(job.path):
            return None
        with self._jobs.spool(job).input.open("rb") as file:
            head = file.read(formats.HEAD)
        return formats.raw_by_name(head, job.name) if is_raw(job.path) else formats.refusal(head, job.name)

    def _end_missing(self, job: Job) -> None:
        """End a job whose file is gone: set aside just before a crash, or taken away by somebody."""
        failed, key, sha256 = self._settings.folders.failed, job.key or "", job.input_sha256
        self._inbox.forget(job)
        taken = self._jobs.spool(job).files().get(job.path)
        size = taken.size if taken else None
        if sha256 and outbox.find(failed, job.path, key=key, sha256=sha256, size=size):
            self._jobs.end(job, JobState.FAILED, detail={"reason": "found in failed after a restart"})
        else:
            self._jobs.end(job, JobState.SKIPPED, detail={"reason": "left the inbox before it was worked"})
            self._end_former(job)

    def _end_former(self, job: Job) -> None:
        """End the earlier tries of a picture that was taken away: their original is nowhere any more."""
        failed, store = self._settings.folders.failed, self._jobs.store
        for former in store.by_path(job.path):
            if former.id >= job.id or former.state == JobState.SKIPPED:
                continue
            if former.state not in (JobState.FAILED, JobState.QUARANTINED):
                return
            places = outbox.names(failed, former.path, key=former.key or "", sha256=former.input_sha256 or "")
            if not any(os.path.lexists(failed / os.fsdecode(place)) for place in places):
                detail = {"reason": f"left the inbox as job {job.id} before it was worked again"}
                store.update(former.id, JobState.SKIPPED, at=self._jobs.now(), detail=detail)
