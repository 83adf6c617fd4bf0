"""Originals and their masks out of the inbox: copied, read back, and only then removed.

Nothing else takes files out of the inbox. Every step may be done again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from backfire.errors import InputError, PublishError
from backfire.files import inbox as names
from backfire.files import outbox
from backfire.files.manifest import Entry
from backfire.service.inbox import Inbox
from backfire.service.jobs import Jobs
from backfire.service.spool import Spool
from backfire.types import Job


class Copy(NamedTuple):
    """A file of the inbox.

    Attributes:
        path: relative to the inbox.
        sha256: of its content.
        placed: where its copy was put; None where there was no copy left to put anywhere.
    """

    path: bytes
    sha256: str
    placed: bytes | None


class Originals:
    """Moves pictures and what lies beside them from the inbox into the archive or the failed folder."""

    def __init__(self, jobs: Jobs, inbox: Inbox) -> None:
        self._jobs, self._inbox = jobs, inbox

    def path_aside(self, job: Job, folder: Path) -> bytes:
        """The path that an original has, or will get, in the `folder` where it is set aside."""
        seen, key = self._jobs.spool(job).files().get(job.path), job.key or ""
        if job.input_sha256 is None:
            return outbox.vacant(folder, job.path, key=key, same=seen.same if seen else _never)
        size = seen.size if seen else None
        return outbox.destined(folder, job.path, sha256=job.input_sha256, key=key, size=size)

    def have_changed(self, job: Job, folder: Path) -> bool:
        """Whether other files than those that were copied lie in the inbox, so that none is to be set aside.

        Raises:
            OSError: nobody can tell.
        """
        if self._inbox.is_unchanged(job, self._inbox.look_beside([job])):
            return False
        # A crash may have come between the move and its record: then the rest is moved now.
        key, sha256 = job.key or "", job.input_sha256 or ""
        moved = outbox.find(folder, job.path, key=key, sha256=sha256, strict=True) is not None
        return not moved or names.signature(self._inbox.root, job.path) is not None

    def move_unread(self, job: Job, folder: Path) -> bool:
        """Move an original that was not read, and what is beside it, to `folder` by their names alone.

        Returns:
            False if another file has appeared under its name.
        """
        if self._inbox.is_mask_by_now(job):
            return False
        seen, key = self._jobs.spool(job).files(), job.key or ""
        known = seen.pop(job.path, None)
        gone = self._inbox.move_unread(job.path, folder, key=key, same=known.same if known else _never)
        wanted = self._inbox.wanted_by_others(job) if seen else set()
        for path, signature in seen.items():
            if gone and names.folded(path) not in wanted:
                self._inbox.move_unread(path, folder, key=key, same=signature.same)
        return gone

    def copy(self, job: Job, folder: Path, unsynced: set[bytes]) -> list[Copy]:
        """Put the spool's verified copies of original, masks and proof into `folder`.

        Args:
            job: whose files.
            folder: archive or failed folder.
            unsynced: folders whose names must be synced before anything relies on them are added.

        Returns:
            What may leave the inbox.
        """
        spool, sha256, key = self._jobs.spool(job), job.input_sha256 or "", job.key or ""
        self._take_companions(job, spool)
        times = {path: signature.mtime_ns for path, signature in spool.files().items()}
        placed = None
        if outbox.holds(spool.folder, b"input", sha256) or self._copied_again(job, spool):
            if job.path in times:
                os.utime(spool.input, ns=(times[job.path], times[job.path]))
            placed = outbox.put(spool.input, folder, job.path, sha256=sha256, key=key, unsynced=unsynced)
        elif (placed := outbox.find(folder, job.path, key=key, sha256=sha256)) is not None:
            unsynced.add(os.path.dirname(os.path.join(os.fsencode(folder), placed)))
        copies = [Copy(job.path, sha256, placed)]
        for extra, digest, file in spool.extras():
            put = None
            if file.exists():
                put = outbox.put(file, folder, extra, sha256=digest, key=key, unsynced=unsynced)
            copies.append(Copy(extra, digest, put))
        return copies

    def _take_companions(self, job: Job, spool: Spool) -> None:
        """Copy what accompanies the picture; what cannot be copied now stays, and follows later."""
        for path, signature in self._inbox.companions(job.path).items():
            with suppress(InputError, OSError):
                self._inbox.copy_companion(spool, path, signature)

    def follow(self, path: bytes, job: Job, folder: Path) -> Entry:
        """Put a companion that came late where its picture's original is; `leave` then removes it.

        Raises:
            InputError, PublishError, OSError: it cannot be done now.
        """
        copy = self._jobs.spools / "companion"
        try:
            taken = self._inbox.take(path, copy)
            placed = outbox.put(copy, folder, path, sha256=taken.sha256, key=job.key or "")
        finally:
            copy.unlink(missing_ok=True)
        outbox.confirm(folder, placed, taken.sha256)
        return Entry(placed, taken.sha256)

    def leave(self, path: bytes, job: Job, entry: Entry) -> None:
        """Remove from the inbox what `follow` has put in its place."""
        self._inbox.remove(path, sha256=entry.sha256, key=job.key or "")

    def _copied_again(self, job: Job, spool: Spool) -> bool:
        """Copy the original once more where a crash took its private copy or half of it; False if gone.

        A copy and no hard link: its owner may write to the file again at any time.

        Raises:
            OSError, PublishError: it cannot be copied now.
        """
        spool.folder.mkdir(parents=True, exist_ok=True)
        try:
            taken = self._inbox.copy_again(job, spool.input)
        except InputError as error:
            spool.input.unlink(missing_ok=True)
            raise PublishError(error.message) from error
        if taken is not None and taken.sha256 == job.input_sha256:
            return True
        spool.input.unlink(missing_ok=True)
        return False

    def remove(self, job: Job, folder: Path, copies: Iterable[Copy]) -> list[Entry]:
        """Remove from the inbox what was copied.

        Only a file with the content that was worked is removed; a newer one stays, and so do masks that
        another picture needs, also one that was taken for a picture itself. Nothing is removed before its
        copy was read back from the disk.

        Returns:
            What `folder` now keeps.
        """
        kept = []
        wanted: set[bytes] | None = None
        copies = list(copies)
        masks = {path for path, _ in self._jobs.spool(job).masks()}
        companions = [copy.path for copy in copies if copy.path not in masks and _accompanies(copy.path)]
        shared: set[bytes] | None = None
        for path, sha256, placed in copies:
            if placed is None:  # there is no copy, so what lies in the inbox may be the only file
                continue
            outbox.confirm(folder, placed, sha256)
            kept.append(Entry(placed, sha256))
            if path != job.path:  # asked only after the picture itself is gone, since a newer one counts
                wanted = self._inbox.wanted_by_others(job) if wanted is None else wanted
                shared = (
                    self._inbox.companions_wanted_by_others(job, companions) if shared is None else shared
                )
                stays = names.folded(path) in wanted or path in shared
            else:
                stays = self._inbox.is_mask_by_now(job)
            if not stays:
                self._inbox.remove(path, sha256=sha256, key=job.key or "")
        return kept


def _accompanies(path: bytes) -> bool:
    return names.is_companion(path) or names.is_raw(path)


def _never(_: object) -> bool:
    """No file is known, so that none is the same."""
    return False
