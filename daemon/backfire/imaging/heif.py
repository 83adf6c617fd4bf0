"""HEIC at its full depth, read and written by pillow-heif, an extra because its encoder is GPL."""

from __future__ import annotations

import io

import numpy as np

from backfire.imaging.colour import Samples

SLICE, MOST_SLICES = 8_000_000, 10
"""The bytes of samples in one slice, and the most slices. libde265 could read slices of 15 MB but not of 20,
and noise makes them larger. With 15 slices or more x265 4.3 wrote beyond its memory; 12 were tested with
malloc's checks."""

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def heif_ready() -> bool:
    """Whether HEIC can be read and written here."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener(thumbnails=False)
    return True


def values(data: bytes) -> Samples:
    """The samples H,W or H,W,C of the primary picture at their stored depth; Pillow's plugin rounds them to 8
    bits.
    """
    from pillow_heif import open_heif

    return np.asarray(open_heif(io.BytesIO(data), convert_hdr_to_8bit=False, hdr_to_16bit=False))


def slices_of(size: int) -> int:
    """The number of slices for that many bytes of samples."""
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
        bands: H,W,C upright, of 8 bits or scaled to the full range of 16.
        depth: 8, 10 or 12 bits to write.
        cicp: colour primaries and transfer by number (H.273).
        exif, xmp: an EXIF block and an XMP packet without a rotation, which the encoder would apply.
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
        matrix_coefficients=0,  # identity, because YCbCr of the same depth would round the change
        full_range_flag=1,
        enc_params={"x265:slices": str(slices)} if slices > 1 else {},
        **{key: value for key, value in told.items() if value is not None},
    )
    return file.getvalue()
