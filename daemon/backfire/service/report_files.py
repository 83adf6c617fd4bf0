"""Where the receipt and the picture sheet of a job lie in the reports folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

from backfire.files import outbox
from backfire.types import Job


def find(reports: Path, job: Job) -> list[Path]:
    """The files that the reports folder holds of a job: receipt and sheet, as far as there are any.

    Raises:
        OSError: the folder cannot be read.
        PublishError: the job's path is not a plain relative one.
    """
    key, path = job.key or "", place(reports, job, job.output_path or job.path)
    receipt, sheet = (outbox.beside(reports, path, suffix, key) for suffix in (b".json", b".sheet.jpg"))
    if _key_of(reports, receipt) != key:
        return []  # the place is another job's, or nobody's
    return [file for name in (receipt, sheet) if (file := reports / os.fsdecode(name)).exists()]


def place(reports: Path, job: Job, path: bytes) -> bytes:
    """The path that a job's reports are named after: another one than its output's where that is taken."""
    key, path = job.key or "", outbox.around(reports, path)
    taken = _key_of(reports, outbox.beside(reports, path, b".json", key)) not in (None, key)
    return outbox.keyed(reports, path, key) if taken else path


def _key_of(reports: Path, path: bytes) -> str | None:
    """The job key in a receipt; None if there is no such receipt, empty if it cannot be read."""
    try:
        document = json.loads((reports / os.fsdecode(path)).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return ""
    return str(document.get("key")) if isinstance(document, dict) else ""
