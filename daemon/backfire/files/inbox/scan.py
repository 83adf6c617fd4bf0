"""What is in the inbox: scans of the folder, and what each file looked like. Paths are bytes below it."""

from __future__ import annotations

import errno
import fnmatch
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

from backfire.files import durable
from backfire.files.inbox.companions import claims, is_companion, is_raw, owner
from backfire.files.inbox.names import folded
from backfire.files.inbox.sidecars import (
    ANNOTATIONS,
    NearMiss,
    claimants,
    is_for_folder,
    is_mask,
    is_proof,
    mask_names,
    near_miss,
    proof_names,
)
from backfire.types import shown

HEARTBEAT_EACH = 1000
"""Files between two heartbeats of a scan."""


class Signature(NamedTuple):
    """What must not change for a while before a file counts as complete."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Signature:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def same(self, status: os.stat_result) -> bool:
        """Whether a status is that of the same, unchanged file; a second hard link changes only the ctime."""
        return Signature.of(status)._replace(ctime_ns=self.ctime_ns) == self


@dataclass(frozen=True)
class Scan:
    """What was in the inbox.

    Attributes:
        files: every regular file but the ignored ones.
        unreadable: folders that could not be read, so that what is in them is unknown and not gone; files
            whose paths are too long for the system, or of which it says nothing; with the reason and the
            remedy.
        proof: the ending of the files by which producers say that a picture is complete, such as `.done`;
            empty if none are used.
    """

    files: dict[bytes, Signature] = field(default_factory=dict)
    unreadable: Mapping[bytes, str] = field(default_factory=dict)
    proof: bytes = b""

    @cached_property
    def pictures(self) -> list[bytes]:
        """All files that are neither masks, proofs nor companions; a raw file beside a picture is one."""
        some = [
            path
            for path in self.files
            if not (is_mask(path) or is_proof(path, self.proof) or is_companion(path))
        ]
        if not any(map(is_raw, some)):
            return some
        claimed = {name for path in some if not is_raw(path) for name in claims(path)}
        return [path for path in some if not is_raw(path) or owner(path) not in claimed]

    @cached_property
    def _companions(self) -> dict[bytes, list[bytes]]:
        """The files that accompany pictures, by the name that such a picture must have."""
        pictures = set(self.pictures) if any(map(is_raw, self.files)) else set()
        found: dict[bytes, list[bytes]] = {}
        for path in self.files:
            if is_companion(path) or (is_raw(path) and path not in pictures):
                found.setdefault(owner(path), []).append(path)
        return found

    def accompanies(self, path: bytes) -> bool:
        """Whether a file goes where the original of a picture goes, if there is one."""
        return (is_companion(path) or is_raw(path)) and path in self._companions.get(owner(path), ())

    def companions_of(self, picture: bytes) -> list[bytes]:
        """The files beside a picture that go where its original goes."""
        return [path for name in dict.fromkeys(claims(picture)) for path in self._companions.get(name, ())]

    def lone_companions(self, none: Collection[bytes] = ()) -> set[bytes]:
        """The files that would accompany a picture that is not there.

        Args:
            none: files that look like pictures by their names and are none.
        """
        claimed = self._claims if not none else _claims(path for path in self.pictures if path not in none)
        return {path for name, paths in self._companions.items() if name not in claimed for path in paths}

    @cached_property
    def _masks(self) -> dict[bytes, bytes]:
        return {folded(path): path for path in self.files if is_mask(path)}

    @cached_property
    def mask_folders(self) -> set[bytes]:
        """The folders whose pictures may be meant by the masks and annotations that are there."""
        folders = {os.path.dirname(path) for path in self._masks.values()}
        return folders | {
            os.path.dirname(one) for one in folders if os.path.basename(one).lower() == b"masks"
        }

    def masks_of(self, picture: bytes) -> list[bytes]:
        """The sidecar masks of a picture that are in the inbox."""
        if not self._masks:
            return []
        names = {folded(name): name for name in mask_names(picture)}
        # The exact spelling comes first, because p.jpg and P.jpg may each have a mask.
        found = [name if name in self.files else self._masks.get(key) for key, name in names.items()]
        own = [path for path in found if path is not None and path != picture]
        annotated = any(path.lower().endswith(ANNOTATIONS) for path in own)
        return own if annotated else [*own, *self._for_folders.get(os.path.dirname(picture), [])]

    @cached_property
    def _for_folders(self) -> dict[bytes, list[bytes]]:
        """The COCO files for all pictures of a folder, by folder."""
        found: dict[bytes, list[bytes]] = {}
        for path in sorted(self._masks.values()):
            if is_for_folder(path):
                found.setdefault(os.path.dirname(path), []).append(path)
        return found

    def near_misses(self) -> dict[bytes, NearMiss]:
        """The files that are pictures by the rule, but whose names are nearly those of masks."""
        found = ((path, near_miss(path)) for path in self.pictures)
        return {path: miss for path, miss in found if miss is not None}

    def is_claimed(self, miss: NearMiss) -> bool:
        """Whether there is a picture whose mask a file of nearly the right name must be."""
        return folded(miss.picture) in self._claims

    @cached_property
    def _claims(self) -> set[bytes]:
        """The names of all pictures, `folded`, with and without their extensions."""
        return _claims(self.pictures)

    @cached_property
    def _proofs(self) -> dict[bytes, bytes]:
        return {folded(path): path for path in self.files if is_proof(path, self.proof)}

    def proof_of(self, picture: bytes) -> bytes | None:
        """The file that says that a picture is complete: NAME.EXT.done, else NAME.done, in any spelling."""
        names = proof_names(picture, self.proof)
        # The exact spelling comes first, because p.jpg and P.jpg may each have a proof.
        exact = (name for name in names if name in self.files)
        spelt = (self._proofs.get(folded(name)) for name in names)
        free = (path for path in spelt if path and path[: -len(self.proof)] not in self.files)
        return next(exact, None) or next(free, None)

    def lone_proofs(self) -> set[bytes]:
        """The files that say that a picture is complete, where there is none of their name."""
        return {path for name, path in self._proofs.items() if name[: -len(self.proof)] not in self._claims}

    def orphans(self) -> set[bytes]:
        """The masks that belong to no picture."""
        if not self._masks:
            return set()
        served = {os.path.dirname(picture) for picture in self.pictures}
        return {
            path
            for path in self._masks.values()
            if not self.has_picture(path) and not (is_for_folder(path) and os.path.dirname(path) in served)
        }

    def has_picture(self, mask: bytes) -> bool:
        """Whether there is a picture that a mask, by its name, may belong to."""
        return bool(self._claims.intersection(claimants(folded(mask))))

    def knows(self, path: bytes) -> bool:
        """Whether a path that was not found is gone, since its folder could be read."""
        return self._hidden_by(path) is None

    def _hidden_by(self, path: bytes) -> bytes | None:
        """The folder or file that could not be read, because of which nobody can tell what is at a path."""
        hides = (one for one in self.unreadable if path == one or not one or path.startswith(one + b"/"))
        return next(hides, None)

    def require_known(self, paths: Iterable[bytes]) -> None:
        """Refuse to take files for gone whose folder could not be read.

        Raises:
            OSError: one was not found, and nobody can tell whether it is gone.
        """
        for path in paths:
            if path not in self.files and (folder := self._hidden_by(path)) is not None:
                why = self.unreadable[folder]
                raise OSError(
                    f"{shown(path)}: may be there or gone, as {shown(folder) or 'its folder'} {why}"
                )


def scan(root: Path, ignore: Iterable[str], proof: bytes = b"") -> Scan:
    """All regular files below `root` but the ignored; links, FIFOs and devices are not followed.

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
        durable.heartbeat()
        try:
            with os.scandir(os.path.join(top, folder)) as entries:
                for entry in entries:
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


def _claims(pictures: Iterable[bytes]) -> set[bytes]:
    return {name for path in pictures for name in claims(path)}


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
