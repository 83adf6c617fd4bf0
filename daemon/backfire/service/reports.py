"""Receipts and picture sheets in the reports folder, beside each other, never over those of another job."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from backfire.config import Settings
from backfire.evaluate.receipt import from_json, to_json, with_archived, with_decision
from backfire.files import outbox
from backfire.files.manifest import Entry
from backfire.service import report_files
from backfire.service.jobs import Jobs
from backfire.types import Job, shown


class Reports:
    """Writes the reports of jobs from what the worker left in their spool folders.

    Args:
        settings: the folders are used.
        jobs: the spool folders.
    """

    def __init__(self, settings: Settings, jobs: Jobs) -> None:
        self._folders, self._jobs = settings.folders, jobs

    def write(self, job: Job, path: bytes, unsynced: set[bytes]) -> None:
        """Receipt and sheet, as far as there are any.

        Args:
            job: whose reports.
            path: of the result in the outbox, or of the original that is set aside.
            unsynced: folders whose names must be synced before anything relies on them are added.
        """
        folder, key, path = self._jobs.spool(job).folder, job.key or "", self._path(job, path)
        for file, suffix in (("receipt.json", b".json"), ("sheet.jpg", b".sheet.jpg")):
            with suppress(FileNotFoundError):
                data = (folder / file).read_bytes()
                if suffix == b".json":
                    data = self._with_decision(data, job)
                name = outbox.beside(self._folders.reports, path, suffix, key)
                outbox.replace(data, self._folders.reports, name, key=key, unsynced=unsynced)

    def add_archived(self, job: Job, kept: Iterable[Entry], unsynced: set[bytes]) -> None:
        """Add to the receipt that the original was read back from the archive and is what was taken in."""
        original = next((entry for entry in kept if entry.sha256 == job.input_sha256), None)
        file = self._jobs.spool(job).folder / "receipt.json"
        try:
            document = from_json(self._with_decision(file.read_bytes(), job))
        except (FileNotFoundError, ValueError):  # lost in a power cut; the one in the reports stays
            document = None
        if document is None or job.output_path is None or original is None:
            self.discard_unfinished(job)
            return
        where, at, key = shown(original.path), self._jobs.now(), job.key or ""
        receipt = with_archived(document, at=at, sha256=original.sha256, where=where)
        reports = self._folders.reports
        name = outbox.beside(reports, self._path(job, job.output_path), b".json", key)
        outbox.replace(to_json(receipt), reports, name, key=key, unsynced=unsynced)

    def discard_unfinished(self, job: Job) -> None:
        """Delete what a crash left of writing a job's result and reports, where it will not be done again."""
        for folder in (self._folders.outbox, self._folders.reports):
            outbox.discard(folder, job.path, key=job.key or "")

    def _with_decision(self, receipt: bytes, job: Job) -> bytes:
        """A receipt with the last decision about a job that was held; as it is where there was none."""
        decided = [event for event in self._jobs.store.history(job.id) if "decided" in event.detail]
        if job.choice is None or not decided:
            return receipt
        try:
            document = from_json(receipt)
        except ValueError:  # damaged in a power cut
            return receipt
        by = str(decided[-1].detail.get("by", ""))
        return to_json(with_decision(document, choice=job.choice, by=by, at=decided[-1].at))

    def _path(self, job: Job, path: bytes) -> bytes:
        return report_files.place(self._folders.reports, job, path)
