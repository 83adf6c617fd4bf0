"""What a person may do with a picture: each action is a command of Backfire, run in a process of its own.

So the page does nothing that an operator could not, decides nothing by itself, and stays small. A command
that finds that the job has moved on meanwhile says so, and doing one twice is harmless.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backfire import advice
from backfire.errors import PublishError
from backfire.files import inbox, outbox
from backfire.types import Job, JobState
from backfire.web import files
from backfire.web.options import Options
from backfire.web.painter import Painter

ACTION_S = 120.0
MOST_SHAPES = 500
BY = ("--by", "the status page")
"""Who decides, for history and receipt: everybody who knows the token is the same to the page."""

ACTIONS = {
    "retry": "retried",
    "region": "region_saved",
    "release": "released",
    "accept": "accepted",
    "whole": "made_whole",
}
"""The actions, each with the key of the text that says that it was done."""

GOOD = frozenset(ACTIONS.values())
OUTCOMES = GOOD | {
    "no_region_drawn", "too_much", "not_painted", "drawn_on_other", "no_original", "no_region_now",
    "mask_taken", "name_taken", "action_failed",
}  # fmt: skip
"""The keys of the texts that say what came of an action."""


@dataclass(frozen=True)
class Outcome:
    """What came of an action: the key of a text, and a message for it."""

    key: str
    message: str = ""


def offered(job: Job, options: Options) -> list[str]:
    """The actions that make sense for a job as it stands, the likeliest first."""
    region = ["region"] if options.mask_paint_of(job.path) else []
    if job.state == JobState.REVIEW:
        return [*region, "accept"] if job.code == "weak" else [*region, "whole", "release"]
    if job.state in (JobState.FAILED, JobState.QUARANTINED):
        if not advice.may_retry(job):  # the same bytes would fail again, and the sentence asks for others
            return []
        return [*region, "retry"] if job.code in advice.REGION_HELPS and job.input_sha256 else ["retry"]
    return ["accept"] if job.needs_acceptance else []


def act(action: str, job: Job, form: Mapping[str, Any], options: Options, painter: Painter) -> Outcome:
    """Do an action.

    Args:
        action: one of `ACTIONS`.
        job: as it stood when the request came.
        form: the fields that the browser sent.
        options: the folders and the configuration file.
        painter: draws masks.
    """
    number = str(job.id)
    if action == "region":
        if action not in offered(job, options):
            return Outcome("no_region_now")
        mask = _mask(job, form, options, painter)
        if isinstance(mask, Outcome):
            return mask
        if job.state == JobState.REVIEW:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "drawn.png"  # the history names it
                file.write_bytes(mask)
                why = _command(["release", number, "--mask", str(file), *BY], options)
        else:
            placed = _beside(job, mask, options)
            if isinstance(placed, Outcome):
                return placed
            why = _command(["retry", number], options)
            is_back = outbox.holds(options.folders["inbox"], job.path, job.input_sha256 or "")
            if why is not None and not is_back:
                placed.unlink(missing_ok=True)  # another picture of that name would take it for its own
    else:
        commands = {
            "retry": ["retry", number],
            "whole": ["release", number, "--whole", *BY],
            "release": ["release", number, *BY],
            "accept": ["accept", number, *BY],
        }
        why = _command(commands[action], options)
    return Outcome(ACTIONS[action]) if why is None else Outcome("action_failed", why)


def _command(words: list[str], options: Options) -> str | None:
    """Run a command; returns why it was not done, in its words, None where it was."""
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "backfire.cli", *words, "--json", "-c", os.fspath(options.config)],
            capture_output=True,
            timeout=ACTION_S,
            check=False,
        )
        answer = json.loads(ended.stdout)
    except ValueError:
        return ended.stderr.decode("utf-8", "replace").strip() or f"exit status {ended.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    refused = {**answer.get("why", {}), **answer.get("refused", {})}
    if refused:
        return "; ".join(map(str, refused.values()))
    return None if answer.get("retried") or answer.get("decided") else ended.stdout.decode("utf-8", "replace")


def _mask(job: Job, form: Mapping[str, Any], options: Options, painter: Painter) -> bytes | Outcome:
    """What was drawn as a mask of the original's size, or what hindered it."""
    shapes = drawn(form)
    if not shapes or len(shapes) > MOST_SHAPES:
        return Outcome("too_much" if shapes else "no_region_drawn")
    original = files.original(job, options.folders)
    if original is None:
        return Outcome("no_original")
    try:
        if drawn_on := str(form.get("drawn_on") or "")[:20]:  # without its script the page drew nothing
            size = painter.paint("size", [original])
            if size is None:
                return Outcome("not_painted")
            if size.decode() != drawn_on:  # the browser turned it in another way, and each place is another
                return Outcome("drawn_on_other", f"{drawn_on} / {size.decode()}")
        paint = options.mask_paint_of(job.path)
        mask = painter.paint("mask", [original], shapes=shapes, paint=paint)
    finally:
        os.close(original)
    if mask is None:
        return Outcome("not_painted")
    return mask or Outcome("no_region_drawn")


