"""Regions in XMP, in the forms in which programs write them."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backfire.config import Regions
from backfire.detectors import Source, metadata, run
from backfire.detectors.metadata import MetadataDetector
from backfire.errors import Code, InputError
from backfire.imaging import decode
from backfire.imaging.decoding import stored
from backfire.imaging.heif import heif_ready
from backfire.types import Box, Region, Rgb
from tests.support.regions import area, mwg, xmp

PICTURE: Rgb = np.zeros((200, 400, 3), dtype=np.uint8)


def found(inner: str | bytes, orientation: int = 1, picture: Rgb = PICTURE) -> list[Region]:
    packet = inner if isinstance(inner, bytes) else xmp(inner)
    return MetadataDetector().detect(picture, source=Source("a.jpg", (), (packet,), orientation))


def boxes(inner: str) -> list[Box]:
    return [region.box for region in found(inner)]


def test_no_packet_is_no_region() -> None:
    assert MetadataDetector().detect(PICTURE, source=Source("a.jpg")) == []
    assert found("") == []


def test_more_regions_than_are_read_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those after the last one that is read would be published unprotected."""
    monkeypatch.setattr(metadata, "MOST", 3)
    areas = [area(0.2 * i, 0.5, 0.1, 0.2) for i in range(1, 5)]
    assert len(found(mwg(*areas[:3]))) == 3
    with pytest.raises(InputError, match="more than 3 regions in its XMP"):
        found(mwg(*areas))


def test_lightrooms_faces() -> None:
    (face,) = found(mwg(area(0.25, 0.5, 0.1, 0.2)))
    assert (face.box, face.label, face.score, face.detector) == (
        Box(80, 80, 120, 120),
        "face",
        1.0,
        "metadata",
    )
    assert face.mask is None


def test_digikams_elements_are_read_like_attributes() -> None:
    inner = (
        '<mwg-rs:Regions rdf:parseType="Resource"><mwg-rs:RegionList><rdf:Bag>'
        '<rdf:li rdf:parseType="Resource">'
        '<mwg-rs:Type>Pet</mwg-rs:Type><mwg-rs:Area rdf:parseType="Resource"><stArea:x>0.25</stArea:x>'
        "<stArea:y>0.5</stArea:y><stArea:w>0.1</stArea:w><stArea:h>0.2</stArea:h></mwg-rs:Area>"
        "</rdf:li></rdf:Bag></mwg-rs:RegionList></mwg-rs:Regions>"
    )
    (pet,) = found(inner)
    assert (pet.box, pet.label) == (Box(80, 80, 120, 120), "pet")


PEOPLE = (
    '<MP:RegionInfo rdf:parseType="Resource"><MPRI:Regions><rdf:Bag><rdf:li><rdf:Description '
    'MPReg:Rectangle="0.2, 0.4, 0.1, 0.2" MPReg:PersonDisplayName="A. Person"/></rdf:li>'
    '<rdf:li rdf:parseType="Resource"><MPReg:PersonDisplayName>No place</MPReg:PersonDisplayName></rdf:li>'
    "</rdf:Bag></MPRI:Regions></MP:RegionInfo>"
)


def test_microsofts_people() -> None:
    assert boxes(PEOPLE) == [Box(80, 80, 120, 120)]


def test_a_face_written_in_two_vocabularies_counts_once() -> None:
    assert boxes(mwg(area(0.2504, 0.5, 0.1, 0.2)) + PEOPLE) == [Box(80, 80, 121, 120)]


def iptc(boundary: str) -> str:
    return (
        '<Iptc4xmpExt:ImageRegion><rdf:Bag><rdf:li rdf:parseType="Resource"><Iptc4xmpExt:RegionBoundary '
        f'rdf:parseType="Resource">{boundary}</Iptc4xmpExt:RegionBoundary></rdf:li></rdf:Bag>'
        "</Iptc4xmpExt:ImageRegion>"
    )


def numbers(**values: float | str) -> str:
    return "".join(f"<Iptc4xmpExt:{k}>{v}</Iptc4xmpExt:{k}>" for k, v in values.items())


