"""From a file in the inbox to a job that is ready: settle, pair with masks, copy, hash.

Longer than 300 lines so that the reasons for which a file may have to wait are seen together.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import structlog

from backfire.config import Settings
from backfire.errors import Code, InputError
from backfire.files import inbox, outbox
from backfire.files.inbox import Scan, Signature, Tracker
from backfire.files.parallel import in_parallel
from backfire.service.jobs import Ledger, blaming
from backfire.service.queue import Line, priority
from backfire.service.spool import Copies
from backfire.types import Job, JobState, job_key, mask_digest, shown

log = structlog.get_logger()

UNTAKEN = (JobState.SETTLING, JobState.WAITING_MASK)
INCOMPLETE = frozenset({Code.EMPTY, Code.TRUNCATED, Code.MASK_UNREADABLE})
"""What the decoder says of a file that is still being written, or never will be whole."""
READY_AHEAD = 16
"""Jobs copied ahead of the worker: enough to keep it busy, few enough that no copy of a backlog is made."""
MOST_AHEAD = 4
"""Times as many, where those that are ready have to wait after trouble and leave the worker to others."""
BYTES_AHEAD = 64 << 20
"""Copied in one step of the loop, and one picture more: the worker must not wait long for its first."""
AT_ONCE = 2000
"""Rows written in one step of the loop: it must stay free to stop, to publish and to beat."""
AT_MOST_S = 1.0
"""Spent on copies in one step of the loop, but for the last one."""
LEAST_S = 0.5
"""Between two scans, however many events there are; and ten times as long as a scan takes."""


def unread_key(signature: Signature) -> str:
    """A key for a picture whose content nobody read."""
    return hashlib.sha256(repr(tuple(signature)).encode()).hexdigest()


class Intake:
    """Watches the inbox through scans; `wake` is set by whoever thinks one is due."""

    def __init__(
        self, settings: Settings, ledger: Ledger, wake: threading.Event, monotonic: Callable[[], float]
    ) -> None:
        self._ledger, self._wake, self._monotonic = ledger, wake, monotonic
        self._scan = Scan()
        self._line: Iterator[tuple[int, Job]] = iter(())
        self._first: tuple[int, Job] | None = None
        self._unsighted: list[bytes] = []
        self._suspects: dict[int, dict[bytes, Signature]] = {}
        self._orphans: set[bytes] = set()
        self._next = 0.0
        self._last = -LEAST_S
        self._cost = 0.0
        self.pause = 0.0
        """Seconds from the last scan to the next one."""
        self._mount: str | None = None
        self.scanned = False
        self.trouble = ""
        """Why the inbox cannot be read at present; empty while it can."""
        self._tracker = Tracker(settings.watch.settle_s)
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        """Work by other settings from now on; the folders must be the same."""
        self._settings = settings
        self._digests: dict[int | None, str] = {}
        self._tracker.settle_s = settings.watch.settle_s

    @property
    def root(self) -> Path:
        """The inbox."""
        return self._settings.folders.inbox

    @property
    def last_scan(self) -> float:
        """When the inbox was last looked at, by the monotonic clock; also in vain."""
        return self._last

    @property
    def busy(self) -> bool:
        """Whether sightings still wait to be recorded: no time to sleep."""
        return bool(self._unsighted)

    def step(self, *, may_take: bool = True, ahead: int = READY_AHEAD) -> None:
        """Scan if one is due, note what it found, and bring jobs to the worker as long as it needs any.

        Args:
            may_take: False where there is no room for copies.
            ahead: how many jobs should be ready for the worker; `READY_AHEAD` where that is more.
        """
        now = self._monotonic()
        asked = self._wake.is_set() and now >= self._last + max(LEAST_S, 10 * self._cost)
        if now >= self._next or asked:
            self._wake.clear()
            self._last = now
            if self._look(now):
                self._reconcile(now)
                self._cost = self._monotonic() - now
        if self._unsighted:
            part, self._unsighted = self._unsighted[:AT_ONCE], self._unsighted[AT_ONCE:]
            for job in self._ledger.store.add(part, at=self._ledger.now()):
                self._ledger.remember(job)
        if may_take and not self.trouble:
            self._fill(max(ahead, READY_AHEAD))

    def _look(self, now: float) -> bool:
        """Scan; False where the inbox cannot be read: that must not look like an inbox that was emptied."""
        watch = self._settings.watch
        try:
            self.require_mount()
            found = inbox.scan(self.root, watch.ignore, watch.proof_ending)
            self.require_mount()  # it may have gone while we looked
        except OSError as error:
            if not self.trouble:
                log.warning("inbox unreadable", error=str(error))
            self.trouble = str(error)
            self._next = now + min(watch.rescan_s, 5)
            return False
        if self.trouble:
            log.info("inbox back", inbox=str(self.root))
            self.trouble = ""
        self._scan = found
        self._tracker.observe(found.files, now)
        return True

    def require_mount(self) -> None:
        """Raise OSError if the share that once held the inbox is gone; what shows instead is not the inbox.

        A file system mounted further in than before is one that came back.
        """
        mount = inbox.mount_of(self.root)
        if self._mount is None:
            noted = self._ledger.store.fact("inbox")
            known: dict[str, Any] = noted[0] if noted else {}
            self._mount = known.get("mount", "") if known.get("path") == str(self.root) else ""
        if mount and self._mount.startswith(mount) and self._mount != mount:
            raise OSError(
                f"{self.root}: lay on {self._mount}, which is not mounted now; mount it again, or, if the "
                "inbox has moved for good, give it another name in folders.inbox"
            )
        if not self.root.is_dir():
            raise OSError(f"{self.root}: is not there; mount its share or make the folder again")
        if mount != self._mount:
            self._mount = mount
            fact = {"path": str(self.root), "mount": mount}
            self._ledger.store.set_fact("inbox", fact, at=self._ledger.now())

    def _reconcile(self, now: float) -> None:
        """Bring the books in line with what a scan found."""
        ledger, files = self._ledger, self._scan.files
        strays = self._strays(now)
        first = sorted(
            (path for path in (*self._scan.pictures, *strays) if path not in ledger.jobs),
            key=lambda path: (-priority(path, self._settings.watch.priorities), path),
        )
        self._unsighted = first
        untaken, ready = ledger.of(*UNTAKEN), ledger.of(JobState.READY)
        gone = (job for job in (*untaken, *ready) if job.path not in files and self._scan.knows(job.path))
        for job in list(islice(gone, AT_ONCE // 10)):
            with blaming(job):
                self._vanished(job)
        for job in ready:
            with blaming(job):
                if job.path in files and not self.unchanged(job, self._scan):
                    detail = {"reason": "picture or mask changed while queued"}
                    ledger.update(job, JobState.SETTLING, detail=detail)
        waiting = [(job, files[job.path].size) for job in untaken if job.path in files]
        hindered = [entry for entry in waiting if entry[0].id in ledger.hindered]
        fresh = [entry for entry in waiting if entry[0].id not in ledger.hindered] if hindered else waiting
        priorities = self._settings.watch.priorities
        self._line, self._first = chain(Line(fresh, priorities), Line(hindered, priorities)), None
        unsettled = bool(waiting or first)
        watch = self._settings.watch
        pause = min(watch.rescan_s, max(watch.settle_s / 4, LEAST_S)) if unsettled else watch.rescan_s
        self.pause = max(pause, 10 * self._cost)
        self._next = now + self.pause
        self.scanned = True

    def _fill(self, ahead: int) -> None:
        """Take jobs in until the worker has enough of them, those first in line first."""
        now, priorities = self._monotonic(), self._settings.watch.priorities
        wanted: list[Job] = []
        size = 0
        copied = [(priority(job.path, priorities), job) for job in self._ledger.of(JobState.READY)]
        held = [rank for rank, _ in copied]
        ready = [rank for rank, job in copied if self._ledger.due(job)]
        noted = 0
        while size < BYTES_AHEAD and (entry := self._first or next(self._line, None)) is not None:
            self._first, (rank, job) = None, entry
            # By rank: one of a high priority does not wait for room behind lower ones.
            # Nor may large pictures, or ten thousand that cannot be read, hold up the loop.
            late = self._monotonic() > now + AT_MOST_S
            enough = sum(other >= rank for other in ready) >= ahead
            if late or enough or sum(other >= rank for other in held) >= MOST_AHEAD * ahead:
                self._first = entry
                break
            if self._ledger.jobs.get(job.path) is not job or not self._ledger.due(job):
                continue
            with blaming(job):
                if self._paired(job, now):
                    wanted.append(job)
                    ready.append(rank)
                    held.append(rank)
                    size += self._scan.files[job.path].size
                elif noted < AT_ONCE // 40:
                    noted += self._note_mask_wait(job, now)
        self._take(wanted, now)

    def look_beside(self, jobs: Iterable[Job]) -> Scan:
        """Pictures, masks and proofs of some jobs as they lie there now.

        Raises:
            OSError: the inbox is gone, so that nobody can tell.
        """
        self.require_mount()
        return inbox.scan_beside(self.root, [job.path for job in jobs], self._settings.watch.proof_ending)

    def unchanged(self, job: Job, scan: Scan) -> bool:
        """Whether picture, masks and proof are still what was copied."""
        taken = self._ledger.spool(job).files()
        names = set(self._files_of(job.path, scan))
        return set(taken) == names and all(scan.files.get(path) == taken[path] for path in names)

    def _files_of(self, path: bytes, scan: Scan) -> list[bytes]:
        """The picture, then its masks and, last, its proof."""
        proof = scan.proof_of(path)
        return [path, *scan.masks_of(path), *([proof] if proof else [])]

    def _paired(self, job: Job, now: float) -> bool:
        """Whether all its files stand still, and neither more bytes nor a mask nor a proof are waited for."""
        files = self._files_of(job.path, self._scan)
        if any(not self._tracker.settled(path, now) for path in files):
            return False
        suspect = self._suspects.get(job.id)
        if suspect is not None:
            if suspect == {path: self._scan.files[path] for path in files} and self.may_grow(job, now):
                return False
            del self._suspects[job.id]
        watch = self._settings.watch
        if watch.proof != "none" and self._scan.proof_of(job.path) is None:
            return False
        return not self._awaits_mask(job, now)

    def _awaits_mask(self, job: Job, now: float) -> bool:
        watch = self._settings.watch
        regions = self._settings.for_path(job.path).regions
        expects = "sidecar" in regions.detectors and not self._scan.masks_of(job.path)
        return expects and self._tracker.still_for(job.path, now) < watch.settle_s + watch.mask_wait_s

    def _note_mask_wait(self, job: Job, now: float) -> bool:
        """Record for `explain` that it is a mask that is waited for; whether that was news."""
        news = job.state == JobState.SETTLING and self._tracker.settled(job.path, now)
        if news and self._awaits_mask(job, now):
            self._ledger.update(job, JobState.WAITING_MASK)
            return True
        return False

    def may_grow(self, job: Job, now: float | None = None) -> bool:
        """Whether a picture or mask that ends too early has not stood still for long enough to give up."""
        now = self._monotonic() if now is None else now
        patience = self._settings.watch.settle_s + self._settings.watch.incomplete_wait_s
        files = self._files_of(job.path, self._scan)
        return any(self._tracker.still_for(path, now) < patience for path in files)

    def suspect(self, job: Job) -> None:
        """Take the job in again only when its files have changed, or have stood still for long enough."""
        self._suspects[job.id] = self._ledger.spool(job).files()

    def _take(self, jobs: Sequence[Job], now: float) -> None:
        """Copy pictures, masks and proofs into the spool and make the jobs ready."""
        if not jobs:
            return
        copied = in_parallel(self._copied, jobs)
        with self._ledger.together():
            for job, copies in zip(jobs, copied, strict=True):
                if isinstance(copies, Copies):
                    with blaming(job):
                        self._record(job, copies, now)
        for job, error in zip(jobs, copied, strict=True):
            if isinstance(error, InputError) and error.code == Code.TOO_LARGE:
                self.refuse(job, error.code, error.message)
            # One that changed the next scan sees as it is now.
            elif isinstance(error, OSError) or (isinstance(error, InputError) and error.code != Code.CHANGED):
                self._ledger.postpone(job, error)

    def _copied(self, job: Job) -> Copies | InputError | OSError:
        """The files of a job in its spool, or why they could not be copied."""
        try:
            with blaming(job):
                most = self._settings.limits.max_bytes
                return self._ledger.spool(job).fill(self.root, job.path, self._scan, most=most)
        except (InputError, OSError) as error:
            return error

    def refuse(self, job: Job, code: Code, message: str) -> None:
        """Have a job set aside whose files are not to be read; `step` of the publisher does it."""
        seen = {
            path: found
            for path in self._files_of(job.path, self._scan)
            if (found := self._scan.files.get(path))
        }
        if job.path not in seen:
            return  # the next scan sees what became of it
        try:
            self._ledger.spool(job).refuse(seen)
        except OSError as trouble:
            self._ledger.postpone(job, trouble)
            return
        content: dict[str, Any] = {
            "input_sha256": None,
            "mask_sha256": None,
            "key": unread_key(seen[job.path]),
        }
        self._ledger.update(job, JobState.SETTING_ASIDE, code=code.value, message=message, **content)

    def _record(self, job: Job, taken: Copies, now: float) -> None:
        """Make a job ready, unless something says that its files are not whole."""
        spool = self._ledger.spool(job)
        mask_sha = mask_digest([mask.sha256 for mask in taken.masks])
        config_sha = self.config_sha(job.path)
        content: dict[str, Any] = {
            "input_sha256": taken.picture.sha256,
            "mask_sha256": mask_sha,
            "config_sha256": config_sha,
            "key": job_key(taken.picture.sha256, mask_sha, config_sha),
        }
        doubt = spool.doubt(job.name, taken, checksum=self._settings.watch.proof == "sha256")
        if doubt is not None and self.may_grow(job, now):
            self.suspect(job)
            told = {"code": doubt.code.value, "reason": doubt.message}
            self._ledger.update(job, JobState.SETTLING, detail=told)
            return
        if doubt is not None and doubt.code == Code.CHECKSUM:
            content |= {"code": doubt.code.value, "message": doubt.message}
            self._ledger.update(job, JobState.SETTING_ASIDE, **content)  # the publisher sets it aside
            return
        attempts = job.attempts if job.input_sha256 == taken.picture.sha256 else 0
        masks = [shown(path) for path in self._scan.masks_of(job.path)]
        detail = {"masks": masks} if masks else None
        self._ledger.update(job, JobState.READY, attempts=attempts, detail=detail, **content)

    def config_sha(self, path: bytes) -> str:
        """The digest of a picture's settings, kept: there are few, and it costs as much as the copy."""
        rule = self._settings.rule_of(path)
        if rule not in self._digests:
            self._digests[rule] = self._settings.for_path(path).sha256
        return self._digests[rule]

    def _vanished(self, job: Job) -> None:
        """A waiting job whose file is gone: set aside just before a crash, or taken away by somebody."""
        failed, key, sha = self._settings.folders.failed, job.key or "", job.input_sha256
        self._suspects.pop(job.id, None)
        taken = self._ledger.spool(job).files().get(job.path)
        size = taken.size if taken else None
        if sha and outbox.find(failed, job.path, key=key, sha256=sha, size=size):
            self._ledger.rest(job, JobState.FAILED, detail={"reason": "found in failed after a restart"})
        else:
            self._ledger.rest(job, JobState.SKIPPED, detail={"reason": "left the inbox before it was worked"})

    def _strays(self, now: float) -> set[bytes]:
        """Files in a folder `masks` that no picture has claimed for long: pictures themselves.

        Other masks without a picture are mentioned, once.
        """
        long = self._settings.watch.settle_s + max(self._settings.watch.mask_wait_s, 60)
        lone = {path for path in self._scan.orphans() if self._tracker.still_for(path, now) > long}
        strays = {path for path in lone if inbox.in_masks_folder(path)}
        for path in sorted(lone - strays - self._orphans):
            log.warning("mask without picture", path=shown(path))
        self._orphans = lone
        return strays
