"""Picture files: what is kept from decoding to encoding, the bound of the perturbation, and refusals."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import struct
import subprocess
import time
import zlib
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from backfire.config import Sidecars
from backfire.detectors.sidecar import marked
from backfire.errors import Code, InputError
from backfire.imaging import (
    Picture,
    containers,
    decode,
    decode_painting,
    encode,
    largest_change,
    luma_alone,
    max_change,
    photoshop,
    previews,
    psnr,
    scaled,
    tags,
    tiff,
    xmp,
)
from backfire.imaging.decoding import stored
from backfire.imaging.metadata import Metadata
from backfire.types import Rgb
from tests.support.images import COPYRIGHT, ICC, LIMIT, box, chunk, exif_with, file, frames, scene, taken
from tests.support.pictures import photo
from tests.support.programs import tool

LEVELS = 6
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP")
LOSSLESS = ("PNG", "TIFF", "WEBP")
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:li>Caf\xc3\xa9</rdf:li></x:xmpmeta>'


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    if image.format != "TIFF":  # loading a TIFF turns it upright and takes the tag away
        image.load()
    return image


def with_thumbnail(exif: Image.Exif, thumbnail: bytes) -> bytes:
    """The EXIF block with a second directory that holds a thumbnail."""
    block = bytearray(exif.tobytes()[6:])
    order = "<" if block[:2] == b"II" else ">"
    (first,) = struct.unpack_from(f"{order}I", block, 4)
    (count,) = struct.unpack_from(f"{order}H", block, first)
    at = len(block)
    struct.pack_into(f"{order}I", block, first + 2 + 12 * count, at)
    body = at + 2 + 2 * 12 + 4
    block += struct.pack(f"{order}H", 2)
    block += struct.pack(f"{order}HHII", 0x0201, 4, 1, body)
    block += struct.pack(f"{order}HHII", 0x0202, 4, 1, len(thumbnail))
    block += struct.pack(f"{order}I", 0) + thumbnail
    return b"Exif\0\0" + bytes(block)


def changed(picture: Picture, kind: str = "sign", seed: int = 1) -> Rgb:
    noise = np.random.default_rng(seed).choice([-LEVELS, LEVELS], picture.rgb.shape)
    if kind == "smooth":
        noise = noise[::8, ::8].repeat(8, 0).repeat(8, 1)[: noise.shape[0], : noise.shape[1]]
    if picture.samples.shape[2] == 1:
        noise = noise[..., :1]
    pixels: Rgb = np.clip(picture.rgb + noise, 0, 255).astype(np.uint8)
    return pixels


def camera(picture: Picture) -> dict[int, bytes]:
    return {tag: entry.data for tag, entry in picture.metadata.exif.below[0x8769].entries.items()}


def gps(picture: Picture) -> dict[int, bytes]:
    return {tag: entry.data for tag, entry in picture.metadata.exif.below[0x8825].entries.items()}


def refusal(data: bytes, name: str = "a.jpg", max_pixels: int = LIMIT) -> InputError:
    with pytest.raises(InputError) as caught:
        decode(data, name=name, max_pixels=max_pixels)
    assert name in caught.value.message
    return caught.value


def grey_with_key(depth: int, key: int, extra: int = 0) -> bytes:
    """A grey PNG of few bits, 16 by 16, whose rows count up, with a colour key."""
    bits = "".join(f"{at % (1 << depth):0{depth}b}" for at in range(16))
    row = b"\0" + int(bits, 2).to_bytes(2 * depth, "big")
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", 16, 16, depth, 0, 0, 0, 0)),
        (b"tRNS", struct.pack(">H", key | extra)),
        (b"IDAT", zlib.compress(row * 16)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


# ---- orientation


@pytest.mark.parametrize("orientation", range(1, 9))
def test_stored_is_the_inverse_of_turning_upright_with_pillow(orientation: int) -> None:
    pixels = scene(5, 7)
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = orientation
    upright = np.array(ImageOps.exif_transpose(image))
    assert np.array_equal(stored(upright, orientation), pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", FORMATS)
def test_grid_and_tag_are_kept(kind: str, orientation: int) -> None:
    pixels = scene()
    data = file(pixels, kind, exif=exif_with(orientation), **({"quality": 95} if kind == "JPEG" else {}))
    picture = taken(data)
    reference = np.array(ImageOps.exif_transpose(opened(data)).convert("RGB"))
    assert picture.orientation == orientation
    assert np.array_equal(picture.rgb, reference)

    wanted = changed(picture)
    encoded = encode(picture, wanted, levels=LEVELS)
    written = opened(encoded.data)
    assert written.format == kind
    assert written.getexif()[0x0112] == orientation
    again = taken(encoded.data)
    assert again.orientation == orientation
    assert max_change(again.rgb, picture.rgb) <= LEVELS
    if kind in LOSSLESS:
        assert np.array_equal(again.rgb, wanted)
    if kind != "TIFF":
        grid = np.array(written)
        assert grid.shape == pixels.shape
        assert np.abs(grid.astype(int) - pixels).mean() < 2 * LEVELS


def test_xmp_does_not_turn_a_picture() -> None:
    xmp = b'<x tiff:Orientation="6"/>'
    data = file(scene(), "JPEG", xmp=xmp)
    picture = taken(data)
    assert (picture.orientation, picture.rgb.shape) == (1, scene().shape)
    assert picture.metadata.xmp == xmp


@pytest.mark.parametrize("value", [0, 9, 700])
def test_an_orientation_that_is_none_counts_as_upright(value: int) -> None:
    assert taken(file(scene(), "JPEG", exif=exif_with(value))).orientation == 1


# ---- modes


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("JPEG", "L"), ("JPEG", "RGB"), *product(LOSSLESS, ("L", "LA", "RGB", "RGBA"))],
)
def test_modes_are_kept(kind: str, mode: str) -> None:
    image = Image.fromarray(scene()).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image = image.convert(mode)
    picture = taken(file(image, kind))
    encoded = encode(picture, changed(picture), levels=LEVELS)
    written = opened(encoded.data)
    grey_lost = {"L": "RGB", "LA": "RGBA"}.get(mode, mode)  # WebP has no grey
    assert written.mode == (grey_lost if kind == "WEBP" else mode)
    assert (picture.samples.shape[2] == 1) == (mode in ("L", "LA") and kind != "WEBP")
    if picture.samples.shape[2] == 1:
        assert (picture.rgb == picture.rgb[..., :1]).all()
    again = taken(encoded.data)
    assert max_change(again.rgb, picture.rgb) <= LEVELS
    if mode.endswith("A"):
        assert picture.alpha is not None
        assert again.alpha is not None
        assert np.array_equal(picture.alpha, np.array(image)[..., -1])
        assert np.array_equal(again.alpha, picture.alpha)
    else:
        assert picture.alpha is None


def test_colour_on_a_grey_picture_is_written_as_its_luminance() -> None:
    picture = taken(file(scene()[..., 0], "PNG"))
    coloured = picture.rgb.copy()
    coloured[..., 0] = np.minimum(coloured[..., 0], 249) + 6
    again = taken(encode(picture, coloured, levels=LEVELS).data)
    assert again.mode == "L"
    assert 0 < max_change(again.rgb, picture.rgb) <= LEVELS


def test_palette_becomes_rgb_and_its_transparency_alpha() -> None:
    palette = Image.fromarray(scene()).convert("P", palette=Image.Palette.ADAPTIVE)
    plain = taken(file(palette, "PNG"))
    assert (plain.mode, plain.alpha) == ("P", None)
    assert np.array_equal(plain.rgb, np.array(palette.convert("RGB")))
    assert opened(encode(plain, plain.rgb, levels=LEVELS).data).mode == "RGB"

    index = int(np.array(palette)[3, 4])
    clear = taken(file(palette, "PNG", transparency=index))
    assert clear.alpha is not None
    assert np.array_equal(clear.alpha == 0, np.array(palette) == index)
    assert opened(encode(clear, clear.rgb, levels=LEVELS).data).mode == "RGBA"


def test_a_colour_key_becomes_alpha() -> None:
    pixels = scene()
    pixels[:5, :5] = (1, 2, 3)
    picture = taken(file(pixels, "PNG", transparency=(1, 2, 3)))
    assert picture.alpha is not None
    assert not picture.alpha[:5, :5].any()
    again = taken(encode(picture, changed(picture), levels=LEVELS).data)
    assert again.alpha is not None
    assert np.array_equal(again.alpha, picture.alpha)


# ---- pixels


@pytest.mark.parametrize("depth", [2, 4, 8])
@pytest.mark.parametrize("extra", [0, 0x4000])  # only the low bits of a key count
def test_a_grey_colour_key_of_any_depth_becomes_alpha(depth: int, extra: int) -> None:
    picture = taken(grey_with_key(depth, 1, extra))
    most = (1 << depth) - 1
    assert picture.samples[0, :, 0].tolist() == [255 // most * (at % (most + 1)) for at in range(16)]
    assert picture.alpha is not None
    assert picture.alpha[0].tolist() == [0 if at % (most + 1) == 1 else 255 for at in range(16)]
    again = taken(encode(picture, picture.rgb, levels=LEVELS).data)
    assert again.alpha is not None
    assert np.array_equal(again.alpha, picture.alpha)


@pytest.mark.parametrize("key", [0, 1])
def test_a_colour_key_of_a_mask_of_one_bit_becomes_alpha(key: int) -> None:
    painting = decode_painting(grey_with_key(1, key), name="m.png", max_pixels=LIMIT)
    assert painting[0, :, 0].tolist() == [0, 255] * 8
    assert painting[0, :, 3].tolist() == [255 * key, 255 * (1 - key)] * 8


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_is_exact_even_under_full_transparency(kind: str) -> None:
    pixels = np.dstack([scene(), np.zeros(scene().shape[:2], np.uint8)])
    picture = taken(file(pixels, kind))
    wanted = picture.rgb.copy()
    wanted[10:20, 10:20] ^= 3
    again = taken(encode(picture, wanted, levels=LEVELS).data)
    assert np.array_equal(again.rgb, wanted)


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("noise", ["sign", "smooth"])
def test_jpeg_holds_the_bound_and_keeps_most_of_the_perturbation(noise: str, grey: bool) -> None:
    pixels = scene(120, 130)
    picture = taken(file(pixels[..., 0] if grey else pixels, "JPEG", quality=85))
    wanted = changed(picture, noise)
    encoded = encode(picture, wanted, levels=LEVELS)
    again = taken(encoded.data)
    asked = wanted.astype(int) - picture.rgb
    got = again.rgb.astype(int) - picture.rgb
    assert np.abs(got).max() <= LEVELS
    assert (got * asked).sum() / (asked * asked).sum() > 0.8
    assert encoded.extension == ".jpg"
    assert encoded.how == f"JPEG quality 100 {'grey' if grey else '4:4:4 RGB'}"


@pytest.mark.shared
@pytest.mark.parametrize("noise", ["sign", "smooth"])
def test_jpeg_holds_the_bound_on_photographs(shared: Path, noise: str) -> None:
    photographs = sorted(shared.glob("*/*.jpg"))
    assert photographs
    for path in photographs:
        whole = decode(path.read_bytes(), name=path.name, max_pixels=10_000_000)
        # Blocks are coded one by one, so that a part of the picture shows as much as the whole of it.
        part = np.s_[:512, :512]
        picture = replace(whole, rgb=whole.rgb[part], samples=whole.samples[part])
        wanted = changed(picture, noise)
        data = encode(picture, wanted, levels=LEVELS).data
        got = decode(data, name=path.name, max_pixels=10_000_000).rgb.astype(int) - picture.rgb
        asked = wanted.astype(int) - picture.rgb
        assert np.abs(got).max() <= LEVELS, path.name
        assert (got * asked).sum() / (asked * asked).sum() > 0.8, path.name


def test_jpeg_has_no_jfif_header_that_would_make_its_rgb_ycbcr() -> None:
    picture = taken(file(scene(), "JPEG", dpi=(300, 300)))
    data = encode(picture, picture.rgb, levels=LEVELS).data
    assert b"JFIF" not in data[:64]
    assert opened(data).info["adobe_transform"] == 0
    assert taken(data).metadata.dpi == (300, 300)


@pytest.mark.parametrize("size", [(120, 130), (121, 131), (16, 16), (17, 200), (9, 300)])
@pytest.mark.parametrize("quality", [60, 75, 95])
def test_a_small_jpeg_keeps_its_chroma_and_the_bound(size: tuple[int, int], quality: int) -> None:
    pixels = np.array(Image.fromarray(photograph()).resize(size[::-1]))
    data = file(pixels, "JPEG", quality=quality, dpi=(300, 300), progressive=True)
    picture = taken(data)
    wanted = changed(picture, "smooth")
    encoded = encode(picture, wanted, levels=LEVELS, jpeg="small")
    again, strong = taken(encoded.data), encode(picture, wanted, levels=LEVELS)
    assert max_change(picture.rgb, again.rgb) <= LEVELS
    halved = min(size) >= 16  # no less than one block of chroma
    before, after = (vars(opened(one))["quantization"] for one in (data, encoded.data))
    same = after.get(1) == before[1]
    chroma = "as it was" if same else "as it was decoded, in finer steps"
    how = f"4:2:0, chroma {chroma}" if halved else "4:4:4 RGB"
    assert encoded.how == f"JPEG quality 100 {how}"
    # A file of few pixels is mostly headers.
    most = 1.0 if not halved else 0.6 if pixels.size > 10_000 else 0.9
    assert len(encoded.data) <= most * len(strong.data)
    assert opened(encoded.data).info["progressive"]
    asked = (wanted.astype(int) - picture.rgb) @ [0.299, 0.587, 0.114]
    got = (again.rgb.astype(int) - picture.rgb) @ [0.299, 0.587, 0.114]
    assert (got * asked).sum() / (asked * asked).sum() > 0.7
    assert again.metadata.dpi == (300, 300)


def photograph() -> Rgb:
    pixels: Rgb = np.asarray(photo((160, 128)))
    return pixels


@pytest.mark.parametrize(
    "options", [{"subsampling": 0}, {"subsampling": 1}, {"keep_rgb": True}], ids=["444", "422", "rgb"]
)
def test_only_halved_chroma_makes_a_small_jpeg(options: dict[str, Any]) -> None:
    picture = taken(file(photograph(), "JPEG", **options))
    encoded = encode(picture, changed(picture), levels=LEVELS, jpeg="small")
    assert encoded.how == "JPEG quality 100 4:4:4 RGB"
    assert max_change(picture.rgb, taken(encoded.data).rgb) <= LEVELS
    assert not luma_alone(picture, jpeg="small")


def test_it_is_known_beforehand_where_luma_alone_will_be_written() -> None:
    halved = taken(file(photograph(), "JPEG", quality=90))
    assert luma_alone(halved, jpeg="small")
    assert luma_alone(halved, format="jpeg", jpeg="small")
    assert not luma_alone(halved, jpeg="strong")
    assert not luma_alone(halved, format="png", jpeg="small")
    assert not luma_alone(taken(file(photograph(), "PNG")), format="jpeg", jpeg="small")


def test_it_is_known_beforehand_which_jpeg_cannot_keep_its_coding(monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose planes of chroma have different tables; Pillow's limit of size does not matter."""
    data = file(photograph(), "JPEG", quality=90)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert luma_alone(taken(data), jpeg="small")
    frame = data.index(b"\xff\xc0")
    components = frame + 10
    assert data[components + 5] == data[components + 8] == 1, "which table Cb and Cr take"
    other = bytearray(data)
    other[components + 8] = 0
    picture = taken(bytes(other))
    assert not luma_alone(picture, jpeg="small")
    assert encode(picture, picture.rgb, levels=LEVELS, jpeg="small").how == "JPEG quality 100 4:4:4 RGB"


