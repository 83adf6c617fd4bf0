"""Fetching weights: resumable, verified before they get their final name, offline once fetched.

urllib and no HTTP library: one GET with a Range header is all there is to do, and a daemon that
otherwise opens no connection need not carry one. The opener knows http and https only, so no
redirect can lead to a local file, and none leads from https back to http.
"""

from __future__ import annotations

import errno
import fcntl
import http.client
import os
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import urljoin, urlsplit

from backfire import __version__
from backfire.errors import Code, ModelError
from backfire.files import durable
from backfire.weights import PINS, File, Model, expected, pin

TIMEOUT_S = 30.0
WAITS_S = (1.0, 3.0, 10.0)
"""Before each retry; what has arrived is kept, so that a retry only asks for the rest."""
CHUNK = 1 << 18
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that asking again may change."""

NETWORK = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError)

Progress = Callable[[str, int, int | None], None]
"""Called as progress(path, bytes there, bytes in all or None); may raise to stop."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(newurl).scheme not in ("https", urlsplit(req.full_url).scheme):
            raise _failure(
                req.full_url, f"redirects to {newurl}, which is refused", "name a mirror with --from"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    # Not build_opener: it adds file, data and ftp.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


def fetch(
    model: Model,
    folder: Path,
    *,
    source: str | None = None,
    progress: Progress = lambda path, done, total: None,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Path]:
    """Bring a model's files into `folder`/NAME; those that are there and right are left alone.

    Args:
        model: an entry of the catalogue.
        folder: `models.folder`; made if need be.
        source: stands in for the catalogue's URLs: an http(s) URL or a path, of the file itself or
            (ending in "/", or being a folder) of what holds the files under their own paths.
        progress: told of every piece that arrives.
        sleep: waits between retries.

    Returns:
        The files, in the catalogue's order.

    Raises:
        ModelError: no source, no network, no such file, no space, or a wrong digest or size;
            retryable where asking again may help.
    """
    return [_one(model, file, folder, source, progress, sleep) for file in model.files]


def _one(
    model: Model,
    file: File,
    folder: Path,
    source: str | None,
    progress: Progress,
    sleep: Callable[[float], None],
) -> Path:
    target = folder / model.name / file.path
    want = expected(model, file, folder)
    if target.is_file() and want is not None and durable.file_sha256(target) == want:
        progress(file.path, target.stat().st_size, target.stat().st_size)
        return target
    place = _source(model, file, source)
    part = target.with_name(target.name + ".part")
    with _explained(target), _alone(part):
        if isinstance(place, Path):
            _copy(place, part, lambda done, total: progress(file.path, done, total))
        else:
            _download(place, part, file, lambda done, total: progress(file.path, done, total), sleep)
        got = _checked(part, file, want, str(place), folder)
        if want is None:
            pin(model, file, got, folder)
        part.replace(target)
        with suppress(OSError):
            durable.sync(target.parent)
    _validator(part).unlink(missing_ok=True)
    return target


def _source(model: Model, file: File, source: str | None) -> str | Path:
    """The URL or path of one file."""
    if source is None:
        if file.url is None:
            raise _failure(f"model {model.name}", "nobody serves it as it is needed", model.note)
        return file.url
    scheme = urlsplit(source).scheme
    if scheme in ("http", "https"):
        if source.endswith("/"):
            return urljoin(source, file.path)
        if len(model.files) > 1:
            remedy = f"name what holds the {len(model.files)} files of {model.name}, ending in /"
            raise _failure(f"--from {source}", "is one file", remedy)
        return source
    if len(scheme) > 1:
        trouble = f"got {scheme}:, expected http, https or a path"
        raise _failure(f"--from {source}", trouble, "name one of these")
    path = Path(source).expanduser()
    path = path / file.path if path.is_dir() else path
    if not path.is_file() or (len(model.files) > 1 and path == Path(source).expanduser()):
        names = ", ".join(one.path for one in model.files)
        raise _failure(f"--from {source}", "does not hold the model's files", f"name a folder with {names}")
    return path


def _copy(source: Path, part: Path, progress: Callable[[int, int | None], None]) -> None:
    try:
        data = source.open("rb")
    except OSError as error:
        raise _failure(
            str(source), f"cannot be read ({error.strerror})", "check it, or name another"
        ) from error
    with data, part.open("wb") as out:
        total = os.fstat(data.fileno()).st_size
        _room(part.parent, total)
        while piece := data.read(CHUNK):
            out.write(piece)
            progress(out.tell(), total)
        _flush(out)


def _download(
    url: str,
    part: Path,
    file: File,
    progress: Callable[[int, int | None], None],
    sleep: Callable[[float], None],
) -> None:
    """Ask until everything is in `part`; retried where that may help."""
    for wait in (*WAITS_S, None):
        try:
            _ask(url, part, file, progress)
            return
        except urllib.error.HTTPError as error:
            error.close()
            cause: Exception = error
            again = error.code in AGAIN
            trouble = f"the server answers {error.code} {error.reason}"
        except NETWORK as error:
            cause = error
            again = True
            trouble = f"cannot be read ({getattr(error, 'reason', error)})"
        if wait is None or not again:
            remedy = "run it again later, it goes on where it stopped; or name a mirror or a file with --from"
            raise _failure(url, trouble, remedy, retryable=again) from cause
        sleep(wait)


def _ask(url: str, part: Path, file: File, progress: Callable[[int, int | None], None]) -> None:
    """One request, for the rest if some is there; raises where the answer breaks off."""
    have = part.stat().st_size
    headers = {"User-Agent": f"backfire/{__version__}", "Accept-Encoding": "identity"}
    if have:
        validator = _validator(part).read_text() if _validator(part).exists() else ""
        if validator or file.sha256:  # else the two halves might be of different files, and nobody would know
            headers["Range"] = f"bytes={have}-"
            headers |= {"If-Range": validator} if validator else {}
    request = urllib.request.Request(url, headers=headers)
    try:
        answer = _opener().open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # asked for bytes past the end
            raise
        error.close()
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return
        part.write_bytes(b"")
        raise ConnectionError("what was there is longer than the file; started over") from error
    with answer, _append(part) as out:
        if answer.status != 206 or not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            out.truncate(0)
            have = 0
            if answer.status == 206:
                raise ConnectionError("the server sent another part than asked for; started over")
        _remember(part, answer.headers)
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length and length.isdigit() else file.size
        _room(part.parent, (total or have) - have)
        try:
            while piece := _piece(answer):
                out.write(piece)
                have += len(piece)
                progress(have, total)
                if file.size is not None and have > file.size:
                    return  # not the file, and perhaps without end: the check will say so
        finally:
            _flush(out)
        if total is not None and have < total:
            raise ConnectionError(f"{have} of {total} bytes came")


def _piece(answer: Any) -> bytes:
    """Some of what the server sends: whatever breaks off there is the network's, not the disk's."""
    try:
        piece: bytes = answer.read(CHUNK)
    except OSError as error:
        raise ConnectionError(str(error)) from error
    return piece


def _checked(part: Path, file: File, want: str | None, place: str, folder: Path) -> str:
    """The digest of what arrived; a wrong one is deleted, for no retry could mend it.

    What nobody has published a digest of must at least not be empty or a page: the first copy is trusted.
    """
    size, got = part.stat().st_size, durable.file_sha256(part)
    remedy = "what came was deleted; run it again or use another source"
    if want is not None and got != want:
        wrong = f"SHA-256 is {got}, expected {want}"
        if file.sha256 is None:
            wrong += ", that of the first copy that was fetched"
            remedy += f"; if that one was wrong, take its line out of {folder / PINS}"
    elif not size or _is_page(part):
        wrong = f"is {'empty' if not size else 'a web page'}, expected weights"
    elif file.size is not None and size != file.size:
        wrong = f"{size} bytes, expected {file.size}"
    else:
        return got
    part.write_bytes(b"")
    raise _failure(place, wrong, remedy)


def _is_page(part: Path) -> bool:
    with part.open("rb") as file:
        return file.read(512).lstrip().lower().startswith((b"<!doctype html", b"<html"))


def _validator(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _remember(part: Path, headers: Any) -> None:
    """Keep what tells one version of the remote file from another, for a later If-Range."""
    etag = headers.get("ETag") or ""
    strong = etag if etag.startswith('"') else headers.get("Last-Modified") or ""
    _validator(part).write_text(strong)


@contextmanager
def _alone(part: Path) -> Iterator[None]:
    """Makes the folder and holds a lock on the partial file: two fetches must not write one file."""
    part.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with part.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _failure(str(part), "another fetch is at work on it", "wait for it to end") from error
        try:
            yield
        finally:
            if part.exists() and part.stat().st_size == 0:
                part.unlink()
                _validator(part).unlink(missing_ok=True)


def _room(folder: Path, more: int) -> None:
    free = shutil.disk_usage(folder).free
    if more > free:
        raise OSError(errno.ENOSPC, f"{more} bytes more are needed, {free} are free")


def _append(path: Path) -> IO[bytes]:
    return path.open("ab")


def _flush(out: IO[bytes]) -> None:
    out.flush()
    os.fsync(out.fileno())


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    """Words the trouble of the disk."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "check models.folder"
        if full:
            remedy = "free some space and run it again, it goes on where it stopped"
        trouble = f"cannot be written ({error.strerror})"
        raise _failure(str(target), trouble, remedy, retryable=full) from error


def _failure(subject: str, trouble: str, remedy: str, *, retryable: bool = False) -> ModelError:
    return ModelError(Code.MODEL, f"{subject}: {trouble}; {remedy}", retryable=retryable)
