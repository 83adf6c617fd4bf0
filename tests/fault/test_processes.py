"""Faults 1-4, 6, 7, 28: the daemon or a worker dies, hangs or is stopped, at any moment."""

from __future__ import annotations

import json
import os
import select
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from backfire import config
from backfire.admin.audit import audit
from backfire.files.inbox import Hints
from backfire.pipeline.result import PhaseProgress
from backfire.service import heartbeat
from backfire.service.worker.protocol import Finished, Order, Outcome, Progress
from benchmarks import passthrough
from tests.support.house import SOON, Call, House
from tests.support.jobs import (
    assert_published,
    child_of,
    events,
    kill,
    picture,
    reasons,
    running,
    states,
    wait_until_idle,
)
from tests.support.notified import Notified
from tests.support.pictures import encoded, mask_picture, photo
from tests.support.sandbox import Sandbox, wait_for


@pytest.mark.parametrize("state", ["settling", "waiting_mask", "ready", "running"])
def test_fault_01_daemon_killed_while_a_job_is(gated: Sandbox, state: str) -> None:
    waits = {"settle_s": 3600 if state == "settling" else 0.3}
    gated.configure(watch={**waits, "mask_wait_s": 3600 if state == "waiting_mask" else 0.3})
    (gated.base / "gate").write_text("open")
    originals = {"a.png": picture(1), "b.png": picture(2)}
    for name, data in originals.items():
        gated.drop(data, name)
    process = gated.start()
    wait_for(lambda: state in states(gated), because=f"a job to be {state}")
    worker = child_of(process.pid)
    kill(process.pid)
    process.wait()
    if worker:
        wait_for(lambda: not running(worker), because="the worker to die with its daemon")
    (gated.base / "gate").unlink()
    gated.configure()
    gated.start()
    wait_until_idle(gated)
    assert_published(gated, originals)
    assert states(gated) == ["archived", "archived"]


STEPS = {
    "01": ["replace", "after replace", "place"],
    "02": ["after place", "append", "after append", "record"],
    "03": ["after record", "put", "after put", "remove", "after remove", "unlink", "after unlink"],
}


def killed_at(sandbox: Sandbox, step: str) -> None:
    """Kill the daemon at the named step; a plain restart finishes the job and does not work it again."""
    told = sandbox.base / "told"
    config_file = sandbox.configure(hooks={"command": ["sh", "-c", "cat >> told && echo >> told"]})
    original = picture()
    sandbox.drop(original, "p.png")
    sandbox.drop(encoded(mask_picture()), "p.mask.png")
    killed = sandbox.killed_once(step)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    sandbox.module = "benchmarks.passthrough"
    assert sandbox.backfire("once").returncode == 0
    assert sandbox.files("inbox") == set()
    assert sandbox.files("archive") == {"p.png", "p.mask.png"}
    assert_published(sandbox, {"p.png": original})
    assert events(sandbox).count("running") == 1, "the finished result is used"
    assert states(sandbox) == ["archived"]
    kept = audit(config.load(config_file), list)
    assert (kept.files, kept.findings) == (3, ()), "the manifests alone list all files that were archived"
    payloads = [json.loads(line) for line in told.read_text().splitlines()]
    assert {(payload["event"], payload["file"]) for payload in payloads} == {("published", "p.png")}
    assert len({payload["id"] for payload in payloads}) == 1, "a repeated message has the same id"
    assert list((sandbox.state / "hooks").iterdir()) == []


@pytest.mark.parametrize("step", STEPS["01"])
def test_fault_01_killed_while_publishing(sandbox: Sandbox, step: str) -> None:
    killed_at(sandbox, step)


@pytest.mark.parametrize("step", STEPS["02"])
def test_fault_02_killed_between_rename_and_record(sandbox: Sandbox, step: str) -> None:
    killed_at(sandbox, step)


@pytest.mark.parametrize("step", STEPS["03"])
def test_fault_03_killed_between_record_and_archive(sandbox: Sandbox, step: str) -> None:
    killed_at(sandbox, step)


def begun(gated: Sandbox) -> int | None:
    """The process id of the worker, once it has begun a picture; if it dies before, that costs no attempt."""
    told = gated.base / "begun"
    return int(told.read_text() or 0) or None if told.exists() else None


def test_fault_04_a_picture_that_kills_the_worker_is_set_aside_and_others_go_on(gated: Sandbox) -> None:
    gated.configure(protect={"attempts": 3})
    (gated.base / "gate").write_text("open")
    data = picture()
    gated.drop(data, "p.png")
    process = gated.start()
    killed: set[int] = set()

    def another() -> bool:
        worker = begun(gated)
        if worker and worker not in killed:
            killed.add(worker)
            kill(worker)
        return states(gated) == ["quarantined"]

    wait_for(another, because="the job to be set aside")
    assert len(killed) == 3
    assert (gated.failed / "p.png").read_bytes() == data
    assert gated.error("p.png")["code"] == "worker_died"
    (gated.base / "gate").unlink()
    gated.drop(picture(1), "next.png")
    wait_for(lambda: gated.files("outbox") == {"next.png"}, because="the next file to be served")
    assert process.poll() is None


