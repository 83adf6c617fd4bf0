"""Pictures scaled down before they are protected: light, alpha, depth, orientation, metadata."""

from __future__ import annotations

import io
import struct
from dataclasses import replace

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from backfire.imaging import Picture, decode, encode, scaled
from backfire.imaging.tags import CAMERA
from backfire.imaging.tone_curves import curves_of
from tests.support import profiles
from tests.support.pictures import encoded, photo

LIMIT = 4_000_000
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:exif="http://ns.adobe.com/exif/1.0/" '
    b'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/" '
    b'exif:PixelXDimension="640" dc:identifier="640">'
    b"<exif:PixelYDimension>480</exif:PixelYDimension><tiff:ImageWidth>640</tiff:ImageWidth>"
    b"</rdf:Description></rdf:RDF></x:xmpmeta>"
)


def opened(data: bytes) -> Picture:
    return decode(data, name="a", max_pixels=LIMIT)


def written(picture: Picture, **options: str) -> bytes:
    return encode(picture, picture.rgb, levels=6, **options).data


def stripes(level: int = 255) -> Image.Image:
    """Rows of black and white by turns, 256 wide and high."""
    rows = np.zeros((256, 256, 3), np.uint8)
    rows[::2] = level
    return Image.fromarray(rows)


def test_a_picture_that_is_small_enough_is_returned_as_it_is() -> None:
    picture = opened(encoded(photo((160, 128))))
    assert scaled(picture, None) is picture
    assert scaled(picture, 160) is picture
    assert scaled(picture, 4000) is picture


def test_the_longer_side_is_as_asked_and_the_other_follows() -> None:
    assert scaled(opened(encoded(photo((160, 128)))), 100).rgb.shape == (80, 100, 3)
    assert scaled(opened(encoded(photo((128, 160)))), 100).rgb.shape == (100, 80, 3)
    assert scaled(opened(encoded(Image.new("RGB", (300, 2)))), 64).rgb.shape == (1, 64, 3)


@pytest.mark.parametrize(
    ("icc", "mean"),
    [(None, 188), (profiles.rgb(gamma=2.2), 186), (profiles.rgb(gamma=1.0), 128)],
    ids=["sRGB", "gamma 2.2", "linear"],
)
def test_light_is_averaged_and_not_the_samples_that_stand_for_it(icc: bytes | None, mean: int) -> None:
    """Half black and half white give half the light: 188 in sRGB, 255 * 0.5 ** (1 / 2.2) under gamma 2.2."""
    small = scaled(opened(encoded(stripes(), icc_profile=icc)), 64)
    assert np.abs(small.samples[8:-8].astype(int) - mean).max() <= 1


def test_grey_follows_its_own_curve_and_ink_is_averaged_as_it_is_stored() -> None:
    grey = scaled(opened(encoded(stripes().convert("L"), icc_profile=profiles.grey(1.6))), 64)
    assert np.abs(grey.samples[8:-8].astype(int) - round(255 * 0.5 ** (1 / 1.6))).max() <= 1
    bands = np.repeat(np.asarray(stripes())[..., :1], 4, axis=2)
    ink = Image.frombytes("CMYK", (256, 256), bands.tobytes())
    cmyk = scaled(opened(encoded(ink, "TIFF", icc_profile=profiles.cmyk())), 64)
    assert cmyk.samples.shape == (64, 64, 4)
    assert np.abs(cmyk.samples[8:-8].astype(int) - 128).max() <= 1


def test_parametric_and_tabulated_curves_are_read() -> None:
    plain = opened(encoded(photo((64, 64)), icc_profile=profiles.rgb())).metadata
    (gamma, *_) = curves_of(plain, 3) or []
    assert gamma[32768] == pytest.approx(0.5**2.2, abs=1e-3)
    body = b"para\0\0\0\0" + struct.pack(">HH5i", 3, 0, *(round(one * 65536) for one in _SRGB))
    icc = bytearray(profiles.rgb())
    at = len(icc)  # longer than the one it stands in for, it is put behind the profile
    for name in (b"rTRC", b"gTRC", b"bTRC"):
        struct.pack_into(">II", icc, icc.index(name) + 4, at, len(body))
    (curve, *_) = curves_of(replace(plain, icc=bytes(icc) + body), 3) or []
    assert curve[188 * 257] == pytest.approx(0.5029, abs=1e-3)
    assert curve[257] == pytest.approx(1 / 255 / 12.92, rel=1e-3)
    table = b"curv\0\0\0\0" + struct.pack(">I3H", 3, 0, 16384, 65535)
    for name in (b"rTRC", b"gTRC", b"bTRC"):
        struct.pack_into(">II", icc, icc.index(name) + 4, at, len(table))
    (curve, *_) = curves_of(replace(plain, icc=bytes(icc) + table), 3) or []
    assert curve[32768] == pytest.approx(0.25, abs=1e-3)


_SRGB = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def test_a_broken_profile_does_not_stop_the_work() -> None:
    about = opened(encoded(photo((64, 64)))).metadata
    for icc in (profiles.rgb()[:140], profiles.rgb().replace(b"curv", b"junk")):
        assert curves_of(replace(about, icc=icc), 3) is None
    for icc in (b"", bytes(200)):
        assert len(curves_of(replace(about, icc=icc), 3) or []) == 3, "as sRGB"


