"""The inbox: what lies in it, what is complete, which mask belongs to which picture.

The scan is the truth; watchdog events are hints that a scan is due. A file is settled when its
size, times and inode have not changed for the settle time by a monotonic clock, which is
handed in: nothing in here reads a clock. Paths are bytes relative to the inbox.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import os
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from daemon.domain import shown
from daemon.errors import Code, InputError

NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "fuse.sshfs", "glusterfs"})
"""File systems on which another host's changes raise no inotify event."""


class Signature(NamedTuple):
    """What must stand still before a file counts as complete."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Signature:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@dataclass(frozen=True)
class Scan:
    """What lay in the inbox.

    Attributes:
        files: every regular file but the ignored ones.
        unreadable: folders that could not be looked into: what they hold is unknown, not gone.
    """

    files: dict[bytes, Signature] = field(default_factory=dict)
    unreadable: frozenset[bytes] = frozenset()

    @cached_property
    def pictures(self) -> list[bytes]:
        """All files that are no masks."""
        return [path for path in self.files if not is_mask(path)]

    @cached_property
    def _masks(self) -> dict[bytes, bytes]:
        # By lower case: P.MASK.PNG belongs to p.jpg on every desk.
        return {path.lower(): path for path in self.files if is_mask(path)}

    def masks_of(self, picture: bytes) -> list[bytes]:
        """The sidecar masks of a picture that are there."""
        names = dict.fromkeys(name.lower() for name in mask_names(picture))
        return [self._masks[name] for name in names if name in self._masks]

    def orphans(self) -> set[bytes]:
        """Masks that no picture claims."""
        claimed = {name.lower() for path in self.pictures for name in mask_names(path)}
        return {path for lower, path in self._masks.items() if lower not in claimed}

    def knows(self, path: bytes) -> bool:
        """Whether the absence of a path means that it is gone."""
        return not any(path.startswith(folder + b"/") for folder in self.unreadable)


def scan(root: Path, ignore: Iterable[str]) -> Scan:
    """All regular files below `root` but the ignored; links, FIFOs and devices are not followed.

    Raises:
        OSError: the root itself cannot be read: a missing mount must not look like an empty inbox.
    """
    patterns = [os.fsencode(pattern) for pattern in ignore]
    top = os.fsencode(root)
    files: dict[bytes, Signature] = {}
    unreadable: set[bytes] = set()
    pending = [b""]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(os.path.join(top, folder)) as entries:
                for entry in entries:
                    if any(fnmatch.fnmatchcase(entry.name, pattern) for pattern in patterns):
                        continue
                    path = os.path.join(folder, entry.name)
                    with suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        if stat.S_ISDIR(status.st_mode):
                            pending.append(path)
                        elif stat.S_ISREG(status.st_mode):
                            files[path] = Signature.of(status)
        except FileNotFoundError:
            if not folder:
                raise
        except OSError:
            if not folder:
                raise
            unreadable.add(folder)
    return Scan(files, frozenset(unreadable))


def scan_beside(root: Path, picture: bytes) -> Scan:
    """What lies in a picture's folder and the `masks` folder below it: enough to see picture and masks."""
    top, folder = os.fsencode(root), os.path.dirname(picture)
    files: dict[bytes, Signature] = {}
    for place in (folder, os.path.join(folder, b"masks")):
        with suppress(OSError), os.scandir(os.path.join(top, place)) as entries:
            for entry in entries:
                path = os.path.join(place, entry.name)
                if path == picture or is_mask(path):
                    with suppress(OSError):
                        status = entry.stat(follow_symlinks=False)
                        if stat.S_ISREG(status.st_mode):
                            files[path] = Signature.of(status)
    return Scan(files)


def is_mask(path: bytes) -> bool:
    """Whether a file is a sidecar by its name: NAME.mask.png, any PNG in a folder `masks`, or JSON."""
    lower = path.lower()
    in_folder = os.path.basename(os.path.dirname(lower)) == b"masks"
    return lower.endswith((b".mask.png", b".json")) or (in_folder and lower.endswith(b".png"))


def mask_names(picture: bytes) -> list[bytes]:
    """Where a picture's sidecars, painted or JSON, may lie, relative to the inbox."""
    folder, name = os.path.split(picture)
    stem = os.path.splitext(name)[0]
    return [
        os.path.join(folder, stem + b".mask.png"),
        os.path.join(folder, name + b".mask.png"),
        os.path.join(folder, b"masks", stem + b".png"),
        os.path.join(folder, b"masks", name + b".png"),
        os.path.join(folder, stem + b".regions.json"),
        os.path.join(folder, name + b".regions.json"),
        os.path.join(folder, stem + b".json"),
        os.path.join(folder, b"masks", stem + b".json"),
    ]


