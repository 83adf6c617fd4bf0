"""TIFF tags as trees of raw values, of which EXIF blocks and TIFF files consist.

Values are kept as bytes, so that unknown tags survive. A maker note is written to its original offset if
there is room, because many contain offsets that count from the start of the block. Sources: TIFF 6.0, the
BigTIFF proposal, EXIF 2.32 and 3.0.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

SIZES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
    129: 1,  # UTF-8, of EXIF 3.0
}
"""By type: the bytes of one value."""

BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED, LONG8 = 1, 2, 3, 4, 5, 7, 16
BIG_ONLY = (16, 17, 18)
FORMATS = {BYTE: "B", ASCII: "B", SHORT: "H", LONG: "I", UNDEFINED: "B", LONG8: "Q", 13: "I"}
CAMERA, GPS, INTEROP, MAKER_NOTE = 0x8769, 0x8825, 0xA005, 0x927C
POINTERS = frozenset({CAMERA, GPS, INTEROP})
CARRIED = frozenset({700, 33723, 34377, 34675, CAMERA, GPS})
"""The tags of XMP, IPTC, Photoshop's resources, the profile and EXIF."""
MOST_ENTRIES = 4096
DEPTH = 3
SLACK = 16
"""Bytes of padding that may lie behind the last page of a TIFF."""


@dataclass(frozen=True)
class Entry:
    """The value of one tag, in the byte order of its tree.

    Attributes:
        at: the offset at which the value was stored; None if it is new or was stored in the entry itself.
    """

    tag: int
    type: int
    count: int
    data: bytes
    at: int | None = None


