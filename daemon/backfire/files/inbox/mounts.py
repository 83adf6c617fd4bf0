"""On which file system a folder is, by the mount table of Linux."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "fuse.sshfs", "glusterfs"})
"""File systems on which changes by another host raise no inotify event."""

MOUNTS = Path("/proc/self/mountinfo")
"""The mount table of this process, see proc_pid_mountinfo(5)."""


def filesystem(path: Path, table: Path = MOUNTS) -> str:
    """The type of the file system that holds `path`, e.g. `ext4`; `unknown` where there is no mount table."""
    return _innermost(path, table)[1]


def mount_of(path: Path, table: Path = MOUNTS) -> str:
    """The mount point that holds `path`; empty where there is no mount table."""
    return _innermost(path, table)[0]


def _innermost(path: Path, table: Path) -> tuple[str, str]:
    best, kind = "", "unknown"
    for mount, this in _mounts(table):
        inside = path == Path(mount) or Path(mount) in path.parents
        if inside and len(mount) >= len(best):  # a later mount on the same folder hides the earlier one
            best, kind = mount, this
    return best, kind


def _mounts(table: Path) -> Iterator[tuple[str, str]]:
    with suppress(OSError), table.open("rb") as lines:  # bytes: a mount's name need not be UTF-8
        for line in lines:
            fields = line.split()
            mount = re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), fields[4])
            yield os.fsdecode(mount), fields[fields.index(b"-") + 1].decode("ascii", "replace")
