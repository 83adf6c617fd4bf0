"""structlog set-up: pretty on a terminal, JSON lines off one. Logs go to stderr; stdout is for results."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress

import structlog


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
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([] if pretty else [structlog.processors.format_exc_info]),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        # Looked up at each call, so that a progress display may redirect stderr.
        logger_factory=_Logger,
        cache_logger_on_first_use=False,
    )


class _Logger:
    """Writes to whatever sys.stderr is now; a closed pipe costs a line, never the daemon."""

    def __init__(self, *_: object) -> None:
        pass

    def msg(self, message: str) -> None:
        with suppress(OSError, ValueError):
            print(message, file=sys.stderr, flush=True)

    log = debug = info = warning = warn = error = critical = exception = fatal = msg
