"""From a finished result to its place: reports, outbox, record, archive; or the failed folder.

Every step may be done again: names follow from content and key, the same content is adopted.
A step that cannot be done now is put off and burns no attempt. Jobs that are finished at the same time
go step by step together, so that a sync of a folder, a write of the manifest and a commit serve all of them.
Longer than 300 lines so that the order of the steps, on which every promise rests, is read in one place.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from backfire.config import Settings
from backfire.errors import Code, PublishError
from backfire.evaluate import premis
from backfire.files import inbox, manifest, outbox
from backfire.files.inbox import Scan
from backfire.files.manifest import Entry
from backfire.files.parallel import in_parallel
from backfire.service.intake import Intake
from backfire.service.jobs import Ledger, blaming
from backfire.service.originals import Originals
from backfire.service.spool import Spool
from backfire.service.worker.local import Outcome
from backfire.types import Job, JobState, Verdict, shown

T = TypeVar("T")
FAULTS = 3
"""How often a fault of ours may meet a job."""

TOGETHER = 128
"""How many jobs are put in place at a time: they share syncs of folders and transactions."""


class Publisher:
    """Puts results and originals where they belong."""

    def __init__(self, settings: Settings, ledger: Ledger, intake: Intake) -> None:
        self._ledger, self._intake = ledger, intake
        self._originals = Originals(settings, ledger, intake)
        self._out: dict[tuple[int, int], Entry] = {}
        """Results by job and lease that were put in the outbox, and whose record is still to be written."""
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        """Work by other settings from now on; the folders must be the same."""
        self._settings = settings
        self._originals.configure(settings)

    def conclude(self, job: Job, outcome: Outcome, *, detail: dict[str, Any] | None = None) -> None:
        """Record what follows from a verdict: publish, or set aside; `step` does it."""
        verdict = Verdict(outcome.verdict or Verdict.FAILED)
        reasons = "; ".join(outcome.reasons)
        if verdict == Verdict.FAILED:
            message = f"{job.name}: verification failed: {reasons}; see the sheet in the reports folder"
            self.fail(job, Code.NOT_PROTECTED, message, verdict)
        elif verdict == Verdict.WEAK and self._on_weak(job, outcome) == "fail":
            message = f"{job.name}: protection is weak: {reasons}; verify.on_weak: publish would let it pass"
            self.fail(job, Code.WEAK, message, verdict)
        else:
            self._ledger.update(job, JobState.PUBLISHING, detail=detail, verdict=verdict)

    def _on_weak(self, job: Job, outcome: Outcome) -> str:
        """What it was worked under; the configuration may be another by now."""
        return outcome.on_weak or self._settings.for_path(job.path).verify.on_weak

    def fail(self, job: Job, code: Code, message: str, verdict: Verdict | None = None) -> None:
        """Record why it cannot be protected; `step` sets it aside."""
        self._ledger.update(job, JobState.SETTING_ASIDE, code=code.value, message=message, verdict=verdict)

    def bear(self, job: Job, error: BaseException) -> None:
        """Put off a job that a fault of ours met; after some such it fails, if nothing of it is out yet."""
        count = self._ledger.faults[job.id] = self._ledger.faults.get(job.id, 0) + 1
        text = "".join(traceback.format_exception(error, limit=20))
        self._ledger.postpone(job, error)
        is_out = job.state == JobState.PUBLISHED or (job.id, job.lease) in self._out
        if count < FAULTS or is_out or job.state == JobState.SETTING_ASIDE:
            return
        if job.input_sha256 is None or not self._ledger.spool(job).files():
            self._intake.refuse(job, Code.INTERNAL, text)
        else:
            self.fail(job, Code.INTERNAL, text)

    def step(self) -> bool:
        """Put some of what is finished in its place, also what a crash or a full disk interrupted.

        Returns:
            Whether there was anything that could be tried.
        """
        ended, published = (
            self._due(JobState.PUBLISHING, JobState.SETTING_ASIDE),
            self._due(JobState.PUBLISHED),
        )
        for job in ended:
            if job.state == JobState.SETTING_ASIDE:
                with blaming(job):
                    self._set_aside(job)
        self._publish([job for job in ended if job.state == JobState.PUBLISHING])
        self._archive(self._due(JobState.PUBLISHED))
        return bool(ended or published)

    def _due(self, *states: JobState) -> list[Job]:
        """Some jobs whose step may be tried; of several with one key, whose files might meet, only one."""
        due: dict[str | None, Job] = {}
        # Those that were put off come after the others, or many of them would leave no turn to any.
        for job in sorted(self._ledger.of(*states), key=lambda job: job.id in self._ledger.troubles):
            if self._ledger.due(job):
                due.setdefault(job.key, job)
        return list(due.values())[:TOGETHER]

    def _each(self, jobs: Iterable[Job], do: Callable[[Job, set[bytes]], T]) -> dict[Job, T]:
        """One step of several jobs; the folders in which it gave names are synced once, after all of them.

        Args:
            jobs: none may be in another's way. Those for which it cannot be done now are postponed, and
                left out of what is returned.
            do: the step, on files alone; adds those folders to the set it is given.
        """
        jobs, unsynced = list(jobs), set[bytes]()

        def attempt(job: Job) -> T | PublishError | OSError:
            try:
                with blaming(job):
                    return do(job, unsynced)
            except (PublishError, OSError) as error:
                return error

        done: dict[Job, T] = {}
        for job, result in zip(jobs, in_parallel(attempt, jobs), strict=True):
            if isinstance(result, PublishError | OSError):
                self._ledger.postpone(job, result)
            else:
                done[job] = result
        return done if self._or_postpone(done, lambda: outbox.sync(unsynced)) else {}

    def _or_postpone(self, jobs: Iterable[Job], do: Callable[[], None]) -> bool:
        """A step that several jobs share; all are postponed where it cannot be done now."""
        try:
            do()
        except (PublishError, OSError) as error:
            for job in jobs:
                self._ledger.postpone(job, error)
            return False
        return True

    def _publish(self, jobs: Sequence[Job]) -> None:
        """Receipts, then results, then the record: what stands in the outbox is never without a receipt."""
        folder, results = self._settings.folders.outbox, self._results(jobs)

        def report(job: Job, unsynced: set[bytes]) -> None:
            wanted, sha = results[job]
            path = outbox.destined(folder, wanted, sha256=sha, key=job.key or "")
            self._report(self._ledger.spool(job), path, job, unsynced)

        def place(job: Job, unsynced: set[bytes]) -> Entry | None:
            (wanted, sha), spooled = results[job], self._ledger.spool(job).folder
            before = self._out.get((job.id, job.lease))
            if before is not None and not os.path.lexists(os.path.join(os.fsencode(folder), before.path)):
                return before  # somebody took it already: they are not to get it twice
            try:
                path = outbox.place(
                    spooled / "output", folder, wanted, key=job.key or "", sha256=sha, unsynced=unsynced
                )
            except (PublishError, OSError):
                if outbox.holds(spooled, b"output", sha):
                    raise
                return None
            entry = self._out[job.id, job.lease] = Entry(path, sha)
            return entry

        tried = self._each(self._each(results, report), place)
        for job in (job for job, entry in tried.items() if entry is None):
            self._work_again(job)
        placed = {job: entry for job, entry in tried.items() if entry is not None}
        now = self._ledger.now()
        if not placed or not self._or_postpone(
            placed, lambda: manifest.append(folder, placed.values(), at=now)
        ):
            return
        with self._ledger.together():
            for job, (path, sha) in placed.items():
                with blaming(job):
                    told = {"output": shown(path)}
                    fields: dict[str, Any] = {"output_path": path, "output_sha256": sha, "detail": told}
                    self._ledger.update(job, JobState.PUBLISHED, **fields)
        for job in placed:
            del self._out[job.id, job.lease]

    def _results(self, jobs: Sequence[Job]) -> dict[Job, tuple[bytes, str]]:
        """Wanted path and SHA-256 of each result that is still that of the file in the inbox."""
        if not jobs:
            return {}
        try:
            beside = self._intake.look_beside(jobs)
        except OSError as error:
            for job in jobs:
                self._ledger.postpone(job, error)
            return {}
        found: dict[Job, tuple[bytes, str]] = {}
        names: set[bytes] = set()
        for job in jobs:
            with blaming(job):
                result = self._result(job, beside)
            if result is not None and (name := inbox.folded(result[0])) not in names:
                found[job] = result
                names.add(name)  # p.bmp and p.png both become p.png: one after the other
        return found

    def _result(self, job: Job, beside: Scan) -> tuple[bytes, str] | None:
        """Wanted path and SHA-256 of a job's result; None where it has to be worked anew."""
        outcome = Outcome.read(self._ledger.spool(job).folder, job.lease)
        sha = outcome.output_sha256 if outcome is not None and outcome.verdict is not None else None
        if outcome is None or sha is None:
            self._work_again(job)
            return None
        wanted = renamed(job.path, outcome.extension)
        if self._intake.unchanged(job, beside):
            return wanted, sha
        # Somebody replaced picture or mask meanwhile: this result is not theirs any more.
        told = {"reason": "picture or mask changed while it was worked"}
        if (entry := self._placed(job, wanted, sha)) is not None:
            if not self._or_postpone([job], lambda: self._own_up(entry)):
                return None
            told["output"] = shown(entry.path)
        self._discard(job)
        self._out.pop((job.id, job.lease), None)
        self._ledger.update(job, JobState.SETTLING, detail=told)
        return None

    def _placed(self, job: Job, wanted: bytes, sha: str) -> Entry | None:
        """What the outbox got of a job whose record is still to be written, a crash ago or just now."""
        if (just_now := self._out.get((job.id, job.lease))) is not None:
            return just_now
        found = outbox.find(self._settings.folders.outbox, wanted, key=job.key or "", sha256=sha)
        return None if found is None else Entry(found, sha)

    def _own_up(self, entry: Entry) -> None:
        """Let the manifest know of a result that stands in the outbox though it is nobody's any more."""
        folder = self._settings.folders.outbox
        outbox.sync({os.path.dirname(os.path.join(os.fsencode(folder), entry.path))})
        manifest.append(folder, [entry], at=self._ledger.now())

    def _work_again(self, job: Job) -> None:
        self._discard(job)
        detail = {"reason": "the result in the spool is gone or damaged"}
        self._ledger.update(job, JobState.READY, detail=detail)

    def _archive(self, jobs: Sequence[Job]) -> None:
        """Originals and masks into the archive, then out of the inbox, then the receipts and the record."""
        folder = self._settings.folders.archive
        copies = self._each(jobs, lambda job, unsynced: self._originals.copy(job, folder, unsynced))
        kept = self._each(copies, lambda job, _: self._originals.leave(job, folder, copies[job]))
        entries = [entry for some in kept.values() for entry in some]
        now = self._ledger.now()
        if not kept or not self._or_postpone(kept, lambda: manifest.append(folder, entries, at=now)):
            return
        noted = self._each(kept, lambda job, unsynced: self._note_archived(job, kept[job], unsynced))
        with self._ledger.together():
            for job in noted:
                with blaming(job):
                    outcome = Outcome.read(self._ledger.spool(job).folder, job.lease)
                    where = [shown(entry.path) for entry in kept[job]]
                    timings = outcome.timings_s if outcome else None
                    told = {"archived": where, "sha256": job.input_sha256}
                    if job.input_sha256 not in [entry.sha256 for entry in kept[job]]:
                        told["reason"] = "the original was taken away or replaced before it could be archived"
                    self._ledger.rest(job, JobState.ARCHIVED, detail=told, timings=timings)

    def _note_archived(self, job: Job, kept: Iterable[Entry], unsynced: set[bytes]) -> None:
        """Add the fixity check to the receipt."""
        original = next((entry for entry in kept if entry.sha256 == job.input_sha256), None)
        file = self._ledger.spool(job).folder / "receipt.json"
        try:
            document = json.loads(file.read_bytes())
        except (FileNotFoundError, ValueError):  # cut short by a power cut; the one in the reports stands
            document = None
        if document is None or job.output_path is None or original is None:
            self._discard(job)
            return
        where, at = shown(original.path), self._ledger.now()
        checked = premis.archived(key=job.key or "", at=at, sha256=original.sha256, where=where)
        receipt = premis.added(document, checked)
        text = json.dumps(receipt, indent=2, ensure_ascii=False) + "\n"
        key, data = job.key or "", text.encode("utf-8", "replace")
        name = outbox.beside(self._reported(job, job.output_path), b".json", key)
        outbox.replace(data, self._settings.folders.reports, name, key=key, unsynced=unsynced)

    def _set_aside(self, job: Job) -> None:
        """Original, masks, error file and, where there are any, receipt and sheet."""
        spool, folder = self._ledger.spool(job), self._settings.folders.failed
        document = {
            "file": job.name,
            "code": job.code,
            "message": job.message,
            "attempts": job.attempts,
            "input_sha256": job.input_sha256,
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._ledger.now())),
        }
        unsynced: set[bytes] = set()
        try:
            text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
            reason = outbox.beside(self._originals.aside_path(job, folder), b".error.json", job.key or "")
            data = text.encode("utf-8", "replace")
            outbox.replace(data, folder, reason, key=job.key or "", unsynced=unsynced)
            self._report(spool, job.path, job, unsynced)
            if job.input_sha256 is None:
                outbox.sync(unsynced)
                if not self._originals.shift(job, folder):
                    (folder / os.fsdecode(reason)).unlink(missing_ok=True)
                    told = {"reason": "picture or mask changed before it was set aside"}
                    self._ledger.update(job, JobState.SETTLING, code=None, message=None, detail=told)
                    return
            else:
                copies = self._originals.copy(job, folder, unsynced)
                outbox.sync(unsynced)
                self._originals.leave(job, folder, copies)
        except (PublishError, OSError) as error:
            self._ledger.postpone(job, error)
            return
        died = job.code == Code.WORKER_DIED
        self._ledger.rest(job, JobState.QUARANTINED if died else JobState.FAILED)

    def _report(self, spool: Spool, path: bytes, job: Job, unsynced: set[bytes]) -> None:
        """Receipt and sheet, beside each other; never over those of another job."""
        reports, key, path = self._settings.folders.reports, job.key or "", self._reported(job, path)
        for file, suffix in (("receipt.json", b".json"), ("sheet.jpg", b".sheet.jpg")):
            with suppress(FileNotFoundError):
                data = (spool.folder / file).read_bytes()
                outbox.replace(data, reports, outbox.beside(path, suffix, key), key=key, unsynced=unsynced)

    def _discard(self, job: Job) -> None:
        """Delete what a crash left of writing a job's result and reports, which will not be written again."""
        for folder in (self._settings.folders.outbox, self._settings.folders.reports):
            outbox.discard(folder, job.path, key=job.key or "")

    def _reported(self, job: Job, path: bytes) -> bytes:
        """Under which path the job's reports stand: another than its output's where that is taken."""
        reports, key = self._settings.folders.reports, job.key or ""
        path = outbox.around(reports, path)
        others = _key_of(reports, outbox.beside(path, b".json", key)) not in (None, key)
        return outbox.keyed(path, key) if others else path


FAMILIES = (
    {b".jpg", b".jpeg", b".jpe", b".jfif"},
    {b".tif", b".tiff"},
    {b".heic", b".heif", b".hif"},
    {b".jp2", b".j2k", b".jpf", b".jpx"},
)
"""Extensions of one format; of the others each has its own."""


def renamed(path: bytes, extension: str) -> bytes:
    """The path under the extension of what was written; an extension of the same format stays."""
    stem, own = os.path.splitext(path)
    wanted = os.fsencode(extension.lower())
    same = next((family for family in FAMILIES if wanted in family), {wanted})
    if own.lower() in same:
        return path
    folder, name = os.path.split(stem)
    return os.path.join(folder, name[: outbox.NAME_MAX - len(wanted)] + wanted)


def _key_of(reports: Path, path: bytes) -> str | None:
    """The job key in a receipt, None if there is no such receipt."""
    try:
        key = json.loads((reports / os.fsdecode(path)).read_bytes()).get("key")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError):
        return ""
    return str(key)
