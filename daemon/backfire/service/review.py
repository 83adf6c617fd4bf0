"""Pictures that a person is to decide about: into the review folder, and from there back into the inbox.

The worker's result stays in the spool meanwhile, so that what is released is published at once. A decision
is recorded in the job database by another process (see `backfire.admin.review`); the daemon alone moves
files. Every step may be done again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Set

from backfire.config import Settings
from backfire.errors import InputError, PublishError, StoreError
from backfire.evaluate.receipt import in_short
from backfire.files import durable, outbox
from backfire.files import inbox as names
from backfire.service.held import names_beside, note_of, noted_by_others, put_beside
from backfire.service.inbox import Inbox
from backfire.service.jobs import Jobs
from backfire.service.originals import Originals
from backfire.service.reports import Reports
from backfire.service.set_aside import beside
from backfire.service.worker.protocol import Finished, read_result
from backfire.types import Choice, Job, JobState, Verdict, mask_digest, shown


class Review:
    """The steps of a job that is held for a person, and of one about which a person has decided.

    Args:
        settings: the folders are used; they do not change while the daemon runs.
        jobs: where the steps are recorded.
        inbox: asked what lies there now.
        originals: moves the files out of the inbox.
        reports: receipt and sheet, which help to decide.
    """

    def __init__(
        self, settings: Settings, jobs: Jobs, inbox: Inbox, originals: Originals, reports: Reports
    ) -> None:
        self._folder, self._outbox = settings.folders.review, settings.folders.outbox
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
            # The key may be another by now, as it has the configuration in it.
            content = job.input_sha256, job.mask_sha256
            known = self._jobs.store.by_path(job.path)
            held = [older for older in known if older.state == JobState.REVIEW]
            same = [older for older in held if (older.input_sha256, older.mask_sha256) == content]
            for older in same:
                told = {"reason": f"the same picture came again and is held as job {job.id}"}
                self._jobs.store.update(older.id, JobState.SKIPPED, at=self._jobs.now(), detail=told)
            self._jobs.end(job, JobState.REVIEW)
        for older in same:
            self._jobs.spool(older).drop()
        self._orphans = set()

    def _hold(self, job: Job) -> bool:
        """Note, reports, then original and masks; False if other files lie in the inbox by now."""
        key, unsynced = job.key or "", set[bytes]()
        if self._originals.have_changed(job, self._folder):
            return False
        note = outbox.beside(
            self._folder, self._originals.path_aside(job, self._folder), names.REVIEW_NOTE, key
        )
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
        """Have held pictures worked again whose mask lies in the inbox by now: that is a decision, too.

        Only a mask counts that has waited for long. It may have come just before the next picture of its
        name, which would be written over the held original, once that is back in the inbox.
        """
        orphans = {names.folded(path) for path in self._inbox.unused.lone_masks()}
        if not orphans or orphans == self._orphans:
            return
        # Of several held pictures of one name, the mask is taken for that of the newest.
        newest = {job.path: job for job in self._jobs.store.all_in(JobState.REVIEW)}
        for job in newest.values():
            given = orphans.intersection(map(names.folded, names.mask_names(job.path)))
            if given and job.path not in self._jobs.active:
                by = f"the mask {shown(min(given))}"
                try:
                    self._jobs.store.decide(job.id, Choice.AGAIN, by=by, at=self._jobs.now())
                except StoreError as error:
                    if error.transient:
                        raise
                    # Otherwise a person has just decided about it, or about another one of its name.
        self._orphans = orphans

    def release(self, job: Job) -> None:
        """Move a held original back and go on as the person decided; where that fails, it is tried again."""
        key, sha256, root = job.key or "", job.input_sha256 or "", self._inbox.root
        try:
            self._inbox.require_mount()
            held = outbox.find(self._folder, job.path, key=key, sha256=sha256, strict=True)
            back = outbox.holds(root, job.path, sha256, strict=True)
            if held is None and not back:
                self._end_without_original(job)
                return
            if held is not None and not back and names.signature(root, job.path) is not None:
                told = {"reason": "the inbox has another file of its name; decide again when that is done"}
                self._jobs.end(job, JobState.REVIEW, detail=told, choice=None)
                return
            self._move_back(job, held)
            self._end_those_without_original(job)
            self._go_on(job)
        except (InputError, PublishError, OSError) as error:
            self._jobs.retry_later(job, error)

    def _end_those_without_original(self, job: Job) -> None:
        """End the held jobs of the same picture, with other masks, whose original went back with this one."""
        store, spools = self._jobs.store, self._jobs.spool
        for other in store.by_path(job.path):
            sha256 = other.input_sha256 or ""
            if other.state != JobState.REVIEW or sha256 != job.input_sha256:
                continue
            if outbox.find(self._folder, other.path, key=other.key or "", sha256=sha256, strict=True) is None:
                told = {"reason": f"it is the same picture as job {job.id}, which was decided about"}
                store.update(other.id, JobState.SKIPPED, at=self._jobs.now(), detail=told)
                spools(other).drop()

    def _end_without_original(self, job: Job) -> None:
        """End a job whose original was taken away; it stays held if all else is gone with it."""
        key = job.key or ""
        places = outbox.names(self._folder, job.path, key=key, sha256=job.input_sha256 or "")
        notes = (outbox.beside(self._folder, place, names.REVIEW_NOTE, key) for place in places)
        if any(note_of(self._folder / os.fsdecode(note)) == job.id for note in notes):
            told = {"reason": "the original was taken out of the review folder"}
            self._jobs.end(job, JobState.SKIPPED, detail=told)
            return
        # It may be an empty folder in place of a share that is not mounted now.
        told = {"reason": "neither the original nor its note is in the review folder; decide when they are"}
        self._jobs.end(job, JobState.REVIEW, detail=told, choice=None)

    def _move_back(self, job: Job, held: bytes | None) -> None:
        """Masks and proof first, so that the picture finds them, then the picture; the note is deleted."""
        key, sha256, root = job.key or "", job.input_sha256 or "", self._inbox.root
        others = noted_by_others(self._jobs.store, self._jobs.spools, job)
        for name, (place, digest) in self._beside(job, held, others).items():
            source = self._folder / os.fsdecode(place)
            shared = digest in others.get(names.folded(name), ())
            if names.signature(root, name) is not None:
                if not outbox.holds(root, name, digest):  # what came into the inbox since is newer
                    continue
            elif shared:
                outbox.place(source, root, name, sha256=digest, key=key, into_inbox=True)
            else:
                outbox.put(source, root, name, sha256=digest, key=key, into_inbox=True)
            if not shared:
                outbox.remove(self._folder, place, sha256=digest, key=key)
        if held is not None:
            outbox.move(self._folder, held, root, job.path, sha256=sha256, key=key, into_inbox=True)
        for place in outbox.names(self._folder, job.path, key=key, sha256=sha256):
            if outbox.holds(root, job.path, sha256):
                outbox.remove(self._folder, place, sha256=sha256, key=key)
            note = self._folder / os.fsdecode(outbox.beside(self._folder, place, names.REVIEW_NOTE, key))
            if note_of(note) == job.id:
                note.unlink(missing_ok=True)

    def _beside(
        self, job: Job, held: bytes | None, others: Mapping[bytes, Set[str]]
    ) -> dict[bytes, tuple[bytes, str]]:
        """By name in the inbox, what goes back with a held picture: where it lies in review, and its SHA-256.

        That is what the picture was worked with. What was put there since is taken too, unless the result is
        to be published as it is.
        """
        folder, root, key = self._folder, self._inbox.root, job.key or ""
        spool, proof = self._jobs.spool(job), self._inbox.proof_ending
        own: dict[bytes, bytes | None] = {}
        back: dict[bytes, tuple[bytes, str]] = {}
        as_it_is = job.choice == Choice.RELEASE and bool(spool.files())
        for name, sha256, file in spool.extras():
            if file == spool.proof and not names.is_proof(name, proof):  # `watch.proof` is another by now
                continue
            place = own[name] = outbox.find(folder, name, key=key, sha256=sha256, strict=True)
            if place is not None:
                back[name] = place, sha256
            elif names.is_mask(name) and not outbox.holds(root, name, sha256, strict=True):
                as_it_is = False  # the mask was replaced, so that the result is not that of the new one
        here = names.scan_beside(folder, [job.path], self._inbox.ignore, proof)
        here.require_known([job.path])
        wanted = [*here.companions_of(job.path), *([] if as_it_is else names_beside(here, job, proof))]
        for name, place in put_beside(folder, job, held, wanted, others, own):
            back[name] = place, durable.file_sha256(folder / os.fsdecode(place))
        return back

    def _go_on(self, job: Job) -> None:
        """Publish the result that was held, or work the picture again."""
        spool, scan = self._jobs.spool(job), self._inbox.look_beside([job])
        scan.require_known([job.path, *(mask for mask, _ in spool.masks())])
        result = read_result(spool.folder, job)
        if job.path not in scan.files:  # somebody took its name in the same moment, or took it away
            told = {"reason": "the original went back into the inbox under another name, or was taken away"}
            self._jobs.end(job, JobState.SKIPPED, detail=told)
            return
        root = self._inbox.root
        masks = [durable.file_sha256(root / os.fsdecode(mask)) for mask in scan.masks_of(job.path)]
        same = mask_digest(masks) == job.mask_sha256
        if (
            job.choice == Choice.RELEASE
            and isinstance(result, Finished)
            and same
            # Read after the scan: whoever replaces the original from now on changes what the scan noted.
            and outbox.holds(root, job.path, job.input_sha256 or "")
            and outbox.holds(spool.folder, b"output", result.output_sha256)
        ):
            spool.take_back(root, job.path, scan)
            missed = in_short(result.reasons) if result.verdict == Verdict.WEAK else None
            self._jobs.update(job, JobState.PUBLISHING, verdict=result.verdict, code=None, message=missed)
            return
        spool.drop()
        choice = job.choice
        reason: dict[str, str] | None = None
        if choice == Choice.RELEASE and not same:  # nobody has seen the result of these masks
            choice, reason = None, {"reason": "the masks are not those of the result that was released"}
        self._jobs.update(
            job,
            JobState.SETTLING,
            detail=reason,
            attempts=0,
            verdict=None,
            code=None,
            message=None,
            choice=choice,
        )
