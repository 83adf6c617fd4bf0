"""Recall and false alarms of the detectors: `python -m benchmarks detect [faces|text|signatures|logos] …`.

* faces: on the pictures of `data/dev50.json`.
* text: on these, and on those of `data/dev-text.json`.
* signatures: drawn scrawls, real handwriting and credit lines, pasted into corners of the first list.
* logos: a drawn logo, pasted into the first list by seeded homographies at several sizes and opacities.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from backfire import detectors
from backfire.config import Faces, Logos, Regions, Text
from backfire.detectors import Detector, Source
from backfire.types import Box, Region, Rgb
from benchmarks import marks, sets

LISTS = tuple(Path(__file__).parent / "data" / name for name in ("dev50.json", "dev-text.json"))
FOUND_MIN = 0.5
"""The share of a true box that regions must cover for it to count as found.

A region is a false alarm if its centre is in no true box and no true box has its centre in it.
"""

SIZES, OPACITIES = (32, 48, 64, 96, 160, 300), (1.0, 0.5, 0.25)


def main(arguments: Sequence[str]) -> None:
    """Print the figures of the named detectors, or of all if none is named."""
    known = {"faces": faces, "text": text, "signatures": signatures, "logos": logos}
    parser = argparse.ArgumentParser(prog="benchmarks detect", description=__doc__)
    parser.add_argument("what", nargs="*", default=list(known), help=", ".join(known))
    parser.add_argument("--pictures", type=int, default=200, help="the most pictures to use")
    parser.add_argument("--data", type=Path, default=sets.SHARED, help="the folder with the sets")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.what if name not in known]:
        parser.error(f"got {', '.join(unknown)}, expected some of {', '.join(known)}")
    if not (photos := options.data / sets.FOLDERS["dev"]).is_dir():
        parser.error(f"{photos}: no such folder; give --data a folder with faces/ and photos/dev/")
    for name in options.what:
        began = time.perf_counter()
        known[name](options.data, options.pictures)
        print(f"  ({time.perf_counter() - began:.0f} s)", flush=True)


def faces(data: Path, most: int) -> None:
    """Faces in the list, for several settings, and the number found in each portrait."""
    for min_px, score_min in ((16, 0.9), (20, 0.9), (12, 0.9), (16, 0.8)):
        settings = Regions(faces=Faces(min_px=min_px, score_min=score_min))
        began = time.perf_counter()
        title = f"faces, min_px {min_px}, score_min {score_min}"
        _listed("faces", detectors.get("faces", settings), title, data, most)
        print(f"  {time.perf_counter() - began:.1f} s for all")
    detector = detectors.get("faces")
    counts = {
        path.name: len(detector.detect(_opened(path), source=Source(path.name)))
        for path in sorted((data / sets.FOLDERS["faces"]).glob("*.jpg"))
    }
    print(f"faces, portraits: {counts}")


def text(data: Path, most: int) -> None:
    """Printed and handwritten lettering in the lists, for several settings."""
    for score_min, long_px in ((0.76, 1536), (0.7, 1536), (0.82, 1536), (0.76, 3072)):
        detector = detectors.get("text", Regions(text=Text(score_min=score_min, long_px=long_px)))
        began = time.perf_counter()
        _listed("text", detector, f"text, score_min {score_min}, long_px {long_px}", data, most)
        print(f"  {time.perf_counter() - began:.1f} s for all")


def signatures(data: Path, most: int) -> None:
    """Marks pasted into corners of pictures without lettering, and false alarms in the same pictures."""
    detector = detectors.get("signatures")
    photos = data / sets.FOLDERS["dev"]
    blank = [name for name, truth in _list("faces", most) if not {"text", "hand"} & set(truth)]
    images = {name: _opened(photos / name) for name in blank}
    alarms = sum(len(detector.detect(image, source=Source(name))) for name, image in images.items())
    print(f"signatures: {alarms} false alarms in {len(images)} unsigned pictures", flush=True)
    for kind in marks.KINDS:
        found = 0
        for number, (name, image) in enumerate(images.items()):
            signed, box = marks.signed(image, kind, photos, np.random.default_rng([number, len(kind)]))
            found += _covered(detector.detect(signed, source=Source(name)), box)
        print(f"  {kind}: {found} of {len(images)}", flush=True)


def logos(data: Path, most: int) -> None:
    """Recall of a logo and of a watermark by size and opacity, and false alarms."""
    with tempfile.TemporaryDirectory() as folder:
        logo = marks.logo()
        logo.save(Path(folder) / "acme.png")
        settings = Logos(folder=Path(folder), watermarks=Path(folder))
        detector = detectors.get("logos", Regions(logos=settings))
        pictures = [(name, _opened(data / sets.FOLDERS["dev"] / name)) for name, _ in _list("faces", most)]
        alarms = Counter(
            region.label.split()[0]
            for name, image in pictures
            for region in detector.detect(image, source=Source(name))
        )
        print(f"logos: false alarms in {len(pictures)} pictures without: {dict(alarms)}", flush=True)
        for opacity, size in itertools.product(OPACITIES, SIZES):
            rng = np.random.default_rng([size, int(100 * opacity)])
            found: Counter[str] = Counter(logo=0, watermark=0)
            for name, image in pictures:
                pasted, box = marks.pasted(image, logo, size, opacity, rng)
                regions = detector.detect(pasted, source=Source(name))
                for kind in found:
                    found[kind] += _framed([r for r in regions if r.label.startswith(kind)], box)
            print(f"  opacity {opacity}, {size} px: {dict(found)} of {len(pictures)}", flush=True)


def _list(kind: str, most: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The names of pictures with the boxes annotated in them; more pictures are annotated for text."""
    listed: dict[str, dict[str, Any]] = {}
    for file in LISTS if kind == "text" else LISTS[:1]:
        listed |= json.loads(file.read_text())["pictures"]
    yield from list(listed.items())[:most]


