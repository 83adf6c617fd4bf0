"""Receipts and picture sheets in the reports folder, beside each other, never over those of another job."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from backfire.config import Settings
from backfire.evaluate.receipt import from_json, to_json, with_archived
from backfire.files import outbox
from backfire.files.manifest import Entry
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
                name = outbox.beside(path, suffix, key)
                outbox.replace(data, self._folders.reports, name, key=key, unsynced=unsynced)

    def add_archived(self, job: Job, kept: Iterable[Entry], unsynced: set[bytes]) -> None:
        """Add to the receipt that the original was read back from the archive and is what was taken in."""
        original = next((entry for entry in kept if entry.sha256 == job.input_sha256), None)
        file = self._jobs.spool(job).folder / "receipt.json"
        try:
            document = from_json(file.read_bytes())
        except (FileNotFoundError, ValueError):  # cut short by a power cut; the one in the reports stands
            document = None
        if document is None or job.output_path is None or original is None:
            self.discard_unfinished(job)
            return
        where, at, key = shown(original.path), self._jobs.now(), job.key or ""
        receipt = with_archived(document, at=at, sha256=original.sha256, where=where)
        name = outbox.beside(self._path(job, job.output_path), b".json", key)
        outbox.replace(to_json(receipt), self._folders.reports, name, key=key, unsynced=unsynced)

    def discard_unfinished(self, job: Job) -> None:
        """Delete what a crash left of writing a job's result and reports, where it will not be done again."""
        for folder in (self._folders.outbox, self._folders.reports):
            outbox.discard(folder, job.path, key=job.key or "")

    def _path(self, job: Job, path: bytes) -> bytes:
        return _path(self._folders.reports, job, path)


def find(reports: Path, job: Job) -> list[Path]:
    """The files that the reports folder holds of a job: receipt and sheet, as far as there are any."""
    key, path = job.key or "", _path(reports, job, job.output_path or job.path)
    receipt, sheet = (outbox.beside(path, suffix, key) for suffix in (b".json", b".sheet.jpg"))
    if _key_of(reports, receipt) != key:
        return []  # the place is another job's, or nobody's
    return [file for name in (receipt, sheet) if (file := reports / os.fsdecode(name)).exists()]


def _path(reports: Path, job: Job, path: bytes) -> bytes:
    """Where the job's reports stand: under another path than its output's where that is taken."""
    key, path = job.key or "", outbox.around(reports, path)
    taken = _key_of(reports, outbox.beside(path, b".json", key)) not in (None, key)
    return outbox.keyed(path, key) if taken else path


def _key_of(reports: Path, path: bytes) -> str | None:
    """The job key in a receipt; None if there is no such receipt, empty if it cannot be read."""
    try:
        key = from_json((reports / os.fsdecode(path)).read_bytes()).get("key")
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return ""
    return str(key)
