"""How long files have not changed, from scans and a clock that the caller reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from backfire.files.inbox.seen import Signature


@dataclass
class Tracker:
    """Remembers since when each file has not changed.

    Attributes:
        settle_s: how long a file must not change before it counts as settled, seconds.
    """

    settle_s: float
    _since: dict[bytes, tuple[Signature, float]] = field(default_factory=dict)

    def observe(self, present: Mapping[bytes, Signature], now: float) -> None:
        """Note a scan that was made at monotonic time `now`; files that are gone are forgotten."""
        since = {}
        for path, signature in present.items():
            known = self._since.get(path)
            since[path] = known if known and known[0] == signature else (signature, now)
        self._since = since

    def still_for(self, path: bytes, now: float) -> float:
        """For how many seconds the file has not changed; 0 if it was never seen."""
        known = self._since.get(path)
        return now - known[1] if known else 0.0

    def settled(self, path: bytes, now: float) -> bool:
        """Whether the file has not changed for the settle time."""
        return path in self._since and self.still_for(path, now) >= self.settle_s
