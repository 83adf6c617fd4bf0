from __future__ import annotations

from typing import Any

import pytest
import structlog

from backfire.log import RateLimit


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def passed(limit: RateLimit, event: str, method: str = "warning", **fields: Any) -> dict[str, Any] | None:
    try:
        return dict(limit(None, method, {"event": event, **fields}))
    except structlog.DropEvent:
        return None


@pytest.mark.parametrize("method", ["warning", "error", "exception"])
def test_repeated_events_are_suppressed_and_counted(method: str) -> None:
    clock = Clock()
    limit = RateLimit(burst=3, window_s=60, monotonic=clock)
    assert [passed(limit, "postponed", method) is not None for _ in range(10)] == [True] * 3 + [False] * 7
    clock.now = 61
    assert passed(limit, "ready", "info") == {"event": "ready", "suppressed": {"postponed": 7}}
    assert passed(limit, "ready", "info") == {"event": "ready"}
    assert passed(limit, "postponed", method) == {"event": "postponed"}


def test_other_events_and_the_lines_of_jobs_are_not_suppressed() -> None:
    limit = RateLimit(burst=1, window_s=60, monotonic=Clock())
    passed(limit, "postponed")
    assert passed(limit, "postponed") is None
    assert passed(limit, "retry") is not None
    assert all(passed(limit, "job", "info") for _ in range(50))


def test_the_line_is_not_mutated() -> None:
    clock = Clock()
    limit = RateLimit(burst=1, window_s=60, monotonic=clock)
    passed(limit, "postponed")
    passed(limit, "postponed")
    clock.now = 60
    line = {"event": "job"}
    assert limit(None, "info", line) != line
    assert line == {"event": "job"}
