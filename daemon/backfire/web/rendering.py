"""How pages are made: templates, the frame around every page, and pages that many see computed once."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jinja2
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from backfire import __version__
from backfire.errors import StoreError
from backfire.service.store.listing import Listing
from backfire.web import actions, parameters
from backfire.web.board import FIRST, Board, Daemon
from backfire.web.guard import Guard
from backfire.web.words import LANGUAGES, Words, plain

HERE = Path(__file__).parent
STATIC = HERE / "static"
LANGUAGE_S = 365 * 24 * 3600
KEPT_PAGES = 32
KEPT_S = 10.0
"""How long a page is shown as it was computed; it tells of times, folders and disks as well as of jobs."""


@dataclass
class Seen:
    """What one request may see, and how it is shown.

    Attributes:
        request: the request.
        words: its language.
        session: its session; empty without one.
        version: the state of the database that the page is to show; empty where none was asked for.
    """

    request: Request
    words: Words
    session: str
    version: str = ""


class Rendering:
    """Makes pages of templates.

    Args:
        listing, board: what the frame around every page shows.
        guard: knows sessions.
        now: wall clock, Unix seconds.

    Attributes:
        static: the addresses of the static files by their names; a new version of a file has a new one.
    """

    def __init__(self, listing: Listing, board: Board, guard: Guard, now: Callable[[], float]) -> None:
        self._listing, self._board, self._guard, self._now = listing, board, guard, now
        self.static = _static_digests()
        self._started = secrets.token_hex(4)
        self._rendered: OrderedDict[tuple[str, ...], tuple[str, float, str]] = OrderedDict()
        self._computing: dict[tuple[str, ...], asyncio.Future[str]] = {}
        self._counts: dict[str, tuple[str, int]] = {}
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(HERE / "templates"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
            # What names, messages and receipts say comes from strangers, wherever it is shown.
            finalize=lambda value: value if hasattr(value, "__html__") else plain(value),
        )
        self._templates.globals.update(
            static=self.static,
            version=__version__,
            offered=lambda job: actions.offered(job, board.options),
            iso=_iso,
            split_comment=_split_comment,
        )

    def warm(self) -> None:
        """Compile the templates and count, so that nobody has to wait for it."""
        for name in self._templates.list_templates():
            self._templates.get_template(name)
        with contextlib.suppress(StoreError):
            for section in FIRST:
                self._count(section, self.version())

    def version(self) -> str:
        """A text that differs whenever what pages show has changed, as it has after midnight.

        Heartbeats without news do not count.
        """
        try:
            today = time.localtime(self._now())[:3]
            shown = self._board.alive(), self._listing.news(), today
        except StoreError:
            return f"{self._started}-none"
        digest = hashlib.sha256(repr(shown).encode()).hexdigest()[:12]
        return f"{self._started}-{digest}"

    def seen(self, request: Request) -> Seen:
        """What a request may see, and in which language."""
        return Seen(request, Words(parameters.language(request), self._now), self._guard.session(request))

    def render(self, name: str, seen: Seen, **values: Any) -> str:
        """The template of that name, filled with values and with what all pages have in common."""
        request, words = seen.request, seen.words
        passing = {"lang", *parameters.TOLD}
        query = {key: value for key, value in request.query_params.items() if key not in passing}
        other = next(one for one in LANGUAGES if one != words.language)
        path = request.url.path
        if request.method == "POST" and "id" in request.path_params:  # nothing is to be read at its address
            path = f"/picture/{request.path_params['id']}"
        return self._templates.get_template(name).render(
            w=words,
            session=seen.session,
            form_key=self._guard.form_key(seen.session) if seen.session else "",
            here=path,
            back=path + (f"?{urlencode(query)}" if query else ""),
            other_language=f"{path}?{urlencode({**query, 'lang': other})}",
            other=other,
            notice=parameters.notice(request, words, seen.session, self._guard),
            **values,
        )

    async def page(
        self, request: Request, compute: Callable[[Seen], str], *, keep_s: float = KEPT_S
    ) -> Response:
        """A page, computed once for all who see the same of the same state of the database.

        Args:
            keep_s: for how many seconds; 0 for a page that shows what lies elsewhere.
        """
        seen = self.seen(request)
        # Read before the content, so that what changes in between is fetched once more, and never missed.
        version = seen.version = await run_in_threadpool(self.version)
        query = str(request.query_params)
        key = request.url.path, query, seen.words.language, seen.session
        kept = self._rendered.get(key)
        is_kept = kept is not None and kept[0] == version and self._now() - kept[1] < keep_s
        if kept is None or not is_kept or "done" in request.query_params:
            # Those who ask for the same at the same time wait for one answer.
            pending = self._computing.get((version, *key))
            if pending is None or pending.done():
                pending = asyncio.ensure_future(run_in_threadpool(compute, seen))
                self._computing = {one: task for one, task in self._computing.items() if not task.done()}
                self._computing[version, *key] = pending
            kept = version, self._now(), await asyncio.shield(pending)
            self._rendered[key] = kept
            self._rendered.move_to_end(key)
            while len(self._rendered) > KEPT_PAGES:
                self._rendered.popitem(last=False)
        response = HTMLResponse(kept[2])
        chosen = request.query_params.get("lang")
        if chosen in LANGUAGES:
            response.set_cookie(
                parameters.LANGUAGE_COOKIE, chosen, max_age=LANGUAGE_S, samesite="lax", httponly=True
            )
        return response

    def frame(self, seen: Seen, *, broken: bool = False) -> dict[str, Any]:
        """What the frame around every page shows: the daemon in one sentence, and its troubles.

        Args:
            broken: whether the page tells of a failure, so that it is shown without a database, too.

        Raises:
            StoreError: the database is there and cannot be read.
        """
        version = seen.version or self.version()
        try:
            daemon = self._board.daemon()
            counts = {name: self._count(name, version) for name in FIRST}
            stands = self._stands(daemon, counts, seen.words)
        except StoreError as error:
            is_missing = isinstance(error.__cause__, FileNotFoundError)
            if not is_missing and not broken:
                raise
            daemon, counts = Daemon(False, None, 0.0), {}
            stands = seen.words("not_there" if is_missing else "not_read")
        return {"daemon": daemon, "counts": counts, "stands": stands, "version_now": version}

    def _count(self, section: str, version: str) -> int:
        """How many pictures a list holds; counted again when something has changed."""
        known = self._counts.get(section)
        if known is None or known[0] != version:
            known = self._counts[section] = version, self._listing.count(section)
        return known[1]

    def _stands(self, daemon: Daemon, counts: Mapping[str, int], words: Words) -> str:
        if daemon.fact is None:
            return words("not_there")
        if not daemon.alive:
            return words("stopped", when=words.clock(daemon.at))
        working, waiting = counts.get("working", 0), counts.get("waiting", 0)
        if not working and not waiting:
            return words("watching")
        text = words("busy", working=words.number(working), waiting=words.number(waiting))
        each = self._board.seconds_each()
        if each is not None and daemon.moves:
            until = self._now() + each * (working + waiting) / daemon.workers
            text += ", " + words("done_about", when=words.clock(until))
        return text + "."

    async def message(self, seen: Seen, status: int, title: str, text: str) -> Response:
        """A page with a message alone."""

        def text_of() -> str:
            # At the address of a form's answer there is nothing to read again.
            still = {"still": seen.request.method == "POST"}
            frame = self.frame(seen, broken=True)
            return self.render("message.html", seen, title=title, text=text, **still, **frame)

        return HTMLResponse(await run_in_threadpool(text_of), status)


def _static_digests() -> dict[str, str]:
    """The addresses of the static files; a new version of a file has a new one."""
    found = {}
    for file in STATIC.iterdir():
        found[file.name] = f"/static/{file.name}?{hashlib.sha256(file.read_bytes()).hexdigest()[:12]}"
    return found


def _iso(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def _split_comment(line: str) -> tuple[str, str, str]:
    """A line of YAML before its comment, `#`, and the comment; a `#` within quotes begins none."""
    found = re.match(r"""((?:"[^"]*"|'[^']*'|[^"'#]|(?<=\S)#)*)(#?)(.*)""", line)
    # After a quote that has no other nobody can tell; the line is shown whole.
    return (found[1], found[2], found[3]) if found and (found[2] or not found[3]) else (line, "", "")
