"""How a published picture was made: its receipt, its original, the masks and the settings.

`backfire verify` uses it, so that the published file alone is enough.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from backfire import config
from backfire.admin import found_config, found_receipts
from backfire.admin.found_config import absolute
from backfire.admin.found_receipts import Known
from backfire.config import Settings
from backfire.errors import ConfigError, PublishError
from backfire.evaluate.receipt import Receipt, leads_elsewhere
from backfire.files import durable, inbox, manifest, outbox, safe_paths
from backfire.service.job_settings import JobSettings
from backfire.types import Verdict, mask_digest, shown


@dataclass(frozen=True)
class Made:
    """How a published picture was made.

    Attributes:
        receipt: its receipt.
        original: the picture that it was made of, whose digest is the receipt's.
        masks: the masks beside the original, whose digest is the receipt's.
        settings: those of today, with the editors, the method and the budget of the receipt where they have
            changed since; None where no configuration is known, which means the defaults.
        changed: whether the settings have changed since.
        unusable: why a `config.yaml` that nobody named was left aside, a sentence each.
    """

    receipt: Receipt
    original: Path
    masks: Sequence[Path]
    settings: Settings | None
    changed: bool
    unusable: Sequence[str] = ()


def how_made(published: Path, config_file: Path | None = None, mask: Path | None = None) -> Made:
    """How a published picture was made.

    Args:
        published: the file, in the outbox or wherever it was copied to.
        config_file: the configuration that it was made with; without it, the `config.yaml` in the working
            folder, or one above the picture that has the picture's outbox. What `backfire protect` made
            without a configuration is not judged by one that was not named, and no program runs that such
            a one names: it may have come with the picture.
        mask: the mask file that it was made with; without it, it is looked for.

    Raises:
        ConfigError: the file cannot be read or has changed since it was published, or its receipt, original
            or mask cannot be found, or it was made with a configuration that runs programs and was not
            named. Says which, and what to do.
        StoreError: the job database cannot be read.
    """
    try:
        safe_paths.require_regular(published)
        sha256 = durable.file_sha256(published)
    except OSError as error:
        raise ConfigError(f"{published}: cannot be read ({error.strerror}); name a readable file") from error
    if config_file is None:
        ours, unusable = found_config.found_for(published)
    else:
        ours, unusable = found_config.Configuration(config_file, config.load(config_file), belongs=True), []
    settings = ours.settings if ours else None
    known = [*found_receipts.beside(published)]
    found = _with_digest(known, sha256)
    if found is None and settings is not None:
        known += found_receipts.by_job(absolute(published), sha256, settings)
        found = _with_digest(known, sha256)
    if found is None and known:
        wanted = str(known[0].receipt.get("output_sha256"))
        raise ConfigError(
            f"{published}: has SHA-256 {sha256[:12]}…, its receipt {known[0].file} says {wanted[:12]}…; it "
            "was changed after it was published: verify needs the file as it was published"
        )
    if found is None:
        if ours is None:
            why = "; ".join(unusable) or f"there is no {found_config.CONFIGURATION} here"
            where = f"any configuration's reports, as {why}; name one with -c"
        else:
            where = (
                f"{ours.settings.folders.reports}, the reports of {ours.file}; name another configuration "
                "with -c"
            )
        raise ConfigError(
            f"{published}: there is no receipt beside it nor in {where}, or the picture that it was made of "
            "with --original"
        )
    if found.receipt.get("verdict") == Verdict.UNPROTECTED:
        raise ConfigError(
            f"{published}: was published unchanged, without protection; nothing can be verified"
        )
    folders = [published.parent, *([settings.folders.archive] if settings else [])]
    original = _original(found, published, folders)
    masks = _masks(found, original, folders) if mask is None else [_named_mask(mask, found, published)]
    used, changed = _settings(found, settings)
    if changed and found.job is None and ours is not None and not ours.belongs:
        used, changed = None, False  # `backfire protect` takes no configuration that is not named either
    if config_file is None and ours is not None and used is not None:
        found_config.require_no_programs(used, ours.file, published)
    return Made(found.receipt, original, masks, used, changed, unusable)


def _with_digest(known: Sequence[Known], sha256: str) -> Known | None:
    return next((one for one in known if one.receipt.get("output_sha256") == sha256), None)


def _original(found: Known, published: Path, folders: Sequence[Path]) -> Path:
    """The original, from the folder of the picture or the archive, by its digest.

    Raises:
        ConfigError: it is missing, or the file of its name has another digest.
    """
    wanted = str(found.receipt.get("input_sha256"))
    path = found.job.path if found.job else os.fsencode(str(found.receipt.get("file")))
    others: list[tuple[Path, str]] = []
    for folder in folders:
        try:
            place = outbox.find(folder, path, key=str(found.receipt.get("key", "")), sha256=wanted)
        except PublishError:
            continue
        if place is not None:
            return folder / os.fsdecode(place)
        there = folder / os.fsdecode(path)
        if absolute(there) != absolute(published) and (digest := _digest(there)) is not None:
            others.append((there, digest))
    for folder in filter(Path.is_dir, folders[1:]):
        for entry in manifest.read(folder).entries:
            if entry.sha256 == wanted and outbox.holds(folder, entry.path, wanted):
                return folder / os.fsdecode(entry.path)
    about = f"original {shown(path)} of {published}"
    where = " nor in ".join(map(str, folders))
    if others:
        there, digest = others[0]
        raise ConfigError(
            f"{about}: {there} has SHA-256 {digest[:12]}…, its receipt says {wanted[:12]}…; it is "
            "another picture or was changed: name the right one with --original"
        )
    raise ConfigError(
        f"{about}: no file with SHA-256 {wanted[:12]}… is in {where}; name it with --original, or put it back"
    )


def _masks(found: Known, original: Path, folders: Sequence[Path]) -> list[Path]:
    """The masks of the original, by their digest.

    Raises:
        ConfigError: they are missing, or have another digest.
    """
    wanted, key = found.receipt.get("mask_sha256"), str(found.receipt.get("key", ""))
    if wanted is None:
        return []
    folder = next((one for one in folders[::-1] if one in original.parents), original.parent)
    place = os.fsencode(original.relative_to(folder))
    path = found.job.path if found.job else place
    names = dict.fromkeys(
        [
            *inbox.scan_beside(folder, [place], ()).masks_of(place),
            *inbox.scan_beside(folder, [path], ()).masks_of(path),
        ]
    )
    plain = [folder / os.fsdecode(name) for name in names]
    of_key = [
        file if (file := folder / os.fsdecode(outbox.keyed(folder, name, key))).is_file() else as_it_is
        for name, as_it_is in zip(names, plain, strict=True)
    ]
    named = _remembered(found, [*folders, original.parent])
    for masks in (of_key, plain, *([one] for one in named)):
        digests = [digest for mask in masks if (digest := _digest(mask)) is not None]
        if masks and len(digests) == len(masks) and mask_digest(digests) == wanted:
            return masks
    others = plain or named
    got = f"{', '.join(map(str, others))} differs from it" if others else f"none lies beside {original}"
    raise ConfigError(
        f"mask of {original}: its receipt names one with digest {wanted[:12]}…, but {got}; name it with -m"
    )


def _remembered(found: Known, folders: Sequence[Path]) -> list[Path]:
    """The files that may be the mask that was named with -m, as the receipt remembers it.

    Its path is kept as it was given, or of one that leads elsewhere the name alone; and it is looked for from
    the working folder and from the folders of the picture, which may have moved together. No other path is
    followed: the receipt may come from anybody, and would have any file read and named.
    """
    name = found.receipt.get("mask")
    if not name or found.job is not None or leads_elsewhere(Path(name)):
        return []
    places = [folder / one for one in (Path(name), Path(Path(name).name)) for folder in (Path(), *folders)]
    return [place for place in dict.fromkeys(places) if safe_paths.is_regular(place)]


def _digest(file: Path) -> str | None:
    """The SHA-256 of a file that may be the one that is looked for; None if it cannot be read."""
    try:
        safe_paths.require_regular(file)
        return durable.file_sha256(file)
    except (OSError, ValueError):
        return None


def _named_mask(mask: Path, found: Known, published: Path) -> Path:
    """The mask that a person named, if it is the one that the picture was made with.

    Raises:
        ConfigError: it cannot be read, or is another one: the edits would be of another region.
    """
    try:
        safe_paths.require_regular(mask)
        digest = mask_digest([durable.file_sha256(mask)])
    except OSError as error:
        raise ConfigError(f"mask {mask}: cannot be read ({error.strerror}); name a readable file") from error
    wanted = found.receipt.get("mask_sha256")
    if digest == wanted:
        return mask
    got = f"has digest {str(digest)[:12]}…"
    asks = "to judge edits of what it marks all the same, name the --original as well"
    if wanted is None:
        raise ConfigError(f"mask {mask}: {published} was made without a mask; leave -m away; {asks}")
    raise ConfigError(
        f"mask {mask}: {got}, the receipt of {published} says {wanted[:12]}…; it is another mask or was "
        f"changed: name the one that it was made with, or leave -m away to have it looked for; {asks}"
    )


def _settings(found: Known, settings: Settings | None) -> tuple[Settings | None, bool]:
    """The settings of the picture, and whether they have changed since it was made."""
    receipt = found.receipt
    if settings is None:
        return None, False
    if found.job is not None:
        used = JobSettings(settings).of(found.job)
    else:
        used = settings.for_path(os.fsencode(str(receipt.get("file"))))
    # By hand the extension of the result names its format, which the configuration need not have.
    formats = () if found.job is not None else get_args(type(used.output).model_fields["format"].annotation)
    for one in (used, *(_written_as(used, name) for name in formats)):
        if one.sha256 == receipt.get("config_sha256"):
            return one, False
    return _as_then(used, receipt), True


def _written_as(settings: Settings, name: str) -> Settings:
    return settings.model_copy(update={"output": settings.output.model_copy(update={"format": name})})


def other_weights(then: Receipt, now: Receipt) -> list[str]:
    """The editors of two receipts of one picture, by name, that had other weights then than now."""

    def weights(receipt: Receipt) -> dict[str, str]:
        editors = (*receipt.get("surrogates", ()), *receipt.get("held_out", ()))
        return {one["name"]: one["weights_sha256"] for one in editors if "weights_sha256" in one}

    before, today = weights(then), weights(now)
    return sorted(name for name in before.keys() & today.keys() if before[name] != today[name])


def at_size_of(receipt: Receipt, settings: Settings) -> Settings:
    """The settings with the size to which the picture of a receipt was scaled."""
    long_px = max(int(receipt["width"]), int(receipt["height"])) if receipt.get("scaled_from") else None
    return settings.model_copy(update={"output": settings.output.model_copy(update={"long_px": long_px})})


def _as_then(settings: Settings, receipt: Receipt) -> Settings:
    """The settings with the editors, the method, the budget and the size that the receipt names."""
    protect: dict[str, Any] = {"surrogates": tuple(one["name"] for one in receipt.get("surrogates", ()))}
    if receipt.get("method"):
        protect["method"] = receipt["method"]
    if receipt.get("epsilon"):
        protect["epsilon"] = receipt["epsilon"]
    held_out = tuple(one["name"] for one in receipt.get("held_out", ()))
    return at_size_of(receipt, settings).model_copy(
        update={
            "protect": settings.protect.model_copy(
                update={name: value for name, value in protect.items() if value}
            ),
            "verify": settings.verify.model_copy(update={"held_out": held_out}),
        }
    )
