"""Reads the properties of an XMP packet, which is RDF in XML.

RDF allows several forms for the same struct: attributes, elements with parseType Resource, and elements that
contain a Description; these functions read all of them. The packet is not trusted: defusedxml reads it and
refuses document types.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Sequence
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from backfire.errors import Code, InputError

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"

ENCODINGS = {
    b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"<\0\0\0": "utf-32-le", b"\0\0\0<": "utf-32-be",
    b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"<\0": "utf-16-le", b"\0<": "utf-16-be",
}  # fmt: skip
"""By the first bytes of a packet that is not UTF-8: its encoding (XMP Specification Part 1, 7.1)."""


def parsed(packet: bytes, name: str) -> Element:
    """The root of a packet.

    Raises:
        InputError: `UNREADABLE`, it is not XML or declares a document type; `name` is the picture's.
    """
    try:
        root: Element = fromstring(_decoded(packet), forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise InputError(
            Code.UNREADABLE,
            f"{name}: its XMP cannot be read ({error}), expected plain XML; save the metadata "
            "again, or take 'metadata' out of regions.detectors",
        ) from error
    return root


def items(element: Element | None) -> list[Element]:
    """The members of an array property, none if it is missing."""
    return [] if element is None else [item for array in element for item in array if item.tag == RDF + "li"]


def member(element: Element, name: str) -> Element | None:
    """A property that is a struct or an array, None if it is missing."""
    return _struct(element).find(name)


def text(element: Element, name: str) -> str | None:
    """The text of a simple property; None if it is missing or empty."""
    struct = _struct(element)
    value = struct.get(name) or struct.findtext(name)
    return value.strip() if value else None


def numbers(element: Element, space: str, names: Sequence[str], *, sizes: int = 0) -> list[float]:
    """Simple properties as numbers, the last `sizes` of which must not be negative.

    Raises:
        ValueError: one is missing or no such number.
    """
    values = [number(text(element, space + name) or "", name) for name in names]
    for name, value in zip(names[len(names) - sizes :], values[len(names) - sizes :], strict=True):
        if value < 0:
            raise ValueError(f"{name} is {value:g}")
    return values


def number(text: str, name: str) -> float:
    """A finite number; raises ValueError.

    Its decimal sign may be a comma, except where that could part thousands.
    """
    value = math.nan
    text = text.strip()
    with contextlib.suppress(ValueError):
        if not re.fullmatch(r"[+-]?[1-9]\d*,\d{3}", text):
            value = float(re.sub(r"^([+-]?\d*),(\d+)$", r"\1.\2", text))
    if not math.isfinite(value):
        raise ValueError(f"{name} is {text[:60]!r}, not a number" if text else f"{name} is missing")
    return value


def _decoded(packet: bytes) -> str | bytes:
    """A packet as text if it is UTF-16 or UTF-32, which expat reads only in part; otherwise its bytes.

    Raises:
        UnicodeDecodeError: it is not in the encoding that its first bytes announce.
    """
    for start, encoding in ENCODINGS.items():
        if packet.startswith(start):
            return packet.decode(encoding).strip("\ufeff\0 \r\n\t")
    return packet.strip(b"\0 \r\n\t")


def _struct(element: Element) -> Element:
    inner = element.find(RDF + "Description")
    return element if inner is None else inner
