"""Recall and false alarms of the detectors; `python -m benchmarks detect [faces|text|signatures|logos] …`.

faces, text: the pictures of `data/dev50.json`. signatures: drawn scrawls pasted into a corner of the
same. logos: a drawn logo pasted into the same by seeded homographies, by size and opacity.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from daemon import detectors
from daemon.config import Faces, Logos, Regions, Text
from daemon.detectors import Detector, Source
from daemon.domain import Box, Region, Rgb

SHARED = Path(__file__).parents[2] / "shared" / "data"
PHOTOS = SHARED / "photos" / "dev"
TRUTH = Path(__file__).parent / "data" / "dev50.json"
FOUND_MIN = 0.5
"""A true box is found where regions cover half of it; a region is a false alarm where no true box has
its centre, nor it theirs."""

SIZES, OPACITIES = (32, 48, 64, 96, 160, 300), (1.0, 0.5)


def main(arguments: Sequence[str]) -> None:
    """Print the figures of the named detectors, of all without a name."""
    known = {"faces": faces, "text": text, "signatures": signatures, "logos": logos}
    parser = argparse.ArgumentParser(prog="benchmarks detect", description=__doc__)
    parser.add_argument("what", nargs="*", default=list(known), help=", ".join(known))
    parser.add_argument("--pictures", type=int, default=50, help="at most so many")
    options = parser.parse_args(arguments)
    for name in options.what:
        began = time.perf_counter()
        known[name](options.pictures)
        print(f"  ({time.perf_counter() - began:.0f} s)", flush=True)


def faces(most: int) -> None:
    """On the list, for some settings; and on the portraits."""
    for min_px, score_min in ((20, 0.87), (16, 0.87), (12, 0.87), (20, 0.7)):
        settings = Regions(faces=Faces(min_px=min_px, score_min=score_min))
        began = time.perf_counter()
        _listed(
            "faces", detectors.get("faces", settings), f"faces, min_px {min_px}, score_min {score_min}", most
        )
        print(f"  {time.perf_counter() - began:.1f} s for all")
    detector = detectors.get("faces")
    counts = {
        path.name: len(detector.detect(_opened(path), source=Source(path.name)))
        for path in sorted((SHARED / "faces").glob("*.jpg"))
    }
    print(f"faces, portraits: {counts}")


def text(most: int) -> None:
    """On the list, for some settings."""
    for score_min in (0.6, 0.8, 0.9):
        detector = detectors.get("text", Regions(text=Text(score_min=score_min)))
        _listed("text", detector, f"text, score_min {score_min}", most)


def signatures(most: int) -> None:
    """Scrawls in the right lower corner, and what is found without."""
    detector, rng = detectors.get("signatures"), np.random.default_rng(6)
    found = alarms = count = 0
    for name, _ in _list(most):
        image = _opened(PHOTOS / name)
        alarms += len(detector.detect(image, source=Source(name)))
        signed, box = _signed(image, rng)
        found += _covered(detector.detect(signed, source=Source(name)), box)
        count += 1
    print(f"signatures: {found} of {count} scrawls, {alarms} false alarms in {count} unsigned pictures")


def logos(most: int) -> None:
    """Recall by size and opacity, and false alarms."""
    with tempfile.TemporaryDirectory() as folder:
        logo = _logo()
        logo.save(Path(folder) / "acme.png")
        for kind in ("folder", "watermarks"):
            detector = detectors.get("logos", Regions(logos=Logos.model_validate({kind: Path(folder)})))
            pictures = [(name, _opened(PHOTOS / name)) for name, _ in _list(most)]
            alarms = sum(len(detector.detect(image, source=Source(name))) for name, image in pictures)
            print(f"logos as {kind}: {alarms} false alarms in {len(pictures)} pictures", flush=True)
            for opacity in OPACITIES if kind == "watermarks" else (1.0,):
                for size in SIZES:
                    rng = np.random.default_rng([size, int(100 * opacity)])
                    pasted = [(name, _pasted(image, logo, size, opacity, rng)) for name, image in pictures]
                    found = sum(
                        _framed(detector.detect(image, source=Source(name)), box)
                        for name, (image, box) in pasted
                    )
                    print(f"  {size} px, opacity {opacity}: {found} of {len(pasted)}", flush=True)


def _list(most: int) -> Iterator[tuple[str, dict[str, Any]]]:
    listed: dict[str, dict[str, Any]] = json.loads(TRUTH.read_text())["pictures"]
    yield from list(listed.items())[:most]


def _listed(kind: str, detector: Detector, title: str, most: int) -> None:
    found = total = alarms = pictures = 0
    for name, truth in _list(most):
        regions = detector.detect(_opened(PHOTOS / name), source=Source(name))
        boxes = [Box(*box) for box in truth.get(kind, [])]
        unsure = [Box(*box) for box in truth.get("unsure", [])]
        found += sum(_covered(regions, box) for box in boxes)
        total += len(boxes)
        alarms += sum(not any(_meets(region.box, box) for box in boxes + unsure) for region in regions)
        pictures += 1
    print(f"{title}: {found} of {total} found, {alarms} false alarms in {pictures} pictures", flush=True)


def _covered(regions: Sequence[Region], box: Box) -> bool:
    """Whether regions cover half of a box, and none of them is much larger than it."""
    plane = np.zeros((box.bottom, box.right), dtype=np.bool_)
    for region in regions:
        if region.box.width * region.box.height <= 8 * box.width * box.height:
            whole = region.plane(max(region.box.bottom, box.bottom), max(region.box.right, box.right))
            plane |= whole[: box.bottom, : box.right]
    return bool(plane[box.slices].mean() >= FOUND_MIN)


def _framed(regions: Sequence[Region], box: Box) -> bool:
    """Whether a region's box has half of its union with the true one in common: logos are not level."""

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


