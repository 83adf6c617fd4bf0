"""`backfire bag`: published pictures, originals and receipts as one BagIt bag (RFC 8493).

Every file is compared with the manifests and the database while it is copied, so that no bag is made with
a changed or a missing original. The bag gets its name only when it is complete and validated. This is the
only module that uses the library `bagit` (extra `archive`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from backfire import __version__
from backfire.admin.audit import expected_in
from backfire.config import Settings
from backfire.errors import BackfireError, ConfigError
from backfire.files import durable, manifest, outbox
from backfire.pipeline.result import PhaseProgress, no_progress
from backfire.service import report_files
from backfire.types import Job, shown

SPARE = 64 << 20
"""Bytes that must stay free beside the bag."""


@dataclass(frozen=True)
class Bagged:
    """The bag's folder, its payload (files, bytes), and the published files that were gone already."""

    folder: Path
    files: int
    size: int
    absent: tuple[str, ...]


@dataclass(frozen=True)
class _Item:
    """A file for the bag.

    Attributes:
        name, root: the folder that it lies in, by its setting's name and its path.
        path: below that folder.
        digests: of the contents that it may have; none allows any.
        other_days: of the contents that had its name on days which are not asked for.
    """

    name: str
    root: Path
    path: bytes
    digests: frozenset[str] = frozenset()
    other_days: frozenset[str] = frozenset()

    @property
    def source(self) -> bytes:
        """Where it lies."""
        return os.path.join(os.fsencode(self.root), self.path)

    @property
    def target(self) -> str:
        """Its path in the bag."""
        return f"{self.name}/{_text(self.path)}"


def bag(
    settings: Settings,
    target: Path,
    jobs: Iterable[Job],
    *,
    days: Collection[str] = (),
    info: Mapping[str, str] | None = None,
    progress: PhaseProgress = no_progress,
) -> Bagged:
    """Make a bag.

    Args:
        settings: only the folders are used.
        target: the bag's folder, which must not exist.
        jobs: from the database.
        days: only what was published and archived on these days (UTC, `2026-11-24`); none takes all.
        info: fields for `bag-info.txt`.
        progress: called as progress(what, done, total).

    Raises:
        ConfigError: `target` exists, lies in one of the daemon's folders or has no room, a day is malformed,
            or the library is not installed.
        BackfireError: an original is missing, or a file was changed; nothing is left behind.
    """
    bagit = _library()
    if os.path.lexists(target):
        raise ConfigError(f"bag {target}: exists already; nothing is overwritten; name another folder")
    for setting, folder in settings.folders.named().items():
        if target.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(
                f"bag {target}: lies in folders.{setting}, whose files are published, taken in or tidied up; "
                "name a folder elsewhere"
            )
    if wrong := [day for day in days if not _is_day(day)]:
        raise ConfigError(f"--day {', '.join(wrong)}: expected days of the calendar, as 2026-11-24")
    items, absent = _collected(settings, list(jobs), days)
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # left by a crash
    try:
        part.mkdir(mode=0o750, parents=True)
        _require_room(part, items)
        digests: dict[str, str] = {}
        for done, item in enumerate(items, start=1):
            digest = _copy(item, part / item.target)
            if digest in item.other_days:  # its own file was taken out, and another got the name
                (part / item.target).unlink()
                absent.append(_absent(item))
            else:
                digests[f"data/{item.target}"] = digest
            progress("copy", done, len(items))
        progress("bag", 0, 1)
        made = bagit.make_bag(str(part), _info(info), checksums=["sha256"])
        kept = {path: entry["sha256"] for path, entry in made.payload_entries().items()}
        if kept != digests:
            wrong_path = next(path for path in {**kept, **digests} if kept.get(path) != digests.get(path))
            raise BackfireError(f"bag {target}: {wrong_path} reads back different; check the disk")
        made.validate(completeness_only=True)
        size = sum(os.path.getsize(part / path) for path in kept)
        _synced(part)
        os.rename(part, target)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        message = f"bag {target}: cannot be written ({error.strerror}); name another place"
        raise ConfigError(message) from error
    except bagit.BagError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise BackfireError(f"bag {target}: could not be made ({error})") from error
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return Bagged(target, len(kept), size, tuple(absent))


def _is_day(text: str) -> bool:
    with suppress(ValueError):
        return date.fromisoformat(text).isoformat() == text
    return False


