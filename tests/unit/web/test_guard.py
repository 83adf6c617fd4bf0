"""The token: what it lets through, and that there is no way in without one."""

from __future__ import annotations

import hashlib
import hmac
import time
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.responses import Response

from backfire.web.guard import COOKIE_S, TOKEN_FILE, Guard, token


def request(cookie: str) -> Request:
    return Request({"type": "http", "headers": [(b"cookie", cookie.encode())]})


def forged(key: bytes, what: str, number: str) -> str:
    return hmac.new(key, f"{what}:{number}".encode(), hashlib.sha256).hexdigest()


@pytest.mark.parametrize("content", [None, b"", b"\n", b"half a tok"])
def test_without_a_token_nobody_is_let_in(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / TOKEN_FILE).write_bytes(content)
    key, guard = (content or b"").strip(), Guard(tmp_path)
    number = f"{int(time.time())}-1"
    asked = request(f"backfire={number}.{forged(key, 'session', number)}")
    assert guard.session(asked) == ""
    assert not guard.may_post(asked, forged(key, "form", number))
    assert not guard.knows(key.decode())


@pytest.mark.parametrize("content", [b"", b"half a tok"])
def test_a_token_that_was_written_by_half_is_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / TOKEN_FILE).write_bytes(content)
    made = token(tmp_path)
    assert len(made) == 32
    assert token(tmp_path) == made
    assert [file.name for file in tmp_path.iterdir()] == [TOKEN_FILE]


def test_a_session_ends_after_its_time_whatever_the_browser_keeps(tmp_path: Path) -> None:
    key, now = token(tmp_path).encode(), 1_000_000.0
    guard = Guard(tmp_path, lambda: now)
    response = Response()
    guard.let_in(response, secure=False)
    asked = request(response.headers["set-cookie"].partition(";")[0])
    now += COOKIE_S - 1
    session = guard.session(asked)
    form = guard.form_key(session)
    assert guard.may_post(asked, form)
    now += 1
    assert guard.session(asked) == ""
    assert not guard.may_post(asked, form)
    for other in ("1", "x-1", f"{int(now) + 9}x-1"):  # the first is that of an earlier version
        assert guard.session(request(f"backfire={other}.{forged(key, 'session', other)}")) == ""


def test_a_new_token_ends_the_sessions_of_a_page_that_runs(tmp_path: Path) -> None:
    first, guard = token(tmp_path), Guard(tmp_path)
    response = Response()
    guard.let_in(response, secure=False)
    asked = request(response.headers["set-cookie"].partition(";")[0])
    assert guard.session(asked)
    second = token(tmp_path, new=True)
    assert guard.session(asked) == ""
    assert (guard.knows(first), guard.knows(second)) == (False, True)
