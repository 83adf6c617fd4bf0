"""What came back from another machine: checked on this one before it counts as a result.

A process of its own does this, as the files are decoded; it is a `local.Child` with `check` as its work. The
files of each start of a job lie in a folder of their own until then, so that a late result touches no other.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from backfire.errors import BudgetExceeded, Code, InputError, JobError
from backfire.pipeline import budget_check
from backfire.pipeline.result import PhaseProgress
from backfire.service.worker.protocol import FILES, Finished, Order, from_json
from backfire.types import job_key, mask_digest

TOLD = "told.json"
"""Beside the files: the outcome, and the digests of the files, as the node told them."""


def folder(spool: Path, lease: int) -> Path:
    """Where the files lie that came back for one start of a job."""
    return spool / f"returned-{lease}"


def leave(spool: Path, lease: int, told: dict[str, Any], files: dict[str, bytes]) -> None:
    """Put down what came back.

    Raises:
        OSError: the spool cannot be written.
    """
    target = folder(spool, lease)
    target.mkdir(exist_ok=True)
    for name in FILES:
        if name in files:
            (target / name).write_bytes(files[name])
    (target / TOLD).write_text(json.dumps(told))


def check(order: Order, progress: PhaseProgress) -> Finished:
    """Take over the files that came back for an order, if they are what they should be.

    Raises:
        JobError: they are not, and the picture is to be worked again.
    """
    progress("check", 0, 1)
    lies_in, name = folder(order.folder, order.lease), order.name
    told = json.loads((lies_in / TOLD).read_bytes())
    outcome = from_json(told["outcome"])
    if not isinstance(outcome, Finished) or (outcome.job, outcome.lease) != (order.job, order.lease):
        raise _wrong(name, "belongs to another order")
    files = {one: (lies_in / one).read_bytes() for one in FILES if (lies_in / one).exists()}
    digests = {one: hashlib.sha256(data).hexdigest() for one, data in files.items()}
    if digests != told["digests"] or digests.get("output") != outcome.output_sha256:
        raise _wrong(name, "is damaged: its digests differ from those that were told")
    original = (order.folder / "input").read_bytes()
    masks = [hashlib.sha256((order.folder / file).read_bytes()).hexdigest() for _, file in order.masks]
    key = job_key(hashlib.sha256(original).hexdigest(), mask_digest(masks), order.settings.sha256)
    if json.loads(files["receipt.json"])["key"] != key:
        raise _wrong(name, "was made of another picture, another mask or other settings")
    try:
        budget_check.require_within(files["output"], original, order.settings, name=name)
    except (BudgetExceeded, InputError) as error:
        raise _wrong(name, f"is not the picture within its budget ({error.message})") from error
    for one in FILES:
        (order.folder / one).unlink(missing_ok=True)
        if one in files:
            (lies_in / one).rename(order.folder / one)
    return outcome


def _wrong(name: str, what: str) -> JobError:
    message = f"{name}: what the cluster returned {what}; it is worked again"
    return JobError(Code.INTERNAL, message, retryable=True)
