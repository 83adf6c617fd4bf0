"""What came back from a node: checked here before it counts."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backfire import imaging
from backfire.errors import Code, JobError
from backfire.pipeline.result import no_progress
from backfire.service.spool import Spool
from backfire.service.worker import checkers as checks
from backfire.service.worker import protocol, returned
from backfire.service.worker.checkers import Checkers
from backfire.service.worker.protocol import Finished, Interrupted, Order, Outcome
from tests.support.desk import PICTURE, configured, finished, left
from tests.support.pictures import encoded, photo
from tests.support.sandbox import wait_for


def test_what_came_back_as_it_was_ordered_is_taken_over(tmp_path: Path) -> None:
    order = Order(7, 3, tmp_path, "p.png", (), configured(tmp_path))
    (tmp_path / "input").write_bytes(PICTURE)
    outcome = left(order, brighter(order.settings.protect.epsilon))
    assert returned.check(order, no_progress) == outcome
    assert (tmp_path / "output").read_bytes() == brighter(order.settings.protect.epsilon)


def test_a_heic_is_taken_over_too(tmp_path: Path) -> None:
    order = Order(7, 3, tmp_path, "p.png", (), configured(tmp_path))
    (tmp_path / "input").write_bytes(PICTURE)
    picture = imaging.decode(PICTURE, name="p.png", max_pixels=10**6)
    heic = imaging.encode(picture, picture.rgb, levels=1, format="heic")
    outcome = left(order, heic.data, extension=heic.extension)
    assert returned.check(order, no_progress) == outcome


def brighter(levels: float) -> bytes:
    """The picture, changed by so many levels at one place."""
    rgb = np.asarray(photo((48, 64))).copy()
    assert rgb[10, 10].max() + levels <= 255
    rgb[10, 10] += np.uint8(levels)
    return encoded(Image.fromarray(rgb))


@pytest.mark.parametrize(
    "wrong",
    [
        "damaged",
        "budget",
        "came out",
        "other settings",
        "another order",
        "the original itself",
        "was told as",
    ],
)
def test_what_came_back_otherwise_is_refused_and_worked_again(tmp_path: Path, wrong: str) -> None:
    order = Order(7, 3, tmp_path, "p.png", (), configured(tmp_path))
    (tmp_path / "input").write_bytes(PICTURE)
    protect = order.settings.protect.model_copy(update={"margin_px": 17})
    lies_in = returned.folder(tmp_path, 3)
    match wrong:
        case "damaged":
            left(order, PICTURE)
            (lies_in / "output").write_bytes(PICTURE + b"x")
        case "budget":
            left(order, brighter(order.settings.protect.epsilon + 1))
        case "came out":
            left(order, encoded(photo((48, 65))))
        case "other settings":
            left(order, PICTURE, settings=order.settings.model_copy(update={"protect": protect}))
        case "the original itself" | "was told as":
            left(order, PICTURE)
            document = json.loads((lies_in / returned.TOLD).read_bytes())
            document["outcome"]["verdict"] = "protected"
            receipt = (lies_in / "receipt.json").read_bytes()
            if wrong == "the original itself":
                receipt = receipt.replace(b"unprotected", b"protected")
            (lies_in / "receipt.json").write_bytes(receipt)
            document["digests"]["receipt.json"] = hashlib.sha256(receipt).hexdigest()
            (lies_in / returned.TOLD).write_text(json.dumps(document))
        case "another order":
            left(replace(order, lease=2), PICTURE)
            returned.folder(tmp_path, 2).rename(lies_in)
    with pytest.raises(JobError, match=wrong) as raised:
        returned.check(order, no_progress)
    assert raised.value.retryable, "another node may return what it should"
    assert not (tmp_path / "output").exists()


@pytest.fixture
def checkers() -> Iterator[Checkers]:
    made = Checkers()
    yield made
    made.close()


def test_a_check_that_is_killed_is_made_again(checkers: Checkers, tmp_path: Path) -> None:
    ordered = list[Order]()
    for number in range(2):
        spool = tmp_path / str(number)
        spool.mkdir()
        (spool / "input").write_bytes(PICTURE)
        ordered.append(Order(number, 1, spool, "p.png", (), configured(tmp_path)))
        left(ordered[-1], PICTURE)
        checkers.add(ordered[-1])
    assert checkers.step() == []
    checkers._children[0]._process.kill()  # before it has begun with one of them
    done: list[Outcome] = []

    def all_done() -> bool:
        done.extend(checkers.step())
        return len(done) == len(ordered)

    wait_for(all_done)
    assert {type(outcome) for outcome in done} == {Finished}
    assert (tmp_path / "1" / "output").read_bytes() == PICTURE


def test_a_check_that_was_interrupted_can_be_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = Order(7, 3, tmp_path, "p.png", (), configured(tmp_path))
    (tmp_path / "input").write_bytes(PICTURE)
    (tmp_path / "output").write_bytes(b"of the start before")
    outcome = left(order, PICTURE)
    moves = 0
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        nonlocal moves
        moves += 1
        if moves == 2:
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            returned.check(order, no_progress)
    assert returned.check(order, no_progress) == outcome, "half of the files had been moved"
    assert returned.check(order, no_progress) == outcome, "all had, and nobody had heard of it"
    assert (tmp_path / "output").read_bytes() == PICTURE


def test_a_node_does_not_decide_what_becomes_of_a_weak_result(tmp_path: Path) -> None:
    order = Order(7, 3, tmp_path, "p.png", (), configured(tmp_path))
    (tmp_path / "input").write_bytes(PICTURE)
    wanted = left(order, PICTURE)
    told = returned.folder(tmp_path, 3) / returned.TOLD
    document = json.loads(told.read_bytes())
    document["outcome"] |= {"on_weak": "fail", "on_none": "publish", "worked_as": "other.png"}
    told.write_text(json.dumps(document))
    assert returned.check(order, no_progress) == wanted


@pytest.mark.parametrize("wrong", ["told", "no receipt", "receipt", "output", "extension", "type"])
def test_what_cannot_be_read_blames_the_node_and_not_the_picture(tmp_path: Path, wrong: str) -> None:
    order = Order(7, 3, tmp_path, "p.png", (), configured(tmp_path))
    (tmp_path / "input").write_bytes(PICTURE)
    left(order, PICTURE)
    lies_in = returned.folder(tmp_path, 3)
    document = json.loads((lies_in / returned.TOLD).read_bytes())
    match wrong:
        case "told":
            (lies_in / returned.TOLD).write_bytes(b"[" * 100_000)
        case "no receipt":
            (lies_in / "receipt.json").unlink()
            del document["digests"]["receipt.json"]
        case "receipt":
            (lies_in / "receipt.json").write_bytes(b"[]")
            document["digests"]["receipt.json"] = hashlib.sha256(b"[]").hexdigest()
        case "output":
            (lies_in / "output").unlink()
        case "extension":
            document["outcome"]["extension"] = "/../../x.png"
        case "type":
            document["outcome"]["timings_s"] = ["long"]
    if wrong != "told":
        (lies_in / returned.TOLD).write_text(json.dumps(document))
    with pytest.raises(JobError, match="what the cluster returned") as raised:
        returned.check(order, no_progress)
    assert raised.value.retryable


def test_files_that_do_not_fit_on_the_disk_leave_nothing_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = Order(7, 3, tmp_path, "p.png", (), configured(tmp_path))

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        left(order, PICTURE)
    assert not returned.folder(tmp_path, 3).exists()


@pytest.mark.parametrize(
    "came",
    [
        None,
        ({}, {}),
        ({"outcome": protocol.to_json(protocol.GivenBack(7, 3)), "digests": {}}, {}),
        ({"outcome": protocol.to_json(protocol.Failed(7, 2, Code.INTERNAL, "")), "digests": {}}, {}),
        ({"outcome": protocol.to_json(protocol.Failed(7, 3, Code.INTERNAL, "")), "digests": None}, {}),
        ({"outcome": protocol.to_json(protocol.Failed(7, 3, Code.INTERNAL, "")), "digests": {}}, {"a": 1}),
    ],
    ids=str,
)
def test_what_no_worker_returns_is_not_passed_on(came: object) -> None:
    with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
        returned.understood(came, 7, 3)


def hang_at_p(order: Order, progress: Callable[[str, int, int], None]) -> Finished:
    """A check that never ends for one picture."""
    progress("check", 0, 1)
    if order.name == "p.png":
        time.sleep(3600)
    return finished(order, PICTURE)


def test_a_check_that_hangs_ends_and_others_do_not_pay_for_it(
    checkers: Checkers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "MOST", 1)
    monkeypatch.setattr(checks, "CHECK_S", 3.0)
    monkeypatch.setattr(returned, "check", hang_at_p)
    for number, name in enumerate(("p.png", "q.png")):
        spool = tmp_path / str(number)
        spool.mkdir()
        checkers.add(Order(number, 1, spool, name, (), configured(tmp_path)))
    done: list[Outcome] = []
    wait_for(lambda: done.extend(checkers.step()) or len(done) == 2)  # type: ignore[func-returns-value]
    first, second = sorted(done, key=lambda outcome: outcome.job)
    assert isinstance(first, Interrupted)
    assert "hung for 3 s" in first.reason
    assert isinstance(second, Finished)


def test_a_held_picture_keeps_its_result_and_nothing_that_came_late(tmp_path: Path) -> None:
    order = Order(7, 3, tmp_path, "p.png", (), configured(tmp_path))
    (tmp_path / "input").write_bytes(PICTURE)
    left(replace(order, lease=2), PICTURE)  # of a start before, whose actor was taken for lost
    left(order, PICTURE)
    returned.check(order, no_progress)
    Spool(tmp_path).keep_result()
    kept = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert kept == {"output", "receipt.json"}


def test_a_check_for_which_no_process_can_be_started_waits(
    checkers: Checkers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    order = Order(7, 3, tmp_path, "p.png", (), configured(tmp_path))
    (tmp_path / "input").write_bytes(PICTURE)
    left(order, PICTURE)
    with monkeypatch.context() as patch:
        patch.setattr(checks, "Child", refuse)
        checkers.add(order)
        assert checkers.step() == []
    (outcome,) = wait_for(checkers.step)
    assert isinstance(outcome, Finished)


def test_a_check_has_the_memory_that_a_worker_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    allowed = list[int]()

    def start(memory_mb: int, process: object) -> None:
        allowed.append(memory_mb)
        raise MemoryError

    monkeypatch.setattr(checks, "Child", start)
    made = Checkers(memory_mb=4000)
    made.add(Order(7, 3, tmp_path, "p.png", (), configured(tmp_path)))
    with pytest.raises(MemoryError):
        made.step()
    assert allowed == [4000]
