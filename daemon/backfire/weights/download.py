"""Fetching weights: a download can be resumed, and a file is verified before it gets its final name.

This uses urllib. huggingface-hub and pooch were tried: most of the catalogue is not on the Hugging Face hub,
and neither library resumes safely. pooch starts over after an interruption. huggingface-hub's `http_get` asks
for the rest without `If-Range`, so that it may join the halves of two versions, and it neither checks the
free space nor stops an endless answer. What it could replace are some 65 of these lines.

The opener knows http and https only, so no redirect can lead to a local file, and a redirect from https to
http is refused.
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
"""The waits before retries. What has arrived is kept, so a retry asks only for the rest."""
CHUNK = 1 << 18
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
"""The HTTP statuses after which a retry may succeed."""

NETWORK = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError)

Progress = Callable[[str, int, int | None], None]
"""Called as progress(path, bytes so far, bytes in total or None). It may raise to stop the download."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(newurl).scheme not in ("https", urlsplit(req.full_url).scheme):
            raise _failure(
                req.full_url, f"redirects to {newurl}, which is refused", "name a mirror with --from"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    # Not urllib's build_opener, which adds handlers for file, data and ftp.
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
    """Fetch a model's files into `folder`/NAME. Files that are there with the expected digest are kept.

    Args:
        model: an entry of the catalogue.
        folder: `models.folder`; it is made if it is missing.
        source: replaces the catalogue's URLs: an http(s) URL or a path, either of the file itself or of what
            holds the files under their own paths (a URL that ends in "/", or a folder).
        progress: called with every piece that arrives.
        sleep: waits between retries.

    Returns:
        The files in the order of the catalogue.

    Raises:
        ModelError: there is no source, network, file or space, or the digest or size is wrong; retryable if
            another try may succeed.
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
    """The URL or path from which one file is fetched."""
    if source is None:
        if file.url is None:
            raise _failure(f"model {model.name}", "nobody serves it in the form that is needed", model.note)
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
        problem = f"got {scheme}:, expected http, https or a path"
        raise _failure(f"--from {source}", problem, "name one of these")
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
    """Request the file until all of it is in `part`, with retries where they may help."""
    for wait in (*WAITS_S, None):
        try:
            _ask(url, part, file, progress)
            return
        except urllib.error.HTTPError as error:
            error.close()
            cause: Exception = error
            again = error.code in RETRIED
            problem = f"the server answers {error.code} {error.reason}"
        except NETWORK as error:
            cause = error
            again = True
            problem = f"cannot be read ({getattr(error, 'reason', error)})"
        if wait is None or not again:
            remedy = "run it again later, it resumes where it stopped; or name a mirror or a file with --from"
            raise _failure(url, problem, remedy, retryable=again) from cause
        sleep(wait)


def _ask(url: str, part: Path, file: File, progress: Callable[[int, int | None], None]) -> None:
    """Send one request, for the rest of the file if a part is there. Raises if the answer breaks off."""
    have = part.stat().st_size
    headers = {"User-Agent": f"backfire/{__version__}", "Accept-Encoding": "identity"}
    if have:
        validator = _validator(part).read_text() if _validator(part).exists() else ""
        if validator or file.sha256:  # otherwise nothing would show that the halves are of different files
            headers["Range"] = f"bytes={have}-"
            headers |= {"If-Range": validator} if validator else {}
    request = urllib.request.Request(url, headers=headers)
    try:
        answer = _opener().open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # the range begins at or past the end of the file
            raise
        error.close()
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return
        part.write_bytes(b"")
        raise ConnectionError("the part that was there is longer than the file; starting over") from error
    with answer, _append(part) as out:
        if answer.status != 206 or not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            out.truncate(0)
            have = 0
            if answer.status == 206:
                raise ConnectionError("the server sent another range than requested; starting over")
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
                    return  # the answer may be endless, and the check below refuses it
        finally:
            _flush(out)
        if total is not None and have < total:
            raise ConnectionError(f"{have} of {total} bytes arrived")


def _piece(answer: Any) -> bytes:
    """The next piece of the answer. An OSError here is the network's, so it is told apart from the disk's."""
    try:
        piece: bytes = answer.read(CHUNK)
    except OSError as error:
        raise ConnectionError(str(error)) from error
    return piece


def _checked(part: Path, file: File, want: str | None, place: str, folder: Path) -> str:
    """The digest of the file that arrived. A wrong file is deleted, because resuming could not repair it.

    A file without a published digest is trusted at the first fetch, unless it is empty or a web page.
    """
    size, got = part.stat().st_size, durable.file_sha256(part)
    remedy = "the file was deleted; run it again or use another source"
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
    """Store the validator (ETag or date) of this version of the remote file for a later `If-Range`."""
    etag = headers.get("ETag") or ""
    strong = etag if etag.startswith('"') else headers.get("Last-Modified") or ""
    _validator(part).write_text(strong)


@contextmanager
def _alone(part: Path) -> Iterator[None]:
    """Make the folder and hold a lock on the partial file, so that two fetches do not write the same file."""
    part.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with part.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _failure(str(part), "another fetch is writing it", "wait until that has ended") from error
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
    """Turn an error of the disk into a ModelError with a remedy."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "check models.folder"
        if full:
            remedy = "free some space and run it again, it resumes where it stopped"
        problem = f"cannot be written ({error.strerror})"
        raise _failure(str(target), problem, remedy, retryable=full) from error


def _failure(subject: str, problem: str, remedy: str, *, retryable: bool = False) -> ModelError:
    return ModelError(Code.MODEL, f"{subject}: {problem}; {remedy}", retryable=retryable)
