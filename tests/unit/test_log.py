from __future__ import annotations

import re
from typing import Any

import pytest
import structlog

from backfire.log import ForPeople, RateLimit

OUT = {"state": "archived"}


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
    assert all(passed(limit, "job", method) for method in ("info", "warning") for _ in range(50))


@pytest.mark.parametrize(
    ("told", "line"),
    [
        (
            {"path": "me.png", **OUT, "verdict": "protected", "seconds": 42.5, "worked_s": 12.1},
            "me.png: protected, worked on for 12 s, 42 s after it was found.",
        ),
        (
            {"path": "held.png", **OUT, "verdict": "protected", "seconds": 1234567.8, "worked_s": 0.4},
            "held.png: protected, worked on for 1 s, 14 days after it was found.",
        ),
        (
            {"path": "d/a b.png", **OUT, "verdict": "weak", "sentence": "It is weak.", "message": "Do."},
            "d/a b.png: weak. It is weak. backfire explain 'd/a b.png' says what to do.",
        ),
        (
            {"path": "c\x1b[31m.jpg", "state": "failed", "message": "It ends early. Copy it."},
            "c\\x1b[31m.jpg: failed. It ends early. Copy it.",
        ),
        (
            {"path": "g.png", "state": "skipped", "reason": "left the inbox before it was worked"},
            "g.png: left out. left the inbox before it was worked",
        ),
    ],
)  # fmt: skip
def test_on_a_terminal_a_finished_job_is_one_line_for_people(told: dict[str, Any], line: str) -> None:
    unknown = dict.fromkeys(("id", "timings_s", "details"))
    shown = ForPeople(colours=False)(None, "info", {"event": "job", "level": "info", **unknown, **told})
    assert re.fullmatch(r"\d\d:\d\d:\d\d  (.*)", str(shown))[1] == line  # type: ignore[index]


def test_on_a_terminal_what_is_done_again_after_a_stop_is_named_and_empty_keys_are_left_out() -> None:
    write = ForPeople(colours=False)

    def line(**told: Any) -> str:
        return str(write(None, "info", {"level": "info", **told}))[10:]

    assert line(event="stopping") == "stopping; nothing is lost"
    assert line(event="drained", path="a.jpg", again=True) == "a.jpg: is done again after the next start"
    assert line(event="drained", path="a.jpg", again=False) == "a.jpg: is finished"
    stays = "is no picture and stays in the inbox"
    assert line(event="no_picture", count=1, paths=["notes.txt"], reason=stays) == f"notes.txt: {stays}"
    many = line(event="no_picture", count=3, paths=["a", "b"], reason="stay")
    assert many == "a, b and 1 more: stay"
    other = line(event="worker_paused", path="a.jpg", node=None)
    assert "path=a.jpg" in other
    assert "None" not in other


def test_on_a_terminal_sentences_say_how_many_lines_were_dropped_before() -> None:
    clock, write = Clock(), ForPeople(colours=False)
    limit = RateLimit(burst=1, window_s=60, monotonic=clock)
    for _ in range(4):
        passed(limit, "postponed")
    clock.now = 61
    told = passed(limit, "job", "info", path="a.png", state="failed", message="It ends early.")
    assert str(write(None, "info", told or {}))[10:] == (
        "a.png: failed. It ends early. (left out before: 3 lines postponed)"
    )


def test_the_line_is_not_mutated() -> None:
    clock = Clock()
    limit = RateLimit(burst=1, window_s=60, monotonic=clock)
    passed(limit, "postponed")
    passed(limit, "postponed")
    clock.now = 60
    line = {"event": "job"}
    assert limit(None, "info", line) != line
    assert line == {"event": "job"}
