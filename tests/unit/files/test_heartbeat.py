"""Long steps on files report a heartbeat, piece by piece."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from backfire.files import durable, inbox


@pytest.fixture
def beats() -> Iterator[list[int]]:
    told: list[int] = []
    stop = durable.on_heartbeat(lambda: told.append(1))
    yield told
    stop()
    told.clear()
    durable.heartbeat()
    assert told == [], "the listener was removed"


def test_a_digest_reports_a_heartbeat_at_each_piece(beats: list[int]) -> None:
    data = os.urandom(3 * durable.PIECE + 5)
    assert durable.digest(io.BytesIO(data)) == hashlib.sha256(data).hexdigest()
    assert len(beats) == 4
    assert durable.digest(io.BytesIO()) == hashlib.sha256().hexdigest()


def test_large_files_are_synced_repeatedly_while_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beats: list[int]
) -> None:
    monkeypatch.setattr(durable, "SYNCED", 100)
    synced: list[int] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    with (tmp_path / "copy").open("wb") as file:
        durable.write(file, [b"x" * 60] * 5)
    assert synced == [120, 240, 300], "the end of the file is synced, too"
    assert len(beats) == 3
    assert (tmp_path / "copy").read_bytes() == b"x" * 300


def test_a_scan_reports_heartbeats(tmp_path: Path, beats: list[int]) -> None:
    for number in range(2500):
        (tmp_path / f"{number}.png").touch()
    assert len(inbox.scan(tmp_path, []).files) == 2500
    assert len(beats) >= 2
