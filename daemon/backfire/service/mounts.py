"""On which file systems the folders lay, so that an empty mount point is not taken for a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from backfire.config import Settings
from backfire.files import inbox
from backfire.service.jobs import Jobs
from backfire.service.store.reader import Reader

WRITTEN = ("outbox", "archive", "failed", "review", "reports")
"""The folders that get files, but for the state folder, which lies on a local disk and holds the record."""


def moved_out(store: Reader, name: str, folder: Path) -> str:
    """Why a folder is not the one it was, as it lies further out than before; empty where it is.

    A file system that is mounted further in than before is one that came back.

    Args:
        store: the job database, which remembers where the folder lay.
        name, folder: the folder, by its name in the settings.
    """
    return _moved_out(_known(store, name, folder), _mounted(folder)[0], name, folder)


def _mounted(*folders: Path) -> list[inbox.Mount]:
    """On what each folder lies, once each has been looked into.

    An automounter mounts a share when somebody enters its folder, and unmounts it again after a while. A
    mere look at the folder itself does not have it mounted, see stat(2).
    """
    for folder in folders:
        with suppress(OSError):  # whoever needs the folder says what is wrong with it
            os.stat(os.path.join(folder, "."))
    return inbox.mounted_each(folders)


def _known(store: Reader, name: str, folder: Path) -> dict[str, Any]:
    noted = store.fact(name)
    known: dict[str, Any] = noted[0] if noted else {}
    if known.get("path") != str(folder):
        return {}
    # Without its source it was noted by a version that took every bind mount for a share.
    return known if "source" in known or not inbox.is_mount_point(known.get("mount", "")) else {}


def _moved_out(known: dict[str, Any], now: inbox.Mount, name: str, folder: Path) -> str:
    before = known.get("mount", "")
    if not now.point or now.point == before or not before.startswith(now.point):
        return ""
    what = f" ({known['filesystem']}, {known['source']})" if "source" in known else ""
    return (
        f"{folder}: lay on {before}{what}, which is not mounted now; "
        f"mount it again, or, if the folder has moved for good, give it another name in folders.{name}"
    )


class Mounts:
    """Refuses folders whose share is gone, and remembers where they lie.

    Args:
        settings: the folders are used; they do not change while the daemon runs.
        jobs: whose database remembers.
    """

    def __init__(self, settings: Settings, jobs: Jobs) -> None:
        self._folders, self._jobs = settings.folders.named(), jobs
        self._known: dict[str, dict[str, Any]] = {}

    def require(self, name: str) -> None:
        """Refuse to take an empty mount point for a folder.

        Args:
            name: of the folder in the settings.

        Raises:
            OSError: the share that once held it is gone.
        """
        self._require([name])

    def _require(self, names: Sequence[str]) -> None:
        folders = [self._folders[name] for name in names]
        for name, folder, now in zip(names, folders, _mounted(*folders), strict=True):
            self._require_one(name, folder, now)

    def _require_one(self, name: str, folder: Path, now: inbox.Mount) -> None:
        if name not in self._known:
            self._known[name] = _known(self._jobs.store, name, folder)
        if why := _moved_out(self._known[name], now, name, folder):
            raise OSError(why)
        known = self._known[name]
        # Without a mount table nothing is known, and what was noted still holds.
        if now.point and ("source" not in known or known.get("mount") != now.point):
            fact = {
                "path": str(folder), "mount": now.point, "filesystem": now.kind, "source": now.source
            }  # fmt: skip
            self._known[name] = fact
            self._jobs.store.set_fact(name, fact, at=self._jobs.now())

    def require_written(self) -> None:
        """Refuse to write to a folder whose share is gone; see `require`.

        Raises:
            OSError: it names the folder, and what to do.
        """
        self._require(WRITTEN)
