"""The pages, their pictures and the forms: what is answered to which address.

It is one long class because all answers go by the same store, drawings and guard; what they show is made in
the modules beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from backfire.admin import decisions
from backfire.admin.outcomes import midnight, outcomes
from backfire.admin.space import space
from backfire.errors import StoreError
from backfire.service.store.listing import SECTIONS, Listing
from backfire.types import Job, JobState, Verdict, shown
from backfire.web import actions, files, parameters, picture, today
from backfire.web.board import ENDED_BADLY, FIRST, PAGE, Board, Daemon
from backfire.web.documents import Documents
from backfire.web.guard import Guard, Headers, is_own, token
from backfire.web.live import Live
from backfire.web.options import Options
from backfire.web.painter import Painter
from backfire.web.rendering import STATIC, Rendering, Seen
from backfire.web.words import plain

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
RECEIPT_BYTES = 16 << 20
FOLDERS_S = 60.0


def application(options: Options) -> Starlette:
    """The web application of one configuration."""
    return Page(options).application


class Page:
    """Everything that answers share.

    Args:
        options: the settings.
        now: wall clock, Unix seconds.
    """

    def __init__(self, options: Options, now: Callable[[], float] = time.time) -> None:
        self.options, self._now = options, now
        self.listing = Listing(options.database)
        self.board = Board(options, self.listing, now)
        self.painter = Painter()
        with contextlib.suppress(OSError):  # then nobody is let in, and all else can be read
            token(options.folders["state"])
        self.guard = Guard(options.folders["state"], now)
        self.rendering = Rendering(self.listing, self.board, self.guard, now)
        self.live = Live(self.rendering.version)
        nothing = self.rendering.static["none.svg"]
        self.documents = Documents(self.listing, options.folders, self.painter, self.guard, nothing)
        self._gpus = today.Gpus()
        self._known_folders: tuple[float, dict[str, bytes]] = (-FOLDERS_S, {})
        own = options.address[:1] if isinstance(options.address, tuple) else ()  # such as 127.0.0.2
        hosts = [*LOOPBACK_HOSTS, *own, *options.allowed_hosts]
        self.application = Starlette(
            routes=self._routes(),
            middleware=[
                Middleware(Headers),
                Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False),
            ],
            exception_handlers={404: self._not_found, 413: self._too_much, StoreError: self._no_database},
            lifespan=self._lifespan,
        )

    def _routes(self) -> list[Route | Mount]:
        one = "/picture/{id:int}"
        return [
            Route("/", self.overview),
            Route("/pictures", self.pictures),
            Route(one, self.picture),
            *self.documents.routes(one),
            Route(one + "/release", self.confirm),
            Route(one + "/{action}", self.act, methods=["POST"]),
            Route("/today", self.today),
            Route("/settings", self.settings),
            Route("/unlock", self.unlock, methods=["GET", "POST"]),
            Route("/lock", self.lock, methods=["POST"]),
            Route("/live", self.events),
            Mount("/static", StaticFiles(directory=STATIC)),
        ]

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        await run_in_threadpool(self.rendering.warm)
        yield
        await self.live.close()
        self.painter.close()
        self.listing.close()

    # Pages

    async def overview(self, request: Request) -> Response:
        """Needs you, working, waiting, done: the beginning of each."""

        def compute(seen: Seen) -> str:
            frame = self.rendering.frame(seen)
            daemon: Daemon = frame["daemon"]
            sections = []
            if frame["counts"]:
                sections = [
                    self.board.section(name, seen.words, daemon, most=most, count=frame["counts"][name])
                    for name, most in FIRST.items()
                ]
            return self.rendering.render("overview.html", seen, sections=sections, **frame)

        return await self.rendering.page(request, compute)

    async def pictures(self, request: Request) -> Response:
        """One list with search, filters and pages."""

        def compute(seen: Seen) -> str:
            frame, asked = self.rendering.frame(seen), request.query_params
            name = asked.get("show", "all")
            name = name if name in SECTIONS else "all"
            number = max(
                int(text) if (text := asked.get("page", "1")).isdecimal() and len(text) < 9 else 1, 1
            )
            folders = self._folders()
            chosen = parameters.filters(asked, folders)
            section = self.board.page(name, chosen, number, seen.words, frame["daemon"])
            pages = max(-(-section.count // PAGE), 1)

            def link(page: int) -> str:
                return "/pictures?" + urlencode({**asked, "page": page})

            return self.rendering.render(
                "pictures.html",
                seen,
                section=section,
                asked=asked,
                number=number,
                pages=pages,
                newer=link(min(number - 1, pages)) if number > 1 else "",
                older=link(number + 1) if number < pages else "",
                folders=folders,
                verdicts=[*Verdict],
                shows=[*SECTIONS],
                **frame,
            )

        return await self.rendering.page(request, compute)

    async def picture(self, request: Request) -> Response:
        """One picture: before and after, its edits, regions, receipt and history."""
        await self.documents.job(request)

        def compute(seen: Seen) -> str:
            job = self.documents.known(request)
            frame = self.rendering.frame(seen)
            row = self.board.row(job, seen.words, frame["daemon"], each=self.board.seconds_each())
            receipt = self._receipt(job)
            thresholds = self.options.thresholds_of(job.path)
            has_sheet = _is_there(files.report(job, self.options.folders, ".sheet.jpg"))
            has_published = _is_there(files.published(job, self.options.folders))
            same_path = self.listing.of_path(job.path)  # the newest first
            others = [other for other in same_path if other.id != job.id][:20]
            # A failure that was tried again, or made up for, asks nobody for anything, as in the lists.
            newer = (one.id for one in same_path if one.id > job.id and one.state != JobState.SKIPPED)
            later = next(newer, None) if job.state in ENDED_BADLY else None
            return self.rendering.render(
                "picture.html",
                seen,
                row=row,
                job=job,
                receipt=receipt,
                facts=picture.facts(receipt),
                regions=picture.regions(receipt),
                size=picture.size(receipt),
                edits=picture.edits(receipt, thresholds),
                reasons=[str(reason) for reason in receipt.get("reasons", []) if isinstance(reason, str)],
                has_published=has_published,
                has_original=job.input_sha256 is not None,
                has_sheet=has_sheet,
                sheet_size=picture.sheet_size(receipt) if has_sheet and seen.session else None,
                tool_of=lambda path: picture.tool_of(path, self.options.tools),
                events=[(event, decisions.details(event)) for event in self.listing.history(job.id)],
                others=[self.board.row(other, seen.words, frame["daemon"]) for other in others],
                later=later,
                actions=[] if later else actions.offered(job, self.options),
                output=shown(job.output_path) if job.output_path else "",
                **frame,
            )

        return await self.rendering.page(request, compute)

    async def confirm(self, request: Request) -> Response:
        """Asks whether a picture is to be published as it is, since nothing takes that back."""
        await self.documents.job(request)

        def compute(seen: Seen) -> str:
            job = self.documents.known(request)
            frame = self.rendering.frame(seen)
            target = parameters.own(request.query_params.get("back", "") or f"/picture/{job.id}")
            return self.rendering.render(
                "confirm.html",
                seen,
                row=self.board.row(job, seen.words, frame["daemon"]),
                target=target,
                is_offered="release" in actions.offered(job, self.options),
                **frame,
            )

        return await self.rendering.page(request, compute)

    async def today(self, request: Request) -> Response:
        """The last 24 hours and the state of the daemon."""

        def compute(seen: Seen) -> str:
            now = self._now()
            since = now - today.HOURS * 3600
            found = today.day(self.listing.since(since), self.listing.reviews(since), now)
            counts = outcomes(self.listing.tally(midnight(now)))
            told = [one for one in today.SHOWN if one in counts or one in today.ALWAYS]
            each = self.board.seconds_each()
            latest = self.listing.latest_out()
            return self.rendering.render(
                "today.html",
                seen,
                gpus=self._gpus(),
                receipt=self._receipt(latest) if latest else {},
                day=found,
                outcomes=[(one, counts.get(one, 0)) for one in told],
                plot=today.plot(found.hours),
                each=each,
                space=space(self.options.folders),
                **self.rendering.frame(seen),
            )

        return await self.rendering.page(request, compute)

    async def settings(self, request: Request) -> Response:
        """The configuration file as it is, with its comments and without its secrets."""

        def compute(seen: Seen) -> str:
            from backfire.web.config_text import without_secrets  # nothing else needs a parser of YAML

            text = without_secrets(self.options) if seen.session else None
            changed = None
            with contextlib.suppress(OSError):
                changed = self.options.config.stat().st_mtime
            return self.rendering.render(
                "settings.html",
                seen,
                text=text,
                changed=changed,
                file=shown(os.fsencode(self.options.config)),
                **self.rendering.frame(seen),
            )

        return await self.rendering.page(request, compute, keep_s=0)

    # What pages show

    def _folders(self) -> dict[str, bytes]:
        """The folders to choose from, by the texts that pages show of them.

        All jobs are read for them, so they may be a minute old.
        """
        at, found = self._known_folders
        if self._now() - at > FOLDERS_S:
            found = {plain(shown(folder)): folder for folder in self.listing.folders()}
            self._known_folders = self._now(), found
        return found

    def _receipt(self, job: Job) -> Mapping[str, Any]:
        """The receipt of a job; empty without one, or where it cannot be read."""
        descriptor = files.report(job, self.options.folders, ".json")
        if descriptor is None:
            return {}
        with os.fdopen(descriptor, "rb") as file:
            try:
                found = json.loads(file.read(RECEIPT_BYTES))
            except ValueError:
                return {}
        return found if isinstance(found, dict) else {}

    # Forms

    async def unlock(self, request: Request) -> Response:
        """Asks for the token, and gives the browser a session for it; leads on where it has one already."""
        seen = self.rendering.seen(request)
        wrong, back = "", request.query_params.get("back", "/")
        if request.method == "GET" and seen.session:
            # Browsers would take over what stands behind the # of the printed address, which is the token.
            target = parameters.own(back)
            return RedirectResponse(target if "#" in target else f"{target}#", 303)
        if request.method == "POST":
            form = await parameters.form(request)
            back = str(form.get("back", "/"))
            if is_own(request) and self.guard.knows(str(form.get("token", ""))):
                response = RedirectResponse(parameters.own(back), 303)
                secure = request.headers.get("x-forwarded-proto") == "https"
                self.guard.let_in(response, secure=secure)
                return response
            wrong = seen.words("token_wrong") if is_own(request) else _of_another_host(seen)
            await asyncio.sleep(0.5)  # whoever tries all of them takes longer
        text = await run_in_threadpool(
            lambda: self.rendering.render(
                "unlock.html", seen, wrong=wrong, target=parameters.own(back), **self.rendering.frame(seen)
            )
        )
        return HTMLResponse(text, 403 if wrong else 200)

    async def lock(self, request: Request) -> Response:
        """Ends the session of the browser."""
        response = RedirectResponse("/", 303)
        if self.guard.may_post(request, str((await parameters.form(request)).get("key", ""))):
            response.delete_cookie("backfire")
        return response

    async def act(self, request: Request) -> Response:
        """Does an action, and leads back to the page with what came of it."""
        action = request.path_params["action"]
        if action not in actions.ACTIONS:
            raise HTTPException(404)
        form = await parameters.form(request)
        seen = self.rendering.seen(request)
        if not self.guard.may_post(request, str(form.get("key", ""))):
            why = "stale_form" if seen.session else "locked_form"
            text = seen.words(why) if is_own(request) else _of_another_host(seen)
            return await self.rendering.message(seen, 403, seen.words("refused"), text)
        job = await self.documents.job(request)
        outcome = await run_in_threadpool(actions.act, action, job, form, self.options, self.painter)
        told = parameters.told(outcome, job.name, seen.session, self.guard)
        back = parameters.own(str(form.get("back", "")) or f"/picture/{job.id}")
        path, _, query = back.partition("?")
        kept = [(k, v) for k, v in parse_qsl(query, keep_blank_values=True) if k not in told]
        return RedirectResponse(f"{path}?{urlencode([*kept, *told.items()])}", 303)

    # Live

    async def events(self, request: Request) -> Response:
        """Server-sent events: a message with each new state of the database."""
        if self.live.is_full:
            raise HTTPException(503)
        headers = {"X-Accel-Buffering": "no"}  # nginx would hold the events back
        return StreamingResponse(self.live.events(), headers=headers, media_type="text/event-stream")

    # Errors

    async def _not_found(self, request: Request, _: Exception) -> Response:
        seen = self.rendering.seen(request)
        return await self.rendering.message(seen, 404, seen.words("unknown"), seen.words("unknown_text"))

    async def _too_much(self, request: Request, _: Exception) -> Response:
        seen = self.rendering.seen(request)
        return await self.rendering.message(seen, 413, seen.words("refused"), seen.words("too_much"))

    async def _no_database(self, request: Request, error: Exception) -> Response:
        seen = self.rendering.seen(request)
        return await self.rendering.message(seen, 503, seen.words("daemon"), str(error))


def _of_another_host(seen: Seen) -> str:
    """Why a form is refused that seems to come from another site."""
    headers = seen.request.headers
    origin, host = headers.get("origin", "?"), headers.get("host", "?")
    return seen.words("other_host", origin=origin, host=host)


def _is_there(descriptor: int | None) -> bool:
    if descriptor is None:
        return False
    os.close(descriptor)
    return True
