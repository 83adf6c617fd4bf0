"""Asks a helper process to decode pictures: for thumbnails, for files that browsers do not show, for masks.

One helper at a time lives for as long as it is asked now and then. It gets open files and no paths; one that
dies or hangs on a picture costs that answer alone.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

ANSWER_S = 60.0
"""How long a picture may take."""
IDLE_S = 30.0
"""How long the helper waits for the next picture before it ends."""
KEPT_BYTES = 6_000_000
"""How much of what was painted is kept."""
AGAIN_S = 600.0
"""After how long a picture that could not be painted is tried again: the machine may have been busy."""
HEAD = 9


class Painter:
    """Paints pictures in the helper; safe to call from several threads, which then wait for each other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keeping = threading.Lock()
        """For what is kept, so that nobody waits there for a picture that is being painted."""
        self._helper: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._kept: OrderedDict[tuple[Any, ...], tuple[bytes | None, float]] = OrderedDict()
        self._size = 0

    def paint(
        self, what: str, files: Sequence[int], *, key: tuple[Any, ...] | None = None, **more: Any
    ) -> bytes | None:
        """A picture file, made from others; None where that is not possible.

        Args:
            what: the name of a function of `paint`.
            files: descriptors of open files; they stay open.
            key: under which it is kept; without one it is not.
            more: its other arguments, as JSON.
        """
        with self._lock:
            if key is None:
                return self._painted(what, files, more)
            known, picture = self.kept(key)  # another one may have asked for it in the meantime
            if not known:
                picture = self._painted(what, files, more)
                self._keep(key, picture)
            return picture

    def _painted(self, what: str, files: Sequence[int], more: Mapping[str, Any]) -> bytes | None:
        for _ in range(2):  # the helper may just have ended, since nobody had asked for a while
            try:
                return self._asked(json.dumps([what, more]).encode(), files)
            except EOFError:
                self._end()
            except OSError:
                self._end()
                return None
        return None

    def kept(self, key: tuple[Any, ...]) -> tuple[bool, bytes | None]:
        """Whether something was kept under a key, and what."""
        with self._keeping:
            picture, at = self._kept.get(key, (None, -AGAIN_S))
            if picture is None and time.monotonic() - at >= AGAIN_S:
                return False, None
            self._kept.move_to_end(key)
            return True, picture

    def _keep(self, key: tuple[Any, ...], picture: bytes | None) -> None:
        """Keep a picture, or for a while that there is none, in place of those asked for longest ago."""
        with self._keeping:
            former, _ = self._kept.get(key, (None, 0.0))
            self._size += len(picture or b"") - len(former or b"")
            self._kept[key] = picture, time.monotonic()
            while self._size > KEPT_BYTES or len(self._kept) > 4096:
                _, (old, _) = self._kept.popitem(last=False)
                self._size -= len(old or b"")

    def close(self) -> None:
        """End the helper."""
        with self._lock:
            self._end()

    def _asked(self, order: bytes, files: Sequence[int]) -> bytes | None:
        helper = self._started()
        try:
            message = len(order).to_bytes(4, "big") + order
            sent = socket.send_fds(helper, [message], list(files))
            helper.sendall(message[sent:])
        except (BrokenPipeError, ConnectionError) as error:
            raise EOFError from error
        head = _exactly(helper, HEAD)
        body = _exactly(helper, int.from_bytes(head[1:], "big"))
        return body if head[:1] == b"+" else None

    def _started(self) -> socket.socket:
        if self._socket is None:
            ours, theirs = socket.socketpair()
            with theirs:
                self._helper = subprocess.Popen(
                    [sys.executable, "-m", "backfire.web.paint", str(theirs.fileno()), str(IDLE_S)],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                )
            ours.settimeout(ANSWER_S)
            self._socket = ours
        return self._socket

    def _end(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._helper is not None:
            with suppress(ProcessLookupError):
                self._helper.kill()
            self._helper.wait()
        self._helper = self._socket = None


def _exactly(connection: socket.socket, count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        piece = connection.recv(min(count - len(found), 1 << 20))
        if not piece:
            raise EOFError
        found += piece
    return bytes(found)
