"""The manifests that an original brings along, and what of them must not be published.

A manifest usually holds thumbnails, which show the *unprotected* picture. C2PA provides for taking single
assertions out of it (redaction), after which its signature still holds.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property

from backfire.imaging import containers, previews

NAMED = ("c2pa.actions", "c2pa.hash.", "c2pa.ingredient", "c2pa.soft-binding", "c2pa.time-stamp", "cawg.")
"""How the labels of assertions begin that may be large and hold no picture: digests, signatures, chains of
actions. They are still looked through for pictures."""

SIGNATURE, ASSERTIONS, COMPRESSED = "c2pa.signature", "c2pa.assertions", b"brob"


@dataclass(frozen=True)
class Original:
    """The picture as it came in.

    Attributes:
        data: the file's bytes.
        format: see `imaging.Picture.format`.
        name: the file's name; None leaves it out of the manifest.
    """

    data: bytes
    format: str
    name: str | None

    @cached_property
    def instance_id(self) -> str:
        """An identifier in the form of XMP that is the same for all copies of this file."""
        return f"xmp.iid:{uuid.uuid5(uuid.NAMESPACE_OID, hashlib.sha256(self.data).hexdigest())}"


@dataclass(frozen=True)
class Policy:
    """What of an original's manifests may be published.

    Attributes:
        kept: whether they are at all; false under `output.metadata: strip-all`.
        places: whether they may say where the picture was taken.
        opaque: whether they may hold large data of an unknown kind.
    """

    kept: bool = True
    places: bool = True
    opaque: bool = False


@dataclass(frozen=True)
class Redaction:
    """An assertion to be taken out.

    Attributes:
        uri: its JUMBF URI.
        label: its name.
        why: the reason, for the receipt.
        reason: the same as C2PA has it.
    """

    uri: str
    label: str
    why: str
    reason: str = "org.backfire.unprotected_picture"


@dataclass(frozen=True)
class _Leaf:
    """A content box of a manifest store.

    Attributes:
        path: the labels of the boxes that it lies in.
        kind: of the box.
        body: its content.
    """

    path: tuple[str, ...]
    kind: bytes
    body: bytes


def redactions(store: bytes, manifests: Collection[str], policy: Policy) -> list[Redaction]:
    """What is to be taken out of a manifest store.

    Args:
        store: the bytes of the JUMBF box.
        manifests: the labels of the manifests in it that may be touched.
        policy: what may be published.
    """
    found: dict[str, Redaction] = {}
    for leaf in _leaves(store):
        if len(leaf.path) < 4 or leaf.path[2] != ASSERTIONS or leaf.path[1] not in manifests:
            continue
        uri, label = "self#jumbf=/" + "/".join(leaf.path[:4]), leaf.path[3]
        if previews.shows(leaf.body):
            found.setdefault(uri, Redaction(uri, label, "it shows the unprotected picture"))
        elif _locates(leaf, policy):
            why = "it may say where the picture was taken"
            found.setdefault(uri, Redaction(uri, label, why, "c2pa.PII.present"))
        elif not (policy.opaque or label.startswith(NAMED)) and previews.opaque(leaf.body):
            why = "it is large and of an unknown kind, so it could hold the unprotected picture"
            found.setdefault(uri, Redaction(uri, label, why))
    return [*found.values()]


def is_clean(store: bytes, policy: Policy) -> bool:
    """Whether nothing in a manifest store shows a picture, or a place that may not be named.

    What is compressed cannot be looked through and counts as unclean.
    """
    return not any(
        leaf.kind == COMPRESSED or previews.shows(leaf.body) or _locates(leaf, policy)
        for leaf in _leaves(store)
        if SIGNATURE not in leaf.path
    )


def _locates(leaf: _Leaf, policy: Policy) -> bool:
    return not policy.places and previews.locates(leaf.body)


def _leaves(store: bytes, path: tuple[str, ...] = ()) -> Iterator[_Leaf]:
    """The content boxes of JUMBF superboxes (ISO 19566-5), each of which begins with its description."""
    for kind, body in containers.boxes(store):
        if kind != b"jumb":
            yield _Leaf(path, kind, bytes(body))
            continue
        described = next(containers.boxes(bytes(body)), (b"", memoryview(b"")))[1]
        size = int.from_bytes(body[:4], "big")
        yield from _leaves(bytes(body[size:]), (*path, _label(bytes(described))))


def _label(description: bytes) -> str:
    """The label in a description box: 16 bytes of type, one of switches, then text that ends in a zero."""
    if len(description) < 18 or not description[16] & 2:
        return ""
    return description[17:].split(b"\0")[0].decode("utf-8", "replace")