def _collected(settings: Settings, jobs: list[Job], days: Collection[str]) -> tuple[list[_Item], list[str]]:
    """What goes into the bag, and which published files were taken out of the outbox."""
    items: list[_Item] = []
    absent: list[str] = []
    for name in ("archive", "outbox"):
        folder = settings.folders.named()[name]
        if not folder.is_dir():
            raise ConfigError(f"bag: {name} {folder} is not there; nothing was published yet: backfire run")
        ever, _ = expected_in(name, folder, jobs)
        expected = ever
        if days:
            expected = {}
            for entry in manifest.read(folder, days).entries:
                expected.setdefault(entry.path, set()).add(entry.sha256)
        for path, digests in expected.items():
            item = _Item(name, folder, path, frozenset(digests), frozenset(ever.get(path, set()) - digests))
            if os.path.lexists(item.source):
                items.append(item)
            else:
                absent.append(_absent(item))
        if name == "outbox":
            items += _receipts(settings.folders.reports, expected, jobs)
    if not items:
        when = f" on {', '.join(sorted(days))}" if days else ""
        raise BackfireError(f"nothing was published or archived{when}; there is nothing to bag")
    return items, absent


def _absent(item: _Item) -> str:
    """The name of a published file that was taken out of the outbox.

    Raises:
        BackfireError: it is an original, which must be there.
    """
    if item.name == "archive":
        raise BackfireError(
            f"original {shown(item.path)}: is missing from {item.root}; backfire audit lists all that are"
        )
    return shown(item.path)


def _receipts(reports: Path, published: Mapping[bytes, set[str]], jobs: Iterable[Job]) -> Iterator[_Item]:
    """Receipts and sheets of what was published, of each path under these digests."""
    known = set[bytes]()
    files: dict[Path, None] = {}
    for job in jobs:
        path = job.output_path or b""
        if path in published:
            known.add(path)
            if job.output_sha256 in published[path]:
                files |= dict.fromkeys(report_files.find(reports, job))
    for path in published.keys() - known:  # the database is gone or has forgotten the job
        receipt, sheet = (
            reports / os.fsdecode(outbox.beside(reports, path, suffix, ""))
            for suffix in (b".json", b".sheet.jpg")
        )
        if _result_in(receipt) in (None, *published[path]):
            files |= {receipt: None, sheet: None}
    for file in files:
        if file.is_file() and not file.is_symlink():
            yield _Item("reports", reports, os.fsencode(file.relative_to(reports)))


def _result_in(receipt: Path) -> str | None:
    """The digest of the published file that a receipt is about; None where it does not say."""
    try:
        document = json.loads(receipt.read_bytes())
    except (OSError, ValueError):
        return None
    return document.get("output_sha256") if isinstance(document, dict) else None


def _copy(item: _Item, target: Path) -> str:
    """Copy one file, never following a link, and return its SHA-256."""
    target.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    digest = hashlib.sha256()
    try:
        descriptor = os.open(item.source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BackfireError(f"{shown(item.source)}: cannot be read ({error.strerror})") from error
    with os.fdopen(descriptor, "rb") as reader, target.open("xb") as writer:
        for piece in durable.pieces(reader):
            digest.update(piece)
            writer.write(piece)
    shutil.copystat(item.source, target)
    found = digest.hexdigest()
    if item.digests and found not in item.digests | item.other_days:
        wanted = " or ".join(sorted(item.digests))
        raise BackfireError(
            f"{shown(item.source)}: is {found}, expected {wanted}; it was changed after it was published or "
            "archived; backfire audit lists everything that was"
        )
    return found


def _text(path: bytes) -> str:
    """The path in a bag, whose manifests are UTF-8: other bytes are percent-encoded."""
    name = path.decode("utf-8", "surrogateescape")
    return re.sub("[\udc80-\udcff]", lambda found: f"%{ord(found[0]) - 0xDC00:02X}", name)


def _require_room(part: Path, items: Iterable[_Item]) -> None:
    size = sum(os.path.getsize(item.source) for item in items)
    free = shutil.disk_usage(part).free
    if size + SPARE > free:
        raise ConfigError(
            f"bag: needs {size / 2**20:.0f} MiB, {part.parent} has {free / 2**20:.0f}; name another place"
        )


def _info(info: Mapping[str, str] | None) -> dict[str, str]:
    about = "Protected pictures (outbox), their originals (archive) and receipts (reports) of Backfire"
    ours = {"External-Description": about, "Internal-Sender-Description": f"backfire {__version__}"}
    return {**ours, **(info or {})}


def _synced(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for path in (*(os.path.join(parent, name) for name in names), parent):
            durable.sync(Path(path))


def _library() -> Any:
    try:
        import bagit
    except ImportError as error:
        remedy = "pip install 'backfire[archive]'"
        raise ConfigError(f"bag: the library bagit is not installed; {remedy}") from error
    return bagit
