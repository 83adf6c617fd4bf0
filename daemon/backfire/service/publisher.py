"""From a finished result to its place: reports, outbox, record, archive.

Every step may be done again: names follow from content and key, and the same content under the same name is
accepted. A step that cannot be done now is tried again later, and no attempt is counted. Jobs that finish at
the same time go step by step together, so that a sync of a folder, a write of the manifest and a commit serve
all of them.

The order of the steps is what every promise about crashes rests on: the receipt before the result, the result
before its record, the record before the original leaves the inbox.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import structlog

from backfire.config import Settings
from backfire.errors import Code, InputError, PublishError
from backfire.files import inbox as names
from backfire.files import manifest, outbox
from backfire.files.inbox import Scan
from backfire.files.manifest import Entry
from backfire.service.inbox import Inbox
from backfire.service.jobs import Jobs, isolated
from backfire.service.originals import Originals
from backfire.service.reports import Reports
from backfire.service.review import Review
from backfire.service.set_aside import SetAside
from backfire.service.shared_steps import each, for_all
from backfire.service.worker.protocol import Finished, read_result
from backfire.types import Job, JobState, shown

log = structlog.get_logger()

RETRY_S = 60.0
"""Between two tries to move a companion that came late."""
TOGETHER = 128
"""How many jobs are put in place at a time."""


class Publisher:
    """Puts results and originals where they belong.

    Args:
        settings: the folders are used; they do not change while the daemon runs.
        jobs: what is finished, and where its steps are recorded.
        inbox: asked whether a picture is still the one that was worked.
    """

    def __init__(self, settings: Settings, jobs: Jobs, inbox: Inbox) -> None:
        self._folders, self._jobs, self._inbox = settings.folders, jobs, inbox
        self._originals = Originals(jobs, inbox)
        self._reports = Reports(settings, jobs)
        self._set_aside = SetAside(settings, jobs, self._originals, self._reports)
        self._review = Review(settings, jobs, inbox, self._originals, self._reports)
        self._unrecorded: dict[tuple[int, int], Entry] = {}
        """By job and lease: a result that was put in the outbox and whose record is still to be written."""

    def is_out(self, job: Job) -> bool:
        """Whether the outbox has the job's result, recorded or not."""
        return job.state == JobState.PUBLISHED or self._put_before(job) is not None

    def _put_before(self, job: Job) -> Entry | None:
        """The job's result as it was put in the outbox, though its record is still to be written."""
        entry = self._unrecorded.get((job.id, job.lease))
        if entry is None and job.output_path is not None and job.output_sha256 is not None:
            return Entry(job.output_path, job.output_sha256)  # noted before a restart
        return entry

    def step(self) -> bool:
        """Put some of what is finished in its place, also what a crash or a full disk interrupted.

        Returns:
            Whether there was anything that could be tried.
        """
        moves = {
            JobState.SETTING_ASIDE: self._set_aside.step,
            JobState.HOLDING: self._review.hold,
            JobState.RELEASING: self._review.release,
        }
        ended = self._due(JobState.PUBLISHING, *moves)
        published = self._due(JobState.PUBLISHED)
        if ended or published:
            try:
                self._inbox.mounts.require_written()
            except OSError as error:
                for job in (*ended, *published):
                    self._jobs.retry_later(job, error)
                return False
        for job in ended:
            if (move := moves.get(job.state)) is not None:
                with isolated(job):
                    move(job)
        self.publish([job for job in ended if job.state == JobState.PUBLISHING])
        self.archive(self._due(JobState.PUBLISHED))
        self._follow()
        self._review.take_up_masks()
        return bool(ended or published)

    def _follow(self) -> None:
        """Put companions that came after their picture was done where its original is."""
        for path, job in self._inbox.unused.late_companions():
            folder = self._original_lies_in(job)
            if folder is None:
                continue
            try:
                self._inbox.mounts.require_written()
                entry = self._originals.follow(path, job, folder)
                if folder == self._folders.archive:
                    manifest.append(folder, [entry], at=self._jobs.now())
                self._originals.leave(path, job, entry)
            except (InputError, PublishError, OSError) as error:
                if isinstance(error, InputError) and error.code == Code.CHANGED:
                    continue  # the next scan sees it as it is then
                log.warning("postponed", path=shown(path), error=str(error), retry_s=RETRY_S)
                self._jobs.wait(job, RETRY_S)
            else:
                log.info("companion_followed", path=shown(path), folder=str(folder), of=job.name)

    def _original_lies_in(self, job: Job) -> Path | None:
        """The folder that holds a job's original; None while it is in the inbox or where it is in none."""
        match job.state:
            case JobState.ARCHIVED:
                return self._folders.archive
            case JobState.FAILED | JobState.QUARANTINED:
                return self._folders.failed
            case JobState.REVIEW:
                return self._folders.review
        return None

    def _due(self, *states: JobState) -> list[Job]:
        """Some jobs whose step may be tried; of several with one key, whose files might meet, only one."""
        due: dict[str | None, Job] = {}
        # Jobs whose step failed come last; otherwise many of them would leave no room for the others.
        for job in sorted(self._jobs.of(*states), key=lambda job: job.id in self._jobs.failed_tries):
            if self._jobs.due(job):
                due.setdefault(job.key, job)
        return list(due.values())[:TOGETHER]

    # Into the outbox

    def publish(self, jobs: Sequence[Job]) -> None:
        """Receipts, then results, then the record: no result stands in the outbox without a receipt."""
        folder, results = self._folders.outbox, self._results(jobs)

        def report(job: Job, unsynced: set[bytes]) -> None:
            wanted, sha256 = results[job]
            path = outbox.destined(folder, wanted, sha256=sha256, key=job.key or "")
            self._reports.write(job, path, unsynced)

        def place(job: Job, unsynced: set[bytes]) -> Entry | None:
            (wanted, sha256), spooled = results[job], self._jobs.spool(job).folder
            before = self._put_before(job)
            # What was put there before, whatever became of it, nobody must get twice.
            if before is not None and before.sha256 == sha256:
                target = os.path.join(os.fsencode(folder), before.path)
                if os.path.lexists(target):
                    unsynced.add(os.path.dirname(target))
                return before
            try:
                path = outbox.place(
                    spooled / "output", folder, wanted, key=job.key or "", sha256=sha256, unsynced=unsynced
                )
            except (PublishError, OSError):
                if outbox.holds(spooled, b"output", sha256):
                    raise
                return None
            entry = self._unrecorded[job.id, job.lease] = Entry(path, sha256)
            return entry

        tried = each(self._jobs, each(self._jobs, results, report), place)
        for job in (job for job, entry in tried.items() if entry is None):
            self._work_again(job)
        placed = {job: entry for job, entry in tried.items() if entry is not None}
        now = self._jobs.now()
        if not placed or not for_all(
            self._jobs, placed, lambda: manifest.append(folder, placed.values(), at=now)
        ):
            with self._jobs.together():
                for job, entry in placed.items():
                    if (job.output_path, job.output_sha256) != entry:
                        self._jobs.note_output(job, *entry)
            return
        with self._jobs.together():
            for job, (path, sha256) in placed.items():
                with isolated(job):
                    told = {"output": shown(path)}
                    self._jobs.update(
                        job, JobState.PUBLISHED, detail=told, output_path=path, output_sha256=sha256
                    )
        for job in placed:
            self._unrecorded.pop((job.id, job.lease), None)

    def _results(self, jobs: Sequence[Job]) -> dict[Job, tuple[bytes, str]]:
        """Wanted path and SHA-256 of each result that is still that of the file in the inbox."""
        if not jobs:
            return {}
        try:
            beside = self._inbox.look_beside(jobs)
        except OSError as error:
            for job in jobs:
                self._jobs.retry_later(job, error)
            return {}
        found: dict[Job, tuple[bytes, str]] = {}
        taken: set[bytes] = set()
        for job in jobs:
            try:
                with isolated(job, OSError):
                    result = self._result(job, beside)
            except OSError as error:
                self._jobs.retry_later(job, error)
                continue
            if result is not None and (name := names.folded(result[0])) not in taken:
                found[job] = result
                taken.add(name)  # p.bmp and p.png both become p.png: one after the other
        return found

    def _result(self, job: Job, beside: Scan) -> tuple[bytes, str] | None:
        """Wanted path and SHA-256 of a job's result; None where it has to be worked again."""
        result = read_result(self._jobs.spool(job).folder, job)
        if not isinstance(result, Finished):
            self._work_again(job)
            return None
        wanted = outbox.renamed(self._folders.outbox, job.path, result.extension)
        unchanged = self._inbox.is_unchanged(job, beside)
        if unchanged and not self._inbox.is_mask_by_now(job):
            return wanted, result.output_sha256
        # Somebody replaced picture or mask in the meantime, so this is not the result of what lies there now;
        # or the picture came whose mask this is.
        changed = "picture or mask changed" if not unchanged else "the picture came whose mask this is"
        told = {"reason": f"{changed} while it was worked"}
        if (entry := self._placed(job, wanted, result.output_sha256)) is not None:
            if not for_all(self._jobs, [job], lambda: self._add_to_manifest(entry)):
                return None
            told["output"] = shown(entry.path)
        self._reports.discard_unfinished(job)
        self._unrecorded.pop((job.id, job.lease), None)
        # It was worked to its end, so that the attempt says nothing against the picture.
        self._jobs.update(
            job,
            JobState.SETTLING,
            attempts=0,
            message=None,
            output_path=None,
            output_sha256=None,
            detail=told,
        )
        return None

    def _placed(self, job: Job, wanted: bytes, sha256: str) -> Entry | None:
        """The job's result in the outbox, put there just now or before a crash, and not recorded yet."""
        if (before := self._put_before(job)) is not None:
            return before
        found = outbox.find(self._folders.outbox, wanted, key=job.key or "", sha256=sha256)
        return None if found is None else Entry(found, sha256)

    def _add_to_manifest(self, entry: Entry) -> None:
        """List a result that stands in the outbox though no job will record it."""
        folder = self._folders.outbox
        outbox.sync({os.path.dirname(os.path.join(os.fsencode(folder), entry.path))})
        manifest.append(folder, [entry], at=self._jobs.now())

    def _work_again(self, job: Job) -> None:
        self._reports.discard_unfinished(job)
        detail = {"reason": "the result in the spool is gone or damaged"}
        # It was worked to its end, so that the attempt says nothing against the picture.
        self._jobs.update(job, JobState.READY, attempts=0, message=None, detail=detail)

    # Into the archive

    def archive(self, jobs: Sequence[Job]) -> None:
        """Originals and masks into the archive, then out of the inbox, then the receipts and the record."""
        folder = self._folders.archive
        copies = each(self._jobs, jobs, lambda job, unsynced: self._originals.copy(job, folder, unsynced))
        kept = each(self._jobs, copies, lambda job, _: self._originals.remove(job, folder, copies[job]))
        entries = [entry for some in kept.values() for entry in some]
        now = self._jobs.now()
        if not kept or not for_all(self._jobs, kept, lambda: manifest.append(folder, entries, at=now)):
            return
        noted = each(
            self._jobs, kept, lambda job, unsynced: self._reports.add_archived(job, kept[job], unsynced)
        )
        with self._jobs.together():
            for job in noted:
                with isolated(job):
                    self._end(job, kept[job])

    def _end(self, job: Job, kept: Sequence[Entry]) -> None:
        """Record that a job is done, and what the archive has of it."""
        result = read_result(self._jobs.spool(job).folder, job)
        timings = result.timings_s if isinstance(result, Finished) else None
        told = {"archived": [shown(entry.path) for entry in kept], "sha256": job.input_sha256}
        if job.input_sha256 not in [entry.sha256 for entry in kept]:
            told["reason"] = "the original was taken away or replaced before it could be archived"
        self._jobs.end(job, JobState.ARCHIVED, detail=told, timings=timings)
