"""The pictures a protection is measured on: real photographs, their regions known or seeded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from daemon import detectors
from daemon.detectors import Source
from daemon.domain import Mask, Rgb

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
NAMES = ("pairs", "faces", "dev")


@dataclass(frozen=True, eq=False)
class Case:
    """A picture, uint8 H,W,3, and its protected regions as planes H,W."""

    name: str
    rgb: Rgb
    masks: tuple[Mask, ...]


def cases(name: str, *, count: int, side: int, folder: Path = SHARED) -> Iterator[Case]:
    """The first `count` pictures of a set, scaled so that the longer side is at most `side`.

    * pairs: the picture-and-mask pairs;
    * faces: the face pictures, regions from the face detector;
    * dev: photographs with one seeded region each, an ellipse or a box a sixth to a third wide.

    Raises:
        SystemExit: the folder is not there.
    """
    where = {"pairs": folder / "pairs", "faces": folder / "faces", "dev": folder / "photos" / "dev"}[name]
    if not where.is_dir():
        raise SystemExit(f"{where}: no such folder; the benchmarks need the shared photographs")
    paths = sorted(p for p in where.iterdir() if p.suffix in {".jpg", ".png"} and ".mask" not in p.name)
    for path in paths[:count]:
        rgb = _read(path, side)
        if name == "pairs":
            mask = Image.open(path.with_suffix(".mask.png")).convert("L").resize(rgb.shape[1::-1], 0)
            masks: tuple[Mask, ...] = (np.asarray(mask) > 127,)
        elif name == "faces":
            found = detectors.get("faces").detect(rgb, source=Source(path.name))
            masks = tuple(region.plane(*rgb.shape[:2]) for region in found)
        else:
            seed = int.from_bytes(path.name.encode(), "little") % 2**32
            masks = (_seeded(rgb.shape[0], rgb.shape[1], np.random.default_rng(seed)),)
        if masks:
            yield Case(path.name, rgb, masks)


def _read(path: Path, side: int) -> Rgb:
    image = Image.open(path).convert("RGB")
    scale = min(1.0, side / max(image.size))
    size = (round(image.width * scale), round(image.height * scale))
    rgb: Rgb = np.asarray(image.resize(size, Image.Resampling.LANCZOS)).copy()
    return rgb


def _seeded(height: int, width: int, rng: np.random.Generator) -> Mask:
    """A shape inside the picture, off its border."""
    h, w = (int(min(height, width) * share) for share in rng.uniform(1 / 6, 1 / 3, 2))
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
