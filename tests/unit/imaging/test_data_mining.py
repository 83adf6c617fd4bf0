"""What XMP says of data mining is written into every format, read by readers that are not ours."""

from __future__ import annotations

import io
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from backfire.imaging import TERMS, Picture, containers, decode, demanding, encode, stated
from backfire.imaging.data_mining import PLUS, VOCABULARY
from backfire.imaging.heif import heif_ready
from backfire.imaging.metadata import UUID_XMP, Metadata
from tests.support.images import file, scene
from tests.support.programs import tool
from tests.unit.imaging.test_formats import EXTENSIONS, FORMAT, NAMES

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
WITH_XMP = [kind for kind in NAMES if kind not in ("BMP", "GIF")]


def described(inside: str = "", attributes: str = "", *, more: str = "") -> bytes:
    return (
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}" xmlns:p="{PLUS}"><rdf:Description '
        f'rdf:about="uuid:7" xmlns:dc="http://purl.org/dc/elements/1.1/"{attributes}>'
        f"{inside}</rdf:Description>{more}</rdf:RDF></x:xmpmeta>"
    ).encode()


def picture(packet: bytes | None = None, kind: str = "PNG") -> Picture:
    taken = decode(file(scene(), kind), name="a", max_pixels=10**6)
    packets = () if packet is None else (packet,)
    return replace(taken, metadata=replace(taken.metadata, xmp=packet, packets=packets))


def published(source: Picture, setting: str, **options: str) -> bytes:
    asked = replace(source, metadata=demanding(source.metadata, setting))
    return encode(asked, source.rgb, levels=6, **options).data


def packet_of(data: bytes) -> bytes | None:
    """The XMP that a reader other than ours finds; of JPEG 2000, for which there is none, that of its box."""
    if data[4:8] == b"jP  ":
        boxes = [bytes(body) for kind, body in containers.boxes(data) if kind == b"uuid"]
        return next((body[16:] for body in boxes if body.startswith(UUID_XMP)), None)
    heif_ready()
    with Image.open(io.BytesIO(data)) as opened:
        found = opened.info.get("xmp") or opened.info.get("XML:com.adobe.xmp")
        if found is None and opened.format == "TIFF":
            found = opened.tag_v2.get(700)  # type: ignore[attr-defined]
    return found.encode() if isinstance(found, str) else found


def terms(packet: bytes | None) -> list[str]:
    """The terms in a packet by an XML parser, as text, attribute or resource."""
    assert packet is not None
    found = []
    for node in ElementTree.fromstring(packet.split(b"<?xpacket end")[0]).iter():
        if node.tag == f"{{{PLUS}}}DataMining":
            found.append(node.get(f"{{{RDF}}}resource") or (node.text or "").strip())
        found += [value for key, value in node.attrib.items() if key == f"{{{PLUS}}}DataMining"]
    assert all(one.startswith(VOCABULARY) for one in found)
    return [one.removeprefix(VOCABULARY) for one in found]


@pytest.mark.parametrize("setting", TERMS)
@pytest.mark.parametrize("kind", WITH_XMP)
def test_every_format_with_xmp_says_it(kind: str, setting: str) -> None:
    data = published(picture(), setting, format=FORMAT.get(kind, kind.lower()))
    assert terms(packet_of(data)) == [TERMS[setting]]
    again = decode(data, name="a", max_pixels=10**6)
    assert stated(again.metadata) == TERMS[setting]
    assert published(picture(), "keep", format=FORMAT.get(kind, kind.lower())) != data


@pytest.mark.parametrize("kind", WITH_XMP)
def test_exiftool_reads_it_in_every_format(kind: str, tmp_path: Path) -> None:
    exiftool = tool("exiftool", "-ver")
    path = tmp_path / f"a{EXTENSIONS[kind]}"
    path.write_bytes(published(picture(), "prohibited-ai", format=FORMAT.get(kind, kind.lower())))
    # Versions before 12.67 do not know the property by name, and list it as they find it.
    told = subprocess.run(
        [exiftool, "-j", "-n", "-XMP:all", str(path)], capture_output=True, check=True, timeout=60
    ).stdout
    (found,) = json.loads(told)
    assert str(found["DataMining"]).endswith("DMI-PROHIBITED-AIMLTRAINING")