def test_chroma_that_cannot_stay_is_stored_in_full() -> None:
    """Only RGB can keep this bound."""
    picture = taken(file(scene(121, 131), "JPEG", quality=75))
    encoded = encode(picture, picture.rgb, levels=1, jpeg="small")
    assert encoded.how == "JPEG quality 100 4:4:4 RGB"
    assert max_change(picture.rgb, taken(encoded.data).rgb) <= 1
    encoded = encode(picture, picture.rgb, levels=LEVELS, jpeg="small")
    assert encoded.how == "JPEG quality 100 4:2:0, chroma as it was decoded, in finer steps"
    assert max_change(picture.rgb, taken(encoded.data).rgb) <= LEVELS


def test_a_bound_that_no_jpeg_can_hold_still_gives_a_file() -> None:
    picture = taken(file(scene(), "JPEG"))
    again = taken(encode(picture, picture.rgb, levels=0).data)
    assert max_change(again.rgb, picture.rgb) <= 2


def test_a_very_noisy_picture_can_be_written_as_jpeg() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    picture = taken(file(noise, "PNG"))
    again = taken(encode(picture, changed(picture), levels=LEVELS, format="jpeg").data)
    assert max_change(again.rgb, picture.rgb) <= LEVELS


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("target", FORMATS)
def test_every_format_can_be_written_as_every_other(source: str, target: str) -> None:
    data = file(scene(), source, exif=exif_with(6), icc_profile=ICC)
    picture = taken(data)
    encoded = encode(picture, changed(picture), levels=LEVELS, format=target.lower())
    again = taken(encoded.data)
    assert (again.format, again.orientation, again.metadata.icc) == (target, 6, ICC)
    assert max_change(again.rgb, picture.rgb) <= LEVELS
    assert encoded.extension == {"JPEG": ".jpg", "PNG": ".png", "TIFF": ".tif", "WEBP": ".webp"}[target]
    assert again.metadata.exif.raw(0x8298) == picture.metadata.exif.raw(0x8298)
    assert camera(again)[0x9003] == camera(picture)[0x9003]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_bmp_is_stored_upright_since_it_has_no_orientation(orientation: int) -> None:
    picture = taken(file(scene(), "JPEG", exif=exif_with(orientation)))
    again = taken(encode(picture, picture.rgb, levels=LEVELS, format="bmp").data)
    np.testing.assert_array_equal(again.rgb, picture.rgb)


def test_a_picture_that_jpeg_cannot_hold_is_written_as_png() -> None:
    pixels = np.dstack([scene(), np.full(scene().shape[:2], 255, np.uint8)])
    opaque = taken(file(pixels, "PNG"))
    assert encode(opaque, opaque.rgb, levels=LEVELS, format="jpeg").extension == ".jpg"
    pixels[0, 0, 3] = 254
    clear = taken(file(pixels, "PNG"))
    encoded = encode(clear, clear.rgb, levels=LEVELS, format="jpeg")
    assert (encoded.extension, opened(encoded.data).format) == (".png", "PNG")
    assert encoded.how == "PNG lossless (JPEG holds no transparency)"
    assert np.array_equal(np.array(opened(encoded.data)), pixels)


