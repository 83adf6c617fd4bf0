"""The files of a job, found by its id alone and opened without following a link."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from backfire.errors import PublishError
from backfire.files import outbox, safe_paths
from backfire.service import report_files
from backfire.types import ACTIVE, EXTENSIONS, Job, JobState

PIECE = 1 << 16

TYPES = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
}
"""How the files begin that every browser shows."""

OTHER_TYPES = {
    extension: f"image/{kind}"
    for kind, extensions in EXTENSIONS.items()
    for extension in extensions
} | {".jp2": "image/jp2"}  # fmt: skip


def published(job: Job, folders: Mapping[str, Path]) -> int | None:
    """The published file of a job, open for reading; None where there is none."""
    if job.state not in (JobState.PUBLISHED, JobState.ARCHIVED) or job.output_path is None:
        return None
    return _opened(folders["outbox"], job.output_path)


def original(job: Job, folders: Mapping[str, Path]) -> int | None:
    """The original of a job, open for reading, wherever it lies by now; None where it was not read or is
    gone.
    """
    if job.input_sha256 is None:
        return None
    if job.state in ACTIVE:
        return _opened(folders["state"], b"spool/%d/input" % job.id)
    key, sha256 = job.key or "", job.input_sha256
    for name in ("archive", "failed", "review"):
        with suppress(PublishError, OSError):
            found = outbox.find(folders[name], job.path, key=key, sha256=sha256)
            if found is not None:
                return _opened(folders[name], found)
    return None


def report(job: Job, folders: Mapping[str, Path], suffix: str) -> int | None:
    """The receipt (`.json`) or picture sheet (`.sheet.jpg`) of a job, open for reading; None without one."""
    with suppress(PublishError, OSError):
        for file in report_files.find(folders["reports"], job):
            if file.name.endswith(suffix):
                return _opened(folders["reports"], os.fsencode(file.relative_to(folders["reports"])))
    return None


def _opened(root: Path, path: bytes) -> int | None:
    with suppress(OSError), safe_paths.folder_of(root, path) as (folder, name):
        # NONBLOCK, because opening a pipe would wait for its writer.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(name, flags, dir_fd=folder)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
    return None


def kind(descriptor: int) -> str | None:
    """The media type of a picture that every browser shows; None of any other file."""
    head = os.pread(descriptor, 32, 0)
    for magic, found in TYPES.items():
        if head.startswith(magic):
            return found
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    return "image/avif" if head[4:12] in (b"ftypavif", b"ftypavis") else None


def pieces(file: BinaryIO) -> Iterator[bytes]:
    """The content of a file."""
    while piece := file.read(PIECE):
        yield piece
