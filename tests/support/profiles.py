"""Colour profiles for tests: wide-gamut RGB, grey, and table-based CMYK."""

from __future__ import annotations

import struct

import numpy as np
from PIL import Image, ImageCms

ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
"""XYZ of the primaries of Adobe RGB (1998), adapted to D50."""


def _profile(space: bytes, kind: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    common = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": _xyz((0.9642, 1.0, 0.8249)),
    }
    tags = {name: body + bytes(-len(body) % 4) for name, body in {**common, **tags}.items()}
    at = 132 + 12 * len(tags)
    table = b""
    for name, body in tags.items():
        table += name + struct.pack(">II", at, len(body))
        at += len(body)
    head = struct.pack(">I4sI4s4s4s", at, b"none", 0x02200000, kind, space, pcs)
    head += (
        struct.pack(">6H", 2024, 1, 1, 0, 0, 0)
        + b"acsp"
        + bytes(28)
        + struct.pack(">3i", 63190, 65536, 54061)
    )
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + b"".join(tags.values())


def _xyz(values: tuple[float, float, float]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256))


def rgb(gamma: float = 2.2, primaries: tuple[tuple[float, float, float], ...] = ADOBE) -> bytes:
    """A matrix-based RGB profile; the default is Adobe RGB (1998)."""
    tags: dict[bytes, bytes] = {}
    for name, xyz in zip("rgb", primaries, strict=True):
        tags |= {f"{name}XYZ".encode(): _xyz(xyz), f"{name}TRC".encode(): _gamma(gamma)}
    return _profile(b"RGB ", b"mntr", b"XYZ ", tags)


def grey(gamma: float = 1.6) -> bytes:
    return _profile(b"GRAY", b"mntr", b"XYZ ", {b"kTRC": _gamma(gamma)})


def cmyk(grid: int = 9) -> bytes:
    """A CMYK profile of not quite opaque inks, as a table to Lab without an inverse."""
    axis = np.linspace(0, 1, grid)
    inks = np.stack(np.meshgrid(axis, axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 4)
    colours = (1 - 0.9 * inks[:, :3]) * (1 - 0.9 * inks[:, 3:])
    srgb = Image.fromarray(np.rint(colours * 255).astype(np.uint8)[None])
    to_lab = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    lab = np.array(ImageCms.applyTransform(srgb, to_lab))[0]
    lab[:, 1:] ^= 0x80  # Pillow's a and b are signed bytes, the table's are offset by 128
    straight = bytes(range(256))
    matrix = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    table = b"mft1\0\0\0\0" + bytes((4, 3, grid, 0)) + matrix + straight * 4 + lab.tobytes() + straight * 3
    return _profile(b"CMYK", b"prtr", b"Lab ", {b"A2B0": table})
