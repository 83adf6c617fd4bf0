"""`backfire check`: will the daemon be able to work here? Each finding is ok or names its remedy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from daemon import detectors, editors, inbox, methods
from daemon.config import Settings
from daemon.errors import BackfireError

LOW_SPACE = 2 << 30
FEW_WATCHES = 8192


@dataclass(frozen=True)
class Finding:
    """One line of the check; `remedy` is empty where all is well."""

    subject: str
    found: str
    remedy: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing needs doing."""
        return not self.remedy


def check(settings: Settings) -> Iterator[Finding]:
    """Folders, space, file systems, inotify, device, detectors, methods and editors, in that order."""
    yield Finding("config", f"valid, digest {settings.sha256[:12]}…")
    for name, folder in settings.folders.named().items():
        yield _folder(name, folder)
    yield _space(settings.folders.state)
    yield _space(settings.folders.outbox)
    yield from _filesystems(settings)
    yield _watches()
    yield _device(settings)
    for name in settings.regions.detectors:
        yield _loads(f"detector {name}", partial(_detector, name))
    method = settings.protect.method
    yield _loads(f"method {method}", lambda: type(methods.get(method)).__name__)
    if settings.editors:
        yield _loads("declared editors", partial(_declared, settings))
    for name in dict.fromkeys((*settings.protect.surrogates, *settings.verify.held_out)):
        yield _loads(f"editor {name}", partial(_editor, name, settings))


def _detector(name: str) -> str:
    return type(detectors.get(name)).__name__


def _declared(settings: Settings) -> str:
    editors.require_known(settings)
    return ", ".join(settings.editors)


def _editor(name: str, settings: Settings) -> str:
    return f"weights {editors.get(name, settings=settings).weights_sha256[:12]}…"


def _folder(name: str, folder: Path) -> Finding:
    subject = f"folder {name}"
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        return Finding(subject, f"{existing} is a file", "move it away or name another folder")
    if not os.access(existing, os.R_OK | os.W_OK | os.X_OK):
        mode = existing.stat().st_mode & 0o7777
        return Finding(
            subject,
            f"{existing} (mode {mode:04o}) is not writable by uid {os.geteuid()}",
            f"chown or chmod {existing}",
        )
    return Finding(subject, f"{folder}" if folder.exists() else f"{folder} will be made")


def _space(folder: Path) -> Finding:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    remedy = "free some space: results and private copies need it" if free < LOW_SPACE else ""
    return Finding(f"space for {folder.name}", f"{free / 2**30:.1f} GiB free", remedy)


def _filesystems(settings: Settings) -> Iterator[Finding]:
    kind = inbox.filesystem(settings.folders.state)
    remedy = "SQLite needs a local disk: set folders.state to one" if kind in inbox.NETWORK else ""
    yield Finding("file system of state", kind, remedy)
    kind = inbox.filesystem(settings.folders.inbox)
    blind = kind in inbox.NETWORK and settings.watch.mode == "inotify"
    remedy = "other hosts' changes raise no events here: set watch.mode to auto or polling" if blind else ""
    yield Finding("file system of inbox", kind, remedy)


def _watches() -> Finding:
    try:
        limit = int(Path("/proc/sys/fs/inotify/max_user_watches").read_text())
    except (OSError, ValueError):
        return Finding("inotify", "no inotify here; rescans find everything")
    remedy = "raise it: sysctl fs.inotify.max_user_watches=524288" if limit < FEW_WATCHES else ""
    return Finding("inotify", f"max_user_watches {limit}", remedy)


def _device(settings: Settings) -> Finding:
    from daemon.protect import pick_device

    try:
        return Finding("device", str(pick_device(settings.protect.device)))
    except BackfireError as error:
        return Finding("device", settings.protect.device, str(error))


def _loads(subject: str, load: Callable[[], str]) -> Finding:
    try:
        return Finding(subject, load())
    except BackfireError as error:
        return Finding(subject, "not usable", str(error))
