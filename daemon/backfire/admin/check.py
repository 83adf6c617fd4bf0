"""`backfire check`: whether the daemon can work here; each line is ok or says what to do."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path

from backfire import attack_paths, detectors, inpaint
from backfire.admin import cluster, probes
from backfire.admin.probes import Check
from backfire.admin.space import space
from backfire.config import Regions, Settings, Verify
from backfire.errors import BackfireError, ConfigError
from backfire.evaluate import judge
from backfire.files import inbox
from backfire.perturb import methods
from backfire.provenance import credentials, signing
from backfire.service.store.messages import is_lost, missing
from backfire.types import shown

LOW_SPACE = 2 << 30
"""Free bytes below which the check warns."""
MOST_FOLDERS = 20
"""The most subfolders of the inbox that are named because they cannot be read, or cannot be emptied."""


def check(settings: Settings) -> Iterator[Check]:
    """Check folders, space, file systems, inotify, clock, addresses, devices, detectors, methods and editors.

    A small hidden file is written in each folder, or where the folder will be made, and deleted again.
    """
    yield Check("config", f"valid, digest {settings.sha256[:12]}…")
    for name, folder in settings.folders.named().items():
        yield _folder(name, folder)
    yield from _database(settings.folders.database)
    yield from _subfolders(settings)
    yield from _spaces(settings)
    yield from _filesystems(settings)
    yield from probes.inotify()
    yield probes.clock(settings.folders.database)
    yield from probes.surroundings(settings)
    if settings.provenance.on:
        yield from _signer(settings)
    if settings.cluster.address is not None:
        yield from cluster.reachable(settings)
    devices = dict.fromkeys((*settings.limits.devices, settings.protect.device))
    # If devices are named, `auto` is one of them.
    yield from map(_device, [one for one in devices if one != "auto" or not settings.limits.devices])
    yield from thresholds(settings)
    if settings.editors:
        yield _loads("declared editors", partial(_declared, settings))
    seen: set[tuple[object, object]] = set()
    broken: set[str] = set()
    times: list[Callable[[], Check]] = []  # come last, as each takes minutes on a busy machine
    for where, variant in settings.variants():
        for name in variant.regions.detectors:
            if (name, variant.regions) not in seen:
                yield _loads(f"{where}detector {name}", partial(_detector, name, variant.regions))
            seen.add((name, variant.regions))
        method, said = variant.protect.method, variant.protect.surrogates
        if (method, said) not in seen:
            yield _loads(f"{where}method {method}", partial(_method, variant))
        try:
            variant = methods.with_surrogates(variant)
        except BackfireError:  # the line of the method says why
            continue
        surrogates = variant.protect.surrogates
        if said == "auto" and (method, said) not in seen:
            yield Check(f"{where}surrogates", ", ".join(surrogates))
        seen.add((method, said))
        if (method, variant.verify.paths) not in seen:
            yield _loads(f"{where}attack paths", partial(_paths, variant))
        seen.add((method, variant.verify.paths))
        for name in dict.fromkeys((*surrogates, *variant.verify.held_out)):
            if (name, "editor") not in seen:
                found = _loads(f"{where}editor {name}", partial(_editor, name, variant))
                broken |= set() if found.ok else {name}
                yield found
            seen.add((name, "editor"))
        judged = variant.verify.paths, variant.verify.held_out
        if (variant.protect, judged) not in seen and not broken.intersection(
            (*surrogates, *variant.verify.held_out)
        ):
            times.append(partial(_loads, f"{where}time for a picture", partial(_pace, variant)))
        seen.add((variant.protect, judged))
    for time_for_a_picture in times:
        yield time_for_a_picture()


def _database(path: Path) -> Iterator[Check]:
    """A line where the daemon would refuse to begin with a new job database in place of a lost one."""
    with suppress(OSError):  # of its folder there is a line already
        if is_lost(path):
            found, _, remedy = missing(path).partition("; ")
            yield Check("database", found, remedy)


def thresholds(settings: Settings) -> Iterator[Check]:
    """Whether each threshold of the verdict asks something, a line for each `verify` of the rules."""
    seen = set[Verify]()
    for where, variant in settings.variants():
        if variant.verify in seen:
            continue
        seen.add(variant.verify)
        idle = ", ".join(f"{name} {value:g}" for name, value in judge.asking_nothing(variant.verify).items())
        found = f"verify: {idle}: which every picture meets" if idle else "each asks something"
        remedy = "take them out of verify: pictures whose edits hardly break could be called protected"
        yield Check(f"{where}thresholds", found, remedy if idle else "")


def _detector(name: str, regions: Regions) -> str:
    found = type(detectors.get(name, regions)).__name__
    if name == "command" and shutil.which(program := regions.command.argv[0]) is None:
        raise ConfigError(
            f"regions.command.argv: {program} cannot be run; name a program that exists and that this uid "
            "may run"
        )
    return found


def _method(settings: Settings) -> str:
    # An unknown editor is reported in a line of its own.
    surrogates = settings.protect.surrogates
    if surrogates == "auto" or set(inpaint.known(settings)).issuperset(surrogates):
        methods.require_fit(settings)
    return type(methods.get(settings.protect.method)).__name__


def _paths(settings: Settings) -> str:
    settings = methods.with_surrogates(settings)
    known = {*inpaint.known(settings)}
    if not known.issuperset((*settings.protect.surrogates, *settings.verify.held_out)):
        return "not known for an unknown editor"
    every = attack_paths.of_editors(settings).values()
    return ", ".join(dict.fromkeys(path for paths in every for path in paths))


def _declared(settings: Settings) -> str:
    inpaint.require_known(settings)
    return ", ".join(settings.editors)


def _editor(name: str, settings: Settings) -> str:
    return f"weights {inpaint.get(name, settings=settings).weights_sha256[:12]}…"


def _pace(settings: Settings) -> str:
    from backfire.admin import pace  # brings torch

    return pace.estimate(settings).sentence


def _signer(settings: Settings) -> Iterator[Check]:
    """What signs the published files, tried on a picture of one pixel."""
    try:
        found = signing.probe(settings.provenance)
    except BackfireError as error:
        yield Check("signer", "not usable", str(error))
        return
    end = time.strftime("%Y-%m-%d", time.gmtime(found.until))
    days = (found.until - time.time()) / credentials.DAY_S
    soon = f"get a new certificate: it expires in {days:.0f} days" if days < credentials.SOON_DAYS else ""
    yield Check("signer", f"{found.subject}, {found.algorithm}, until {end}; signed a trial", soon)
    if credentials.exposed(settings.provenance):
        key = settings.provenance.key
        yield Check("signer's key", f"everybody may read {key}", f"chmod o-r {shlex.quote(str(key))}")


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
    if name == "inbox" and not folder.parent.exists():
        # Nobody drops pictures there yet: a typing error, or a share that is not mounted.
        remedy = f"check the spelling, mount the share, or make it: mkdir -p {shlex.quote(str(folder))}"
        return Check(subject, f"{folder}: its parent {folder.parent} does not exist", remedy)
    return Check(subject, f"{folder}" if folder == existing else f"{folder} will be made")


def _subfolders(settings: Settings) -> Iterator[Check]:
    """A line for each folder below the inbox that this process cannot look into or take files out of."""
    root = settings.folders.inbox
    with suppress(OSError):  # an inbox that cannot be read has its own line
        scan = inbox.scan(root, settings.watch.ignore)
        for path, why in islice(sorted(scan.unreadable.items()), MOST_FOLDERS):
            found, _, remedy = why.rpartition("; ")
            yield Check(f"inbox/{shown(path)}", found, remedy)
        files: dict[bytes, list[bytes]] = {}
        for path in sorted(scan.files):
            files.setdefault(os.path.dirname(path), []).append(path)
        files.pop(b"", None)
        yield from islice(filter(None, (_closed(root, *entry) for entry in files.items())), MOST_FOLDERS)


def _closed(root: Path, path: bytes, files: list[bytes]) -> Check | None:
    """The line for a folder below the inbox that this process cannot take files out of; None for others."""
    folder, uid = root / os.fsdecode(path), os.geteuid()
    with suppress(OSError):  # it is gone by now, with or without its files
        about = folder.stat()
        sticky = about.st_mode & stat.S_ISVTX and uid not in (0, about.st_uid)
        if os.access(folder, os.W_OK | os.X_OK) and not (
            sticky and any((root / os.fsdecode(file)).lstat().st_uid != uid for file in files)
        ):
            return None
        found = f"uid {uid} cannot remove files (mode {about.st_mode & 0o7777:04o})"
        mode = "g+w,-t" if sticky else "g+w"
        remedy = f"chmod {mode} {shlex.quote(str(folder))}, where its group is the daemon's; "
        remedy += f"and for folders to come: setfacl -R -d -m g::rwx {shlex.quote(str(root))}"
        return Check(f"inbox/{shown(path)}", found, remedy)
    return None


def _spaces(settings: Settings) -> Iterator[Check]:
    """One line for each disk, with all the folders on it."""
    for disk in space(settings.folders.named()):
        names, free = disk.folders, disk.free
        subject = f"space for {', '.join(names)}"
        if free is None:
            yield Check(subject, "cannot be asked", "mount the disk again, or name another folder")
            continue
        floor, remedy = settings.limits.free_mb, ""
        if names != ["inbox"] and free < LOW_SPACE:  # nothing is written to the inbox
            remedy = "free some space: results and private copies need it"
        if names != ["inbox"] and free >> 20 < floor:
            remedy = f"free some space: limits.free_mb asks for {floor} MiB, and with less nothing is begun"
        yield Check(subject, f"{free / 2**30:.1f} GiB free", remedy)


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
