"""Since when files stand still. Pure bookkeeping over scans and a clock that is handed in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from backfire.files.inbox.scan import Signature


@dataclass
class Tracker:
    """Since when each file has stood still. Pure bookkeeping."""

    settle_s: float
    _since: dict[bytes, tuple[Signature, float]] = field(default_factory=dict)

    def observe(self, present: Mapping[bytes, Signature], now: float) -> None:
        """Take in a scan made at monotonic time `now`; files that are gone are forgotten."""
        since = {}
        for path, signature in present.items():
            known = self._since.get(path)
            since[path] = known if known and known[0] == signature else (signature, now)
        self._since = since

    def still_for(self, path: bytes, now: float) -> float:
        """Seconds the file has stood still; 0 for one not seen."""
        known = self._since.get(path)
        return now - known[1] if known else 0.0

    def settled(self, path: bytes, now: float) -> bool:
        """Whether the file has stood still for the settle time."""
        return path in self._since and self.still_for(path, now) >= self.settle_s