@dataclass
class Tracker:
    """Since when each file has stood still. Pure bookkeeping."""

    settle_s: float
    _since: dict[bytes, tuple[Signature, float]] = field(default_factory=dict)

    def observe(self, present: Mapping[bytes, Signature], now: float) -> None:
        """Take in a scan made at monotonic time `now`; files that are gone are forgotten."""
        since = {}
        for path, signature in present.items():
            known = self._since.get(path)
            since[path] = known if known and known[0] == signature else (signature, now)
        self._since = since

    def still_for(self, path: bytes, now: float) -> float:
        """Seconds the file has stood still; 0 for one not seen."""
        known = self._since.get(path)
        return now - known[1] if known else 0.0

    def settled(self, path: bytes, now: float) -> bool:
        """Whether the file has stood still for the settle time."""
        return path in self._since and self.still_for(path, now) >= self.settle_s


class Taken(NamedTuple):
    """A private copy of a file."""

    sha256: str
    signature: Signature


def take(root: Path, path: bytes, copy: Path, expected: Signature | None = None) -> Taken:
    """Copy a file of the inbox to `copy` while hashing it; nothing outside `root` is ever opened.

    Every component is opened relative to its folder's descriptor, without following links.

    Raises:
        InputError: CHANGED (retryable) if it changed while being read or is not `expected`;
            UNREADABLE if it is no regular file or may not be read.
    """
    name = shown(path)
    try:
        descriptor = _open_below(root, path)
    except FileNotFoundError as error:
        raise InputError(Code.CHANGED, f"{name}: is gone", retryable=True) from error
    except OSError as error:
        message = f"{name}: cannot be read as uid {os.geteuid()} ({error.strerror}); give it read access"
        raise InputError(Code.UNREADABLE, message, retryable=True) from error
    digest = hashlib.sha256()
    with os.fdopen(descriptor, "rb") as source:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise InputError(Code.UNREADABLE, f"{name}: is not a regular file; only pictures are taken in")
        with copy.open("wb") as target:
            while chunk := source.read(1 << 20):
                digest.update(chunk)
                target.write(chunk)
            target.flush()
            os.fsync(target.fileno())
        after = os.fstat(descriptor)
    signature = Signature.of(after)
    if Signature.of(before) != signature or (expected is not None and signature != expected):
        raise InputError(
            Code.CHANGED, f"{name}: changed while it was read; it is tried again", retryable=True
        )
    return Taken(digest.hexdigest(), signature)


def _open_below(root: Path, path: bytes) -> int:
    if any(part in (b"", b".", b"..") for part in path.split(b"/")):
        raise OSError(errno.EINVAL, "not a plain path below the inbox")
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    folder = os.open(root, flags | os.O_DIRECTORY)
    *parents, name = path.split(b"/")
    try:
        for part in parents:
            inner = os.open(part, flags | os.O_DIRECTORY, dir_fd=folder)
            os.close(folder)
            folder = inner
        return os.open(name, flags | os.O_NONBLOCK, dir_fd=folder)
    finally:
        os.close(folder)


def signature(root: Path, path: bytes) -> Signature | None:
    """The file's signature now, None if it is gone or no regular file."""
    try:
        status = os.lstat(os.path.join(os.fsencode(root), path))
    except OSError:
        return None
    return Signature.of(status) if stat.S_ISREG(status.st_mode) else None


def filesystem(path: Path) -> str:
    """The file system type that holds `path`, e.g. `ext4`; `unknown` off Linux."""
    best, kind = "", "unknown"
    for mount, this in _mounts():
        inside = path == Path(mount) or Path(mount) in path.parents
        if inside and len(mount) >= len(best):
            best, kind = mount, this
    return kind


def _mounts() -> Iterator[tuple[str, str]]:
    with suppress(OSError), Path("/proc/self/mountinfo").open() as lines:
        for line in lines:
            fields = line.split()
            mount = fields[4].encode().decode("unicode_escape")
            yield mount, fields[fields.index("-") + 1]


class Hints:
    """Sets an event when something moves below the inbox; nothing depends on its being told.

    Attributes:
        mode: `inotify`, or `polling` where that is configured, the file system is a network
            one, or inotify would not start (then `trouble` says why).
    """

    def __init__(self, root: Path, mode: str, wake: threading.Event) -> None:
        self.mode = mode
        self.trouble = ""
        self._observer = None
        if mode == "auto":
            kind = filesystem(root)
            self.mode = "polling" if kind in NETWORK else "inotify"
            self.trouble = f"{kind} raises no events for other hosts" if kind in NETWORK else ""
        if self.mode == "polling":
            return
        observer = Observer()
        try:
            observer.schedule(_Waker(wake), str(root), recursive=True)
            observer.start()
        except OSError as error:
            self.mode, self.trouble = "polling", f"inotify would not start ({error})"
        else:
            self._observer = observer

    def close(self) -> None:
        """Stop watching."""
        if self._observer is not None:
            self._observer.stop()
            self._observer.join(timeout=5)


class _Waker(FileSystemEventHandler):
    def __init__(self, wake: threading.Event) -> None:
        self._wake = wake

    def on_any_event(self, event: FileSystemEvent) -> None:
        # Reading raises events too; our own scans must not call for the next one.
        if event.event_type not in ("opened", "closed_no_write"):
            self._wake.set()
