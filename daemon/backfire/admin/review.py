"""`backfire release` and `accept`, and the same on the status page: decisions about held and weak pictures.

A decision is recorded in the job database, and the daemon carries it out, within a second where it runs and
otherwise when it is started. Of two decisions about one picture the first one counts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from backfire import api
from backfire.admin import decisions
from backfire.config import Settings
from backfire.detectors import Sidecar
from backfire.errors import BackfireError, Code, InputError, StoreError
from backfire.files import inbox, outbox, safe_paths
from backfire.service.held import masks_beside, noted_by_others
from backfire.service.spool import Spool
from backfire.service.store.reader import Reader
from backfire.service.store.store import Store
from backfire.types import ACTIVE, Choice, Job, JobState, Verdict, shown

MASK_ENDINGS = (".png", ".json")
"""The files that can be given as a mask: painted, or annotations."""


MOST = 10_000
"""The most weak pictures that are looked at."""


class DecisionRefused(BackfireError):
    """Nothing was decided: the job is not held any more, or its picture cannot be found. Says which."""


@dataclass(frozen=True)
class Held:
    """A picture that is held for review.

    Attributes:
        job: its job; `code` is `no_region` or `weak`, `message` says why it is held.
        picture: where its original lies; None if somebody took it out of the review folder.
        masks: the masks that lie beside it, and were not there when it was worked.
    """

    job: Job
    picture: Path | None
    masks: tuple[Path, ...]


def held(settings: Settings) -> list[Held]:
    """The pictures that a person is to decide about, oldest first.

    Raises:
        StoreError: the job database cannot be read.
    """
    with Reader(settings.folders.database) as store:
        return [_held(store, job, settings) for job in store.all_in(JobState.REVIEW)]


def held_jobs(settings: Settings) -> list[Job]:
    """The jobs of `held`, without a look at their originals."""
    with Reader(settings.folders.database) as store:
        return store.all_in(JobState.REVIEW)


def release(settings: Settings, job_id: int, *, by: str) -> Job:
    """Have a held picture published as it is: without protection, or with its weak one.

    Args:
        settings: the folders are used.
        job_id: the job.
        by: who decides.

    Returns:
        The job, which is RELEASING now.

    Raises:
        DecisionRefused: the job is not held (any more), its original is gone, or a mask lies beside it.
        StoreError: the job database cannot be used.
    """
    return _decide(settings, job_id, Choice.RELEASE, by)


def weak(settings: Settings) -> list[Job]:
    """The weak pictures, published or held, that nobody has accepted yet, oldest first; the newest `MOST`.

    Raises:
        StoreError: the job database cannot be read.
    """
    with Reader(settings.folders.database) as store:
        published = store.needing("weak", MOST)
        held = store.all_in(JobState.REVIEW)
    found = [job for job in (*published, *held) if _is_acceptable(job)]
    return sorted(found, key=lambda job: job.id)


def accept(settings: Settings, job_id: int, *, by: str) -> Job:
    """Accept a weak result as it is: a published picture needs nobody any more, a held one is published.

    Args:
        settings, job_id, by: see `release`.

    Returns:
        The job, ARCHIVED or RELEASING.

    Raises:
        DecisionRefused: the job is not weak, was accepted already, or see `release`.
        StoreError: the job database cannot be used.
    """
    with Store.beside(settings.folders.database) as store:
        job = store.get(job_id)
        if job is not None and job.needs_acceptance:
            told = {"decided": Choice.RELEASE.value, "by": by, "how": decisions.ACCEPTED}
            return store.update(
                job.id,
                job.state,
                at=time.time(),
                detail=told,
                choice=Choice.RELEASE,
                updated=job.updated,  # it was published on that day, and is not of today
            )
    if job is not None and not _is_acceptable(job):
        if job.is_accepted:
            why = "was accepted already"
        elif (job.state, job.verdict) == (JobState.PUBLISHED, Verdict.WEAK):
            why = "its original is still being archived; accept it after that"
        else:
            why = "is not weak"
        raise DecisionRefused(f"job {job_id} ({job.name}): {why}; nothing was changed")
    return _decide(settings, job_id, Choice.RELEASE, by, how=decisions.ACCEPTED)


def _is_acceptable(job: Job) -> bool:
    """Whether a result is weak, and somebody is to accept it."""
    return job.needs_acceptance or (job.state == JobState.REVIEW and job.code == Code.WEAK)


def protect_whole(settings: Settings, job_id: int, *, by: str) -> Job:
    """Have the whole of a held picture protected; see `release`."""
    return _decide(settings, job_id, Choice.WHOLE, by)


def work_again(settings: Settings, job_id: int, *, by: str) -> Job:
    """Have a held picture worked again, with the masks beside it and today's settings; see `release`."""
    return _decide(settings, job_id, Choice.AGAIN, by)


