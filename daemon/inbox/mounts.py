"""Where the inbox's file system comes from: Linux's mount table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "fuse.sshfs", "glusterfs"})
"""File systems on which another host's changes raise no inotify event."""


def filesystem(path: Path) -> str:
    """The file system type that holds `path`, e.g. `ext4`; `unknown` off Linux."""
    return _innermost(path)[1]


def mount_of(path: Path) -> str:
    """The mount point that holds `path`; empty off Linux."""
    return _innermost(path)[0]


def _innermost(path: Path) -> tuple[str, str]:
    best, kind = "", "unknown"
    for mount, this in _mounts():
        inside = path == Path(mount) or Path(mount) in path.parents
        if inside and len(mount) >= len(best):  # of two on one place the later hides the earlier
            best, kind = mount, this
    return best, kind


def _mounts() -> Iterator[tuple[str, str]]:
    with suppress(OSError), Path("/proc/self/mountinfo").open() as lines:
        for line in lines:
            fields = line.split()
            mount = fields[4].encode().decode("unicode_escape")
            yield mount, fields[fields.index("-") + 1]
