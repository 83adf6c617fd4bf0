from __future__ import annotations

import unicodedata
from pathlib import Path

from backfire import config
from backfire.service.queue import WaitingQueue, priority
from backfire.types import Job, JobState


def jobs(*entries: tuple[int, bytes, int]) -> list[tuple[Job, int]]:
    return [(Job(number, path, JobState.SETTLING), size) for number, path, size in entries]


def order(queue: WaitingQueue) -> list[int]:
    return [job.id for _, job in queue]


def test_the_innermost_folder_with_a_priority_counts() -> None:
    priorities = {"a": 1, "a/b": -2, ".": 5}
    assert priority(b"a/p.png", priorities) == 1
    assert priority(b"a/b/c/p.png", priorities) == -2
    assert priority(b"p.png", priorities) == 5
    assert priority(b"other/p.png", priorities) == 5
    assert priority(b"other/p.png", {}) == 0


def test_a_folder_is_known_in_either_spelling_of_unicode(tmp_path: Path) -> None:
    nfc, nfd = (unicodedata.normalize(form, "Zoë") for form in ("NFC", "NFD"))
    for ours in (nfc, nfd):
        settings = config.parse(
            {
                "folders": {"inbox": "i"},
                "watch": {"priorities": {ours: 7}},
                "rules": [{"match": ours + "/*"}],
            },
            base=tmp_path,
        )
        for theirs in (nfc, nfd):
            assert priority(f"{theirs}/p.png".encode(), settings.watch.priorities) == 7
            assert settings.rule_of(f"{theirs}/p.png".encode()) == 0
    assert settings.rule_of(b"Zo\xeb/p.png") is None, "Latin-1 is another name"


def test_oldest_and_smallest_take_turns_and_nobody_is_served_twice() -> None:
    queue = WaitingQueue(jobs((1, b"1", 90), (2, b"2", 80), (3, b"3", 10), (4, b"4", 20), (5, b"5", 70)), {})
    assert order(queue) == [1, 3, 2, 4, 5]


def test_a_priority_goes_before_age_and_size() -> None:
    waiting = jobs((1, b"1", 1), (2, b"urgent/2", 99), (3, b"late/3", 1), (4, b"urgent/4", 98))
    assert order(WaitingQueue(waiting, {"urgent": 1, "late": -1})) == [2, 4, 1, 3]


def test_an_empty_queue_ends() -> None:
    assert order(WaitingQueue([], {})) == []
