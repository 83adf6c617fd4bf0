"""Every format is written and read again, also by exiftool, tifffile and ImageMagick."""

from __future__ import annotations

import importlib
import io
import json
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from backfire.config import parse
from backfire.detectors import Sidecar, Source
from backfire.errors import Code, InputError
from backfire.imaging import (
    Picture,
    colour,
    containers,
    decode,
    encode,
    heif,
    isobmff,
    largest_change,
    max_change,
    readers,
    tags,
)
from backfire.imaging.heif import heif_ready
from backfire.perturb.optimiser import Optimised, Optimiser
from backfire.pipeline.protect import protect
from backfire.types import Budget, Rgb
from tests.support import profiles, regions
from tests.support.images import ICC, box, file, frames, scene
from tests.support.pictures import mask_picture, photo
from tests.support.programs import tool
from tests.support.sandbox import QUICK

LIMIT, LEVELS = 1_000_000, 6
NAMES = {
    "JPEG": "JPEG", "PNG": "PNG", "TIFF": "TIFF", "WEBP": "WebP", "HEIF": "HEIC", "AVIF": "AVIF",
    "JPEG2000": "JPEG 2000", "BMP": "BMP", "GIF": "GIF",
}  # fmt: skip
EXTENSIONS = {
    "JPEG": ".jpg", "PNG": ".png", "TIFF": ".tif", "WEBP": ".webp", "HEIF": ".heic", "AVIF": ".avif",
    "JPEG2000": ".jp2", "BMP": ".bmp", "GIF": ".gif",
}  # fmt: skip
FORMAT = {"HEIF": "heic"}
BOXED = ("HEIF", "AVIF")
WIDE = profiles.rgb()

heif_ready()


def taken(data: bytes, **options: Any) -> Picture:
    return decode(data, name="a", max_pixels=LIMIT, **options)