def _signed(image: Rgb, rng: np.random.Generator) -> tuple[Rgb, Box]:
    """The picture with slanted loops as by a pen in its right lower corner."""
    width = int(rng.integers(80, 150))
    height = int(0.4 * width)
    loops = int(rng.integers(7, 12))
    turn = np.linspace(0, loops * 2 * np.pi, loops * 24)
    tall = np.interp(
        np.arange(len(turn)), np.linspace(0, len(turn) - 1, loops), rng.uniform(0.12, 0.5, loops)
    )
    y = tall * height * np.cos(turn * rng.uniform(0.9, 1.1))
    x = turn / turn[-1] * 0.8 * width + np.sin(turn) * 0.35 * width / loops - 0.35 * y
    ink = Image.new("L", (4 * width, 4 * height))
    line = [(4 * (a + 0.1 * width), 4 * (b + height / 2)) for a, b in zip(x, y, strict=True)]
    ImageDraw.Draw(ink).line(line, fill=255, width=max(4, round(0.18 * height)), joint="curve")
    share = np.asarray(ink.resize((width, height), Image.Resampling.LANCZOS))[..., None] / 255
    bottom, right = image.shape[0] - 6, image.shape[1] - 6
    box = Box(right - width, bottom - height, right, bottom)
    signed = image.copy()
    colour = rng.choice([0, 30, 220, 255])
    signed[box.slices] = (signed[box.slices] * (1 - share) + colour * share).astype(np.uint8)
    return signed, box


def _logo() -> Image.Image:
    """A made-up firm's logo with a transparent ground."""
    image = Image.new("RGBA", (480, 320))
    draw = ImageDraw.Draw(image)
    draw.ellipse((10, 10, 300, 300), fill=(200, 30, 40, 255))
    draw.polygon([(155, 40), (260, 240), (60, 240)], fill=(255, 255, 255, 255))
    draw.rectangle((130, 150, 180, 240), fill=(30, 30, 30, 255))
    draw.rectangle((290, 110, 475, 210), fill=(20, 60, 160, 255))
    draw.text((300, 120), "ACME", font=ImageFont.load_default(62), fill=(255, 255, 255, 255))
    return image


def _pasted(
    image: Rgb, logo: Image.Image, size: int, opacity: float, rng: np.random.Generator
) -> tuple[Rgb, Box]:
    """The picture with the logo at `size` pixels of its long side, turned up to 35 degrees and tilted."""
    import cv2

    flat = np.array([[0, 0], [logo.width, 0], [logo.width, logo.height], [0, logo.height]], dtype=np.float64)
    scale, angle = size / max(logo.size), rng.uniform(-0.6, 0.6)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = ((flat - flat.mean(axis=0)) * scale) @ turn.T * (1 + rng.uniform(-0.08, 0.08, (4, 1)))
    corners -= corners.min(axis=0)
    room = np.array(image.shape[1::-1]) - corners.max(axis=0)
    corners += rng.uniform(0, 1, 2) * np.maximum(room, 0)
    layers = np.array(logo, dtype=np.float32)
    layers[..., :3] *= layers[..., 3:] / 255
    blur = max(int(1 / scale), 1)
    matrix = cv2.getPerspectiveTransform(flat.astype(np.float32), corners.astype(np.float32))
    warped = cv2.warpPerspective(cv2.blur(layers, (blur, blur)), matrix, image.shape[1::-1])
    share = warped[..., 3:] / 255 * opacity
    mixed = np.clip(image * (1 - share) + warped[..., :3] * opacity, 0, 255).astype(np.uint8)
    (left, top), (right, bottom) = np.floor(corners.min(axis=0)), np.ceil(corners.max(axis=0))
    height, width = image.shape[:2]
    return mixed, Box(int(left), int(top), min(int(right), width), min(int(bottom), height))
