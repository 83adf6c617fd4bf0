"""What lies in the review folder beside held pictures: masks, proofs, notes, and what people put there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path

from backfire.files import durable, outbox
from backfire.files import inbox as names
from backfire.files.inbox import Scan
from backfire.service.spool import Spool
from backfire.service.store.reader import Reader
from backfire.types import Job


def noted_by_others(store: Reader, spools: Path, job: Job) -> dict[bytes, set[str]]:
    """What other held pictures whose names begin alike were worked with: SHA-256s by name, `folded`.

    Args:
        store: the job database.
        spools: the folder of the jobs' spool folders.
        job: whose picture is held.
    """
    found: dict[bytes, set[str]] = {}
    for other in store.held_alike(job.path):
        if other.id != job.id:
            for name, sha256, _ in Spool(spools / str(other.id)).extras():
                found.setdefault(names.folded(name), set()).add(sha256)
    return found


def names_beside(scan: Scan, job: Job, proof: bytes) -> list[bytes]:
    """The names that masks and proof of a held picture may have, those that a scan saw first.

    Args:
        scan: of the review folder.
        job: whose picture is held.
        proof: see `Watch.proof_ending`.
    """
    written = scan.masks_of(job.path)  # P.MASK.PNG belongs to p.jpg too, and so does p.jpg.DONE
    proofs = [scan.proof_of(job.path), *names.proof_names(job.path, proof)]
    return [*written, *names.mask_names(job.path), *filter(None, proofs)]


def put_beside(
    folder: Path,
    job: Job,
    held: bytes | None,
    wanted: Iterable[bytes],
    others: Mapping[bytes, Set[str]],
    own: Mapping[bytes, bytes | None],
) -> Iterator[tuple[bytes, bytes]]:
    """The files in the review folder that may have been put there for a held picture.

    Args:
        folder: the review folder.
        job: whose picture is held.
        held: the picture's path in `folder`.
        wanted: the names in the inbox that such files may have.
        others: see `noted_by_others`; the files of other pictures are left out.
        own: what the picture was worked with: by name in the inbox, where it lies in `folder`, None if it
            does not any more. It is left out, too.

    Yields:
        Name in the inbox, and path in `folder`.

    Raises:
        OSError: a file cannot be read.
    """
    masks = dict(zip(names.mask_names(job.path), names.mask_names(held or job.path), strict=True))
    for name in dict.fromkeys(wanted):
        # The first two have the picture's key in their names, if another picture has its name.
        for place in (outbox.keyed(folder, name, job.key or ""), masks.get(name, name), name):
            if place in own.values() or names.signature(folder, place) is None:
                continue
            noted = others.get(names.folded(name), ()) if place == name else ()
            if noted and (name not in own or durable.file_sha256(folder / os.fsdecode(place)) in noted):
                continue
            yield name, place
            break


def masks_beside(
    folder: Path,
    job: Job,
    held: bytes | None,
    others: Mapping[bytes, Set[str]],
    own: Mapping[bytes, bytes | None],
    ignore: Iterable[str],
) -> list[bytes]:
    """The masks put beside a held picture in the review folder that replace none of its own; `put_beside`.

    Args:
        folder, job, held, others, own: see `put_beside`.
        ignore: see `Watch.ignore`.
    """
    wanted = names_beside(names.scan_beside(folder, [job.path], ignore), job, b"")
    found = put_beside(folder, job, held, (name for name in wanted if name not in own), others, own)
    return [*dict.fromkeys(place for _, place in found)]


def note_of(file: Path) -> int | None:
    """The job that a note beside a held picture is about; None if there is no such note."""
    try:
        number = json.loads(file.read_bytes())["job"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return number if isinstance(number, int) else None
