"""What is in the inbox, and which mask or proof belongs to which picture. Paths are bytes below it."""

from __future__ import annotations

import errno
import fnmatch
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

from backfire.files import durable
from backfire.types import EXTENSIONS, composed, shown

MASK_ENDING = b".mask.png"
FOR_A_FOLDER = re.compile(rb".*\.coco\.json|instances_.*\.json", re.DOTALL)
"""Names, in lower case, of COCO files that hold the annotations of all pictures beside them, as Roboflow
(`_annotations.coco.json`) and CVAT (`instances_default.json`) write them."""
_PICTURE = b"(?:%b)" % b"|".join(re.escape(end.encode()) for ends in EXTENSIONS.values() for end in ends)
_NEAR_MISS = re.compile(
    rb"(?P<own>.+)[._ -](?:masks?|msk)%b|(?P<inner>.+)%b" % (_PICTURE, _PICTURE), re.DOTALL
)
ANNOTATIONS = b".json"
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


class NearMiss(NamedTuple):
    """What a file whose name is nearly that of a mask is probably meant for.

    Attributes:
        picture: the path of the picture, perhaps without its extension.
        wanted: the path that the mask must have.
    """

    picture: bytes
    wanted: bytes


@dataclass(frozen=True)
class Scan:
    """What was in the inbox.

    Attributes:
        files: every regular file but the ignored ones.
        unreadable: folders that could not be read, so that what is in them is unknown and not gone, and
            files whose paths are too long for the system; with the reason and the remedy.
        proof: the ending of the files by which producers say that a picture is complete, such as `.done`;
            empty if none are used.
    """

    files: dict[bytes, Signature] = field(default_factory=dict)
    unreadable: Mapping[bytes, str] = field(default_factory=dict)
    proof: bytes = b""

    @cached_property
    def pictures(self) -> list[bytes]:
        """All files that are neither masks nor proofs."""
        return [path for path in self.files if not is_mask(path) and not self._is_proof(path)]

    @cached_property
    def _masks(self) -> dict[bytes, bytes]:
        return {folded(path): path for path in self.files if is_mask(path)}

    def _is_proof(self, path: bytes) -> bool:
        return bool(self.proof) and path.lower().endswith(self.proof)

    def masks_of(self, picture: bytes) -> list[bytes]:
        """The sidecar masks of a picture that are in the inbox."""
        if not self._masks:
            return []
        names = {folded(name): name for name in mask_names(picture)}
        # The exact spelling comes first, because p.jpg and P.jpg may each have a mask.
        found = [name if name in self.files else self._masks.get(key) for key, name in names.items()]
        shared = self._for_folders.get(os.path.dirname(picture), []) if not _is_annotated(found) else []
        return [path for path in (*found, *shared) if path is not None and path != picture]

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
        return {name for path in map(folded, self.pictures) for name in (path, os.path.splitext(path)[0])}

    def proof_of(self, picture: bytes) -> bytes | None:
        """The file that says that a picture is complete: NAME.EXT.done, else NAME.done."""
        names = proof_names(picture, self.proof)
        return next((name for name in names if name in self.files), None)

    def orphans(self) -> set[bytes]:
        """The masks that belong to no picture."""
        if not self._masks:
            return set()
        served = {os.path.dirname(picture) for picture in self.pictures}
        return {
            path
            for name, path in self._masks.items()
            if not self._claims.intersection(_claimants(name))
            and not (is_for_folder(path) and os.path.dirname(path) in served)
        }

    def why_unused(self, path: bytes) -> str:
        """What to do with a mask or annotation that no picture uses."""
        if (miss := near_miss(path)) is not None:
            return (
                "looks like a mask, but has not the name of one, and is not taken for a picture beside "
                f"{shown(miss.picture)}; call it {shown(miss.wanted)}, or give it a name without mask"
            )
        folder, name = os.path.split(path)
        if is_for_folder(path):
            return "holds the annotations of the pictures beside it, and there are none (any more)"
        stem = name[: -len(MASK_ENDING)] if name.lower().endswith(MASK_ENDING) else os.path.splitext(name)[0]
        place = os.path.dirname(folder) if os.path.basename(folder).lower() == b"masks" else folder
        picture = shown(os.path.join(place, stem))
        return f"is a mask or annotation by its name and waits for a picture {picture}.jpg, .png or the like"

    def knows(self, path: bytes) -> bool:
        """Whether a path that was not found is gone, since its folder could be read."""
        return not any(path.startswith(folder + b"/") for folder in self.unreadable) and (
            path not in self.unreadable
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
                        except OSError as error:
                            if error.errno != errno.ENAMETOOLONG:
                                raise
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
    """Why a folder cannot be read, with its owner and mode, and what to do."""
    full = os.path.join(top, path)
    if error.errno == errno.ENAMETOOLONG:
        return (
            f"has a path of {len(full)} bytes, more than the system opens; shorten the names of its folders"
        )
    rights = ""
    with suppress(OSError):
        status = os.lstat(full)
        rights = f", its owner is uid {status.st_uid} and its mode {status.st_mode & 0o7777:04o}"
    remedy = f"give uid {os.geteuid()} the right to read and enter it"
    return f"cannot be read as uid {os.geteuid()}{rights} ({error.strerror}); {remedy}"


def scan_beside(root: Path, pictures: Iterable[bytes], proof: bytes = b"") -> Scan:
    """Some pictures, and all masks and proofs in their folders and in `masks` (`Masks`) below these."""
    top, wanted = os.fsencode(root), set(pictures)
    files: dict[bytes, Signature] = {}
    folders = {os.path.dirname(picture) for picture in wanted}
    pending = list(folders)
    while pending:
        place = pending.pop()
        durable.heartbeat()
        with suppress(OSError), os.scandir(os.path.join(top, place)) as entries:
            for entry in entries:
                path = os.path.join(place, entry.name)
                if place in folders and path not in folders and entry.name.lower() == b"masks":
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(path)
                elif path in wanted or is_mask(path) or (proof and path.lower().endswith(proof)):
                    with suppress(OSError):
                        status = entry.stat(follow_symlinks=False)
                        if stat.S_ISREG(status.st_mode):
                            files[path] = Signature.of(status)
    return Scan(files, proof=proof)


def folded(path: bytes) -> bytes:
    """A path as masks are matched: upper and lower case and both Unicode spellings of é are the same."""
    return path.lower() if path.isascii() else os.fsencode(composed(path).lower())


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
            is_proof = proof and path.lower().endswith(proof)
            if folded(path).startswith(stem) and not (ignored(name) or is_mask(path) or is_proof):
                found.append(path)
    return found


def in_masks_folder(path: bytes) -> bool:
    """Whether only its folder, `masks`, makes a file a mask, so that it may be a picture after all."""
    return is_mask(path) and not path.lower().endswith((MASK_ENDING, ANNOTATIONS))


def is_mask(path: bytes) -> bool:
    """Whether a file is a sidecar by its name: NAME.mask.png, any PNG in a folder `masks`, or JSON."""
    lower = path.lower()
    in_folder = os.path.basename(os.path.dirname(lower)) == b"masks"
    return lower.endswith((MASK_ENDING, ANNOTATIONS)) or (in_folder and lower.endswith(b".png"))


def is_for_folder(path: bytes) -> bool:
    """Whether a file is a COCO file with the annotations of all pictures beside it."""
    return FOR_A_FOLDER.fullmatch(os.path.basename(path).lower()) is not None


def near_miss(path: bytes) -> NearMiss | None:
    """The mask that a file is probably meant to be, such as `d_mask.png`, `e.mask.jpg` and `masks/c.jpg`."""
    folder, name = os.path.split(path)
    above, inner = os.path.split(folder)
    lower = path.lower()
    if b"mask" not in lower and b"msk" not in lower:  # most names: the pattern is slower
        return None
    found = _NEAR_MISS.fullmatch(name.lower())
    if found is None or is_mask(path):
        return None
    if found["own"]:
        picture = os.path.join(folder, name[: found.end("own")])
        return NearMiss(picture, picture + MASK_ENDING)
    if inner.lower() in (b"mask", b"masks"):
        stem = name[: found.end("inner")]
        return NearMiss(os.path.join(above, stem), os.path.join(above, b"masks", stem + b".png"))
    return None


def _is_annotated(masks: Iterable[bytes | None]) -> bool:
    return any(mask is not None and mask.lower().endswith(ANNOTATIONS) for mask in masks)


def mask_names(picture: bytes) -> list[bytes]:
    """All paths that a picture's sidecars, painted or JSON, may have, relative to the inbox."""
    folder, name = os.path.split(picture)
    stem = os.path.splitext(name)[0]
    return [
        os.path.join(folder, stem + b".mask.png"),
        os.path.join(folder, name + b".mask.png"),
        os.path.join(folder, b"masks", stem + b".png"),
        os.path.join(folder, b"masks", name + b".png"),
        os.path.join(folder, stem + b".regions.json"),
        os.path.join(folder, name + b".regions.json"),
        os.path.join(folder, stem + b".json"),
        os.path.join(folder, b"masks", stem + b".json"),
    ]


def proof_names(picture: bytes, ending: bytes) -> list[bytes]:
    """The files that may say that a picture is complete; none without an ending."""
    return [picture + ending, os.path.splitext(picture)[0] + ending] if ending else []


def _claimants(mask: bytes) -> set[bytes]:
    """The pictures, with or without their extension, that a `folded` mask may belong to."""
    endings = (MASK_ENDING, b".regions.json", ANNOTATIONS)
    found = {mask.removesuffix(ending) for ending in endings if mask.endswith(ending)}
    folder, name = os.path.split(mask)
    above, own = os.path.split(folder)
    return found | {os.path.join(above, os.path.splitext(name)[0])} if own == b"masks" else found


def signature(root: Path, path: bytes) -> Signature | None:
    """The file's signature now, None if it is gone or no regular file."""
    try:
        status = os.lstat(os.path.join(os.fsencode(root), path))
    except OSError:
        return None
    return Signature.of(status) if stat.S_ISREG(status.st_mode) else None
