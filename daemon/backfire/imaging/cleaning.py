"""Takes out of metadata what must not be published, and says what it was.

Each value is judged by itself, so that the rest of a record stays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from backfire.imaging import photoshop, previews, xmp
from backfire.imaging.metadata import GEOGRAPHY, IPTC, PNG_CARRIED, Metadata, Part
from backfire.imaging.tags import MAKER_NOTE, SIZES, Directory, Entry

TRANSFER_FUNCTION = 301
NAMED = GEOGRAPHY | {TRANSFER_FUNCTION}
"""Tags whose values may be large numbers and hold no picture."""

NAMES = {MAKER_NOTE: "the maker note", 0x9286: "the user comment"}
PARTS = {b"\xfe": "a JPEG comment", b"!\xfe": "a GIF comment", b"uuid": "a uuid box", b"xml ": "an XML box"}


GOOGLE_CAMERA, MOTION = "http://ns.google.com/photos/1.0/camera/", ("MotionPhoto", "MicroVideo")
PROMISES = frozenset(
    {
        "http://ns.google.com/photos/1.0/container/",
        "http://ns.google.com/photos/1.0/depthmap/",
        "http://ns.google.com/photos/1.0/image/",
        "http://ns.google.com/photos/dd/1.0/device/",
        "http://ns.adobe.com/hdr-gain-map/1.0/",
        "http://ns.apple.com/HDRGainMap/1.0/",
        "http://ns.apple.com/pixeldatainfo/1.0/",
    }
)
"""The namespaces of XMP that describe videos, depth maps and gain maps behind the picture."""

TERMS, MANIFEST_AT = "http://purl.org/dc/terms/", re.compile(rb">\s*(?:self#jumbf|https?://)")
"""Of `dcterms:provenance`, the values that say where the C2PA manifest lies; others are a person's words."""


@dataclass(frozen=True)
class _Rule:
    """What is taken out.

    Attributes:
        unwanted: whether a value is.
        packet: an XMP packet without it; None if nothing can be kept.
        why: the reason, for the receipt.
        named: tags that are not judged.
        resources: numbers of Photoshop's resources that are not judged.
    """

    unwanted: Callable[[bytes], bool]
    packet: Callable[[bytes], bytes | None]
    why: str
    named: frozenset[int] = frozenset()
    resources: frozenset[int] = frozenset()


PICTURES = _Rule(previews.shows, previews.cut_from, "it shows the unprotected picture")
OPAQUE = _Rule(
    previews.opaque,
    previews.plain,
    "it is large and of an unknown kind, so it could hold the unprotected picture",
    NAMED,
    photoshop.NAMED,
)


def without_pictures(found: Metadata) -> Metadata:
    """The metadata without every value that shows a picture."""
    resources = b"".join(
        whole
        for kind, whole in photoshop.resources(found.photoshop or b"")
        if kind not in photoshop.THUMBNAILS
    )
    return _without(replace(found, photoshop=resources or None), PICTURES)


def without_stale(found: Metadata) -> Metadata:
    """The metadata without XMP that promises further data, such as videos, gain maps and C2PA manifests.

    Those are never carried; a reader would look for them in the wrong bytes, or find that they do not fit.
    """
    names: dict[str, None] = {}

    def stale(one: xmp.Property) -> bool:
        gone = one.namespace in PROMISES or (one.namespace == GOOGLE_CAMERA and one.name.startswith(MOTION))
        gone = gone or (one.namespace == xmp.NOTE and found.extended is None)
        if (one.namespace, one.name) == (TERMS, "provenance") and MANIFEST_AT.search(one.element):
            gone = True
        if gone and one.namespace != xmp.NOTE:
            names[one.name] = None
        return gone

    main, extended = (packet and xmp.without(packet, stale) for packet in (found.xmp, found.extended))
    said = [f"the XMP properties {', '.join(names)}: they speak of data that are not published"]
    left_out = (*found.left_out, *(said if names else ()))
    return replace(found, xmp=main, extended=extended, left_out=left_out)


def without_opaque(found: Metadata) -> Metadata:
    """The metadata without large values that could hold a picture without anyone being able to tell."""
    return _without(found, OPAQUE)


