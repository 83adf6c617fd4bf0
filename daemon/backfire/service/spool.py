"""The spool: for each job a private folder with copies of its files, and later the worker's result."""

from __future__ import annotations

import codecs
import json
import mmap
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from backfire.errors import Code, InputError
from backfire.files import durable, inbox
from backfire.files.inbox import Scan, Signature, Taken
from backfire.imaging import containers, formats, refusals
from backfire.types import shown

PROOF_BYTES = 32 << 10
"""The most bytes of a checksum file that are read: more than a path and a digest in two bytes a letter."""
DIGEST = re.compile(
    r"^\\?(?:SHA2?-?256(?: ?\(.*\) ?= ?| +)|Hash *: )?([0-9a-f]{64})\b", re.IGNORECASE | re.MULTILINE
)
"""A line of a checksum file: digest first, or last, as BSD has it, both after a backslash for names with one;
or in a row of the table or the list as which PowerShell shows it."""


class Copies(NamedTuple):
    """What was copied for a job."""

    picture: Taken
    masks: list[Taken]
    proof: Taken | None


@dataclass(frozen=True)
class Spool:
    """A job's private folder below `state/spool`, and what was taken into it."""

    folder: Path

    @property
    def input(self) -> Path:
        """The picture's copy; mask i lies beside it as `mask-i`."""
        return self.folder / "input"

    def mask(self, index: int) -> Path:
        """The copy of a mask."""
        return self.folder / f"mask-{index}"

    @property
    def proof(self) -> Path:
        """The copy of the done-marker or checksum file."""
        return self.folder / "proof"

    def companion(self, index: int) -> Path:
        """The copy of a file that accompanies the picture."""
        return self.folder / f"companion-{index}"

    def add_companion(self, root: Path, path: bytes, signature: Signature, *, most: int) -> None:
        """Copy a file that accompanies the picture, and note it; see `inbox.take`, which raises the same."""
        noted = self._noted()
        known = noted.setdefault("companions", [])
        names = [name for name, _ in known]
        index = names.index(os.fsdecode(path)) if os.fsdecode(path) in names else len(names)
        taken = inbox.take(root, path, self.companion(index), signature, most=most)
        known[index : index + 1] = [[os.fsdecode(path), taken.sha256]]
        self._write(noted)

    def fill(self, root: Path, path: bytes, scan: Scan, *, most: int | None = None) -> Copies:
        """Copy a picture, its masks and its proof as a scan saw them, in place of what lay here.

        Args:
            root, path: the inbox, and the picture relative to it.
            scan: what lies there.
            most: bytes that each of the files may have.

        Raises:
            InputError: see `inbox.take`.
            OSError: the spool cannot be written; half a copy is not left to fill its disk.
        """
        try:
            return self._fill(root, path, scan, most)
        except BaseException:
            self.drop()
            raise

    def _fill(self, root: Path, path: bytes, scan: Scan, most: int | None) -> Copies:
        masks, proof = scan.masks_of(path), scan.proof_of(path)
        self.drop()
        for name in (path, *masks, *([proof] if proof else [])):  # before any of them is copied
            inbox.require_size(shown(name), scan.files[name].size, most)
        self.folder.mkdir(parents=True)
        picture = inbox.take(root, path, self.input, scan.files[path], most=most)
        return Copies(picture, *self._copy_beside(root, path, picture.signature, scan, most))

    def _copy_beside(
        self, root: Path, path: bytes, signature: Signature, scan: Scan, most: int | None = None
    ) -> tuple[list[Taken], Taken | None]:
        """Copy a picture's masks and proof, and note their signatures and that of the picture."""
        masks, proof = scan.masks_of(path), scan.proof_of(path)

        def copy(name: bytes, target: Path) -> Taken:
            return inbox.take(root, name, target, scan.files[name], most=most)

        copies = {mask: copy(mask, self.mask(index)) for index, mask in enumerate(masks)}
        proofs = {proof: copy(proof, self.proof)} if proof else {}
        seen = {path: signature} | {name: taken.signature for name, taken in (copies | proofs).items()}
        digests = [[(name, taken.sha256) for name, taken in some.items()] for some in (copies, proofs)]
        self._note(seen, *digests)
        return [*copies.values()], next(iter(proofs.values()), None)

    def refuse(self, files: dict[bytes, Signature]) -> None:
        """Note the files that were refused unread, so that no others are set aside in their place."""
        self.drop()
        self.folder.mkdir(parents=True)
        self._note(files, [], [])

    def doubt(self, name: str, copies: Copies, *, checksum: bool) -> InputError | None:
        """Why the picture, `name`, may be incomplete; None if nothing indicates that.

        Args:
            checksum: the proof holds the picture's SHA-256; otherwise it is only a marker.
        """
        if copies.proof is None:
            hollow = any(copy.hollow for copy in (copies.picture, *copies.masks))
            message = f"{name}: ends in zeros, like a file that is still being filled"
            return InputError(Code.TRUNCATED, message) if hollow else None
        if not checksum:
            return None
        with self.proof.open("rb") as file:
            said = _digest_in(file.read(PROOF_BYTES))
        if said == copies.picture.sha256:
            return None
        if said is None:
            found = "has a checksum file without a SHA-256, expected the output of `sha256sum`; make it again"
        else:
            found = f"has SHA-256 {copies.picture.sha256[:12]}…, its checksum file says {said[:12]}…"
        return InputError(Code.CHECKSUM, f"{name}: {found}; copy both again")

    def cut_short(self, name: str) -> InputError | None:
        """The error for a copy of a picture whose end is missing, as the worker would find it.

        None where that takes a closer look, and where it is no picture.
        """
        with self.input.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:  # nothing can be mapped
                return None
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                try:
                    kind = formats.sniff(data[: formats.HEAD], name)
                except InputError:
                    return None
                return (
                    refusals.cut_short(name, f"the {kind}") if containers.is_cut_short(data, kind) else None
                )

    def _note(
        self,
        files: dict[bytes, Signature],
        masks: list[tuple[bytes, str]],
        proofs: list[tuple[bytes, str]],
    ) -> None:
        """Write down which files were copied and their signatures; masks and proof as (path, digest)."""
        document = {
            "files": [[os.fsdecode(path), list(signature)] for path, signature in files.items()],
            "masks": [[os.fsdecode(path), digest] for path, digest in masks],
            "proof": [[os.fsdecode(path), digest] for path, digest in proofs],
        }
        self._write(document)

    def note_touched(self, files: dict[bytes, Signature]) -> None:
        """Note other signatures of files whose content is what was copied."""
        noted = self._noted()
        changed = {os.fsdecode(path): list(signature) for path, signature in files.items()}
        noted["files"] = [[path, changed.get(path, signature)] for path, signature in noted["files"]]
        self._write(noted)

    def _write(self, document: dict[str, Any]) -> None:
        # Replaced at once, since half of it would mean that nothing was copied.
        part = self.folder / "taken.json.part"
        part.write_text(json.dumps(document))
        part.replace(self.folder / "taken.json")

    def _noted(self) -> dict[str, Any]:
        try:
            document: dict[str, Any] = json.loads((self.folder / "taken.json").read_text())
        except (OSError, ValueError):
            return {"files": [], "masks": [], "proof": []}
        return document

    def files(self) -> dict[bytes, Signature]:
        """The signatures of the files copied; empty if there is no complete copy."""
        return {os.fsencode(path): Signature(*values) for path, values in self._noted()["files"]}

    def masks(self) -> list[tuple[bytes, str]]:
        """(path in the inbox, SHA-256) of the masks taken."""
        return [(os.fsencode(path), digest) for path, digest in self._noted()["masks"]]

    def extras(self) -> list[tuple[bytes, str, Path]]:
        """(path in the inbox, SHA-256, copy) of all that was taken beside the picture."""
        masks = [(path, digest, self.mask(index)) for index, (path, digest) in enumerate(self.masks())]
        proofs = [(os.fsencode(path), digest, self.proof) for path, digest in self._noted().get("proof", ())]
        companions = [
            (os.fsencode(path), digest, self.companion(index))
            for index, (path, digest) in enumerate(self._noted().get("companions", ()))
        ]
        return masks + proofs + companions

    def keep_result(self) -> None:
        """Delete the private copies, and what came back late from a cluster; keep the worker's result."""
        for late in self.folder.glob("returned-*"):
            shutil.rmtree(late, ignore_errors=True)
        copies = *self.folder.glob("mask-*"), *self.folder.glob("companion-*")
        for file in (self.input, self.proof, *copies):
            file.unlink(missing_ok=True)

    def take_back(self, root: Path, picture: bytes, scan: Scan) -> None:
        """Note the files of a job as a scan sees them, in place of those that its result was made of.

        Only for files of the same content, which were moved away and back: the result stays theirs. Masks and
        proof are copied again, because only what was copied is archived and leaves the inbox.

        Raises:
            InputError, OSError: see `inbox.take`.
        """
        self._copy_beside(root, picture, scan.files[picture], scan)

    def drop(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        durable.heartbeat()


def _digest_in(proof: bytes) -> str | None:
    """The first SHA-256 that a checksum file states, lower-case hex; None if it states none."""
    encoding = "utf-16" if proof.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    found = DIGEST.search(proof.decode(encoding, "replace"))
    return found[1].lower() if found else None
