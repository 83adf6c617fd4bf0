"""The files of a job, found by its id alone and opened without following a link."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from backfire.errors import PublishError
from backfire.files import outbox, safe_paths
from backfire.service import report_files
from backfire.types import ACTIVE, EXTENSIONS, Job, JobState

PIECE = 1 << 16
DIGEST_PIECE = 1 << 20
KEPT_DIGESTS = 4096

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


_digests: OrderedDict[tuple[int, ...], str] = OrderedDict()
"""SHA-256 of files by their identity, so that a large one is read once and not with each request."""


def published(job: Job, folders: Mapping[str, Path]) -> int | None:
    """The published file of a job, open for reading; None where it is not there any more.

    Once a file has left the outbox, another picture may be published under its name. So a file whose content
    is not what this job published is none of its own.
    """
    if job.state not in (JobState.PUBLISHED, JobState.ARCHIVED) or job.output_path is None:
        return None
    descriptor = _opened(folders["outbox"], job.output_path)
    if descriptor is None:
        return None
    with suppress(OSError):
        if _sha256(descriptor) == job.output_sha256:
            return descriptor
    os.close(descriptor)
    return None


def _sha256(descriptor: int) -> str:
    """The lower-case hex SHA-256 of an open file, whose position stays."""
    found = os.fstat(descriptor)
    identity = found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
    known = _digests.get(identity)
    if known is None:
        digest, at = hashlib.sha256(), 0
        while piece := os.pread(descriptor, DIGEST_PIECE, at):
            digest.update(piece)
            at += len(piece)
        known = _digests[identity] = digest.hexdigest()
        while len(_digests) > KEPT_DIGESTS:
            _digests.popitem(last=False)
    return known


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
