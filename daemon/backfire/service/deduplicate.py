"""Taking over a published result for the same picture, mask and configuration under another name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from backfire import inpaint
from backfire.config import Settings
from backfire.errors import ConfigError, ModelError, PublishError
from backfire.evaluate.receipt import from_json, to_json, with_taken_over
from backfire.files import inbox, outbox
from backfire.perturb import methods
from backfire.service.jobs import Jobs
from backfire.service.worker.protocol import Finished, on_none, write_result
from backfire.types import Job, Verdict, shown

log = structlog.get_logger()


def take_over(job: Job, settings: Settings, jobs: Jobs) -> Finished | None:
    """Put the result of a published job with the same key into a job's spool folder.

    Args:
        job: ready to be worked.
        settings: those of its path.
        jobs: where the other job is looked up.

    Returns:
        The outcome, as a worker would have left it; None where there is no such job, its files are not what
        they were, something outside the key decides what is protected, or the editors are others by now.
    """
    original = jobs.store.latest_result(job.key or "")
    if original is None or original.output_path is None:
        return None
    if not _is_decided_by_key(job, original, settings, jobs):
        return None
    folders, spool = settings.folders, jobs.spool(job)
    report, sheet = (
        outbox.beside(folders.reports, original.output_path, suffix, job.key or "")
        for suffix in (b".json", b".sheet.jpg")
    )
    try:
        data = (folders.outbox / os.fsdecode(original.output_path)).read_bytes()
        receipt = from_json((folders.reports / os.fsdecode(report)).read_bytes())
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256 != original.output_sha256 or receipt.get("key") != job.key:
            return None
        if not _is_by_todays_editors(receipt, original, settings):
            return None
        outbox.replace(data, spool.folder, b"output")
        document = with_taken_over(receipt, file=job.name, worked_as=original.name)
        outbox.replace(to_json(document), spool.folder, b"receipt.json")
        sheet_file = folders.reports / os.fsdecode(sheet)
        if sheet_file.exists():
            (spool.folder / "sheet.jpg").write_bytes(sheet_file.read_bytes())
        result = Finished(
            job.id,
            job.lease,
            verdict=original.verdict or Verdict.FAILED,
            extension=Path(os.fsdecode(original.output_path)).suffix.lower(),
            output_sha256=sha256,
            on_weak=settings.verify.on_weak,
            on_none=on_none(settings),
            reasons=tuple(receipt.get("reasons", ())),
            worked_as=original.name,
        )
        write_result(spool.folder, result)
    except (OSError, ValueError, TypeError, KeyError, PublishError, ConfigError, ModelError):
        # The files are gone or damaged, or no editor can be used: the picture is worked again.
        return None
    return result


def _is_by_todays_editors(receipt: Mapping[str, Any], original: Job, settings: Settings) -> bool:
    """Whether a result was made and judged with the editors that would be used today, if with any.

    The key has their names as they are configured, `auto` among them, and no weights. Those that were there
    before the other picture came are the ones that it was worked with; they are not read for this. Those of a
    cluster lie on its nodes, of which this machine knows nothing: there the key alone decides.
    """
    if not receipt.get("surrogates") or settings.cluster.address is not None:
        return True
    used = methods.with_surrogates(settings)
    today = {"surrogates": used.protect.surrogates, "held_out": used.verify.held_out}
    for field, names in today.items():
        if {one["name"] for one in receipt.get(field, ())} != set(names):
            return False
    files = (file for names in today.values() for name in names for file in inpaint.files_of(name, settings))
    try:
        return all(os.stat(file).st_ctime < original.created for file in files)
    except OSError as error:
        why = f"{error.filename}: the weights cannot be looked at ({error.strerror})"
        log.warning("not_taken_over", path=shown(original.path), error=why)
        return False


def _is_decided_by_key(job: Job, original: Job, settings: Settings, jobs: Jobs) -> bool:
    """Whether the job would come out as the other one did: nothing outside the key says what is protected.

    Logo folders, programs and models may have changed since; annotations may name pictures.
    """
    regions = settings.regions
    elsewhere = {"logos", "command"} | ({"onnx"} if regions.onnx.sha256 is None else set())
    annotated = any(path.lower().endswith(inbox.ANNOTATIONS) for path, _ in jobs.spool(job).masks())
    renamed = os.path.basename(job.path) != os.path.basename(original.path)
    return elsewhere.isdisjoint(regions.detectors) and not (annotated and renamed)
