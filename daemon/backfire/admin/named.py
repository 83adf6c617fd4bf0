"""Which pictures and jobs somebody means by a path, a name or a number."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

from backfire.config import Settings
from backfire.errors import BackfireError
from backfire.files import inbox
from backfire.service.store.reader import Reader
from backfire.types import Job, shown

NEAR_AMONG = 5000
"""How many former paths, the newest ones, are looked at for names like one that is not known."""
LISTED = 9
"""The most jobs of one name that are listed."""


class NotOneJob(BackfireError):
    """A name stands for no job, or for several. Says which, or names near ones; nothing was done."""


def numbers_of(
    texts: Iterable[str],
    those: Callable[[], Sequence[Job]],
    settings: Settings,
    config_file: Path,
    store: Reader,
) -> list[int]:
    """The numbers of the jobs that somebody names, each once.

    Args:
        texts: numbers of jobs, known or not, and pictures as `explain` takes them.
        those: gives the jobs about which something can be done now: a name stands for one of them. Where none
            of them has it, it stands for the newest job of its picture, so that it can be told why not.
        settings, config_file: the configuration and its file.
        store: the job database.

    Raises:
        NotOneJob: a name stands for no job, or for several.
    """
    numbers = (
        int(text) if is_number(text) else _number_of(text, those(), settings, config_file, store)
        for text in texts
    )
    return list(dict.fromkeys(numbers))


def is_number(text: str) -> bool:
    """Whether a text is the number of a job. A picture whose name is digits alone is given as `./123`."""
    return text.isascii() and text.isdigit()


def _number_of(text: str, those: Sequence[Job], settings: Settings, config_file: Path, store: Reader) -> int:
    meant = paths_meant(Path(text), settings, config_file)
    exact = next((one for one in meant if store.by_path(one)), None)
    paths = of_name(meant, settings, store) if exact is None else [exact]
    jobs = [job for job in those if job.path in paths]
    jobs = jobs or [newest for path in paths for newest in store.by_path(path)[:1]]
    if len(jobs) == 1:
        return jobs[0].id
    if not jobs:
        like = ", ".join(near(meant[0], settings, store))
        hint = f"near names: {like}" if like else "backfire jobs lists those that are known"
        raise NotOneJob(f"{text}: no picture of this name has a job; {hint}")
    listed = ", ".join(f"{job.id} ({job.name})" for job in jobs[:LISTED])
    more = f" and {len(jobs) - LISTED} more" if len(jobs) > LISTED else ""
    raise NotOneJob(
        f"{text}: is the name of {len(jobs)} jobs, {listed}{more}; give the number of one; nothing was done"
    )


def paths_meant(path: Path, settings: Settings, config_file: Path) -> list[bytes]:
    """What a path may mean, relative to the inbox; the likeliest first.

    It may be seen from the working folder, from that of the configuration, or from the inbox, and may lead
    into the inbox or to a file of the same name in another of the folders.
    """
    meant = []
    for base in (Path.cwd(), config_file.absolute().parent):
        absolute = Path(os.path.normpath(base / path))
        for folder in settings.folders.named().values():
            if folder in absolute.parents:
                meant.append(os.fsencode(absolute.relative_to(folder)))
    # What lies elsewhere is at least known by its name.
    return list(dict.fromkeys([*meant, os.fsencode(path.name if path.is_absolute() else path)]))


def of_name(meant: Sequence[bytes], settings: Settings, store: Reader) -> list[bytes]:
    """The pictures, waiting or known, of a name without folders, or whose result has one of these paths."""
    results = [
        picture
        for path in meant
        for picture in store.named(os.path.basename(path))
        if any(job.output_path == path for job in store.by_path(picture))
    ]
    name = meant[-1]
    if results or os.path.dirname(name):
        return list(dict.fromkeys(results))
    waiting: list[bytes] = []
    with suppress(OSError):
        files = inbox.scan(settings.folders.inbox, settings.watch.ignore).files
        waiting = [path for path in files if os.path.basename(path) == name]
    return list(dict.fromkeys([*waiting, *store.named(name)]))


def near(path: bytes, settings: Settings, store: Reader) -> list[str]:
    """Up to three known paths that are like one that is not: those of its file name come first."""
    paths = store.paths(NEAR_AMONG)
    with suppress(OSError):
        paths = [*inbox.scan(settings.folders.inbox, settings.watch.ignore).files, *paths]
    names = list(dict.fromkeys(map(shown, paths)))
    wanted = shown(path)
    by_name: dict[str, list[str]] = {}
    for name in names:
        by_name.setdefault(os.path.basename(name), []).append(name)
    alike = get_close_matches(os.path.basename(wanted), by_name)
    of_its_name = by_name.get(os.path.basename(wanted), [])
    like_it = [name for one in alike for name in by_name[one]]
    return list(dict.fromkeys([*of_its_name, *get_close_matches(wanted, names), *like_it]))[:3]