def _listed(kind: str, detector: Detector, title: str, data: Path, most: int) -> None:
    found: Counter[str] = Counter()
    total: Counter[str] = Counter()
    alarms = pictures = 0
    kinds = (kind, "hand") if kind == "text" else (kind,)
    for name, truth in _list(kind, most):
        regions = detector.detect(_opened(data / sets.FOLDERS["dev"] / name), source=Source(name))
        known = [Box(*box) for box in truth.get("unsure", [])]
        for one in kinds:
            boxes = [Box(*box) for box in truth.get(one, [])]
            found[one] += sum(_covered(regions, box) for box in boxes)
            total[one] += len(boxes)
            known += boxes
        alarms += sum(not any(_meets(region.box, box) for box in known) for region in regions)
        pictures += 1
    counts = ", ".join(f"{one} {found[one]} of {total[one]}" for one in kinds)
    print(f"{title}: {counts} found, {alarms} false alarms in {pictures} pictures", flush=True)


def _covered(regions: Sequence[Region], box: Box) -> bool:
    """Whether regions cover half of a box; regions of more than eight times its area do not count."""
    plane = np.zeros((box.bottom, box.right), dtype=np.bool_)
    for region in regions:
        area = region.box.width * region.box.height if region.mask is None else region.mask.sum()
        if area <= 8 * box.width * box.height:
            whole = region.plane(max(region.box.bottom, box.bottom), max(region.box.right, box.right))
            plane |= whole[: box.bottom, : box.right]
    return bool(plane[box.slices].mean() >= FOUND_MIN)


def _framed(regions: Sequence[Region], box: Box) -> bool:
    """Whether a region's box and the true box have an intersection over union of at least a half.

    Boxes are compared instead of shapes, because pasted logos are rotated.
    """

    def shared(other: Box) -> float:
        width = min(box.right, other.right) - max(box.left, other.left)
        height = min(box.bottom, other.bottom) - max(box.top, other.top)
        both = max(width, 0) * max(height, 0)
        return both / (box.width * box.height + other.width * other.height - both)

    return any(shared(region.box) >= FOUND_MIN for region in regions)


def _meets(a: Box, b: Box) -> bool:
    def holds(outer: Box, inner: Box) -> bool:
        x, y = (inner.left + inner.right) / 2, (inner.top + inner.bottom) / 2
        return outer.left <= x <= outer.right and outer.top <= y <= outer.bottom

    return holds(a, b) or holds(b, a)


def _opened(path: Path) -> Rgb:
    with Image.open(path) as picture:
        return np.array(picture.convert("RGB"))
