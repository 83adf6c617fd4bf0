"""What is checked before the daemon works: names, folders, that no other daemon works here, disk space."""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import structlog

from backfire import attack_paths, detectors, inpaint
from backfire.config import Settings
from backfire.errors import ConfigError, SigningError, StoreError, UnavailableError
from backfire.files.locks import TAKEN, is_locked
from backfire.perturb import methods
from backfire.provenance import credentials
from backfire.service.mounts import WRITTEN, moved_out
from backfire.service.store.messages import is_lost, missing
from backfire.service.store.reader import Reader
from backfire.service.worker import driver

log = structlog.get_logger()

RAY = 2, 60
"""The first version of Ray with which this was tried; token authentication came shortly before."""
TRY_S = 0.3
"""How long a lock is tried for, since `is_locked` holds it for a moment to see whether it is free."""


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
            attack_paths.of_editors(methods.with_surrogates(variant))
        except ConfigError as error:
            raise ConfigError(f"{where}{error}") from None


def require_signer(settings: Settings) -> None:
    """Refuse a certificate or key that cannot sign, and warn of a certificate that expires soon.

    The C2PA library is not loaded for this; `backfire check` signs for a trial.

    Raises:
        ConfigError: what is wrong, and what to do.
    """
    if not settings.provenance.on:
        return
    try:
        found = credentials.load(settings.provenance)
    except SigningError as error:
        raise ConfigError(error.message) from None
    days = (found.until - time.time()) / credentials.DAY_S
    if days < credentials.SOON_DAYS:
        log.warning("certificate_expires", file=str(settings.provenance.certificate), in_days=round(days, 1))


def require_cluster(settings: Settings) -> None:
    """Check what a cluster needs on this machine: Ray, and the token.

    Raises:
        ConfigError: something of it is missing, or others may read the token.
    """
    if settings.cluster.address is None:
        return
    try:
        found = metadata.version("ray")
    except metadata.PackageNotFoundError:
        raise ConfigError("cluster.address: needs Ray; install backfire[ray]") from None
    if tuple(map(int, found.split(".")[:2])) < RAY:
        wanted = ".".join(map(str, RAY))
        raise ConfigError(
            f"cluster.address: got Ray {found}, expected {wanted} or later; install backfire[ray]"
        )
    if "RAY_AUTH_TOKEN" not in os.environ:
        driver.token_file(settings.cluster)


def require_database(settings: Settings) -> None:
    """Refuse to begin with a new job database in place of one that is gone.

    All results in the spool would be deleted as those of no job, and the old database could not be put back
    without losing what the new one recorded.

    Raises:
        StoreError: it is gone or empty.
        UnavailableError: nobody can tell.
    """
    database = settings.folders.database
    for name, place in (("database", database), ("spool", settings.folders.spool)):
        _is_there(name, place)  # or nobody can tell
    if is_lost(database):
        raise StoreError(missing(database))


def make_folders(settings: Settings) -> None:
    """Make the folders that are missing, but not an inbox that existed before: its share may be gone.

    Nor is a folder made that lay on a share which is gone.

    Raises:
        UnavailableError: a folder cannot be made, or its share or the inbox has gone.
    """
    known = _is_there("database", settings.folders.database)
    for name, folder in settings.folders.named().items():
        if name == "inbox" and known and not _is_there(name, folder):
            message = (
                f"inbox {folder}: was there before and is gone; mount the share or make the folder again"
            )
            raise UnavailableError(message)
        if known and name in WRITTEN and not _is_there(name, folder):
            # A database that cannot be read is told when it is opened for writing.
            with suppress(StoreError), Reader(settings.folders.database) as store:
                if why := moved_out(store, name, folder):
                    raise UnavailableError(f"{name} {why}")
        try:
            folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        except OSError as error:
            remedy = f"make it, or give uid {os.geteuid()} access"
            raise UnavailableError(f"{name} {folder}: cannot be made ({error.strerror}); {remedy}") from error


def _is_there(name: str, path: Path) -> bool:
    """Whether there is such a file or folder; a share that does not answer tells nothing."""
    try:
        return path.exists()
    except OSError as error:
        remedy = f"check its disk or network share, or give uid {os.geteuid()} access"
        raise UnavailableError(f"{name} {path}: cannot be looked for ({error.strerror}); {remedy}") from error


def lock(path: Path, *, patience_s: float = TRY_S) -> int | None:
    """Take a lock that ends with the process, on a file or folder; None where the file system has no locks.

    Args:
        path: the file, which is made if it is missing, or the folder.
        patience_s: how long a lock that is held is tried for again.

    Raises:
        UnavailableError: another daemon holds it, or it cannot be opened.
    """
    try:
        flags = os.O_RDONLY if path.is_dir() else os.O_CREAT | os.O_RDWR
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise UnavailableError(
            f"{path}: cannot be opened ({error.strerror}); give uid {os.geteuid()} access"
        ) from error
    deadline = time.monotonic() + patience_s
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
                raise UnavailableError(message) from None
        time.sleep(0.02)


class InboxLock:
    """The lock on the inbox, which is taken anew where another folder has its name, as after a new mount.

    Raises:
        UnavailableError: another daemon works on the inbox, or on a folder that it lies in.
    """

    def __init__(self, inbox: Path) -> None:
        self._inbox = inbox
        self._descriptor: int | None = None
        self._locked: tuple[int, int] | None = None
        self._renewing = threading.Lock()
        for outer in inbox.resolve().parents:
            if is_locked(outer):
                raise UnavailableError(
                    f"{inbox}: lies in {outer}, the inbox of another backfire daemon at work; move it out"
                )
        self.renew()

    def renew(self) -> None:
        """Lock the folder that has the name now.

        Raises:
            UnavailableError: another daemon has locked it, or it cannot be opened.
            OSError: it is not there.
        """
        with self._renewing:
            status = os.stat(self._inbox)
            found = status.st_dev, status.st_ino
            if found == self._locked:
                return
            # First, since on a network share it may be our own lock that keeps us from taking it again.
            self.close()
            self._descriptor = lock(self._inbox)
            self._locked = found

    def close(self) -> None:
        """Give up the lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = self._locked = None


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
            return f"{name} {folder}: {free} MiB free, limits.free_mb asks for {floor}; free some space"
    return ""