def test_a_side_beyond_webps_limit_is_written_as_png() -> None:
    picture = taken(file(np.zeros((1, 16_384, 3), np.uint8), "PNG"))
    assert encode(picture, picture.rgb, levels=LEVELS, format="webp").extension == ".png"


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_tiff_keeps_a_lossless_compression(compression: str) -> None:
    picture = taken(file(scene(), "TIFF", compression=compression))
    wanted = changed(picture)
    again = taken(encode(picture, wanted, levels=LEVELS).data)
    assert again.compression == ("tiff_adobe_deflate" if compression == "jpeg" else compression)
    assert np.array_equal(again.rgb, wanted)


@pytest.mark.parametrize("deep", [False, True])
def test_each_row_of_a_tiff_in_packbits_is_packed_by_itself(deep: bool) -> None:
    pixels = np.full((40, 30, 3), 200, np.uint8)
    pixels[:10] = scene(10, 30)
    if deep:
        written = tiff.written(
            pixels.astype(np.uint16) * 257, Metadata(), compression="packbits", alpha=False
        )
    else:
        picture = taken(file(pixels, "TIFF", compression="packbits"))
        written = encode(picture, picture.rgb, levels=LEVELS).data
    page = tags.parse(written)
    samples = pixels.astype("<u2") * 257 if deep else pixels
    rows = [row.tobytes() for row in samples]
    ((start,), (size,)) = page.numbers(273), page.numbers(279)
    packed = written[start : start + size]
    for row in rows:
        unpacked = b""
        while len(unpacked) < len(row):
            head = packed[0]
            assert head != 128
            if head < 128:
                unpacked, packed = unpacked + packed[1 : head + 2], packed[head + 2 :]
            else:
                unpacked, packed = unpacked + packed[1:2] * (257 - head), packed[2:]
        assert unpacked == row
    assert not packed


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_a_tiff_carries_exif_whatever_its_compression(compression: str) -> None:
    data = file(scene(), "TIFF", exif=exif_with(6, gps=True))
    picture = replace(taken(data), compression=compression)
    again = taken(encode(picture, picture.rgb, levels=LEVELS).data)
    assert again.compression == compression
    assert camera(again) == camera(picture)
    assert gps(again) == gps(picture)
    assert again.metadata.exif.raw(0x8298) == COPYRIGHT.encode() + b"\0"


def test_arguments_are_not_changed_and_wrong_ones_are_refused() -> None:
    picture = taken(file(scene(), "JPEG"))
    before, wanted = picture.rgb.copy(), changed(picture)
    asked = wanted.copy()
    encode(picture, wanted, levels=LEVELS)
    assert np.array_equal(picture.rgb, before)
    assert np.array_equal(wanted, asked)
    with pytest.raises(ValueError, match="expected uint8"):
        encode(picture, wanted[:-1], levels=LEVELS)
    with pytest.raises(ValueError, match="expected same or one of"):
        encode(picture, wanted, levels=LEVELS, format="psd")
    with pytest.raises(ValueError, match="expected keep"):
        encode(picture, wanted, levels=LEVELS, metadata="some")


# ---- metadata


@pytest.mark.parametrize("kind", FORMATS)
def test_keep_copies_the_metadata_of_the_file(kind: str) -> None:
    options: dict[str, Any] = {"exif": exif_with(3, gps=True), "icc_profile": ICC, "dpi": (300, 300)}
    if kind == "PNG":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP.decode())
    elif kind == "TIFF":
        options["exif"][700] = XMP
    else:
        options["xmp"] = XMP
    picture = taken(file(scene(), kind, **options))
    written = encode(picture, picture.rgb, levels=LEVELS).data
    about = taken(written).metadata
    assert (about.icc, about.xmp) == (ICC, XMP)
    assert about.exif.raw(0x8298) == COPYRIGHT.encode() + b"\0"
    assert camera(taken(written)) == camera(picture)
    assert camera(picture)[0x927C] == b"secret of the maker"
    assert gps(taken(written)) == gps(picture)
    assert opened(written).getexif().get_ifd(0x8825)[2] == (48.0, 12.0, 30.0)
    if kind != "WEBP":
        assert about.dpi == pytest.approx((300, 300), abs=0.01)


@pytest.mark.parametrize("kind", FORMATS)
def test_strip_gps_removes_the_position_and_keeps_the_rest(kind: str) -> None:
    options: dict[str, Any] = {"exif": exif_with(6, gps=True)}
    located = XMP.replace(b"Caf", b'<d exif:GPSLatitude="48,12.5N"/>Caf')
    if kind in ("JPEG", "WEBP"):
        options["xmp"] = located
    picture = taken(file(scene(), kind, **options))
    picture = taken(encode(picture, picture.rgb, levels=LEVELS).data)
    assert gps(picture)
    data = encode(picture, picture.rgb, levels=LEVELS, metadata="strip-gps").data
    written = opened(data).getexif()
    assert 0x8825 not in written
    assert not written.get_ifd(0x8825)
    assert b"GPSLatitude" not in data
    about = taken(data).metadata
    assert about.xmp is None
    assert about.exif.raw(0x8298) == COPYRIGHT.encode() + b"\0"
    assert set(camera(taken(data))) == {0x9003}
    assert about.orientation == 6


def test_strip_gps_takes_properties_and_datasets_and_not_the_packet_and_the_record() -> None:
    rights = '<dc:rights xmlns:dc="http://purl.org/dc/elements/1.1/">Zoe</dc:rights>'
    gps = "<exif:GPSLatitude xmlns:exif='http://ns.adobe.com/exif/1.0/'>52,31N</exif:GPSLatitude>"
    byline, caption = b"\x1c\x02\x50\0\x03Zoe", b"\x1c\x02\x78\0\x0bGPS 52.5163"
    body = b"Photoshop 3.0\0" + photoshop.resource(photoshop.IIM, byline + caption)
    extra = b"\xff\xed" + struct.pack(">H", len(body) + 2) + body
    exif = tags.Directory().having({33723: (tags.UNDEFINED, byline + caption)})
    picture = taken(file(scene(), "JPEG", xmp=described(rights + gps), extra=extra))
    picture = replace(picture, metadata=replace(picture.metadata, exif=exif, extended=described(gps)))
    about = picture.metadata.reduced("strip-gps")
    assert (about.xmp, about.extended) == (described(rights), described(""))
    assert about.photoshop == photoshop.resource(photoshop.IIM, byline)
    assert about.exif.raw(33723) == byline
    assert about.left_out == ()


@pytest.mark.parametrize("prefix", ["geo", "w"])
@pytest.mark.parametrize("names", ["lat long", "lat lon alt", "lat lng", "long alt", "latitude y z"])
def test_strip_gps_takes_the_other_coordinates_with_the_one_it_knows(prefix: str, names: str) -> None:
    space = f'xmlns:{prefix}="http://www.w3.org/2003/01/geo/wgs84_pos#"'
    values = [(f"{prefix}:{name}", 10 + at) for at, name in enumerate(names.split())]
    rights = '<dc:rights xmlns:dc="http://purl.org/dc/elements/1.1/">Zoe</dc:rights>'
    inside = rights + "".join(f"<{name}>{value}.5</{name}>" for name, value in values)
    attributes = "".join(f' {name}="{value}.5"' for name, value in values)
    first, second = described(inside, f" {space}"), described(rights, f" {space}{attributes}")
    for main, extended in ((first, second), (second, first)):
        about = Metadata(xmp=main, extended=extended).reduced("strip-gps")
        assert (about.xmp, about.extended) == (described(rights, f" {space}"),) * 2
        assert about.left_out == ()


def test_strip_gps_takes_single_properties_of_a_namespace_that_holds_much_else() -> None:
    space = ' xmlns:exif="http://ns.adobe.com/exif/1.0/"'
    about = Metadata(
        xmp=described("<exif:GPSAltitude>519/1</exif:GPSAltitude><exif:Flash>1</exif:Flash>", space)
    )
    assert about.reduced("strip-gps").xmp == described("<exif:Flash>1</exif:Flash>", space)


def test_strip_gps_keeps_the_rights_in_a_namespace_that_holds_coordinates() -> None:
    space = ' xmlns:dwc="http://rs.tdwg.org/dwc/terms/"'
    about = Metadata(
        xmp=described(
            "<dwc:decimalLatitude>48.1</dwc:decimalLatitude><dwc:rightsHolder>Zoe</dwc:rightsHolder>", space
        )
    )
    assert about.reduced("strip-gps").xmp == described("<dwc:rightsHolder>Zoe</dwc:rightsHolder>", space)


@pytest.mark.parametrize(
    "keywords",
    [
        ["geo:lat=48.137154", "geo:lon=11.576124"],
        ["geo:long=11.576124", "geo:lat=48.137154", "geo:alt=519"],
        ["place:latitude=48.137154", "place:y=11.576124"],
        ["lat=48.137154", "lng=11.576124"],
    ],
)
def test_strip_gps_takes_all_machine_tags_of_a_position(keywords: list[str]) -> None:
    def keyword(text: str) -> bytes:
        return b"\x1c\x02\x19" + struct.pack(">H", len(text)) + text.encode()

    kept = keyword("Melon: 5") + keyword("event:year=2026")
    record = kept + b"".join(map(keyword, keywords))
    about = Metadata(photoshop=photoshop.resource(photoshop.IIM, record)).reduced("strip-gps")
    assert about.photoshop == photoshop.resource(photoshop.IIM, kept)


