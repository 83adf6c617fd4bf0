"""The texts of the page, in English and German. What the daemon writes (messages, reasons) stays as it wrote
it.
"""

from __future__ import annotations

import time
import tomllib
import unicodedata
from collections.abc import Callable
from pathlib import Path

LANGUAGES = ("en", "de")

_FOUND = tomllib.loads(Path(__file__).with_name("texts.toml").read_text(encoding="utf-8"))
TEXTS: dict[str, dict[str, str]] = _FOUND["text"]
"""Key → language → text."""


def plain(text: object) -> str:
    """A text with its invisible characters made visible, such as those that turn the direction of writing."""
    text = str(text)
    if text.isprintable():  # nearly all are, and a page holds thousands
        return text
    return "".join(
        f"⟨{ord(one):04X}⟩" if unicodedata.category(one) in ("Cc", "Cf", "Zl", "Zp", "Co", "Cs") else one
        for one in text
    )


MONTHS = ("Jan.", "Feb.", "März", "Apr.", "Mai", "Juni", "Juli", "Aug.", "Sep.", "Okt.", "Nov.", "Dez.")


class Words:
    """The texts in one language.

    Args:
        language: one of `LANGUAGES`.
        now: wall clock, Unix seconds.
    """

    def __init__(self, language: str, now: Callable[[], float] = time.time) -> None:
        self.language = language
        self._now = now

    def __call__(self, key: str, **values: object) -> str:
        """The text of a key, filled with values; a key without a text is shown as it is."""
        texts = TEXTS.get(key)
        return texts[self.language].format(**values) if texts else key.replace("_", " ")

    def number(self, value: float, digits: int = 0) -> str:
        """A number with separators for thousands."""
        text = f"{value:,.{digits}f}"
        return text if self.language == "en" else text.translate(str.maketrans(",.", ".,"))

    def share(self, value: float) -> str:
        """A share of 1 in percent."""
        return f"{100 * value:.0f}%" if self.language == "en" else f"{100 * value:.0f} %"

    def clock(self, at: float) -> str:
        """A time of day, with the date where it is another one than today."""
        moment, today = time.localtime(at), time.localtime(self._now())
        hour = time.strftime("%H:%M", moment)
        if moment[:3] == today[:3]:
            return hour
        year = "" if moment.tm_year == today.tm_year else f" {moment.tm_year}"
        if self.language == "en":
            return f"{moment.tm_mday} {time.strftime('%b', moment)}{year}, {hour}"
        return f"{moment.tm_mday}. {MONTHS[moment.tm_mon - 1]}{year}, {hour}"

    def moment(self, at: float) -> str:
        """Date and time to the second."""
        pattern = "%Y-%m-%d %H:%M:%S" if self.language == "en" else "%d.%m.%Y %H:%M:%S"
        return time.strftime(pattern, time.localtime(at))

    def duration(self, seconds: float) -> str:
        """A length of time in its largest fitting unit."""
        if seconds < 10:
            return f"{self.number(seconds, 1)} s"
        if seconds < 90:
            return f"{seconds:.0f} s"
        if seconds < 90 * 60:
            return f"{seconds / 60:.0f} min"
        if seconds < 48 * 3600:
            return f"{self.number(seconds / 3600, 1)} h"
        return f"{seconds / 86400:.0f} d"

    def size(self, count: float) -> str:
        """A number of bytes in its largest fitting unit."""
        units = ["B", "kB", "MB", "GB", "TB"]
        while count >= 1000 and len(units) > 1:
            count /= 1000
            units.pop(0)
        unit = units[0]
        return f"{self.number(count, 1 if count < 100 and unit != 'B' else 0)} {unit}"
