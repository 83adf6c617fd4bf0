"""Where the receipt and the picture sheet of a job lie in the reports folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from backfire.files import outbox
from backfire.types import Job


def find(reports: Path, job: Job) -> list[Path]:
    """The files that the reports folder holds of a job: receipt and sheet, as far as there are any.

    Where somebody put another result of its original in place, they are those of that.

    Raises:
        OSError: the folder cannot be read.
        PublishError: the job's path is not a plain relative one.
    """
    key, path = job.key or "", job.output_path or job.path
    for one in (place(reports, job, path), outbox.around(reports, path)):
        receipt, sheet = (outbox.beside(reports, one, suffix, key) for suffix in (b".json", b".sheet.jpg"))
        if _is_of(job, _document(reports, receipt)):
            return [file for name in (receipt, sheet) if (file := reports / os.fsdecode(name)).exists()]
    return []  # the place is another job's, or nobody's


def place(reports: Path, job: Job, path: bytes) -> bytes:
    """The path that a job's reports are named after: another one than its output's where that is taken."""
    key, path = job.key or "", outbox.around(reports, path)
    there = _document(reports, outbox.beside(reports, path, b".json", key))
    return path if there is None or there.get("key") == key else outbox.keyed(reports, path, key)


def _is_of(job: Job, receipt: dict[str, Any] | None) -> bool:
    """Whether a receipt is of a job's result, or of one that was made of the same original by hand."""
    if not receipt:
        return False
    by_hand = "output" in receipt and job.output_path is not None  # the daemon's own do not name it
    of_original = by_hand and receipt.get("input_sha256") == job.input_sha256
    return of_original or receipt.get("key") == (job.key or "")


def _document(reports: Path, path: bytes) -> dict[str, Any] | None:
    """A receipt; None if there is none, empty if it cannot be read."""
    try:
        document = json.loads((reports / os.fsdecode(path)).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