@pytest.mark.parametrize(
    ("text", "located"),
    [
        ("+48.1372+011.5761/", True),
        ("+48.137154-011.576124+519.000/", True),
        ("geo:48.137154,11.576124", True),
        ('{"lat": 48.137154, "lng": 11.576124}', True),
        ("{&quot;lon&quot;:11.576124}", True),
        ("<x:long>11.576124</x:long>", True),
        ("d:AbsoluteAltitude='+519.2'", True),
        ("48°08'13.8\"N", True),
        ("48° 08\N{PRIME} 13.8\N{DOUBLE PRIME} N", True),
        ("48.137154° N, 11.576124° E", True),
        ("48° 08.231&apos; E", True),
        ("52 deg 30' 36.00\" N, 13 deg 22' 48.00\" E", True),
        ("52 deg 30&#39; 36.00&quot; N, 13 deg 22&#39; 48.00&quot; E", True),
        ("At 52.510000 degrees N, 13.380000 degrees E", True),
        ("taken at 52,30.6N, 13,22.8E", True),
        ("13,22.80000000E", True),
        ("at,52,30,36N,13,22,48E", True),
        ("Altitude: 519 m", True),
        ("Altitude: 519.2m\nIn the snow", True),
        ("Altitude: 519 metres above sea level", True),
        ("altitude=519.2, heading=3", True),
        ("<x:Altitude>519/1</x:Altitude>", True),
        ("Altitude: 8000 Fuß über Null", True),
        ("yaw=3 altitude=519.2 pitch=4", True),
        ("Altitude: 519\N{NO-BREAK SPACE}m", True),
        ("Altitude: 519\N{NARROW NO-BREAK SPACE}m", True),
        ("Altitude: 519.2masl", True),
        ("Altitude: 1.5km", True),
        ("altitude=5.192e2", True),
        ("Altitude : 519 \u043c\u0435\u0442\u0440\u043e\u0432", True),
        ("Altitude: 8000er im Himalaya", False),
        ("Altitude: 4000ers of the Alps", False),
        ("Rooms 7,8,9E and 1,2,3N, for 12,50 EUR; 1,250.5N of force", False),
        ("(c) 2024,12.5.2024, Nadar, tel. 030,22.8 East", False),
        ("90 deg 12 mm N gauge, turned by 45.5 deg East", False),
        ("A long day at high altitude, flat: 20 °C in the North", False),
        ("2026-12-01T10:11:12+01:00/ a melon: 5", False),
        ("cut at 45° 12 mm, platform no. 7", False),
        ("6°2E", False),
        ("(c) Jane Doe, +49-89-1234567/jane@x.de", False),
        ("Jane 212-555-0123/NYC, opening 05-11-2025/evening", False),
        ("https://orcid.org/0000-0002-1825-0097/", False),
        ("https://example.com/licence-10-2025/", False),
    ],
)
def test_coordinates_are_known_by_how_they_are_written(text: str, located: bool) -> None:
    for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
        assert previews.locates(text.encode(encoding)) is located
    keyword = Metadata(parts=((b"tEXt", b"lon\x0011.576124"), (b"tEXt", b"Title\x00A quiet day")))
    assert keyword.reduced("strip-gps").parts == keyword.parts[1:]


def test_strip_gps_says_that_a_packet_is_left_out_that_cannot_be_taken_apart() -> None:
    about = Metadata(xmp=described("<a:b>latitude 52")).reduced("strip-gps")
    assert about.xmp is None
    assert about.left_out == ("an XMP packet: it mentions a position that cannot be taken out of it",)


def test_strip_gps_finds_the_copies_that_photoshop_and_exif_hold() -> None:
    packet = b'<d exif:GPSLatitude="48,12.5N"/>'
    exif = exif_with(1)
    exif[700] = packet
    resources = b"".join(
        b"8BIM" + struct.pack(">HHI", kind, 0, len(body)) + body + bytes(len(body) % 2)
        for kind, body in ((1060, packet), (1058, exif_with(6, gps=True).tobytes()), (1010, b"kept"))
    )
    body = b"Photoshop 3.0\0" + resources
    data = file(scene(), "JPEG", exif=exif, extra=b"\xff\xed" + struct.pack(">H", len(body) + 2) + body)
    assert data.count(b"GPSLatitude") == 2
    picture = taken(data)
    about = taken(encode(picture, picture.rgb, levels=LEVELS, metadata="strip-gps").data).metadata
    assert about.exif.raw(700) is None
    assert about.photoshop == b"8BIM" + struct.pack(">HHI", 1010, 0, 4) + b"kept"


@pytest.mark.parametrize("name", ["drone-dji:GpsLatitude", "d:gps_lat", "xmp:Longitude", "geo:lat"])
def test_strip_gps_finds_the_names_that_drones_and_the_web_give_a_position(name: str) -> None:
    picture = taken(file(scene(), "WEBP", xmp=XMP.replace(b"Caf", f'<d {name}="+52.5163"/>Caf'.encode())))
    assert b"52.5163" in encode(picture, picture.rgb, levels=LEVELS).data
    assert b"52.5163" not in encode(picture, picture.rgb, levels=LEVELS, metadata="strip-gps").data


def test_strip_gps_finds_a_position_in_text() -> None:
    exif = exif_with(6)
    exif[0x010E] = "GPS 52.5163, 13.3777"
    exif[0x9C9C] = "latitude 52.5163".encode("utf-16-le")
    exif[0x8769] = {0x9003: "2024:05:06 07:08:09", 0x9286: b"ASCII\0\0\0gps 52.5163"}
    text = PngInfo()
    text.add_text("exif:GPSLatitude", "52.5163")  # as ImageMagick writes it
    text.add_text("Title", "A quiet day")
    picture = taken(file(scene(), "PNG", exif=exif, pnginfo=text))
    again = taken(encode(picture, picture.rgb, levels=LEVELS, metadata="strip-gps").data)
    assert set(again.metadata.exif.entries) == {0x0112, 0x8298}
    assert set(camera(again)) == {0x9003}
    assert again.metadata.parts == ((b"tEXt", b"Title\0A quiet day"),)


def test_strip_gps_finds_exif_in_the_box_that_photoshop_writes() -> None:
    exif = exif_with(6, gps=True).tobytes()[6:]
    bare = file(scene(), "JPEG2000")
    at = bare.index(b"jp2c") - 4
    written = bytes.fromhex("0537cdab9d0c4431a72afa561f2a113e")
    picture = taken(bare[:at] + box(b"uuid", written + exif) + bare[at:])
    assert (picture.orientation, picture.metadata.parts) == (6, ())
    assert gps(taken(encode(picture, picture.rgb, levels=LEVELS).data)) == gps(picture)
    about = taken(encode(picture, picture.rgb, levels=LEVELS, metadata="strip-gps").data).metadata
    assert 0x8825 not in about.exif.below
    assert about.exif.raw(0x8298) == COPYRIGHT.encode() + b"\0"


@pytest.mark.parametrize("numbers", [(1058,), (1010, 1058, 1059)])
def test_strip_gps_takes_exif_out_of_photoshops_resources_in_a_png(numbers: tuple[int, ...]) -> None:
    exif, bare = exif_with(6, gps=True).tobytes()[6:], file(scene(), "PNG")
    resources = {
        number: photoshop.resource(number, b"kept" if number == 1010 else exif) for number in numbers
    }
    block = b"".join(resources.values())
    picture = taken(bare[:33] + raw_profile("8bim", block.hex()) + bare[33:])
    ((kind, body),) = picture.metadata.parts
    assert previews.unpacked(kind, body) == block
    about = taken(encode(picture, picture.rgb, levels=LEVELS, metadata="strip-gps").data).metadata
    left = [previews.unpacked(*part) for part in about.parts]
    assert left == ([resources[1010]] if 1010 in resources else [])


@pytest.mark.parametrize("before", [b"", b"any bytes before it "])
def test_strip_gps_finds_exif_in_any_part_and_keeps_exif_without_a_position(before: bytes) -> None:
    found = file(scene(), "JPEG2000")
    for gps in (True, False):
        found += box(b"uuid", bytes(range(16)) + before + exif_with(6, gps=gps).tobytes()[6:])
    picture = taken(found)
    assert len(picture.metadata.parts) == 2
    about = taken(encode(picture, picture.rgb, levels=LEVELS, metadata="strip-gps").data).metadata
    assert about.parts == picture.metadata.parts[1:]


def test_strip_gps_keeps_the_names_of_places_in_captions() -> None:
    packet = described("<photoshop:City>Berlin</photoshop:City>")
    city = photoshop.resource(photoshop.IIM, b"\x1c\x02\x5a\0\x06Berlin")
    body = b"Photoshop 3.0\0" + city
    picture = taken(
        file(scene(), "JPEG", xmp=packet, extra=b"\xff\xed" + struct.pack(">H", len(body) + 2) + body)
    )
    about = taken(encode(picture, picture.rgb, levels=LEVELS, metadata="strip-gps").data).metadata
    assert (about.xmp, about.photoshop) == (packet, city)


