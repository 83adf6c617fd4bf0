"""On which file system a folder is, by the mount table of Linux."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "fuse.sshfs", "glusterfs"})
"""File systems on which changes by another host raise no inotify event."""

MOUNTS = Path("/proc/self/mountinfo")
"""The mount table of this process, see proc_pid_mountinfo(5)."""


class Mount(NamedTuple):
    """A mounted file system.

    Attributes:
        point: the folder that it is mounted on; empty where there is no mount table.
        kind: its type, e.g. `ext4`.
        source: what is mounted, e.g. `/dev/sda1` or `//server/share`.
        number, parent, device, root: see proc_pid_mountinfo(5).
    """

    point: str
    kind: str
    source: str
    number: str
    parent: str
    device: str
    root: str


NOWHERE = Mount("", "unknown", "", "", "", "", "")


def filesystem(path: Path, table: Path = MOUNTS) -> str:
    """The type of the file system that holds `path`, e.g. `ext4`; `unknown` where there is no mount table."""
    return mounted(path, table).kind


def mounted(path: Path, table: Path = MOUNTS) -> Mount:
    """The file system that holds `path`.

    A bind mount that shows what would lie there without it, as systemd makes one for each of
    `ReadWritePaths=`, is none of its own.
    """
    mounts = {mount.number: mount for mount in _mounts(table)}
    best = NOWHERE
    for mount in mounts.values():
        inside = path == Path(mount.point) or Path(mount.point) in path.parents
        if inside and len(mount.point) >= len(best.point):  # a later mount on a folder hides the earlier one
            best = mount
    while (outer := mounts.get(best.parent)) is not None and best is not outer and _is_shown_by(outer, best):
        best = outer
    return best


def _is_shown_by(outer: Mount, mount: Mount) -> bool:
    """Whether a mount shows the same folder of the same file system that the outer one shows there."""
    place = os.path.normpath(os.path.join(outer.root, os.path.relpath(mount.point, outer.point)))
    return mount.device == outer.device and os.path.normpath(mount.root) == place


def _mounts(table: Path) -> Iterator[Mount]:
    with suppress(OSError), table.open("rb") as lines:  # bytes: a mount's name need not be UTF-8
        for line in lines:
            fields = line.split()
            number, parent, device, root, point = map(_plain, fields[:5])
            kind, source = map(_plain, fields[fields.index(b"-") + 1 :][:2])
            yield Mount(point, kind, source, number, parent, device, root)


def _plain(field: bytes) -> str:
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), field))