@pytest.mark.parametrize(
    ("shape", "unit", "values"),
    [
        ("rectangle", "relative", {"rbX": 0.2, "rbY": 0.4, "rbW": 0.1, "rbH": 0.2}),
        ("rectangle", "pixel", {"rbX": 80, "rbY": 80, "rbW": 40, "rbH": 40}),
        ("circle", "pixel", {"rbX": 100, "rbY": 100, "rbRx": 20}),
        ("circle", "relative", {"rbX": 0.25, "rbY": 0.5, "rbRx": 0.05}),
    ],
)
def test_iptc_boundaries(shape: str, unit: str, values: dict[str, float]) -> None:
    (region,) = found(iptc(numbers(rbShape=shape, rbUnit=unit, **values)))
    assert region.box == Box(80, 80, 120, 120)
    if shape == "circle":
        assert region.mask is not None
        assert region.mask.mean() == pytest.approx(np.pi / 4, abs=0.03)


def test_iptc_polygons_keep_their_shape() -> None:
    corners = "".join(
        f'<rdf:li rdf:parseType="Resource">{numbers(rbX=x, rbY=y)}</rdf:li>'
        for x, y in ((0, 0), (0.5, 0), (0, 1))
    )
    vertices = f"<Iptc4xmpExt:rbVertices><rdf:Seq>{corners}</rdf:Seq></Iptc4xmpExt:rbVertices>"
    (region,) = found(iptc(numbers(rbShape="polygon", rbUnit="relative") + vertices))
    assert region.box == Box(0, 0, 200, 200)
    assert region.mask is not None
    assert region.mask[2, 2]
    assert not region.mask[-2, -2]
    assert region.mask.mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_regions_of_the_stored_pixels_are_turned_upright(orientation: int) -> None:
    upright = np.zeros((200, 400, 3), dtype=np.uint8)
    upright[20:60, 300:380] = 255
    raw = stored(upright, orientation)
    box = Box.around(raw[..., 0] > 0)
    height, width = raw.shape[:2]
    centre = area(
        (box.left + box.right) / 2 / width,
        (box.top + box.bottom) / 2 / height,
        box.width / width,
        box.height / height,
    )
    dimensions = f'stDim:w="{width}" stDim:h="{height}" stDim:unit="pixel"'
    for applied in ("", dimensions):
        (region,) = found(mwg(centre, applied=applied), orientation, upright)
        assert region.box == Box(300, 20, 380, 60)


def test_regions_with_the_dimensions_of_the_upright_picture_are_not_turned() -> None:
    written = mwg(area(0.25, 0.5, 0.1, 0.2), applied='stDim:w="4000" stDim:h="2000" stDim:unit="pixel"')
    assert [region.box for region in found(written, 6)] == [Box(80, 80, 120, 120)]


def test_focus_points_of_a_camera_are_not_regions() -> None:
    assert boxes(mwg(area(0.5, 0.5, 0.1, 0.1), kind="Focus")) == []
    cropped = 'stDim:w="300" stDim:h="200"'
    assert boxes(mwg(area(0.5, 0.5, 0.1, 0.1), kind="Focus", applied=cropped)) == []


def test_regions_are_clipped_and_those_outside_are_left_out() -> None:
    written = [area(0, 0, 0.2, 0.2), area(3, 3, 0.2, 0.2)]
    assert boxes(mwg(*written, area(1e300, 0.5, 1e301, 0.1))) == [Box(0, 0, 40, 20), Box(0, 90, 400, 110)]


def in_area(**values: str) -> str:
    """A region of the MWG whose numbers are given as text."""
    return mwg(" ".join(f'stArea:{name}="{value}"' for name, value in values.items()))


def in_rectangle(text: str) -> str:
    return PEOPLE.replace("0.2, 0.4, 0.1, 0.2", text)


def in_boundary(**values: float | str) -> str:
    rectangle: dict[str, float | str] = {
        "rbShape": "rectangle",
        "rbUnit": "relative",
        "rbX": 0.2,
        "rbY": 0.4,
        "rbW": 0.1,
        "rbH": 0.2,
    }
    return iptc(numbers(**{name: value for name, value in (rectangle | values).items() if value != ""}))


