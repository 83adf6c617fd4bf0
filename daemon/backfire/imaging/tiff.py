"""TIFF: checks of a file, reading of 16-bit samples, and a writer that keeps every tag it is given.

Pillow cannot write 16-bit colour, and neither it nor tifffile writes the directories of EXIF into a
compressed file. Sources: TIFF 6.0, and its supplement of 2002 for Deflate.
"""

from __future__ import annotations

import io
import logging
import zlib
from collections.abc import Callable

import imagecodecs
import numpy as np
import tifffile

from backfire.errors import Code, InputError
from backfire.imaging import formats, refusals, tags
from backfire.imaging.colour import Samples
from backfire.imaging.metadata import ICC, PHOTOSHOP, STORAGE, SUBFILES, XMP, Metadata
from backfire.imaging.tags import BYTE, LONG, LONG8, SHORT, UNDEFINED, Directory

# Everything that tifffile logs is raised as an error here.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)

STRIP = 1 << 20
"""The bytes of samples in a strip before compression."""

DEEP_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""By number of channels with alpha: the mode by Pillow's name."""

NAMELESS = (
    "has a channel beyond colour that it does not call alpha",
    "save it without that channel, or as unassociated alpha",
)
"""What is said of it, and the remedy."""

MOST_CHANNELS = 4
"""The most that can be understood: RGB and alpha, or CMYK without it."""

