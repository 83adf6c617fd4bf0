"""The file to be published: encoded, signed, and decoded again from its own bytes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from backfire import imaging
from backfire.attack_paths.cropping import Crop
from backfire.imaging import Encoded, formats
from backfire.imaging.metadata import C2PA
from backfire.pipeline import budget_check
from backfire.pipeline.run import Published, Run
from backfire.provenance import Area, Original, Policy, Statement, Work, signing
from backfire.types import Box, Budget, Rgb


@dataclass(frozen=True, eq=False)
class Written:
    """A file to be published.

    Attributes:
        data: its bytes, signed where that is set.
        extension: with the dot, lower case.
        published: how it decodes.
        facts: what the receipt says of how it was written.
    """

    data: bytes
    extension: str
    published: Published
    facts: dict[str, Any]


def write(run: Run, rgb: Rgb, budget: Budget, work: Work | None) -> Written:
    """Encode a picture's pixels, sign the file if that is set, and decode what came out.

    Args:
        rgb: uint8 H,W,3, upright.
        work: what was done to them, for the signature; None if nothing was.

    Raises:
        BudgetExceeded, InputError: see `decode_again`.
        SigningError: see `provenance.signing.sign`.
    """
    with run.phase("encode"):
        run.progress("encode", 0, 1)
        encoded = encode(run, rgb, budget)
    signing: dict[str, Any] = {}
    if run.settings.provenance.on:
        with run.phase("sign"):
            encoded, signing = _signed(run, encoded, work)
    with run.phase("encode"):
        published = decode_again(run, encoded.data, budget)
    facts = {"written_as": encoded.how, "left_out": [*encoded.left_out], **_mining(run, published), **signing}
    return Written(encoded.data, encoded.extension, published, facts)


def unchanged(run: Run) -> Written:
    """The very file that came in."""
    published = Published(run.picture.rgb, 0, imaging.stated(run.picture.metadata))
    facts: dict[str, Any] = {"written_as": "unchanged", "left_out": [], **_mining(run, published)}
    if run.settings.provenance.on:
        facts["signature"] = _unsigned("nothing was done to the file; what it says of itself still holds")
    own, known = os.path.splitext(run.source.name)[1].lower(), formats.extensions(run.picture.format)
    return Written(run.data, own if own in known else known[0], published, facts)


def may_stay(run: Run) -> bool:
    """Whether a picture to which nothing is done can be published as the file that came in."""
    output, about = run.settings.output, run.picture.metadata
    same = output.format == "same" or formats.KINDS[output.format] == run.picture.format
    says_enough = imaging.demanding(about, output.data_mining).data_mining in (None, imaging.stated(about))
    return (
        not run.is_scaled
        and run.picture.frames == 1  # otherwise the pages behind the first would be published, too
        and same
        and output.metadata == "keep"
        and says_enough
    )


def encode(run: Run, rgb: Rgb, budget: Budget) -> Encoded:
    """The picture with other pixels, as the output settings have it."""
    output, picture = run.settings.output, run.picture
    return imaging.encode(
        replace(picture, metadata=imaging.demanding(picture.metadata, output.data_mining)),
        rgb,
        levels=budget.levels,
        format=output.format,
        metadata=output.metadata,
        jpeg=output.jpeg,
        opaque=output.opaque,
    )


def decode_again(run: Run, data: bytes, budget: Budget) -> Published:
    """What somebody will see of the bytes to publish.

    Raises:
        BudgetExceeded, InputError: see `budget_check.decode_within`.
    """
    decoded, largest = budget_check.decode_within(
        data, run.picture, budget, name=run.source.name, max_pixels=run.settings.output.max_pixels
    )
    return Published(decoded.rgb, largest, imaging.stated(decoded.metadata), imaging.flattened(decoded))


def areas(original: Rgb, rgb: Rgb, crops: Sequence[Crop]) -> list[Area]:
    """Where pixels were changed, crop by crop, and what is protected there."""
    found = []
    for crop in crops:
        changed = (original[crop.box.slices] != rgb[crop.box.slices]).any(axis=2)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        if len(rows):
            left, top = crop.box.left, crop.box.top
            box = Box(
                left + int(columns[0]),
                top + int(rows[0]),
                left + int(columns[-1]) + 1,
                top + int(rows[-1]) + 1,
            )
            found.append(Area(box, tuple(dict.fromkeys(region.label for region in crop.regions))))
    return found


def _signed(run: Run, encoded: Encoded, work: Work | None) -> tuple[Encoded, dict[str, Any]]:
    """The file with a manifest, and what the receipt says of it."""
    settings, output = run.settings.provenance, run.settings.output
    if encoded.format not in signing.MIME:
        return encoded, {"signature": _unsigned(f"the C2PA library cannot sign {encoded.format}")}
    base, _ = os.path.splitext(os.path.basename(run.source.name))
    named = output.metadata != "strip-all"
    term = encoded.data_mining if settings.training_mining else None
    size = run.given_size if run.is_scaled else None
    statement = Statement(base + encoded.extension if named else None, work, term, scaled_from=size)
    source = Original(run.data, run.picture.format, os.path.basename(run.source.name) if named else None)
    policy = Policy(named, output.metadata == "keep", output.opaque == "keep")
    signed = signing.sign(encoded.data, encoded.format, statement, source, settings, policy)
    parent, used = signed.parent, signed.credentials
    # What is kept, or was left out for a reason of its own, is no longer left out because it does not fit.
    replaced = parent.manifest is not None or parent.left_out
    said = [one for one in encoded.left_out if one != C2PA or not replaced]
    facts = {
        "signed": True,
        "note": None,
        "manifest": signed.manifest,
        "signed_by": used.subject,
        "certificate_sha256": used.sha256,
        "timestamp": settings.timestamp,
        "bytes_added": len(signed.data) - len(encoded.data),
        "parent": None if parent.manifest is None else {"manifest": parent.manifest, "state": parent.state},
    }
    return replace(encoded, data=signed.data, left_out=(*said, *parent.left_out)), {"signature": facts}


def _unsigned(why: str) -> dict[str, Any]:
    return {"signed": False, "note": why}


def _mining(run: Run, published: Published) -> dict[str, Any]:
    """What the published file says of data mining, and why it is not what the settings ask for."""
    output = run.settings.output
    if output.data_mining == "keep":
        return {}
    asked = imaging.TERMS[output.data_mining]
    note = None
    if published.data_mining is None:
        note = "not written: the format has no place for XMP, or the packet that is there is no XML"
    elif published.data_mining != asked:
        note = f"the original's own word stays, where {asked} was asked for"
    return {"data_mining": {"value": published.data_mining, "note": note}}
