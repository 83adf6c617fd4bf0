"""Fault 1: no published file holds a preview of the unprotected picture, whatever carries and encodes it."""

from __future__ import annotations

import base64
import io
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from backfire.imaging import containers, decode, encode, previews, xmp
from backfire.imaging.metadata import Metadata
from tests.support.pictures import photo

THUMBNAIL = photo((56, 40))


def saved(kind: str, image: Image.Image = THUMBNAIL, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


KINDS: dict[str, bytes] = {
    "JPEG": saved("JPEG"),
    "JPEG with a spoilt first byte": b"\0" + saved("JPEG")[1:],
    "JPEG with two spoilt bytes": b"\0\0" + saved("JPEG")[2:],
    "PNG": saved("PNG"),
    "PNG with a spoilt first byte": b"\0" + saved("PNG")[1:],
    "WebP": saved("WEBP"),
    "GIF": saved("GIF"),
    "BMP": saved("BMP"),
    "BMP without its header": saved("BMP")[14:],
    "TIFF": saved("TIFF"),
    "AVIF": saved("AVIF"),
    "JPEG 2000": saved("JPEG2000"),
    "a JPEG 2000 codestream": saved("JPEG2000", no_jp2=True),
    "PPM": saved("PPM"),
    "raw RGB": THUMBNAIL.tobytes(),
    "raw grey": THUMBNAIL.convert("L").tobytes(),
    "dark raw RGB": (np.asarray(THUMBNAIL) // 8).tobytes(),
}

ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "as it is": bytes,
    "base64": base64.b64encode,
    "base64 in lines": base64.encodebytes,
    "base64 for URLs": base64.urlsafe_b64encode,
    "hex": lambda data: data.hex().encode(),
    "hex with colons": lambda data: data.hex(":").upper().encode(),
    "hex in base64": lambda data: base64.b64encode(data.hex().encode()),
    "UTF-16": lambda data: base64.b64encode(data).decode().encode("utf-16-le"),
}


def jpeg_with(*segments: tuple[int, bytes], **options: Any) -> bytes:
    extra = b"".join(
        b"\xff" + bytes([mark]) + struct.pack(">H", len(body) + 2) + body for mark, body in segments
    )
    return saved("JPEG", scene(), extra=extra, **options)


def png_with(kind: bytes, body: bytes) -> bytes:
    text = PngInfo()
    text.add(kind, body)
    return saved("PNG", scene(), pnginfo=text)


def exif_with(tag: int, value: bytes, *, camera: bool = False) -> Image.Exif:
    exif = Image.Exif()
    if camera:
        exif[0x8769] = {tag: value}
    else:
        exif[tag] = value
    exif[0x013B] = "Zoe"
    return exif


def packet(inside: str, attributes: str = "") -> bytes:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" xmlns:p="http://example.org/"{attributes}><p:kept>kept</p:kept>{inside}'
        "</rdf:Description></rdf:RDF></x:xmpmeta>"
    ).encode()


def dataset(number: int, value: bytes) -> bytes:
    return b"\x1c\x02" + bytes([number]) + struct.pack(">H", len(value)) + value


def resource(number: int, body: bytes) -> bytes:
    whole = b"8BIM" + struct.pack(">HHI", number, 0, len(body)) + body
    return whole + bytes(len(whole) % 2)


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body) + 8) + kind + body


@cache
def scene() -> Image.Image:
    return photo((17, 18), seed=9)


def jp2_with(kind: bytes, body: bytes) -> bytes:
    data = saved("JPEG2000", scene())
    at = data.index(b"jp2c") - 4
    return data[:at] + box(kind, body) + data[at:]


BINARY: dict[str, Callable[[bytes], bytes]] = {
    "maker note": lambda data: saved("JPEG", scene(), exif=exif_with(0x927C, b"MAKER\0" + data, camera=True)),
    "maker note in WebP": lambda data: saved("WEBP", scene(), exif=exif_with(0x927C, data, camera=True)),
    "user comment": lambda data: saved(
        "PNG", scene(), exif=exif_with(0x9286, b"ASCII\0\0\0" + data, camera=True)
    ),
    "private TIFF tag": lambda data: saved("TIFF", scene(), tiffinfo=exif_with(65_000, data)),
    "comment": lambda data: jpeg_with((0xFE, data)),
    "tEXt": lambda data: png_with(b"tEXt", b"Comment\0" + data),
    "zTXt": lambda data: png_with(b"zTXt", b"Comment\0\0" + zlib.compress(data)),
    "iTXt": lambda data: png_with(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(data)),
    "raw profile": lambda data: png_with(
        b"zTXt", b"Raw profile type x\0\0" + zlib.compress(f"\nx\n{len(data):8}\n{data.hex()}\n".encode())
    ),
    "8BIM": lambda data: jpeg_with((0xED, b"Photoshop 3.0\0" + resource(4000, data))),
    "8BIM in TIFF": lambda data: saved("TIFF", scene(), tiffinfo=exif_with(34377, resource(4000, data))),
    "IPTC": lambda data: jpeg_with(
        (0xED, b"Photoshop 3.0\0" + resource(1028, dataset(120, b"kept") + dataset(202, data)))
    ),
    "uuid box": lambda data: jp2_with(b"uuid", bytes(range(16)) + data),
}
TEXT: dict[str, Callable[[bytes], bytes]] = {
    "XMP element": lambda data: jpeg_with(xmp=packet(f"<p:image>{data.decode()}</p:image>")),
    "XMP attribute": lambda data: saved("WEBP", scene(), xmp=packet("", f' p:image="{data.decode()}"')),
    "data URL in XMP": lambda data: saved(
        "AVIF", scene(), xmp=packet(f"<p:image>data:image/x;base64,{data.decode()}</p:image>")
    ),
    "XML box": lambda data: jp2_with(b"xml ", b"<a><b>" + data + b"</b></a>"),
}


