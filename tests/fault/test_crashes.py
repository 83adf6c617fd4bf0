"""SIGKILL of daemon or child at chosen moments: one output, nothing lost, nothing published twice."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
from pathlib import Path

import pytest

from tests.conftest import QUICK, Sandbox, mask_picture, photo, wait_for
from tests.e2e.test_daemon import encoded

SLOW = {**QUICK, "protect": {"iterations": 60, "margin_px": 32, "attempts": 3}}


def states(sandbox: Sandbox) -> list[str]:
    database = sandbox.state / "backfire.sqlite"
    if not database.exists():
        return []
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        return [row[0] for row in connection.execute("select state from jobs order by id")]


def events(sandbox: Sandbox) -> list[str]:
    database = sandbox.state / "backfire.sqlite"
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        return [row[0] for row in connection.execute("select state from events order by id")]


def kill(process_id: int) -> None:
    os.kill(process_id, signal.SIGKILL)


def child_of(process_id: int) -> int | None:
    """The worker: the child process that runs `multiprocessing.spawn`'s main."""
    children = Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split()
    for child in children:
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
            return int(child)
    return None


def running(process_id: int) -> bool:
    """Whether the process exists and is no zombie (nobody reaps an orphan inside a container)."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def drop(sandbox: Sandbox) -> bytes:
    data = encoded(photo())
    sandbox.drop(encoded(mask_picture()), "p.mask.png")
    sandbox.drop(data, "p.png")
    return data


def start_and_run(sandbox: Sandbox) -> tuple[subprocess.Popen[str], int]:
    """The daemon with its one job running, and the worker's process id."""
    process = sandbox.start()
    wait_for(lambda: states(sandbox) == ["running"], because="the job to run")
    worker = wait_for(lambda: child_of(process.pid), because="the worker to start")
    assert worker
    return process, worker


def assert_done_once(sandbox: Sandbox, original: bytes) -> None:
    wait_for(lambda: states(sandbox) and states(sandbox)[-1] == "archived", because="the job to be archived")
    assert sandbox.files("inbox") == set()
    assert sandbox.files("outbox") == {"p.png"}
    assert sandbox.files("archive") == {"p.png", "p.mask.png"}
    assert (sandbox.archive / "p.png").read_bytes() == original
    assert sandbox.files("failed") == set()
    assert states(sandbox).count("archived") == 1
    assert list(sandbox.base.rglob(".backfire-*")) == [], "no temporary file is left"


def test_the_daemon_is_killed_in_mid_job(sandbox: Sandbox) -> None:
    sandbox.configure(**SLOW)
    original = drop(sandbox)
    process, worker = start_and_run(sandbox)
    kill(process.pid)
    process.wait()
    wait_for(lambda: not running(worker), seconds=20, because="the worker to die with its daemon")
    sandbox.configure(**QUICK)
    sandbox.start()
    assert_done_once(sandbox, original)


def test_the_worker_is_killed_in_mid_job(sandbox: Sandbox) -> None:
    sandbox.configure(**SLOW)
    original = drop(sandbox)
    process, worker = start_and_run(sandbox)
    kill(worker)
    assert_done_once(sandbox, original)
    assert "killed by SIGKILL" in sandbox.log()
    assert process.poll() is None


def test_a_picture_that_kills_the_worker_each_time_is_set_aside(sandbox: Sandbox) -> None:
    sandbox.configure(**{**SLOW, "protect": {"iterations": 10_000, "margin_px": 32, "attempts": 2}})
    data = drop(sandbox)
    process = sandbox.start()
    killed: set[int] = set()

    def another() -> bool:
        worker = child_of(process.pid)
        if worker and worker not in killed and states(sandbox)[0] == "running":
            killed.add(worker)
            kill(worker)
        return states(sandbox) == ["quarantined"]

    wait_for(another, because="the job to be set aside")
    assert len(killed) == 2
    assert (sandbox.failed / "p.png").read_bytes() == data
    assert sandbox.error("p.png")["code"] == "worker_died"
    sandbox.drop(b"", "next.png")
    wait_for(lambda: (sandbox.failed / "next.png.error.json").is_file(), because="the next file to be served")


STEPS = [
    f"{when}{what}"
    for what in ("replace", "place", "record", "put", "remove", "unlink")
    for when in ("", "after ")
]


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_every_step_of_publishing(sandbox: Sandbox, step: str) -> None:
    """The daemon kills itself at the named step; a plain restart finishes the job, without new GPU work."""
    sandbox.configure(**QUICK)
    original = drop(sandbox)
    killed = sandbox.killed_once(step)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert sandbox.backfire("once").returncode == 0
    assert_done_once(sandbox, original)
    runs = events(sandbox).count("running")
    assert runs == 1, "the finished result is adopted"
    assert json.loads(sandbox.backfire("status", "--json").stdout)["jobs"] == {"archived": 1}
