"""`backfire check`: whether the daemon can work here; each line is ok or says what to do."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path

from backfire import detectors, inpaint
from backfire.admin import probes
from backfire.admin.probes import Check
from backfire.config import Regions, Settings
from backfire.errors import BackfireError
from backfire.files import inbox
from backfire.perturb import methods
from backfire.types import shown

LOW_SPACE = 2 << 30
"""Free bytes below which the check warns."""
MOST_FOLDERS = 20
"""The most subfolders of the inbox that are named because they cannot be read."""


def check(settings: Settings) -> Iterator[Check]:
    """Check folders, space, file systems, inotify, clock, addresses, devices, detectors, methods and editors.

    A small hidden file is written in each folder, or where the folder will be made, and deleted again.
    """
    yield Check("config", f"valid, digest {settings.sha256[:12]}…")
    for name, folder in settings.folders.named().items():
        yield _folder(name, folder)
    yield from _subfolders(settings)
    yield from _spaces(settings)
    yield from _filesystems(settings)
    yield from probes.inotify()
    yield probes.clock(settings.folders.database)
    yield from probes.surroundings(settings)
    devices = dict.fromkeys((*settings.limits.devices, settings.protect.device))
    # If devices are named, `auto` is one of them.
    yield from map(_device, [one for one in devices if one != "auto" or not settings.limits.devices])
    if settings.editors:
        yield _loads("declared editors", partial(_declared, settings))
    seen: set[tuple[str, object]] = set()
    for where, variant in settings.variants():
        for name in variant.regions.detectors:
            if (name, variant.regions) not in seen:
                yield _loads(f"{where}detector {name}", partial(_detector, name, variant.regions))
            seen.add((name, variant.regions))
        method, surrogates = variant.protect.method, variant.protect.surrogates
        if (method, surrogates) not in seen:
            yield _loads(f"{where}method {method}", partial(_method, variant))
        seen.add((method, surrogates))
        for name in dict.fromkeys((*variant.protect.surrogates, *variant.verify.held_out)):
            if (name, "editor") not in seen:
                yield _loads(f"{where}editor {name}", partial(_editor, name, variant))
            seen.add((name, "editor"))


def _detector(name: str, regions: Regions) -> str:
    return type(detectors.get(name, regions)).__name__


def _method(settings: Settings) -> str:
    # An unknown editor gets a line of its own.
    known = {*inpaint.NAMES, *settings.editors}
    if known.issuperset(settings.protect.surrogates):
        methods.require_fit(settings)
    return type(methods.get(settings.protect.method)).__name__


def _declared(settings: Settings) -> str:
    inpaint.require_known(settings)
    return ", ".join(settings.editors)


def _editor(name: str, settings: Settings) -> str:
    return f"weights {inpaint.get(name, settings=settings).weights_sha256[:12]}…"


def _folder(name: str, folder: Path) -> Check:
    subject = f"folder {name}"
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        return Check(subject, f"{existing} is a file", "move it away or name another folder")
    trouble = probes.write(existing)
    if trouble is not None:
        mode = existing.stat().st_mode & 0o7777
        found = f"{existing} (mode {mode:04o}): uid {os.geteuid()} cannot {trouble.found}"
        return Check(subject, found, trouble.remedy)
    return Check(subject, f"{folder}" if folder == existing else f"{folder} will be made")


def _subfolders(settings: Settings) -> Iterator[Check]:
    """A line for each folder below the inbox that this process cannot look into."""
    with suppress(OSError):  # an inbox that cannot be read has its own line
        unreadable = inbox.scan(settings.folders.inbox, settings.watch.ignore).unreadable
        for path, why in islice(sorted(unreadable.items()), MOST_FOLDERS):
            found, _, remedy = why.rpartition("; ")
            yield Check(f"inbox/{shown(path)}", found, remedy)


def _spaces(settings: Settings) -> Iterator[Check]:
    """One line for each disk, with all the folders on it."""
    disks: dict[int, list[str]] = {}
    free: dict[int, int] = {}
    for name, folder in settings.folders.named().items():
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        disk = existing.stat().st_dev
        disks.setdefault(disk, []).append(name)
        free[disk] = shutil.disk_usage(existing).free
    for disk, names in disks.items():
        remedy = "free some space: results and private copies need it" if free[disk] < LOW_SPACE else ""
        yield Check(f"space for {', '.join(names)}", f"{free[disk] / 2**30:.1f} GiB free", remedy)


def _filesystems(settings: Settings) -> Iterator[Check]:
    kind = inbox.filesystem(settings.folders.state)
    remedy = "SQLite needs a local disk: set folders.state to one" if kind in inbox.NETWORK else ""
    yield Check("file system of state", kind, remedy)
    kind = inbox.filesystem(settings.folders.inbox)
    blind = kind in inbox.NETWORK and settings.watch.mode == "inotify"
    remedy = "other hosts' changes raise no events here: set watch.mode to auto or polling" if blind else ""
    yield Check("file system of inbox", kind, remedy)


def _device(name: str) -> Check:
    from backfire.inpaint.hardware import pick_device

    try:
        return Check("device", str(pick_device(name)))
    except BackfireError as error:
        return Check("device", name, str(error))


def _loads(subject: str, load: Callable[[], str]) -> Check:
    try:
        return Check(subject, load())
    except BackfireError as error:
        return Check(subject, "not usable", str(error))
