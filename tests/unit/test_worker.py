"""The daemon's end of the worker."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any

import pytest

from daemon.worker import Child


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exit code 0"),
        (3, "exit code 3"),
        (-signal.SIGKILL, "killed by SIGKILL"),
        (-(signal.SIGRTMIN + 5), f"killed by signal {signal.SIGRTMIN + 5}"),
    ],
)
def test_however_the_child_ended_it_has_words(code: int, words: str) -> None:
    child: Any = Child.__new__(Child)
    child._process = SimpleNamespace(join=lambda seconds: None, exitcode=code)
    assert child.exitcode() == words
