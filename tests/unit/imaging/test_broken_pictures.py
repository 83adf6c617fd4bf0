"""Broken files of every format: each ends in a picture or a named refusal, in bounded time and memory."""

from __future__ import annotations

import io
import json
import re
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from backfire.detectors import Sidecar, Source
from backfire.detectors.sidecar import SidecarDetector
from backfire.errors import Code, InputError
from backfire.imaging import containers, decode, encode, formats, isobmff, tags, tiff, xmp
from backfire.imaging.heif import heif_ready
from backfire.imaging.metadata import Metadata
from tests.support import profiles
from tests.support.images import exif_with, file, scene
from tests.unit.imaging.test_formats import DEEP, NAMES, inked

LIMIT = 100_000
SECONDS = 5.0
"""Of work for one small file."""

heif_ready()


def whole(kind: str) -> bytes:
    options: dict[str, Any] = {}
    if kind not in ("BMP", "GIF", "JPEG2000"):
        options = {"exif": exif_with(6, gps=True).tobytes(), "icc_profile": profiles.rgb()}
    return file(scene(), kind, **options)


GOOD: dict[str, Callable[[], bytes | bytearray]] = {
    **{kind: partial(whole, kind) for kind in NAMES},
    **{name: DEEP[name] for name in ("png rgb alpha", "tiff lzw", "tiff tiled", "bigtiff", "jp2 rgb")},
    "j2k rgb": DEEP["j2k rgb"],
    **{name: DEEP[name] for name in ("heic rgb alpha 10", "avif rgb 10", "jp2 rgb 12")},
    "progressive": lambda: file(scene(), "JPEG", progressive=True),
    "cmyk jpeg": lambda: inked("JPEG", icc_profile=profiles.cmyk()),
    "palette": lambda: file(Image.fromarray(scene()).convert("P"), "PNG", transparency=3),
    "lossy webp": lambda: file(scene(), "WEBP", lossless=False),
}  # fmt: skip


def outcome(data: bytes, limit: int = LIMIT) -> Code | None:
    """Why a file is refused, None where it is taken; anything else fails the test."""
    began = time.process_time()
    try:
        picture = decode(data, name="a.jpg", max_pixels=limit)
        encode(picture, picture.rgb, levels=6, format="png")
        refusal = None
    except InputError as error:
        refusal = error
    assert time.process_time() - began < SECONDS
    if refusal is None:
        return None
    assert refusal.message.startswith("a.jpg: ")
    assert "; " in refusal.message, refusal.message
    return refusal.code


def boundaries(data: bytes) -> list[int]:
    """The offsets at which the parts of a container begin and end."""
    kind = formats.sniff(data, "a")
    at: list[int] = []
    if kind == "PNG":
        position = 8
        for _, body in containers.png_chunks(data):
            position += 12 + len(body)
            at.append(position)
    elif kind == "JPEG":
        position = 2
        for _, body in containers.jpeg_segments(data):
            position += 4 + len(body)
            at.append(position)
    elif kind == "WEBP":
        position = 12
        at.append(position)
        while position + 8 <= len(data):
            position += 8 + (int.from_bytes(data[position + 4 : position + 8], "little") + 1) // 2 * 2
            at.append(position)
    elif kind == "TIFF":
        at += [
            entry
            for page in tags.chain(data, most=9)
            for tag in (273, 279, 324)
            for entry in page.numbers(tag)
        ]
        at.append(int.from_bytes(data[4:8], "little" if data[:2] == b"II" else "big"))
    elif kind == "GIF":
        at = [one.start() for one in re.finditer(rb"[,!]|\x00;", data)]
    elif kind == "BMP":
        at = [14, 14 + int.from_bytes(data[14:18], "little"), int.from_bytes(data[10:14], "little")]
    elif kind == "JPEG2000" and data[:1] == b"\xff":
        at = [one.start() for one in re.finditer(rb"\xff[\x4f-\x93]", data)]
    elif kind in ("HEIF", "AVIF", "JPEG2000") and data[:1] == b"\0":
        meta = data.find(b"meta")
        inner = data[meta + 8 :] if meta > 0 else b""
        at = [len(data) - len(inner) + offset for offset in _box_ends(inner)]
        position = 0
        for _, body in containers.boxes(data):
            position = len(data) - len(body) if not body else position + 8 + len(body)
            at.append(position)
    return [position for position in at if position < len(data)]