def test_fault_04_a_worker_killed_once_costs_one_attempt_and_the_next_needs_less_memory(
    gated: Sandbox,
) -> None:
    (gated.base / "gate").write_text("open")
    original = picture()
    gated.drop(original, "p.png")
    gated.start()
    worker = wait_for(lambda: begun(gated), because="the worker to begin")
    assert worker
    kill(worker)
    (gated.base / "gate").unlink()
    wait_until_idle(gated)
    assert_published(gated, {"p.png": original})
    assert "killed by SIGKILL" in reasons(gated)
    assert gated.receipt("p.png")["rung"] == 1, "the kernel may have killed it because memory ran out"


def test_fault_06_sigterm_in_the_middle_of_an_iteration_costs_no_attempt(sandbox: Sandbox) -> None:
    sandbox.configure(protect={"iterations": 100_00, "margin_px": 32, "whole_px": 0})
    sandbox.drop(encoded(photo()), "p.png")
    sandbox.drop(encoded(mask_picture()), "p.mask.png")
    process = sandbox.start()
    wait_for(lambda: states(sandbox) == ["running"], because="the job to run")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0, sandbox.log()
    (job,) = json.loads(sandbox.backfire("jobs", "--json").stdout)
    assert (job["state"], job["attempts"], job["lease"]) == ("ready", 0, 1)
    assert (sandbox.inbox / "p.png").is_file()


class Hung(Call):
    """A process that begins a picture and is not heard of any more."""

    was_killed = False

    def send(self, message: Any) -> None:
        self.jobs = {message[0].job: message[0].lease}
        self.report_and_die([Progress(message[0].job, message[0].lease, "start", 0, 1)])

    def receive(self, timeout: float) -> list[Progress | Outcome]:
        told = super().receive(timeout)
        self.heard -= 3600
        return told

    def kill(self) -> None:
        self.was_killed = True


def test_fault_07_a_worker_that_hangs_is_killed_and_its_job_resumed(house: Callable[..., House]) -> None:
    home = house(watch=SOON, limits={"silence_s": 60, "free_mb": 0})
    home.hire = lambda house: Call(house) if house.children else Hung(house)
    rungs = []

    def process(order: Order, progress: PhaseProgress) -> Finished:
        rungs.append(order.rung)
        return passthrough.process(order, progress)

    home.process = process
    home.drop("p.png")
    home.turn(5, times=6)
    assert "hung for 60 s" in home.reasons()
    assert [getattr(child, "was_killed", None) for child in home.children] == [True, None]
    assert home.states() == ["archived"]
    assert rungs == [0], "a worker that hangs does not lack memory"


def test_fault_07_a_daemon_that_hangs_stops_notifying_systemd(
    house: Callable[..., House], notified: Notified, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the loop sends heartbeats: a thread of their own would go on when the loop hangs."""
    every_s = 0.5
    monkeypatch.setattr(heartbeat, "EVERY_S", every_s)
    home = house(watch=SOON)
    service, hangs, goes_on = home.service, threading.Event(), threading.Event()
    goes_on.set()
    step = service.step

    def one_step(hints: Hints) -> None:
        if not goes_on.is_set():
            hangs.set()
            goes_on.wait(120)
        home.clock += every_s
        step(hints)

    monkeypatch.setattr(service, "step", one_step)
    running = threading.Thread(target=service.run)
    running.start()
    try:
        wait_for(lambda: "WATCHDOG=1" in notified.read(), because="a heartbeat")
        goes_on.clear()
        wait_for(hangs.is_set, because="the loop to hang")
        notified.read()
        assert select.select([notified.socket], [], [], 1.5 * every_s) == ([], [], [])
        goes_on.set()
        wait_for(lambda: "WATCHDOG=1" in notified.read(), because="the heartbeat to go on")
    finally:
        goes_on.set()
        service.stop()
        running.join()


@pytest.mark.parametrize("apart", [False, True], ids=["same folders", "own state folder"])
def test_fault_28_two_daemons_on_one_inbox(gated: Sandbox, apart: bool) -> None:
    gated.start()
    folders = {"inbox": "inbox", "state": "state-2"} if apart else {"inbox": "inbox"}
    gated.configure(folders=folders)
    second = gated.backfire("run", timeout=60)
    assert second.returncode == os.EX_TEMPFAIL, second.stderr
    assert "another backfire daemon" in second.stderr
    original = picture()
    gated.drop(original, "p.png")
    wait_until_idle(gated)
    assert_published(gated, {"p.png": original})
