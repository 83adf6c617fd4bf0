"""Tone curves: how stored samples stand for amounts of light, as the colour profile says it.

Pictures are scaled in linear light where that is known, because an average of gamma-coded samples is darker
than the average of what they show: fine bright lines would fade. Source: ICC.1:2022, 10.6 (curveType) and
10.18 (parametricCurveType).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from backfire.imaging.metadata import Metadata

STEPS = 65_536
"""Entries of a curve: one for each value of a 16-bit sample."""
TAGS = {1: (b"GRAY", (b"kTRC",)), 3: (b"RGB ", (b"rTRC", b"gTRC", b"bTRC"))}
"""By number of channels: the colour space of a profile and the tags of its curves."""
SRGB = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
"""The parameters g, a, b, c, d of sRGB's curve (IEC 61966-2-1), as a profile writes them."""
BT709 = (1 / 0.45, 1 / 1.099, 0.099 / 1.099, 1 / 4.5, 0.081)
CICP = {1: BT709, 6: BT709, 14: BT709, 15: BT709, 4: (2.2,), 5: (2.8,), 8: (1.0,), 13: SRGB}
"""The curves of transfer functions by their number in H.273; HDR's (PQ and HLG) are left out."""

Curve = NDArray[np.float32]
"""By stored value, 0 to 65535: the light in [0,1]; `STEPS` entries that never fall."""


def curves_of(about: Metadata, channels: int) -> list[Curve] | None:
    """The curve of each channel; None where the file does not say it, as in CMYK and profiles of tables.

    Samples without a usable profile count as sRGB, as everywhere.
    """
    if channels not in TAGS:
        return None
    if about.icc is None and about.cicp is not None:
        known = CICP.get(about.cicp[1])
        return None if known is None else [_parametric(known)] * channels
    space, tags = TAGS[channels]
    if about.icc is None or about.icc[16:20] != space:
        return [_parametric(SRGB)] * channels
    found = [_curve(_tag(about.icc, tag)) for tag in tags]
    usable = [one for one in found if one is not None and _is_usable(one)]
    return usable if len(usable) == len(found) else None


def _tag(icc: bytes, name: bytes) -> bytes:
    """The body of a profile's tag; empty if it is missing or lies outside."""
    try:
        (count,) = struct.unpack_from(">I", icc, 128)
        for index in range(min(count, 100)):
            tag, at, size = struct.unpack_from(">4sII", icc, 132 + 12 * index)
            if tag == name:
                return icc[at : at + size]
    except struct.error:
        pass
    return b""


def _curve(body: bytes) -> Curve | None:
    try:
        if body[:4] == b"curv":
            (count,) = struct.unpack_from(">I", body, 8)
            points = struct.unpack_from(f">{count}H", body, 12) if count <= STEPS else ()
            if count < 2:
                return _parametric([points[0] / 256] if points else [1.0])
            at = np.linspace(0, 1, count)
            return np.interp(_axis(), at, np.array(points) / 65535).astype(np.float32) if points else None
        if body[:4] == b"para":
            (kind,) = struct.unpack_from(">H", body, 8)
            count = (1, 3, 4, 5, 7)[kind]
            return _parametric([one / 65536 for one in struct.unpack_from(f">{count}i", body, 12)])
    except (struct.error, IndexError):
        pass
    return None


def _parametric(given: Sequence[float]) -> Curve:
    """The curve of a profile's parameters g, a, b, c, d, e, f, of which the last ones may be missing.

    Three are a curve that is 0 below -b / a, four one that is c there; with more it is straight below d.
    """
    g, a, b, c, d, e, f = (*given, *(1.0, 0.0, 0.0, 0.0, 0.0, 0.0)[len(given) - 1 :])
    if len(given) in (3, 4):
        d, e, f, c = -b / a if a else 0.0, c, c, 0.0
    x = _axis()
    with np.errstate(invalid="ignore"):
        bent = np.clip(a * x + b, 0, None) ** g + e
    curve: Curve = np.clip(np.where(x >= d, bent, c * x + f), 0, 1).astype(np.float32)
    return curve


def _axis() -> NDArray[np.float64]:
    return np.linspace(0, 1, STEPS)


def _is_usable(curve: Curve) -> bool:
    """Whether light can be turned back into samples: the curve rises."""
    steps = np.diff(curve)
    return bool(np.isfinite(curve).all() and (steps >= 0).all() and curve[-1] - curve[0] > 0.5)
