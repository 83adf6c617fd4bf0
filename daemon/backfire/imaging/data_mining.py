"""What a picture's XMP says of data mining, `plus:DataMining`, and how it is made to say more.

The property and its terms are PLUS's, and part of the IPTC Photo Metadata Standard since 2023.1. It is a
reservation of rights, which nothing enforces.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from backfire.imaging import xmp
from backfire.imaging.metadata import Metadata

PLUS = "http://ns.useplus.org/ldf/xmp/1.0/"
VOCABULARY = "http://ns.useplus.org/ldf/vocab/"

TERMS = {
    "prohibited-genai": "DMI-PROHIBITED-GENAIMLTRAINING",
    "prohibited-ai": "DMI-PROHIBITED-AIMLTRAINING",
    "prohibited": "DMI-PROHIBITED",
}
"""By value of `output.data_mining`: the term that is written."""

STRICTNESS = (
    "DMI-UNSPECIFIED",
    "DMI-ALLOWED",
    "DMI-PROHIBITED-GENAIMLTRAINING",
    "DMI-PROHIBITED-AIMLTRAINING",
    "DMI-PROHIBITED-EXCEPTSEARCHENGINEINDEXING",
    "DMI-PROHIBITED",
)
"""The terms that can be compared, the strictest last."""

_PROHIBITION = re.compile(r"DMI-PROHIBITED[\w-]*")
_VALUE = re.compile(rb"resource\s*=\s*[\"']([^\"']*)[\"']|>([^<]*)<")
_END = re.compile(rb"</[^\s<>/]*RDF\s*>")
_ABOUT = re.compile(rb"(?<=[\w.-]):about\s*=\s*(\"[^\"]*\"|'[^']*')")
_ENCODING = re.compile(r"(<\?xml[^<>]*?)(?<!\s)\s+encoding\s*=\s*(?:\"[^\"]*\"|'[^']*')")
_NEW = (
    f'<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    f'<rdf:RDF xmlns:rdf="{xmp.RDF}"></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
).encode()


def stated(about: Metadata) -> str | None:
    """The strictest term that a picture's XMP has of data mining, such as `DMI-PROHIBITED`; None if none."""
    return _strictest(_terms(_packets(about)))


def demanding(about: Metadata, setting: str) -> Metadata:
    """Metadata that will be written with what a setting demands, or with the picture's own stricter term.

    A prohibition whose terms stand elsewhere, such as `DMI-PROHIBITED-SEECONSTRAINT`, is the owner's own word
    and stays.

    Args:
        about: as it was read, with all packets: what is stripped from them later still counts.
        setting: `output.data_mining`.
    """
    if setting == "keep":
        return about
    return replace(about, data_mining=_strictest([*_terms(_packets(about)), TERMS[setting]]))


def written(about: Metadata) -> Metadata:
    """The metadata with its `data_mining` in the XMP packet, in a new one if there is none.

    A packet that is no XML is left as it is, since nobody could tell what belongs into it.
    """
    term = about.data_mining
    if term is None or (_terms([about.xmp]), _terms([about.extended])) == ([term], []):
        return about
    packet = _NEW if about.xmp is None else _in_utf8(about.xmp)
    if not xmp.is_whole(packet):
        return about
    packet = xmp.without(packet, _is_ours)
    if not _END.search(packet):  # it describes nothing
        packet = _NEW
    *_, end = _END.finditer(packet)
    subject = found[1] if (found := _ABOUT.search(packet)) else b'""'
    said = (
        f'<rdf:Description xmlns:rdf="{xmp.RDF}" xmlns:plus="{PLUS}" rdf:about='.encode()
        + subject
        + f"><plus:DataMining>{VOCABULARY}{term}</plus:DataMining></rdf:Description>".encode()
    )
    extended = None if about.extended is None else xmp.without(about.extended, _is_ours)
    return replace(about, xmp=packet[: end.start()] + said + packet[end.start() :], extended=extended)


def _packets(about: Metadata) -> tuple[bytes | None, ...]:
    return about.packets or (about.xmp, about.extended)


def _is_ours(one: xmp.Property) -> bool:
    return one.namespace == PLUS and one.name == "DataMining"


def _terms(packets: Iterable[bytes | None]) -> list[str]:
    return [term for packet in packets if packet is not None for term in _terms_in(_in_utf8(packet))]


def _terms_in(packet: bytes) -> Iterator[str]:
    for one in xmp.properties(packet):
        value = _VALUE.search(one.element) if _is_ours(one) else None
        if value is not None:
            yield (value[1] or value[2] or b"").decode("utf-8", "replace").strip().removeprefix(VOCABULARY)


def _strictest(terms: list[str]) -> str | None:
    """The owner's own word first, then the strictest of the terms that can be compared."""
    own = [one for one in terms if one not in STRICTNESS and _PROHIBITION.fullmatch(one)]
    known = sorted((one for one in terms if one in STRICTNESS), key=STRICTNESS.index)
    return own[0] if own else known[-1] if known else None


def _in_utf8(packet: bytes) -> bytes:
    """A packet in UTF-16 as UTF-8; others as they are."""
    if b"\0" not in packet:
        return packet
    try:
        text = packet.decode("utf-16" if packet[:2] in (b"\xff\xfe", b"\xfe\xff") else _guessed(packet))
    except UnicodeDecodeError:
        return packet
    return _ENCODING.sub(r"\1", text).encode()


def _guessed(packet: bytes) -> str:
    return "utf-16-be" if packet[:1] == b"\0" else "utf-16-le"
