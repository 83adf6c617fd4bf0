"""Encodes perturbed pixels in the format that the picture came in, as exactly as the format allows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from backfire.imaging import blocks, cleaning, colour, data_mining, formats, jpegs, writers
from backfire.imaging.colour import Samples
from backfire.imaging.decoding import Picture, stored
from backfire.imaging.formats import KINDS
from backfire.imaging.heif import heif_ready
from backfire.imaging.metadata import Metadata
from backfire.imaging.readers import pillow
from backfire.imaging.writers import Canvas
from backfire.types import Rgb

DEPTHS = {"PNG": {16}, "TIFF": {16}, "JPEG2000": {*range(9, 17)}, "HEIF": {10, 12}, "AVIF": {10, 12}}
"""By format: the bits per sample, beyond 8, with which it can be written."""

LONGEST_SIDE = {"JPEG": 65_500, "WEBP": 16_383, "HEIF": 16_384, "AVIF": 65_536}
INK = frozenset({"JPEG", "TIFF"})
STORED_UPRIGHT = frozenset({"HEIF", "BMP"})
"""Formats whose pixels are stored upright: HEIF's encoder would turn them, BMP has no orientation."""

HDR = {16: "PQ", 18: "HLG"}
"""By number in H.273: the transfer functions of HDR, without which a picture would look pale and dim."""

NO_GREY = frozenset({"WEBP"})
NO_ALPHA = frozenset({"JPEG", "BMP"})
NO_PROFILE = frozenset({"BMP"})
MISFITS = {(b"GRAY", 3), (b"GRAY", 4), (b"RGB ", 1), (b"RGB ", 4), (b"CMYK", 1), (b"CMYK", 3)}


@dataclass(frozen=True)
class Encoded:
    """A written file.

    Attributes:
        data: its bytes.
        extension: with the dot, e.g. `.jpg`.
        how: how it was encoded, for the receipt, e.g. `JPEG quality 100 4:4:4 RGB`.
        format: what it is, as in `Picture.format`.
        data_mining: what its XMP says of data mining, see `data_mining.stated`, if the format has XMP.
        left_out: what of the original's metadata it does not hold although it was to be kept, and why.
    """

    data: bytes
    extension: str
    how: str
    format: str
    data_mining: str | None = None
    left_out: tuple[str, ...] = ()


def encode(
    picture: Picture,
    rgb: Rgb,
    *,
    levels: int,
    format: str = "same",  # noqa: A002  # the setting's own name
    metadata: str = "keep",
    opaque: str = "drop",
    jpeg: str = "strong",
) -> Encoded:
    """Encode perturbed pixels as a file like the original.

    The perturbation is applied to the picture's own samples, so that its colour space, its depth and its low
    bits are kept. All formats but JPEG are written without loss; a JPEG is written so that its decoded pixels
    stay within `levels` of the picture where that is possible, which the caller has to measure. Grey stays
    grey (except in WebP), CMYK stays CMYK (in JPEG and TIFF, otherwise sRGB), and 16 bits stay 16 (in PNG,
    TIFF and JPEG 2000, otherwise 8). In a BMP, which holds no profile, colours become sRGB. Palettes become
    RGB or RGBA. Pixels are stored in the orientation they had. If the format cannot hold the picture, it is
    written as PNG, and `how` says so.

    Args:
        picture: the original.
        rgb: H,W,3 uint8 sRGB, upright, within `levels` of `picture.rgb`.
        levels: the bound on every sample and every colour, in levels of 255.
        format: `same`, `png`, `jpeg`, `tiff`, `webp`, `heic`, `avif`, `jpeg2000` or `bmp`.
        metadata: `keep`, `strip-gps` or `strip-all`.
        opaque: `drop` large metadata of an unknown kind, which could hold the unprotected picture, or `keep`.
        jpeg: `strong`, or `small`: of a JPEG with 4:2:0 subsampling only luma is perturbed.

    Raises:
        ValueError: `rgb` does not have the picture's shape and type, or an option is unknown.
    """
    if rgb.shape != picture.rgb.shape or rgb.dtype != np.uint8:
        raise ValueError(f"rgb: got {rgb.dtype} {rgb.shape}, expected uint8 {picture.rgb.shape}")
    if opaque not in ("drop", "keep"):
        raise ValueError(f"opaque: got {opaque!r}, expected drop or keep")
    if format not in ("same", *KINDS):
        raise ValueError(f"format: got {format!r}, expected same or one of {', '.join(KINDS)}")
    kind = picture.format if format == "same" else KINDS[format]
    hurdle = _hurdle(picture, kind)
    if hurdle:
        kind = "PNG"
    with pillow(None):
        about = picture.metadata.reduced(metadata)
        about = about if opaque == "keep" else cleaning.without_opaque(about)
        about = data_mining.written(about)
        if kind in STORED_UPRIGHT:
            about = about.upright(picture.orientation)
        canvas = _fitted(picture, rgb, kind, levels)
        height, width = canvas.wanted.shape[:2]
        about = _fitting(about.sized(width, height), canvas, kind, same=kind == picture.format)
        if kind == "JPEG":
            data, how = jpegs.written(canvas, picture, about, levels, small=jpeg == "small")
        else:
            data, how = writers.written(kind, canvas, picture, about)
    notes = [hurdle] if hurdle else []
    if picture.frames > 1:
        notes.append(f"first of {picture.frames}")
    how = f"{how} ({'; '.join(notes)})" if notes else how
    says = data_mining.stated(replace(about, packets=()))
    return Encoded(data, formats.extensions(kind)[0], how, kind, says, about.left_out)