@pytest.mark.parametrize(
    "written",
    [
        in_area(x="0,25", y="0,5", w="0,1", h=",2"),
        in_area(x="25", y="50", w="10", h="20", unit="percent"),
        in_area(x="100", y="100", w="40", h="40", unit="pixels"),
        in_area(x="100", y="100", w="40", h="40", unit="Pixel"),
        in_area(x="0.25", y="0.5", w="0.1", h="0.2", unit="Normalised"),
        in_area(x="0.25", y="0.5", w="0.1", h="0.2", unit="relative"),
        in_rectangle("0,2, 0,4, 0,1, 0,2"),
        in_rectangle("0,2;0,4;0,1;0,2"),
        in_rectangle("0,2 0,4 0,1 0,2"),
        in_rectangle("0,2,0,4,0,1,0,2"),
        in_rectangle("0.2,0.4,0.1,0.2"),
        in_boundary(rbX="0,2", rbY="0,4", rbW="0,1", rbH="0,2"),
        in_boundary(rbX=80, rbY=80, rbW=40, rbH=40, rbUnit="px", rbShape="Rectangle"),
    ],
)
def test_fault_6_other_spellings_of_numbers_are_read(written: str) -> None:
    assert boxes(written) == [Box(80, 80, 120, 120)]


@pytest.mark.parametrize(("scale", "orientation"), [(1, 1), (10, 1), (0.5, 1), (10, 6)])
def test_fault_6_pixels_are_scaled_from_the_picture_that_was_tagged(scale: float, orientation: int) -> None:
    applied = f'stDim:w="{400 * scale}" stDim:h="{200 * scale}" stDim:unit="pixel"'
    values = {"x": 100 * scale, "y": 100 * scale, "w": 40 * scale, "h": 40 * scale}
    pixels = " ".join(f'stArea:{name}="{value}"' for name, value in values.items()) + ' stArea:unit="pixel"'
    (face,) = found(mwg(pixels, applied=applied), orientation)
    assert face.box == Box(80, 80, 120, 120)
    (circle,) = found(mwg(pixels.replace("stArea:w", "stArea:d"), applied=applied), orientation)
    assert circle.box == Box(80, 80, 120, 120)
    assert circle.mask is not None


@pytest.mark.parametrize(
    ("written", "why"),
    [
        (in_area(x="0.7", y="0.7"), "w is missing"),
        (in_area(y="0.7", w="0.1", h="0.1"), "x is missing"),
        (in_area(x="nan", y="0.7", w="0.1", h="0.1"), "x is 'nan', not a number"),
        (in_area(x="1.000,5", y="0.7", w="0.1", h="0.1"), "x is '1.000,5', not a number"),
        (in_area(x="1,024", y="75", w="30", h="30", unit="pixel"), "x is '1,024', not a number"),
        (in_area(x="0.5", y="0.5", w="-1", h="0.1"), "w is -1"),
        (in_area(x="0.5", y="0.5", w="0", h="0"), "it has no size"),
        (in_area(x="0.5", y="0.5", w="0.1", h="0.1", unit="inch"), "its unit is 'inch'"),
        (
            mwg(
                'stArea:x="9" stArea:y="9" stArea:w="9" stArea:h="9" stArea:unit="pixel"',
                applied='stDim:w="300" stDim:h="200"',
            ),
            "another aspect ratio",
        ),
        (mwg(area(0.5, 0.5, 0.1, 0.1), applied='stDim:w="300" stDim:h="200"'), "cropped since"),
        (
            mwg(area(0.5, 0.5, 0.1, 0.1).replace("stArea:w", "stArea:d"), applied='stDim:w="9" stDim:h="9"'),
            "cropped since",
        ),
        (in_rectangle("0.2, 0.4, 0.1"), "not four numbers"),
        (in_rectangle("left"), "not four numbers"),
        (in_boundary(rbUnit=""), "its unit is 'none'"),
        (in_boundary(rbShape="ellipse"), "its shape is 'ellipse'"),
        (in_boundary(rbH=""), "rbH is missing"),
        (in_boundary(rbShape="polygon"), "a polygon of 0 corners"),
    ],
)
def test_fault_6_a_region_that_cannot_be_placed_fails_the_picture(written: str, why: str) -> None:
    readable = mwg(area(0.25, 0.5, 0.1, 0.2))
    with pytest.raises(InputError, match=why) as caught:
        found(readable + written)
    assert caught.value.code is Code.UNREADABLE
    assert caught.value.message.startswith("a.jpg: a region in its XMP cannot be placed")


