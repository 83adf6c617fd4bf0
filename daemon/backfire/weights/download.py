"""Fetching weights from the catalogue's source, a mirror or a folder. A file is verified before it gets its
name.

The module `transfer` is responsible for HTTP.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from backfire.files import durable
from backfire.weights import PINS, File, Model, expected, pin
from backfire.weights.transfer import (
    CHUNK,
    BytesProgress,
    failure,
    flush,
    require_room,
    transfer,
    validator_file,
)

FileProgress = Callable[[str, int, int | None], None]
"""Called as progress(path, bytes so far, bytes in total or None). It may raise to stop the download."""


def fetch(
    model: Model,
    folder: Path,
    *,
    source: str | None = None,
    progress: FileProgress = lambda path, done, total: None,
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
    progress: FileProgress,
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
            transfer(place, part, file, lambda done, total: progress(file.path, done, total), sleep)
        got = _checked(part, file, want, str(place), folder)
        if want is None:
            pin(model, file, got, folder)
        part.replace(target)
        with suppress(OSError):
            durable.sync(target.parent)
    validator_file(part).unlink(missing_ok=True)
    return target


def _source(model: Model, file: File, source: str | None) -> str | Path:
    """The URL or path from which one file is fetched."""
    if source is None:
        if file.url is None:
            raise failure(f"model {model.name}", "nobody serves it in the form that is needed", model.note)
        return file.url
    scheme = urlsplit(source).scheme
    if scheme in ("http", "https"):
        if source.endswith("/"):
            return urljoin(source, file.path)
        if len(model.files) > 1:
            remedy = f"name what holds the {len(model.files)} files of {model.name}, ending in /"
            raise failure(f"--from {source}", "is one file", remedy)
        return source
    if len(scheme) > 1:
        problem = f"got {scheme}:, expected http, https or a path"
        raise failure(f"--from {source}", problem, "name one of these")
    path = Path(source).expanduser()
    path = path / file.path if path.is_dir() else path
    if not path.is_file() or (len(model.files) > 1 and path == Path(source).expanduser()):
        names = ", ".join(one.path for one in model.files)
        raise failure(f"--from {source}", "does not hold the model's files", f"name a folder with {names}")
    return path


def _copy(source: Path, part: Path, progress: BytesProgress) -> None:
    try:
        data = source.open("rb")
    except OSError as error:
        raise failure(
            str(source), f"cannot be read ({error.strerror})", "check it, or name another"
        ) from error
    with data, part.open("wb") as out:
        total = os.fstat(data.fileno()).st_size
        require_room(part.parent, total)
        while piece := data.read(CHUNK):
            out.write(piece)
            progress(out.tell(), total)
        flush(out)


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
    raise failure(place, wrong, remedy)


def _is_page(part: Path) -> bool:
    with part.open("rb") as file:
        return file.read(512).lstrip().lower().startswith((b"<!doctype html", b"<html"))


@contextmanager
def _alone(part: Path) -> Iterator[None]:
    """Make the folder and hold a lock on the partial file, so that two fetches do not write the same file."""
    part.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with part.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise failure(str(part), "another fetch is writing it", "wait until that has ended") from error
        try:
            yield
        finally:
            if part.exists() and part.stat().st_size == 0:
                part.unlink()
                validator_file(part).unlink(missing_ok=True)


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
        raise failure(str(target), problem, remedy, retryable=full) from error
