"""`backfire retry`: moves originals, their masks and proofs from the failed folder back into the inbox."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from backfire import advice
from backfire.config import Settings
from backfire.errors import Code
from backfire.files import durable, inbox, outbox
from backfire.service.store.reader import Reader
from backfire.types import Job, JobState, mask_digest, shown


def retry(job: Job, settings: Settings, config_file: Path, store: Reader) -> str | None:
    """Move a job's original, masks and proof back into the inbox, where they become a new job.

    Args:
        job: one that failed or was set aside.
        settings: the folders are used.
        config_file: the configuration, as a command that is suggested names it.
        store: the job database.

    Returns:
        What the job is, why nothing was moved and what to do instead; None where the files were moved.

    Raises:
        PublishError: a file cannot be moved.
    """
    if (why := _is_no_failure(job, settings, config_file)) is not None:
        return why
    return None if put_back(job, settings) else _why_not(job, settings, store)


def would_fail_again(job: Job, settings: Settings) -> bool:
    """Whether a failed job needs another file, and the failed folder still holds the one that failed.

    A file that changed while it was read may be whole by now.
    """
    if job.state not in (JobState.FAILED, JobState.QUARANTINED) or job.code == Code.CHANGED:
        return False
    failed, key, sha256 = settings.folders.failed, job.key or "", job.input_sha256 or ""
    needs_another = sha256 != "" and not advice.may_retry(job)
    return needs_another and outbox.find(failed, job.path, key=key, sha256=sha256) is not None


def _is_no_failure(job: Job, settings: Settings, config_file: Path) -> str | None:
    """Why another try of a job makes no sense, and what to do instead; None of one that may succeed."""
    folders, name = settings.folders, shlex.quote(job.name)
    match job.state:
        case JobState.FAILED if job.code == Code.CHECKSUM and settings.watch.proof == "sha256":
            return (
                f"job {job.id} failed as picture and checksum file do not fit each other, and would fail "
                "again; copy both into the inbox anew"
            )
        case JobState.FAILED | JobState.QUARANTINED:
            return None
        case JobState.PUBLISHED | JobState.ARCHIVED:
            original = archived_original(job, settings) or folders.archive / shown(job.path)
            new = f"NEW{os.path.splitext(shown(job.output_path or job.path))[1]}"
            command = shlex.join(["backfire", "protect", str(original), "-c", str(config_file), "-o", new])
            return f"job {job.id} was published as {job.verdict or 'done'}; to protect it anew: {command}"
        case JobState.REVIEW:
            return (
                f"job {job.id} is held in {folders.review} until a person decides: backfire release {job.id} "
                "with --mask FILE, --whole or --again has it worked again, alone it publishes it as it is"
            )
        case JobState.SKIPPED:
            return f"job {job.id} has no file, as it left the inbox before it was worked; drop it there again"
        case _:
            return f"job {job.id} is {job.state.value} and did not fail: backfire explain {name}"


def _why_not(job: Job, settings: Settings, store: Reader) -> str:
    """Why the files of a failed job cannot be moved back, and what to do."""
    folders = settings.folders
    newer = next(one for one in store.by_path(job.path) if one.state != JobState.SKIPPED)
    if in_failed(job, settings) is not None:
        if (folders.inbox / os.fsdecode(job.path)).exists():
            return f"job {job.id} failed, but the inbox has a file of its name; move that one away first"
        return (
            f"job {job.id} failed, but its mask is gone from {folders.failed}; put it back there, or drop "
            "picture and mask into the inbox"
        )
    if newer.id != job.id:
        return f"job {job.id} was tried again as job {newer.id}, which is {newer.state.value}"
    return (
        f"job {job.id} failed, but its original is gone from {folders.failed}; drop the picture into the "
        "inbox again"
    )


def archived_original(job: Job, settings: Settings) -> Path | None:
    """Where the original of a published picture is, None if it is not in the archive."""
    archive = settings.folders.archive
    kept = outbox.find(archive, job.path, key=job.key or "", sha256=job.input_sha256 or "")
    return archive / shown(kept) if kept is not None else None


def in_failed(job: Job, settings: Settings) -> bytes | None:
    """The path of the job's original below the failed folder, None if it is not there any more."""
    failed, key, sha256 = settings.folders.failed, job.key or "", job.input_sha256 or ""
    if sha256 and (found := outbox.find(failed, job.path, key=key, sha256=sha256)) is not None:
        return found
    # It was mended there, or set aside without being read: only its error file tells which one it is.
    names = outbox.names(failed, job.path, key=key, sha256=sha256)
    return next((name for name in names if _is_told_of(failed, name, job)), None)