def add_mask(settings: Settings, job_id: int, name: str, data: bytes, *, by: str) -> Job:
    """Put a mask beside a held picture, and have the picture worked again.

    Args:
        settings, job_id, by: see `release`.
        name: the file's name, which says whether it is painted (`.png`) or holds annotations (`.json`).
        data: its content.

    Masks that lie beside the picture already stay: what any of them marks is protected.

    Raises:
        DecisionRefused, StoreError: see `release`; or masks are not read, or there is no name left for one.
        InputError: the mask does not fit the picture, or marks nothing in it.
    """
    ending = Path(name).suffix.lower()
    if ending not in MASK_ENDINGS:
        raise DecisionRefused(f"{name}: got {ending or 'no extension'}, expected a mask .png or a .json")

    def put_mask(found: Held) -> Callable[[], None]:
        assert found.picture is not None
        _require_fit(settings, found, Sidecar(name, data))
        review, key = settings.folders.review, found.job.key or ""
        placed = outbox.place(data, review, _free_mask(settings, found, os.fsencode(ending)), key=key)
        return (review / os.fsdecode(placed)).unlink

    return _decide(settings, job_id, Choice.AGAIN, by, put_mask, how=decisions.with_mask(name))


def _decide(
    settings: Settings,
    job_id: int,
    choice: Choice,
    by: str,
    prepare: Callable[[Held], Callable[[], None]] | None = None,
    how: str | None = None,
) -> Job:
    """Record a decision.

    Args:
        prepare: called before, if the picture is held; returns what undoes it if the decision comes too late.
        how: the decision in words, where the choice alone does not say it.
    """
    with Store.beside(settings.folders.database) as store:
        found = _require_held(store, job_id, settings)
        if choice == Choice.RELEASE and found.masks:
            raise DecisionRefused(
                f"job {job_id} ({found.job.name}): the mask {found.masks[0].name} lies beside it; use "
                "--again to protect what it marks, or delete it to publish the picture as it is"
            )
        undo = prepare(found) if prepare else None
        try:
            return store.decide(job_id, choice, by=by, at=time.time(), how=how)
        except StoreError:
            if undo is not None:
                with suppress(OSError):
                    undo()
            _require_held(store, job_id, settings)  # says what became of it, if that is why
            raise