def test_what_lies_under_transparency_does_not_bleed_into_what_is_seen() -> None:
    rgba = np.zeros((128, 128, 4), np.uint8)
    rgba[..., 0], rgba[..., 3] = 255, 255
    rgba[:, 1::2] = (0, 255, 0, 0)  # green that nobody sees
    small = scaled(opened(encoded(Image.fromarray(rgba))), 64)
    assert small.alpha is not None
    assert np.abs(small.alpha[4:-4, 4:-4].astype(int) - 128).max() <= 2
    assert (small.rgb[4:-4, 4:-4, 0] > 250).all()
    assert (small.rgb[4:-4, 4:-4, 1] < 5).all()
    again = opened(written(small))
    assert again.alpha is not None
    np.testing.assert_array_equal(again.alpha, small.alpha)


@pytest.mark.parametrize(("kind", "depth"), [("PNG", 16), ("TIFF", 16), ("JPEG2000", 12), ("AVIF", 10)])
def test_the_depth_stays_and_writing_adds_nothing(kind: str, depth: int) -> None:
    ramp = np.linspace(0, (1 << depth) - 1, 256)[None, :, None]
    deep = np.broadcast_to(ramp, (128, 256, 3)).astype(np.uint16).copy()
    data = {
        "PNG": lambda: imagecodecs.png_encode(deep),
        "TIFF": lambda: imagecodecs.png_encode(deep),
        "JPEG2000": lambda: imagecodecs.jpeg2k_encode(deep, level=0, bitspersample=depth, reversible=True),
        "AVIF": lambda: imagecodecs.avif_encode(deep, level=100, bitspersample=depth),
    }[kind]()
    small = scaled(opened(bytes(data)), 128)
    again = opened(written(small, format="tiff") if kind == "TIFF" else written(small))
    assert (small.depth, again.depth, again.format) == (depth, depth, kind)
    assert (again.samples == small.samples).all()
    assert len(np.unique(small.samples)) > 120
    if depth == 16:
        assert (small.samples % 257 != 0).any(), "the low bits are there"


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_tags_that_give_the_size_are_right_in_every_orientation(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    if kind != "TIFF":  # which says so of its own pixels
        exif[0x0100], exif[0x0101] = 640, 480
    exif[0x8769] = {0xA002: 640, 0xA003: 480, 0x9214: (320, 240, 100, 60)}
    data = encoded(photo((320, 240)).resize((640, 480)), kind, exif=exif.tobytes())
    small = scaled(opened(data), 320)
    file = written(small)
    again = opened(file)
    upright = (320, 240) if orientation < 5 else (240, 320)
    assert again.rgb.shape[1::-1] == upright
    assert np.abs(again.rgb.astype(int) - small.rgb).max() <= 6
    camera = again.metadata.exif.below[CAMERA]
    assert (camera.number(0xA002), camera.number(0xA003)) == (320, 240), "they count as stored"
    assert camera.numbers(0x9214) == (160, 120, 50, 30)
    if kind != "TIFF":
        first = again.metadata.exif
        assert (first.number(0x0100), first.number(0x0101)) == (320, 240)
    assert again.orientation == orientation


def test_xmp_gives_the_size_of_what_is_written_and_keeps_all_else() -> None:
    data = encoded(photo((320, 240)).resize((640, 480)), "JPEG", xmp=XMP)
    again = opened(written(scaled(opened(data), 320)))
    packet = again.metadata.xmp or b""
    assert b'exif:PixelXDimension="320"' in packet
    assert b"<exif:PixelYDimension>240<" in packet
    assert b"<tiff:ImageWidth>320<" in packet
    assert b'dc:identifier="640"' in packet
    assert opened(written(opened(data))).metadata.xmp == XMP, (
        "of a picture that is not scaled nothing changes"
    )


def test_profile_copyright_and_resolution_stay() -> None:
    exif = Image.Exif()
    exif[0x8298] = b"Zoe"
    data = encoded(photo((160, 128)), "JPEG", exif=exif.tobytes(), icc_profile=profiles.rgb(), dpi=(300, 300))
    again = opened(written(scaled(opened(data), 80)))
    assert again.metadata.icc == profiles.rgb()
    assert again.metadata.exif.raw(0x8298) is not None
    assert again.metadata.dpi == (300, 300)


def test_tags_of_a_map_are_left_out_and_said() -> None:
    picture = opened(encoded(photo((160, 128)), "TIFF", tiffinfo={33922: (0.0, 0.0, 0.0, 1.0, 2.0, 3.0)}))
    assert 33922 in picture.metadata.exif.entries
    small = scaled(picture, 80)
    assert 33922 not in small.metadata.exif.entries
    assert "the GeoTIFF tags: they hold for the size before the picture was scaled" in small.metadata.left_out


def test_a_small_jpeg_keeps_the_chroma_that_it_was_coded_with_again() -> None:
    data = encoded(photo((320, 256)), "JPEG", quality=80)
    picture = opened(data)
    assert scaled(picture, 160).jpeg is None
    small = scaled(picture, 160, jpeg="small")
    assert small.jpeg is not None
    with Image.open(io.BytesIO(small.jpeg)) as coded, Image.open(io.BytesIO(data)) as came:
        assert coded.quantization == came.quantization  # type: ignore[attr-defined]
    moved = np.clip(small.rgb.astype(int) + 4, 0, 255).astype(np.uint8)
    made = encode(small, moved, levels=6, jpeg="small")
    assert made.how.startswith("JPEG quality 100 4:2:0")
    strong = encode(small, moved, levels=6)
    assert len(made.data) < 0.7 * len(strong.data)
    came_out = opened(made.data).rgb.astype(int) - small.rgb
    assert np.abs(came_out).max() <= 6
    assert came_out.mean() > 2