@pytest.mark.parametrize(
    "packet",
    [
        b"<not xml",
        b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><x>&b;</x>',
        b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><x/>',
        b"\xff\xfe\x00",
    ],
)
def test_a_packet_that_cannot_be_trusted_is_an_error(packet: bytes) -> None:
    with pytest.raises(InputError, match=r"a\.jpg: its XMP cannot be read") as caught:
        found(packet)
    assert caught.value.code is Code.UNREADABLE


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_packets_may_be_in_any_unicode_encoding(encoding: str) -> None:
    packet = xmp(mwg(area(0.25, 0.5, 0.1, 0.2))).decode().replace('begin=""', 'begin="\ufeff"')
    (face,) = found(packet.encode(encoding))
    assert face.box == Box(80, 80, 120, 120)


# In files


def in_file(data: bytes) -> list[Box]:
    picture = decode(data, name="a", max_pixels=10**6)
    return [r.box for r in run.find(picture, Source("a"), Regions(detectors=("metadata",))).regions]


def saved(kind: str, packet: bytes, size: tuple[int, int] = (400, 200), **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (90, 120, 60)).save(buffer, kind, xmp=packet, **options)
    return buffer.getvalue()


PREVIEWED = xmp(mwg(area(0.25, 0.5, 0.1, 0.2)) + "<image>/9j/4AAQSkZJRg</image>")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_regions_are_read_from_a_packet_with_a_preview(encoding: str) -> None:
    data = saved("WEBP", PREVIEWED.decode().encode(encoding))
    assert in_file(data) == [Box(80, 80, 120, 120)]


def with_segments(data: bytes, *bodies: bytes) -> bytes:
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body for body in bodies)
    return data[:2] + segments + data[2:]


def extension(digest: bytes, length: int, offset: int, part: bytes) -> bytes:
    return b"http://ns.adobe.com/xmp/extension/\0" + digest + struct.pack(">II", length, offset) + part


def test_regions_may_lie_in_extended_xmp() -> None:
    """Its segments come in any order, with large other ones between them and one that is not referred to."""
    digest, other = b"0123456789ABCDEF0123456789ABCDEF", b"F" * 32
    main = saved(
        "JPEG",
        xmp(
            f'<n:HasExtendedXMP xmlns:n="http://ns.adobe.com/xmp/note/">{digest.decode()}</n:HasExtendedXMP>'
        ),
    )
    packet = xmp(mwg(area(0.25, 0.5, 0.1, 0.2)) + "<image>/9j/4AAQSkZJRg</image>")
    whole = [extension(digest, len(packet), at, packet[at : at + 300]) for at in range(0, len(packet), 300)]
    stale = xmp(mwg(area(0.6, 0.5, 0.1, 0.2)))
    orphan = extension(other, len(stale), 0, stale)
    assert in_file(with_segments(main, *reversed(whole), orphan)) == [Box(80, 80, 120, 120)]
    with pytest.raises(InputError, match="XMP cannot be read"):
        in_file(with_segments(main, *whole[1:]))


@pytest.mark.skipif(not heif_ready(), reason="pillow-heif is not installed")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_regions_of_a_turned_heic_are_turned_with_it(orientation: int) -> None:
    """Phones give regions for the pixels as stored. The expected places come from pillow-heif."""
    upright: Rgb = np.full((128, 256, 3), 30, dtype=np.uint8)
    upright[32:64, 128:192] = 250
    raw = stored(upright, orientation)
    box = Box.around(raw[..., 0] > 128)
    height, width = raw.shape[:2]
    packet = xmp(mwg(area(
        (box.left + box.right) / 2 / width, (box.top + box.bottom) / 2 / height,
        box.width / width, box.height / height,
    )))  # fmt: skip
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(raw).save(buffer, "HEIF", quality=-1, exif=exif.tobytes(), xmp=packet)
    picture = decode(buffer.getvalue(), name="a", max_pixels=10**6)
    assert np.abs(picture.rgb.astype(int) - upright).max() < 40
    assert in_file(buffer.getvalue()) == [Box(128, 32, 192, 64)]
