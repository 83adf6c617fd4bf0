"""Judge a copy of a published picture that somebody, usually a site, has saved again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from backfire import imaging
from backfire.config import Settings
from backfire.detectors import Source
from backfire.errors import Code, InputError
from backfire.evaluate.judge import Judgement
from backfire.evaluate.registration import Registration, register
from backfire.imaging import Picture
from backfire.pipeline.result import PhaseProgress, Result, no_progress
from backfire.pipeline.run import Published, Run, device_name
from backfire.types import Budget, Rgb, Verdict

ASPECT_PX = 1.5
"""By how many pixels a side may be off from the original's aspect: sites round differently."""
LEAST_PX = 64
"""The shorter side of a copy, in pixels, below which nothing is judged."""


def verify_copy(
    original: bytes,
    copy: bytes,
    source: Source,
    settings: Settings,
    *,
    name: str = "the copy",
    progress: PhaseProgress = no_progress,
) -> Result:
    """Replay the edits on a copy that was scaled or recompressed, and judge them as on the published file.

    The edits of the copy are compared with those of the original *saved in the same way*: at the copy's size
    and, if that is a JPEG, with its quantisation. So what saving does to an edit is not taken for protection;
    of a WebP, HEIC, AVIF or JPEG 2000 with losses it is, and the receipt says so (`saved_alike`).

    The verdict is `failed`, too, where the edit of the region is broken in no tool any more. Of a file that
    is to be published, `weak` says that something is missing from what was just put in; of a copy whose
    protection a site has taken, it would read as if some were left.

    Args:
        original, copy: the two files' bytes.
        source, settings: as of `verify`.
        name: the copy's, for messages.
        progress: see `verify`.

    Raises:
        JobError: see `backfire.errors`; an InputError where the copy is none of this picture, or was cropped.
    """
    run = Run(original, source, settings, progress)
    other = imaging.decode(copy, name=name, max_pixels=settings.output.max_pixels, frames="first")
    published_size = run.picture.rgb.shape[:2]
    _require_aspect(name, other.rgb, run.picture.rgb)
    seen, flat = other.rgb, imaging.flattened(run.picture)
    if flat is not None:
        # What is seen of it counts: sites lay transparent pictures on white, or keep them as they are.
        alone = imaging.flattened(other)
        seen = other.rgb if alone is None else alone
    reference = imaging.as_saved_again(run.picture.rgb if flat is None else flat, other)
    registered = register(reference, seen)
    _require_same(name, registered)
    run.look_at(reference)
    found = run.detect()
    editors = run.load_editors(settings.protect)
    crops = run.crops(found.regions, settings.protect)
    # What a copy may differ by is nobody's promise: the budget was that of the published file.
    judged = run.judge(Published(seen, imaging.max_change(reference, seen)), crops, editors, Budget(255))
    judged = replace(judged, judgement=_nothing_left(judged.judgement))
    facts = {**run.facts(copy, found), "device": device_name(editors.device)}
    alike = imaging.is_saved_alike(other, copy)
    facts |= {"as_published": {**_row(other, registered, published_size), "saved_alike": alike}}
    receipt, sheet = run.report(judged, crops, editors, facts)
    return Result(judged.judgement.verdict, copy, "", receipt, sheet)


def _nothing_left(judgement: Judgement) -> Judgement:
    """The judgement, `failed` where the edit of the region is broken in no tool."""
    if judgement.verdict != Verdict.WEAK or any(judgement.tools.values()):
        return judgement
    reasons = ["the edit of the region is broken in no tool any more", *judgement.reasons]
    return replace(judgement, verdict=Verdict.FAILED, reasons=reasons)


def _require_aspect(name: str, copy: Rgb, published: Rgb) -> None:
    """Raise an error unless the copy has the shape of the picture, as nearly as whole pixels allow."""
    height, width = copy.shape[:2]
    tall, wide = published.shape[:2]
    if min(height, width) < LEAST_PX:
        remedy = "save a larger version from the site"
        raise InputError(
            Code.UNREADABLE,
            f"{name}: is {width}x{height} pixels, expected {LEAST_PX} a side at least; {remedy}",
        )
    if min(abs(width * tall / wide - height), abs(height * wide / tall - width)) > ASPECT_PX:
        message = (
            f"{name}: is {width}x{height}, the picture {wide}x{tall}, which is another shape; a copy that "
            "was cropped, turned or stretched cannot be judged; save one that shows all of the picture"
        )
        raise InputError(Code.UNREADABLE, message)


def _require_same(name: str, found: Registration) -> None:
    """Raise an error unless copy and picture lie on each other."""
    if found.is_same:
        return
    if found.correlation is None:
        message = f"{name}: shows too little texture to tell whether it is a copy of this picture"
    elif found.is_moved:
        message = (
            f"{name}: shows this picture, but moved by up to {found.shift_px:.1f} px, so it was cropped or "
            "framed, which cannot be judged; save one that shows all of the picture"
        )
    else:
        message = (
            f"{name}: is no copy of this picture (its detail correlates by {found.correlation:.2f}, expected "
            "0.60 at least), or one that was cropped by more than a little; check that both belong together"
        )
    raise InputError(Code.UNREADABLE, message)


def _row(copy: Picture, found: Registration, published_size: tuple[int, ...]) -> dict[str, Any]:
    """The field `as_published` of the receipt."""
    height, width = copy.rgb.shape[:2]
    return {
        "width": width,
        "height": height,
        "format": copy.format,
        "scale": round(max(height, width) / max(published_size), 4),
        "shift_px": round(found.shift_px, 2),
        "correlation": round(found.correlation or 0.0, 3),
        "colour_off_levels": round(found.colour_off, 1),
    }
