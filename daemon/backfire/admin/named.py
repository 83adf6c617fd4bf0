"""Which job somebody means who names a picture.

Commands act on it, and some publish. So nothing is guessed, as `explain` does: a path is one below the inbox,
and a name that several pictures have or had stands for none of them.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

from backfire.admin.explain import NEAR_AMONG, near
from backfire.config import Settings
from backfire.errors import BackfireError
from backfire.files import inbox
from backfire.service.store.reader import Reader
from backfire.types import Job, printable

LISTED = 9
"""The most jobs of one name that are listed."""


class NotOneJob(BackfireError):
    """A name stands for no job, or for several. Says which, or names near ones; nothing was done."""


def numbers_of(
    texts: Iterable[str], those: Callable[[], Sequence[Job]], settings: Settings, store: Reader
) -> list[int]:
    """The numbers of the jobs that somebody names, each once.

    Args:
        texts: numbers of jobs, known or not; names of pictures; or their paths, below the inbox or leading
            into it or to the folders of failed and of held originals.
        those: gives the jobs about which something can be done now, and is asked once at most. A picture
            stands for the one of its jobs that is among them, or for its newest one, so that it can be told
            why nothing can be done.
        settings: the folders are used.
        store: the job database.

    Raises:
        NotOneJob: a picture has no job, several jobs could be meant, or several pictures have the name.
    """
    once = cache(lambda: tuple(those()))
    numbers = (int(text) if is_number(text) else _number_of(text, once, settings, store) for text in texts)
    return list(dict.fromkeys(numbers))


def is_number(text: str) -> bool:
    """Whether a text is the number of a job. A picture whose name is digits alone is given as `./123`."""
    return text.isascii() and text.isdigit()


def _number_of(text: str, those: Callable[[], Sequence[Job]], settings: Settings, store: Reader) -> int:
    paths = [path for path in _paths(text, settings, store) if store.by_path(path)]
    jobs = [job for job in those() if job.path in paths]
    if len(paths) == 1 and len(jobs) < 2:
        return (jobs or store.by_path(paths[0]))[0].id
    if not paths:
        raise NotOneJob(printable(f"{text}: {_why_none(text, settings, store)}; nothing was done"))
    jobs = jobs or [store.by_path(path)[0] for path in paths]
    listed = ", ".join(f"{job.id} ({job.name})" for job in jobs[:LISTED])
    more = f" and {len(jobs) - LISTED} more" if len(jobs) > LISTED else ""
    got = f"{len(paths)} pictures have this name" if len(paths) > 1 else "it has several jobs"
    said = f"{text}: {got}; give the number of a job: {listed}{more}; nothing was done"
    raise NotOneJob(printable(said))


def _paths(text: str, settings: Settings, store: Reader) -> list[bytes]:
    """The paths below the inbox that a text may mean: one, but for a name that stands in several folders."""
    if os.path.basename(text) == text:
        # macOS writes é as two characters, others as one.
        written = {text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFD"))}
        forms = set(map(os.fsencode, written))
        known = {path for form in forms for path in store.named(form)}
        return sorted(path for path in known if os.path.basename(path) in forms)
    folders = settings.folders
    absolute = Path(os.path.normpath(Path.cwd() / text))
    for seen in (absolute, absolute.resolve()):
        for folder in (folders.inbox, folders.failed, folders.review):
            for place in (folder, folder.resolve()):
                if place in seen.parents:
                    return [os.fsencode(seen.relative_to(place))]
    return [os.fsencode(os.path.normpath(text))]


def _why_none(text: str, settings: Settings, store: Reader) -> str:
    path = _paths(text, settings, store)[:1] or [os.fsencode(text)]
    below = not path[0].startswith((b"/", b"../"))
    if below and inbox.signature(settings.folders.inbox, path[0]) is not None:
        return "it waits in the inbox and has no job yet"
    alike = near(path[0], store.paths(NEAR_AMONG), settings)
    like = ", ".join(one for one in alike if store.by_path(os.fsencode(one)))
    hint = f"near names: {like}" if like else "backfire jobs lists those that are known"
    return f"no picture of this name has a job; {hint}"
