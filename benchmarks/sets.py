"""The pictures for measuring protections: photographs with given, detected or random regions."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from backfire import detectors
from backfire.detectors import Source
from backfire.types import Box, Mask, Region, Rgb

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
FOLDERS = {"pairs": "pairs", "faces": "faces", "dev": "photos/dev"}
NAMES = tuple(FOLDERS)


@dataclass(frozen=True, eq=False)
class Case:
    """A picture, uint8 H,W,3, and its protected regions as planes H,W, none of them empty."""

    of: str
    name: str
    rgb: Rgb
    masks: tuple[Mask, ...]

    @property
    def everything(self) -> Mask:
        """All regions as one plane."""
        together: Mask = np.logical_or.reduce(self.masks)
        return together

    @property
    def seed(self) -> list[int]:
        """A seed made from the picture's name, so that every run draws the same random numbers for it."""
        return list(f"{self.of}/{self.name}".encode())

    @property
    def pixels(self) -> str:
        """A digest of the picture and its regions."""
        digest = hashlib.sha256(self.rgb.tobytes())
        for mask in self.masks:
            digest.update(mask.tobytes())
        return digest.hexdigest()[:16]

    def regions(self) -> list[Region]:
        """The regions in the form in which detectors return them."""
        boxes = [(Box.around(mask), mask) for mask in self.masks]
        return [Region(box, "mask", 1.0, "bench", mask[box.slices]) for box, mask in boxes]


def cases(name: str, *, count: int, side: int, folder: Path = SHARED) -> Iterator[Case]:
    """The first `count` pictures of a set, scaled so that the longer side is at most `side`.

    * pairs: pictures with a mask file each;
    * faces: pictures of faces; the regions are those of the face detector at full size;
    * dev: photographs with one random region each, an ellipse or a box a sixth to a third wide;
    * dev@0.5: the same with regions half as wide as the shorter side, or any other share of it.

    Raises:
        SystemExit: there is no such set, or the folder does not exist.
    """
    base, at, share = name.partition("@")
    wide = _share(share)
    if base not in FOLDERS or (at and (base != "dev" or wide is None)):
        raise SystemExit(f"--set: got {name!r}, expected some of {', '.join(NAMES)}, or such as dev@0.5")
    where = folder / FOLDERS[base]
    if not where.is_dir():
        raise SystemExit(f"{where}: no such folder; give --data a folder with pairs/, faces/ and photos/dev/")
    paths = sorted(p for p in where.iterdir() if p.suffix in {".jpg", ".png"} and ".mask" not in p.name)
    for path in paths[:count]:
        whole: Rgb = np.asarray(Image.open(path).convert("RGB")).copy()
        rgb = scaled_to(whole, side)
        height, width = rgb.shape[:2]
        if name == "pairs":
            mask = np.asarray(Image.open(path.with_suffix(".mask.png")).convert("L")) > 127
            masks = [_nearest(mask, width, height)]
        elif name == "faces":
            found = detectors.get("faces").detect(whole, source=Source(path.name))
            masks = [_nearest(region.plane(*whole.shape[:2]), width, height) for region in found]
        else:
            rng = np.random.default_rng(list(path.name.encode()))
            masks = [seeded(height, width, rng, wide)]
        if masks := [mask for mask in masks if mask.any()]:
            yield Case(name, path.name, rgb, tuple(masks))


def chosen(given: argparse.Namespace) -> list[Case]:
    """The pictures that the options of a command line name: `set`, `count`, `side`, `data` and `part`."""
    every = [
        case
        for name in given.set
        for case in cases(name, count=given.count, side=given.side, folder=given.data)
    ]
    number, parts = given.part
    return every[number - 1 :: parts]


def part(text: str) -> tuple[int, int]:
    """`1/2`, the first of two parts, as numbers.

    Raises:
        argparse.ArgumentTypeError: there is no such part.
    """
    number, _, parts = text.partition("/")
    if number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts):
        return int(number), int(parts)
    raise argparse.ArgumentTypeError(f"got {text!r}, expected I/N with I from 1 to N, such as 1/2")


def add_options(parser: argparse.ArgumentParser, *, side: int) -> None:
    """Add the options that `chosen` reads.

    Args:
        side: the default of `--side`.
    """
    names = ", ".join(NAMES)
    parser.add_argument(
        "--set", type=lambda text: text.split(","), default=["dev"], help=f"some of {names}, or dev@SHARE"
    )
    parser.add_argument("--count", type=int, default=20, help="the most pictures of each set")
    parser.add_argument("--side", type=int, default=side, help="scale pictures down to this longer side")
    parser.add_argument("--data", type=Path, default=SHARED, help="the folder with the sets")
    parser.add_argument(
        "--part",
        type=part,
        default=(1, 1),
        metavar="I/N",
        help="measure only the I-th of N parts of the pictures; processes with one each can share an --out, "
        "and a run without it then makes the tables",
    )


def scaled_to(rgb: Rgb, side: int) -> Rgb:
    """The picture with its longer side at most `side`."""
    height, width = rgb.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    small: Rgb = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.LANCZOS)).copy()
    return small


def _nearest(mask: Mask, width: int, height: int) -> Mask:
    plane: Mask = np.array(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    return plane


def _share(text: str) -> float | None:
    """A share of a twentieth to a half, which fits away from the border; None where the text is none."""
    try:
        share = float(text)
    except ValueError:
        return None
    return share if 0.05 <= share <= 0.5 else None


def seeded(height: int, width: int, rng: np.random.Generator, wide: float | None = None) -> Mask:
    """A random ellipse or box away from the picture's border.

    Args:
        wide: its width and height as a share of the picture's shorter side; None: a sixth to a third each.
    """
    drawn = rng.uniform(1 / 6, 1 / 3, 2)
    h, w = (int(min(height, width) * share) for share in (drawn if wide is None else (wide, wide)))
    top = int(rng.integers(height // 8, height - h - height // 8))
    left = int(rng.integers(width // 8, width - w - width // 8))
    plane = np.zeros((height, width), dtype=np.bool_)
    if rng.random() < 0.5:
        plane[top : top + h, left : left + w] = True
        return plane
    rows, columns = np.ogrid[:height, :width]
    y, x = (rows - top - h / 2) / (h / 2), (columns - left - w / 2) / (w / 2)
    inside: Mask = y**2 + x**2 <= 1
    return inside