def test_a_gif_says_it_in_its_png() -> None:
    data = published(decode(file(scene(), "GIF"), name="a", max_pixels=10**6), "prohibited")
    assert terms(packet_of(data)) == ["DMI-PROHIBITED"]


@pytest.mark.parametrize("landing", [bytes([1, *range(255, -1, -1)]), b""], ids=["as it is", "sub-blocks"])
def test_the_word_of_a_gif_stays_and_its_comment_is_named(landing: bytes) -> None:
    packet = described(attributes=f' p:DataMining="{VOCABULARY}DMI-PROHIBITED"', inside=WORDS)
    stored = packet + landing if landing else in_blocks(packet)
    data = file(scene(), "GIF", comment=b"who made it")
    data = data[:-1] + b"\x21\xff\x0bXMP DataXMP" + stored + b"\0;"
    taken = decode(data, name="a", max_pixels=10**6)
    assert taken.metadata.xmp == packet
    assert terms(packet_of(published(taken, "prohibited-genai"))) == ["DMI-PROHIBITED"]
    assert encode(taken, taken.rgb, levels=6).left_out == ("a GIF comment: PNG has no place for it",)


WORDS = f"<dc:rights>{'© Zoë; all rights are reserved. ' * 20}</dc:rights>"


def in_blocks(content: bytes) -> bytes:
    pieces = (content[at : at + 255] for at in range(0, len(content), 255))
    return b"".join(bytes([len(piece)]) + piece for piece in pieces)


@pytest.mark.parametrize("how", ["text", "attribute", "resource", "bare"])
@pytest.mark.parametrize(
    ("there", "setting", "left"),
    [
        ("DMI-PROHIBITED", "prohibited-genai", "DMI-PROHIBITED"),
        ("DMI-PROHIBITED-EXCEPTSEARCHENGINEINDEXING", "prohibited-ai", None),
        ("DMI-PROHIBITED-EXCEPTSEARCHENGINEINDEXING", "prohibited", "DMI-PROHIBITED"),
        ("DMI-PROHIBITED-AIMLTRAINING", "prohibited-genai", None),
        ("DMI-PROHIBITED-GENAIMLTRAINING", "prohibited-ai", "DMI-PROHIBITED-AIMLTRAINING"),
        ("DMI-ALLOWED", "prohibited-genai", "DMI-PROHIBITED-GENAIMLTRAINING"),
        ("DMI-UNSPECIFIED", "prohibited", "DMI-PROHIBITED"),
        ("DMI-PROHIBITED-SEECONSTRAINT", "prohibited", None),
        ("DMI-PROHIBITED-SEELINKEDRIGHTSEXPR", "prohibited-ai", None),
    ],
)
def test_a_stricter_word_stays_and_a_weaker_one_is_replaced(
    how: str, there: str, setting: str, left: str | None
) -> None:
    full = VOCABULARY + there
    packet = {
        "text": described(f"<p:DataMining> {full}\n</p:DataMining>"),
        "attribute": described(attributes=f" p:DataMining='{full}'"),
        "resource": described(f'<p:DataMining rdf:resource="{full}"/>'),
        "bare": described(f"<p:DataMining>{there}</p:DataMining>"),
    }[how]
    data = published(picture(packet), setting)
    if left is None or left == there:
        assert packet_of(data) == packet, "byte for byte"
    else:
        assert terms(packet_of(data)) == [left]


def test_all_else_in_the_packet_stays() -> None:
    packet = described("<dc:rights>Zoë &amp; Co</dc:rights>", ' dc:format="image/png"')
    written = packet_of(published(picture(packet), "prohibited"))
    assert written is not None
    end = packet.index(b"</rdf:RDF>")
    assert written.startswith(packet[:end])
    assert written.endswith(packet[end:])
    assert b'rdf:about="uuid:7"><plus:DataMining>' in written, "of the same subject"


