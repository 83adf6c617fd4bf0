"""What a request says: its language, its filters, the fields of its form, the address to go back to."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from types import MappingProxyType
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.requests import Request

from backfire.service.store.listing import Filters
from backfire.types import Verdict
from backfire.web import actions
from backfire.web.words import LANGUAGES, Words

LANGUAGE_COOKIE = "language"
TOLD = ("done", "name", "why")
"""What an address tells of an action, once."""
FORM_BYTES = 1 << 20
"""The most that a form may hold: some hundred strokes of a brush."""


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


def notice(request: Request, words: Words) -> tuple[bool, str] | None:
    """What came of an action, as the address tells it: whether it was done, and in words."""
    key, name, why = (request.query_params.get(one, "") for one in TOLD)
    if key not in actions.OUTCOMES:
        return None
    text = words(key, name=name, message=why)
    return key in actions.GOOD, text


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
