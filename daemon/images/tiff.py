"""A TIFF writer that carries every tag it is given: 8 and 16 bits, grey, RGB, CMYK, alpha, BigTIFF.

Pillow writes no 16-bit colour, and neither it nor tifffile carries the directories of EXIF into a
compressed file. Source: TIFF 6.0; the supplement of 2002 for Deflate.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import imagecodecs
import numpy as np

from daemon.images import tags
from daemon.images.colour import Samples
from daemon.images.metadata import ICC, PHOTOSHOP, STORAGE, XMP, Metadata
from daemon.images.tags import BYTE, LONG, LONG8, SHORT, UNDEFINED, Directory

STRIP = 1 << 20
"""Bytes of samples in a strip, before compression."""

CLASSIC_LIMIT = (1 << 32) - (1 << 24)


def _packed(rows: bytes) -> bytes:
    return bytes(imagecodecs.packbits_encode(rows))


COMPRESSORS: dict[str, tuple[int, bool, Callable[[bytes], bytes]]] = {
    "raw": (1, False, bytes),
    "tiff_lzw": (5, True, lambda rows: bytes(imagecodecs.lzw_encode(rows))),
    "tiff_adobe_deflate": (8, True, lambda rows: zlib.compress(rows, 6)),
    "packbits": (32773, False, _packed),
    "tiff_deflate": (32946, True, lambda rows: zlib.compress(rows, 6)),
    "lzma": (34925, True, lambda rows: bytes(imagecodecs.lzma_encode(rows))),
    "zstd": (50000, True, lambda rows: bytes(imagecodecs.zstd_encode(rows))),
}
"""Name -> tag value, whether differences of neighbours help, how a strip is packed. All lossless."""


def written(bands: Samples, about: Metadata, *, compression: str, alpha: bool, big: bool = False) -> bytes:
    """A TIFF file of one page.

    Args:
        bands: H,W,C uint8 or uint16 as they are to be stored; alpha last where `alpha` says so.
        compression: one of `COMPRESSORS`.
        big: write 64-bit offsets; done anyway where the samples need them.
    """
    exif = about.exif
    big = big or bands.nbytes > CLASSIC_LIMIT
    code, predicted, pack = COMPRESSORS[compression]
    height, width, channels = bands.shape
    rows = max(1, STRIP // (bands.nbytes // height))
    file = bytearray(16 if big else 8)
    offsets, sizes = [], []
    for top in range(0, height, rows):
        strip = pack(_bytes(bands[top : top + rows], exif.order, predicted=predicted))
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
    """The tree with the blocks that a TIFF holds as tags."""
    blocks = ((XMP, BYTE, about.xmp), (PHOTOSHOP, BYTE, about.photoshop), (ICC, UNDEFINED, about.icc))
    tree = exif.without(STORAGE)
    return tree.having({tag: (kind, block) for tag, kind, block in blocks if block is not None})


def _bytes(strip: Samples, order: str, *, predicted: bool) -> bytes:
    if predicted:
        strip = strip.copy()
        strip[:, 1:] -= strip[:, :-1].copy()
    return np.ascontiguousarray(strip).astype(f"{order}u{strip.dtype.itemsize}", copy=False).tobytes()
