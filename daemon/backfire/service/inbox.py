"""The inbox as the daemon knows it: where it is mounted, what lies there, what is complete, what changed.

All stages of a picture's trip share it: intake looks for pictures in it, the retry policy asks whether a
file may still be growing, the publisher asks whether picture and masks are what was copied, and `Originals`
alone takes files out of it. It is one long module because all of these go by the same scan.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import structlog

from backfire.config import Settings
from backfire.errors import Code, InputError, UnavailableError
from backfire.files import inbox, outbox
from backfire.files.inbox import Scan, Signature, Taken, Tracker
from backfire.service.jobs import Jobs
from backfire.service.mounts import Mounts
from backfire.service.spool import Copies, Spool
from backfire.service.unused import Unused
from backfire.types import Job, JobState, shown

log = structlog.get_logger()

PATH_MAX = 4096 - 64
"""The most bytes of a result's path: Linux's limit less the room for temporary names and endings."""
MASKLESS = 5
"""The number of known pictures, none of them with a mask, from which a folder counts as one without masks."""
INCOMPLETE = frozenset({Code.EMPTY, Code.TRUNCATED, Code.MASK_UNREADABLE})
"""The codes of a file that ends too early, which may still be being written."""
ASK_AGAIN_S = 60.0
"""How long the answer of the job database about the masks of a folder is used again."""

READ_BYTES = 256 << 20
"""The bytes of files, perhaps only touched, that are read after one scan: the loop has other work, too."""


class Inbox:
    """The inbox folder of one configuration.

    Args:
        settings: the configuration.
        jobs: what was copied of it.
        monotonic: the clock by which files stand still.
        renew_lock: locks the folder that has its name now; see `InboxLock.renew`.

    Attributes:
        mounts: refuses a folder whose share is gone.
        unused: its files that no picture uses.
        trouble: why the inbox cannot be read at present; empty while it can.
    """

    def __init__(
        self,
        settings: Settings,
        jobs: Jobs,
        monotonic: Callable[[], float],
        renew_lock: Callable[[], None] = lambda: None,
    ) -> None:
        self._jobs, self._monotonic, self._renew_lock = jobs, monotonic, renew_lock
        self._scan, self._pictures = Scan(), list[bytes]()
        self._read = 0
        """The bytes that were read since the last scan to see whether files changed."""
        self._tracker = Tracker(settings.watch.settle_s)
        self._incomplete: dict[int, dict[bytes, Signature]] = {}
        self._written: set[int] = set()
        """By job id, whose files were still written to when they were last to be copied."""
        self._mask_folders: set[bytes] = set()
        """The folders for whose pictures masks have been seen since the start."""
        self._maskless: dict[bytes, tuple[float, bool]] = {}
        """By folder, when the job database was asked, and whether it knows only pictures without masks."""
        self.mounts = Mounts(settings, jobs)
        self.unused = Unused(settings, jobs, self._tracker, monotonic)
        self.trouble = ""
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        """Work by other settings from now on; the folders must be the same."""
        self._settings, self._watch = settings, settings.watch
        self._tracker.settle_s = settings.watch.settle_s
        self.unused.configure(settings)

    @property
    def root(self) -> Path:
        """The folder."""
        return self._settings.folders.inbox

    @property
    def ignore(self) -> tuple[str, ...]:
        """See `Watch.ignore`."""
        return tuple(self._watch.ignore)

    @property
    def proof_ending(self) -> bytes:
        """See `Watch.proof_ending`."""
        return self._watch.proof_ending

    # Looking

    def require_mount(self) -> None:
        """Refuse to take an empty mount point for the inbox, or one that another daemon works on.

        Raises:
            OSError: the share that once held the inbox is gone, or the folder is, or another daemon has it.
        """
        self.mounts.require("inbox")
        if not self.root.is_dir():
            raise OSError(f"{self.root}: is not there; mount its share or make the folder again")
        try:
            self._renew_lock()
        except UnavailableError as error:
            raise OSError(str(error)) from error

    def look(self) -> bool:
        """Scan the inbox.

        Returns:
            False where it cannot be read (see `trouble`): that must not look like an inbox that was emptied.
        """
        now = self._monotonic()
        try:
            self.require_mount()
            found = inbox.scan(self.root, self._watch.ignore, self._watch.proof_ending)
            self.require_mount()  # the share may have gone during the scan
            found = self._without_too_long(found)
        except OSError as error:
            if not self.trouble:
                log.warning("inbox_unavailable", error=str(error))
            self.trouble = str(error)
            return False
        if self.trouble:
            log.info("inbox_restored", inbox=str(self.root))
            self.trouble = ""
        self._tell_unreadable(found.unreadable)
        self._scan, self._read = found, 0
        self._mask_folders |= found.mask_folders
        self._tracker.observe(found.files, now)
        self._pictures = self.unused.look(self.root, found)
        return True

    def _without_too_long(self, found: Scan) -> Scan:
        """A scan without the files whose paths are too long for results; they are told as unreadable ones."""
        folders = self._settings.folders.named()
        name, longest = max(folders.items(), key=lambda item: len(os.fsencode(item[1])))
        most = PATH_MAX - len(os.fsencode(longest)) - 1
        long = [path for path in found.files if len(path) > most]
        if not long:
            return found
        why = {
            path: f"has a path of {len(path)} bytes, at most {most} fit below {name} {longest}; "
            "shorten the names of its folders"
            for path in long
        }
        files = {path: signature for path, signature in found.files.items() if path not in why}
        return Scan(files, {**found.unreadable, **why}, found.proof)

    def _tell_unreadable(self, found: Mapping[bytes, str]) -> None:
        """Log each folder that cannot be read once, and once when it can be read again."""
        known = self._scan.unreadable
        for path in sorted(set(found) - set(known)):
            log.warning("folder_unreadable", path=shown(path), error=found[path])
        for path in sorted(set(known) - set(found)):
            log.info("folder_restored", path=shown(path))

    @property
    def unreadable(self) -> dict[str, str]:
        """What the last scan could not look into, by path, with the reason and the remedy."""
        return {shown(path): why for path, why in sorted(self._scan.unreadable.items())}

    @property
    def files(self) -> dict[bytes, Signature]:
        """What the last scan saw, by path."""
        return self._scan.files

    @property
    def pictures(self) -> list[bytes]:
        """The pictures that the last scan saw; see `Unused.look` for those that are none after all."""
        return self._pictures

    def companions(self, path: bytes) -> dict[bytes, Signature]:
        """The files that accompany a picture and have not changed for the settle time."""
        now = self._monotonic()
        files = ((name, self._scan.files[name]) for name in self._scan.companions_of(path))
        return {name: signature for name, signature in files if self._tracker.settled(name, now)}

    def is_gone(self, path: bytes) -> bool:
        """Whether the last scan shows that a file has left; False where its folder could not be read."""
        return path not in self._scan.files and self._scan.knows(path)

    def is_out_of_reach(self, job: Job) -> bool:
        """Whether a job waits for a file whose folder could not be read, or whose path is too long."""
        waits = job.state in (JobState.SETTLING, JobState.WAITING_MASK, JobState.READY)
        return waits and job.path not in self._scan.files and not self._scan.knows(job.path)

    def masks_of(self, path: bytes) -> list[bytes]:
        """The masks of a picture that the last scan saw."""
        return self._scan.masks_of(path)

    def files_of(self, path: bytes) -> dict[bytes, Signature]:
        """Of the picture, its masks and its proof those that the last scan saw."""
        found = ((name, self._scan.files.get(name)) for name in _beside(path, self._scan))
        return {name: signature for name, signature in found if signature is not None}

    def look_beside(self, jobs: Iterable[Job]) -> Scan:
        """Pictures, masks and proofs of some jobs as they lie there now.

        Raises:
            OSError: the inbox is gone, so that nobody can tell.
        """
        self.require_mount()
        paths = [job.path for job in jobs]
        return inbox.scan_beside(self.root, paths, self._watch.ignore, self._watch.proof_ending)

    def is_unchanged(self, job: Job, scan: Scan | None = None) -> bool:
        """Whether a scan, by default the last one, shows picture, masks and proof as they were copied.

        Of files that the last scan shows otherwise `READ_BYTES` are read, and those of one more picture.

        Raises:
            OSError: nobody can tell, as a folder could not be read, or too much was read since the last scan.
        """
        is_last, scan = scan is None, scan or self._scan
        spool = self._jobs.spool(job)
        taken = spool.files()
        scan.require_known(taken)
        names = set(_beside(job.path, scan))
        if set(taken) != names:
            return False
        seen = {path: signature for path in names if (signature := scan.files.get(path)) != taken[path]}
        if not seen:
            return True
        if is_last and self._read >= READ_BYTES:
            raise OSError(f"{job.name}: looks changed; it is read when its turn comes")
        self._read += sum(signature.size for signature in seen.values() if signature) if is_last else 0
        try:
            return self._are_only_touched(job, spool, seen)
        except OSError:
            return False

    def _are_only_touched(self, job: Job, spool: Spool, seen: Mapping[bytes, Signature | None]) -> bool:
        """Whether files differ from their copies in what is noted of them, and not in content; notes that.

        Rights, owners and attributes change the ctime, a share that is mounted again may change device and
        inode, and a sync that runs again the mtime: a job that runs every minute must not have a picture that
        takes longer worked for ever.

        Raises:
            OSError: they cannot be read, or it cannot be noted.
        """
        taken, digests = spool.files(), {path: digest for path, digest, _ in spool.extras()}
        digests[job.path] = job.input_sha256 or ""
        touched: dict[bytes, Signature] = {}
        for path, signature in seen.items():
            if signature is None or signature.size != taken[path].size:
                return False
            touched[path] = signature
        for path, signature in touched.items():
            if inbox.digest(self.root, path) != (digests.get(path), signature):
                return False
            if inbox.signature(self.root, path) != signature:  # it changed while it was read
                return False
        spool.note_touched(touched)
        return True

    # What is complete

    def is_settled(self, path: bytes) -> bool:
        """Whether a picture, its masks and its proof have stood still for the settle time."""
        now = self._monotonic()
        return all(self._tracker.settled(name, now) for name in _beside(path, self._scan))

    def lacks_proof(self, path: bytes) -> bool:
        """Whether the file by which a producer says that a picture is whole is still missing."""
        return self._watch.proof != "none" and self._scan.proof_of(path) is None

    def awaits_mask(self, path: bytes) -> bool:
        """Whether a picture that may get a mask has none, and has not yet waited `mask_wait_s` for it."""
        if self._stood_still_for(path) >= self._watch.settle_s + self._watch.mask_wait_s:
            return False
        expects = "sidecar" in self._settings.for_path(path).regions.detectors
        return expects and not self._scan.masks_of(path) and self._may_have_masks(os.path.dirname(path))

    def _may_have_masks(self, folder: bytes) -> bool:
        """Whether pictures of a folder get masks, as far as those of the past and what lies there tell."""
        if folder in self._mask_folders:
            return True
        now = self._monotonic()
        known = self._maskless.get(folder)
        if known is None or now >= known[0] + ASK_AGAIN_S:
            pictures, masks = self._jobs.store.masks_in(folder)
            known = self._maskless[folder] = now, pictures >= MASKLESS and not masks
        return not known[1]

    def may_grow(self, job: Job) -> bool:
        """Whether a picture or mask that ends too early may still be being written.

        It may until its files have stood still for `incomplete_wait_s` longer than the settle time.
        """
        return self.waited_for_rest(job) < self._watch.settle_s + self._watch.incomplete_wait_s

    def waited_for_rest(self, job: Job) -> float:
        """For how many seconds neither the picture nor what lies beside it has changed."""
        return min(self._stood_still_for(path) for path in _beside(job.path, self._scan))

    def waited(self, job: Job) -> str:
        """The end of a message on an incomplete file: how long nothing came of its rest, if for a second.

        That time passes in line behind others, too, so that it does not say what the file waited for.
        """
        seconds = self.waited_for_rest(job)
        return f"; nothing was added to it for {seconds:.0f} s" if seconds >= 1 else ""

    def note_incomplete(self, job: Job) -> None:
        """Have `awaits_rest` hold the job until its files change or have stood still for long enough."""
        self._incomplete[job.id] = self._jobs.spool(job).files()

    def awaits_rest(self, job: Job) -> bool:
        """Whether the job's files are still those that were found to be incomplete, and may yet grow."""
        noted = self._incomplete.get(job.id)
        if noted is None:
            return False
        if noted == self.files_of(job.path) and self.may_grow(job):
            return True
        del self._incomplete[job.id]
        return False

    def is_left_waiting(self, job: Job) -> bool:
        """Whether a job waits for a proof, or for the end of a program that writes to its file.

        Only once its files have stood still for `incomplete_wait_s` longer than the settle time.
        """
        if job.state not in (JobState.SETTLING, JobState.WAITING_MASK) or self.may_grow(job):
            return False
        return job.id in self._written or self.lacks_proof(job.path)

    def forget(self, job: Job) -> None:
        """Drop what was noted about the files of a job that has left the inbox."""
        self._incomplete.pop(job.id, None)
        self._written.discard(job.id)

    def _stood_still_for(self, path: bytes) -> float:
        return self._tracker.still_for(path, self._monotonic())

    # Copying and taking out

    def copy(self, job: Job) -> Copies:
        """Copy a picture, its masks and its proof into the job's spool folder; see `Spool.fill`.

        Raises:
            InputError, OSError: they cannot be copied.
        """
        most = self._settings.limits.max_bytes
        self._written.discard(job.id)
        try:
            return self._jobs.spool(job).fill(self.root, job.path, self._scan, most=most)
        except InputError as error:
            if error.code == Code.CHANGED:
                self._written.add(job.id)
            raise

    def copy_companion(self, spool: Spool, path: bytes, signature: Signature) -> None:
        """Copy a file that accompanies a picture into the job's spool folder.

        Raises:
            InputError, OSError: see `inbox.take`.
        """
        spool.add_companion(self.root, path, signature, most=self._settings.limits.max_bytes)

    def take(self, path: bytes, target: Path) -> Taken:
        """Copy a file to `target`; see `inbox.take`, which raises the same."""
        return inbox.take(self.root, path, target, self._scan.files.get(path))

    def copy_again(self, job: Job, target: Path) -> Taken | None:
        """Copy the picture alone to `target`, whatever it is by now; None if it is gone.

        Raises:
            InputError: see `inbox.take`.
            OSError: the inbox is gone, or `target` cannot be written.
        """
        self.require_mount()
        if inbox.signature(self.root, job.path) is None:
            return None
        return inbox.take(self.root, job.path, target)

    def remove(self, path: bytes, *, sha256: str, key: str) -> bool:
        """Remove a file if its content is `sha256`; see `outbox.remove`."""
        return outbox.remove(self.root, path, sha256=sha256, key=key)

    def move_unread(
        self, path: bytes, folder: Path, *, key: str, same: Callable[[os.stat_result], bool]
    ) -> bool:
        """Move a file to the same path in `folder`, by its name alone; see `outbox.shift`."""
        return outbox.shift(self.root, path, folder, path, key=key, same=same)

    def wanted_by_others(self, job: Job) -> set[bytes]:
        """Names, `folded`, of masks and proofs that other pictures in the inbox need.

        It looks at the folder as it is now: pictures that no scan has seen count, and so does a newer one of
        the job's own name. Annotations for a whole folder stay for the pictures that are still to come.
        """
        return {
            inbox.folded(name)
            for path in inbox.rivals(self.root, job.path, self._watch.ignore, self._watch.proof_ending)
            if not self._has_its_copies(path)
            for name in (*inbox.mask_names(path), *inbox.proof_names(path, self._watch.proof_ending))
        } | {inbox.folded(path) for path in self._jobs.spool(job).files() if inbox.is_for_folder(path)}

    def is_mask_by_now(self, job: Job) -> bool:
        """Whether the file of a job, from a folder `masks`, is the mask of a picture that has come since.

        It looks at the folder as it is now.

        Raises:
            OSError: the folder cannot be read.
        """
        if not inbox.in_masks_folder(job.path):
            return False
        folder, name = os.path.split(job.path)
        beside = os.path.join(os.path.dirname(folder), name)
        mask = inbox.folded(job.path)
        return any(
            mask in map(inbox.folded, inbox.mask_names(path)) and inbox.signature(self.root, path) is not None
            for path in inbox.rivals(self.root, beside, self._watch.ignore, self._watch.proof_ending)
        )

    def companions_wanted_by_others(self, job: Job, companions: Iterable[bytes]) -> set[bytes]:
        """Of the files that accompany a picture, those that also belong to another one in the inbox."""
        others = [
            path
            for path in inbox.rivals(self.root, job.path, self._watch.ignore, self._watch.proof_ending)
            if not self._has_its_copies(path)
        ]
        return {path for path in companions if any(inbox.belongs(path, other) for other in others)}

    def _has_its_copies(self, path: bytes) -> bool:
        """Whether the picture that lies in the inbox needs nothing from there any more."""
        found = inbox.signature(self.root, path)
        if found is None:
            return True
        job = self._jobs.active.get(path)
        if job is None or job.state != JobState.PUBLISHED:
            return False
        return self._jobs.spool(job).files().get(path) == found


def _beside(path: bytes, scan: Scan) -> list[bytes]:
    """The picture, then its masks and, last, its proof."""
    proof = scan.proof_of(path)
    return [path, *scan.masks_of(path), *([proof] if proof else [])]