def _without(found: Metadata, rule: _Rule) -> Metadata:
    said = list(found.left_out)

    def leave_out(what: str) -> None:
        phrase = f"{what}: {rule.why}"
        if phrase not in said:
            said.append(phrase)

    resources = found.photoshop and b"".join(_resources(found.photoshop, rule, leave_out))
    return replace(
        found,
        exif=_tags(found.exif, rule, leave_out),
        xmp=_packet(found.xmp, rule, leave_out),
        extended=_packet(found.extended, rule, leave_out),
        photoshop=resources or None,
        parts=tuple(_parts(found.parts, rule, leave_out)),
        left_out=tuple(said),
    )


def name_of(kind: bytes) -> str:
    """What a kind of part is called in `left_out`."""
    if kind in previews.PNG_TEXT:
        return "a PNG text"
    return f"the PNG chunk {kind.decode()}" if kind in PNG_CARRIED else PARTS.get(kind, "a part of the file")


def _tags(exif: Directory, rule: _Rule, leave_out: Callable[[str], None]) -> Directory:
    entries: dict[int, Entry] = {}
    for tag, entry in exif.entries.items():
        kept: Entry | None = entry
        if tag == IPTC:
            record = _record(entry.data, rule, leave_out)
            record += bytes(-len(record) % SIZES[entry.type])
            kept = replace(entry, data=record, count=len(record) // SIZES[entry.type]) if record else None
        elif tag not in rule.named and rule.unwanted(entry.data):
            leave_out(f"{NAMES.get(tag, f'the tag {tag}')} ({_size(entry.data)})")
            kept = None
        if kept is not None:
            entries[tag] = kept
    below = {tag: _tags(one, rule, leave_out) for tag, one in exif.below.items()}
    return replace(exif, entries=entries, below={tag: one for tag, one in below.items() if one})


def _record(record: bytes, rule: _Rule, leave_out: Callable[[str], None]) -> bytes:
    """An IPTC record without unwanted datasets."""
    if not rule.unwanted(record):
        return record
    kept = []
    for one in photoshop.datasets(record):
        if rule.unwanted(photoshop.value_of(one)):
            leave_out(f"the IPTC dataset {one[1]}:{one[2]:02} ({_size(one)})")
        else:
            kept.append(one)
    return b"".join(kept)


def _resources(block: bytes, rule: _Rule, leave_out: Callable[[str], None]) -> Iterator[bytes]:
    for kind, whole in photoshop.resources(block):
        body = photoshop.body_of(whole)
        if kind == photoshop.IIM:
            record = _record(body, rule, leave_out)
            yield whole if record == body else photoshop.resource(kind, record)
        elif kind not in rule.resources and rule.unwanted(body):
            leave_out(f"Photoshop's resource {kind} ({_size(body)})")
        else:
            yield whole


def _packet(packet: bytes | None, rule: _Rule, leave_out: Callable[[str], None]) -> bytes | None:
    tidy = None if packet is None else rule.packet(packet)
    if tidy is None and packet is not None:
        leave_out(f"an XMP packet ({_size(packet)})")
    elif tidy != packet:
        leave_out("a part of the XMP")
    return tidy


def _parts(parts: tuple[Part, ...], rule: _Rule, leave_out: Callable[[str], None]) -> Iterator[Part]:
    for kind, body in parts:
        text = previews.unpacked(kind, body)
        if any(rule.unwanted(leaf) for leaf in _leaves(text)) or len(text) >= previews.MOST_TEXT:
            leave_out(f"{name_of(kind)} ({_size(body)})")
        else:
            yield kind, body


def _leaves(data: bytes) -> Iterator[bytes]:
    """The values in Photoshop's resources or an IPTC record, which PNG keeps in text; other data whole."""
    if data[36:40] == b"acsp":  # a colour profile
        return
    pieces = [photoshop.body_of(whole) for _, whole in photoshop.resources(data)]
    pieces = pieces or [photoshop.value_of(one) for one in photoshop.datasets(data)]
    if not pieces:
        yield data
    for piece in pieces:
        yield from _leaves(piece)


def _size(data: bytes) -> str:
    return f"{len(data)} bytes" if len(data) < 10_000 else f"{len(data) // 1000} kB"
