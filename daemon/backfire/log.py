"""structlog set-up: pretty on a terminal, JSON lines off one. Logs go to stderr; stdout is for results.

Warnings and errors that repeat are held back (`RateLimit`), so that a fault that hits ten thousand
pictures fills no disk; the line of each job is `info` and always stands.
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
        # Looked up at each call, so that a progress display may redirect stderr.
        logger_factory=_Logger,
        cache_logger_on_first_use=False,
    )


class RateLimit:
    """Lets `burst` warnings or errors of one name pass in `window_s` seconds and drops further ones.

    How many were dropped is told by the first line of any kind after their window, as
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
            structlog.DropEvent: the line is one too many.
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
    """Writes to whatever sys.stderr is now; a closed pipe costs a line, never the daemon."""

    def __init__(self, *_: object) -> None:
        pass

    def msg(self, message: str) -> None:
        with suppress(OSError, ValueError):
            print(message, file=sys.stderr, flush=True)

    log = debug = info = warning = warn = error = critical = exception = fatal = msg
