"""Originals on their way out of the inbox, with their masks: copied, read back, and only then removed.

Nobody else takes anything out of the inbox. Every step may be done again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from backfire.config import Settings
from backfire.errors import InputError, PublishError
from backfire.files import inbox, outbox
from backfire.files.manifest import Entry
from backfire.service.intake import Intake
from backfire.service.jobs import Ledger
from backfire.service.spool import Spool
from backfire.types import Job, JobState


class Copy(NamedTuple):
    """A file of the inbox and its SHA-256, and where its copy was put; None where no copy was left to put."""

    path: bytes
    sha256: str
    placed: bytes | None


class Originals:
    """Takes pictures and what lies beside them out of the inbox, into archive or failed."""

    def __init__(self, settings: Settings, ledger: Ledger, intake: Intake) -> None:
        self._ledger, self._intake = ledger, intake
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        """Work by other settings from now on; the folders must be the same."""
        self._settings = settings

    def aside_path(self, job: Job, folder: Path) -> bytes:
        """The path in `folder` of an original that is set aside."""
        seen, key = self._ledger.spool(job).files().get(job.path), job.key or ""
        if job.input_sha256 is None:
            return outbox.vacant(folder, job.path, key=key, same=seen.same if seen else _none)
        size = seen.size if seen else None
        return outbox.destined(folder, job.path, sha256=job.input_sha256, key=key, size=size)

    def shift(self, job: Job, folder: Path) -> bool:
        """An original that was not read, and what is beside it, out of the inbox by their names alone.

        Returns:
            False if another file has come to lie under its name.
        """
        seen = self._ledger.spool(job).files()
        known = seen.pop(job.path, None)
        root, key = self._intake.root, job.key or ""
        gone = outbox.shift(root, job.path, folder, job.path, key=key, same=known.same if known else _none)
        wanted = self._wanted_by_others(job) if seen else set()
        for path, signature in seen.items():
            if gone and inbox.folded(path) not in wanted:
                outbox.shift(root, path, folder, path, key=key, same=signature.same)
        return gone

    def copy(self, job: Job, folder: Path, unsynced: set[bytes]) -> list[Copy]:
        """Original, masks and proof from the spool's verified copies into `folder`; what leaves the inbox."""
        spool, sha, key = self._ledger.spool(job), job.input_sha256 or "", job.key or ""
        times = {path: signature.mtime_ns for path, signature in spool.files().items()}
        placed = None
        if spool.input.exists() or self._taken_again(job, spool):
            if job.path in times:
                os.utime(spool.input, ns=(times[job.path], times[job.path]))
            placed = outbox.put(spool.input, folder, job.path, sha256=sha, key=key, unsynced=unsynced)
        elif (placed := outbox.find(folder, job.path, key=key, sha256=sha)) is not None:
            unsynced.add(os.path.dirname(os.path.join(os.fsencode(folder), placed)))
        copies = [Copy(job.path, sha, placed)]
        for extra, digest, file in spool.extras():
            put = None
            if file.exists():
                put = outbox.put(file, folder, extra, sha256=digest, key=key, unsynced=unsynced)
            copies.append(Copy(extra, digest, put))
        return copies

    def _taken_again(self, job: Job, spool: Spool) -> bool:
        """Copy the original once more where a power cut took its private copy; False if it is gone.

        Its owner may write to it again at any time, so that a second name for it would be no archive.

        Raises:
            OSError, PublishError: it cannot be copied now.
        """
        self._intake.require_mount()
        if inbox.signature(self._intake.root, job.path) is None:
            return False
        spool.folder.mkdir(parents=True, exist_ok=True)
        try:
            taken = inbox.take(self._intake.root, job.path, spool.input)
        except InputError as error:
            spool.input.unlink(missing_ok=True)
            raise PublishError(error.message) from error
        if taken.sha256 != job.input_sha256:
            spool.input.unlink()
            return False
        return True

    def leave(self, job: Job, folder: Path, copies: Iterable[Copy]) -> list[Entry]:
        """Out of the inbox with what was copied; returns what `folder` now keeps.

        What leaves the inbox is only what has the content that was worked; a newer file stays, and so
        do masks that another picture needs. Nothing leaves it before its copy was read back from the disk.
        """
        kept = []
        wanted: set[bytes] | None = None
        for path, sha, placed in copies:
            if placed is None:  # no copy, so that what may lie there (again) is the only one
                continue
            outbox.confirm(folder, placed, sha)
            kept.append(Entry(placed, sha))
            if path != job.path:  # asked only now: the picture itself is gone, a newer one counts
                wanted = self._wanted_by_others(job) if wanted is None else wanted
            if path == job.path or inbox.folded(path) not in (wanted or ()):
                outbox.remove(self._intake.root, path, sha256=sha, key=job.key or "")
        return kept

    def _wanted_by_others(self, job: Job) -> set[bytes]:
        """Names, `folded`, of masks and proofs that pictures in the inbox need, seen by a scan or not yet."""
        root, watch = self._intake.root, self._settings.watch
        return {
            inbox.folded(name)
            for path in inbox.rivals(root, job.path, watch.ignore, watch.proof_ending)
            if not self._has_its_copies(path)
            for name in (*inbox.mask_names(path), *inbox.proof_names(path, watch.proof_ending))
        }

    def _has_its_copies(self, path: bytes) -> bool:
        """Whether the picture that lies in the inbox needs nothing from there any more."""
        job, found = self._ledger.jobs.get(path), inbox.signature(self._intake.root, path)
        if found is None:
            return True
        published = job is not None and job.state == JobState.PUBLISHED
        return published and job is not None and self._ledger.spool(job).files().get(path) == found


def _none(_: object) -> bool:
    """Of a file that nobody has noted, no other is the same."""
    return False