def _box_ends(data: bytes) -> Iterator[int]:
    position = 0
    for _, body in containers.boxes(data):
        position += 8 + len(body)
        yield position


@pytest.mark.parametrize("make", GOOD)
def test_every_format_has_boundaries_at_which_files_are_truncated(make: str) -> None:
    assert boundaries(bytes(GOOD[make]()))


@pytest.mark.parametrize("make", GOOD)
def test_the_whole_file_is_taken(make: str) -> None:
    assert outcome(bytes(GOOD[make]())) is None


@pytest.mark.parametrize("make", GOOD)
def test_a_file_truncated_anywhere_is_refused(make: str) -> None:
    data = bytes(GOOD[make]())
    last = len(data) - 1 - (make == "BMP")
    cuts = {*boundaries(data), *range(1, 64), *np.linspace(64, last, 40).astype(int).tolist()}
    for cut in sorted(cut for cut in cuts if 0 < cut < len(data)):
        code = outcome(data[:cut])
        if code is None:  # only data that a decoder does not need may be missing
            assert cut > 0.9 * len(data), f"{make} cut at {cut} of {len(data)} was taken"
        else:
            assert code in (Code.TRUNCATED, Code.UNREADABLE, Code.UNSUPPORTED, Code.TOO_LARGE)


@pytest.mark.parametrize("make", GOOD)
def test_the_quick_look_finds_what_is_cut_and_nothing_that_the_decoder_takes(make: str) -> None:
    data = bytes(GOOD[make]())
    kind = formats.sniff(data, make)
    assert not containers.is_cut_short(data, kind)
    assert not containers.is_cut_short(data + bytes(10), kind), "what follows the end does not count"
    cuts = sorted({*boundaries(data), *np.linspace(64, len(data) - 20, 40).astype(int).tolist()})
    found = [cut for cut in cuts if containers.is_cut_short(data[:cut], kind)]
    assert all(not containers.is_complete(data[:cut], kind) for cut in found)
    if kind in ("JPEG", "PNG", "WEBP"):
        assert len(found) > 0.9 * len(cuts)


@pytest.mark.parametrize(
    "hostile", [b"\xff\xd8" + b"\xff\xe0\0\2" * (1 << 22), b"\xff\xd8" + b"\xff\x01" * (1 << 23)]
)
def test_the_quick_look_holds_nobody_up(hostile: bytes) -> None:
    began = time.process_time()
    assert containers.is_cut_short(hostile, "JPEG")
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize("kind", sorted({*NAMES} - {"BMP", "TIFF"}))  # whose samples may be zeros
def test_a_tail_of_zeros_is_refused(kind: str) -> None:
    data = file(scene(200, 200), kind)
    half = len(data) // 2
    assert outcome(data[:half] + bytes(len(data) - half)) is Code.TRUNCATED


def flipped(data: bytes, rounds: int, seed: int) -> Iterator[bytes]:
    random = np.random.default_rng(seed)
    for _ in range(rounds):
        bad = np.frombuffer(data, np.uint8).copy()
        # Half of the damage goes where the structure is.
        reach = len(bad) if random.random() < 0.5 else min(len(bad), 400)
        count = int(random.integers(1, 9))
        bad[random.integers(2, reach, count)] = random.choice(
            [0, 1, 127, 128, 255, int(random.integers(256))], count
        )
        yield bad.tobytes()


def damage(make: str, rounds: int, seed: int) -> None:
    data = bytes(GOOD[make]())
    codes = {outcome(bad) for bad in flipped(data, rounds, seed)}
    assert codes - {None}, f"no damage to {make} was ever noticed"


@pytest.mark.parametrize("make", GOOD)
def test_flipped_bytes_end_in_a_named_error(make: str) -> None:
    damage(make, 25, seed=7)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("make", GOOD)
def test_flipped_bytes_end_in_a_named_error_for_long(make: str) -> None:
    for seed in range(5):
        damage(make, 100, seed)


# ---- headers that lie


