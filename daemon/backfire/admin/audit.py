"""`backfire audit`: whether everything that was published and archived is still there and unchanged.

The folders' manifests and the job database say what must be there. Every file is read from the disk again
and not from memory. It may run beside the daemon.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from backfire.config import Settings
from backfire.files import durable, manifest, outbox
from backfire.files.manifest import Entry
from backfire.pipeline.result import PhaseProgress, no_progress
from backfire.types import Job, JobState, shown

FOLDERS = ("outbox", "archive")
THREADS = 4
"""Threads that hash in parallel; more of them would only make a disk seek."""


class Kind(StrEnum):
    """What is wrong with a file."""

    CHANGED = "changed"
    """The content is another, or it is no regular file any more."""
    MISSING = "missing"
    UNREADABLE = "unreadable"
    UNKNOWN = "unknown"
    """Neither a manifest nor the database mentions it."""
    DAMAGED = "damaged"
    """A line of a manifest cannot be read."""


@dataclass(frozen=True)
class Discrepancy:
    """One thing that is not as it must be; digests are lower-case hex SHA-256."""

    folder: str
    path: str
    kind: Kind
    expected: str | None = None
    found: str | None = None


@dataclass(frozen=True)
class Audit:
    """The result: `files` and `size` (bytes) count what was read and is unchanged."""

    files: int
    size: int
    findings: tuple[Discrepancy, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether all is as it must be."""
        return not self.findings


def audit(
    settings: Settings,
    jobs: Callable[[], Iterable[Job]],
    *,
    folders: Iterable[str] = FOLDERS,
    progress: PhaseProgress = no_progress,
) -> Audit:
    """Read everything again and compare it with the records.

    Args:
        settings: only the folders are used.
        jobs: reads the jobs from the database; called again at the end, because the daemon may run on.
        folders: which of `FOLDERS`.
        progress: called as progress(folder, files done, files in all).

    Raises:
        OSError: a folder cannot be listed at all.
    """
    files = size = 0
    findings: list[Discrepancy] = []
    for name in folders:
        folder = settings.folders.named()[name]
        if not folder.is_dir():
            findings.append(Discrepancy(name, str(folder), Kind.MISSING))
            continue
        present = set(_files(folder))  # before the manifests are read, so that later files are not checked
        expected, damaged = expected_in(name, folder, jobs())
        findings += [Discrepancy(name, text, Kind.DAMAGED) for text in damaged]
        present -= expected.keys()
        for done, outcome in enumerate(_checked(name, folder, expected), start=1):
            progress(name, done, len(expected))
            if isinstance(outcome, Discrepancy):
                findings.append(outcome)
            else:
                files, size = files + 1, size + outcome
        findings += _unknown(name, folder, present, jobs)
    order = list(Kind)
    findings.sort(key=lambda finding: (finding.folder, order.index(finding.kind), finding.path))
    return Audit(files, size, tuple(findings))


def document(result: Audit) -> dict[str, Any]:
    """The result for `--json`."""
    rows = [
        {name: getattr(finding, name) for name in Discrepancy.__dataclass_fields__}
        for finding in result.findings
    ]
    return {"ok": result.ok, "files": result.files, "bytes": result.size, "findings": rows}


def expected_in(
    name: str, folder: Path, jobs: Iterable[Job]
) -> tuple[dict[bytes, set[str]], tuple[str, ...]]:
    """The digests that each path's content may have, and the damaged lines of the manifests.

    A name may be used again after its file was taken away, so that its content must be one of those that
    were put there.
    """
    listing = manifest.read(folder)
    expected: dict[bytes, set[str]] = {}
    for entry in (*_from_jobs(name, folder, jobs, set(listing.entries)), *listing.entries):
        expected.setdefault(entry.path, set()).add(entry.sha256)
    return expected, listing.damaged


def _from_jobs(name: str, folder: Path, jobs: Iterable[Job], listed: set[Entry]) -> Iterator[Entry]:
    """What the database knows and the manifests do not, so that deleting a manifest hides nothing."""
    for job in jobs:
        if name == "outbox":
            if job.output_path and job.output_sha256 and job.state in (JobState.PUBLISHED, JobState.ARCHIVED):
                yield Entry(job.output_path, job.output_sha256)
        elif job.state == JobState.ARCHIVED and job.input_sha256:
            places = outbox.names(folder, job.path, key=job.key or "")
            if not any(Entry(place, job.input_sha256) in listed for place in places):
                held = [place for place in places if (folder / os.fsdecode(place)).exists()]
                yield Entry(held[-1] if held else job.path, job.input_sha256)


def _files(folder: Path) -> Iterator[bytes]:
    """All files below the folder, relative to it, without the daemon's own hidden ones."""
    top = os.fsencode(folder)
    for parent, _, names in os.walk(top):
        for name in names:
            path = os.path.relpath(os.path.join(parent, name), top)
            if not manifest.NAME.fullmatch(path) and not name.startswith(b".backfire-"):
                yield path


def _unknown(
    name: str, folder: Path, unexpected: set[bytes], jobs: Callable[[], Iterable[Job]]
) -> Iterator[Discrepancy]:
    """Files that are still unknown; the daemon puts a file in place before it records that."""
    if not unexpected:
        return
    now = list(jobs())
    known, _ = expected_in(name, folder, now)
    moving = (JobState.PUBLISHING, JobState.SETTING_ASIDE, JobState.PUBLISHED)
    stems = tuple(os.path.splitext(job.path)[0] for job in now if job.state in moving)
    for path in unexpected - known.keys():
        if not path.startswith(stems):
            yield Discrepancy(name, shown(path), Kind.UNKNOWN)


def _checked(name: str, folder: Path, expected: Mapping[bytes, set[str]]) -> Iterator[Discrepancy | int]:
    """For each path its size in bytes if it is unchanged, else what is wrong."""
    pool = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1))
    try:
        yield from pool.map(lambda item: _check(name, folder, *item), expected.items())
    finally:
        pool.shutdown(cancel_futures=True)  # so that Ctrl-C does not wait for a whole archive


def _check(name: str, folder: Path, path: bytes, digests: set[str]) -> Discrepancy | int:
    file = os.path.join(os.fsencode(folder), path)
    wanted = " or ".join(sorted(digests))
    try:
        status = os.lstat(file)
        if not stat.S_ISREG(status.st_mode):
            return Discrepancy(name, shown(path), Kind.CHANGED, wanted, "no regular file")
        found = durable.file_sha256(file, from_disk=True)
    except (FileNotFoundError, NotADirectoryError):
        return Discrepancy(name, shown(path), Kind.MISSING, wanted)
    except OSError as error:
        return Discrepancy(name, shown(path), Kind.UNREADABLE, wanted, error.strerror)
    return status.st_size if found in digests else Discrepancy(name, shown(path), Kind.CHANGED, wanted, found)
