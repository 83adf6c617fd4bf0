"""The benchmarks that run daemons: these end with them, failed jobs end a wait, and rounds are told apart."""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from backfire.web.board import PAGE
from benchmarks import cluster, cluster_soak, ingest, page, soak
from benchmarks.daemons import Daemon, unarchived
from benchmarks.rows import code
from benchmarks.soak import png
from tests.support.sandbox import wait_for


def test_a_daemon_ends_with_its_block_and_a_failed_job_ends_the_wait(tmp_path: Path) -> None:
    ingest.configure(tmp_path, settle_s=0.1)
    (tmp_path / "inbox" / "whole.png").write_bytes(png("whole"))
    (tmp_path / "inbox" / "none.png").write_bytes(b"no picture at all")
    chance = random.Random(0)
    with Daemon(tmp_path) as daemon:
        wait_for(lambda: daemon.ended(2), seconds=60, because="both jobs came to an end")
        assert daemon.states() == {"archived": 1, "failed": 1}
        assert unarchived(daemon.states()) == "; NOT ARCHIVED: {'failed': 1}"
        assert not daemon.ended(3)
        assert daemon.cpu_s()["daemon"] > 0
        assert not daemon.kill("driver", chance), "there is none"
        assert daemon.kill("worker", chance)
        first = daemon.process
        assert daemon.kill("daemon", chance)
        assert first.poll() is not None
        assert daemon.process.poll() is None
        assert daemon.kills == {"worker": 1, "daemon": 1}
    assert daemon.process.poll() is not None
    with pytest.raises(RuntimeError), daemon:
        raise RuntimeError("an error of the benchmark")
    assert daemon.process.poll() is not None
    with pytest.raises(SystemExit, match=r"the daemon ended with .*backfire\.log"):
        daemon.ended(1)


def test_rounds_of_other_code_or_other_options_are_played_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played, file = list[int](), tmp_path / "rounds.json"

    def play(base: Path, files: int, seed: int, every: float) -> dict[str, Any]:
        played.append(seed)
        return {"seed": seed, "files": files, "every": every, "code": code(), "faults": []}

    monkeypatch.setattr(soak, "play", play)
    old = {"seed": 7, "files": 10, "faults": ["a fault that is mended since"]}
    file.write_text(json.dumps([old]))
    given = ["--files", "10", "--json", str(file)]
    assert soak.main([*given, "--seed", "7"]) == 0, "the fault is not one of these rounds"
    assert played == [7], "a seed alone is one round"
    assert soak.main([*given, "--seed", "7", "--rounds", "2"]) == 0
    assert played == [7, 8]
    assert soak.main([*given, "--rounds", "2"]) == 0
    assert played == [7, 8], "the first seed is that of the rounds that count"
    assert soak.main([*given, "--rounds", "1", "--every", "2", "--seed", "7"]) == 0
    assert played == [7, 8, 7]
    assert json.loads(file.read_text())[0] == old, "the others are kept"


def test_a_seed_alone_is_one_round_of_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    played = list[int]()

    def play(base: Path, count: int, seed: int) -> dict[str, Any]:
        played.append(seed)
        return {"faults": []}

    monkeypatch.setattr(cluster_soak, "play", play)
    assert cluster_soak.main(["--seed", "5"]) == 0
    assert played == [5]


def test_the_worker_of_this_machine_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cluster, "measure", lambda *given, how: {"given": given, "how": how})
    cluster.main(["--local", "--each", "3"])
    assert json.loads(capsys.readouterr().out) == {"given": [1, 3, 3.0, 5.0], "how": "local"}
    with pytest.raises(SystemExit):
        cluster.main(["--local", "--workers", "4"])


@pytest.mark.parametrize("jobs", [60, 1000, 100_000])
def test_every_page_that_is_asked_for_exists(jobs: int, tmp_path: Path) -> None:
    asked = page.paths(jobs)
    last = int(asked["last page of all"].rpartition("=")[2])
    assert PAGE * (last - 1) < jobs <= PAGE * last
    assert 1 <= int(asked["one picture"].rpartition("/")[2]) <= jobs
    names = [f"IMG_{number:06}.jpg" for number in range(jobs)]
    assert any(asked["search"].rpartition("=")[2] in name for name in names)


def test_a_page_that_does_not_start_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest.configure(tmp_path, settle_s=0)
    monkeypatch.setattr(page, "child_environment", lambda: {"PYTHONPATH": ""})
    monkeypatch.setattr(sys, "executable", "/bin/false")
    began = time.monotonic()
    with pytest.raises(SystemExit, match="the page ended with 1 before it answered"), page.serving(tmp_path):
        pass
    assert time.monotonic() - began < 30
