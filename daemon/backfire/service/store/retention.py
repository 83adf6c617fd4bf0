"""Forgetting jobs of long ago, unless the clock may be wrong: a dead battery is not to cost the history."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from backfire.service.store.store import Store

log = structlog.get_logger()

DAY_S = 86400.0
LEAP_S = 30 * DAY_S
"""A clock so far ahead of when it was last believed is doubted; it may also have been a long holiday."""
DOUBT_S = DAY_S
"""For so long, of a running daemon: time servers have set it right by then."""


class History:
    """Prunes the store.

    Args:
        store: the job database.
        now: wall clock, Unix seconds.
        monotonic: a clock that nobody sets.
    """

    def __init__(self, store: Store, now: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self._store, self._now, self._monotonic = store, now, monotonic
        self._believed: tuple[float, float] | None = None
        """Both clocks when the wall clock was last believed in this process."""
        self._doubted_since: float | None = None

    def prune(self, days: float) -> int:
        """Forget some of the jobs that ended more than `days` ago; how many they were, none for 0 days."""
        if not days or not self._believes():
            return 0
        return self._store.prune(before=self._now() - days * DAY_S)

    def _believes(self) -> bool:
        now, monotonic = self._now(), self._monotonic()
        ahead = now - self._expected(now, monotonic)
        if ahead > LEAP_S:
            if self._doubted_since is None:
                self._doubted_since = monotonic
                days = round(ahead / DAY_S)
                log.warning("clock leapt", days=days, remedy="set it; until tomorrow no history is forgotten")
            if monotonic < self._doubted_since + DOUBT_S:
                return False
        self._doubted_since = None
        self._believed = now, monotonic
        self._store.set_fact("clock", None, at=now)
        return True

    def _expected(self, now: float, monotonic: float) -> float:
        """What the wall clock should say, or, where it stood still with us, the least it should say."""
        if self._believed is not None:
            wall, then = self._believed
            return wall + monotonic - then
        last = self._store.fact("clock") or self._store.fact("daemon")
        return last[1] if last else now
