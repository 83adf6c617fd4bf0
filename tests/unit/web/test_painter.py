"""What is kept of painted pictures, and that nobody waits there for a picture that hangs."""

from __future__ import annotations

import struct
import threading
import time
import zlib
from collections.abc import Sequence

import pytest
from PIL import Image

from backfire import imaging
from backfire.web import paint
from backfire.web.painter import AGAIN_S, Painter
from tests.support.pictures import encoded, photo, turned


def test_a_picture_that_hangs_blocks_none_that_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    paints, begun, ends = Painter(), threading.Event(), threading.Event()

    def hangs(order: bytes, files: Sequence[int]) -> bytes | None:
        begun.set()
        ends.wait(60)
        return None

    monkeypatch.setattr(paints, "_asked", hangs)
    paints._keep(("a",), b"small")
    other = threading.Thread(target=paints.paint, args=("thumbnail", []))
    other.start()
    found: list[tuple[bool, bytes | None]] = []
    reader = threading.Thread(target=lambda: found.append(paints.kept(("a",))), daemon=True)
    try:
        assert begun.wait(60)
        reader.start()
        reader.join(10)
        assert found == [(True, b"small")]
    finally:
        ends.set()
        other.join()


def test_what_could_not_be_painted_is_tried_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    paints, now = Painter(), time.monotonic()
    monkeypatch.setattr("backfire.web.painter.time.monotonic", lambda: now)
    assert paints.kept(("a",)) == (False, None)
    paints._keep(("a",), None)
    paints._keep(("b",), b"small")
    assert paints.kept(("a",)) == (True, None)
    now += AGAIN_S + 1  # more than rounding takes away
    assert paints.kept(("a",)) == (False, None)
    assert paints.kept(("b",)) == (True, b"small")


def test_what_two_ask_for_at_the_same_time_is_painted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    paints, asked, in_line = Painter(), [], threading.Semaphore(0)
    found: list[bytes | None] = []

    def slow(order: bytes, files: Sequence[int]) -> bytes | None:
        asked.append(order)
        if len(asked) == 1:  # until all three are in: one that came later would find what is kept
            assert all(in_line.acquire(timeout=60) for _ in range(3))
        return b"small"

    def ask() -> None:
        assert paints.kept(("a",)) == (False, None)
        in_line.release()
        found.append(paints.paint("thumbnail", [], key=("a",)))

    monkeypatch.setattr(paints, "_asked", slow)
    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (found, len(asked)) == ([b"small"] * 3, 1)


@pytest.mark.parametrize("kind", ["WEBP", "PNG", "profile", "AVIF", "late"])
def test_only_a_picture_that_is_to_be_turned_is_decoded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def file(orientation: int) -> bytes:
        exif = Image.Exif()
        exif[0x0112] = orientation
        if kind != "late":
            return encoded(photo((160, 120)), "PNG" if kind == "profile" else kind, exif=exif)
        body = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
        plain = encoded(photo((160, 120)), "PNG")
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        return plain[:-12] + chunk + plain[-12:]  # behind the pixels

    sideways = file(6) if kind == "late" else turned(photo((160, 120)), kind)
    assert paint.turned(sideways)[:3] == b"\xff\xd8\xff"
    monkeypatch.setattr(imaging, "decode", None)
    assert paint.turned(file(1)) == b""