def _require_held(store: Store, job_id: int, settings: Settings) -> Held:
    """The held picture of a job.

    Raises:
        DecisionRefused: see `release`.
    """
    job = store.get(job_id)
    if job is None:
        raise DecisionRefused(f"job {job_id}: is not known; `backfire release` lists what is held")
    about = f"job {job_id} ({job.name})"
    if job.state != JobState.REVIEW:
        if _is_acceptable(job):
            raise DecisionRefused(f"{about}: is published already; backfire accept {job_id} accepts it")
        since = time.strftime("%H:%M:%S", time.localtime(job.updated))
        known = decisions.last(store.history(job_id)) if job.choice else ""
        decided = f"; it was {known}" if known else ""
        raise DecisionRefused(
            f"{about}: is not held any more, it is {job.state} since {since}{decided}; nothing was changed"
        )
    newer = next((other for other in store.by_path(job.path) if other.state in ACTIVE), None)
    if newer is not None:
        raise DecisionRefused(
            f"{about}: another file of its name is being worked as job {newer.id}; decide when that is done"
        )
    found = _held(store, job, settings)
    if found.picture is None:
        raise DecisionRefused(
            f"{about}: its original is not in {settings.folders.review} any more; put it back, or drop the "
            "picture into the inbox again"
        )
    return found


def _held(store: Reader, job: Job, settings: Settings) -> Held:
    folder, ignore = settings.folders.review, settings.watch.ignore
    place = outbox.find(folder, job.path, key=job.key or "", sha256=job.input_sha256 or "")
    picture = None if place is None else folder / os.fsdecode(place)
    spools, key = settings.folders.spool, job.key or ""
    spool = Spool(spools / str(job.id))
    own = {name: outbox.find(folder, name, key=key, sha256=sha256) for name, sha256, _ in spool.extras()}
    known = not job.mask_sha256 or bool(spool.files())  # otherwise nobody can tell which masks are its own
    masks = masks_beside(folder, job, place, {}, own, ignore) if known else []
    if masks:  # they may belong to other held pictures, which cost a look at the database
        masks = masks_beside(folder, job, place, noted_by_others(store, spools, job), own, ignore)
    return Held(job, picture, tuple(folder / os.fsdecode(mask) for mask in masks))


def _free_mask(settings: Settings, found: Held, ending: bytes) -> bytes:
    """A path below the review folder for another mask of a held picture, where nothing is replaced.

    Raises:
        DecisionRefused: all names are taken.
    """
    assert found.picture is not None
    job, folders = found.job, settings.folders
    is_renamed = found.picture != folders.review / os.fsdecode(job.path)
    names = [name for name in inbox.mask_names(job.path) if name.endswith(ending)]
    for name in names:  # the mask goes with the picture into the inbox, under the name without the key
        keyed = outbox.keyed(folders.review, name, job.key or "")
        if not any(
            os.path.lexists(folder / os.fsdecode(place))
            for folder, place in ((folders.review, name), (folders.review, keyed), (folders.inbox, name))
        ):
            return keyed if is_renamed else name
    raise DecisionRefused(
        f"job {job.id} ({job.name}): files lie under all names of its masks, "
        f"{', '.join(map(shown, names))}, in {folders.review} or {folders.inbox}; move one of them away"
    )


def _require_fit(settings: Settings, found: Held, mask: Sidecar) -> None:
    """Refuse a mask that would fail the picture, or would not be read.

    Raises:
        DecisionRefused, InputError: why.
    """
    assert found.picture is not None
    used = settings.for_path(found.job.path)
    if "sidecar" not in used.regions.detectors:
        raise DecisionRefused(
            f"job {found.job.id} ({found.job.name}): masks are not read, as its regions.detectors are "
            f"{', '.join(used.regions.detectors)}, expected sidecar among them; add it, reload the daemon, "
            "and give the mask again"
        )
    regions = used.regions.model_copy(update={"detectors": ("sidecar",), "none_found": "fail"})
    try:
        data = safe_paths.read_regular(found.picture, used.limits.max_bytes)
    except OSError as error:
        raise DecisionRefused(f"{shown(found.job.path)}: cannot be read ({error.strerror})") from error
    checked = used.model_copy(update={"regions": regions, "rules": ()})
    api.detect(data, mask=[mask], settings=checked, name=found.job.name)


__all__ = [
    "DecisionRefused",
    "Held",
    "InputError",
    "accept",
    "add_mask",
    "held",
    "protect_whole",
    "release",
    "weak",
    "work_again",
]
