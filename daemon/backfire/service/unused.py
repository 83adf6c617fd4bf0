"""The files of the inbox that no picture uses: masks and companions without a picture, and other files.

Some of them are told from pictures by more than their names: a file in a folder `masks` whose picture never
comes is a picture itself, and so is one without a picture's ending that begins as pictures do; a file with
nearly the name of a mask is held, and not published as a picture.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog

from backfire.config import Settings
from backfire.files import durable, inbox
from backfire.files.inbox import NearMiss, Scan, Signature, Tracker
from backfire.imaging import formats
from backfire.service.jobs import Jobs
from backfire.types import ACTIVE, EXTENSIONS, Job, JobState, shown

log = structlog.get_logger()

TOLD_MOST = 20
"""The most files that are no pictures that one line of the log names."""
LATE_S = 3600.0
"""How long after a picture was done a companion of its name may come; cameras give the same names again."""
STRAY_S = 60.0
"""How long, at least, a mask waits for its picture before it is taken to be that of a held picture, or, in a
folder `masks`, for a picture itself."""

HELD = (JobState.HOLDING, JobState.REVIEW, JobState.RELEASING)
"""The states of a job whose original is in the review folder, or on its way there or back."""


class Unused:
    """The files that no picture uses, as far as the last scan tells; each is logged once."""

    def __init__(
        self, settings: Settings, jobs: Jobs, tracker: Tracker, monotonic: Callable[[], float]
    ) -> None:
        self._settings, self._jobs = settings, jobs
        self._tracker, self._monotonic = tracker, monotonic
        self._scan = Scan()
        self._lone_masks: set[bytes] = set()
        """The masks that have waited for a picture long enough, as of the last scan."""
        self._told_masks: set[bytes] = set()
        self._told_others: set[bytes] = set()
        self._held: set[bytes] = set()
        """Files with nearly the name of a mask that were seen beside the picture that it must be of."""
        self._others: dict[bytes, tuple[Signature, bool]] = {}
        """By path of a file without a picture's ending: as it was read, and whether it is no picture."""
        self._strangers: set[bytes] = set()
        """Companions that belong neither to a picture in the inbox nor to one that is done."""
        self._late: set[bytes] = set()
        """Companions whose picture is no longer in the inbox, as of the last scan."""
        self._late_are_new = False
        self._free: set[bytes] = set()
        """The names that a picture of such files would have, where the job database knows none of them."""

    def configure(self, settings: Settings) -> None:
        """Work by other settings from now on."""
        self._settings = settings

    def look(self, root: Path, found: Scan) -> list[bytes]:
        """Take over a new scan of the inbox, and log what has waited for a picture long enough.

        Returns:
            The files that are pictures: without those that are held or no pictures, and with those in folders
            `masks` that must be pictures, since no picture of their own has come for long.
        """
        self._scan = found
        watch = self._settings.watch
        waited = self._still_for(found.orphans(), watch.settle_s + max(watch.mask_wait_s, STRAY_S))
        # One that is for a held picture has brought it back by the next scan.
        lone, self._lone_masks = waited & self._lone_masks, waited
        strays = self._without_those_of_held({path for path in lone if inbox.in_masks_folder(path)})
        misses = self._near_misses()
        self._held = {path for path, miss in misses.items() if path in self._held or self._has_picture(miss)}
        self._sort_out(root)
        alone = self._still_for(self._without_picture(), watch.settle_s + watch.mask_wait_s)
        self._find_late(alone)
        self._tell((lone - strays) | self._held, alone - self._late)
        pictures = [
            path for path in found.pictures if path not in self._held and not self._is_no_picture(path)
        ]
        return [*pictures, *strays]

    def _still_for(self, paths: set[bytes], seconds: float) -> set[bytes]:
        now = self._monotonic()
        return {path for path in paths if self._tracker.still_for(path, now) > seconds}

    def _sort_out(self, root: Path) -> None:
        """Look into the files without a picture's ending, since such files may be pictures all the same."""
        others = {}
        for path in self._scan.pictures:
            if inbox.has_ending_of_picture(path) or inbox.is_raw(path):
                continue
            signature, known = self._scan.files[path], self._others.get(path)
            if known is not None and known[0] == signature:
                others[path] = known
                continue
            with suppress(OSError):  # copying it will say what is wrong with it
                others[path] = signature, formats.is_no_picture(inbox.head(root, path, formats.HEAD))
        self._others = others

    def _is_no_picture(self, path: bytes) -> bool:
        """Whether a file is no picture by its name and its content, and so stays where it is."""
        known = self._others.get(path)
        return known is not None and known[1]

    # Masks

    def lone_masks(self) -> set[bytes]:
        """The masks that have waited for a picture so long that none is on its way with them."""
        return self._lone_masks

    def _near_misses(self) -> dict[bytes, NearMiss]:
        """The files with nearly the name of a mask, where masks are used at all."""
        found = self._scan.near_misses()
        self._free &= {miss.wanted for miss in found.values()}
        return {
            path: miss
            for path, miss in found.items()
            if "sidecar" in self._settings.for_path(miss.picture).regions.detectors
        }

    def _has_picture(self, miss: NearMiss) -> bool:
        """Whether a picture that a mask may belong to lies in the inbox, or was there before."""
        if self._scan.is_claimed(miss):
            return True
        if miss.wanted in self._free:
            return False
        known = any(map(self._jobs.store.by_path, spelt(miss.picture)))
        if not known:
            self._free.add(miss.wanted)
        return known

    def _without_those_of_held(self, strays: set[bytes]) -> set[bytes]:
        """Of masks that may be pictures those that belong to no held picture; it may be on its way back."""
        if not strays:
            return strays
        held = (job for state in HELD for job in self._jobs.store.all_in(state))
        theirs = {
            inbox.folded(name) for path in {job.path for job in held} for name in inbox.mask_names(path)
        }
        return {path for path in strays if inbox.folded(path) not in theirs}

    # Companions and other files

    def _lone_companions(self) -> set[bytes]:
        return self._scan.lone_companions({*filter(self._is_no_picture, self._others)})

    def _without_picture(self) -> set[bytes]:
        """The files that are no pictures and belong to none."""
        others = set(filter(self._is_no_picture, self._others))
        return self._lone_companions() | self._scan.lone_proofs() | others

    def _find_late(self, alone: set[bytes]) -> None:
        """Find the companions whose picture has gone before them, among files that have waited for long."""
        lone = self._lone_companions()
        self._strangers &= lone
        self._late, self._late_are_new = lone & alone - self._strangers, True
        for path in [*self._late]:
            durable.heartbeat()
            job = self._jobs.store.latest_of(pictures_of(path))
            if job is None or job.state == JobState.SKIPPED or self._came_too_late(path, job):
                self._late.remove(path)
                self._strangers.add(path)

    def _came_too_late(self, path: bytes, job: Job) -> bool:
        """Whether a companion is probably that of a newer picture, which is still to come."""
        seen = self._jobs.now() - self._tracker.still_for(path, self._monotonic())
        written = self._scan.files[path].mtime_ns / 1e9
        return job.state not in ACTIVE and min(seen, written) > job.updated + LATE_S

    def late_companions(self) -> list[tuple[bytes, Job]]:
        """The companions whose picture has gone before them, each with the picture's last job.

        A scan's companions are returned once: what became of them the next scan tells.
        """
        found = []
        for path in sorted(self._late) if self._late_are_new else ():
            durable.heartbeat()
            job = self._jobs.store.latest_of(pictures_of(path))
            if job is not None and self._jobs.due(job):
                found.append((path, job))
        self._late_are_new = False
        return found

    # Telling

    @property
    def is_about_to_tell(self) -> bool:
        """Whether files that are no pictures are still to be told, as their picture may come."""
        return bool(self._without_picture() - self._told_others - self._late)

    def tell_all(self) -> None:
        """Log all masks and companions that no picture uses, also those whose picture may still come."""
        others = self._without_picture() - self._late
        self._tell(self._scan.orphans() | self._near_misses().keys(), others)

    def _tell(self, masks: set[bytes], others: set[bytes]) -> None:
        for path in sorted(masks - self._told_masks):
            log.warning("mask_without_picture", path=shown(path), reason=inbox.why_unused(path))
        if new := sorted(others - self._told_others):
            names = [shown(path) for path in new[:TOLD_MOST]]
            reason = "stay in the inbox; backfire status says why"
            if len(new) == 1:
                reason = _why_it_stays(new[0], self._scan.proof)
            log.info("no_picture", count=len(new), paths=names, reason=reason)
        self._told_masks, self._told_others = masks, others

    def reasons(self) -> dict[str, str]:
        """The files that have been told, by path, with what to do."""
        masks = {shown(path): inbox.why_unused(path) for path in sorted(self._told_masks)}
        proof = self._scan.proof
        return masks | {shown(path): _why_it_stays(path, proof) for path in sorted(self._told_others)}

    def why_no_picture(self, path: bytes) -> str:
        """Why a file that was taken for a picture is none after all; empty if it is one."""
        if path in self._held:
            return "is nearly called a mask"
        if self._is_no_picture(path):
            return "is no picture"
        if inbox.in_masks_folder(path) and self._scan.has_picture(path):
            return "is the mask of a picture that has come"
        return "accompanies a picture that has come" if self._scan.accompanies(path) else ""


def pictures_of(companion: bytes) -> list[bytes]:
    """The paths that the picture of a companion may have had."""
    folder, name = os.path.split(companion)
    own = name[: len(os.path.basename(inbox.owner(companion)))]
    return spelt(os.path.join(folder, own))


def spelt(stem: bytes) -> list[bytes]:
    """The paths of a picture, as its path may be without extension: as it is, and with each extension."""
    endings = [end.encode() for endings in EXTENSIONS.values() for end in endings]
    return [stem + end for end in (b"", *endings, *(end.upper() for end in endings))]


def _why_it_stays(path: bytes, proof: bytes) -> str:
    """Why a file that is no picture stays in the inbox, and what to do; `proof` is the ending of proofs."""
    if inbox.is_proof(path, proof):
        ending = shown(proof)
        return (
            f"says that a picture is complete, and there is none of its name; call it as the picture with "
            f"{ending} after it, or move it away"
        )
    if inbox.is_companion(path) or inbox.is_raw(path):
        return "would go with a picture of the same name, and there is none; leave it here or move it away"
    return "is no picture and stays in the inbox; move it away if it is not needed here"
