"""Reads HEIF and AVIF files as lists of items (pictures, tiles, metadata), and adds metadata to them.

Sources: ISO/IEC 14496-12 (the boxes), 23008-12 (HEIF), 23000-22 (MIAF).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from backfire.imaging import containers

TURNS = {2: (0, 1), 3: (2, None), 4: (0, 0), 5: (1, 0), 6: (3, None), 7: (3, 0), 8: (1, None)}
"""EXIF orientation → quarter turns to the left, then the mirror axis: 0 swaps top and bottom, 1 the sides."""

ORIENTATIONS = {
    (0, None): 1, (0, 0): 4, (0, 1): 2, (1, None): 8, (1, 0): 5, (1, 1): 7,
    (2, None): 3, (2, 0): 2, (2, 1): 4, (3, None): 6, (3, 0): 7, (3, 1): 5,
}  # fmt: skip
"""The inverse of `TURNS`, for every pair that a file may hold."""

MOST_ITEMS = 10_000
MOST_PARTS = 100_000
"""The most pieces of payload in a file, of which even those that take no byte of the table count."""
ESSENTIAL = frozenset({b"av1C", b"hvcC", b"irot", b"imir", b"clap"})

Property = tuple[bytes, bytes]


@dataclass(frozen=True)
class Item:
    """One item of a file.

    Attributes:
        kind: `av01`, `hvc1`, `grid`, `Exif`, `mime` and others.
        properties: kind and body of the boxes that describe it, in order.
        parts: the pieces of its payload, in order; together they are the payload.
        content_type: the media type of an item of kind `mime`.
    """

    kind: bytes
    properties: tuple[Property, ...] = ()
    parts: tuple[memoryview, ...] = ()
    content_type: bytes = b""


@dataclass(frozen=True)
class Items:
    """All items of a file.

    Attributes:
        primary: the number of the picture that viewers show.
        items: the items by number.
        references: (kind, from which item, to which items): `dimg` from a grid to its tiles, `auxl`
            from an alpha plane to its picture, `cdsc` from metadata to what it describes.
    """

    primary: int
    items: Mapping[int, Item]
    references: tuple[tuple[bytes, int, tuple[int, ...]], ...] = field(default=())

    def payload(self, number: int) -> bytes:
        """The bytes of an item."""
        return b"".join(self.items[number].parts)

    def shown(self) -> Iterator[Item]:
        """The primary item, and its tiles if it is a grid."""
        yield self.items[self.primary]
        for kind, source, targets in self.references:
            if kind == b"dimg" and source == self.primary:
                yield from (self.items[target] for target in targets if target in self.items)

    @property
    def orientation(self) -> int:
        """The orientation of the primary picture, 1..8 as in EXIF.

        It is taken from the container and not from the EXIF tag, as readers of these formats do.
        """
        found = {kind: body[0] for kind, body in self.items[self.primary].properties if body}
        turn, mirror = found.get(b"irot", 0) & 3, found.get(b"imir")
        return ORIENTATIONS[turn, None if mirror is None else mirror & 1]

    @property
    def cropped(self) -> bool:
        """Whether a clean aperture (`clap`) lets viewers show less than all of the primary picture."""
        found = dict(self.items[self.primary].properties)
        size, aperture = found.get(b"ispe", b"")[4:], found.get(b"clap")
        if aperture is None:
            return False
        wide, across, high, down = struct.unpack_from(">4I", aperture.ljust(16, b"\0"))
        return struct.pack(">II", wide // max(across, 1), high // max(down, 1)) != size

    def of_kind(self, kind: bytes) -> Iterator[bytes]:
        """The payloads of all items of a type."""
        return (self.payload(number) for number, item in self.items.items() if item.kind == kind)


def read(data: bytes) -> Items:
    """The items of a file.

    Raises:
        ValueError: the boxes contradict each other, or point outside the file.
    """
    try:
        meta = next(body for kind, body in containers.boxes(data) if kind == b"meta")
        found = {kind: bytes(body) for kind, body in containers.boxes(bytes(meta), 4)}
        kinds = dict(_kinds(found[b"iinf"]))
        properties = _properties(found.get(b"iprp", b""))
        places = (memoryview(data), memoryview(found.get(b"idat", b"")))
        parts = dict(_parts(found.get(b"iloc", bytes(8)), places))
        wide = found[b"pitm"][0] > 0
        (primary,) = struct.unpack_from(">I" if wide else ">H", found[b"pitm"], 4)
        items = {
            number: Item(kind, properties.get(number, ()), parts.get(number, ()), content_type)
            for number, (kind, content_type) in kinds.items()
        }
        references = tuple(_references(found.get(b"iref", b"")))
    except (struct.error, StopIteration, IndexError, KeyError) as error:
        raise ValueError(f"its boxes do not fit together ({type(error).__name__} {error})") from error
    if primary not in items:
        raise ValueError(f"its primary item {primary} is not among its {len(items)} items")
    return Items(primary, items, references)


def _kinds(body: bytes) -> Iterator[tuple[int, tuple[bytes, bytes]]]:
    """Number, kind and content type of each item, from the box `iinf`."""
    for count, (name, view) in enumerate(containers.boxes(body, 8 if body[0] else 6)):
        entry = bytes(view)
        if name != b"infe" or entry[0] not in (2, 3) or count > MOST_ITEMS:
            raise ValueError("its list of items cannot be read")
        head = 8 if entry[0] == 3 else 6
        (number,) = struct.unpack_from(">I" if head == 8 else ">H", entry, 4)
        kind = entry[head + 2 : head + 6]
        texts = entry[head + 6 :].split(b"\0")
        yield number, (kind, texts[1] if kind == b"mime" and len(texts) > 1 else b"")


def _properties(iprp: bytes) -> dict[int, tuple[Property, ...]]:
    shared: list[Property] = []
    found: dict[int, tuple[Property, ...]] = {}
    for kind, view in containers.boxes(iprp):
        body = bytes(view)
        if kind == b"ipco":
            shared += [(name, bytes(inner)) for name, inner in containers.boxes(body)]
        elif kind == b"ipma":
            number, index = (">I" if body[0] else ">H"), (">H" if body[3] & 1 else ">B")
            at = 8
            for _ in range(struct.unpack_from(">I", body, 4)[0]):
                (item,) = struct.unpack_from(number, body, at)
                count = body[at + struct.calcsize(number)]
                at += struct.calcsize(number) + 1
                mask = 0x7FFF if index == ">H" else 0x7F
                size = struct.calcsize(index)
                places = [struct.unpack_from(index, body, at + size * one)[0] & mask for one in range(count)]
                found[item] = tuple(shared[place - 1] for place in places if 0 < place <= len(shared))
                at += size * count
    return found


def _parts(
    body: bytes, places: tuple[memoryview, memoryview]
) -> Iterator[tuple[int, tuple[memoryview, ...]]]:
    """The pieces of each item's payload, from the box `iloc`; those outside the file are left out.

    `places` are what offsets count in: the whole file, and the content of the box `idat`.
    """
    version = body[0]
    offset_size, length_size, base_size, index_size = (body[4] >> 4, body[4] & 15, body[5] >> 4, body[5] & 15)
    at, room = 6, MOST_PARTS

    def number(size: int) -> int:
        nonlocal at
        at += size
        if at > len(body):
            raise IndexError("iloc is incomplete")
        return int.from_bytes(body[at - size : at], "big")

    for _ in range(number(4 if version == 2 else 2)):
        item = number(4 if version == 2 else 2)
        method = number(2) & 15 if version else 0
        number(2)  # data_reference_index: which file holds the payload; 0 is this one
        base, parts, left = number(base_size), [], len(places[0])
        pieces = number(2)
        room -= pieces
        if room < 0:
            raise ValueError(f"its items have more than {MOST_PARTS} pieces")
        for _ in range(pieces):
            number(index_size if version else 0)
            start = base + number(offset_size)
            size = number(length_size)
            left -= size  # otherwise a small file could name the same bytes a million times
            if method < 2 and left >= 0 and start + size <= len(places[method]):
                parts.append(places[method][start : start + size])
        yield item, tuple(parts)


def _references(body: bytes) -> Iterator[tuple[bytes, int, tuple[int, ...]]]:
    letter = "I" if body[:1] > b"\0" else "H"
    for kind, view in containers.boxes(body, 4):
        source, count = struct.unpack_from(f">{letter}H", view)
        targets = struct.unpack_from(f">{count}{letter}", view, struct.calcsize(f">{letter}H"))
        yield kind, source, targets


def described(
    data: bytes, *, icc: bytes | None, orientation: int, exif: bytes | None, xmp: bytes | None
) -> bytes:
    """An encoded file with a colour profile, an orientation and metadata added.

    Args:
        data: the encoder's file; it holds pictures only and is smaller than 4 GB.
        icc: the profile's bytes.
        orientation: 1..8 as in EXIF; written as the container's rotation and mirror, which readers obey.
        exif: a TIFF structure without an orientation tag.
        xmp: an XMP packet.
    """
    found = read(data)
    quarters, mirror = TURNS.get(orientation, (0, None))
    turns = [(b"irot", bytes([quarters]))] if quarters else []
    turns += [(b"imir", bytes([mirror]))] if mirror is not None else []
    # MIAF requires the same rotation of an alpha plane as of its picture.
    items = {
        number: replace(item, properties=(*item.properties, *turns)) for number, item in found.items.items()
    }
    shown = items[found.primary]
    if icc is not None:
        items[found.primary] = replace(shown, properties=(*shown.properties, (b"colr", b"prof" + icc)))
    payloads = {number: found.payload(number) for number in items}
    references = list(found.references)
    for kind, content_type, body in (
        (b"Exif", b"", None if exif is None else bytes(4) + exif),
        (b"mime", b"application/rdf+xml", xmp),
    ):
        if body is not None:
            number = max(items) + 1
            items[number], payloads[number] = Item(kind, content_type=content_type), body
            references.append((b"cdsc", number, (found.primary,)))
    kept = {kind: bytes(body) for kind, body in containers.boxes(data) if kind == b"ftyp"}
    handler = next(body for kind, body in containers.boxes(_meta(data), 4) if kind == b"hdlr")
    parts = [
        _box(b"hdlr", bytes(handler)),
        _box(b"pitm", struct.pack(">IH", 0, found.primary)),
        _box(b"iinf", struct.pack(">IH", 0, len(items)) + b"".join(map(_infe, items, items.values()))),
        _box(b"iref", bytes(4) + b"".join(_reference(*one) for one in references)) if references else b"",
        _iprp(items),
    ]
    head = _box(b"ftyp", kept[b"ftyp"])
    length = len(head) + len(_box(b"meta", bytes(4) + b"".join([*parts, _iloc(payloads, 0)])))
    meta = _box(b"meta", bytes(4) + b"".join([*parts, _iloc(payloads, length + 8)]))
    return head + meta + _box(b"mdat", b"".join(payloads.values()))


def _meta(data: bytes) -> bytes:
    return bytes(next(body for kind, body in containers.boxes(data) if kind == b"meta"))


def _infe(number: int, item: Item) -> bytes:
    text = b"\0" + (item.content_type + b"\0" if item.kind == b"mime" else b"")
    return _box(b"infe", struct.pack(">IHH4s", 2 << 24, number, 0, item.kind) + text)


def _reference(kind: bytes, source: int, targets: tuple[int, ...]) -> bytes:
    return _box(kind, struct.pack(f">HH{len(targets)}H", source, len(targets), *targets))


def _iprp(items: Mapping[int, Item]) -> bytes:
    shared = list(dict.fromkeys(one for item in items.values() for one in item.properties))
    described = {number: item.properties for number, item in items.items() if item.properties}
    rows = b""
    for number, properties in described.items():
        rows += struct.pack(">HB", number, len(properties))
        rows += bytes(shared.index(one) + 1 | (0x80 if one[0] in ESSENTIAL else 0) for one in properties)
    ipco = _box(b"ipco", b"".join(_box(*one) for one in shared))
    return _box(b"iprp", ipco + _box(b"ipma", struct.pack(">II", 0, len(described)) + rows))


def _iloc(payloads: Mapping[int, bytes], at: int) -> bytes:
    rows = b""
    for number, payload in payloads.items():
        rows += struct.pack(">HHHII", number, 0, 1, at, len(payload))
        at += len(payload)
    return _box(b"iloc", struct.pack(">IHH", 0, 0x4400, len(payloads)) + rows)


def _box(kind: bytes, body: Iterable[int]) -> bytes:
    body = bytes(body)
    return struct.pack(">I", len(body) + 8) + kind + body
