"""Transfers one file over HTTP: resumable, with retries, and without a redirect to a local file.

This uses urllib. huggingface-hub and pooch were tried: most of the catalogue is not on the Hugging Face hub,
and neither library resumes safely. pooch starts over after an interruption. huggingface-hub's `http_get` asks
for the rest without `If-Range`, so that it may join the halves of two versions, and it neither checks the
free space nor stops an endless answer. It could replace some 65 lines.

The opener knows http and https only, so no redirect can lead to a local file, and a redirect from https to
http is refused.
"""

from __future__ import annotations

import errno
import http.client
import os
import shutil
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from backfire import __version__
from backfire.errors import Code, ModelError
from backfire.weights import File

TIMEOUT_S = 30.0
WAITS_S = (1.0, 3.0, 10.0)
"""The waits before retries. What has arrived is kept, so a retry asks only for the rest."""
CHUNK = 1 << 18
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
"""The HTTP statuses after which a retry may succeed."""

NETWORK = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError)

BytesProgress = Callable[[int, int | None], None]
"""Called as progress(bytes so far, bytes in total or None). It may raise to stop the transfer."""


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects as urllib does, but refuses one that leaves https."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(newurl).scheme not in ("https", urlsplit(req.full_url).scheme):
            raise failure(
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
        Redirects(),
    ):
        opener.add_handler(handler)
    return opener


def transfer(
    url: str,
    part: Path,
    file: File,
    progress: BytesProgress,
    sleep: Callable[[float], None],
) -> None:
    """Request a file until all of it is in `part`, with retries where they may help.

    Args:
        url: the http(s) address.
        part: the partial file, which exists; its content is kept and completed.
        file: the file's catalogue entry; without a digest, a part is only completed if the server has
            validators.
        progress: called with every piece that arrives.
        sleep: waits between retries.

    Raises:
        ModelError: the server cannot be reached or does not serve the file.
        OSError: the disk cannot take it.
    """
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
            raise failure(url, problem, remedy, retryable=again) from cause
        sleep(wait)


def _ask(url: str, part: Path, file: File, progress: BytesProgress) -> None:
    """Send one request, for the rest of the file if a part is there. Raises if the answer breaks off."""
    have = part.stat().st_size
    headers = {"User-Agent": f"backfire/{__version__}", "Accept-Encoding": "identity"}
    if have:
        known = validator_file(part).read_text() if validator_file(part).exists() else ""
        if known or file.sha256:  # otherwise nothing would show that the halves are of different files
            headers["Range"] = f"bytes={have}-"
            headers |= {"If-Range": known} if known else {}
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
    with answer, part.open("ab") as out:
        if answer.status != 206 or not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            out.truncate(0)
            have = 0
            if answer.status == 206:
                raise ConnectionError("the server sent another range than requested; starting over")
        _remember(part, answer.headers)
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length and length.isdigit() else file.size
        require_room(part.parent, (total or have) - have)
        try:
            while piece := _piece(answer):
                out.write(piece)
                have += len(piece)
                progress(have, total)
                if file.size is not None and have > file.size:
                    return  # the answer may be endless, and the check below refuses it
        finally:
            flush(out)
        if total is not None and have < total:
            raise ConnectionError(f"{have} of {total} bytes arrived")


def _piece(answer: Any) -> bytes:
    """The next piece of the answer. An OSError here is the network's, so it is told apart from the disk's."""
    try:
        piece: bytes = answer.read(CHUNK)
    except OSError as error:
        raise ConnectionError(str(error)) from error
    return piece


def validator_file(part: Path) -> Path:
    """The file beside a partial one that holds its validator."""
    return part.with_name(part.name + ".etag")


def _remember(part: Path, headers: Any) -> None:
    """Store the validator (ETag or date) of this version of the remote file for a later `If-Range`."""
    etag = headers.get("ETag") or ""
    strong = etag if etag.startswith('"') else headers.get("Last-Modified") or ""
    validator_file(part).write_text(strong)


def require_room(folder: Path, more: int) -> None:
    """Raise an OSError if the disk of a folder has no space for `more` bytes."""
    free = shutil.disk_usage(folder).free
    if more > free:
        raise OSError(errno.ENOSPC, f"{more} bytes more are needed, {free} are free")


def flush(out: IO[bytes]) -> None:
    """Write a file's buffered bytes to the disk."""
    out.flush()
    os.fsync(out.fileno())


def failure(subject: str, problem: str, remedy: str, *, retryable: bool = False) -> ModelError:
    """The error for a file that cannot be fetched."""
    return ModelError(Code.MODEL, f"{subject}: {problem}; {remedy}", retryable=retryable)