GML = b'<gml:origin xmlns:gml="http://www.opengis.net/gml">389000 5819000</gml:origin>'


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (b"uuid", bytes.fromhex("b14bf8bd083d4b43a5ae8cd7d5a6ce03") + b"II*\0\x08\0\0\0\0\0"),
        (b"uuid", bytes.fromhex("96a9f1f1dc98402da7aed68e34451809") + b"MSIG/\0"),
        (b"xml ", GML),
    ],
)
def test_a_map_does_not_outlive_its_size_or_strip_gps(kind: bytes, body: bytes) -> None:
    picture = taken(file(scene(), "JPEG2000") + box(b"xml ", b"<a>kept</a>") + box(kind, body))
    assert body in encode(picture, picture.rgb, levels=LEVELS).data
    small = scaled(picture, 32)
    assert small.metadata.parts == ((b"xml ", b"<a>kept</a>"),)
    assert small.metadata.left_out == (
        "the boxes of a map: they hold for the size before the picture was scaled",
    )
    placeless = encode(picture, picture.rgb, levels=LEVELS, metadata="strip-gps").data
    assert body not in placeless
    assert b"<a>kept</a>" in placeless


def test_strip_gps_keeps_xmp_without_a_position() -> None:
    picture = taken(file(scene(), "WEBP", xmp=XMP))
    data = encode(picture, picture.rgb, levels=LEVELS, metadata="strip-gps").data
    assert taken(data).metadata.xmp == XMP


@pytest.mark.parametrize("kind", FORMATS)
def test_strip_all_leaves_orientation_and_profile(kind: str) -> None:
    data = file(scene(), kind, exif=exif_with(6, gps=True), icc_profile=ICC, dpi=(300, 300))
    picture = taken(data)
    written = encode(picture, picture.rgb, levels=LEVELS, metadata="strip-all").data
    about = taken(written).metadata
    assert about.icc == ICC
    assert set(about.exif.entries) <= {0x0112}
    assert about.orientation == 6
    assert not about.exif.below
    assert COPYRIGHT.encode() not in written
    assert about.dpi is None


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_previews_of_the_unprotected_picture_are_dropped(kind: str) -> None:
    thumbnail = file(scene(32, 48), "JPEG")
    exif = exif_with(6)
    exif[0x8769] = {0x9003: "2024:05:06 07:08:09", 0x927C: b"preview" + thumbnail}
    data = file(scene(), kind, exif=with_thumbnail(exif, thumbnail))
    assert opened(data).getexif().get_ifd(ExifTags.IFD.IFD1)
    assert data.count(thumbnail) == 2
    picture = taken(data)
    written = encode(picture, picture.rgb, levels=LEVELS).data
    assert thumbnail not in written
    assert not opened(written).getexif().get_ifd(ExifTags.IFD.IFD1)
    assert camera(taken(written)) == {0x9003: b"2024:05:06 07:08:09\0"}


def test_thumbnails_in_xmp_are_dropped() -> None:
    picture64 = base64.b64encode(file(scene(16, 16), "JPEG"))
    inside = b"<xmp:Thumbnails><rdf:li>" + picture64 + b"</rdf:li></xmp:Thumbnails>"
    tidy = taken(file(scene(), "JPEG", xmp=XMP.replace(b"<rdf:li>", inside + b"<rdf:li>")))
    assert tidy.metadata.xmp == XMP
    hidden = taken(file(scene(), "JPEG", xmp=XMP.replace(b"<rdf:li>", b"<d>" + picture64 + b"</d><rdf:li>")))
    # Everything else is kept, above all the regions of people.
    assert hidden.metadata.xmp == XMP.replace(b"<rdf:li>", b"<d></d><rdf:li>")
    wide = (XMP.replace(b"<rdf:li>", inside)).decode().encode("utf-16")
    assert taken(file(scene(), "JPEG", xmp=wide)).metadata.xmp is None


def test_thumbnails_without_an_end_take_no_quadratic_time() -> None:
    packet = b"<a:Thumbnails" * 4000  # in quadratic time: seconds, and half an hour for a megabyte
    began = time.process_time()
    for end in (b"", b">", b"/>"):
        taken(file(scene(), "JPEG", xmp=packet + end))
    assert time.process_time() - began < 1


def test_previews_in_the_text_of_a_png_are_dropped() -> None:
    thumbnail = file(scene(32, 48), "JPEG")
    resource = b"8BIM" + struct.pack(">HHI", 1036, 0, 28 + len(thumbnail)) + bytes(28) + thumbnail
    text = PngInfo()
    text.add_text("Raw profile type 8bim", f"\n8bim\n{len(resource):8}\n{resource.hex()}\n", zip=True)
    text.add_text("Comment", base64.b64encode(thumbnail).decode(), zip=True)
    text.add_itxt("Note", base64.b64encode(thumbnail).decode(), zip=True)
    text.add_itxt("Title", "A quiet day", zip=True)
    picture = taken(file(scene(), "PNG", pnginfo=text))
    written = opened(encode(picture, picture.rgb, levels=LEVELS).data)
    written.load()
    assert getattr(written, "text", None) == {"Title": "A quiet day"}


def raw_profile(name: str, digits: str) -> bytes:
    """A chunk as ImageMagick writes it."""
    text = f"\n{name}\n{len(digits) // 2:8}\n{digits}\n".encode()
    return chunk(b"zTXt", f"Raw profile type {name}".encode() + b"\0\0" + zlib.compress(text))


def test_exif_and_xmp_in_raw_profiles_of_a_png_are_read() -> None:
    exif, packet, bare = exif_with(6).tobytes(), described("<dc:rights>Zoe</dc:rights>"), file(scene(), "PNG")
    for names, head in ((("exif", "xmp"), b""), (("APP1", "APP1"), b"http://ns.adobe.com/xap/1.0/\0")):
        profiles = zip(names, (exif, head + packet), strict=True)
        chunks = b"".join(raw_profile(name, body.hex()) for name, body in profiles)
        picture = taken(bare[:33] + chunks + bare[33:])
        assert (picture.orientation, picture.metadata.packets) == (6, (packet,))
        again = taken(encode(picture, picture.rgb, levels=LEVELS).data)
        assert (again.orientation, again.metadata.xmp) == (6, packet)
        assert again.metadata.exif.raw(0x8298) == COPYRIGHT.encode() + b"\0"
    own = file(scene(), "PNG", exif=exif_with(3))
    assert taken(own[:33] + raw_profile("exif", exif.hex()) + own[33:]).orientation == 3
    broken = taken(bare[:33] + raw_profile("xmp", "no digits") + bare[33:])
    assert encode(broken, broken.rgb, levels=LEVELS).left_out == (
        "a raw profile in a PNG text: it cannot be read",
    )


def test_xmp_is_read_from_what_imagemagick_makes_of_a_jpeg(tmp_path: Path) -> None:
    source, made = tmp_path / "a.jpg", tmp_path / "a.png"
    packet = described("<dc:rights>Zoe</dc:rights>")
    source.write_bytes(file(scene(), "JPEG", xmp=packet, exif=exif_with(6)))
    subprocess.run([tool("convert"), str(source), str(made)], check=True, timeout=60)
    picture = taken(made.read_bytes())
    assert (picture.orientation, picture.metadata.packets) == (6, (packet,))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0garbage that is no TIFF",
        b"Exif\0\0II*\0\xff\xff\xff\x7f",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(range(200)),
        exif_with(6).tobytes()[:40],
    ],
)
def test_broken_exif_does_not_cost_the_picture(kind: str, exif: bytes) -> None:
    picture = taken(file(scene(), kind, exif=exif))
    assert picture.rgb.size
    assert taken(encode(picture, picture.rgb, levels=LEVELS).data).rgb.shape == picture.rgb.shape


def test_tags_of_a_strange_type_do_not_cost_a_tiff() -> None:
    picture = taken(file(scene(), "WEBP", exif=exif_with(6)))
    exif = picture.metadata.exif.having({0x0131: (3, [6])})  # software named by a number
    strange = replace(picture.metadata, exif=exif)
    picture = replace(picture, metadata=strange)
    again = taken(encode(picture, picture.rgb, levels=LEVELS, format="tiff").data)
    assert again.orientation == 6
    assert np.array_equal(again.rgb, picture.rgb)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_text_in_utf_8_as_of_exif_3_is_kept_and_unknown_types_are_named(kind: str) -> None:
    text = "© Åsa Öberg 2026".encode() + b"\0"
    first = tags.Directory().having({0x8298: (129, text), 0x0131: (129, b"ok\0")})
    camera = tags.Directory().having({0xA433: (129, text), 0xA434: (tags.ASCII, text)})
    block = replace(first, below={tags.CAMERA: camera}).block()
    place = block.index(struct.pack("<HH", 0xA434, tags.ASCII))
    block = block[: place + 2] + struct.pack("<H", 99) + block[place + 4 :]
    picture = taken(file(scene(), kind, exif=b"Exif\0\0" + block))
    encoded = encode(picture, picture.rgb, levels=LEVELS)
    exif = taken(encoded.data).metadata.exif
    assert (exif.entries[0x8298].type, exif.raw(0x8298), exif.raw(0x0131)) == (129, text, b"ok\0")
    assert exif.below[tags.CAMERA].raw(0xA433) == text
    assert encoded.left_out == ("the tags 42036: their types are unknown",)


