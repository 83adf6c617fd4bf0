"""What became of a job, in the words that all commands and the page use."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from enum import StrEnum

from backfire.types import JobState, Verdict


class Outcome(StrEnum):
    """What became of a picture, in the order in which counts are shown."""

    PROTECTED = "protected"
    WEAK = "weak"
    UNPROTECTED = "unprotected"
    FAILED = "failed"
    HELD = "held"
    SKIPPED = "skipped"
    WORKING = "working"
    WAITING = "waiting"


OF_STATE = {
    JobState.FAILED: Outcome.FAILED,
    JobState.QUARANTINED: Outcome.FAILED,
    JobState.REVIEW: Outcome.HELD,
    JobState.SKIPPED: Outcome.SKIPPED,
    JobState.RUNNING: Outcome.WORKING,
    JobState.PUBLISHING: Outcome.WORKING,
    JobState.SETTING_ASIDE: Outcome.WORKING,
    JobState.HOLDING: Outcome.WORKING,
}
"""Until its files lie where they belong a picture is in work, whatever its verdict, as on the status page."""


def outcome(state: JobState, verdict: Verdict | None) -> Outcome:
    """What became of a job in this state and with this verdict."""
    if state in (JobState.PUBLISHED, JobState.ARCHIVED):
        return Outcome(verdict) if verdict else Outcome.WORKING
    return OF_STATE.get(state, Outcome.WAITING)


def outcomes(tally: Mapping[tuple[JobState, Verdict | None], int]) -> dict[Outcome, int]:
    """A tally of the job database by outcome; those that do not occur are left out."""
    found: Counter[Outcome] = Counter()
    for (state, verdict), count in tally.items():
        found[outcome(state, verdict)] += count
    return {one: found[one] for one in Outcome if found[one]}


def in_words(counts: Mapping[Outcome, int]) -> str:
    """Counts as a list, such as `48 protected, 9 weak, 3 failed`."""
    return ", ".join(f"{counts[one]} {one}" for one in Outcome if counts.get(one))


def midnight(now: float) -> float:
    """When the day began, by the clock on the wall, Unix seconds."""
    year, month, day, *_ = time.localtime(now)
    return time.mktime((year, month, day, 0, 0, 0, 0, 0, -1))