def changed(picture: Picture, seed: int = 1) -> Rgb:
    """The picture with noise in the middle; the pixels around it must keep their bits."""
    height, width = picture.rgb.shape[:2]
    here = (slice(height // 4, height * 3 // 4), slice(width // 4, width * 3 // 4))
    noise = np.random.default_rng(seed).choice([-LEVELS, LEVELS], (*picture.rgb[here].shape[:2], 1))
    rgb = picture.rgb.copy()
    rgb[here] = np.clip(rgb[here].astype(int) + noise, 0, 255)
    return rgb


def outside(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Where `changed` changes nothing."""
    plane = np.ones(shape[:2], bool)
    plane[shape[0] // 4 : shape[0] * 3 // 4, shape[1] // 4 : shape[1] * 3 // 4] = False
    return plane


def there_and_back(data: bytes, **options: Any) -> tuple[Picture, bytes, Picture]:
    picture = taken(data)
    written = encode(picture, changed(picture), levels=LEVELS, **options).data
    return picture, written, taken(written)


def deep(channels: int, seed: int = 0) -> NDArray[np.uint16]:
    """16-bit samples whose low bits are not all alike."""
    coarse = np.dstack([scene(seed=seed), scene(seed=seed + 1)])[..., :channels].astype(np.uint16) * 257
    low = np.random.default_rng(seed).integers(0, 200, coarse.shape, dtype=np.uint16)
    return np.minimum(coarse, 65_300) + low


def tiff(samples: NDArray[Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, samples, **{"photometric": "rgb", **options})
    return buffer.getvalue()


def nameless(samples: NDArray[Any], photometric: str = "rgb") -> bytes:
    """A TIFF that does not say what its last channel is."""
    data = tiff(samples, photometric=photometric, extrasamples=["unassalpha"])
    at = data.index(struct.pack("<HHI", 338, 3, 1))
    return data[:at] + struct.pack("<H", 336) + data[at + 2 :]


def profiled(icc: bytes) -> dict[str, Any]:
    return {"extratags": [(34675, 7, len(icc), icc, True)]}


# ---- more than 8 bits


def few(channels: int, depth: int) -> NDArray[np.uint16]:
    """Samples of fewer bits."""
    return deep(channels) >> np.uint16(16 - depth)


def heic(values: NDArray[np.uint16], depth: int) -> bytes:
    """A lossless HEIC of 10 or 12 bits; pillow-heif takes them on the full scale of 16."""
    mode = {1: "L;16", 3: "RGB;16", 4: "RGBA;16"}[values.shape[2]]
    full = np.ascontiguousarray(values << (16 - depth))
    buffer = io.BytesIO()
    options = {"quality": -1, "chroma": 444, "matrix_coefficients": 0, "bit_depth": depth}
    importlib.import_module("pillow_heif").encode(
        mode, values.shape[1::-1], full.tobytes(), buffer, **options
    )
    return buffer.getvalue()


def avif(values: NDArray[np.uint16], depth: int) -> bytes:
    plain = np.ascontiguousarray(values.squeeze(2) if values.shape[2] == 1 else values)
    return bytes(imagecodecs.avif_encode(plain, level=100, bitspersample=depth))


def jp2(values: NDArray[np.uint16], depth: int, stream: str = "jp2") -> bytes:
    plain = np.ascontiguousarray(values.squeeze(2) if values.shape[2] == 1 else values)
    return bytes(
        imagecodecs.jpeg2k_encode(plain, level=0, reversible=True, codecformat=stream, bitspersample=depth)
    )


def with_header(data: bytes, *boxes: tuple[bytes, bytes]) -> bytes:
    """A JP2 in whose header these boxes take the place of those of their kinds."""
    made = b""
    for kind, view in containers.boxes(data):
        body = bytes(view)
        if kind == b"jp2h":
            kinds = {name for name, _ in boxes}
            inner = [(name, bytes(one)) for name, one in containers.boxes(body) if name not in kinds]
            body = b"".join(box(*one) for one in [*inner, *boxes])
        made += box(kind, body)
    return made


DEEP: dict[str, Callable[[], bytes | bytearray]] = {
    "png grey": lambda: imagecodecs.png_encode(deep(1)[..., 0].copy()),
    "png grey alpha": lambda: imagecodecs.png_encode(deep(2)),
    "png rgb": lambda: imagecodecs.png_encode(deep(3)),
    "png rgb alpha": lambda: imagecodecs.png_encode(deep(4)),
    "tiff grey": lambda: tiff(deep(1)[..., 0], photometric="minisblack"),
    "tiff rgb": lambda: tiff(deep(3)),
    "tiff rgb alpha": lambda: tiff(deep(4), extrasamples=["unassalpha"]),
    "tiff cmyk": lambda: tiff(deep(4), photometric="separated"),
    "tiff lzw": lambda: tiff(deep(3), compression="lzw", predictor=True),
    "tiff deflate": lambda: tiff(deep(3), compression="zlib", predictor=True),
    "tiff zstd": lambda: tiff(deep(3), compression="zstd"),
    "tiff tiled": lambda: tiff(deep(3), tile=(16, 32)),
    "tiff planar": lambda: tiff(deep(3).transpose(2, 0, 1).copy(), planarconfig="separate"),
    "tiff big endian": lambda: tiff(deep(3), byteorder=">"),
    "bigtiff": lambda: tiff(deep(3), bigtiff=True),
    "jp2 grey": lambda: jp2(deep(1), 16),
    "jp2 rgb": lambda: jp2(deep(3), 16),
    "j2k rgb": lambda: jp2(deep(3), 16, "j2k"),
    "jp2 rgb 12": lambda: jp2(few(3, 12), 12),
    "j2k grey 9": lambda: jp2(few(1, 9), 9, "j2k"),
    "heic grey 10": lambda: heic(few(1, 10), 10),
    "heic rgb 10": lambda: heic(few(3, 10), 10),
    "heic rgb alpha 10": lambda: heic(few(4, 10), 10),
    "heic rgb 12": lambda: heic(few(3, 12), 12),
    "avif grey 10": lambda: avif(few(1, 10), 10),
    "avif grey alpha 12": lambda: avif(few(2, 12), 12),
    "avif rgb 10": lambda: avif(few(3, 10), 10),
    "avif rgb alpha 10": lambda: avif(few(4, 10), 10),
    "avif rgb 12": lambda: avif(few(3, 12), 12),
}


def bits_of(make: str) -> int:
    return int(last) if (last := make.split()[-1]).isdigit() else 16


def samples_of(data: bytes) -> NDArray[np.uint16]:
    """The samples that an independent reader finds: H,W,C in the bits that are stored, alpha last."""
    if data[:2] in (b"II", b"MM"):
        with tifffile.TiffFile(io.BytesIO(data)) as source:
            found = source.pages.first.asarray()
            found = (
                found.transpose(1, 2, 0)
                if source.pages.first.planarconfig == 2 and found.ndim == 3
                else found
            )
    elif data[:4] == b"\x89PNG":
        found = imagecodecs.png_decode(data)
    elif data[4:12] == b"ftypavif":
        found = imagecodecs.avif_decode(data)
    elif data[4:8] == b"ftyp":
        open_heif = importlib.import_module("pillow_heif").open_heif
        found = np.asarray(open_heif(io.BytesIO(data), convert_hdr_to_8bit=False, hdr_to_16bit=False))
    else:
        found = imagecodecs.jpeg2k_decode(data)
    return np.atleast_3d(found)


@pytest.mark.parametrize("make", DEEP)
def test_deep_samples_keep_their_low_bits(make: str) -> None:
    full = (1 << bits_of(make)) - 1
    data = bytes(DEEP[make]())
    picture, written, again = there_and_back(data)
    before, after = samples_of(data), samples_of(written)
    assert after.dtype == np.uint16
    assert after.shape == before.shape
    untouched = outside(before.shape)
    assert np.array_equal(after[untouched], before[untouched])
    assert picture.depth == again.depth == bits_of(make)
    assert 0 < np.abs(after[~untouched].astype(int) - before[~untouched]).max() <= LEVELS * full / 255
    assert 0 < largest_change(picture, again) <= LEVELS
    if "alpha" in make:
        assert np.array_equal(after[..., -1], before[..., -1])


@pytest.mark.parametrize("make", ["png rgb", "tiff rgb", "tiff lzw", "tiff big endian", "bigtiff"])
def test_imagemagick_finds_the_same_16_bits(make: str, tmp_path: Path) -> None:
    convert = tool("convert")
    data = bytes(DEEP[make]())
    picture, written, _ = there_and_back(data)
    path = tmp_path / ("a" + EXTENSIONS[picture.format])
    path.write_bytes(written)
    command = [convert, str(path), "-depth", "16", "-endian", "LSB", "rgb:-"]
    raw = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    assert np.array_equal(np.frombuffer(raw, "<u2").reshape(samples_of(written).shape), samples_of(written))


@pytest.mark.parametrize(
    ("kind", "grey"),
    [(kind, grey) for kind in NAMES if kind != "GIF" for grey in (True, False) if grey or kind not in BOXED],
)
def test_imagemagick_finds_the_same_pixels(kind: str, grey: bool, tmp_path: Path) -> None:
    """ImageMagick halves the chroma of every HEIC and AVIF, so that only grey ones can be compared."""
    convert = tool("convert")
    _, written, again = there_and_back(file(scene()[..., 0] if grey else scene(), kind))
    path = tmp_path / f"a{EXTENSIONS[kind]}"
    path.write_bytes(written)
    command = [convert, str(path), "-depth", "8", "rgb:-"]
    raw = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    found = np.frombuffer(raw, np.uint8).reshape(again.rgb.shape)
    most = 2 if kind == "JPEG" else 1 if kind in BOXED else 0  # decoders round differently
    assert np.abs(found.astype(int) - again.rgb).max() <= most


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_avif_is_turned_by_its_container(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = taken(file(scene()[..., 0], "PNG", exif=exif))
    written = encode(picture, picture.rgb, levels=LEVELS, format="avif").data
    again = taken(written)
    assert (again.orientation, again.depth) == (orientation, 8)
    assert np.array_equal(again.rgb, picture.rgb)
    path = tmp_path / "a.avif"
    path.write_bytes(written)
    raw = subprocess.run(
        [tool("convert"), str(path), "-depth", "8", "rgb:-"], capture_output=True, check=True, timeout=60
    ).stdout
    found = np.frombuffer(raw, np.uint8).reshape(picture.rgb.shape)  # libheif turns it by itself
    assert np.abs(found.astype(int) - picture.rgb).max() <= 1


def test_the_numbers_of_a_colour_space_are_kept() -> None:
    """Phones write Display P3 into HEIC and AVIF as numbers: primaries 12, transfer 13."""
    for kind, data in (
        ("heic", heif.written(scene(), 8, cicp=(12, 13), icc=None, exif=None, xmp=None)),
        ("avif", bytes(imagecodecs.avif_encode(scene(), level=100, primaries=12, transfer=13))),
    ):
        for target in ("same", "heic", "avif"):
            picture = taken(data)
            again = taken(encode(picture, changed(picture), levels=LEVELS, format=target).data)
            assert picture.metadata.cicp == again.metadata.cicp == (12, 13), (kind, target)


def test_the_numbers_of_a_colour_space_are_kept_by_a_png_and_missed_elsewhere() -> None:
    data = bytes(imagecodecs.avif_encode(scene(), level=100, primaries=12, transfer=13))
    picture = taken(data)
    encoded = encode(picture, picture.rgb, levels=LEVELS, format="png")
    assert b"\0\0\0\4cICP\x0c\x0d\0\1" in encoded.data
    assert encoded.left_out == ()
    again = encode(taken(encoded.data), picture.rgb, levels=LEVELS)
    assert again.data.count(b"cICP") == 1
    back = encode(taken(again.data), picture.rgb, levels=LEVELS, format="avif")
    assert (taken(back.data).metadata.cicp, back.left_out) == ((12, 13), ())
    (said,) = encode(picture, picture.rgb, levels=LEVELS, format="jpeg").left_out
    assert said.startswith("the colour space (12, 13 in H.273), ")
    plain = taken(bytes(imagecodecs.avif_encode(scene(), level=100, primaries=1, transfer=13)))
    for target in ("png", "jpeg"):
        usual = encode(plain, plain.rgb, levels=LEVELS, format=target)
        assert (usual.left_out, b"cICP" in usual.data) == ((), False)


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_written_as_png_where_a_format_cannot_tell_it(transfer: int, name: str) -> None:
    values = few(3, 10)
    data = imagecodecs.avif_encode(values, level=100, bitspersample=10, primaries=9, transfer=transfer)
    picture = taken(bytes(data))
    for target in ("jpeg", "tiff"):
        encoded = encode(picture, picture.rgb, levels=LEVELS, format=target)
        assert encoded.how == f"PNG lossless 16-bit ({target.upper()} holds no HDR in {name})"
        again = taken(encoded.data)
        assert again.metadata.cicp == (9, transfer)
        assert np.array_equal(again.samples, picture.samples)


def test_premultiplied_heic_is_refused_by_name() -> None:
    pixels = np.dstack([scene(), scene()[..., 0]])
    buffer = io.BytesIO()
    importlib.import_module("pillow_heif").encode(
        "RGBa", pixels.shape[1::-1], pixels.tobytes(), buffer, quality=-1
    )
    with pytest.raises(InputError, match="premultiplied alpha") as caught:
        taken(buffer.getvalue())
    assert caught.value.code is Code.UNSUPPORTED


@pytest.mark.parametrize("shown", [(67, 45), (20, 30)])
@pytest.mark.parametrize("depth", [8, 10])
def test_an_avif_that_shows_a_part_of_its_pixels_is_refused_by_name(
    depth: int, shown: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    clap = struct.pack(">IIIIiIiI", shown[0], 1, shown[1], 1, 0, 1, 0, 1)
    write = isobmff._iprp
    monkeypatch.setattr(
        isobmff,
        "_iprp",
        lambda items: write(
            {
                at: replace(one, properties=(*one.properties, (b"clap", clap)))
                if one.kind == b"av01"
                else one
                for at, one in items.items()
            }
        ),
    )
    data = file(scene(), "AVIF") if depth == 8 else bytes(DEEP["avif rgb 10"]())
    cropped = isobmff.described(data, icc=None, orientation=1, exif=None, xmp=None)
    if shown == (67, 45):
        assert taken(cropped).rgb.shape == scene().shape
        return
    with pytest.raises(InputError, match=r"a part of its pixels \(clap\)") as caught:
        taken(cropped)
    assert caught.value.code is Code.UNSUPPORTED


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000"])
def test_bits_are_read_from_the_item_that_is_shown(kind: str) -> None:
    """Bytes that look like its header may come anywhere before it."""
    data = file(scene(), kind)
    lying = b"av1C\x81\x60\xff" + b"\xff\x4f\xff\x51" + b"\0\0\0\1\x0b" * 20
    free = (8 + len(lying)).to_bytes(4, "big") + b"free" + lying
    at = 0 if kind == "AVIF" else 12
    at += int.from_bytes(data[at : at + 4], "big")  # behind its ftyp
    if kind == "AVIF":  # whose payload moves on
        place = data.index(b"iloc") + 18
        moved = int.from_bytes(data[place : place + 4], "big") + len(free)
        data = data[:place] + moved.to_bytes(4, "big") + data[place + 4 :]
    picture = taken(data[:at] + free + data[at:])
    assert picture.depth == 8
    assert np.array_equal(picture.rgb, taken(file(scene(), kind)).rgb)


@pytest.mark.parametrize("deep_samples", [False, True])
@pytest.mark.parametrize("tagged", [False, True])
def test_a_tiff_is_turned_by_its_tag_and_not_by_xmp(deep_samples: bool, tagged: bool) -> None:
    samples = deep(3) if deep_samples else scene()
    packet = b'<x tiff:Orientation="6"/>'
    turn = [(274, 3, 1, 8, True)] if tagged else []
    data = tiff(samples, extratags=[(700, 1, len(packet), packet, True), *turn])
    picture = taken(data)
    assert picture.orientation == (8 if tagged else 1)
    assert np.array_equal(picture.samples, np.rot90(samples) if tagged else samples)
    assert picture.metadata.packets == (packet,)
    assert largest_change(picture, taken(encode(picture, picture.rgb, levels=LEVELS).data)) == 0


def test_a_tiff_keeps_its_layout() -> None:
    written = there_and_back(bytes(DEEP["bigtiff"]()))[1]
    assert written[:4] == b"II+\0"
    written = there_and_back(bytes(DEEP["tiff big endian"]()))[1]
    assert written[:4] == b"MM\0*"
    written = there_and_back(bytes(DEEP["tiff lzw"]()))[1]
    with tifffile.TiffFile(io.BytesIO(written)) as source:
        page = source.pages.first
        assert (page.compression.name, page.predictor.name) == ("LZW", "HORIZONTAL")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("source", "target", "depth"),
    [
        ("heic rgb 10", "png", 16),
        ("avif rgb 12", "tiff", 16),
        ("heic rgb 10", "avif", 10),
        ("avif rgb alpha 10", "jpeg2000", 10),
        ("jp2 rgb 12", "heic", 12),
        ("j2k grey 9", "avif", 8),
        ("png rgb", "heic", 8),
    ],
)
def test_a_depth_is_kept_if_the_other_format_has_it(source: str, target: str, depth: int) -> None:
    picture = taken(bytes(DEEP[source]()))
    again = taken(encode(picture, changed(picture), levels=LEVELS, format=target).data)
    assert again.depth == depth
    assert 0 < largest_change(picture, again) <= LEVELS
    untouched = outside(picture.samples.shape)
    if depth > 8:  # both on the full scale of 16 bits
        assert np.array_equal(again.samples[untouched], picture.samples[untouched])


@pytest.mark.parametrize("levels", [1, 6, 43, 64])
@pytest.mark.parametrize("make", ["heic rgb 10", "jp2 rgb 12", "j2k grey 9"])
def test_no_budget_is_exceeded_by_rounding_to_few_bits(make: str, levels: int) -> None:
    picture = taken(bytes(DEEP[make]()))
    rgb = np.clip(picture.rgb.astype(int) + levels, 0, 255).astype(np.uint8)
    again = taken(encode(picture, rgb, levels=levels).data)
    assert levels - 1 <= largest_change(picture, again) <= levels


def test_exiftool_finds_the_same_depth(tmp_path: Path) -> None:
    paths = []
    for make in ("heic rgb 10", "heic rgb 12", "avif rgb 10", "avif rgb 12"):
        paths.append(tmp_path / f"{make}.{make[:4]}")
        paths[-1].write_bytes(there_and_back(bytes(DEEP[make]()))[1])
    command = [tool("exiftool", "-ver"), "-T", "-ImagePixelDepth", *map(str, paths)]
    found = subprocess.run(command, capture_output=True, check=True, timeout=60, text=True).stdout
    assert found.splitlines() == ["10 10 10", "12 12 12", "10 10 10", "12 12 12"]


def test_a_picture_that_lies_about_its_depth_is_refused() -> None:
    deep_one = avif(few(3, 10), 10)
    for at, mask in ((2, 0x20), (2, 0x40)):  # "12 bits", "8 bits"
        data = bytearray(deep_one)
        data[data.index(b"av1C") + 4 + at] ^= mask
        with pytest.raises(InputError) as caught:
            taken(bytes(data))
        assert caught.value.code is Code.UNREADABLE


def test_deep_pictures_in_shallow_formats_are_rounded() -> None:
    picture = taken(bytes(DEEP["png rgb"]()))
    for format_ in ("jpeg", "webp", "avif", "bmp"):
        again = taken(encode(picture, changed(picture), levels=LEVELS, format=format_).data)
        assert again.samples.dtype == np.uint8
        assert largest_change(picture, again) <= LEVELS


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (tiff(scene().astype(np.float32)), "floating-point samples of 32 bits"),
        (tiff(deep(1)[..., 0].astype(np.int16), photometric="minisblack"), "signed"),
        (tiff(scene().astype(np.uint32)), "32 bits per sample"),
        (tiff(deep(4), extrasamples=["assocalpha"]), "premultiplied"),
        (tiff(deep(4), extrasamples=["unspecified"]), "a channel beyond colour"),
        (tiff(np.dstack([scene(), scene()]), extrasamples=["unspecified"] * 3), "6 channels"),
        (tiff(np.dstack([deep(3)] * 3), extrasamples=["unspecified"] * 6), "16 bits and 9 channels"),
        (
            tiff(np.dstack([scene()] * 2)[..., :5], photometric="separated", extrasamples=["unassalpha"]),
            "8 bits and 5 channels",
        ),
        (tiff(scene(), compression="jpeg2000"), "8 bits compressed as JPEG 2000"),
        (tiff(scene(), compression="jpegxl"), "8 bits compressed as JPEG XL"),
        (tiff(scene(), compression="lerc"), "8 bits compressed as LERC"),
        (tiff(scene(), compression="webp"), "8 bits compressed as WebP"),
        (nameless(np.dstack([scene(), scene()])[..., :4]), "a channel beyond colour"),
        (nameless(deep(4)), "a channel beyond colour"),
        (nameless(deep(2), photometric="minisblack"), "a channel beyond colour"),
        (file(Image.new("CMYK", (9, 9)), "TIFF", tiffinfo={254: 1}), "a thumbnail as its first page"),
    ],
)
def test_other_depths_and_makes_are_refused_by_name(data: bytes, what: str) -> None:
    with pytest.raises(InputError, match=what) as caught:
        taken(bytes(data))
    assert caught.value.code is Code.UNSUPPORTED
    assert "; " in caught.value.message


ENUMERATED = b"\1\0\0\0\0\0"


@pytest.mark.parametrize("make", ["jp2 rgb", "jp2 rgb 12", "JPEG2000"])
@pytest.mark.parametrize(
    ("colours", "what"),
    [
        (ENUMERATED + b"\x0e", "CIE Lab"),
        (ENUMERATED + b"\x15", "ROMM RGB"),
        (ENUMERATED + b"\x63", "number 99"),
        (b"\5\0\0\x0c\x10\0\x80", "an unknown kind"),
    ],
)
def test_a_jpeg_2000_of_other_colours_is_refused_by_name(make: str, colours: bytes, what: str) -> None:
    data = file(scene(), make) if make == "JPEG2000" else bytes(DEEP[make]())
    with pytest.raises(InputError, match=f"whose colours are {what}, expected") as caught:
        taken(with_header(data, (b"colr", colours)))
    assert caught.value.code is Code.UNSUPPORTED


@pytest.mark.parametrize("method", [2, 3])
def test_any_profile_of_a_jpeg_2000_is_kept(method: int) -> None:
    data = with_header(file(scene(), "JPEG2000"), (b"colr", bytes([method, 0, 0]) + WIDE))
    picture, _, again = there_and_back(data)
    assert (picture.metadata.icc, again.metadata.icc) == (WIDE, WIDE)


def test_of_several_colours_of_a_jpeg_2000_the_first_that_is_known_counts() -> None:
    boxes = [(b"colr", body) for body in (ENUMERATED + b"\x15", b"\3\0\0" + WIDE, ENUMERATED + b"\x10")]
    assert taken(with_header(file(scene(), "JPEG2000"), *boxes)).metadata.icc == WIDE
    assert taken(with_header(file(scene(), "JPEG2000"), *boxes[::-1])).metadata.icc is None


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("depth", [8, 16])
def test_a_jpeg_2000_says_which_channel_is_alpha(channels: int, depth: int) -> None:
    samples: NDArray[Any] = few(channels, depth).astype(np.uint8 if depth == 8 else np.uint16)
    picture, written, again = there_and_back(jp2(samples, depth))
    assert (picture.alpha is None) == (again.alpha is None) == (channels % 2 == 1)
    rows = {
        2: [(0, 0, 1), (1, 1, 0)],
        4: [(0, 0, 1), (1, 0, 2), (2, 0, 3), (3, 1, 0)],
    }.get(channels)
    said = [np.frombuffer(body, ">u2") for body in containers.jp2_headers(written, b"cdef")]
    assert [one.tolist() for one in said] == ([] if rows is None else [[channels, *sum(rows, ())]])


def test_a_jpeg_2000_with_premultiplied_alpha_is_refused_by_name() -> None:
    cdef = np.array([4, 0, 0, 1, 1, 0, 2, 2, 0, 3, 3, 2, 0], ">u2").tobytes()
    with pytest.raises(InputError, match="premultiplied"):
        taken(with_header(jp2(few(4, 12), 12), (b"cdef", cdef)))


# ---- CMYK


def inks() -> NDArray[np.uint8]:
    black = np.random.default_rng(0).integers(0, 80, (*scene().shape[:2], 1), dtype=np.uint8)
    return np.concatenate([255 - scene(), black], axis=2)


def inked(kind: str, **options: Any) -> bytes:
    height, width = inks().shape[:2]
    return file(Image.frombytes("CMYK", (width, height), inks().tobytes()), kind, **options)


@pytest.mark.parametrize("icc", [None, profiles.cmyk()], ids=["plain", "profile"])
@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_stays_in_its_own_inks(kind: str, icc: bytes | None) -> None:
    options = {} if icc is None else {"icc_profile": icc}
    picture, _, again = there_and_back(inked(kind, **options))
    assert (picture.mode, again.mode, again.metadata.icc) == ("CMYK", "CMYK", icc)
    assert largest_change(picture, again) <= LEVELS
    untouched = outside(inks().shape)
    if kind == "TIFF":
        assert np.array_equal(again.samples[untouched], inks()[untouched])
        assert np.array_equal(again.samples[..., 3], inks()[..., 3])
    asked = changed(picture).astype(int) - picture.rgb
    got = again.rgb.astype(int) - picture.rgb
    assert (got * asked).sum() / (asked * asked).sum() > 0.6


def test_imagemagick_finds_the_same_inks(tmp_path: Path) -> None:
    convert = tool("convert")
    for kind in ("JPEG", "TIFF"):
        written = there_and_back(inked(kind, icc_profile=profiles.cmyk()))[1]
        path = tmp_path / ("a" + EXTENSIONS[kind])
        path.write_bytes(written)
        raw = subprocess.run(
            [convert, str(path), "-depth", "8", "cmyk:-"], capture_output=True, check=True, timeout=60
        )
        found = np.frombuffer(raw.stdout, np.uint8).reshape(inks().shape)
        assert np.abs(found.astype(int) - taken(written).samples).max() <= 2  # decoders of JPEG may differ


def test_ink_becomes_srgb_where_a_format_holds_none() -> None:
    picture = taken(inked("JPEG", icc_profile=profiles.cmyk(), quality=100))
    again = taken(encode(picture, changed(picture), levels=LEVELS, format="png").data)
    assert (again.mode, again.metadata.icc) == ("RGB", None)
    assert np.array_equal(again.rgb, changed(picture))


# ---- profiles


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_become_srgb_where_a_format_holds_no_profile(channels: int) -> None:
    pixels, icc = (scene(), WIDE) if channels == 3 else (scene()[..., 0], profiles.grey())
    picture, _, again = there_and_back(file(pixels, "PNG", icc_profile=icc), format="bmp")
    assert np.array_equal(again.rgb, changed(picture))
    assert largest_change(picture, again) == LEVELS


def test_a_profile_that_is_lost_counts_as_a_change() -> None:
    wide, bare = taken(file(scene(), "PNG", icc_profile=WIDE)), taken(file(scene(), "PNG"))
    assert np.array_equal(wide.samples, bare.samples)
    assert largest_change(wide, bare) == max_change(wide.rgb, bare.rgb) > LEVELS


def test_an_srgb_profile_and_a_broken_one_change_nothing() -> None:
    for icc in (ICC, b"no profile", profiles.cmyk()):
        picture = taken(file(scene(), "PNG", icc_profile=icc))
        assert picture.look is None
        assert np.array_equal(picture.rgb, scene())


def test_editors_get_the_colours_of_the_profile() -> None:
    """Computed step by step: gamma to linear light, XYZ at D50, sRGB's primaries, sRGB's curve."""
    samples = np.array([128, 80, 64], np.uint8)
    srgb = np.array([[0.43607, 0.22249, 0.01392], [0.38515, 0.71687, 0.09708], [0.14307, 0.06061, 0.71410]])
    linear = (samples / 255) ** 2.2 @ np.array(profiles.ADOBE) @ np.linalg.inv(srgb)
    expected = 255 * (1.055 * linear ** (1 / 2.4) - 0.055)
    picture = taken(tiff(np.full((8, 8, 3), samples, np.uint8), **profiled(WIDE)))
    assert np.abs(picture.rgb[0, 0] - expected).max() <= 1
    assert np.abs(picture.rgb[0, 0].astype(int) - samples).max() > 5


@pytest.mark.parametrize("depth", [8, 16])
def test_a_perturbation_is_converted_back_into_a_wide_gamut(depth: int) -> None:
    samples = scene() if depth == 8 else deep(3)
    data = tiff(samples, **profiled(WIDE))
    picture, written, again = there_and_back(data)
    assert picture.look is not None
    assert again.metadata.icc == WIDE
    before, after = samples, samples_of(written)
    untouched = outside(before.shape)
    assert np.array_equal(after[untouched], before[untouched])
    assert largest_change(picture, again) <= LEVELS
    assert max_change(picture.rgb, again.rgb) <= LEVELS
    asked = changed(picture).astype(int) - picture.rgb
    got = again.rgb.astype(int) - picture.rgb
    assert (got * asked).sum() / (asked * asked).sum() > 0.75


def test_a_jpeg_of_wide_gamut_keeps_the_bound_in_srgb_except_at_single_pixels() -> None:
    """Outside the gamut of sRGB, one level of a sample can be a dozen levels of a colour."""
    picture = taken(file(scene(120, 130), "JPEG", quality=90, icc_profile=WIDE))
    again = taken(encode(picture, changed(picture), levels=LEVELS).data)
    seen = np.abs(again.rgb.astype(int) - picture.rgb).max(axis=2)
    assert largest_change(picture, again) <= LEVELS
    assert (seen > 0).mean() > 0
    assert (seen > LEVELS).mean() < 0.002


def test_a_grey_profile_is_applied_too() -> None:
    data = file(scene()[..., 0], "PNG", icc_profile=profiles.grey())
    picture, _, again = there_and_back(data)
    assert picture.look is not None
    assert (picture.rgb == picture.rgb[..., :1]).all()
    assert picture.rgb[..., 0].mean() > scene()[..., 0].mean() + 5  # a gamma of 1.6 is brighter than sRGB's
    assert again.samples.shape[2] == 1
    assert 0 < largest_change(picture, again) <= LEVELS


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_an_empty_perturbation_changes_no_sample(channels: int) -> None:
    icc = {1: profiles.grey(), 3: WIDE, 4: profiles.cmyk()}[channels]
    look = colour.look_of(icc, channels)
    samples = np.random.default_rng(0).integers(0, 65_536, (300, 20, channels), dtype=np.uint16)
    rgb = colour.seen(samples, look)
    assert np.array_equal(colour.carried(samples, rgb, rgb, look, LEVELS), samples)


# ---- pages and frames


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
def test_several_frames_are_refused_or_the_first_is_taken(kind: str) -> None:
    data = file(frames()[0], kind, save_all=True, append_images=frames()[1:])
    with pytest.raises(InputError, match=r"has 3 pages or frames, expected one; .*output\.frames") as caught:
        taken(data)
    assert caught.value.code is Code.UNSUPPORTED
    picture = taken(data, frames="first")
    alone = taken(file(frames()[0], kind)).rgb.astype(int)
    assert np.abs(picture.rgb.astype(int) - alone).mean() < 3
    encoded = encode(picture, picture.rgb, levels=LEVELS)
    assert "first of 3" in encoded.how
    assert taken(encoded.data).frames == 1
    with pytest.raises(ValueError, match="expected refuse or first"):
        taken(data, frames="all")


def test_frames_of_16_bits_are_counted_too() -> None:
    data = bytes(imagecodecs.apng_encode(np.stack([deep(3), deep(3, seed=1)])))
    with pytest.raises(InputError, match="has 2 pages or frames"):
        taken(data)
    picture = taken(data, frames="first")
    assert (picture.depth, picture.frames) == (16, 2)
    assert np.array_equal(picture.samples, deep(3))


def test_a_thumbnail_page_is_not_counted() -> None:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(scene(), photometric="rgb")
        writer.write(scene(12, 16), photometric="rgb", subfiletype=1)
    picture, written, _ = there_and_back(buffer.getvalue())
    assert np.array_equal(picture.rgb, scene())
    with tifffile.TiffFile(io.BytesIO(written)) as source:
        assert len(source.pages) == 1


# ---- sizes


@pytest.mark.parametrize("kind", [kind for kind in NAMES if kind != "GIF"])
@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (7, 9)])
def test_pictures_of_odd_sizes_keep_their_size(kind: str, size: tuple[int, int]) -> None:
    pixels = scene(*size)
    picture, _, again = there_and_back(file(pixels, "PNG"), format=FORMAT.get(kind, kind.lower()))
    assert again.rgb.shape == picture.rgb.shape == pixels.shape
    assert again.format == kind


# ---- HEIC


def test_a_turn_in_xmp_does_not_turn_a_heic() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" a="b"/></x:xmpmeta>'
    picture = taken(file(scene(), "JPEG", xmp=xmp))
    again = taken(encode(picture, picture.rgb, levels=LEVELS, format="heic").data)
    assert np.array_equal(again.rgb, picture.rgb)
    assert again.metadata.xmp == xmp.replace(b' tiff:Orientation="6"', b"")


PLACES = regions.mwg(regions.area(0.2, 0.3, 0.2, 0.2), applied='stDim:w="67" stDim:h="45" stDim:unit="pixel"')


def with_places(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x8769] = {0x9003: "2024:05:06 07:08:09", 0x9214: (10, 20, 4, 6)}
    packet = regions.xmp(PLACES + "<dc:rights xmlns:dc='http://purl.org/dc/elements/1.1/'>Zoe</dc:rights>")
    return file(scene(), kind, exif=exif.tobytes(), xmp=packet)


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize(("source", "target"), [("HEIF", "heic"), ("HEIF", "avif"), ("JPEG", "heic")])
def test_places_do_not_stay_where_pixels_are_turned_upright(
    source: str, target: str, orientation: int
) -> None:
    picture = taken(with_places(source, orientation))
    assert PLACES.encode() in b"".join(picture.metadata.packets), "the detector reads them still"
    encoded = encode(picture, picture.rgb, levels=LEVELS, format=target)
    about = taken(encoded.data).metadata
    assert b"Zoe" in (about.xmp or b"")
    stay = orientation == 1
    assert (PLACES.encode() in (about.xmp or b"")) is stay
    assert about.exif.below[tags.CAMERA].numbers(0x9214) == ((10, 20, 4, 6) if stay else ())
    assert about.exif.below[tags.CAMERA].raw(0x9003)
    why = "they name places in the pixels as they were before they were turned upright"
    said = () if stay else (f"the regions in XMP: {why}", f"EXIF's subject area: {why}")
    assert encoded.left_out == said


def test_places_stay_where_pixels_keep_their_orientation() -> None:
    picture = taken(with_places("JPEG", 6))
    for target in ("same", "avif"):
        encoded = encode(picture, picture.rgb, levels=LEVELS, format=target)
        about = taken(encoded.data).metadata
        assert (PLACES.encode() in (about.xmp or b""), encoded.left_out) == (True, ())
        assert about.exif.below[tags.CAMERA].numbers(0x9214) == (10, 20, 4, 6)


# ---- HEIC without its library


def test_without_its_library_a_heic_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    data = file(scene(), "HEIF")
    picture = taken(data)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(InputError, match=r"pip install 'backfire\[heic\]'"):
        taken(data)
    assert encode(picture, picture.rgb, levels=LEVELS).how == "PNG lossless (no HEIC writer is installed)"


# ---- the table of formats


TAGS = [
    "-EXIF:Artist=Zoë", "-EXIF:Copyright=© Zoë", "-EXIF:UserComment=hello", "-EXIF:LensModel=50mm f/1.4",
    "-EXIF:DateTimeOriginal=2024:05:06 07:08:09", "-EXIF:SerialNumber=42", "-GPS:GPSLatitude=48.2",
    "-GPS:GPSLatitudeRef=N", "-EXIF:XResolution=240", "-EXIF:YResolution=240", "-EXIF:ResolutionUnit=inches",
    "-XMP-dc:Title=Portrait", "-XMP-dc:Subject=a", "-XMP-dc:Subject=b", "-XMP-photoshop:City=Wien",
    "-IPTC:Caption-Abstract=caption", "-IPTC:Keywords=a", "-IPTC:Keywords=b", "-IPTC:By-line=Zoe",
]  # fmt: skip
COLUMNS = (
    "size",
    "mode",
    "bits",
    "alpha",
    "ICC",
    "EXIF",
    "XMP",
    "IPTC",
    "text",
    "resolution",
    "orientation",
    "pixels",
)
GROUPS = {
    "EXIF": ("IFD0", "ExifIFD", "GPS"),
    "XMP": ("XMP-",),
    "IPTC": ("IPTC",),
    "text": ("PNG:Author", "File:Comment"),
}
STORAGE = {
    "StripOffsets", "StripByteCounts", "RowsPerStrip", "Compression", "Orientation", "PlanarConfiguration",
    "Predictor", "SamplesPerPixel", "BitsPerSample", "PhotometricInterpretation", "ExtraSamples",
    "ImageWidth", "ImageHeight", "XResolution", "YResolution", "ResolutionUnit",
}  # fmt: skip


def sources(folder: Path) -> dict[str, Path]:
    """One file of each format with all that exiftool will write into it."""
    (folder / "thumbnail.jpg").write_bytes(file(scene(24, 32), "JPEG"))
    (folder / "wide.icc").write_bytes(WIDE)
    paths = {kind: folder / f"in_{kind}{extension}" for kind, extension in EXTENSIONS.items()}
    for kind, path in paths.items():
        image = Image.fromarray(scene())
        path.write_bytes(file(image, kind, **({} if kind in ("BMP", "GIF") else {"icc_profile": WIDE})))
    shared = [*TAGS, f"-EXIF:ThumbnailImage<={folder}/thumbnail.jpg", "-m", "-q", "-q", "-overwrite_original"]
    turn = "-EXIF:Orientation#=6"
    command = [tool("exiftool", "-ver")]
    for extra, kinds in (
        ([turn, "-Comment=a comment"], ["JPEG"]),
        ([turn, "-PNG:Author=Zoe"], ["PNG"]),
        ([turn, f"-icc_profile<={folder}/wide.icc"], ["JPEG2000"]),
        ([turn], ["TIFF", "WEBP"]),
        ([], ["HEIF", "AVIF", "GIF"]),
    ):
        command += [*extra, *(str(paths[kind]) for kind in kinds), "-execute"]
    subprocess.run([*command[:-1], "-common_args", *shared], check=True, timeout=120)
    return paths


def told(paths: list[Path]) -> list[dict[str, Any]]:
    command = [tool("exiftool", "-ver"), "-j", "-G1", "-a", "-n", "-b", "-struct", *map(str, paths)]
    out = subprocess.run(command, capture_output=True, timeout=120, check=True).stdout
    documents: list[dict[str, Any]] = json.loads(out)
    return documents


def about(document: dict[str, Any], groups: tuple[str, ...]) -> dict[str, Any]:
    return {
        key: value
        for key, value in document.items()
        if key.startswith(groups) and key.split(":")[1] not in STORAGE
    }


NONE = "\N{EN DASH}"
ALSO_DEEP = {
    "PNG": ["png rgb"],
    "TIFF": ["tiff rgb"],
    "JPEG2000": ["jp2 rgb 12", "jp2 rgb"],
    "HEIF": ["heic rgb 10", "heic rgb 12"],
    "AVIF": ["avif rgb 10", "avif rgb 12"],
}


def verdict(before: object, after: object) -> str:
    if not before:
        return NONE
    return "kept" if before == after else "lost"


def modes_kept(kind: str) -> tuple[str, str, str]:
    """The modes, bits and alpha that are kept, as Pillow and tifffile find them."""
    grey, colours = scene()[..., 0], scene()
    shallow = {"grey": grey, "RGB": colours}
    kept = []
    for name, pixels in shallow.items():
        again = there_and_back(file(pixels, kind))[2]
        if again.format == kind and again.samples.shape[2] == taken(file(pixels, kind)).samples.shape[2] == (
            1 if name == "grey" else 3
        ):
            kept.append(name)
    if kind in readers.INKED:
        kept.append(there_and_back(inked(kind))[2].mode)
    bits = ["8"]
    for make in ALSO_DEEP.get(kind, ()):
        data = bytes(DEEP[make]())
        untouched = outside(samples_of(data).shape)
        assert np.array_equal(samples_of(there_and_back(data)[1])[untouched], samples_of(data)[untouched])
        bits.append(str(bits_of(make)))
    clear = np.dstack([colours, np.random.default_rng(0).integers(0, 256, grey.shape, dtype=np.uint8)])
    alpha = NONE
    if kind not in ("JPEG", "BMP", "GIF"):
        before, written, after = there_and_back(file(clear, kind))
        assert before.alpha is not None
        assert after.alpha is not None
        exact = np.array_equal(before.alpha, after.alpha) and Image.open(io.BytesIO(written)).format == kind
        alpha = "kept" if exact else "lost"
    return ", ".join(kept) or "as PNG", ", ".join(bits), alpha


def pixels_kept(picture: Picture, again: Picture) -> str:
    untouched = outside(picture.samples.shape)
    largest = largest_change(picture, again)
    assert 0 < largest <= LEVELS
    return "exact" if np.array_equal(picture.samples[untouched], again.samples[untouched]) else "≤ budget"


def orientation_of(kind: str, picture: Picture, again: Picture) -> str:
    """HEIC and AVIF turn by their containers, the others by EXIF."""
    if kind in ("BMP", "GIF"):
        return NONE
    if kind in ("HEIF", "AVIF"):
        picture = taken(file(scene(), kind, exif=turned().tobytes()))
        assert picture.rgb.shape == (67, 45, 3)
        again = taken(encode(picture, picture.rgb, levels=LEVELS).data)
    assert again.rgb.shape == picture.rgb.shape
    assert np.abs(again.rgb.astype(int) - picture.rgb).max() <= LEVELS + 10
    return "kept" if again.orientation == picture.orientation == 6 else "applied"


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def row(
    kind: str, before: dict[str, Any], after: dict[str, Any], picture: Picture, again: Picture
) -> list[str]:
    size = verdict(before["File:ImageSize"] if "File:ImageSize" in before else before["Composite:ImageSize"],
                   after.get("File:ImageSize", after.get("Composite:ImageSize")))  # fmt: skip
    if kind == "HEIF":
        assert picture.rgb.shape == again.rgb.shape
    mode, bits, alpha = modes_kept(kind)
    cells = {"size": size, "mode": mode, "bits": bits, "alpha": alpha}
    cells["ICC"] = verdict(picture.metadata.icc, again.metadata.icc)
    for column, groups in GROUPS.items():
        cells[column] = verdict(about(before, groups), about(after, groups))
    ways = ("IFD0:XResolution", "PNG-pHYs:PixelsPerUnitX", "JFIF:XResolution", "File:PixelsPerMeterX")
    cells["resolution"] = verdict(
        *({way: one[way] for way in ways[:2] + ways[3:] if way in one} for one in (before, after))
    )
    cells["orientation"] = orientation_of(kind, picture, again)
    cells["pixels"] = pixels_kept(picture, again)
    return [NAMES[kind], *(cells[column] for column in COLUMNS)]


def test_the_table_of_formats_says_what_is_measured(tmp_path: Path) -> None:
    paths = sources(tmp_path)
    written: dict[str, Path] = {}
    pictures: dict[str, tuple[Picture, Picture]] = {}
    for kind, path in paths.items():
        picture = taken(path.read_bytes())
        encoded = encode(picture, changed(picture), levels=LEVELS)
        written[kind] = tmp_path / f"out_{kind}{encoded.extension}"
        written[kind].write_bytes(encoded.data)
        pictures[kind] = (picture, taken(encoded.data))
    documents = told([*paths.values(), *written.values()])
    table = [["format", *COLUMNS]]
    for index, kind in enumerate(NAMES):
        before, after = documents[index], documents[index + len(NAMES)]
        assert not [key for key in after if "Thumbnail" in key or key.startswith("IFD1")], kind
        assert not [key for key in after if key.startswith("ExifTool:Warning")], (kind, after)
        table.append(row(kind, before, after, *pictures[kind]))
    text = (Path(__file__).parents[3] / "docs/guides/formats.md").read_text()
    lines = ["| " + " | ".join(cells) + " |" for cells in table]
    missing = [line for line in lines if line not in text]
    assert not missing, "\n".join(
        ["docs/guides/formats.md should say:", lines[0], "|---" * len(table[0]) + "|", *lines[1:]]
    )


# ---- the whole job


@pytest.mark.parametrize(
    "make",
    [
        "wide 16-bit tiff",
        pytest.param("cmyk jpeg", marks=pytest.mark.slow),
        pytest.param("grey 16-bit png", marks=pytest.mark.slow),
    ],
)
def test_a_job_keeps_the_samples_of_the_picture(make: str) -> None:
    photograph = np.array(photo())
    deep_photograph = photograph.astype(np.uint16) * 257
    data = {
        "wide 16-bit tiff": lambda: tiff(deep_photograph, **profiled(WIDE)),
        "cmyk jpeg": lambda: file(Image.fromarray(photograph).convert("CMYK"), "JPEG", quality=95),
        "grey 16-bit png": lambda: bytes(imagecodecs.png_encode(deep_photograph[..., 1].copy())),
    }[make]()
    mask = Sidecar("a.mask.png", file(mask_picture(), "PNG"))
    settings = parse({"folders": {"inbox": "in"}, **QUICK}, base=Path("/"))
    result = protect(data, Source("a", (mask,)), settings)
    before, after = taken(data), taken(result.data)
    assert (after.format, after.mode, after.samples.dtype) == (
        before.format,
        before.mode,
        before.samples.dtype,
    )
    assert after.metadata.icc == before.metadata.icc
    assert 0 < largest_change(before, after) <= Budget(settings.protect.epsilon).levels
    assert result.receipt["max_change_levels"] == largest_change(before, after)


@pytest.mark.parametrize(("jpeg", "grey"), [("small", True), ("strong", False)])
def test_the_perturbation_is_grey_if_only_luminance_will_be_stored(
    monkeypatch: pytest.MonkeyPatch, jpeg: str, grey: bool
) -> None:
    """A small JPEG stores the luminance of the perturbation alone."""
    asked: list[bool] = []
    optimise = Optimiser.optimise

    def watched(self: Optimiser, *rest: Any, grey: bool, **given: Any) -> Optimised:
        asked.append(grey)
        return optimise(self, *rest, grey=grey, **given)

    monkeypatch.setattr(Optimiser, "optimise", watched)
    mask = Sidecar("a.mask.png", file(mask_picture(), "PNG"))
    settings = parse({"folders": {"inbox": "in"}, "output": {"jpeg": jpeg}, **QUICK}, base=Path("/"))
    result = protect(file(photo(), "JPEG", quality=90), Source("a", (mask,)), settings)
    assert asked == [grey]
    assert ("4:2:0" in result.receipt["written_as"]) is grey


@pytest.mark.slow
def test_a_large_heic_can_be_read_again() -> None:
    """In one piece it would be 23 MB, and libde265 cannot read pieces of 20 MB."""
    pixels = np.random.default_rng(0).integers(0, 256, (2400, 2400, 3), dtype=np.uint8)
    data = heif.written(pixels, 8, cicp=(1, 13), icc=None, exif=None, xmp=None)
    assert len(data) > 20_000_000
    np.testing.assert_array_equal(heif.values(data), pixels)


def test_a_huge_heic_has_no_more_slices_than_its_encoder_can_hold() -> None:
    assert [heif.slices_of(size) for size in (1, 8_000_001, 36_000_000, 10**9)] == [1, 2, 5, 10]