def everything(data: bytes) -> Iterator[bytes]:
    """The bytes of a file, and what is compressed in it."""
    yield data
    if data.startswith(b"\x89PNG"):
        yield from (previews.unpacked(kind, bytes(body)) for kind, body in containers.png_chunks(data))


def published(data: bytes, **options: str) -> tuple[bytes, tuple[str, ...]]:
    picture = decode(data, name="a", max_pixels=1 << 20)
    encoded = encode(picture, picture.rgb, levels=8, **options)
    return encoded.data, encoded.left_out


def needle(data: bytes) -> bytes:
    """Bytes from the middle, by which the data are found."""
    middle = len(data) // 2
    return data[middle : middle + 24]


def is_in(piece: bytes, file: bytes) -> bool:
    return any(piece in part for part in everything(file))


CASES = [
    (carrier, encoding)
    for carrier in BINARY | TEXT
    for encoding in ENCODINGS
    if (carrier in BINARY or encoding not in ("as it is", "UTF-16"))  # which XML cannot hold
    and (encoding in ("as it is", "base64", "hex") or carrier in ("user comment", "tEXt", "XMP element"))
]


@pytest.mark.parametrize(("carrier", "encoding"), CASES)
def test_fault_1_no_preview_is_published_whatever_holds_it(carrier: str, encoding: str) -> None:
    survived = []
    for kind, preview in KINDS.items():
        told = ENCODINGS[encoding](preview)
        file = (BINARY | TEXT)[carrier](told)
        assert is_in(needle(told), file), kind
        written, left_out = published(file)
        if is_in(needle(told), written) or not left_out:
            survived.append(kind)
    assert not survived


@pytest.mark.parametrize("preview", ["raw RGB", "raw grey"])
def test_fault_1_large_unknown_data_are_kept_if_the_setting_says_so(preview: str) -> None:
    file = BINARY["maker note"](KINDS[preview])
    written, left_out = published(file, opaque="keep")
    assert KINDS[preview] in written
    assert left_out == ()
    written, left_out = published(file)
    assert KINDS[preview] not in written
    assert b"Zoe" in written
    assert left_out == (
        f"the maker note ({len(KINDS[preview]) + 6} bytes): it is large and of an unknown kind, so it could "
        "hold the unprotected picture",
    )


WORKFLOW = '{"nodes": [' + ", ".join(f'{{"id": {n}, "type": "KSampler"}}' for n in range(400)) + "]}"
JAPANESE = "東京の写真です。今日は天気がいいですね、" * 200


@pytest.mark.parametrize("text", [WORKFLOW, JAPANESE, "ein Haus mit Garten und viel Wald " * 200])
def test_fault_1_long_text_is_kept(text: str) -> None:
    for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
        data = b"UNICODE\0" + text.encode(encoding)
        written, left_out = published(saved("PNG", scene(), exif=exif_with(0x9286, data, camera=True)))
        assert data in written, encoding
        assert left_out == ()
    chunk = b"workflow\0\0\0\0\0" + text.encode()
    written, left_out = published(png_with(b"iTXt", chunk))
    assert chunk in written
    assert left_out == ()


CAPTIONS = [
    "P1 44 16 63 laps",
    "Grid: P1 44 16 and P3 4 81 Müller",
    "P4 81 33 ",
    "P2 4 5\n" + "and a long story " * 200,
]


