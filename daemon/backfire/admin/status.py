"""`backfire status`: whether the daemon runs, what it does, how much waits and for how long."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backfire.admin.outcomes import Outcome, midnight, outcomes
from backfire.files.locks import is_locked
from backfire.service.store.reader import Reader


@dataclass(frozen=True)
class Status:
    """How the daemon and its queue stand.

    Attributes:
        alive: whether the daemon runs.
        daemon: what it last recorded of itself; empty if it never ran.
        heard: when it did, Unix seconds; None if never.
        today, ever: counts of pictures by outcome, since midnight and in all.
        came_in: how many pictures were found since midnight.
        working, waiting: how many are worked on, and how many wait for that.
        seconds_each: the mean seconds that a worker took over each of the last pictures; None if there are
            none yet.
    """

    alive: bool
    daemon: Mapping[str, Any]
    heard: float | None
    today: Mapping[Outcome, int]
    ever: Mapping[Outcome, int]
    came_in: int
    working: int
    waiting: int
    seconds_each: float | None

    @property
    def left(self) -> int:
        """How many are still to be done."""
        return self.working + self.waiting

    @property
    def eta_s(self) -> float | None:
        """Seconds until all of them are done, at the pace of the last pictures; None if nobody can tell."""
        if self.seconds_each is None:
            return None
        workers: int = max(self.daemon.get("workers", 1), 1)
        return self.left * self.seconds_each / workers

    def in_all(self, what: str) -> int:
        """How many `unreadable` folders or `unused` files there are, of which the daemon names the first."""
        count: int = self.daemon.get("in_all", {}).get(what, len(self.daemon.get(what, {})))
        return count


def status(state: Path, store: Reader, *, now: float | None = None) -> Status:
    """How the daemon and its queue stand.

    Args:
        state: the state folder.
        store: the job database.
        now: wall clock, Unix seconds; the present where it is not given.
    """
    fact = store.fact("daemon")
    today = midnight(time.time() if now is None else now)
    ever, times = outcomes(store.tally()), store.seconds_each()
    return Status(
        alive=is_alive(state, fact),
        daemon=fact[0] if fact else {},
        heard=fact[1] if fact else None,
        today={
            one: count
            for one, count in outcomes(store.tally(today)).items()
            if one not in (Outcome.WAITING, Outcome.WORKING)
        },
        ever=ever,
        came_in=store.found_since(today),
        working=ever.get(Outcome.WORKING, 0),
        waiting=ever.get(Outcome.WAITING, 0),
        seconds_each=sum(times) / len(times) if times else None,
    )


def is_alive(state: Path, fact: tuple[Any, float] | None) -> bool:
    """Whether the daemon runs: it holds its lock or, without locks, had a heartbeat in the last 30 s."""
    locked = is_locked(state / "lock")
    return locked if locked is not None else fact is not None and time.time() - fact[1] < 30
