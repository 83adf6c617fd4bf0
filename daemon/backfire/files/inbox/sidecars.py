"""The names of sidecars and proofs: which mask, annotation or proof may belong to which picture.

Paths are bytes below the inbox. Nothing here looks at the disk.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from backfire.types import EXTENSIONS, shown

MASK_ENDING = b".mask.png"
ANNOTATIONS = b".json"
ERROR_NOTE, REVIEW_NOTE = b".error.json", b".review.json"
"""The endings of the notes that Backfire itself puts beside pictures that failed, and that are held."""
FOR_A_FOLDER = re.compile(rb".*\.coco\.json|instances_.*\.json", re.DOTALL)
"""Names, in lower case, of COCO files that hold the annotations of all pictures beside them, as Roboflow
(`_annotations.coco.json`) and CVAT (`instances_default.json`) write them."""
_PICTURE = b"(?:%b)" % b"|".join(re.escape(end.encode()) for ends in EXTENSIONS.values() for end in ends)
_NEAR_MISS = re.compile(
    rb"(?P<own>.+)[._ -](?:masks?|msk)%b|(?P<inner>.+)%b" % (_PICTURE, _PICTURE), re.DOTALL
)


class NearMiss(NamedTuple):
    """What a file whose name is nearly that of a mask is probably meant for.

    Attributes:
        picture: the path of the picture, perhaps without its extension.
        wanted: the path that the mask must have.
    """

    picture: bytes
    wanted: bytes


def is_mask(path: bytes) -> bool:
    """Whether a file is a sidecar by its name: NAME.mask.png, any PNG in a folder `masks`, or JSON."""
    lower = path.lower()
    in_folder = os.path.basename(os.path.dirname(lower)) == b"masks"
    return lower.endswith((MASK_ENDING, ANNOTATIONS)) or (in_folder and lower.endswith(b".png"))


def in_masks_folder(path: bytes) -> bool:
    """Whether only its folder, `masks`, makes a file a mask, so that it may be a picture after all."""
    return is_mask(path) and not path.lower().endswith((MASK_ENDING, ANNOTATIONS))


def is_for_folder(path: bytes) -> bool:
    """Whether a file is a COCO file with the annotations of all pictures beside it."""
    return FOR_A_FOLDER.fullmatch(os.path.basename(path).lower()) is not None


def mask_names(picture: bytes) -> list[bytes]:
    """All paths that a picture's sidecars, painted or JSON, may have, relative to the inbox."""
    folder, name = os.path.split(picture)
    stem = os.path.splitext(name)[0]
    return [
        os.path.join(folder, stem + b".mask.png"),
        os.path.join(folder, name + b".mask.png"),
        os.path.join(folder, b"masks", stem + b".png"),
        os.path.join(folder, b"masks", name + b".png"),
        os.path.join(folder, stem + b".regions.json"),
        os.path.join(folder, name + b".regions.json"),
        os.path.join(folder, stem + b".json"),
        os.path.join(folder, b"masks", stem + b".json"),
    ]


def claimants(mask: bytes) -> set[bytes]:
    """The pictures, with or without their extension, that a `folded` mask may belong to."""
    endings = (MASK_ENDING, b".regions.json", ANNOTATIONS)
    found = {mask.removesuffix(ending) for ending in endings if mask.endswith(ending)}
    folder, name = os.path.split(mask)
    above, own = os.path.split(folder)
    return found | {os.path.join(above, os.path.splitext(name)[0])} if own == b"masks" else found


def proof_names(picture: bytes, ending: bytes) -> list[bytes]:
    """The files that may say that a picture is complete; none without an ending."""
    return [picture + ending, os.path.splitext(picture)[0] + ending] if ending else []


def is_proof(path: bytes, ending: bytes) -> bool:
    """Whether a file says by its name that a picture is complete; none does without an ending."""
    return bool(ending) and path.lower().endswith(ending)


def near_miss(path: bytes) -> NearMiss | None:
    """The mask that a file is probably meant to be, such as `d_mask.png`, `e.mask.jpg` and `masks/c.jpg`."""
    folder, name = os.path.split(path)
    above, inner = os.path.split(folder)
    lower = path.lower()
    if b"mask" not in lower and b"msk" not in lower:  # most names: the pattern is slower
        return None
    found = _NEAR_MISS.fullmatch(name.lower())
    if found is None or is_mask(path):
        return None
    if found["own"]:
        picture = os.path.join(folder, name[: found.end("own")])
        return NearMiss(picture, picture + MASK_ENDING)
    if inner.lower() in (b"mask", b"masks"):
        stem = name[: found.end("inner")]
        return NearMiss(os.path.join(above, stem), os.path.join(above, b"masks", stem + b".png"))
    return None


def why_unused(path: bytes) -> str:
    """What to do with a mask or annotation that no picture uses."""
    if (miss := near_miss(path)) is not None:
        return (
            f"was not used. If it is the mask of {shown(miss.picture)}, call it {shown(miss.wanted)} and "
            "drop the picture again with it. If it is a picture itself, give it a name without mask"
        )
    folder, name = os.path.split(path)
    if name.lower().endswith((ERROR_NOTE, REVIEW_NOTE)):
        return "is a note of Backfire about a picture that failed or was held; delete it, no picture needs it"
    if is_for_folder(path):
        return (
            "holds the annotations of the pictures beside it, and there are none (any more); move it away "
            "when all have come"
        )
    stem = name[: -len(MASK_ENDING)] if name.lower().endswith(MASK_ENDING) else os.path.splitext(name)[0]
    place = os.path.dirname(folder) if os.path.basename(folder).lower() == b"masks" else folder
    picture = shown(os.path.join(place, stem))
    rename = "" if name.lower().endswith(ANNOTATIONS) else "; if it is a picture itself, rename it"
    return (
        f"is a mask or annotation by its name and waits for a picture {picture}.jpg, .png or the like{rename}"
    )