@pytest.mark.parametrize("caption", CAPTIONS)
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_caption_on_cars_is_no_picture(caption: str, encoding: str) -> None:
    assert not previews.shows(caption.encode(encoding))
    assert not previews.shows(caption.encode(encoding) + b"\0")
    body = packet(f"<dc:description>{caption}</dc:description>")
    published_, left_out = published(saved("WEBP", scene(), xmp=body))
    assert (body in published_, left_out) == (True, ())


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
@pytest.mark.parametrize("level", [None, 0, 160, 255])
def test_any_picture_of_netpbm_is_a_picture(mode: str, level: int | None) -> None:
    image = THUMBNAIL if level is None else Image.new("RGB", THUMBNAIL.size, (level,) * 3)
    made = saved("PPM", image.convert(mode))
    lines = 2 if mode == "1" else 3
    head, samples = made.split(b"\n", lines)[:-1], np.asarray(image.convert(mode)).ravel()
    digits = b" ".join(str(int(one)).encode() for one in samples)
    plain = b"\n".join([b"P%d" % (head[0][1] - 51), *head[1:], digits])
    for data in (made, plain):
        assert previews.shows(data)
        assert previews.shows(b"MAKER\0 " + data)


def test_fault_1_metadata_around_a_preview_are_kept() -> None:
    hidden = base64.b64encode(KINDS["PNG"]).decode()
    file = jpeg_with(xmp=packet(f"<p:image>{hidden}</p:image><p:more>more</p:more>"))
    written, _ = published(file)
    assert packet("<p:image></p:image><p:more>more</p:more>") in written
    written, _ = published(BINARY["IPTC"](KINDS["GIF"]))
    assert dataset(120, b"kept") in written


def test_fault_1_small_and_plain_data_are_kept() -> None:
    settings = bytes(range(256)) * 7
    written, left_out = published(BINARY["maker note"](settings))
    assert settings in written
    assert left_out == ()
    padding = bytes(8000)
    written, left_out = published(saved("TIFF", scene(), tiffinfo=exif_with(59_932, padding)))
    assert padding in written
    assert left_out == ()
    tiepoints = np.random.default_rng(0).normal(size=900).tobytes()
    written, left_out = published(saved("TIFF", scene(), tiffinfo=exif_with(33_922, tiepoints)))
    assert tiepoints in written


def test_fault_1_a_preview_in_extended_xmp_is_taken_out_of_it() -> None:
    picture = base64.b64encode(KINDS["WebP"]) * 30
    extended = packet(f"<p:image>{picture.decode()}</p:image><p:more>more</p:more>")
    digest = b"0123456789ABCDEF0123456789ABCDEF"
    main = packet(
        "", f' xmlns:xmpNote="http://ns.adobe.com/xmp/note/" xmpNote:HasExtendedXMP="{digest.decode()}"'
    )
    head = b"http://ns.adobe.com/xmp/extension/\0" + digest
    pieces = [
        (0xE1, head + struct.pack(">II", len(extended), at) + extended[at : at + 60_000])
        for at in range(0, len(extended), 60_000)
    ]
    written, left_out = published(jpeg_with(*pieces, xmp=main))
    assert needle(picture) not in written
    assert packet("<p:image></p:image><p:more>more</p:more>") in written
    assert left_out == ("a part of the XMP: it shows the unprotected picture",)


PACKET = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/" xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b"<rdf:RDF><rdf:Description%s></rdf:Description></rdf:RDF></x:xmpmeta>"
)


@pytest.mark.parametrize(
    "unit",
    [
        b"\\n",
        b"A.\\n\\n\\n",
        b"&#10;",
        b"ab&#xA;",
        b" ",
        b"P1 #",
        b"#P1 \n",
        b"lat:  ",
        b"2\xc2\xb02 2 2 2 2 2 2 ",
        b"2 deg 2' ",
        b"altitude: 2aa",
        b"2,2.2",
        b"2,2,2N  ",
    ],
    ids=repr,
)
def test_the_time_that_a_text_takes_grows_no_faster_than_its_length(unit: bytes) -> None:
    hostile = unit * ((1 << 16) // len(unit))  # quadratic patterns took from half a minute
    began = time.process_time()
    assert not previews.shows(hostile)
    assert not previews.locates(hostile)
    assert previews.cut_from(hostile) == hostile
    assert Metadata(xmp=hostile).upright().xmp == hostile
    assert xmp.split(b"<a>" + hostile, 300) is None
    assert xmp.without(PACKET % (b" " * (1 << 16)), lambda _: True)
    assert time.process_time() - began < 3


def test_a_run_of_base64_is_found_behind_gaps_that_are_letters_and_digits() -> None:
    for gap in (b"\\n", b"&#10;", b"&#x0A;"):
        text = gap * 3 + gap.join(bytes([letter]) for letter in base64.b64encode(saved("JPEG"))) + gap * 3
        assert previews.shows(text)
        assert previews.cut_from(b"<a>" + text + b"</a>") == b"<a>" + gap * 3 + b"</a>"


@pytest.mark.parametrize("comments", [b"", b"# by hand\n", b"# P1 is not this\n# P4 nor this\n"])
def test_a_picture_of_netpbm_with_comments_is_a_picture(comments: bytes) -> None:
    magic, rest = saved("PPM").split(b"\n", 1)
    assert previews.shows(magic + b"\n" + comments + rest)
