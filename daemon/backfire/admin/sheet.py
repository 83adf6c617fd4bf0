"""`backfire sheet`: which pictures a contact sheet shows, and where they lie."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from backfire.admin.outcomes import Outcome, in_words, outcome
from backfire.admin.retry import in_failed
from backfire.config import Settings
from backfire.errors import PublishError
from backfire.files import outbox, safe_paths
from backfire.imaging import contact_sheet
from backfire.imaging.contact_sheet import Group, Tile
from backfire.pipeline.result import PhaseProgress
from backfire.types import Job, JobState, Rgb, shown

SHOWN = tuple(
    state
    for state in JobState
    if state
    in (JobState.PUBLISHED, JobState.ARCHIVED, JobState.FAILED, JobState.QUARANTINED, JobState.REVIEW)
)
"""The states whose pictures lie still."""


def sheet(
    settings: Settings,
    jobs: Sequence[Job],
    title: str,
    *,
    progress: PhaseProgress = lambda text, done, total: None,
) -> Iterator[bytes]:
    """A contact sheet of some jobs, by folder, as JPEGs, a page each.

    Args:
        settings: folders and limits are used.
        jobs: in one of the states of `SHOWN`.
        title: what stands at the top, before the counts.
        progress: called as progress(what, done, total).
    """
    side = contact_sheet.side_of(len(jobs))
    folders: dict[bytes, list[Tile]] = {}
    counts: dict[Outcome, int] = {}
    for done, job in enumerate(sorted(jobs, key=lambda job: (os.path.dirname(job.path), job.path)), start=1):
        mark = outcome(job.state, job.verdict)
        counts[mark] = counts.get(mark, 0) + 1
        picture = _thumbnail(job, settings, side)
        tile = Tile(shown(os.path.basename(job.path)), mark.value, job.id, picture)
        folders.setdefault(os.path.dirname(job.path), []).append(tile)
        progress("thumbnails", done, len(jobs))
    groups = [Group(shown(folder) or "inbox", tiles) for folder, tiles in sorted(folders.items())]
    return contact_sheet.pages(f"{title}: {in_words(counts) or 'no pictures'}", groups)


def _thumbnail(job: Job, settings: Settings, side: int) -> Rgb | None:
    limits = settings.limits
    for file in _places(job, settings):
        try:
            data = safe_paths.read_regular(file, limits.max_bytes)
        except OSError:
            continue
        return contact_sheet.thumbnail(data, side, max_pixels=settings.output.max_pixels)
    return None


def _places(job: Job, settings: Settings) -> Iterable[Path]:
    """Where a job's picture lies: the published one first, then the original."""
    folders, key, sha256 = settings.folders, job.key or "", job.input_sha256 or ""
    if job.output_path and job.state in (JobState.PUBLISHED, JobState.ARCHIVED):
        yield folders.outbox / os.fsdecode(job.output_path)
    try:
        if job.state in (JobState.FAILED, JobState.QUARANTINED):
            place, folder = in_failed(job, settings), folders.failed
        else:
            folder = folders.review if job.state == JobState.REVIEW else folders.archive
            place = outbox.find(folder, job.path, key=key, sha256=sha256)
    except PublishError:
        return
    if place is not None:
        yield folder / os.fsdecode(place)
