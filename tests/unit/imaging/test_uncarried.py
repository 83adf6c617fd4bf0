"""What the receipt names of a file's parts that no published file holds."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from backfire.imaging import decode, encode
from backfire.imaging.metadata import UUID_XMP
from tests.support.images import ICC, LIMIT, box, chunk, exif_with, file, scene, taken

WHY = "nothing of these kinds is carried"


def segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def png_with(*kinds: bytes) -> bytes:
    plain = file(scene(), "PNG")
    return plain[:33] + b"".join(chunk(kind, b"\1\1\1") for kind in kinds) + plain[33:]


def webp_with(kind: bytes, body: bytes) -> bytes:
    data = file(scene(), "WEBP", exif=exif_with(), icc_profile=ICC) + kind + struct.pack("<I", 4) + body
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]


SEGMENTS = b"".join(
    segment(*one)
    for one in [
        (0xE2, b"MPF\0" + bytes(9)), (0xE3, b"_JPSJPS_"), (0xE5, b"RMETA\0"), (0xEC, b"Ducky\0\1"),
        (0xE0, b"JFXX\0\x10"), (0xEB, b"HDR_RI ver=11"), (0xFE, b"a comment"),
    ]
)  # fmt: skip
NAMED = "APP2 MPF, APP3 _JPSJPS_, APP5 RMETA, APP12 Ducky, APP0 JFXX, APP11 HDR_RI ver=11"
VIDEO = b"a video\0\0"
PARTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "JPEG": (lambda: file(scene(), "JPEG", extra=SEGMENTS) + VIDEO, f"{NAMED}, 7 bytes behind the picture"),
    "PNG": (
        lambda: png_with(b"sBIT", b"bKGD", b"sCAL", b"xyZZ") + VIDEO,
        "sBIT, bKGD, sCAL, xyZZ, 7 bytes behind the picture",
    ),
    "WEBP": (lambda: webp_with(b"ODDS", b"odds") + VIDEO, "ODDS, 7 bytes behind the picture"),
    "GIF": (
        lambda: file(scene(), "GIF")[:-1] + b"\x21\xff\x0bICCRGBG1012\1a\0;" + VIDEO,
        "ICCRGBG1012, 7 bytes behind the picture",
    ),
    "JPEG2000": (lambda: file(scene(), "JPEG2000") + box(b"jp2i", b"rights"), "jp2i"),
    "AVIF": (lambda: file(scene(), "AVIF") + box(b"mpvd", VIDEO), "mpvd"),
    "HEIF": (lambda: file(scene(), "HEIF") + box(b"mpvd", VIDEO), "mpvd"),
}


@pytest.mark.parametrize("kind", PARTS)
def test_parts_that_are_never_carried_are_named_whatever_they_are(kind: str) -> None:
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    made, names = PARTS[kind]
    data = made()
    assert taken(data).metadata.left_out == (f"the file's parts {names}: {WHY}",)


PIECE = b"\0\0\0\x0a\0\0\0\0<a/>"


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (
            segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<first/>"),
            ["further XMP (8 bytes): one packet of a file is read"],
        ),
        (
            segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + b"A" * 32 + PIECE),
            ["extended XMP (4 bytes): the file's main XMP does not name it"],
        ),
        (segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<carried/>"), []),
        (
            segment(0xE2, b"ICC_PROFILE\0\1\2" + ICC[:300]),
            ["the colour profile (300 bytes): its segments do not make a whole"],
        ),
        (segment(0xE2, b"ICC_PROFILE\0\1\1" + ICC), []),
    ],
    ids=["second packet", "undeclared extended packet", "the same packet", "profile in part", "profile"],
)
def test_segments_of_a_jpeg_that_belong_to_nothing_that_is_carried_are_named(
    extra: bytes, said: list[str]
) -> None:
    data = file(scene(), "JPEG")
    carried = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<carried/>")
    about = taken(data[:2] + extra + carried + data[2:]).metadata
    assert about.xmp == b"<carried/>"
    assert about.left_out == tuple(said)


def xmp_chunk(packet: bytes) -> bytes:
    return chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (xmp_chunk(b"<first/>"), ["further XMP (30 bytes): one packet of a file is read"]),
        (xmp_chunk(b"<carried/>"), []),
        (chunk(b"iCCP", b"name\0\0damaged"), ["the colour profile (13 bytes): it cannot be read"]),
    ],
    ids=["second packet", "the same packet", "damaged profile"],
)
def test_chunks_of_a_png_that_cannot_be_carried_are_named(extra: bytes, said: list[str]) -> None:
    data = file(scene(), "PNG")
    about = taken(data[:33] + extra + xmp_chunk(b"<carried/>") + data[33:]).metadata
    assert about.xmp == b"<carried/>"
    assert about.left_out == tuple(said)


def test_further_xmp_of_a_jpeg_2000_is_named() -> None:
    packets = (box(b"uuid", UUID_XMP + packet) for packet in (b"<first/>", b"<carried/>"))
    about = taken(file(scene(), "JPEG2000") + b"".join(packets)).metadata
    assert about.xmp == b"<carried/>"
    assert about.left_out == ("further XMP (8 bytes): one packet of a file is read",)


@pytest.mark.parametrize(
    ("label", "name"), [(b"\1", "plain text"), (b"\x77", "extension 0x77")], ids=["plain text", "unknown"]
)
def test_extensions_of_a_gif_that_are_not_of_programs_are_named(label: bytes, name: str) -> None:
    text = b"!" + label + b"\x0c" + bytes(12) + b"\5Hello\0"
    assert taken(file(scene(), "GIF")[:-1] + text + b";").metadata.left_out == (
        f"the file's parts {name}: {WHY}",
    )


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "JPEG2000", "AVIF", "HEIF", "TIFF", "BMP"])
def test_of_a_file_that_is_carried_whole_nothing_is_named(kind: str, mode: str) -> None:
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    image = Image.fromarray(scene()).convert("RGB" if kind == "JPEG" and mode == "RGBA" else mode)
    told: dict[str, Any] = (
        {} if kind in ("GIF", "BMP", "JPEG2000") else {"exif": exif_with(6), "dpi": (300, 300)}
    )
    picture = taken(file(image, kind, **told))
    assert picture.metadata.left_out == ()
    again = taken(encode(picture, picture.rgb, levels=6).data)
    assert again.metadata.left_out == ()


def test_further_pictures_of_a_heic_are_named() -> None:
    heif = pytest.importorskip("pillow_heif")
    made = heif.from_pillow(Image.fromarray(scene()))
    made.add_from_pillow(Image.fromarray(scene(seed=1)))
    buffer = io.BytesIO()
    made.save(buffer, quality=90)
    picture = decode(buffer.getvalue(), name="a", max_pixels=LIMIT, frames="first")
    assert picture.metadata.left_out == (f"the file's parts item hvc1: {WHY}",)


def test_of_thousands_of_odd_parts_the_first_are_named() -> None:
    kinds = [bytes((97, 98, one, two)) for one in range(65, 91) for two in range(65, 91)]
    (said,) = taken(png_with(*kinds)).metadata.left_out
    assert said.endswith(f" abAT, others: {WHY}")


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
def test_broken_exif_is_named(kind: str) -> None:
    picture = taken(file(scene(), kind, exif=b"Exif\0\0no directory"))
    assert picture.metadata.left_out == ("EXIF: it cannot be read",)


def test_the_layers_of_a_tiff_are_named() -> None:
    picture = taken(file(scene(), "TIFF", tiffinfo={37724: b"Adobe Photoshop Document Data Block\0"}))
    assert picture.metadata.left_out == ("the tag 37724: it could hold the unprotected picture",)


def test_a_video_behind_a_png_that_looks_like_a_chunk_is_counted_whole() -> None:
    video = box(b"ftyp", b"mp42" + bytes(30)) + chunk(b"tEXt", b"Title\0not of the picture")
    picture = taken(file(scene(), "PNG") + video)
    size = len(video.strip(b"\0 \t\r\n"))
    assert picture.metadata.left_out == (f"the file's parts {size} bytes behind the picture: {WHY}",)
    assert not picture.metadata.parts
