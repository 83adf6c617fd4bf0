"""Scans of the inbox, whole or beside some pictures. Paths are bytes below the folder."""

from __future__ import annotations

import errno
import fnmatch
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from backfire.files import durable, manifest
from backfire.files.inbox.companions import is_companion, is_raw
from backfire.files.inbox.names import folded
from backfire.files.inbox.seen import Scan, Signature
from backfire.files.inbox.sidecars import (
    is_mask,
    is_proof,
)

ANOTHERS = (
    "is left alone, as it has the manifest of an archive or outbox of Backfire; move it out of the inbox, or "
    "delete its files .manifest-*.sha256 if its pictures are to be taken in"
)
"""Why a folder is not looked into."""
HEARTBEAT_EACH = 1000
"""Files between two heartbeats of a scan."""


def scan(root: Path, ignore: Iterable[str], proof: bytes = b"") -> Scan:
    """All regular files below `root` but the ignored; links, FIFOs and devices are not followed.

    A folder with a manifest is the archive or outbox of a Backfire, which would be emptied: it is left alone.

    Raises:
        OSError: the root itself cannot be read; a missing mount must not look like an empty inbox.
    """
    ignored = _ignored_by(tuple(ignore))
    top = os.fsencode(root)
    files: dict[bytes, Signature] = {}
    unreadable: dict[bytes, str] = {}
    pending = [b""]
    while pending:
        folder = pending.pop()
        before = len(pending)
        durable.heartbeat()
        try:
            with os.scandir(os.path.join(top, folder)) as entries:
                for entry in entries:
                    if folder and manifest.NAME.fullmatch(entry.name):
                        unreadable[folder] = ANOTHERS
                        del pending[before:]
                        break
                    if ignored(entry.name):
                        continue
                    path = os.path.join(folder, entry.name)
                    if not len(files) % HEARTBEAT_EACH:
                        durable.heartbeat()
                    with suppress(FileNotFoundError):
                        try:
                            status = entry.stat(follow_symlinks=False)
                        except FileNotFoundError:
                            raise
                        except OSError as error:
                            if error.errno != errno.ENAMETOOLONG:
                                # This raises where it is the folder that cannot be entered any more.
                                os.stat(os.path.join(top, folder, b"."))
                            unreadable[path] = _why_closed(top, path, error)
                            continue
                        if stat.S_ISDIR(status.st_mode):
                            pending.append(path)
                        elif stat.S_ISREG(status.st_mode):
                            files[path] = Signature.of(status)
        except FileNotFoundError:
            if not folder:
                raise
        except OSError as error:
            if not folder:
                raise
            unreadable[folder] = _why_closed(top, folder, error)
    if ANOTHERS in unreadable.values():  # what was found in it before its manifest
        theirs = tuple(path + b"/" for path, why in unreadable.items() if why == ANOTHERS)
        files = {path: seen for path, seen in files.items() if not path.startswith(theirs)}
    return Scan(files, unreadable, proof)


def closed(root: Path, path: bytes) -> tuple[bytes, str] | None:
    """The outermost folder above a path that this process cannot look into, and why; else None."""
    top, folder = os.fsencode(root), b""
    for part in os.path.dirname(path).split(b"/"):
        folder = os.path.join(folder, part)
        try:
            os.scandir(os.path.join(top, folder)).close()
            os.stat(os.path.join(top, folder, b"."))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            return folder, _why_closed(top, folder, error)
    return None


def _why_closed(top: bytes, path: bytes, error: OSError) -> str:
    """Why a folder or file cannot be read, with its owner and mode, and what to do."""
    full = os.path.join(top, path)
    if error.errno == errno.ENAMETOOLONG:
        return (
            f"has a path of {len(full)} bytes, more than the system opens; shorten the names of its folders"
        )
    if error.errno not in (errno.EACCES, errno.EPERM):
        return f"cannot be read ({error.strerror}); check the disk or the network share that it lies on"
    rights = ""
    with suppress(OSError):
        status = os.lstat(full)
        rights = f", its owner is uid {status.st_uid} and its mode {status.st_mode & 0o7777:04o}"
    remedy = f"give uid {os.geteuid()} the right to read and enter it"
    return f"cannot be read as uid {os.geteuid()}{rights} ({error.strerror}); {remedy}"


def scan_beside(root: Path, pictures: Iterable[bytes], ignore: Iterable[str], proof: bytes = b"") -> Scan:
    """Some pictures, and the masks, proofs and companions in their folders and in `masks` below these.

    Of what lies beside the pictures it finds what `scan` finds with the same arguments. Folders that are not
    there are empty.

    Args:
        root: the folder.
        pictures: paths below it.
        ignore: patterns of names; the pictures themselves are found all the same.
        proof: see `Scan`.
    """
    top, wanted, ignored = os.fsencode(root), set(pictures), _ignored_by(tuple(ignore))
    files: dict[bytes, Signature] = {}
    unreadable: dict[bytes, str] = {}
    folders = {os.path.dirname(picture) for picture in wanted}
    pending = list(folders)
    while pending:
        place = pending.pop()
        durable.heartbeat()
        try:
            with os.scandir(os.path.join(top, place)) as entries:
                for entry in entries:
                    path = os.path.join(place, entry.name)
                    if path not in wanted and ignored(entry.name):
                        continue
                    if place in folders and path not in folders and entry.name.lower() == b"masks":
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(path)
                    elif _lies_beside(path, proof) or path in wanted:
                        try:
                            status = entry.stat(follow_symlinks=False)
                        except FileNotFoundError:
                            continue
                        except OSError as error:
                            unreadable[path] = _why_closed(top, path, error)
                            continue
                        if stat.S_ISREG(status.st_mode):
                            files[path] = Signature.of(status)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            unreadable[place] = _why_closed(top, place, error)
    return Scan(files, unreadable, proof)


def _lies_beside(path: bytes, proof: bytes) -> bool:
    """Whether a file is no picture of its own by its name."""
    return is_mask(path) or is_companion(path) or is_raw(path) or is_proof(path, proof)


@lru_cache(maxsize=4)
def _ignored_by(patterns: tuple[str, ...]) -> Callable[[bytes], re.Match[bytes] | None]:
    # One expression for all patterns and spellings, since a scan may meet a hundred thousand names.
    spelt = {unicodedata.normalize(form, pattern): None for pattern in patterns for form in ("NFC", "NFD")}
    return re.compile(os.fsencode("|".join(map(fnmatch.translate, spelt)) or "(?!)"), re.IGNORECASE).match


def rivals(root: Path, picture: bytes, ignore: Iterable[str], proof: bytes = b"") -> list[bytes]:
    """The pictures beside one that may share its masks, because their names begin with its stem.

    The picture itself is among them if there is a file of its name.
    """
    folder, stem = os.path.dirname(picture), os.path.splitext(folded(picture))[0]
    ignored, found = _ignored_by(tuple(ignore)), []
    with suppress(FileNotFoundError):
        for name in os.listdir(os.path.join(os.fsencode(root), folder)):
            path = os.path.join(folder, name)
            if folded(path).startswith(stem) and not (ignored(name) or _lies_beside(path, proof)):
                found.append(path)
    return found


def signature(root: Path, path: bytes) -> Signature | None:
    """The file's signature now, None if it is gone or no regular file."""
    try:
        status = os.lstat(os.path.join(os.fsencode(root), path))
    except OSError:
        return None
    return Signature.of(status) if stat.S_ISREG(status.st_mode) else None
