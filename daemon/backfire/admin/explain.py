"""`backfire explain`: what became of a file, and what it waits for."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from backfire import advice
from backfire.admin import decisions
from backfire.admin.retry import archived_original
from backfire.admin.status import is_alive
from backfire.config import Settings
from backfire.errors import PublishError
from backfire.evaluate.judge import of_larger_masks
from backfire.files import inbox
from backfire.service import report_files
from backfire.service.inbox import INCOMPLETE
from backfire.service.store.reader import Reader
from backfire.service.unused import pictures_of, spelt
from backfire.types import Event, Job, JobState, Verdict, shown

WAITING = "; the daemon is not running: backfire run, or backfire once"
MASK_OF = "is the mask of"
NEAR_AMONG = 5000
"""How many former paths, the newest ones, are looked at for names like one that is not known."""


@dataclass(frozen=True)
class Explanation:
    """What is known of a file.

    Attributes:
        path: relative to the inbox.
        in_inbox: whether it lies there.
        waits_for: a sentence on its state and what it waits for.
        rule: the rule of the configuration that holds for it; None where the general settings do.
        jobs: its jobs, newest first, each with its history.
        near: up to three names like it, where no such file is known.
        candidates: the files of this name, where there are several.
        unknown: whether no such file is known, or several are.
    """

    path: bytes
    in_inbox: bool
    waits_for: str
    rule: str | None
    jobs: Sequence[tuple[Job, list[Event]]]
    near: Sequence[str]
    candidates: Sequence[str]
    unknown: bool


def explain(path: Path, settings: Settings, config_file: Path, store: Reader) -> Explanation:
    """Explain a file.

    Args:
        path: as somebody names it: seen from the working folder, the folder of the configuration, or the
            inbox; into the inbox, or to a file of the same name in another of the folders; or the name of
            the picture, or of its result, without its folder.
        settings, config_file: the configuration and its file.
        store: the job database.
    """
    root = settings.folders.inbox
    meant = _meant(path, settings, config_file)
    known = (one for one in meant if store.by_path(one) or inbox.signature(root, one) is not None)
    exact = next(known, None) or next((one for one in meant if _followed(one, settings, store)), None)
    of_name = [] if exact is not None else _of_name(meant, settings, store)
    relative = exact if exact is not None else of_name[0] if len(of_name) == 1 else meant[0]
    found = store.by_path(relative)
    fact = store.fact("daemon")
    here = inbox.signature(root, relative) is not None
    closed = _closed(relative, settings, fact[0].get("unreadable", {}) if fact else {})
    followed = None if found or here else _followed(relative, settings, store)
    unknown = not (found or here or closed or followed)
    alive = is_alive(settings.folders.state, fact)
    rule = settings.rule_of(relative)
    jobs = [(job, store.history(job.id)) for job in found]
    candidates = [shown(one) for one in of_name] if unknown and of_name else []
    waits_for = _waits_for(relative, settings, jobs, closed, here=here, alive=alive)
    unused = fact[0].get("unused", {}).get(shown(relative)) if fact and here and not found else None
    if unused is not None:  # the daemon has seen that it belongs to no picture
        waits_for = f"{shown(relative)}: {unused}"
    if followed is not None:
        waits_for = f"{shown(relative)}: {followed}"
    if candidates:
        waits_for = f"{shown(relative)}: {len(candidates)} pictures have this name; name one of them"
    return Explanation(
        path=relative,
        in_inbox=here,
        waits_for=waits_for,
        rule=None if rule is None else f"rules.{rule} ({settings.rules[rule].match})",
        jobs=jobs,
        near=near(relative, store.paths(NEAR_AMONG), settings) if unknown and not candidates else [],
        candidates=candidates,
        unknown=unknown,
    )


def _followed(path: bytes, settings: Settings, store: Reader) -> str | None:
    """With which picture a companion or a mask left the inbox, and where it is; None of other files."""
    if inbox.is_mask(path):
        what, pictures = MASK_OF, [one for stem in inbox.claimants(path) for one in spelt(stem)]
    elif inbox.is_companion(path) or inbox.is_raw(path):
        what, pictures = "belongs to", pictures_of(path)
    else:
        return None
    folders = settings.folders
    for folder in (folders.archive, folders.failed, folders.review):
        if inbox.signature(folder, path) is not None and (job := store.latest_of(pictures)):
            if folder == folders.failed and what == MASK_OF:  # it may be why the picture failed
                do = f"backfire explain {job.name} says what to do"
            else:
                do = "it is never published, and nothing is to be done with it"
            return f"{what} {job.name}, went with it, and is in {folder}; {do}"
    return None


def _of_name(meant: Sequence[bytes], settings: Settings, store: Reader) -> list[bytes]:
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


def reports_of(job: Job, settings: Settings) -> list[str]:
    """The paths of a job's receipt and sheet, as far as there are any, for people and JSON."""
    with suppress(OSError, PublishError):
        return [shown(os.fsencode(file)) for file in report_files.find(settings.folders.reports, job)]
    return []


def details_of(job: Job, settings: Settings) -> list[str]:
    """All that a verdict was missed by, and what becomes of edits by a larger mask, from the receipt.

    Where it has no reasons, the job's own message.
    """
    details = [job.message] if job.message else []
    with suppress(OSError, PublishError, ValueError, AttributeError):
        for file in report_files.find(settings.folders.reports, job):
            if file.suffix == ".json":
                receipt = json.loads(file.read_bytes())
                details = [str(reason) for reason in receipt.get("reasons") or ()] or details
                larger = of_larger_masks(receipt.get("verdict"), receipt.get("tools_dilated") or {})
                return [*details, larger] if larger else details
    return details


