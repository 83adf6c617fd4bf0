"""Manifests: what was put into a folder, as lines that `sha256sum -c` reads.

Outbox and archive hold one hidden file for each day (UTC), `.manifest-2026-11-24.sha256`, with paths
relative to the folder: `cd archive && sha256sum -c .manifest-*.sha256`. Lines are only ever added,
each in one write that is durable before the job goes on. An incomplete line that a crash left is cut
off before the next one is added. A step that was repeated after a crash may add a line twice, which is
harmless.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from backfire.errors import PublishError
from backfire.files import durable
from backfire.types import shown

LONGEST = 64 << 10
"""How many bytes at the end are searched for the last complete line, which is far shorter."""

LOCK_S = 1.0
"""How long to wait while another daemon appends, seconds; that takes milliseconds."""

NAME = re.compile(rb"\.manifest-\d{4}-\d\d-\d\d\.sha256")
_LINE = re.compile(rb"(\\?)([0-9a-f]{64}) [ *](.+)", re.DOTALL)
_ESCAPES = {b"\\": b"\\\\", b"\n": b"\\n", b"\r": b"\\r"}
_PLAIN = {escaped: plain for plain, escaped in _ESCAPES.items()}


class Entry(NamedTuple):
    """A file below a folder (path relative to it) and its lower-case hex SHA-256."""

    path: bytes
    sha256: str


@dataclass(frozen=True)
class Listing:
    """What a folder's manifests say.

    Attributes:
        entries: oldest first.
        damaged: the lines that cannot be read, each named for a person.
    """

    entries: tuple[Entry, ...]
    damaged: tuple[str, ...]


def name(at: float) -> bytes:
    """The manifest's file name for a time, Unix seconds."""
    return time.strftime(".manifest-%Y-%m-%d.sha256", time.gmtime(at)).encode()


def line(entry: Entry) -> bytes:
    """The line as `sha256sum` (coreutils 9) writes it, with a leading backslash if the name needs escapes."""
    escaped = re.sub(rb"[\\\n\r]", lambda found: _ESCAPES[found[0]], entry.path)
    mark = b"\\" if escaped != entry.path else b""
    return mark + entry.sha256.encode() + b"  " + escaped + b"\n"


def parse(text: bytes) -> Entry | None:
    """The entry of a line without its end, or None if it is damaged or its path leaves the folder."""
    found = _LINE.fullmatch(text)
    if found is None:
        return None
    mark, digest, path = found.groups()
    if mark:
        path = re.sub(rb"\\[\\nr]", lambda escape: _PLAIN[escape[0]], path)
    if path.startswith(b"/") or any(part in (b"", b".", b"..") for part in path.split(b"/")):
        return None
    return Entry(path, digest.decode())


def read(folder: Path, days: Collection[str] = ()) -> Listing:
    """The manifests of a folder, oldest day first.

    Args:
        folder: the folder they lie in.
        days: such as `2026-11-24`; without any, all days are read.

    Raises:
        OSError: the folder or a manifest in it cannot be read.
    """
    entries: list[Entry] = []
    damaged: list[str] = []
    wanted = {f".manifest-{day}.sha256".encode() for day in days}
    for file in sorted(file for file in os.listdir(os.fsencode(folder)) if NAME.fullmatch(file)):
        if wanted and file not in wanted:
            continue
        text = (folder / os.fsdecode(file)).read_bytes()
        *lines, torn = text.split(b"\n")
        for number, one in enumerate([*lines, torn] if torn else lines, start=1):
            entry = parse(one)
            if entry is None or number > len(lines):
                damaged.append(f"{shown(file)}, line {number}")
            else:
                entries.append(entry)
    return Listing(tuple(entries), tuple(damaged))


def append(folder: Path, entries: Iterable[Entry], *, at: float) -> None:
    """Add lines to the manifest of the day of `at` (Unix seconds); durable on return, or nothing is added.

    Raises:
        PublishError: no space, no permission, or a file of another kind has the manifest's name.
    """
    text = b"".join(line(entry) for entry in entries)
    if not text:
        return
    path = os.path.join(os.fsencode(folder), name(at))
    try:
        with _opened(path) as descriptor:
            size = _mended(descriptor, path)
            try:
                _write(descriptor, text)
                os.fsync(descriptor)
                durable.heartbeat()
            except BaseException:
                with suppress(OSError):
                    os.ftruncate(descriptor, size)
                raise
        if size == 0:
            durable.sync(folder)
    except OSError as error:
        remedy = f"{_remedy(error)}; it is tried again"
        message = f"manifest {shown(path)}: cannot be written ({error.strerror}); {remedy}"
        raise PublishError(message) from error


def _remedy(error: OSError) -> str:
    if error.errno == errno.EAGAIN:
        return "end the process that `fuser` names for it"
    if error.errno in (errno.EISDIR, errno.ELOOP):
        return "move away what has its name, a folder or a link"
    return f"free some space, or give uid {os.geteuid()} write access"


@contextmanager
def _opened(path: bytes) -> Iterator[int]:
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o640)
    try:
        _lock(descriptor)
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Lock the manifest against other daemons that share the folder, for as long as it is open.

    Raises:
        OSError: EAGAIN, if somebody holds the lock for longer than an append takes, such as a backup
            program, for which the daemon must not wait.
    """
    deadline = time.monotonic() + LOCK_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno != errno.EAGAIN:
                return  # the file system has no locks
            if time.monotonic() > deadline:
                raise OSError(error.errno, "another process holds its lock", None) from error
        time.sleep(0.02)


def _mended(descriptor: int, path: bytes) -> int:
    """Cut off the incomplete line that a crash may have left; returns the size in bytes.

    A file that does not begin like a manifest belongs to somebody else and is not changed.
    """
    size = os.fstat(descriptor).st_size
    head = os.pread(descriptor, LONGEST, 0)
    first, whole, _ = head.partition(b"\n")
    if parse(first) is None if whole else not _begins_a_line(head):
        raise PublishError(f"{shown(path)}: is not a manifest; move it away, it is tried again")
    start = max(size - LONGEST, 0)
    end = start + os.pread(descriptor, size - start, start).rfind(b"\n") + 1
    if end < size:
        os.ftruncate(descriptor, end)
    return end


def _begins_a_line(head: bytes) -> bool:
    """Whether bytes without a line end are nothing, the begin of a line, or zeros left by a power cut."""
    return not head.strip(b"\0") or re.match(rb"\\?[0-9a-f]{1,64}(\0|$| )", head) is not None


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