UNREAD = {34712: "JPEG 2000", 34887: "LERC", 50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL"}
"""By the value of its tag: the compressions in which Pillow, which reads 8 bits, takes a TIFF for damaged."""

CLASSIC_LIMIT = (1 << 32) - (1 << 24)


def _packed(strip: bytes, row: int) -> bytes:
    """PackBits, a row of so many bytes at a time, as TIFF 6.0 (section 9) demands: some read row by row."""
    return b"".join(
        bytes(imagecodecs.packbits_encode(strip[at : at + row])) for at in range(0, len(strip), row)
    )


COMPRESSORS: dict[str, tuple[int, bool, Callable[[bytes, int], bytes]]] = {
    "raw": (1, False, lambda strip, _: strip),
    "tiff_lzw": (5, True, lambda strip, _: bytes(imagecodecs.lzw_encode(strip))),
    "tiff_adobe_deflate": (8, True, lambda strip, _: zlib.compress(strip, 6)),
    "packbits": (32773, False, _packed),
    "tiff_deflate": (32946, True, lambda strip, _: zlib.compress(strip, 6)),
    "lzma": (34925, True, lambda strip, _: bytes(imagecodecs.lzma_encode(strip))),
    "zstd": (50000, True, lambda strip, _: bytes(imagecodecs.zstd_encode(strip))),
}
"""By name: the tag value, whether the horizontal predictor helps, and the function that compresses a strip
whose rows have a number of bytes. All are lossless."""


def written(bands: Samples, about: Metadata, *, compression: str, alpha: bool, big: bool = False) -> bytes:
    """A TIFF file of one page.

    Args:
        bands: H,W,C uint8 or uint16 as they are to be stored, with alpha last if `alpha` is true.
        compression: one of `COMPRESSORS`.
        big: write 64-bit offsets, which is also done if the samples need them.
    """
    exif = about.exif
    big = big or bands.nbytes > CLASSIC_LIMIT
    code, predicted, pack = COMPRESSORS[compression]
    height, width, channels = bands.shape
    row = bands.nbytes // height
    rows = max(1, STRIP // row)
    file = bytearray(16 if big else 8)
    offsets, sizes = [], []
    for top in range(0, height, rows):
        strip = pack(_bytes(bands[top : top + rows], exif.order, predicted=predicted), row)
        file += b"\0" * (len(file) % 2)
        offsets.append(len(file))
        sizes.append(len(strip))
        file += strip
    file += b"\0" * (len(file) % 2)
    wide = LONG8 if big else LONG
    colours = channels - alpha
    storage = {
        256: (LONG, [width]),
        257: (LONG, [height]),
        258: (SHORT, [bands.dtype.itemsize * 8] * channels),
        259: (SHORT, [code]),
        262: (SHORT, [{1: 1, 3: 2, 4: 5}[colours]]),
        273: (wide, offsets),
        277: (SHORT, [channels]),
        278: (LONG, [rows]),
        279: (wide, sizes),
        284: (SHORT, [1]),
    }
    if predicted:
        storage[317] = (SHORT, [2])
    if alpha:
        storage[338] = (SHORT, [2])  # unassociated
    tree = _described(exif if big else exif.classic(), about).having(storage)
    first = len(file)
    file += tags.serialised(tree, first, big=big)
    head = tags.header(exif.order, first, big=big)
    file[: len(head)] = head
    return bytes(file)


def _described(exif: Directory, about: Metadata) -> Directory:
    """The tree with profile, XMP, IPTC and Photoshop's resources, which a TIFF stores as tags."""
    blocks = ((XMP, BYTE, about.xmp), (PHOTOSHOP, BYTE, about.photoshop), (ICC, UNDEFINED, about.icc))
    tree = exif.without(STORAGE)
    return tree.having({tag: (kind, block) for tag, kind, block in blocks if block is not None})


def _bytes(strip: Samples, order: str, *, predicted: bool) -> bytes:
    if predicted:
        strip = strip.copy()
        strip[:, 1:] -= strip[:, :-1].copy()
    return np.ascontiguousarray(strip).astype(f"{order}u{strip.dtype.itemsize}", copy=False).tobytes()


def check(first: Directory, data: bytes, name: str, max_pixels: int) -> int:
    """The bits per sample, 8 or 16, of a page; refuses camera raw files, too large and incomplete pages."""
    # Pillow would decode the small preview that comes first in a camera raw file.
    small = bool(first.number(254) & 1)
    if 50706 in first.entries or data[8:10] == b"CR" or (small and SUBFILES in first.entries):
        raise InputError(
            Code.UNSUPPORTED,
            f"{name}: is {formats.RAW}, expected a picture; {formats.REMEDIES[formats.RAW]}",
        )
    if small:
        what, remedy = "has a thumbnail as its first page", "save it again with the picture first"
        raise refusals.unsupported(name, what, remedy, expected="the picture")
    width, height = first.number(256), first.number(257)
    if width * height > max_pixels:
        raise refusals.too_large(name, f"image size ({width * height} pixels)", max_pixels)
    tile = first.number(322) * first.number(323)
    if tile > max(4 * width * height, 1 << 22):
        raise refusals.damaged(name, "TIFF", f"tiles of {tile} pixels in a picture of {width}x{height}")
    depths = set(first.numbers(258) or (1,))
    if 3 in first.numbers(339):
        raise refusals.unsupported(
            name, f"has floating-point samples of {max(depths)} bits", "save it with 8 or 16 bits per sample"
        )
    if 2 in first.numbers(339):
        raise refusals.unsupported(name, "has signed samples", "save it with 8 or 16 bits per sample")
    if len(depths) > 1 or max(depths) not in (1, 2, 4, 8, 16):
        raise refusals.odd_depth(name, max(depths))
    if first.number(277, 1) > MOST_CHANNELS:  # before anything is decoded
        channels = f"has {max(depths)} bits and {first.number(277)} channels"
        remedy = "save it without those beyond colour and alpha, of CMYK without alpha, too"
        raise refusals.unsupported(name, channels, remedy)
    if max(depths) < 16 and (method := UNREAD.get(first.number(259, 1))):
        what = f"is a TIFF of 8 bits compressed as {method}"
        raise refusals.unsupported(name, what, "save it as one of these", expected="LZW, ZIP or none")
    _check_pieces(first, len(data), name)
    return max(depths)


def _check_pieces(first: Directory, size: int, name: str) -> None:
    """Refuse a page with a missing strip or tile, which readers would silently fill with black."""
    width, height = first.number(256), first.number(257)
    tiled = 324 in first.entries
    offsets, sizes = (first.numbers(tag) for tag in ((324, 325) if tiled else (273, 279)))
    across, down = (first.number(322), first.number(323)) if tiled else (width, first.number(278, height))
    if min(width, height, across, down) < 1:
        raise refusals.damaged(name, "TIFF", f"{width}x{height} pixels in pieces of {across}x{down}")
    planes = first.number(277, 1) if first.number(284, 1) == 2 else 1
    expected = -(-width // across) * -(-height // min(down, height)) * planes
    if min(len(offsets), len(sizes)) < expected or not all(sizes[:expected]):
        raise refusals.damaged(name, "TIFF", f"{min(len(offsets), len(sizes))} of {expected} pieces")
    if any(offset + piece > size for offset, piece in zip(offsets, sizes, strict=False)):
        raise refusals.cut_short(name, "the TIFF")


def deep_samples(data: bytes, name: str) -> tuple[Samples, str, bool]:
    """The samples H,W,C uint16 of the first page, its mode by Pillow's name, and whether alpha comes last."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        bands = np.atleast_3d(page.asarray(maxworkers=1))
        if page.planarconfig == 2 and page.samplesperpixel > 1:
            bands = bands.transpose(1, 2, 0)
        if bands.shape[:2] != (page.imagelength, page.imagewidth):
            raise refusals.damaged(name, "TIFF", f"samples of shape {bands.shape}")
        extra, photometric = tuple(page.extrasamples), int(page.photometric)
    colours = {0: 1, 1: 1, 2: 3, 5: 4}.get(photometric)
    if colours in (1, 3) and not extra and bands.shape[2] == colours + 1:
        raise refusals.unsupported(name, *NAMELESS)
    if colours is None or bands.shape[2] != colours + len(extra) or len(extra) > (colours < 4):
        raise refusals.unsupported(
            name, f"has 16 bits and an unusual make (photometric {photometric})", "save it as 16-bit RGB"
        )
    if extra and int(extra[0]) == 0:
        raise refusals.unsupported(name, *NAMELESS)
    if extra and int(extra[0]) != 2:
        raise refusals.unsupported(
            name, "has 16 bits and premultiplied alpha", "save it with unassociated alpha"
        )
    bands = np.ascontiguousarray(bands, dtype=np.uint16)
    if photometric == 0:  # 0 means white
        bands[..., 0] = 65535 - bands[..., 0]
    mode = "CMYK" if colours == 4 else DEEP_MODES[bands.shape[2]]
    return bands, mode, bool(extra)