@dataclass(frozen=True)
class Directory:
    """The tags of a directory, and the directories below it by the tag that points to them.

    Attributes:
        order: `<` little or `>` big endian.
        strange: the tags of an unknown type that were left out.
    """

    order: str = "<"
    entries: Mapping[int, Entry] = field(default_factory=dict)
    below: Mapping[int, Directory] = field(default_factory=dict)
    strange: tuple[int, ...] = field(default=(), compare=False)

    def __bool__(self) -> bool:
        return bool(self.entries or self.below)

    def numbers(self, tag: int) -> tuple[int, ...]:
        """The integers of a tag; empty if it is missing or has none."""
        entry = self.entries.get(tag)
        if entry is None or entry.type not in FORMATS:
            return ()
        return struct.unpack(f"{self.order}{entry.count}{FORMATS[entry.type]}", entry.data)

    def number(self, tag: int, default: int = 0) -> int:
        """The first integer of a tag."""
        return next(iter(self.numbers(tag)), default)

    def raw(self, tag: int) -> bytes | None:
        """The bytes of a tag as stored; None if it is missing."""
        entry = self.entries.get(tag)
        return None if entry is None else entry.data

    def without(self, tags: Iterable[int]) -> Directory:
        """The tree without some tags of its first directory and the directories below them."""
        gone = set(tags)
        return replace(
            self,
            entries={tag: entry for tag, entry in self.entries.items() if tag not in gone},
            below={tag: directory for tag, directory in self.below.items() if tag not in gone},
        )

    def having(self, values: Mapping[int, tuple[int, Any]]) -> Directory:
        """The tree with tags set; by tag: the type, and the bytes or a sequence of integers."""
        new = {}
        for tag, (kind, value) in values.items():
            if not isinstance(value, bytes):
                letter = "II" if kind == RATIONAL else FORMATS[kind]
                flat = [part for pair in value for part in pair] if kind == RATIONAL else value
                value = struct.pack(f"{self.order}{len(value) * len(letter)}{letter[0]}", *flat)
            new[tag] = Entry(tag, kind, len(value) // SIZES[kind], value)
        return replace(self, entries={**self.entries, **new})

    def classic(self) -> Directory:
        """The tree without types that only BigTIFF has."""
        return replace(
            self,
            entries={tag: entry for tag, entry in self.entries.items() if entry.type not in BIG_ONLY},
            below={tag: directory.classic() for tag, directory in self.below.items()},
        )

    def block(self) -> bytes:
        """The tree as a complete TIFF structure, as in EXIF blocks."""
        return header(self.order, 8) + serialised(self.classic(), 8)


def header(order: str, first: int, *, big: bool = False) -> bytes:
    """The header of a TIFF with its first directory at the offset `first`."""
    mark = b"II" if order == "<" else b"MM"
    if big:
        return mark + struct.pack(f"{order}HHHQ", 43, 8, 0, first)
    return mark + struct.pack(f"{order}HI", 42, first)


def parse(data: bytes) -> Directory:
    """The first directory of a TIFF structure and those below it.

    Values that lie outside the data, and tags of an unknown type, are left out.

    Raises:
        ValueError: it is not a TIFF, has no directory at the given offset, or its tags are larger than the
            data.
    """
    return _Reader(data).directory()


def chain(data: bytes, *, most: int) -> list[Directory]:
    """The chained directories, which are the pages of a TIFF, at most `most` of them.

    Some writers leave any number where the offset of a next page would be. An offset that lies outside ends
    the chain if the file ends where the last page does, since an incomplete file would end behind that.

    Raises:
        ValueError: as `parse`.
    """
    reader, seen = _Reader(data), set[int]()
    pages: list[Directory] = []
    at = last = reader.first
    while at and at not in seen and len(pages) < most:
        if pages and at >= len(data) and reader.end_of(pages[-1], last) >= len(data) - SLACK:
            break
        seen.add(at)
        pages.append(reader.directory(at))
        last = at
        at = reader.following(at)
    return pages


def is_cut_short(data: bytes) -> bool:
    """Whether the data of a TIFF end within its first page's tags or their values.

    A value that lies outside as a whole does not count, since some writers leave wild offsets; but without
    the profile, XMP, IPTC or EXIF that it promises, a picture would silently lose what it means.

    Raises:
        ValueError: as `parse`.
    """
    reader = _Reader(data)
    reader.directory()
    return reader.cut_short


class _Reader:
    """Reads directories.

    Attributes:
        cut_short: whether the data ended within what was read.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.cut_short = False
        self.order = {b"II": "<", b"MM": ">"}.get(data[:2], "")
        if not self.order or len(data) < 8:
            raise ValueError(f"not a TIFF structure (first bytes {data[:4].hex(' ')})")
        magic = self._number("H", 2)
        if magic not in (42, 43):
            raise ValueError(f"not a TIFF structure (version {magic})")
        self.big = magic == 43
        self.offset, self.count, self.entry = ("Q", "Q", 20) if self.big else ("I", "H", 12)
        self.first = self._number(self.offset, 8 if self.big else 4)
        # Values of a valid file do not overlap; many tags that share the same megabytes would exhaust memory.
        self.room = 2 * len(data)

    def _number(self, letter: str, at: int) -> int:
        try:
            (value,) = struct.unpack_from(self.order + letter, self.data, at)
        except struct.error:
            self.cut_short |= at <= len(self.data)
            raise ValueError(f"a directory lies outside the {len(self.data)} bytes") from None
        return int(value)

    def _table(self, at: int) -> tuple[int, int]:
        """The number of entries and the offset of the first."""
        count = self._number(self.count, at)
        if count > MOST_ENTRIES:
            raise ValueError(f"a directory of {count} tags")
        return count, at + struct.calcsize(self.count)

    def end_of(self, page: Directory, at: int) -> int:
        """The offset behind all that belongs to a page: its directory, its values and its pieces."""
        count, start = self._table(at)
        ends = [start + count * self.entry + struct.calcsize(self.offset)]
        ends += [entry.at + len(entry.data) for entry in page.entries.values() if entry.at is not None]
        for offsets, sizes in ((273, 279), (324, 325)):
            pieces = zip(page.numbers(offsets), page.numbers(sizes), strict=False)
            ends += [offset + size for offset, size in pieces]
        return max(ends)

    def following(self, at: int) -> int:
        count, start = self._table(at)
        try:
            return self._number(self.offset, start + count * self.entry)
        except ValueError:
            return 0

    def directory(self, at: int | None = None, depth: int = 0) -> Directory:
        count, start = self._table(self.first if at is None else at)
        self.cut_short |= start <= len(self.data) < start + count * self.entry
        entries, below, strange = {}, {}, []
        for place in range(start, min(start + count * self.entry, len(self.data)), self.entry):
            # Pages may lie over each other, also with entries of which none can be read.
            self._charge(self.entry)
            found = self._entry(place)
            if found is None:
                strange += self._strange(place)
                continue
            if found.tag not in POINTERS:
                entries[found.tag] = found
            elif depth < DEPTH and found.type in (LONG, 13, LONG8, 18) and found.count == 1:
                try:
                    under = Directory(self.order, {found.tag: found}).number(found.tag)
                    self.cut_short |= found.tag in CARRIED and under >= len(self.data)
                    below[found.tag] = self.directory(under, depth + 1)
                except ValueError:
                    continue
        kept = {tag: one for tag, one in below.items() if one}
        return Directory(self.order, entries, kept, tuple(strange))

    def _strange(self, place: int) -> list[int]:
        """The tag of an entry if its type is unknown."""
        try:
            tag, kind = self._number("H", place), self._number("H", place + 2)
        except ValueError:
            return []
        return [] if kind in SIZES else [tag]

    def _entry(self, place: int) -> Entry | None:
        try:
            tag, kind = self._number("H", place), self._number("H", place + 2)
            count = self._number(self.offset, place + 4)
            inline = struct.calcsize(self.offset)
            value = place + 4 + inline
            size = SIZES[kind] * count
            at = None if size <= inline else self._number(self.offset, value)
        except (ValueError, KeyError):
            return None
        start = value if at is None else at
        if start + size > len(self.data):
            self.cut_short |= start <= len(self.data) or tag in CARRIED
            return None
        self._charge(size)
        return Entry(tag, kind, count, bytes(self.data[start : start + size]), at)

    def _charge(self, size: int) -> None:
        self.room -= size
        if self.room < 0:
            raise ValueError(f"its tags hold more than twice its {len(self.data)} bytes")


def serialised(directory: Directory, start: int, *, big: bool = False) -> bytes:
    """The bytes of a tree for the offset `start`, with its first directory first."""
    return bytes(_Writer(directory, start, big=big).written)


class _Writer:
    def __init__(self, directory: Directory, start: int, *, big: bool) -> None:
        self.start, self.cursor, self.order = start, start, directory.order
        self.offset, self.count = ("Q", "Q") if big else ("I", "H")
        self.inline = struct.calcsize(self.offset)
        self.written = bytearray()
        note = directory.below[CAMERA].entries.get(MAKER_NOTE) if CAMERA in directory.below else None
        self.pinned = range(note.at, note.at + len(note.data)) if note is not None and note.at else range(0)
        first = start + struct.calcsize(self.count) + len(directory.entries) * 20 + self.inline
        if not big and self.pinned and (self.pinned.start < first or self.pinned.start > first + 65_536):
            self.pinned = range(0)
        self.directory(directory)

    def _place(self, size: int) -> int:
        """The offset of free space for `size` bytes that does not overlap the maker note."""
        self.cursor += self.cursor % 2
        if self.cursor < self.pinned.stop and self.cursor + size > self.pinned.start:
            self.cursor = self.pinned.stop + self.pinned.stop % 2
        at, self.cursor = self.cursor, self.cursor + size
        return at

    def _put(self, at: int, data: bytes) -> None:
        at -= self.start
        self.written.extend(bytes(max(0, at + len(data) - len(self.written))))
        self.written[at : at + len(data)] = data

    def directory(self, directory: Directory) -> int:
        count = len(directory.entries) + len(directory.below)
        at = self._place(struct.calcsize(self.count) + count * (4 + 2 * self.inline) + self.inline)
        table = bytearray(struct.pack(self.order + self.count, count))
        for tag in sorted({*directory.entries, *directory.below}):
            if tag in directory.below:
                pointer = struct.pack(self.order + self.offset, self.directory(directory.below[tag]))
                entry = Entry(tag, LONG if self.offset == "I" else LONG8, 1, pointer)
            else:
                entry = directory.entries[tag]
            table += struct.pack(f"{self.order}HH{self.offset}", tag, entry.type, entry.count)
            table += self._value(entry)
        self._put(at, bytes(table) + bytes(self.inline))
        return at

    def _value(self, entry: Entry) -> bytes:
        if len(entry.data) <= self.inline:
            return entry.data.ljust(self.inline, b"\0")
        if entry.tag == MAKER_NOTE and entry.at == self.pinned.start and self.pinned:
            at = self.pinned.start
        else:
            at = self._place(len(entry.data))
        self._put(at, entry.data)
        return struct.pack(self.order + self.offset, at)
