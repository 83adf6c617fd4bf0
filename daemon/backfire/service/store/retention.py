"""Old jobs are forgotten, but not while the clock may be wrong, as after its battery ran empty."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from backfire.service.store.store import Store

log = structlog.get_logger()

DAY_S = 86400.0
LEAP_S = 30 * DAY_S
"""A clock that is so many seconds ahead of its expected time is doubted; perhaps nothing ran for a month."""
DOUBT_S = DAY_S
"""How many seconds of a running daemon a clock stays doubted; time servers have corrected it by then."""


class History:
    """Prunes the job database.

    Args:
        store: the job database.
        now: wall clock, Unix seconds.
        monotonic: a clock that nobody can set, seconds.
    """

    def __init__(self, store: Store, now: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self._store, self._now, self._monotonic = store, now, monotonic
        self._believed: tuple[float, float] | None = None
        """Both clocks, wall clock first, when the wall clock was last believed in this process."""
        self._doubted_since: float | None = None

    def prune(self, days: float) -> int:
        """Forget some of the jobs that ended more than `days` ago; returns how many. 0 days forget none."""
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
                log.warning("clock_jump", days=days, remedy="set it; no history is forgotten until tomorrow")
            if monotonic < self._doubted_since + DOUBT_S:
                return False
        self._doubted_since = None
        self._believed = now, monotonic
        self._store.set_fact("clock", None, at=now)
        return True

    def _expected(self, now: float, monotonic: float) -> float:
        """What the wall clock should say; after a restart, the least that it should say."""
        if self._believed is not None:
            wall, then = self._believed
            return wall + monotonic - then
        last = self._store.fact("clock") or self._store.fact("daemon")
        return last[1] if last else now
