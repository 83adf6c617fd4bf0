"""The set-up of structlog: lines for people on a terminal, JSON lines elsewhere, always on stderr.

Repeated warnings and errors are held back (`RateLimit`), so that a fault that affects ten thousand
pictures does not fill the disk. The line of each finished job is always written.
"""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import structlog

from backfire.types import duration, printable

JOB = "job"
"""The event of a finished job, whose line is never left out."""
OF_STATE = {"review": "held for you", "quarantined": "failed and set aside", "skipped": "left out"}
"""What became of a picture, where its state does not say it."""
BURST, WINDOW_S = 10, 60.0
"""How many warnings or errors of one name are written within how many seconds."""


def setup(*, pretty: bool | None = None, level: int = logging.INFO) -> None:
    """Configure structlog for this process.

    Args:
        pretty: write for people rather than programs; None asks whether stderr is a terminal.
        level: the least level that is written.
    """
    on_terminal = sys.stderr.isatty()
    pretty = on_terminal if pretty is None else pretty
    renderer: structlog.typing.Processor = (
        ForPeople(colours=on_terminal) if pretty else structlog.processors.JSONRenderer(ensure_ascii=False)
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
        event = str(event_dict.get("event"))
        if event != JOB and method in ("warning", "warn", "error", "exception", "critical"):
            self._seen[event] += 1
            if self._seen[event] > self._burst:
                raise structlog.DropEvent
        return event_dict


class ForPeople:
    """Writes the end of a job, what is no picture and a stop as sentences; all else as structlog does.

    A key without a value is left out.

    Args:
        colours: whether the lines may be coloured.
    """

    def __init__(self, *, colours: bool) -> None:
        self._other = structlog.dev.ConsoleRenderer(colors=colours)

    def __call__(
        self, logger: object, method: str, event_dict: structlog.typing.EventDict
    ) -> str | bytes | bytearray | tuple[object, ...]:
        """A structlog renderer."""
        told = {key: value for key, value in event_dict.items() if value is not None}
        match told.get("event"):
            case "job":
                sentence = of_job(told)
            case "stopping":
                sentence = "stopping; nothing is lost"
            case "no_picture":
                unnamed = told["count"] - len(told["paths"])
                names = ", ".join(told["paths"]) + (f" and {unnamed} more" if unnamed else "")
                sentence = printable(f"{names}: {told['reason']}")
            case "drained":
                name = printable(str(told.get("path")))
                again = "is done again after the next start" if told.get("again") else "is finished"
                sentence = f"{name}: {again}"
            case _:
                return self._other(logger, method, told)
        dropped = [f"{count} lines {printable(event)}" for event, count in told.get("suppressed", {}).items()]
        more = f" (left out before: {', '.join(dropped)})" if dropped else ""
        return f"{time.strftime('%H:%M:%S')}  {sentence}{more}"


def of_job(told: Mapping[str, Any]) -> str:
    """The line of a finished job for people: the picture, what became of it, how long, and what to do.

    Args:
        told: the keys of the line that have a value.
    """
    name, state = str(told.get("path")), str(told.get("state"))
    became = str(told.get("verdict", "published")) if state == "archived" else OF_STATE.get(state, state)
    words = [f"{name}: {became}"]
    if (worked := told.get("worked_s")) is not None:
        words.append(f"worked on for {duration(worked)}")
    if (seconds := told.get("seconds")) is not None:
        words.append(f"{duration(seconds)} after it was found")
    line, said = ", ".join(words), told.get("message", told.get("reason", ""))
    if state == "archived" and said:
        said = f"{told.get('sentence', said)} backfire explain {shlex.quote(name)} says what to do."
    return printable(f"{line}. {said}".rstrip())


class _Logger:
    """Writes to what sys.stderr is at the moment; a closed pipe loses lines and does not stop the daemon."""

    def __init__(self, *_: object) -> None:
        pass

    def msg(self, message: str) -> None:
        with suppress(OSError, ValueError):
            print(message, file=sys.stderr, flush=True)

    log = debug = info = warning = warn = error = critical = exception = fatal = msg
