"""What is checked before the daemon works: names, folders, that no other daemon works here, disk space."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from pathlib import Path

from backfire import detectors, inpaint
from backfire.config import Settings
from backfire.errors import ConfigError
from backfire.perturb import methods

TAKEN = (errno.EACCES, errno.EAGAIN)
TRY_S = 0.3
"""How long a lock is tried for: `locked` holds it for a moment to see whether it is free."""


def require_names(settings: Settings) -> None:
    """Refuse names that no detector, editor or method has at the start, not in the first job.

    Raises:
        ConfigError: it names the setting and the nearest valid name.
    """
    for where, variant in settings.variants():
        try:
            detectors.check(variant.regions)
            inpaint.require_known(variant)
            methods.require_fit(variant)
        except ConfigError as error:
            raise ConfigError(f"{where}{error}") from None


def make_folders(settings: Settings) -> None:
    """Make the folders that are missing, but not an inbox that existed before: its share may be gone.

    Raises:
        ConfigError: a folder cannot be made, or the inbox has gone.
    """
    known = settings.folders.database.exists()
    for name, folder in settings.folders.named().items():
        if name == "inbox" and known and not folder.exists():
            message = (
                f"inbox {folder}: was there before and is gone; mount the share or make the folder again"
            )
            raise ConfigError(message)
        try:
            folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        except OSError as error:
            remedy = f"make it, or give uid {os.geteuid()} access"
            raise ConfigError(f"{name} {folder}: cannot be made ({error.strerror}); {remedy}") from error


def lock(path: Path) -> int | None:
    """Take a lock that ends with the process, on a file or folder; None where the file system has no locks.

    Raises:
        ConfigError: another daemon holds it, or it cannot be opened.
    """
    flags = os.O_RDONLY if path.is_dir() else os.O_CREAT | os.O_RDWR
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be opened ({error.strerror}); give uid {os.geteuid()} access"
        ) from error
    deadline = time.monotonic() + TRY_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except OSError as error:
            taken = error.errno in TAKEN
            if not taken or time.monotonic() > deadline:
                os.close(descriptor)
                if not taken:
                    return None
                message = (
                    f"{path}: another backfire daemon works here; stop it, or give this one its own folders"
                )
                raise ConfigError(message) from None
        time.sleep(0.02)


def locked(path: Path) -> bool | None:
    """Whether a daemon holds the lock on a file; None where nobody can tell."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return True if error.errno in TAKEN else None
    finally:
        os.close(descriptor)
    return False


def missing_space(settings: Settings) -> str:
    """Which folder's file system has less room left than `limits.free_mb`; empty where none has."""
    floor = settings.limits.free_mb
    for name, folder in settings.folders.named().items():
        if name == "inbox":
            continue  # nothing is written there
        try:
            free = shutil.disk_usage(folder).free >> 20
        except OSError as error:
            return f"{name} {folder}: cannot be asked for its free space ({error.strerror})"
        if free < floor:
            return f"{name} {folder}: {free} MB free, limits.free_mb asks for {floor}; free some space"
    return ""