@pytest.mark.parametrize("sizes", [{0x927C: 70_000}, {0x927C: 40_000, 0x9286: 30_000}])
def test_fault_16_exif_too_long_for_a_jpeg_loses_its_largest_tags_only(sizes: dict[int, int]) -> None:
    exif = exif_with(6)
    exif[0x8769] = {0x9003: "2024:05:06 07:08:09", **{tag: bytes(size) for tag, size in sizes.items()}}
    picture = taken(file(scene(), "PNG", exif=exif))
    encoded = encode(picture, picture.rgb, levels=LEVELS, format="jpeg")
    about = taken(encoded.data).metadata
    assert about.orientation == 6
    assert about.exif.raw(0x8298) == COPYRIGHT.encode() + b"\0"
    assert set(camera(taken(encoded.data))) == {0x9003, *sizes} - {0x927C}
    size = sizes[0x927C]
    assert encoded.left_out == (f"the tag 37500 ({size} bytes): EXIF in a JPEG holds 65533 bytes in all",)


def described(inside: str, attributes: str = "", padding: int = 0) -> bytes:
    """An XMP packet with properties as elements and attributes."""
    spaces = "".join(
        f' xmlns:{prefix}="{uri}"'
        for prefix, uri in {
            "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
            "dc": "http://purl.org/dc/elements/1.1/",
            "photoshop": "http://ns.adobe.com/photoshop/1.0/",
            "cam": "http://ns.google.com/photos/1.0/camera/",
            "box": "http://ns.google.com/photos/1.0/container/",
            "hdrgm": "http://ns.adobe.com/hdr-gain-map/1.0/",
        }.items()
    )
    packet = (
        '<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        f"<rdf:RDF{spaces}>"
        f'<rdf:Description rdf:about=""{attributes}>{inside}</rdf:Description></rdf:RDF></x:xmpmeta>'
    )
    return f'{packet}{" " * padding}<?xpacket end="w"?>'.encode()


def told(data: bytes, tmp_path: Path) -> dict[str, Any]:
    """What exiftool finds in a JPEG."""
    path = tmp_path / "told.jpg"
    path.write_bytes(data)
    command = [tool("exiftool", "-ver"), "-j", "-G1", "-api", "LargeFileSupport=1", str(path)]
    done = subprocess.run(command, stdout=-1, check=True)
    (found,) = json.loads(done.stdout)
    return dict(found)


@pytest.mark.parametrize("as_attribute", [False, True])
def test_fault_16_xmp_too_long_for_a_jpeg_is_split(as_attribute: bool, tmp_path: Path) -> None:
    keywords = "".join(f"<rdf:li>keyword {number}</rdf:li>" for number in range(900))
    history = "a long story " * 8000
    element = "" if as_attribute else f"<photoshop:History>{history}</photoshop:History>"
    attribute = f' photoshop:History="{history}"' if as_attribute else ""
    packet = described(
        f"<dc:rights>Zoe</dc:rights>{element}<dc:subject><rdf:Bag>{keywords}</rdf:Bag></dc:subject>",
        attribute,
    )
    picture = taken(file(scene(), "WEBP", xmp=packet))
    encoded = encode(picture, picture.rgb, levels=LEVELS, format="jpeg")
    assert encoded.left_out == ()
    found = told(encoded.data, tmp_path)
    assert found["XMP-dc:Rights"] == "Zoe"
    assert found["XMP-photoshop:History"].strip() == history.strip()
    assert found["XMP-dc:Subject"][:2] == ["keyword 0", "keyword 1"]
    assert "ExifTool:Warning" not in found
    about = taken(encoded.data).metadata  # and once more, from a JPEG to a JPEG
    assert about.extended is not None
    again = encode(taken(encoded.data), picture.rgb, levels=LEVELS)
    assert taken(again.data).metadata.extended == about.extended
    other = encode(taken(encoded.data), picture.rgb, levels=LEVELS, format="png")
    assert "extended XMP" in other.left_out[0]
    assert b"HasExtendedXMP" not in other.data
    assert b"Zoe" in other.data


def test_fault_16_padding_of_xmp_is_removed_first() -> None:
    picture = taken(file(scene(), "WEBP", xmp=described("<dc:rights>Zoe</dc:rights>", padding=70_000)))
    about = taken(encode(picture, picture.rgb, levels=LEVELS, format="jpeg").data).metadata
    assert b"<dc:rights>Zoe</dc:rights>" in (about.xmp or b"")


def test_fault_16_xmp_in_latin_letters_is_split() -> None:
    head = b'<?xml version="1.0" encoding="ISO-8859-1"?>'
    packet = head + described(f"<dc:rights>Zoe</dc:rights><dc:title>{' caf?: x' * 12_000}</dc:title>")
    main, extended = xmp.split(packet.replace(b"?:", b"\xe9:"), 60_000) or (b"", b"")
    assert b"caf\xe9: x" in main + extended
    for part, text in ((main, "Zoe"), (extended, " café: x" * 12_000)):
        assert text in "".join(ElementTree.fromstring(part).itertext())


def test_fault_16_xmp_that_cannot_be_split_is_named() -> None:
    picture = taken(file(scene(), "WEBP", xmp=b"<no xml " + b"word " * 20_000))
    encoded = encode(picture, picture.rgb, levels=LEVELS, format="jpeg")
    assert encoded.left_out == ("XMP (100008 bytes): it cannot be split for a JPEG",)


@pytest.mark.parametrize("kind", FORMATS)
def test_fault_7_xmp_names_nothing_that_was_removed(kind: str) -> None:
    item = '<rdf:li rdf:parseType="Resource"><box:Item box:Mime="video/mp4" box:Length="1048"/></rdf:li>'
    packet = described(
        f"<dc:rights>Zoe</dc:rights><box:Directory><rdf:Seq>{item}</rdf:Seq></box:Directory>"
        "<hdrgm:GainMapMax>3.5</hdrgm:GainMapMax><hdrgm:OffsetSDR/>",
        ' cam:MotionPhoto="1" cam:MicroVideoOffset="1048" cam:BurstID="7" hdrgm:Version="1.0"',
    )
    options: dict[str, Any] = {"xmp": packet}
    if kind == "PNG":
        options = {"pnginfo": PngInfo()}
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", packet.decode())
    elif kind == "TIFF":
        options = {"tiffinfo": {700: packet}}
    picture = taken(file(scene(), kind, **options))
    encoded = encode(picture, picture.rgb, levels=LEVELS)
    assert taken(encoded.data).metadata.xmp == described("<dc:rights>Zoe</dc:rights>", ' cam:BurstID="7"')
    assert encoded.left_out == (
        "the XMP properties MotionPhoto, MicroVideoOffset, Version, Directory, GainMapMax, OffsetSDR: "
        "they speak of data that are not published",
    )
    assert picture.metadata.packets == (packet,)


@pytest.mark.parametrize("value", ["https://example.org/manifest", "self#jumbf=/c2pa/urn:c2pa:1"])
def test_xmp_does_not_say_where_the_manifest_of_the_original_lies(value: str) -> None:
    """A reader would fetch it, and find that it does not fit the published file."""
    space = ' xmlns:t="http://purl.org/dc/terms/"'
    for inside, attributes in (
        (f"<t:provenance>{value}</t:provenance>", space),
        ("", f'{space} t:provenance="{value}"'),
    ):
        picture = taken(
            file(scene(), "WEBP", xmp=described("<dc:rights>Zoe</dc:rights>" + inside, attributes))
        )
        encoded = encode(picture, picture.rgb, levels=LEVELS)
        written = taken(encoded.data).metadata.xmp or b""
        assert b"provenance" not in written
        assert b"Zoe" in written
        assert encoded.left_out[0].startswith("the XMP properties provenance: ")
    owners = described("<t:provenance>Bequest of Zoe, https://example.org</t:provenance>", space)
    kept = taken(file(scene(), "WEBP", xmp=owners))
    assert encode(kept, kept.rgb, levels=LEVELS).left_out == ()


MANIFEST = struct.pack(">I", 60) + b"jumb" + struct.pack(">I", 40) + b"jumdc2pa" + bytes(40)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "GIF"])
def test_fault_19_a_c2pa_manifest_that_is_left_out_is_named(kind: str) -> None:
    data = file(scene(), kind)
    match kind:
        case "JPEG":
            body = b"JP\0\1\0\0\0\1" + MANIFEST
            signed = data[:2] + b"\xff\xeb" + struct.pack(">H", len(body) + 2) + body + data[2:]
        case "PNG":
            signed = data[:33] + chunk(b"caBX", MANIFEST) + data[33:]
        case "WEBP":
            signed = data[:4] + struct.pack("<I", len(data) + len(MANIFEST)) + data[8:]
            signed += b"C2PA" + struct.pack("<I", len(MANIFEST)) + MANIFEST
        case "TIFF":
            signed = file(scene(), kind, tiffinfo={52545: MANIFEST})
        case "AVIF":
            signed = data + box(
                b"uuid", bytes.fromhex("d8fec3d61b0e483c92975828877ec481") + bytes(4) + MANIFEST
            )
        case _:
            signed = data[:-1] + b"\x21\xff\x0bC2PA_GIF\1\0\0" + bytes([len(MANIFEST)]) + MANIFEST + b"\0;"
    picture = taken(signed)
    encoded = encode(picture, picture.rgb, levels=LEVELS)
    assert MANIFEST not in encoded.data
    assert encoded.left_out == ("the C2PA manifest: its signature does not fit the published file",)
    assert encode(taken(data), picture.rgb, levels=LEVELS).left_out == ()


def test_fill_bytes_between_the_segments_of_a_jpeg_cost_no_metadata() -> None:
    data = file(scene(), "JPEG", comment=b"by Zoe", exif=exif_with(6))
    filled = data.replace(b"\xff\xfe", b"\xff\xff\xff\xff\xfe", 1)
    assert taken(filled).metadata == taken(data).metadata
    assert taken(filled).metadata.parts == ((b"\xfe", b"by Zoe"),)
    assert not containers.is_cut_short(filled, "JPEG")
    assert containers.is_cut_short(filled[:-2], "JPEG")


