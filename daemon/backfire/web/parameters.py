"""What a request says: its language, its filters, the fields of its form, the address to go back to."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.requests import Request

from backfire.service.store.listing import Filters
from backfire.types import Verdict
from backfire.web import actions
from backfire.web.guard import Guard
from backfire.web.words import LANGUAGES, Words

LANGUAGE_COOKIE = "language"
TOLD = ("done", "name", "why", "seal")
"""What an address tells of an action, once."""
FORM_BYTES = 1 << 20
"""The most that a form may hold: some hundred strokes of a brush."""


class Notice(NamedTuple):
    """What came of an action: the key of its text, and the text."""

    key: str
    text: str

    @property
    def good(self) -> bool:
        """Whether the action was done."""
        return self.key in actions.GOOD


def language(request: Request) -> str:
    """The language that was chosen, or the first of the browser's that there is."""
    chosen = request.query_params.get("lang") or request.cookies.get(LANGUAGE_COOKIE)
    if chosen in LANGUAGES:
        return chosen
    for part in request.headers.get("accept-language", "").split(","):
        language = part.partition(";")[0].strip()[:2].lower()
        if language in LANGUAGES:
            return language
    return LANGUAGES[0]


def told(outcome: actions.Outcome, name: str, session: str, guard: Guard) -> dict[str, str]:
    """What the address tells a session of an action with a picture, with the seal of this page."""
    fields = {"done": outcome.key, "name": name, "why": outcome.message}
    return {**fields, "seal": guard.seal(session, json.dumps(fields))}


def notice(request: Request, words: Words, session: str, guard: Guard) -> Notice | None:
    """What came of an action, as the address tells it; None where this page has not told the session that."""
    *fields, seal = ((name, request.query_params.get(name, "")) for name in TOLD)
    found = dict(fields)
    if found["done"] not in actions.OUTCOMES or not guard.is_sealed(session, json.dumps(found), seal[1]):
        return None
    return Notice(found["done"], words(found["done"], name=found["name"], message=found["why"]))


def filters(asked: Mapping[str, str], folders: Mapping[str, bytes] = MappingProxyType({})) -> Filters:
    """What a list is narrowed to, by the fields of its search; what makes no sense is left out.

    Args:
        asked: the fields.
        folders: the folders to choose from, by the texts that are offered: bytes that are not UTF-8 cannot be
            sent.
    """
    verdict, folder = asked.get("verdict", ""), asked.get("folder", "")
    return Filters(
        text=asked.get("q", "")[:200],
        verdict=Verdict(verdict) if verdict in [*Verdict] else None,
        folder=os.fsdecode(folders.get(folder, folder)),
        since=_day(asked.get("since", "")),
        until=_day(asked.get("until", ""), later=1),
    )


def _day(text: str, later: int = 0) -> float | None:
    """The beginning of a day such as 2026-11-28, or of one some days later; None for anything else.

    In Unix seconds, by the clock on the wall: days on which that is changed have 23 hours, or 25.
    """
    try:
        year, month, day, *_ = time.strptime(text, "%Y-%m-%d")
        return time.mktime((year, month, day + later, 0, 0, 0, 0, 0, -1))
    except (ValueError, OverflowError):
        return None


async def form(request: Request) -> dict[str, str]:
    """The fields of a form; one that is too long is refused before it is read."""
    length = request.headers.get("content-length", "")
    if not length.isdecimal() or int(length) > FORM_BYTES:
        raise HTTPException(413)
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        raise HTTPException(415)
    fields = parse_qsl((await request.body()).decode("utf-8", "replace"), keep_blank_values=True)
    return dict(fields)


def own(address: str) -> str:
    """The address, if it is one of this page; else that of the first page."""
    return address if re.fullmatch(r"/(?!/)[\x21-\x5b\x5d-\x7e]*", address) else "/"
