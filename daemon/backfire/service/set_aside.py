"""Originals that cannot be protected into the failed folder, with their masks and a file that says why."""

from __future__ import annotations

import json
import os
import time

from backfire import advice
from backfire.config import Settings
from backfire.errors import Code, PublishError
from backfire.files import outbox
from backfire.files.inbox import ERROR_NOTE
from backfire.service.jobs import Jobs
from backfire.service.originals import Originals
from backfire.service.reports import Reports
from backfire.service.worker.protocol import Finished, read_result
from backfire.types import Job, JobState


def beside(job: Job) -> dict[str, str]:
    """What a note beside an original says to a person: what happened, what to do, where to read more."""
    said = advice.of(job)
    return {} if said is None else {"what": said.sentence, "do": said.action, "page": said.page}


class SetAside:
    """The last step of a job that failed.

    Args:
        settings: the folders are used.
        jobs: where the end is recorded.
        originals: moves the files.
        reports: receipt and sheet, where the last attempt came to a verdict.
    """

    def __init__(self, settings: Settings, jobs: Jobs, originals: Originals, reports: Reports) -> None:
        self._folder = settings.folders.failed
        self._jobs, self._originals, self._reports = jobs, originals, reports

    def step(self, job: Job) -> None:
        """Move the files and record the end; where that cannot be done now, it is tried again later."""
        try:
            moved = self._move(job)
        except (PublishError, OSError) as error:
            self._jobs.retry_later(job, error)
            return
        if not moved:
            told = {"reason": "picture or mask changed before it was set aside"}
            self._reports.discard_unfinished(job)
            # What was found says nothing against the files that lie there now.
            self._jobs.update(
                job, JobState.SETTLING, attempts=0, code=None, message=None, verdict=None, detail=told
            )
            return
        died = job.code == Code.WORKER_DIED
        self._jobs.end(job, JobState.QUARANTINED if died else JobState.FAILED)

    def _move(self, job: Job) -> bool:
        """Error file, reports, then original and masks; False if other files lie there by now."""
        key, unsynced = job.key or "", set[bytes]()
        if job.input_sha256 is not None and self._originals.have_changed(job, self._folder):
            return False
        aside = self._originals.path_aside(job, self._folder)
        reason = outbox.beside(self._folder, aside, ERROR_NOTE, key)
        outbox.replace(self._error_file(job), self._folder, reason, key=key, unsynced=unsynced)
        # An attempt that did not end may have left a receipt, of what was never judged to the end.
        if isinstance(read_result(self._jobs.spool(job).folder, job), Finished):
            self._reports.write(job, job.path, unsynced)
        if job.input_sha256 is None:
            outbox.sync(unsynced)
            if not self._originals.move_unread(job, self._folder):
                (self._folder / os.fsdecode(reason)).unlink(missing_ok=True)
                return False
            return True
        copies = self._originals.copy(job, self._folder, unsynced)
        outbox.sync(unsynced)
        self._originals.remove(job, self._folder, copies)
        return True

    def _error_file(self, job: Job) -> bytes:
        document = {
            "file": job.name,
            "code": job.code,
            "message": job.message,
            **beside(job),
            "attempts": job.attempts,
            "input_sha256": job.input_sha256,
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._jobs.now())),
        }
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        return text.encode("utf-8", "replace")
