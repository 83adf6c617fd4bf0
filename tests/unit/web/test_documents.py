"""Answers with files: each file is closed, whatever becomes of its answer."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from starlette.types import Message

from backfire.web.documents import Sent


@pytest.mark.parametrize("sends", [0, 1, 9])
def test_a_file_is_closed_wherever_its_answer_ends(tmp_path: Path, sends: int) -> None:
    """The browser is gone before it begins, in the middle, or not at all."""
    (tmp_path / "a").write_bytes(bytes(200_000))
    descriptor = os.open(tmp_path / "a", os.O_RDONLY)
    left = sends

    async def send(_: Message) -> None:
        nonlocal left
        if not left:
            raise ConnectionResetError
        left -= 1

    async def receive() -> Message:
        await asyncio.sleep(9)
        return {"type": "http.disconnect"}

    async def answer() -> None:
        scope = {"type": "http", "asgi": {"spec_version": "2.4"}, "extensions": {}}
        await Sent(os.fdopen(descriptor, "rb"))(scope, receive, send)

    if sends < 9:
        with pytest.raises(Exception):  # noqa: B017 (which one is up to the framework)
            asyncio.run(answer())
    else:
        asyncio.run(answer())
        assert left < sends
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
