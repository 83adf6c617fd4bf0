"""Pictures that a person is to decide about: into the review folder, and from there back into the inbox.

The worker's result stays in the spool meanwhile, so that what is released is published at once. A decision
is recorded in the job database by another process (see `backfire.admin.review`); the daemon alone moves
files. Every step may be done again.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from backfire.config import Settings
from backfire.errors import PublishError
from backfire.evaluate.receipt import in_short
from backfire.files import durable, outbox
from backfire.files import inbox as names
from backfire.files.inbox import Scan
from backfire.service.inbox import Inbox
from backfire.service.jobs import Jobs
from backfire.service.originals import Originals
from backfire.service.reports import Reports
from backfire.service.set_aside import beside
from backfire.service.worker.protocol import Finished, read_result
from backfire.types import Choice, Job, JobState, Verdict, mask_digest, shown

NOTE = b".review.json"
"""The ending of the file beside a held picture that says why it is held."""


class Review:
    """The steps of a job that is held for a person, and of one about which a person has decided.

    Args:
        settings: the folders and `watch.proof` are used.
        jobs: where the steps are recorded.
        inbox: asked what lies there now.
        originals: moves the files out of the inbox.
        reports: receipt and sheet, which help to decide.
    """

    def __init__(
        self, settings: Settings, jobs: Jobs, inbox: Inbox, originals: Originals, reports: Reports
    ) -> None:
        self._folder, self._proof = settings.folders.review, settings.watch.proof_ending
        self._outbox = settings.folders.outbox
        self._jobs, self._inbox = jobs, inbox
        self._originals, self._reports = originals, reports
        self._orphans: set[bytes] = set()
        """The masks without a picture when held pictures were last looked through for theirs."""

    # Into the review folder

    def hold(self, job: Job) -> None:
        """Move a job's original aside and record that it is held; where that fails, it is tried again."""
        try:
            moved = self._hold(job)
        except (PublishError, OSError) as error:
            self._jobs.retry_later(job, error)
            return
        if not moved:
            told = {"reason": "picture or mask changed before it was held"}
            self._reports.discard_unfinished(job)
            self._jobs.update(
                job, JobState.SETTLING, attempts=0, code=None, message=None, verdict=None, detail=told
            )
            return
        with self._jobs.together():
            for older in self._jobs.store.by_path(job.path):
                if older.state == JobState.REVIEW and older.key == job.key:
                    told = {"reason": f"the same picture came again and is held as job {job.id}"}
                    self._jobs.store.update(older.id, JobState.SKIPPED, at=self._jobs.now(), detail=told)
            self._jobs.end(job, JobState.REVIEW)
        self._orphans = set()

    def _hold(self, job: Job) -> bool:
        """Note, reports, then original and masks; False if other files lie in the inbox by now."""
        key, sha256, unsynced = job.key or "", job.input_sha256 or "", set[bytes]()
        if not self._inbox.is_unchanged(job, self._inbox.look_beside([job])):
            # A crash may have come between the move and its record: then the rest is moved now.
            moved = outbox.find(self._folder, job.path, key=key, sha256=sha256) is not None
            if not moved or names.signature(self._inbox.root, job.path) is not None:
                return False
        note = outbox.beside(self._folder, self._originals.path_aside(job, self._folder), NOTE, key)
        outbox.replace(self._note(job), self._folder, note, key=key, unsynced=unsynced)
        result = read_result(self._jobs.spool(job).folder, job)
        if job.verdict is not None and isinstance(result, Finished):  # otherwise they tell nothing
            self._reports.write(job, outbox.renamed(self._outbox, job.path, result.extension), unsynced)
        copies = self._originals.copy(job, self._folder, unsynced)
        outbox.sync(unsynced)
        self._originals.remove(job, self._folder, copies)
        return True

    def _note(self, job: Job) -> bytes:
        document = {
            "file": job.name,
            "job": job.id,
            "code": job.code,
            "message": job.message,
            **beside(job),
            "input_sha256": job.input_sha256,
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._jobs.now())),
        }
        return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "replace")

    # Back into the inbox

    def take_up_masks(self) -> None:
        """Have held pictures worked again whose mask lies in the inbox by now: that is a decision, too."""
        orphans = {names.folded(path) for path in self._inbox.unused.settled_masks()}
        if not orphans or orphans == self._orphans:
            return
        for job in self._jobs.store.all_in(JobState.REVIEW):
            given = orphans.intersection(map(names.folded, names.mask_names(job.path)))
            if given and job.path not in self._jobs.active:
                by = f"the mask {shown(min(given))}"
                self._jobs.store.decide(job.id, Choice.AGAIN, by=by, at=self._jobs.now())
        self._orphans = orphans

    def release(self, job: Job) -> None:
        """Move a held original back and go on as the person decided; where that fails, it is tried again."""
        key, sha256, root = job.key or "", job.input_sha256 or "", self._inbox.root
        try:
            self._inbox.require_mount()
            held = outbox.find(self._folder, job.path, key=key, sha256=sha256)
            back = outbox.holds(root, job.path, sha256)
            if held is None and not back:
                self._jobs.end(
                    job,
                    JobState.SKIPPED,
                    detail={"reason": "the original was taken out of the review folder"},
                )
                return
            if held is not None and not back and names.signature(root, job.path) is not None:
                told = {"reason": "the inbox has another file of its name; decide again when that is done"}
                self._jobs.end(job, JobState.REVIEW, detail=told, choice=None)
                return
            self._move_back(job, held)
        except (PublishError, OSError) as error:
            self._jobs.retry_later(job, error)
            return
        self._go_on(job)

    def _move_back(self, job: Job, held: bytes | None) -> None:
        """Masks and proof first, so that the picture finds them, then the picture; the note is deleted."""
        key, sha256, root = job.key or "", job.input_sha256 or "", self._inbox.root
        here, there = (names.scan_beside(folder, [job.path], self._proof) for folder in (self._folder, root))
        companions = {*here.companions_of(job.path), *there.companions_of(job.path)}
        for name in dict.fromkeys((*names_beside(here, job, self._proof), *sorted(companions))):
            for place in (name, outbox.keyed(self._folder, name, key)):
                if names.signature(root, name) is not None:  # a crash may have come before it left review
                    digest = durable.file_sha256(root / os.fsdecode(name))
                    outbox.remove(self._folder, place, sha256=digest, key=key)
                elif names.signature(self._folder, place) is not None:
                    digest = durable.file_sha256(self._folder / os.fsdecode(place))
                    outbox.move(self._folder, place, root, name, sha256=digest, key=key)
        if held is not None:
            outbox.move(self._folder, held, root, job.path, sha256=sha256, key=key)
        for place in outbox.names(self._folder, job.path, key=key, sha256=sha256):
            if outbox.holds(root, job.path, sha256):
                outbox.remove(self._folder, place, sha256=sha256, key=key)
            note = self._folder / os.fsdecode(outbox.beside(self._folder, place, NOTE, key))
            if note_of(note) == job.id:
                note.unlink(missing_ok=True)

    def _go_on(self, job: Job) -> None:
        """Publish the result that was held, or work the picture again."""
        spool, scan = self._jobs.spool(job), self._inbox.look_beside([job])
        result = read_result(spool.folder, job)
        if job.path not in scan.files:  # somebody took its name in the same moment, or took it away
            told = {"reason": "the original went back into the inbox under another name, or was taken away"}
            self._jobs.end(job, JobState.SKIPPED, detail=told)
            return
        root = self._inbox.root
        masks = [durable.file_sha256(root / os.fsdecode(mask)) for mask in scan.masks_of(job.path)]
        if (
            job.choice == Choice.RELEASE
            and isinstance(result, Finished)
            and mask_digest(masks) == job.mask_sha256
            # Read after the scan: whoever replaces the original from now on changes what the scan noted.
            and outbox.holds(root, job.path, job.input_sha256 or "")
            and outbox.holds(spool.folder, b"output", result.output_sha256)
        ):
            spool.take_back(job.path, scan)
            missed = in_short(result.reasons) if result.verdict == Verdict.WEAK else None
            self._jobs.update(job, JobState.PUBLISHING, verdict=result.verdict, code=None, message=missed)
            return
        spool.drop()
        self._jobs.update(job, JobState.SETTLING, attempts=0, verdict=None, code=None, message=None)


def names_beside(scan: Scan, job: Job, proof: bytes) -> list[bytes]:
    """The names that masks and proof of a held picture may have, those that a scan saw first.

    Args:
        scan: of the review folder.
        job: whose picture is held.
        proof: see `Watch.proof_ending`.
    """
    written = scan.masks_of(job.path)  # P.MASK.PNG belongs to p.jpg too
    return [*written, *names.mask_names(job.path), *names.proof_names(job.path, proof)]


def masks_beside(folder: Path, job: Job) -> list[bytes]:
    """The masks that lie beside a held picture in the review folder."""
    found = names_beside(names.scan_beside(folder, [job.path]), job, b"")
    places = (place for name in found for place in (name, outbox.keyed(folder, name, job.key or "")))
    return [place for place in dict.fromkeys(places) if names.signature(folder, place) is not None]


def note_of(file: Path) -> int | None:
    """The job that a note beside a held picture is about; None if there is no such note."""
    try:
        number = json.loads(file.read_bytes())["job"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return number if isinstance(number, int) else None
