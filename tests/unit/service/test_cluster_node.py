"""What runs on a node, and what the errors of Ray mean; no cluster is needed."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="needs the extra ray")

from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
)

from backfire import __version__
from backfire.service.worker import answers, node, orders, protocol, returned
from backfire.service.worker.protocol import Failed, Finished, GivenBack, Hindered, Interrupted, Order
from benchmarks import passthrough
from tests.support.desk import PICTURE, configured

Raised = type[Failed | Interrupted | GivenBack]


class Actor(node.Actor):
    """An actor without a cluster, whose work is to return the picture."""

    process = staticmethod(passthrough.process)

    def prepare(self) -> None:
        pass

    def name(self) -> str:
        return "host-1"


def order(base: Path) -> dict[str, Any]:
    packed = orders.packed(Order(7, 3, base, "p.png", (), configured(base)))
    return dict(json.loads(json.dumps(packed)))


def test_an_actor_returns_what_the_driver_understands(tmp_path: Path) -> None:
    told, files = returned.understood(Actor(__version__).work(order(tmp_path), PICTURE, []), 7, 3)
    assert isinstance(protocol.from_json(told["outcome"]), Finished)
    assert files["output"] == PICTURE


def test_a_node_whose_disk_is_full_is_hindered_and_the_picture_does_not_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", full)
    told, files = Actor(__version__).work(order(tmp_path), PICTURE, [])
    outcome = protocol.from_json(told["outcome"])
    assert isinstance(outcome, Hindered)
    assert "host-1" in outcome.message
    assert "No space left" in outcome.message
    assert not files


def raised_there(cause: Exception) -> RayError:
    """What Ray raises here for what was raised on a node: it is of both classes."""
    error = RayTaskError("work", "Traceback\nthe last line", cause).as_instanceof_cause()
    assert isinstance(error, type(cause))
    return error


@pytest.mark.parametrize(
    ("error", "expected", "said"),
    [
        (raised_there(ValueError("a bug")), Failed, "the last line"),
        (raised_there(TimeoutError("of a socket there")), Failed, "the last line"),
        (raised_there(OSError(5, "Input/output error")), Failed, "the last line"),
        (OutOfMemoryError("killed"), Interrupted, "ran out of memory"),
        (ActorDiedError(), GivenBack, "died unexpectedly"),
        (NodeDiedError("its heartbeat is missing"), GivenBack, "heartbeat"),
        (ObjectLostError("0" * 56, None, ""), GivenBack, "its node or its files"),
        (ActorUnavailableError("reset", None), GivenBack, "unavailable"),
        (RayError(), GivenBack, "RayError"),
    ],
)
def test_what_an_error_of_ray_means(error: RayError, expected: Raised, said: str) -> None:
    outcome = answers.outcome(error, 7, 3)
    assert type(outcome) is expected
    assert said in str(getattr(outcome, "message", None) or getattr(outcome, "reason", None))


def test_a_process_that_died_is_the_picture_s_doing() -> None:
    error = ActorDiedError()
    error.error_msg = (
        "The actor died\nThe actor is dead because its worker process has died. Some common causes include: …"
    )
    outcome = answers.outcome(error, 7, 3)
    assert outcome == Interrupted(
        7, 3, "worker died: The actor is dead because its worker process has died.", killed=True
    )


def test_what_a_node_says_is_cut() -> None:
    outcome = answers.outcome(RayTaskError("work", "x" * 1_000_000, ValueError()), 7, 3)
    assert isinstance(outcome, Failed)
    assert len(outcome.message) == answers.SAID_MAX
