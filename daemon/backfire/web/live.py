"""Tells open pages that something has changed: one watcher of the database for all of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from starlette.concurrency import run_in_threadpool

LOOK_S = 0.5
"""Between two looks at the database."""
KEEP_ALIVE_S = 15.0
"""Proxies close a connection that is silent for a minute or so."""
CLIENTS_MAX = 256


class Live:
    """Watches the database while anybody listens.

    Args:
        version: gives a text that differs whenever what pages show has changed; called in a thread.
    """

    def __init__(self, version: Callable[[], str]) -> None:
        self._read = version
        self._changed = asyncio.Condition()
        self._clients = 0
        self._watcher: asyncio.Task[None] | None = None
        self._closing = False
        self.version = ""

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events for one client: the version now, then each new one."""
        self._clients += 1
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.create_task(self._watch())
        told = None
        try:
            yield b"retry: 1000\n\n"
            while not self._closing:
                if self.version and told != self.version:
                    told = self.version
                    yield f"data: {told}\n\n".encode()
                elif not await self._wait(told):
                    yield b": still here\n\n"
        finally:
            self._clients -= 1

    @property
    def is_full(self) -> bool:
        """Whether no further client is listened to."""
        return self._clients >= CLIENTS_MAX

    async def close(self) -> None:
        """End all streams."""
        self._closing = True
        async with self._changed:
            self._changed.notify_all()
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher

    async def _wait(self, told: str | None) -> bool:
        """Wait for another version; False if there was none for a while."""
        async with self._changed:
            try:
                await asyncio.wait_for(
                    self._changed.wait_for(lambda: self._closing or told != self.version), KEEP_ALIVE_S
                )
            except TimeoutError:
                return False
        return True

    async def _watch(self) -> None:
        while self._clients:
            found = await run_in_threadpool(self._read)
            if found != self.version:
                self.version = found
                async with self._changed:
                    self._changed.notify_all()
            await asyncio.sleep(LOOK_S)