def _beside(job: Job, mask: bytes, options: Options) -> Path | Outcome:
    """Put a mask beside the place where a failed picture will lie again; returns it, or what hindered it."""
    failed, target, key = options.folders["failed"], options.folders["inbox"], job.key or ""
    if os.path.lexists(target / os.fsdecode(job.path)):
        return Outcome("name_taken")
    names = [name for name in inbox.mask_names(job.path) if name.endswith(b".png")]
    if any(os.path.lexists(target / os.fsdecode(name)) for name in names):
        return Outcome("mask_taken")
    # Masks that lie with the failed picture keep their names, under which `retry` moves them back: all count.
    places = ((name, outbox.keyed(failed, name, key)) for name in names)
    free = (one for one, keyed in places if not _holds(failed, one) and not _holds(failed, keyed))
    name = next(free, None)
    if name is None:
        return Outcome("mask_taken")
    try:
        placed = outbox.place(mask, target, name, key=key, into_inbox=True)
    except PublishError as error:
        return Outcome("action_failed", str(error))
    if placed != name:  # another one was put there in the same moment
        (target / os.fsdecode(placed)).unlink(missing_ok=True)
        return Outcome("mask_taken")
    return target / os.fsdecode(placed)


def _holds(folder: Path, path: bytes) -> bool:
    return inbox.signature(folder, path) is not None


def drawn(form: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The shapes of a form, in pixels of the picture: those that were drawn, and a rectangle by its numbers.

    What is not as the page sends it is left out.
    """
    shapes: list[dict[str, Any]] = []
    try:
        listed = json.loads(str(form.get("shapes") or "[]"))
    except (ValueError, RecursionError):
        listed = []
    for one in listed if isinstance(listed, list) else []:
        if not isinstance(one, dict):
            continue
        if _are_numbers(one.get("rectangle"), 4):
            shapes.append({"rectangle": one["rectangle"]})
        points, width = one.get("stroke"), one.get("width")
        if isinstance(points, list) and points and all(_are_numbers(point, 2) for point in points):
            shapes.append({"stroke": points, "width": width if _are_numbers([width], 1) else 1})
    try:
        left, top, wide, high = (int(str(form.get(name, ""))) for name in ("left", "top", "width", "height"))
    except ValueError:
        return shapes
    if wide > 0 and high > 0 and _are_numbers([left, top, wide, high], 4):
        shapes.append({"rectangle": [left, top, left + wide, top + high]})
    return shapes


def _are_numbers(value: Any, count: int) -> bool:
    if not isinstance(value, list) or len(value) != count:
        return False
    return all(isinstance(one, int | float) and not isinstance(one, bool) and abs(one) < 1e6 for one in value)
