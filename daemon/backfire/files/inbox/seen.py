"""What a scan saw in the inbox, and what each file looked like. Paths are bytes below the folder."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

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


def _claims(pictures: Iterable[bytes]) -> set[bytes]:
    return {name for path in pictures for name in claims(path)}
