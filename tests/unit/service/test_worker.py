"""The daemon's end of the worker."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from backfire.service import dispatcher
from backfire.service.worker.local import Child, Outcome
from backfire.types import Job, JobState


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


def test_an_outcome_counts_only_under_the_lease_it_was_worked_under(tmp_path: Path) -> None:
    Outcome(7, lease=2, verdict="protected").write(tmp_path)
    found = Outcome.read(tmp_path, 2)
    assert found is not None
    assert Outcome.read(tmp_path, 3) is None, "it was started anew since"
    job = Job(7, b"p.png", JobState.RUNNING, lease=2)
    assert dispatcher._of(found, job)
    assert not dispatcher._of(found, replace(job, lease=3))
    assert not dispatcher._of(found, replace(job, id=8))