def near(path: bytes, paths: list[bytes], settings: Settings) -> list[str]:
    """Up to three known paths that are like one that is not: those of its file name come first."""
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


def _meant(path: Path, settings: Settings, config_file: Path) -> list[bytes]:
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


def _closed(path: bytes, settings: Settings, unreadable: Mapping[str, str]) -> str | None:
    """Why the folder that a path lies in cannot be read; None where it can."""
    name = shown(path)
    if folder := inbox.closed(settings.folders.inbox, path):
        unreadable = {shown(folder[0]): folder[1], **unreadable}
    for place, why in unreadable.items():
        if name == place or name.startswith(f"{place}/"):
            return f"{'' if name == place else f'lies in {place}, which '}{why}"
    return None


def _settling(settings: Settings, job: Job, events: Sequence[Event]) -> str:
    watch = settings.watch
    told = events[-1].detail if events else {}
    if told.get("code") in INCOMPLETE:
        longest = watch.settle_s + watch.incomplete_wait_s
        return f"ends too early: waits for the rest, and fails when nothing was added to it for {longest:g} s"
    beside = inbox.scan_beside(settings.folders.inbox, [job.path], watch.ignore, watch.proof_ending)
    proof = beside.proof_of(job.path)
    if watch.proof != "none" and proof is None:
        return f"waits for its .{watch.proof} file"
    more = (
        f", or {watch.incomplete_wait_s:g} s longer if its data end too early"
        if watch.incomplete_wait_s
        else ""
    )
    return f"must not change for {watch.settle_s:g} s{more}, or waits to be copied"


def _waits_for(
    path: bytes,
    settings: Settings,
    found: Sequence[tuple[Job, Sequence[Event]]],
    closed: str | None,
    *,
    here: bool,
    alive: bool,
) -> str:
    name = shown(path)
    if not found:
        if closed:
            return f"{name}: {closed}"
        if not here:
            inbox_folder = settings.folders.inbox
            return f"{name}: is not in {inbox_folder}, and no job had this name; check its folder and ending"
        if inbox.is_mask(path) or inbox.near_miss(path):
            return f"{name}: {_of_a_mask(path, settings)}"
        if inbox.is_companion(path):
            return (
                f"{name}: goes where the original of its picture goes; without a picture of its name it stays"
            )
        return f"{name}: not seen yet" + ("" if alive else WAITING)
    (job, events), watch, folders = found[0], settings.watch, settings.folders
    if here and job.state == JobState.SKIPPED and inbox.near_miss(path):
        return f"{name}: {_of_a_mask(path, settings)}"
    result = folders.outbox / shown(job.output_path or b"")
    weak = ", but its protection is weak" if job.verdict == Verdict.WEAK else ""
    if job.is_accepted:
        weak = f"; its protection is weak, which was {decisions.last(events) or decisions.ACCEPTED}"
    again = f"; when it is mended: backfire retry {job.id}" if advice.may_retry(job) else ""
    archived = archived_original(job, settings) if job.state == JobState.ARCHIVED else None
    original = archived or f"not in {folders.archive} (any more)"
    settling = _settling(settings, job, events) if job.state == JobState.SETTLING else ""
    sentences = {
        JobState.SETTLING: settling,
        JobState.WAITING_MASK: (
            f"waits up to {watch.mask_wait_s:g} s for a mask"
            if time.time() < job.updated + watch.mask_wait_s
            else "waits in line behind others"
        ),
        JobState.READY: "waits for a worker" if job.not_before <= time.time() else "waits to be tried again",
        JobState.RUNNING: "is being protected",
        JobState.PUBLISHING: "is done and waits for the outbox",
        JobState.SETTING_ASIDE: f"cannot be protected and is being moved to {folders.failed}",
        JobState.HOLDING: f"has nothing to protect, or a weak result, and is being moved to {folders.review}",
        JobState.REVIEW: (
            f"is held in {folders.review} until a person decides: backfire release {job.id} with "
            "--mask FILE or --whole protects it, alone it publishes it as it is"
        ),
        JobState.RELEASING: "was decided about and goes on",
        JobState.PUBLISHED: "is published; its original waits for the archive",
        JobState.SKIPPED: "left the inbox before it was worked; drop it into the inbox again",
        JobState.ARCHIVED: f"is done{weak}; the result is {result}; its original is {original}",
        JobState.FAILED: f"failed; the original is in {folders.failed}{again}",
        JobState.QUARANTINED: f"was set aside in {folders.failed}{again}",
    }
    sentence = sentences.get(job.state, job.state.value)
    return f"{name}: {sentence}" + ("" if alive or not here else WAITING)


def _of_a_mask(path: bytes, settings: Settings) -> str:
    """Whether a mask or annotation in the inbox, or what is nearly called one, has a picture."""
    watch = settings.watch
    found = inbox.scan(settings.folders.inbox, watch.ignore, watch.proof_ending)
    miss = found.near_misses().get(path)
    if path in found.orphans() or (miss is not None and found.is_claimed(miss)):
        return inbox.why_unused(path)
    return "is a mask; it is used with its picture" if miss is None else "waits for a picture it may be of"
