"""Takes properties out of XMP packets, and splits packets that are too long for one JPEG segment.

The rest of a packet keeps its bytes. Packets in UTF-16 and broken ones are returned as they are. Source: XMP
Specification Part 1 (properties) and Part 3, 1.1.3.1 (extended XMP).
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from xml.parsers import expat

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
NOTE = "http://ns.adobe.com/xmp/note/"

DEEPEST = 64
"""The most elements within each other that declare namespaces; packets have a few.

Each of them makes the scopes below it larger, and the look-up of a prefix longer.
"""

_TAG = re.compile(rb"<[^<>\"']*(?:\"[^\"]*\"[^<>\"']*|'[^']*'[^<>\"']*)*>")
# Without the look behind, a long row of spaces would be read anew from each of them.
_ATTRIBUTE = re.compile(rb"(?<!\s)\s++([^\s=<>\"']+)\s*=\s*(\"[^\"]*\"|'[^']*')")
_NUMBER = re.compile(rb"(?<=[\"'>])\d+(?=[\"'<])")
_DECLARATION = re.compile(rb"<\?xml\s[^<>]*\?>")
_PREFIX = re.compile(rb"[<\s]([^\s<>/\"'=:]++):")
_PADDING = re.compile(rb"(?<!\s)\s{64,}+(?=<\?xpacket end)")


@dataclass(frozen=True)
class Property:
    """A property of the picture in a packet, as an element or an attribute.

    Attributes:
        namespace, name: its full name.
        start, end: where it lies in the packet, with the space before an attribute.
        element: it as an element, in bytes.
        scope: the namespaces by prefix that hold there.
    """

    namespace: str
    name: str
    start: int
    end: int
    element: bytes
    scope: Mapping[str, str]


def properties(packet: bytes) -> list[Property]:
    """The properties of a packet; none if it is in UTF-16, or broken, or declares a document type."""
    return _read(packet) or []


def is_whole(packet: bytes) -> bool:
    """Whether `properties` can read a packet, which may also have none."""
    return _read(packet) is not None


def without(packet: bytes, unwanted: Callable[[Property], bool]) -> bytes:
    """A packet without some properties."""
    return _without(packet, [one for one in properties(packet) if unwanted(one)])


def with_numbers(packet: bytes, values: Mapping[tuple[str, str], str]) -> bytes:
    """A packet in which properties, by namespace and name, have other whole numbers, if they had some."""
    kept, at = [], 0
    for one in sorted(properties(packet), key=lambda one: one.start):
        new = values.get((one.namespace, one.name))
        if new is not None and one.start >= at:
            part = packet[one.start : one.end]
            kept += [packet[at : one.start], _NUMBER.sub(new.encode(), part, count=1)]
            at = one.end
    return b"".join([*kept, packet[at:]])


def split(packet: bytes, most: int) -> tuple[bytes, bytes] | None:
    """A packet of at most `most` bytes, and an extended packet with the largest properties of the one given.

    The first names a digest of zeros, in place of which the writer puts the true one. None if there are not
    enough properties that can be moved.
    """
    packet = _PADDING.sub(b"\n", packet)
    moved: list[Property] = []
    left = len(packet)
    for one in sorted(properties(packet), key=lambda one: one.start - one.end):
        if left <= most - 256:  # which the note needs
            break
        if one.namespace not in (RDF, NOTE):
            moved.append(one)
            left -= one.end - one.start
    main = without(_without(packet, moved), lambda one: one.namespace == NOTE)
    head = re.search(rb"<[^\s<>/]*Description(?=[\s/>])", main)
    if left > most - 256 or head is None:
        return None
    note = f' xmlns:xmpNote="{NOTE}" xmpNote:HasExtendedXMP="{"0" * 32}"'.encode()
    described = b"".join(map(_described, moved))
    declared = _DECLARATION.match(packet)  # it says the encoding, without which it would be read as UTF-8
    extended = declared[0] if declared else b""
    extended += f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}">'.encode() + described
    return main[: head.end()] + note + main[head.end() :], extended + b"</rdf:RDF></x:xmpmeta>"


def _read(packet: bytes) -> list[Property] | None:
    reader = _Reader(packet)
    try:
        reader.parser.Parse(packet, True)
    except (expat.ExpatError, ValueError, IndexError):
        return None
    return reader.found


def _without(packet: bytes, gone: list[Property]) -> bytes:
    kept, at = [], 0
    for one in sorted(gone, key=lambda one: one.start):
        kept.append(packet[at : one.start])
        at = one.end
    return b"".join([*kept, packet[at:]])


def _described(one: Property) -> bytes:
    # Only the namespaces that it uses: all that hold there, for each property, would take quadratic memory.
    used = {prefix.decode(errors="replace") for prefix in _PREFIX.findall(one.element)} - {"rdf"}
    spaces = "".join(
        f' xmlns:{prefix}="{one.scope[prefix]}"' for prefix in sorted(used) if prefix in one.scope
    )
    return f'<rdf:Description rdf:about=""{spaces}>'.encode() + one.element + b"</rdf:Description>"


class _Reader:
    """Collects the properties of the descriptions in `rdf:RDF`, with the namespaces that hold there."""

    def __init__(self, packet: bytes) -> None:
        self.packet, self.found = packet, list[Property]()
        self.open: list[tuple[tuple[str, str], int, ChainMap[str, str]]] = []
        self.parser = expat.ParserCreate()
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.StartDoctypeDeclHandler = self._refuse

    def _refuse(self, *_: object) -> None:
        raise ValueError("a document type")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        scope = self.open[-1][2] if self.open else ChainMap[str, str]()
        # Elements share what is declared around them: a copy for each would take quadratic memory.
        if new := {key[6:]: uri for key, uri in attributes.items() if key.startswith("xmlns:")}:
            if len(scope.maps) > DEEPEST:
                raise ValueError(f"more than {DEEPEST} elements within each other that declare namespaces")
            scope = scope.new_child(new)
        at = self.parser.CurrentByteIndex
        self.open.append((_full(name, scope), at, scope))
        if self._level() == (RDF, "Description"):
            tag = _TAG.match(self.packet, at)
            for one in _ATTRIBUTE.finditer(tag[0] if tag else b""):
                key = one[1].decode()
                if ":" in key and not key.startswith("xmlns:"):
                    element = b"<" + one[1] + b">" + one[2][1:-1] + b"</" + one[1] + b">"
                    space, local = _full(key, scope)
                    self.found.append(
                        Property(space, local, at + one.start(), at + one.end(), element, scope)
                    )

    def _level(self) -> tuple[str, str] | None:
        """The name of the open element if it is a child of `rdf:RDF`."""
        return self.open[-1][0] if len(self.open) > 1 and self.open[-2][0] == (RDF, "RDF") else None

    def _end(self, _: str) -> None:
        (space, local), start, scope = self.open.pop()
        if self._level() == (RDF, "Description"):
            tag = _TAG.match(self.packet, start)
            if tag is None:
                raise ValueError("a tag that cannot be found again")
            at = self.parser.CurrentByteIndex
            end = tag.end() if tag[0].endswith(b"/>") else self.packet.index(b">", at) + 1
            self.found.append(Property(space, local, start, end, self.packet[start:end], scope))


def _full(name: str, scope: Mapping[str, str]) -> tuple[str, str]:
    prefix, _, local = name.rpartition(":")
    return scope.get(prefix, ""), local