def _is_told_of(failed: Path, name: bytes, job: Job) -> bool:
    """Whether a file lies beside an error file that is about this job."""
    reason = failed / os.fsdecode(outbox.beside(failed, name, inbox.ERROR_NOTE, job.key or ""))
    try:
        told = json.loads(reason.read_bytes())
    except (OSError, ValueError):
        return False
    about = (told.get("file"), told.get("input_sha256")) if isinstance(told, dict) else ()
    return about == (job.name, job.input_sha256) and inbox.signature(failed, name) is not None


def put_back(job: Job, settings: Settings) -> bool:
    """Move an original, its masks and proof from failed to the inbox; returns whether that was possible.

    A mask that is why it failed stays behind where the inbox has another one for the picture.
    """
    failed, target, key = settings.folders.failed, settings.folders.inbox, job.key or ""
    held, ignore = in_failed(job, settings), settings.watch.ignore
    if held is None or (target / os.fsdecode(job.path)).exists():
        return False
    if job.input_sha256 is None:
        files = [(mask, mask) for mask in inbox.scan_beside(failed, [held], ignore).masks_of(held)]
        for source, name in [*files, *_proofs(job, settings), (held, job.path)]:
            outbox.shift(failed, source, target, name, key=key, same=lambda _: True, into_inbox=True)
        (failed / os.fsdecode(outbox.beside(failed, held, inbox.ERROR_NOTE, key))).unlink(missing_ok=True)
        return True
    # P.MASK.PNG belongs to p.jpg too.
    written = inbox.scan_beside(failed, [job.path], ignore).masks_of(job.path)
    present = [
        (mask, place, durable.file_sha256(failed / os.fsdecode(place)))
        for mask in dict.fromkeys((*written, *inbox.mask_names(job.path)))
        for place in (mask, outbox.keyed(failed, mask, key))
        if inbox.signature(failed, place) is not None and not (target / os.fsdecode(mask)).exists()
    ]
    replaced = bool(inbox.scan_beside(target, [job.path], ignore).masks_of(job.path))
    if (
        mask_digest([digest for _, _, digest in present]) == job.mask_sha256
    ):  # else they belong to another job
        for mask, place, digest in present:  # before the picture, so that it finds them when it settles
            if not (replaced and _is_why(mask, job)):
                outbox.move(failed, place, target, mask, sha256=digest, key=key, into_inbox=True)
    elif job.mask_sha256 is not None and not replaced:
        return False  # without its mask another region would be protected, or none
    for name in inbox.scan_beside(failed, [job.path], ignore).companions_of(job.path):
        if not (target / os.fsdecode(name)).exists():
            digest = durable.file_sha256(failed / os.fsdecode(name))
            outbox.move(failed, name, target, name, sha256=digest, key=key, into_inbox=True)
    # An empty marker serves all failed pictures of its name, so that it stays while there are others.
    alone = inbox.rivals(failed, job.path, (), settings.watch.proof_ending) == [held]
    for place, name in _proofs(job, settings):
        digest = durable.file_sha256(failed / os.fsdecode(place))
        outbox.place(failed / os.fsdecode(place), target, name, sha256=digest, key=key, into_inbox=True)
        if alone or place != name:
            outbox.remove(failed, place, sha256=digest, key=key)
    sha256 = durable.file_sha256(failed / os.fsdecode(held))  # it may have been mended there
    outbox.move(failed, held, target, job.path, sha256=sha256, key=key, into_inbox=True)
    (failed / os.fsdecode(outbox.beside(failed, held, inbox.ERROR_NOTE, key))).unlink(missing_ok=True)
    return True


def _is_why(mask: bytes, job: Job) -> bool:
    """Whether a job failed because of this very mask, so that its picture would fail with it again."""
    named = (f"{kind} {shown(mask)}: " for kind in ("mask", "annotations"))
    return (job.code or "").startswith("mask_") and (job.message or "").startswith(tuple(named))


def _proofs(job: Job, settings: Settings) -> Iterator[tuple[bytes, bytes]]:
    """Where proofs lie in failed that the inbox lacks, and their names there: the picture waits for one."""
    failed, target = settings.folders.failed, settings.folders.inbox
    ending = settings.watch.proof_ending
    # p.jpg.DONE is one, too.
    written = inbox.scan_beside(failed, [job.path], settings.watch.ignore, ending).proof_of(job.path)
    for name in filter(None, dict.fromkeys((written, *inbox.proof_names(job.path, ending)))):
        for place in (outbox.keyed(failed, name, job.key or ""), name):
            if inbox.signature(failed, place) is not None and inbox.signature(target, name) is None:
                yield place, name
                break
