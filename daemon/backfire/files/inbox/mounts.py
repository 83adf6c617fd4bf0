"""On which file system a folder is, by the mount table of Linux."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
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
    return mounted_each([path], table)[0]


def mounted_each(paths: Iterable[Path], table: Path = MOUNTS) -> list[Mount]:
    """The file system that holds each of some paths, by one look at the mount table; see `mounted`."""
    mounts = {mount.number: mount for mount in _mounts(table)}
    return [_mounted(path, mounts) for path in paths]


def is_mount_point(point: str, table: Path = MOUNTS) -> bool:
    """Whether something is mounted on a folder itself, be it a bind mount that shows what lies there."""
    return any(mount.point == point for mount in _mounts(table))


def is_on_network(descriptor: int, table: Path = MOUNTS) -> bool:
    """Whether an open file is on a file system that other hosts write to, too."""
    device = os.fstat(descriptor).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    return any(mount.device == number and mount.kind in NETWORK for mount in _mounts(table))


def _mounted(path: Path, mounts: Mapping[str, Mount]) -> Mount:
    best = _reached([mount for mount in mounts.values() if path.is_relative_to(mount.point)], mounts)
    while (outer := mounts.get(best.parent)) is not None and best is not outer and _is_shown_by(outer, best):
        best = outer
    return best


def _reached(left: list[Mount], mounts: Mapping[str, Mount]) -> Mount:
    """Of the mounts on a path or above it the one that a walk along the path ends in, as the kernel walks.

    One further in is hidden where something was mounted over a folder above it later.
    """
    if not left:
        return NOWHERE
    # The parent of the outermost mount is not in the table, as it lies outside what this process sees.
    next_ones = [mount for mount in left if mount.parent not in mounts or mount.parent == mount.number]
    if not next_ones:  # no table of a kernel
        return max(reversed(left), key=lambda mount: len(mount.point))
    while next_ones:
        # Of several on one folder the later one hides the others.
        best = min(reversed(next_ones), key=lambda mount: len(mount.point))
        left = [mount for mount in left if mount.number != best.number]
        next_ones = [mount for mount in left if mount.parent == best.number]
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
