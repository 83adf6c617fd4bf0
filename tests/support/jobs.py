"""Queries of a sandbox's job database and processes, and pictures that are quick to process."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.pictures import encoded, photo
from tests.support.sandbox import Sandbox, wait_for

PASS: dict[str, Any] = {"regions": {"detectors": ["sidecar"], "none_found": "pass"}}
"""Settings with which the real daemon publishes pictures without a mask unchanged, and so runs no model."""


def _rows(sandbox: Sandbox, query: str) -> list[Any]:
    database = sandbox.state / "backfire.sqlite"
    if not database.exists():
        return []
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        return [row[0] for row in connection.execute(query)]
    except sqlite3.OperationalError:  # not yet set up
        return []
    finally:
        connection.close()


def states(sandbox: Sandbox) -> list[str]:
    """The state of each job, oldest first."""
    return _rows(sandbox, "select state from jobs order by id")


def count_of(sandbox: Sandbox, state: str = "%") -> int:
    """How many jobs there are, or are in a state; where there are thousands, their rows take long to read."""
    return sum(_rows(sandbox, f"select count(*) from jobs where state like '{state}'"))


def published_until(sandbox: Sandbox, *names: str) -> int:
    """How many pictures had been published when the last of these was."""
    order = (
        "select j.path from events e join jobs j on j.id = e.job_id where e.state = 'published' order by e.id"
    )
    paths = [os.fsdecode(path) for path in _rows(sandbox, order)]
    return max(paths.index(name) for name in names) + 1


def events(sandbox: Sandbox) -> list[str]:
    """The state in each event of all jobs, in the order in which they were recorded."""
    return _rows(sandbox, "select state from events order by id")


def reasons(sandbox: Sandbox) -> str:
    """The details of all events as one text."""
    return "\n".join(_rows(sandbox, "select detail from events order by id"))


def trouble(sandbox: Sandbox) -> str:
    """The problem that the daemon last reported, as `backfire status` shows it."""
    (fact,) = _rows(sandbox, "select value from facts where key = 'daemon'") or ["{}"]
    return str(json.loads(fact).get("trouble"))


def wait_until_idle(sandbox: Sandbox, count: int | None = None) -> None:
    """Wait until the inbox is empty, all jobs (at least `count`) have ended, and their spools are removed.

    A spool is removed just after the end of its job is recorded; a test that walks the folders before that
    may find it half removed.
    """
    ends = {"archived", "failed", "quarantined", "skipped"}

    def idle() -> bool:
        found = states(sandbox)
        rested = not sandbox.files("inbox") and set(found) <= ends and len(found) >= (count or 1)
        return rested and not any((sandbox.state / "spool").iterdir())

    wait_for(idle, because="all jobs to end")


def picture(seed: int = 0, kind: str = "PNG", size: tuple[int, int] = (64, 48)) -> bytes:
    return encoded(photo(size, seed=seed), kind)


def kill(process_id: int) -> None:
    os.kill(process_id, signal.SIGKILL)


def children_of(process_id: int) -> list[int]:
    """Process ids of the workers: child processes that run `multiprocessing.spawn`'s main."""
    found = []
    for child in Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended in the meantime
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return found


def child_of(process_id: int) -> int | None:
    """The worker's process id; None while there is none."""
    return next(iter(children_of(process_id)), None)


def running(process_id: int) -> bool:
    """Whether the process exists and is no zombie (nobody reaps an orphan inside a container)."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def cpu_s(process_id: int) -> float:
    """The seconds that a process has worked, which do not grow with the load of the machine."""
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def assert_published(sandbox: Sandbox, originals: dict[str, bytes]) -> None:
    """Check that each original was published and archived once, unchanged, as the doubles publish it."""
    assert sandbox.files("outbox") == set(originals)
    assert sandbox.files("failed") == set()
    for name, data in originals.items():
        assert (sandbox.outbox / name).read_bytes() == data
        assert (sandbox.archive / name).read_bytes() == data
    assert list(sandbox.base.rglob(".backfire-*")) == [], "no temporary file is left"


@pytest.fixture
def gated(sandbox: Sandbox) -> Sandbox:
    """The daemon with the double of `gated.py`: write `open` into its file `gate` to make the worker wait."""
    sandbox.module = "tests.support.gated"
    return sandbox