def png_header(width: int, height: int, depth: int = 8, kind: int = 2) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def patched(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


def tiff_with(**values: int) -> bytes:
    """A TIFF whose tags contradict its pixels."""
    data = bytearray(DEEP["tiff rgb"]())
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as source:
        tags = source.pages.first.tags
        for name, value in values.items():
            struct.pack_into(
                "<I" if tags[name].dtype in (4, 16) else "<H", data, tags[name].valueoffset, value
            )
    return bytes(data)


BIG = struct.pack(">HH", 20_000, 20_000)
LIES: dict[str, tuple[Callable[[], bytes], set[Code]]] = {
    "png": (lambda: png_header(20_000, 20_000), {Code.TOO_LARGE}),
    "png 16": (lambda: png_header(60_000, 60_000, depth=16), {Code.TOO_LARGE}),
    "png nothing": (lambda: png_header(0, 5), {Code.UNREADABLE, Code.TRUNCATED}),
    "png of few bytes": (lambda: png_header(300, 300, depth=16), {Code.UNREADABLE, Code.TRUNCATED}),
    "jpeg": (lambda: patched(d := whole("JPEG"), d.index(b"\xff\xc0") + 5, BIG), {Code.TOO_LARGE}),
    "webp": (lambda: _webp_bomb(), {Code.TOO_LARGE, Code.UNREADABLE}),
    "bmp": (lambda: patched(whole("BMP"), 18, struct.pack("<ii", 20_000, 20_000)), {Code.TOO_LARGE}),
    "gif": (lambda: patched(whole("GIF"), 6, struct.pack("<HH", 20_000, 20_000)), {Code.TOO_LARGE}),
    "jp2": (lambda: _jp2_bomb(), {Code.TOO_LARGE, Code.UNREADABLE}),
    "tiff": (lambda: tiff_with(ImageWidth=60_000, ImageLength=60_000), {Code.TOO_LARGE}),
    "tiff rows": (lambda: tiff_with(ImageLength=1000), {Code.UNREADABLE, Code.TRUNCATED}),
    "tiff channels": (lambda: tiff_with(SamplesPerPixel=60_000), {Code.UNREADABLE, Code.UNSUPPORTED}),
    "png text": (lambda: _text_bomb(), {Code.UNREADABLE}),
    "heic": (lambda: _box_bomb("HEIF"), {Code.TOO_LARGE, Code.UNREADABLE}),
    "avif": (lambda: _box_bomb("AVIF"), {Code.TOO_LARGE, Code.UNREADABLE}),
    "avif 10": (lambda: _sized(DEEP["avif rgb 10"]()), {Code.TOO_LARGE, Code.UNREADABLE}),
    "heic 10": (lambda: _sized(DEEP["heic rgb 10"]()), {Code.TOO_LARGE, Code.UNREADABLE}),
    "jp2 12": (lambda: _jp2_sized(DEEP["jp2 rgb 12"]()), {Code.TOO_LARGE, Code.UNREADABLE}),
    "j2k": (
        lambda: patched(bytes(DEEP["j2k rgb"]()), 8, struct.pack(">II", 60_000, 60_000)),
        {Code.TOO_LARGE, Code.UNREADABLE},
    ),
    "avif items": (lambda: _item_bomb(), {Code.UNREADABLE, Code.TRUNCATED}),
    "bigtiff": (lambda: patched(bytes(DEEP["bigtiff"]()), 8, b"\xff" * 8), {Code.TRUNCATED, Code.UNREADABLE}),
    "gif frames": (lambda: _gif_frames(), {Code.UNSUPPORTED}),
}


def _text_bomb() -> bytes:
    body = b"Comment\0\0" + zlib.compress(bytes(30_000_000))
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    data = file(scene(), "PNG")
    return data[:33] + chunk + data[33:]


def _webp_bomb() -> bytes:
    data = file(scene(), "WEBP")
    return patched(data, data.index(b"VP8L") + 9, struct.pack("<I", 16_382 | 16_382 << 14))


def _item_bomb() -> bytes:
    """Tens of thousands of extents, each of which is the whole file."""
    data = file(scene(), "AVIF", exif=exif_with(6).tobytes())
    at = data.index(b"iloc")
    extents = struct.pack(">II", 0, len(data)) * 4000
    body = struct.pack(">IHHHHH", 0, 0x4400, 1, 1, 0, 4000) + extents
    iloc = struct.pack(">I", 8 + len(body)) + b"iloc" + body
    size = int.from_bytes(data[at - 4 : at], "big")
    meta = data.index(b"meta")
    grown = int.from_bytes(data[meta - 4 : meta], "big") + len(iloc) - size
    data = patched(data, meta - 4, struct.pack(">I", grown))
    return data[: at - 4] + iloc + data[at - 4 + size :]


def _gif_frames() -> bytes:
    frames = [Image.fromarray(scene(9, 9, seed)) for seed in range(200)]
    return file(frames[0], "GIF", save_all=True, append_images=frames[1:])


def _jp2_bomb() -> bytes:
    return _jp2_sized(whole("JPEG2000"))


def _jp2_sized(data: bytes | bytearray) -> bytes:
    data = bytes(data)
    data = patched(data, data.index(b"ihdr") + 4, struct.pack(">II", 60_000, 60_000))
    return patched(data, data.index(b"\xff\x51") + 6, struct.pack(">II", 60_000, 60_000))


def _box_bomb(kind: str) -> bytes:
    return _sized(file(scene(), kind))


def _sized(data: bytes | bytearray) -> bytes:
    data = bytes(data)
    return patched(data, data.index(b"ispe") + 8, struct.pack(">II", 60_000, 60_000))


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused(lie: str) -> None:
    make, codes = LIES[lie]
    assert outcome(make()) in codes


def test_bombs_cost_no_memory() -> None:
    """The process may allocate 1 GiB, which is less than what the headers claim."""
    code = (
        "import resource, sys\n"
        "from tests.unit.imaging.test_broken_pictures import LIES, outcome\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)\n"
        "for make, codes in LIES.values(): assert outcome(make()) in codes, make\n"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_table_of_pieces_that_take_no_bytes_is_refused() -> None:
    items = b"".join(struct.pack(">HHH", number, 0, 65_535) for number in range(60))
    place = struct.pack(">IBBH", 0, 0, 0, 60) + items
    meta = bytes(4) + b"".join(
        struct.pack(">I4s", len(body) + 8, kind) + body
        for kind, body in ((b"pitm", bytes(6)), (b"iinf", bytes(6)), (b"iloc", place))
    )
    with pytest.raises(ValueError, match="more than 100000 pieces"):
        isobmff.read(struct.pack(">I4s", len(meta) + 8, b"meta") + meta)


def test_properties_share_the_namespaces_that_hold_for_all_of_them() -> None:
    packet = (
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{xmp.RDF}"><rdf:Description xmlns:a="a">'
        '<a:b/><a:c/><a:d xmlns:e="e"/></rdf:Description></rdf:RDF></x:xmpmeta>'
    )
    first, second, third = xmp.properties(packet.encode())
    assert first.scope is second.scope
    assert dict(third.scope) == {**first.scope, "e": "e"}


@pytest.mark.parametrize(
    "unit",
    [
        ("", '<a:b xmlns:n{0}="u">text</a:b>', ""),
        (' xmlns:n{0}="u"', '<a:b xmlns:m{0}="u" n{0}:c="text"/>', ""),
        ("", '<a:b xmlns:n{0}="u">', "</a:b>"),
    ],
    ids=["beside each other", "below many", "within each other"],
)
def test_the_memory_that_namespaces_take_grows_no_faster_than_their_packet(unit: tuple[str, ...]) -> None:
    """A packet of 183 kB took 907 MB."""

    def taken(count: int) -> int:
        outer, opened, closed = ("".join(map(part.format, range(count))) for part in unit)
        packet = (
            f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{xmp.RDF}"><rdf:Description '
            f'xmlns:a="a"{outer}>{opened}{closed}</rdf:Description></rdf:RDF></x:xmpmeta>'
        ).encode()
        tracemalloc.start()
        found = xmp.properties(packet)
        assert len(found) == (0 if closed else count)
        assert xmp.is_whole(packet) is not bool(closed)
        assert (xmp.split(packet, len(packet) // 2) is None) is bool(closed)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    assert taken(2000) < 8 * taken(500)


@pytest.mark.parametrize("tag", [700, 33723, 34377, 34675, tags.CAMERA, tags.GPS])
@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_without_the_end_of_its_tags_is_truncated(tag: int, big: bool) -> None:
    """The values lie behind the pixels, as libtiff writes them."""
    if tag in tags.POINTERS:
        below = tags.Directory().having({1: (tags.ASCII, b"a text of some length\0")})
        exif = tags.Directory(below={tag: below})
    else:
        exif = tags.Directory().having({tag: (tags.BYTE, bytes(range(200)))})
    pixels, wide = scene(44, 60).tobytes(), tags.LONG8 if big else tags.LONG
    first = tags.parse(tiff.written(scene(44, 60), Metadata(), compression="raw", alpha=False))
    start = 16 + len(pixels)
    page = replace(exif, entries={**first.entries, **exif.entries}).having({273: (wide, [16])})
    data = tags.header("<", start, big=big).ljust(16, b"\0") + pixels + tags.serialised(page, start, big=big)
    assert outcome(data) is None
    last = len(data) - 22
    for size in [*range(start + 8, last - 8), *range(last, len(data))]:
        assert outcome(data[:size]) is Code.TRUNCATED, (size, len(data))


def test_a_loop_of_tags_is_not_followed_forever() -> None:
    data = bytearray(file(scene(), "TIFF"))
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + 12 * count, first)  # the next page is the first again
    assert outcome(bytes(data)) in (None, Code.UNSUPPORTED, Code.UNREADABLE)
    exif = bytearray(exif_with(6, gps=True).tobytes())
    order = "<" if exif[6:8] == b"II" else ">"
    at = exif.index(struct.pack(f"{order}H", 0x8769))
    struct.pack_into(f"{order}I", exif, at + 8, 8)  # the Exif directory is the first one again
    assert outcome(file(scene(), "JPEG", exif=bytes(exif))) is None


def test_random_bytes_end_in_a_named_error() -> None:
    random = np.random.default_rng(3)
    heads = [*formats.SIGNATURES, b"RIFF\0\1\0\0WEBP", b"\0\0\0\x18ftypheic", b"\0\0\0\x18ftypavif", b""]
    for head in heads:
        for size in (0, 1, 30, 3000):
            assert outcome(head + random.bytes(size)) is not None


# ---- fuzz: mutated real files


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.timeout(1800)
def test_many_mutated_photographs_and_sidecars_do_not_leak_memory(shared: Path) -> None:
    """Hundreds of damaged real files in one process: each a picture or a named error; memory stays flat."""
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from tests.unit.imaging.test_broken_pictures import fuzzed\n"
        "fuzzed(Path(sys.argv[1]), 100, 1)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "fuzzed(Path(sys.argv[1]), 600, 2)\n"
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert after < before + 100_000, (before, after)\n"
    )
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", code, str(shared)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=1700, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.shared
def test_a_few_mutated_photographs_and_sidecars_end_in_named_errors(shared: Path) -> None:
    fuzzed(shared, 40, 3)


def fuzzed(shared: Path, rounds: int, seed: int) -> None:
    """Real pictures in every format, and sidecars beside them, damaged in `rounds` ways."""
    random = np.random.default_rng(seed)
    photographs = sorted((shared / "photos" / "dev").glob("*.jpg"))
    masks = sorted((shared / "pairs").glob("*.mask.png"))
    kinds = [kind for kind in NAMES if kind != "JPEG"]
    for number in range(rounds):
        data = photographs[int(random.integers(len(photographs)))].read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            small = image.convert("RGB").resize((120, 80))
        if number % 2:
            data = file(small, kinds[int(random.integers(len(kinds)))])
        outcome(next(flipped(data, 1, seed + number)), limit=1_000_000)
        mask = masks[int(random.integers(len(masks)))].read_bytes()
        for name, body in (
            ("a.mask.png", mask),
            ("a.json", json.dumps(LABELME).encode()),
            ("a.regions.json", json.dumps(OURS).encode()),
        ):
            bad = next(flipped(body, 1, seed + number))
            refusal = None
            try:
                SidecarDetector().detect(np.asarray(small), source=Source("a.jpg", (Sidecar(name, bad),)))
            except InputError as error:
                refusal = error
            assert refusal is None or "; " in refusal.message, refusal


LABELME = {
    "shapes": [{"label": "face", "shape_type": "polygon", "points": [[5, 5], [60, 9], [30, 70]]}],
    "imageWidth": 120,
    "imageHeight": 80,
}
OURS = {
    "regions": [{"label": "logo", "box": [3, 4, 50, 60]}, {"label": "b", "polygon": [[1, 1], [9, 1], [5, 9]]}]
}
