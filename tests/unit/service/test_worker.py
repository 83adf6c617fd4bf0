"""What passes between the daemon and a worker, and how a worker ended."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from backfire import config
from backfire.config import Settings
from backfire.errors import Code, ConfigError
from backfire.service.worker.child import worked
from backfire.service.worker.local import Child, exit_reason
from backfire.service.worker.protocol import (
    RESULT,
    Failed,
    Finished,
    Hindered,
    Order,
    Result,
    read_result,
    write_result,
)
from backfire.types import Job, JobState, Verdict
from benchmarks.soak import png

JOB = Job(7, b"p.png", JobState.RUNNING, lease=2)
FINISHED = Finished(
    7, 2, Verdict.WEAK, ".png", "a" * 64, on_weak="fail", reasons=("one", "two"), timings_s={"verify": 1.5}
)
FAILED = Failed(7, 2, Code.UNREADABLE, "p.png: is no picture", retryable=True)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exit code 0"),
        (3, "exit code 3"),
        (-signal.SIGKILL, "killed by SIGKILL"),
        (-(signal.SIGRTMIN + 5), f"killed by signal {signal.SIGRTMIN + 5}"),
    ],
)
def test_every_end_of_a_process_is_described(code: int, words: str) -> None:
    assert exit_reason(code) == words


def logging(order: Order, progress: object) -> Finished:
    structlog.get_logger().warning("detector_skipped", path=order.name)
    return replace(FINISHED, job=order.job, lease=order.lease)


class Unused:
    """A connection to the daemon on which nothing passes."""

    def poll(self) -> bool:
        return False

    def recv(self) -> object:
        raise AssertionError("nothing was sent")

    def send(self, obj: object) -> None:
        pass


def test_what_the_settings_alone_are_to_blame_for_is_no_fault_of_the_picture(tmp_path: Path) -> None:
    """The daemon waits then, instead of failing one picture after the other."""

    def refusing(_order: Order, _progress: object) -> Finished:
        raise ConfigError("verify.held_out: got copied")

    order = Order(7, 2, tmp_path, "p.png", (), Settings.model_construct())
    outcome = worked(order, Unused(), refusing)
    assert isinstance(outcome, Hindered)
    assert (outcome.code, outcome.message) == (Code.MODEL, "verify.held_out: got copied")


def test_a_mask_beside_a_picture_is_left_where_masks_are_not_read(tmp_path: Path) -> None:
    """Nobody named it, so that it is no mistake in the settings, for which the worker would pause."""
    (tmp_path / "input").write_bytes(png("p.png"))
    (tmp_path / "mask-0").write_bytes(png("p.mask.png"))
    sections = {"detectors": ["metadata"], "none_found": "pass"}
    settings = config.parse({"folders": {"inbox": "inbox"}, "regions": sections}, base=tmp_path)
    order = Order(7, 2, tmp_path, "p.png", (("p.mask.png", "mask-0"),), settings)
    outcome = worked(order, Unused())
    assert isinstance(outcome, Finished), outcome
    assert outcome.verdict is Verdict.UNPROTECTED


def test_what_a_worker_logs_is_json_on_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its stdout is that of `backfire once --json`."""
    child = Child(process=logging)
    try:
        child.send([Order(7, 2, tmp_path, "p.png", (), Settings.model_construct())])
        assert child.receive(60)
    finally:
        child.kill()
    told = capfd.readouterr()
    assert (json.loads(told.err)["path"], told.out) == ("p.png", "")


@pytest.mark.parametrize("result", [FINISHED, FAILED], ids=["finished", "failed"])
def test_a_result_is_read_as_it_was_written(tmp_path: Path, result: Result) -> None:
    write_result(tmp_path, result)
    assert read_result(tmp_path, JOB) == result


def test_a_result_counts_only_for_the_start_that_made_it(tmp_path: Path) -> None:
    write_result(tmp_path, FINISHED)
    assert read_result(tmp_path, replace(JOB, lease=3)) is None, "the job was started again since"
    assert read_result(tmp_path, replace(JOB, id=8)) is None
    assert FINISHED.concerns(JOB)
    assert not FINISHED.concerns(replace(JOB, lease=3))
    assert not FINISHED.concerns(replace(JOB, id=8))


OLDER = {"job": 7, "lease": 2, "verdict": "protected", "extension": ".png", "output_sha256": "a" * 64}
"""A part of what the first version of Backfire wrote, which had one type for all outcomes."""


def test_a_result_of_the_first_version_is_read_after_an_upgrade(tmp_path: Path) -> None:
    """Otherwise a result that is in the outbox but not recorded would be made and published again."""
    old = {
        **OLDER, "reasons": ["one"], "timings_s": None, "seconds": 1.0, "code": None, "message": "",
        "retryable": False, "transient": False, "doubtful": False, "spent": False, "stopped": False,
        "on_weak": None,
    }  # fmt: skip
    (tmp_path / RESULT).write_text(json.dumps(old))
    assert read_result(tmp_path, JOB) == Finished(
        7, 2, Verdict.PROTECTED, ".png", "a" * 64, on_weak="fail", reasons=("one",), seconds=1.0
    )
    failed = {
        **old,
        "verdict": None,
        "code": "unreadable",
        "message": "p.png: is no picture",
        "retryable": True,
    }
    (tmp_path / RESULT).write_text(json.dumps(failed))
    assert read_result(tmp_path, JOB) == replace(FAILED, seconds=1.0)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda known: OLDER,
        lambda known: {**known, "type": "Blessed"},
        lambda known: {**known, "verdict": "splendid"},
        lambda known: {**known, "more": 1},
        lambda known: {"type": "Finished"},
        lambda known: [known],
    ],
    ids=[
        "half of an older version",
        "unknown type",
        "unknown verdict",
        "unknown field",
        "missing fields",
        "list",
    ],
)
def test_a_result_of_another_version_counts_as_none(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], Any]
) -> None:
    write_result(tmp_path, FINISHED)
    file = tmp_path / RESULT
    file.write_text(json.dumps(spoil(json.loads(file.read_bytes()))))
    assert read_result(tmp_path, JOB) is None
    file.write_bytes(b"{")
    assert read_result(tmp_path, JOB) is None
    file.unlink()
    assert read_result(tmp_path, JOB) is None
