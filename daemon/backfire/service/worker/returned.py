"""What came back from another machine: checked on this one before it counts as a result.

A process of its own does this, as the files are decoded; it is a `local.Child` with `check` as its work. The
files of each start of a job lie in a folder of their own until then, so that a late result touches no other.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from backfire.errors import BudgetExceeded, Code, InputError, JobError
from backfire.imaging import formats
from backfire.pipeline import budget_check
from backfire.pipeline.result import PhaseProgress
from backfire.service.worker import protocol
from backfire.service.worker.protocol import FILES, Failed, Finished, Hindered, Order, from_json
from backfire.types import Verdict, job_key, mask_digest

TOLD = "told.json"
"""Beside the files: the outcome, and the digests of the files, as the node told them."""


def folder(spool: Path, lease: int) -> Path:
    """Where the files lie that came back for one start of a job."""
    return spool / f"returned-{lease}"


def understood(came: Any, job: int, lease: int) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What a node returned for a start of a job, as it may be passed on: the outcome with digests, and files.

    Raises:
        ValueError, TypeError, KeyError: it is not what `node.Actor.work` returns.
    """
    told, files = came
    outcome = from_json(told["outcome"])
    if not isinstance(outcome, Finished | Failed | Hindered) or (outcome.job, outcome.lease) != (job, lease):
        raise ValueError(f"got {type(outcome).__name__} of another start, or none that ends one")
    if not all(isinstance(data, bytes) for data in dict(files).values()):
        raise TypeError("got files that are no bytes")
    digests = {str(name): str(digest) for name, digest in told["digests"].items()}
    return {"outcome": protocol.to_json(outcome), "digests": digests}, dict(files)


def leave(spool: Path, lease: int, told: dict[str, Any], files: dict[str, bytes]) -> None:
    """Put down what came back; half of it is not left to fill the disk.

    Raises:
        OSError: the spool cannot be written.
    """
    target = folder(spool, lease)
    target.mkdir(exist_ok=True)
    try:
        for name in FILES:
            if name in files:
                (target / name).write_bytes(files[name])
        (target / TOLD).write_text(json.dumps(told))
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise


def check(order: Order, progress: PhaseProgress) -> Finished:
    """Take over the files that came back for an order, if they are what they should be.

    May be done again if it was interrupted anywhere. What a node may not decide is not taken from it: what
    becomes of a result without a region, or of a weak one.

    Raises:
        JobError: they are not, and the picture is to be worked again.
    """
    progress("check", 0, 1)
    lies_in, name = folder(order.folder, order.lease), order.name
    try:
        told = json.loads((lies_in / TOLD).read_bytes())
        outcome, digests = from_json(told["outcome"]), dict(told["digests"])
        places = {one: lies_in / one for one in FILES if one in digests}
        moved = [one for one, place in places.items() if not place.exists()]
        files = {
            one: (order.folder if one in moved else lies_in).joinpath(one).read_bytes() for one in places
        }
        receipt = json.loads(files["receipt.json"])
        key, output_sha256, verdict = (receipt[one] for one in ("key", "output_sha256", "verdict"))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, FileNotFoundError) as error:
        raise _wrong(name, f"cannot be read ({error!r:.200})") from error
    if not isinstance(outcome, Finished) or (outcome.job, outcome.lease) != (order.job, order.lease):
        raise _wrong(name, "belongs to another order")
    if {one: hashlib.sha256(data).hexdigest() for one, data in files.items()} != digests:
        raise _wrong(name, "is damaged: its digests differ from those that were told")
    if not digests["output"] == outcome.output_sha256 == output_sha256:
        raise _wrong(name, "is damaged: its receipt is that of another file")
    if verdict != outcome.verdict.value:
        raise _wrong(name, f"was told as {outcome.verdict}, and its receipt says {verdict!r:.20}")
    original = (order.folder / "input").read_bytes()
    if files["output"] == original and outcome.verdict != Verdict.UNPROTECTED:
        raise _wrong(name, f"is the original itself, which is never {outcome.verdict}")
    masks = [hashlib.sha256((order.folder / file).read_bytes()).hexdigest() for _, file in order.masks]
    if key != job_key(hashlib.sha256(original).hexdigest(), mask_digest(masks), order.settings.sha256):
        raise _wrong(name, "was made of another picture, another mask or other settings")
    try:
        kind = formats.sniff(files["output"], name)
        budget_check.require_within(files["output"], original, order.settings, name=name)
    except (BudgetExceeded, InputError) as error:
        raise _wrong(name, f"is not the picture within its budget ({error.message})") from error
    if outcome.extension not in formats.extensions(kind):
        raise _wrong(name, f"is a {kind} and called {outcome.extension[:20]!r}")
    for one in FILES:
        if one not in moved:
            (order.folder / one).unlink(missing_ok=True)
        if one in places and one not in moved:
            places[one].rename(order.folder / one)
    on_weak, on_none = order.settings.verify.on_weak, protocol.on_none(order.settings)
    return replace(outcome, on_weak=on_weak, on_none=on_none, worked_as=None)


def _wrong(name: str, what: str) -> JobError:
    message = f"{name}: what the cluster returned {what}; it is worked again"
    return JobError(Code.INTERNAL, message, retryable=True)
