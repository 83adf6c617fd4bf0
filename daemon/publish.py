"""From a finished result to its place: reports, outbox, record, archive; or the failed folder.

Every step may be done again: names follow from content and key, the same content is adopted.
A step that cannot be done now is put off and burns no attempt.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from daemon import inbox, manifest, outbox, premis
from daemon.config import Settings
from daemon.domain import Job, JobState, Verdict, shown
from daemon.errors import Code, PublishError
from daemon.intake import Intake
from daemon.ledger import Ledger
from daemon.manifest import Entry
from daemon.spool import Spool
from daemon.worker import Outcome

AT_MOST_S = 5.0
"""Spent in one step of the loop, but for the last job."""


class Publisher:
    """Puts results and originals where they belong."""

    def __init__(self, settings: Settings, ledger: Ledger, intake: Intake) -> None:
        self._ledger, self._intake = ledger, intake
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        """Work by other settings from now on; the folders must be the same."""
        self._settings = settings

    def conclude(self, job: Job, outcome: Outcome, *, detail: dict[str, Any] | None = None) -> None:
        """Decide on a verdict: publish, or set aside."""
        verdict = Verdict(outcome.verdict or Verdict.FAILED)
        reasons = "; ".join(outcome.reasons)
        if verdict == Verdict.FAILED:
            message = f"{job.name}: verification failed: {reasons}; see the sheet in the reports folder"
            self.fail(job, Code.NOT_PROTECTED, message, verdict)
        elif verdict == Verdict.WEAK and self._settings.for_path(job.path).verify.on_weak == "fail":
            message = f"{job.name}: protection is weak: {reasons}; verify.on_weak: publish would let it pass"
            self.fail(job, Code.WEAK, message, verdict)
        else:
            self._publish(self._ledger.update(job, JobState.PUBLISHING, detail=detail, verdict=verdict))

    def fail(self, job: Job, code: Code, message: str, verdict: Verdict | None = None) -> None:
        """Record why, then set the original aside."""
        self._set_aside(
            self._ledger.update(job, JobState.PUBLISHING, code=code.value, message=message, verdict=verdict)
        )

    def step(self) -> None:
        """Take up again what a crash, a full disk or a missing permission interrupted."""
        until = self._ledger.monotonic() + AT_MOST_S
        for job in self._ledger.of(JobState.PUBLISHING, JobState.PUBLISHED):
            if self._ledger.monotonic() > until:
                return  # a thousand that waited for a disk must not keep the loop from beating
            if not self._ledger.due(job):
                continue
            if job.state == JobState.PUBLISHED:
                self._archive(job)
            elif job.code is not None:
                self._set_aside(job)
            else:
                self._publish(job)

    def _publish(self, job: Job) -> None:
        spool, folders = self._ledger.spool(job), self._settings.folders
        outcome = Outcome.read(spool.folder, job.lease)
        try:
            data = (spool.folder / "output").read_bytes()
        except OSError:
            data = b""
        if outcome is None or outcome.verdict is None or outbox.sha256(data) != outcome.output_sha256:
            detail = {"reason": "the result in the spool is gone or damaged"}
            self._ledger.update(job, JobState.READY, detail=detail)
            return
        try:
            unchanged = self._intake.unchanged(job)
        except OSError as error:
            self._ledger.postpone(job, error)
            return
        if not unchanged:
            # Somebody replaced picture or mask meanwhile: this result is not theirs any more.
            detail = {"reason": "picture or mask changed while it was worked"}
            self._ledger.update(job, JobState.SETTLING, detail=detail)
            return
        wanted = renamed(job.path, outcome.extension)
        key, sha = job.key or "", outcome.output_sha256 or ""
        try:
            # The receipt first: what stands in the outbox must never be without one.
            self._report(spool, outbox.destined(folders.outbox, wanted, sha256=sha, key=key), job)
            placed = outbox.place(data, folders.outbox, wanted, key=key)
            manifest.append(folders.outbox, [Entry(placed, sha)], at=self._ledger.now())
        except (PublishError, OSError) as error:
            self._ledger.postpone(job, error)
            return
        self._archive(
            self._ledger.update(
                job,
                JobState.PUBLISHED,
                output_path=placed,
                output_sha256=sha,
                detail={"output": shown(placed)},
            )
        )

    def _archive(self, job: Job) -> None:
        spool, archive = self._ledger.spool(job), self._settings.folders.archive
        try:
            kept = self._put_away(job, spool, archive)
            manifest.append(archive, kept, at=self._ledger.now())
            self._note_archived(job, spool, kept[0])
        except (PublishError, OSError) as error:
            self._ledger.postpone(job, error)
            return
        outcome = Outcome.read(spool.folder, job.lease)
        detail = {"archived": [shown(entry.path) for entry in kept], "sha256": job.input_sha256}
        self._ledger.rest(
            job, JobState.ARCHIVED, detail=detail, timings=outcome.timings_s if outcome else None
        )

    def _note_archived(self, job: Job, spool: Spool, original: Entry) -> None:
        """Add the fixity check to the receipt, in the spool and then in the reports."""
        file = spool.folder / "receipt.json"
        try:
            document = json.loads(file.read_bytes())
        except (FileNotFoundError, ValueError):  # cut short by a power cut; the one in the reports stands
            return
        if job.output_path is None:
            return
        where, at = shown(original.path), self._ledger.now()
        checked = premis.archived(key=job.key or "", at=at, sha256=original.sha256, where=where)
        receipt = premis.added(document, checked)
        text = json.dumps(receipt, indent=2, ensure_ascii=False) + "\n"
        outbox.replace(text.encode("utf-8", "replace"), spool.folder, os.fsencode(file.name))
        self._report(spool, job.output_path, job)

    def _set_aside(self, job: Job) -> None:
        """Original, masks, error file and, where there are any, receipt and sheet."""
        spool, folder = self._ledger.spool(job), self._settings.folders.failed
        sha, key = job.input_sha256 or "", job.key or ""
        document = {
            "file": job.name,
            "code": job.code,
            "message": job.message,
            "attempts": job.attempts,
            "input_sha256": job.input_sha256,
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._ledger.now())),
        }
        try:
            name = outbox.destined(folder, job.path, sha256=sha, key=key)
            text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
            outbox.replace(text.encode("utf-8", "replace"), folder, outbox.beside(name, b".error.json", key))
            self._report(spool, job.path, job)
            self._put_away(job, spool, folder)
        except (PublishError, OSError) as error:
            self._ledger.postpone(job, error)
            return
        died = job.code == Code.WORKER_DIED
        self._ledger.rest(job, JobState.QUARANTINED if died else JobState.FAILED)

    def _report(self, spool: Spool, path: bytes, job: Job) -> None:
        """Receipt and sheet, beside each other; never over those of another job."""
        reports, key = self._settings.folders.reports, job.key or ""
        if _key_of(reports, outbox.beside(path, b".json", key)) not in (None, key):
            path = outbox.keyed(path, key)
        for file, suffix in (("receipt.json", b".json"), ("sheet.jpg", b".sheet.jpg")):
            with suppress(FileNotFoundError):
                data = (spool.folder / file).read_bytes()
                outbox.replace(data, reports, outbox.beside(path, suffix, key))

    def _put_away(self, job: Job, spool: Spool, folder: Path) -> list[Entry]:
        """Original and masks from the spool's verified copies into `folder`, then out of the inbox.

        What leaves the inbox is only what has the content that was worked; a newer file stays.
        Nothing leaves it before its copy was read back from the disk. Returns what `folder` now keeps.
        """
        root, sha, key = self._intake.root, job.input_sha256 or "", job.key or ""
        times = {path: signature.mtime_ns for path, signature in spool.files().items()}
        if spool.input.exists():
            if job.path in times:
                os.utime(spool.input, ns=(times[job.path], times[job.path]))
            placed = outbox.put(spool.input, folder, job.path, sha256=sha, key=key)
        else:
            places = (job.path, outbox.keyed(job.path, key))
            held = next((path for path in places if outbox.holds(folder, path, sha)), None)
            source = root / os.fsdecode(job.path)
            placed = held or outbox.put(source, folder, job.path, sha256=sha, key=key)
        outbox.confirm(folder, placed, sha)
        kept = [Entry(placed, sha)]
        outbox.remove(root, job.path, sha256=sha, key=key)
        extras = spool.extras()
        wanted = self._wanted_by_others(job) if extras else set()
        for extra, digest, copy in extras:
            if extra.lower() in wanted:
                continue
            if copy.exists():
                placed = outbox.put(copy, folder, extra, sha256=digest, key=key)
                outbox.confirm(folder, placed, digest)
                kept.append(Entry(placed, digest))
            outbox.remove(root, extra, sha256=digest, key=key)
        return kept

    def _wanted_by_others(self, job: Job) -> set[bytes]:
        """Names, in lower case, of the masks and proofs that pictures still in the inbox need."""
        stem, ending = os.path.splitext(job.path)[0].lower(), self._settings.watch.proof_ending
        rivals = [path for path in self._ledger.jobs if path.lower().startswith(stem) and path != job.path]
        return {
            name.lower()
            for path in rivals
            if inbox.signature(self._intake.root, path) is not None
            for name in (*inbox.mask_names(path), *inbox.proof_names(path, ending))
        }


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