def luma_alone(picture: Picture, *, format: str = "same", jpeg: str = "strong") -> bool:  # noqa: A002
    """Whether `encode` with these settings should write only the luma of a perturbation.

    If so, it pays to optimise a grey perturbation. `encode` may still find that it has to write all
    channels.
    """
    kind = picture.format if format == "same" else format.upper()
    if kind != "JPEG" or jpeg != "small" or picture.jpeg is None or _hurdle(picture, kind):
        return False
    with pillow(None):
        return jpegs.is_halved(picture.jpeg)


def _fitting(about: Metadata, canvas: Canvas, kind: str, *, same: bool) -> Metadata:
    """The metadata that the format can hold.

    A profile for other channels is left out, such as an RGB profile of a grey picture.
    """
    about = blocks.fitting(about, kind, same=same)
    misfit = about.icc is not None and (about.icc[16:20], canvas.wanted.shape[2]) in MISFITS
    if canvas.is_srgb:
        return replace(about, icc=None, cicp=None)
    return replace(about, icc=None) if misfit else about


def _fitted(picture: Picture, rgb: Rgb, kind: str, levels: int) -> Canvas:
    """The picture's samples with the perturbation, as far as the format can hold them."""
    orientation = 1 if kind in STORED_UPRIGHT else picture.orientation
    channels = picture.samples.shape[2]
    bare = kind in NO_PROFILE and picture.look is not None
    if bare or (channels == 4 and kind not in INK) or (channels == 1 and kind in NO_GREY):
        # A profile of grey need not suit colour, and a profile of CMYK never does.
        wanted: Samples = rgb if channels == 4 or picture.look is not None else _grey(picture, rgb)
        original: Samples = picture.rgb
        is_srgb = channels == 4 or picture.look is not None
    else:
        wanted = colour.carried(picture.samples, picture.rgb, rgb, picture.look, levels, picture.depth)
        original, is_srgb = picture.samples, False
    alpha, depth = picture.alpha, _depth(picture, kind)
    if depth == 8:
        wanted, original = colour.eight(wanted), colour.eight(original)
        alpha = None if alpha is None else colour.eight(alpha)
    if kind in NO_ALPHA:
        alpha = None
    return Canvas(
        stored(wanted, orientation),
        stored(original, orientation),
        None if alpha is None else stored(alpha, orientation),
        8 if wanted.dtype == np.uint8 else depth,
        is_srgb,
    )


def _depth(picture: Picture, kind: str) -> int:
    """The bits per sample to write: the picture's own if the format has that depth, else 16, else 8.

    A depth between 8 and the picture's own would round the samples, and a perturbation that uses the whole
    budget would exceed it.
    """
    depths = DEPTHS.get(kind, set()) if picture.depth > 8 else set()
    return picture.depth if picture.depth in depths else 16 if 16 in depths else 8


def _grey(picture: Picture, rgb: Rgb) -> Rgb:
    """The picture with the luminance of the perturbation, in three equal channels."""
    plane = colour.carried(picture.rgb[..., :1], picture.rgb, rgb, None, 255)
    return colour.eight(plane).repeat(3, axis=2)


def _hurdle(picture: Picture, kind: str) -> str | None:
    """Why the format cannot hold the picture; None if it can."""
    if kind == "GIF":
        return "GIF holds no more than 256 colours"
    if kind == "HEIF" and not heif_ready():
        return "no HEIC writer is installed"
    alpha = picture.alpha
    if kind in NO_ALPHA and alpha is not None and alpha.min() < np.iinfo(alpha.dtype).max:
        return f"{kind} holds no transparency"
    numbers = picture.metadata.numbered
    if kind not in blocks.NUMBERED and numbers is not None and numbers[1] in HDR:
        return f"{kind} holds no HDR in {HDR[numbers[1]]}"
    longest = LONGEST_SIDE.get(kind)
    if longest is not None and max(picture.rgb.shape[:2]) > longest:
        return f"{kind} holds no side beyond {longest} pixels"
    return None
