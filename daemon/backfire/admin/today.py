"""`backfire today`: the day on one screen, and what needs a person."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from backfire import advice
from backfire.admin.outcomes import midnight
from backfire.admin.space import Space, space
from backfire.admin.status import Status, status
from backfire.config import Settings
from backfire.service.store.reader import Reader
from backfire.types import Job, JobState

ACCEPT = (
    "published, but with a flaw. Either leave one as it is: backfire accept ID (--all: all of them), which "
    "changes no file and takes it off this list. Or do what is said below and drop the original, with its "
    "mask if it has one, into the inbox again, which ends this notice, too; the new result comes to lie "
    "beside this one, under a longer name: delete the one that you do not want. backfire explain NAME says "
    "where the original is, and all reasons."
)
AGAIN = (
    "backfire retry ID, or backfire retry --failed for all. One leaves this list when a file of the same "
    "name is dropped, or tomorrow."
)
ENDING = re.compile(r" \(\.\w+\)")
"""The ending of a file, which its sentence may name."""
MOST = 10_000
"""The most pictures of a kind that are looked at."""


@dataclass(frozen=True)
class Reason:
    """Why something needs a person.

    Attributes:
        why: what is the matter.
        names: the pictures or files, the newest first.
        ids: their jobs, in the same order, if they have any.
    """

    why: str
    names: Sequence[str] = ()
    ids: Sequence[int] = ()


@dataclass(frozen=True)
class Need:
    """Something that a person must do.

    Attributes:
        what: `failed`, `held`, `weak`, `folders` or `daemon`.
        count: how many pictures or files; 0 for the daemon as a whole.
        do: what to do.
        reasons: why, the most frequent first.
    """

    what: str
    count: int
    do: str
    reasons: Sequence[Reason]


@dataclass(frozen=True)
class Today:
    """The day so far.

    Attributes:
        since: when it began, Unix seconds.
        status: of the daemon and its queue.
        space: of each disk that folders lie on.
        needs: what needs a person, the most urgent first.
        left_over: why files stay in the inbox that no picture uses, of many the first; nothing has to be done
            about them.
        left_over_in_all: how many there are.
        earlier: how many failures there are from before, which are not among the needs.
        earlier_weak: how many weak pictures from before nobody has accepted yet.
        advises_settings: whether one of the needs is met by changing a setting.
    """

    since: float
    status: Status
    space: Sequence[Space]
    needs: Sequence[Need]
    left_over: Sequence[Reason]
    left_over_in_all: int
    earlier: int
    earlier_weak: int

    @property
    def advises_settings(self) -> bool:
        return any(advice.names_setting(reason.why) for need in self.needs for reason in need.reasons)


def today(settings: Settings, store: Reader, *, now: float | None = None) -> Today:
    """The day so far.

    Args:
        settings: the folders are used.
        store: the job database.
        now: wall clock, Unix seconds; the present where it is not given.
    """
    now = time.time() if now is None else now
    since, stands = midnight(now), status(settings.folders.state, store, now=now)
    # The page lists the same jobs under "Needs you", whenever they ended.
    failed, held, weak = (store.needing(kind, MOST) for kind in ("failed", "held", "weak"))
    fresh, fresh_weak = ([job for job in jobs if job.updated >= since] for jobs in (failed, weak))
    folders = settings.folders
    decide = f"not published; decide: backfire release lists them, they lie in {folders.review.name}/"
    mended = f"drop a mended picture into the inbox, or mend it in {folders.failed.name}/ and then"
    needs = [
        *_of_the_daemon(stands),
        *_of_jobs("held", held, decide),
        *_of_jobs("failed", fresh, f"{mended} {AGAIN}"),
        *_of_jobs("weak", fresh_weak, ACCEPT),
        *_of_folders(stands),
    ]
    return Today(
        since,
        stands,
        space(folders.named()),
        needs,
        left_over=_by_reason(stands.daemon.get("unused")),
        left_over_in_all=stands.in_all("unused"),
        earlier=len(failed) - len(fresh),
        earlier_weak=len(weak) - len(fresh_weak),
    )


def _of_the_daemon(stands: Status) -> Iterator[Need]:
    if not stands.alive and stands.left:
        why = Reason("it is not running, and pictures wait")
        yield Need("daemon", 0, "start it: backfire run, or backfire once", [why])
    trouble = stands.daemon.get("trouble") if stands.alive else ""
    if trouble:
        why_not, _, do = str(trouble).rpartition("; ")
        yield Need("daemon", 0, do if why_not else "see its log", [Reason(why_not or do)])


def _of_jobs(what: str, jobs: Sequence[Job], do: str) -> Iterator[Need]:
    groups: dict[str, list[Job]] = {}
    for job in jobs:  # by their reasons but for the figures in them
        groups.setdefault(re.sub(r"\d+", "", _of_several(job)), []).append(job)
    reasons = [
        Reason(_of_several(group[0]), [job.name for job in group], [job.id for job in group])
        for group in groups.values()
    ]
    if reasons:
        yield Need(what, len(jobs), do, sorted(reasons, key=lambda reason: -len(reason.names)))


def _of_several(job: Job) -> str:
    """The reason of a job without what concerns it alone.

    What to do with held ones, and how a setting is changed, is said once for all.
    """
    if (said := advice.of(job)) is None:
        return reason_of(job)
    sentence = ENDING.sub("", said.sentence)
    return sentence if job.state == JobState.REVIEW else f"{sentence} {said.bare_mend}"


def _of_folders(stands: Status) -> Iterator[Need]:
    """Folders that cannot be read."""
    if reasons := _by_reason(stands.daemon.get("unreadable")):
        yield Need("folders", stands.in_all("unreadable"), "see below", reasons)


def _by_reason(told: Mapping[str, str] | None) -> list[Reason]:
    """Paths and what was told of each, by what was told."""
    groups: dict[str, list[str]] = {}
    for name, why in (told or {}).items():
        groups.setdefault(str(why), []).append(name)
    return [Reason(why, names) for why, names in groups.items()]


def reason_of(job: Job) -> str:
    """Why a job failed, is held or is weak, and what to do; else its message without the picture's name."""
    if (said := advice.of(job)) is not None:
        return str(said)
    text = job.message or ""
    for name in (job.name, os.path.basename(job.name)):
        text = text.removeprefix(f"{name}: ")
    return next(iter(text.splitlines()), "")
