"""Reads and writes HEIC at its full depth with pillow-heif, an optional extra because its encoder is GPL."""

from __future__ import annotations

import io

import numpy as np

from backfire.imaging.colour import Samples

SLICE, MOST_SLICES = 8_000_000, 10
"""Bytes of samples in a slice, and the most slices in a file.

libde265 read slices of 15 MB and failed at 20 MB; the limit is lower because noise compresses badly. With
15 slices or more, x265 4.3 wrote beyond its buffers; 12 passed under malloc's checks.
"""

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def heif_ready() -> bool:
    """Whether pillow-heif is installed; if so, registers it with Pillow."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener(thumbnails=False)
    return True


def values(data: bytes) -> Samples:
    """The primary picture, H,W or H,W,C, with all bits of the file; Pillow's plugin would round them to 8."""
    from pillow_heif import open_heif

    return np.asarray(open_heif(io.BytesIO(data), convert_hdr_to_8bit=False, hdr_to_16bit=False))


def slices_of(size: int) -> int:
    """How many slices to code this many bytes of samples in."""
    return min(-(-size // SLICE), MOST_SLICES)


def written(
    bands: Samples,
    depth: int,
    *,
    cicp: tuple[int, int],
    icc: bytes | None,
    exif: bytes | None,
    xmp: bytes | None,
) -> bytes:
    """A lossless HEIC without chroma subsampling.

    Args:
        bands: H,W,C, upright; 8 bits, or more bits on the full scale of 16.
        depth: 8, 10 or 12 bits to write.
        cicp: code points of the colour primaries and the transfer function (H.273).
        exif: an EXIF block. Neither it nor `xmp` may hold an orientation, or the encoder would apply it.
        xmp: an XMP packet.
    """
    from pillow_heif import encode

    slices = slices_of(bands.size * (2 if depth > 8 else 1))
    told = {"icc_profile": icc, "exif": exif, "xmp": xmp}
    file = io.BytesIO()
    encode(
        MODES[bands.shape[2]] + (";16" if depth > 8 else ""),
        bands.shape[1::-1],
        np.ascontiguousarray(bands).tobytes(),
        file,
        quality=-1,
        chroma=444,
        bit_depth=depth,
        color_primaries=cicp[0],
        transfer_characteristics=cicp[1],
        matrix_coefficients=0,  # RGB as it is: YCbCr of the same depth would round the perturbation
        full_range_flag=1,
        enc_params={"x265:slices": str(slices)} if slices > 1 else {},
        **{key: value for key, value in told.items() if value is not None},
    )
    return file.getvalue()
