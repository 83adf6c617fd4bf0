"""Files in the inbox that are refused by their first bytes, so that they need not wait for a worker."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from backfire.files import inbox as files
from backfire.files.inbox import Signature
from backfire.imaging import formats
from backfire.service.inbox import Inbox
from backfire.types import shown

LOOK_S = 0.2
"""For how many seconds one look opens files; those that are left are looked into after the next scan."""


class FirstBytes:
    """Knows which of the waiting files are empty or no pictures.

    Args:
        inbox: what is known of the folder.
        monotonic: the clock.

    Attributes:
        most: the most bytes that a file may have to be opened at all.
    """

    def __init__(self, inbox: Inbox, monotonic: Callable[[], float]) -> None:
        self._inbox, self._monotonic = inbox, monotonic
        self.most = 0
        self._seen: dict[bytes, tuple[Signature, bool]] = {}
        """By path: the file as it was looked into, and whether it is refused."""

    def look(self, paths: Iterable[bytes]) -> None:
        """Look into the files that have stood still for the settle time, each once as long as it stays so."""
        until, known, self._seen = self._monotonic() + LOOK_S, self._seen, {}
        for path in paths:
            signature = self._inbox.files.get(path)
            if signature is None:
                continue
            if (before := known.get(path)) is not None and before[0] == signature:
                self._seen[path] = before
            elif self._inbox.is_settled(path) and self._monotonic() < until:
                self._seen[path] = signature, self._is_refused(path)

    def _is_refused(self, path: bytes) -> bool:
        if any(one.size > self.most for one in self._inbox.files_of(path).values()):
            return False  # it is set aside unread
        try:
            head = files.head(self._inbox.root, path, formats.HEAD)
        except OSError:  # copying it will say what is wrong with it
            return False
        return formats.refusal(head, shown(path)) is not None

    def refuses(self, path: bytes) -> bool:
        """Whether a file that was looked into is no picture."""
        known = self._seen.get(path)
        return known is not None and known[1]