@pytest.mark.parametrize("target", ["png", "webp", "bmp", "tiff"])
def test_what_another_format_has_no_place_for_is_named(target: str) -> None:
    iptc = b"\x1c\x02\x74\0\x03Zoe"
    body = b"Photoshop 3.0\08BIM" + struct.pack(">HHI", 1028, 0, len(iptc)) + iptc
    options = {"exif": exif_with(6), "xmp": XMP, "comment": b"by Zoe", "dpi": (300, 300)}
    data = file(
        scene(),
        "JPEG",
        extra=b"\xff\xed" + struct.pack(">H", len(body) + 2) + body,
        icc_profile=ICC,
        **options,
    )
    picture = taken(data)
    encoded = encode(picture, picture.rgb, levels=LEVELS, format=target, opaque="keep")
    lost = {
        "tiff": ["a JPEG comment"],
        "bmp": ["a JPEG comment", "the IPTC record", "EXIF", "XMP"],
    }.get(target, ["a JPEG comment", "the IPTC record"])
    assert encoded.left_out == tuple(f"{what}: {target.upper()} has no place for it" for what in lost)
    assert encode(picture, picture.rgb, levels=LEVELS).left_out == ()


def test_the_parts_of_a_png_that_a_jpeg_has_no_place_for_are_named() -> None:
    extra = PngInfo()
    extra.add(b"sRGB", b"\0")  # which all samples without a profile count as
    extra.add(b"gAMA", struct.pack(">I", 45_455))
    extra.add_text("Title", "A quiet day")
    extra.add_text("Author", "Zoe")
    picture = taken(file(scene(), "PNG", pnginfo=extra, dpi=(300, 300)))
    assert encode(picture, picture.rgb, levels=LEVELS, format="jpeg").left_out == (
        "the PNG chunk gAMA: JPEG has no place for it",
        "a PNG text: JPEG has no place for it",
    )


def test_png_keeps_its_colour_space() -> None:
    extra = PngInfo()
    extra.add(b"gAMA", struct.pack(">I", 45_455))
    picture = taken(file(scene(), "PNG", pnginfo=extra))
    written = encode(picture, picture.rgb, levels=LEVELS).data
    assert opened(written).info["gamma"] == pytest.approx(0.45455)


def test_a_grey_profile_is_not_written_into_a_colour_picture() -> None:
    profile = ICC[:16] + b"GRAY" + ICC[20:]
    picture = taken(file(scene()[..., 0], "PNG", icc_profile=profile))
    assert taken(encode(picture, picture.rgb, levels=LEVELS).data).metadata.icc == profile
    assert taken(encode(picture, picture.rgb, levels=LEVELS, format="webp").data).metadata.icc is None


# ---- refusals


def png16(colour_type: int = 2) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    samples = {0: 1, 2: 3}[colour_type]
    rows = b"".join(b"\0" + bytes(4 * samples * 2) for _ in range(4))
    header = struct.pack(">IIBBBBB", 4, 4, 16, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_an_empty_file_is_refused_as_empty() -> None:
    assert refusal(b"").code is Code.EMPTY


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"%PDF-1.7\n", "a PDF document"),
        (b"8BPS\0\1", "a Photoshop document, expected JPEG"),
        (b"FUJIFILMCCD-RAW", "a camera raw file, expected JPEG"),
        (b"\0\0\0\x18ftypcrx \0\0\0\0", "a camera raw file, expected JPEG"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "a video"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
        (b"PK\x03\x04", "a ZIP archive"),
        (b"Dear Sir,\n\nthe picture is late. Gr\xc3\xbc\xc3\x9fe\n", "says .jpg, is text"),
        (b"<!DOCTYPE html><html>404</html>", "an HTML page"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b"\xff\xd8\x00\x12", "is a damaged JPEG, expected JPEG, PNG"),
        (b"\x89PNG\n\x1a\n", "is a damaged PNG, expected JPEG, PNG"),
        (b"\x07\x01\x99\xfe\x00\x12", "unknown content (first bytes 07 01 99 fe 00 12)"),
    ],
)
def test_other_kinds_are_refused_by_name(data: bytes, what: str) -> None:
    error = refusal(data)
    assert error.code is Code.UNSUPPORTED
    assert what in error.message


def test_the_format_is_that_of_the_content_and_not_of_the_name() -> None:
    assert taken(file(scene(), "PNG"), name="liar.jpg").format == "PNG"


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (file(Image.new("F", (9, 9)), "TIFF"), "floating-point"),
        (file(Image.new("LAB", (9, 9)), "TIFF"), "Lab"),
        (file(Image.new("1", (9, 9)), "PNG"), "one bit"),
        (file(Image.new("1", (9, 9)), "TIFF", compression="group4"), "one bit"),
        (file(frames()[0], "TIFF", save_all=True, append_images=frames()[1:]), "pages"),
        (file(frames()[0], "PNG", save_all=True, append_images=frames()[1:]), "frames"),
        (file(frames()[0], "WEBP", save_all=True, append_images=frames()[1:]), "frames"),
        (file(scene(), "TIFF", tiffinfo={254: 1, 330: 8}), "camera raw"),
        (file(scene(), "TIFF", tiffinfo={50706: b"\1\4\0\0"}), "camera raw"),
    ],
)
def test_unsupported_samples_are_refused_with_a_remedy(data: bytes, what: str) -> None:
    error = refusal(data)
    assert error.code is Code.UNSUPPORTED
    assert what in error.message
    assert "; " in error.message