@pytest.mark.parametrize(
    "packet",
    [
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>',
        f'<rdf:RDF xmlns:rdf="{RDF}"/>'.encode(),
        f'<?xml version="1.0" encoding="UTF-16"?><rdf:RDF xmlns:rdf="{RDF}"></rdf:RDF>'.encode("utf-16"),
        f'<rdf:RDF xmlns:rdf="{RDF}"></rdf:RDF>'.encode("utf-16-be"),
        f'<r:RDF xmlns:r="{RDF}"><r:Description r:about=""/></r:RDF >'.encode(),
    ],
)
def test_odd_packets_say_it_too(packet: bytes) -> None:
    assert terms(packet_of(published(picture(packet), "prohibited"))) == ["DMI-PROHIBITED"]


def test_a_packet_in_utf_16_keeps_its_stricter_word() -> None:
    packet = described(f"<p:DataMining>{VOCABULARY}DMI-PROHIBITED</p:DataMining>").decode().encode("utf-16")
    assert packet_of(published(picture(packet), "prohibited-genai")) == packet


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_zeros_behind_a_packet_do_not_hide_its_stricter_word(kind: str) -> None:
    packet = described(f"<p:DataMining>{VOCABULARY}DMI-PROHIBITED</p:DataMining>")
    taken = decode(file(scene(), kind, xmp=packet + b"\0\n\0"), name="a", max_pixels=10**6)
    assert taken.metadata.packets == (packet,)
    assert packet_of(published(taken, "prohibited-genai")) == packet


def test_a_packet_that_is_no_xml_is_left_alone() -> None:
    packet = described("<dc:rights>")
    data = published(picture(packet), "prohibited")
    assert packet_of(data) == packet
    assert stated(decode(data, name="a", max_pixels=10**6).metadata) is None


@pytest.mark.parametrize("policy", ["strip-all", "strip-gps"])
def test_stripped_metadata_say_it_and_keep_the_stricter_word(policy: str) -> None:
    about = "<dc:rights>GPS of Zoe</dc:rights>"
    own = f"<p:DataMining>{VOCABULARY}DMI-PROHIBITED</p:DataMining>"
    for inside, term in ((about, "DMI-PROHIBITED-GENAIMLTRAINING"), (about + own, "DMI-PROHIBITED")):
        written = packet_of(published(picture(described(inside)), "prohibited-genai", metadata=policy))
        assert terms(written) == [term]
        assert b"Zoe" not in (written or b"")


def test_an_extended_packet_counts_and_does_not_contradict() -> None:
    weak, strict = (
        described(f"<p:DataMining>{VOCABULARY}{term}</p:DataMining>")
        for term in ("DMI-ALLOWED", "DMI-PROHIBITED")
    )
    source = picture(kind="JPEG")
    for extended, term in ((weak, "DMI-PROHIBITED-AIMLTRAINING"), (strict, "DMI-PROHIBITED")):
        note = f' xmlns:n="http://ns.adobe.com/xmp/note/" n:HasExtendedXMP="{"0" * 32}"'
        about = Metadata(xmp=described(attributes=note), extended=extended)
        data = published(replace(source, metadata=about), "prohibited-ai")
        assert stated(decode(data, name="a", max_pixels=10**6).metadata) == term
        assert data.count(b"DMI-") == 1


def test_a_format_without_xmp_says_nothing() -> None:
    asked = replace(picture(), metadata=demanding(picture().metadata, "prohibited"))
    written = encode(asked, asked.rgb, levels=6, format="bmp")
    assert written.data_mining is None
    data = written.data
    assert b"DMI-" not in data
    assert stated(decode(data, name="a", max_pixels=10**6).metadata) is None


def test_a_long_packet_of_a_jpeg_says_it_in_the_main_one() -> None:
    packet = described("<dc:rights>" + "word. " * 20_000 + "</dc:rights>")
    data = published(picture(packet, "JPEG"), "prohibited")
    assert terms(packet_of(data)) == ["DMI-PROHIBITED"]
