"""The pictures and files of one job: thumbnail, published file, original, sheet, receipt, difference."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from anyio import CapacityLimiter, to_thread
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from backfire.service.store.listing import Listing
from backfire.types import Job, JobState, shown
from backfire.web import files
from backfire.web.guard import HEADERS, Guard
from backfire.web.painter import Painter

PAINTERS = 4
"""How many requests for painted pictures have a thread of their own; others wait without one."""


class Documents:
    """Answers requests for the pictures and files of a job, each found by the job's number alone.

    Args:
        listing: the jobs.
        folders: the folders of the configuration, by name.
        painter: decodes pictures, in a process of its own.
        guard: knows who may see originals.
        none: the address of the picture that stands for a missing one.
    """

    def __init__(
        self, listing: Listing, folders: Mapping[str, Path], painter: Painter, guard: Guard, none: str
    ) -> None:
        self._listing, self._folders, self._painter, self._guard = listing, folders, painter, guard
        self._none = none
        self._painters = CapacityLimiter(PAINTERS)

    def routes(self, one: str) -> list[Route]:
        """The routes below `one`, the address of a job."""
        return [
            Route(one + "/thumbnail", self.thumbnail),
            Route(one + "/published", self.published),
            Route(one + "/original", self.original),
            Route(one + "/change", self.change),
            Route(one + "/sheet", self.sheet),
            Route(one + "/receipt.json", self.receipt),
        ]

    async def job(self, request: Request) -> Job:
        """The job that the address names; 404 where there is none."""
        return await run_in_threadpool(self.known, request)

    def known(self, request: Request) -> Job:
        number = request.path_params["id"]
        job = self._listing.get(number) if number < 1 << 62 else None
        if job is None:
            raise HTTPException(404)
        return job

    async def thumbnail(self, request: Request) -> Response:
        """A small picture: of the published file, or of the original for those who may see it."""
        job = await self.job(request)
        may_see = bool(self._guard.session(request))

        def paint() -> bytes | None:
            is_out = job.state in (JobState.PUBLISHED, JobState.ARCHIVED)
            if not is_out and not may_see:
                return None
            key = "thumbnail", job.id, job.output_sha256 if is_out else job.input_sha256
            known, kept = self._painter.kept(key)
            if known:
                return kept
            find = files.published if is_out else files.original
            descriptor = find(job, self._folders)
            if descriptor is None:
                return None
            try:
                return self._painter.paint("thumbnail", [descriptor], key=key)
            finally:
                os.close(descriptor)

        painted = await self._painting(paint)
        if painted is None:
            return RedirectResponse(self._none, 302)
        return jpeg(painted)

    async def published(self, request: Request) -> Response:
        """The published file: as it is, or upright and as browsers can show it."""
        return await self._file(request, files.published, await self.job(request))

    async def original(self, request: Request) -> Response:
        """The original, for those who have the token."""
        self._require_session(request)
        return await self._file(request, files.original, await self.job(request))

    async def sheet(self, request: Request) -> Response:
        """The picture sheet, which shows the original, for those who have the token."""
        self._require_session(request)
        job = await self.job(request)
        descriptor = await run_in_threadpool(files.report, job, self._folders, ".sheet.jpg")
        return self._sent(request, job, descriptor, "image/jpeg", ".sheet.jpg")

    async def receipt(self, request: Request) -> Response:
        """The receipt as it is."""
        job = await self.job(request)
        descriptor = await run_in_threadpool(files.report, job, self._folders, ".json")
        return self._sent(request, job, descriptor, "application/json", ".json")

    async def change(self, request: Request) -> Response:
        """The difference of original and published file, amplified, for those who have the token."""
        self._require_session(request)
        job = await self.job(request)

        def paint() -> bytes | None:
            both = [find(job, self._folders) for find in (files.original, files.published)]
            opened = [one for one in both if one is not None]
            try:
                return self._painter.paint("change", opened) if len(opened) == 2 else None
            finally:
                for one in opened:
                    os.close(one)

        return jpeg(await self._painting(paint))

    async def _painting(self, paint: Callable[[], bytes | None]) -> bytes | None:
        """Wait for the helper in one of a few threads, so that some are left for pages."""
        return await to_thread.run_sync(paint, limiter=self._painters)

    def _require_session(self, request: Request) -> None:
        if not self._guard.session(request):
            raise HTTPException(403)

    async def _file(
        self, request: Request, find: Callable[[Job, Mapping[str, Path]], int | None], job: Job
    ) -> Response:
        descriptor = await run_in_threadpool(find, job, self._folders)
        if descriptor is None:
            raise HTTPException(404)
        kind = files.kind(descriptor)
        with ExitStack() as opened:
            opened.callback(os.close, descriptor)
            if kind != "image/jpeg" and "download" not in request.query_params:
                order = "turned" if kind else "view"
                painted = await self._painting(lambda: self._painter.paint(order, [descriptor]))
                if painted != b"":  # empty: it is upright, and shown as it is
                    return jpeg(painted)
            opened.pop_all()  # the answer closes it
        extension = os.path.splitext(shown(job.output_path or job.path))[1].lower()
        other = files.OTHER_TYPES.get(extension, "application/octet-stream")
        return self._sent(request, job, descriptor, kind or other, "")

    def _sent(self, request: Request, job: Job, descriptor: int | None, kind: str, suffix: str) -> Response:
        if descriptor is None:
            raise HTTPException(404)
        headers = {"Content-Length": str(os.fstat(descriptor).st_size)}
        if "download" in request.query_params:
            path = job.path if _is_original(request) else job.output_path or job.path
            name = shown(os.path.basename(path)) + suffix
            headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{quote(name, safe='')}"
        return Sent(os.fdopen(descriptor, "rb"), headers=headers, media_type=kind)


class Sent(StreamingResponse):
    """The answer with a file, which is closed at its end, also where the browser is gone before it begins."""

    def __init__(self, file: BinaryIO, **more: Any) -> None:
        super().__init__(files.pieces(file), **more)
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._file:
            await super().__call__(scope, receive, send)


def jpeg(picture: bytes | None) -> Response:
    """The answer with a JPEG; 404 where there is none."""
    if picture is None:
        raise HTTPException(404)
    return Response(picture, media_type="image/jpeg", headers=HEADERS)


def _is_original(request: Request) -> bool:
    """Whether the original is asked for."""
    return request.url.path.endswith("/original")