def test_of_an_mpo_the_first_picture_is_taken() -> None:
    data = file(frames()[0], "MPO", save_all=True, append_images=frames()[1:], quality=95)
    picture = taken(data)
    assert picture.format == "JPEG"
    assert psnr(picture.rgb, scene(seed=0)) > 30
    written = encode(picture, picture.rgb, levels=LEVELS)
    assert written.data.count(b"\xff\xd8\xff") == 1


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_without_its_end_is_truncated(progressive: bool) -> None:
    thumbnail = file(scene(32, 48), "JPEG")  # its own end must not be taken for the picture's
    exif = with_thumbnail(exif_with(), thumbnail)
    data = file(scene(200, 200), "JPEG", progressive=progressive, exif=exif)
    half = data[: len(data) // 2]
    for short in (data[:3], data[:-1], half, half + bytes(len(data) - len(half)), data[:-2] + b"\0\0"):
        assert refusal(short).code is Code.TRUNCATED
    assert np.array_equal(taken(data + bytes(100) + b"trailer").rgb, taken(data).rgb)


@pytest.mark.parametrize(
    ("kind", "five_bytes"),
    [("PNG", Code.TRUNCATED), ("TIFF", Code.TRUNCATED), ("WEBP", Code.UNSUPPORTED)],  # RIFF may be a sound
)
def test_half_a_file_is_truncated(kind: str, five_bytes: Code) -> None:
    data = file(scene(100, 100), kind)
    assert refusal(data[: len(data) // 2]).code is Code.TRUNCATED
    assert refusal(data[:5]).code is five_bytes


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_tail_of_zeros_is_truncated(kind: str) -> None:
    data = file(scene(100, 100), kind)
    half = len(data) // 2
    assert refusal(data[:half] + bytes(len(data) - half)).code is Code.TRUNCATED
    assert refusal(bytes(len(data))).code is Code.TRUNCATED


@pytest.mark.parametrize("lossless", [False, True])
def test_a_flat_webp_may_end_in_zeros(lossless: bool) -> None:
    assert taken(file(Image.new("RGB", (900, 900)), "WEBP", lossless=lossless)).rgb.shape == (900, 900, 3)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_picture_of_too_many_pixels_is_refused(kind: str) -> None:
    data = file(scene(), kind)
    pixels = scene().shape[0] * scene().shape[1]
    assert decode(data, name="a", max_pixels=pixels).rgb.size == 3 * pixels
    for limit in (pixels - 1, 10):
        error = refusal(data, max_pixels=limit)
        assert error.code is Code.TOO_LARGE
        assert str(limit) in error.message


def test_a_bomb_is_refused_by_its_header() -> None:
    data = bytearray(png16())
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[24] = 8
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    assert refusal(bytes(data)).code is Code.TOO_LARGE


def test_pillows_own_limit_neither_applies_nor_is_changed() -> None:
    limit = Image.MAX_IMAGE_PIXELS
    data = file(scene(), "PNG")
    refusal(data, max_pixels=10)
    taken(data)
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("kind", FORMATS)
def test_damage_is_always_a_refusal_and_no_other_error(kind: str) -> None:
    good = file(scene(), kind, exif=exif_with(6, gps=True), icc_profile=ICC)
    random = np.random.default_rng(5)
    refused, rounds = 0, 60
    for _ in range(rounds):
        bad = np.frombuffer(good, np.uint8).copy()
        bad[random.integers(4, len(bad), 8)] = random.integers(0, 256, 8)
        try:
            picture = taken(bad.tobytes())
        except InputError:
            refused += 1
            continue
        encode(picture, picture.rgb, levels=LEVELS, format="png")
    assert refused
    assert refused < rounds or kind == "PNG", "which has checksums of nearly all"


def test_a_damaged_png_is_unreadable() -> None:
    data = bytearray(file(scene(), "PNG"))
    data[29] ^= 1  # the header's checksum
    assert refusal(bytes(data)).code is Code.UNREADABLE


# ---- files that are complete, though something about them is odd


def odd_next_page(at: int) -> bytes:
    data = bytearray(file(scene(), "TIFF"))
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + 12 * count, at)
    return bytes(data)


PLAIN = file(scene(), "PNG")
BITMAP = file(scene(), "BMP")
WHOLE: dict[str, bytes] = {
    "PNG with a wrong checksum of text": PLAIN[:33] + chunk(b"tEXt", b"a\0b", flaw=1) + PLAIN[33:],
    "PNG with a wrong checksum of its time": PLAIN[:33] + chunk(b"tIME", bytes(7), flaw=9) + PLAIN[33:],
    "PNG with more text than Pillow takes": PLAIN[:33]
    + chunk(b"zTXt", b"a\0\0" + zlib.compress(b"word " * 230_000))
    + PLAIN[33:],
    "GIF with a line's end behind it": file(scene(), "GIF") + b"\r\n",
    "GIF with bytes behind it": file(scene(), "GIF") + b"any bytes",
    "AVIF with bytes behind it": file(scene(), "AVIF") + b"any bytes and more",
    "AVIF with a line's end behind it": file(scene(), "AVIF") + b"\r\n",
    "BMP that says it is longer": BITMAP[:2] + struct.pack("<I", len(BITMAP) + 2) + BITMAP[6:],
    "BMP that says it is shorter": BITMAP[:2] + struct.pack("<I", len(BITMAP) - 2) + BITMAP[6:],
    "TIFF whose next page lies outside": odd_next_page(0xDEADBE),
    "JPEG 2000 with a box behind its pixels": file(scene(), "JPEG2000")
    + box(b"xml ", b"<a>" + b"b " * 9000 + b"</a>"),
    "JPEG 2000 with several boxes behind": file(scene(), "JPEG2000") + 9 * box(b"uuid", bytes(9000)),
}


@pytest.mark.parametrize("what", WHOLE)
def test_faults_2_and_10_whole_files_are_read(what: str) -> None:
    picture = taken(WHOLE[what])
    plain = taken(file(scene(), "JPEG2000" if "2000" in what else picture.format))
    assert np.array_equal(picture.rgb, plain.rgb)
    assert taken(encode(picture, picture.rgb, levels=LEVELS).data).rgb.shape == plain.rgb.shape
    if "checksum" in what:
        assert "its checksum is wrong" in picture.metadata.left_out[0]


def test_fault_2_xmp_behind_the_codestream_is_kept() -> None:
    uuid = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
    picture = taken(file(scene(), "JPEG2000") + box(b"uuid", uuid + XMP + b" " * 9000))
    assert XMP in encode(picture, picture.rgb, levels=LEVELS).data


@pytest.mark.parametrize(
    "data",
    [
        file(scene(), "GIF")[:-1],
        file(scene(), "AVIF")[:-9],
        BITMAP[:-1],
        WHOLE["JPEG 2000 with a box behind its pixels"][:-1],
        odd_next_page(0xDEADBE) + bytes(range(40)),
    ],
)
def test_faults_2_and_10_incomplete_files_are_truncated_still(data: bytes) -> None:
    assert refusal(data).code is Code.TRUNCATED


def other_frame(marker: int, precision: int = 8, height: int | None = None) -> bytes:
    data = bytearray(file(scene(), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 1], data[at + 4] = marker, precision
    if height is not None:
        data[at + 5 : at + 7] = height.to_bytes(2, "big")
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (other_frame(0xC1, 12), "has 12 bits per sample"),
        (other_frame(0xC3), "is a lossless or hierarchical JPEG"),
        (other_frame(0xC0, height=0), "has its height behind its pixels"),
        (PLAIN[:8] + chunk(b"CgBI", bytes(4)) + PLAIN[8:], "is a PNG that Xcode has rewritten"),
        (file(scene(), "TIFF", tiffinfo={254: 1}), "has a thumbnail as its first page"),
    ],
)
def test_fault_10_unsupported_kinds_are_refused_by_name(data: bytes, what: str) -> None:
    error = refusal(data)
    assert (error.code, what in error.message) == (Code.UNSUPPORTED, True)


@pytest.mark.parametrize("kind", [*FORMATS, "GIF", "BMP", "AVIF", "JPEG2000"])
def test_fault_10_no_message_names_an_object(kind: str) -> None:
    data = file(scene(), kind)
    for at in range(8, len(data), max(1, len(data) // 60)):
        with contextlib.suppress(InputError):
            taken(data[:at] + bytes(value ^ 0xA5 for value in data[at : at + 6]) + data[at + 6 :])
            continue
        message = refusal(
            data[:at] + bytes(value ^ 0xA5 for value in data[at : at + 6]) + data[at + 6 :]
        ).message
        assert " object at 0x" not in message
        assert "BytesIO" not in message


# ---- masks


SHAPE = np.zeros((20, 30), np.uint8)
SHAPE[5:12, 8:25] = 255
SHAPE[0, 0], SHAPE[0, 1] = 128, 127


def masked(data: bytes) -> NDArray[np.bool_]:
    return marked(decode_painting(data, name="a.mask.png", max_pixels=LIMIT), Sidecars())


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_masks_of_every_mode(mode: str) -> None:
    image = Image.fromarray(SHAPE).convert(mode, dither=Image.Dither.NONE)
    mask = masked(file(image, "PNG"))
    assert mask.dtype == np.bool_
    assert np.array_equal(mask, SHAPE >= 128)


def test_the_alpha_of_a_mask_counts_only_if_its_colours_are_all_alike() -> None:
    painted = np.dstack([np.zeros_like(SHAPE)] * 3 + [SHAPE])
    assert np.array_equal(masked(file(painted, "PNG")), SHAPE >= 128)
    two_colours = np.dstack([SHAPE] * 3 + [np.random.default_rng(0).integers(0, 256, SHAPE.shape)])
    assert np.array_equal(masked(file(two_colours.astype(np.uint8), "PNG")), SHAPE >= 128)
    black = np.dstack([np.zeros_like(SHAPE)] * 3 + [np.full_like(SHAPE, 255)])
    assert not masked(file(black, "PNG")).any()


@pytest.mark.parametrize("protected", ["white", "black"])
@pytest.mark.parametrize("hidden", [(0, 0, 0), (255, 255, 255), (12, 200, 3)])
@pytest.mark.parametrize("paint", [[(255, 0, 0)], [(255, 255, 255)], [(250, 0, 0), (0, 0, 250), (0, 0, 0)]])
def test_fault_5_fully_transparent_pixels_do_not_count_as_painted(
    paint: list[tuple[int, int, int]], hidden: tuple[int, int, int], protected: Literal["white", "black"]
) -> None:
    painted = np.empty((20, 30, 4), np.uint8)
    painted[:] = (*hidden, 0)
    for number, colour in enumerate(paint):
        painted[3 + 5 * number : 7 + 5 * number, 8:25] = (*colour, 255)
    expected = painted[..., 3] > 0
    if len(paint) > 1:  # several colours: those count that are light or dark enough
        expected &= (painted[..., :3].max(axis=2) < 128) == (protected == "black")
    decoded = decode_painting(file(painted, "PNG"), name="a.mask.png", max_pixels=LIMIT)
    assert np.array_equal(marked(decoded, Sidecars(protected=protected)), expected)


def test_fault_5_a_mask_that_is_transparent_throughout_marks_nothing() -> None:
    assert not masked(file(np.full((20, 30, 4), (255, 255, 255, 0), np.uint8), "PNG")).any()


@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_mask_is_turned_by_its_own_orientation(kind: str) -> None:
    data = file(Image.fromarray(SHAPE).convert("RGB"), kind, exif=exif_with(6))
    assert np.array_equal(masked(data), np.rot90(SHAPE >= 128, -1))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no mask",
        file(SHAPE, "PNG")[:-12],
        file(np.zeros((1001, 1000), np.uint8), "PNG"),
        file(Image.new("CMYK", (9, 9)), "JPEG"),
    ],
)
def test_a_mask_that_cannot_be_read(data: bytes) -> None:
    with pytest.raises(InputError, match=r"mask a\.mask\.png") as caught:
        masked(data)
    assert caught.value.code is Code.MASK_UNREADABLE


# ---- measures


@pytest.mark.parametrize("depth", [8, 16])
def test_a_change_of_alpha_counts(depth: int) -> None:
    pixels = np.dstack([scene(), np.full(scene().shape[:2], 255, np.uint8)])
    picture = taken(file(pixels, "PNG"))
    assert picture.alpha is not None
    if depth == 16:
        wide = [plane.astype(np.uint16) * 257 for plane in (picture.samples, picture.alpha)]
        picture = replace(picture, samples=wide[0], alpha=wide[1])
    assert picture.alpha is not None
    clearer = picture.alpha.copy()
    clearer[3, 4] -= 3 * (257 if depth == 16 else 1)
    assert largest_change(picture, replace(picture, alpha=clearer)) == 3
    assert largest_change(replace(picture, alpha=None), replace(picture, alpha=clearer)) == 3
    assert largest_change(replace(picture, alpha=None), picture) == 0


def test_psnr_and_largest_change_are_measured() -> None:
    a = scene()
    b = a.copy()
    b[0, 0, 0] ^= 4
    assert (max_change(a, a), max_change(a, b)) == (0, 4)
    assert psnr(a, a) == float("inf")
    assert psnr(np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)) == pytest.approx(0)
