"""The pipe between daemon and driver: neither end waits for the other, and no message is believed."""

from __future__ import annotations

import json
import multiprocessing
import os
import struct
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest

from backfire.service.worker import pipe
from backfire.service.worker.pipe import DaemonsEnd, DriversEnd
from tests.support.sandbox import wait_for

Pair = tuple[DaemonsEnd, Connection]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """The daemon's end with little patience, and what a driver holds."""
    ours, theirs = multiprocessing.Pipe()
    yield DaemonsEnd(ours, patience_s=0.2), theirs
    ours.close()
    theirs.close()


def test_a_driver_that_does_not_read_does_not_stop_the_daemon(pair: Pair) -> None:
    ours, _ = pair
    began = time.monotonic()
    for _ in range(200):
        ours.send({"order": "x" * 10_000})
    assert time.monotonic() - began < 2, "only the first one that did not fit waited"
    assert ours.broken == "does not read what it is sent"
    assert ours.receive() == []


def test_a_driver_that_stops_in_the_midst_of_a_message_does_not_stop_the_daemon(pair: Pair) -> None:
    ours, theirs = pair
    theirs.send_bytes(json.dumps({"beat": ""}).encode())
    os.write(theirs.fileno(), struct.pack("!i", 100) + b'{"actor": ')
    assert ours.receive() == [{"beat": ""}], "what came whole counts"
    assert ours.broken == "stopped in the midst of a message"


def test_a_driver_that_dies_in_the_midst_of_a_message_loses_only_that(pair: Pair) -> None:
    ours, theirs = pair
    theirs.send_bytes(json.dumps({"beat": ""}).encode())
    os.write(theirs.fileno(), struct.pack("!i", 100) + b'{"actor": ')
    theirs.close()
    assert ours.receive() == [{"beat": ""}]
    assert ours.broken == "has ended"


@pytest.mark.parametrize(
    "sent", [b"no JSON", b"\xff", b"[1]", b"[" * 100_000, struct.pack("!i", pipe.MESSAGE_MAX + 1)]
)
def test_what_is_no_message_breaks_the_pipe_and_nothing_else(pair: Pair, sent: bytes) -> None:
    ours, theirs = pair
    theirs.send_bytes(json.dumps({"beat": ""}).encode())
    if sent[0]:
        theirs.send_bytes(sent)
    else:
        os.write(theirs.fileno(), sent)  # the head of a message that would fill the memory
    assert ours.receive() == [{"beat": ""}]
    assert ours.broken.startswith("sends ")


def test_a_flood_of_messages_is_taken_in_by_portions(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe, "TOGETHER", 10)
    ours, theirs = pair
    for number in range(15):
        theirs.send_bytes(json.dumps({"actor": number}).encode())
    assert [len(ours.receive()), len(ours.receive())] == [10, 5]


def test_neither_end_waits_for_the_other_if_both_send_more_than_a_pipe_holds() -> None:
    ours, theirs = multiprocessing.Pipe()
    daemon, driver = DaemonsEnd(ours), DriversEnd(theirs)
    heard = list[pipe.Message | None]()
    began = time.monotonic()
    for number in range(300):
        driver.send({"actor": number, "report": "x" * 10_000})
    driver.listen(heard.append)
    for number in range(300):
        daemon.send({"actor": number, "order": "x" * 10_000})
    assert time.monotonic() - began < pipe.PATIENCE_S
    got = list[pipe.Message]()
    wait_for(lambda: got.extend(daemon.receive()) or len(got) == 300)  # type: ignore[func-returns-value]
    wait_for(lambda: len(heard) == 300)
    assert not daemon.broken
    ours.close()
    wait_for(lambda: heard[-1] is None, because="the driver to hear that the daemon is gone")
    driver.close()
