"""A twin's result taken over: the same picture, mask and configuration, published under another name."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from backfire.config import Settings
from backfire.errors import PublishError
from backfire.files import inbox, outbox
from backfire.service.jobs import Ledger
from backfire.service.worker.local import Outcome
from backfire.types import Job


def adopted(job: Job, settings: Settings, ledger: Ledger) -> tuple[Outcome, Job] | None:
    """Put the result of a job's twin into its spool.

    Args:
        job: ready to be worked.
        settings: those of its path.
        ledger: the daemon's books.

    Returns:
        The outcome, as the worker would have left it, and the twin; None where there is no twin, its files
        are not what they were, or something outside the key decides what is protected.
    """
    twin = ledger.store.latest_result(job.key or "")
    if twin is None or twin.output_path is None or not _decided_by_key(job, twin, settings, ledger):
        return None
    folders, spool = settings.folders, ledger.spool(job)
    report = outbox.beside(twin.output_path, b".json", job.key or "")
    sheet = outbox.beside(twin.output_path, b".sheet.jpg", job.key or "")
    try:
        data = (folders.outbox / os.fsdecode(twin.output_path)).read_bytes()
        receipt = json.loads((folders.reports / os.fsdecode(report)).read_bytes())
        if hashlib.sha256(data).hexdigest() != twin.output_sha256 or receipt.get("key") != job.key:
            return None
        outbox.replace(data, spool.folder, b"output")
        document = {**receipt, "file": job.name, "worked_as": twin.name}
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        outbox.replace(text.encode("utf-8", "replace"), spool.folder, b"receipt.json")
        sheet_file = folders.reports / os.fsdecode(sheet)
        if sheet_file.exists():
            (spool.folder / "sheet.jpg").write_bytes(sheet_file.read_bytes())
        outcome = Outcome(
            job.id,
            job.lease,
            verdict=twin.verdict,
            extension=Path(os.fsdecode(twin.output_path)).suffix.lower(),
            output_sha256=twin.output_sha256,
            reasons=tuple(receipt.get("reasons", ())),
        )
        outcome.write(spool.folder)
    except (OSError, ValueError, AttributeError, TypeError, PublishError):
        # They are gone, or not what they were: it is worked again.
        return None
    return outcome, twin


def _decided_by_key(job: Job, twin: Job, settings: Settings, ledger: Ledger) -> bool:
    """Whether the job would come out as its twin did: nothing outside the key says what is protected.

    Logo folders, programs and models may have changed since; annotations may name pictures.
    """
    regions = settings.regions
    elsewhere = {"logos", "command"} | ({"onnx"} if regions.onnx.sha256 is None else set())
    annotated = any(path.lower().endswith(inbox.ANNOTATIONS) for path, _ in ledger.spool(job).masks())
    renamed = os.path.basename(job.path) != os.path.basename(twin.path)
    return elsewhere.isdisjoint(regions.detectors) and not (annotated and renamed)
