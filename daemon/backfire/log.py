"""The set-up of structlog: coloured lines on a terminal, JSON lines elsewhere, always on stderr.

Repeated warnings and errors are held back (`RateLimit`), so that a fault that affects ten thousand
pictures does not fill the disk. The line of each finished job is `info` and is always written.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import structlog

BURST, WINDOW_S = 10, 60.0
"""How many warnings or errors of one name are written within how many seconds."""


def setup(*, pretty: bool | None = None, level: int = logging.INFO) -> None:
    """Configure structlog for this process; `pretty=None` asks whether stderr is a terminal."""
    if pretty is None:
        pretty = sys.stderr.isatty()
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if pretty else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            RateLimit(),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([] if pretty else [structlog.processors.format_exc_info]),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        # stderr is looked up at each call, because a progress bar replaces it.
        logger_factory=_Logger,
        cache_logger_on_first_use=False,
    )


class RateLimit:
    """Lets `burst` warnings or errors of one name pass in `window_s` seconds and drops further ones.

    The first line of any kind after the window says how many were dropped, as
    `suppressed: {event: count}`.
    """

    def __init__(
        self,
        burst: int = BURST,
        window_s: float = WINDOW_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._burst, self._window_s, self._monotonic = burst, window_s, monotonic
        self._began = monotonic()
        self._seen: Counter[str] = Counter()

    def __call__(
        self, _: object, method: str, event_dict: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        """A structlog processor.

        Raises:
            structlog.DropEvent: the line is to be dropped.
        """
        now = self._monotonic()
        if now - self._began >= self._window_s:
            dropped = {event: count - self._burst for event, count in self._seen.items()}
            suppressed = {event: count for event, count in dropped.items() if count > 0}
            self._began = now
            self._seen.clear()
            if suppressed:
                event_dict = {**event_dict, "suppressed": suppressed}
        if method in ("warning", "warn", "error", "exception", "critical"):
            event = str(event_dict.get("event"))
            self._seen[event] += 1
            if self._seen[event] > self._burst:
                raise structlog.DropEvent
        return event_dict


class _Logger:
    """Writes to what sys.stderr is at the moment; a closed pipe loses lines and does not stop the daemon."""

    def __init__(self, *_: object) -> None:
        pass

    def msg(self, message: str) -> None:
        with suppress(OSError, ValueError):
            print(message, file=sys.stderr, flush=True)

    log = debug = info = warning = warn = error = critical = exception = fatal = msg
