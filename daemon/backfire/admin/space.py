"""The free space on the disks of the folders, for commands and the page alike."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Space:
    """The free space on the disk of some folders, in bytes; None where it cannot be asked."""

    folders: Sequence[str]
    free: int | None
    total: int = 0


def space(folders: Mapping[str, Path]) -> list[Space]:
    """The free space of each disk that folders lie on, or will be made on."""
    names: dict[int, list[str]] = {}
    disks: list[Space] = []
    gone: list[Space] = []
    for name, folder in folders.items():
        try:
            existing = next(path for path in (folder, *folder.parents) if path.exists())
            device, found = existing.stat().st_dev, os.statvfs(existing)
        except OSError:
            gone.append(Space([name], None))
            continue
        if device not in names:
            names[device] = []
            free, total = (blocks * found.f_frsize for blocks in (found.f_bavail, found.f_blocks))
            disks.append(Space(names[device], free, total))
        names[device].append(name)
    return disks + gone
