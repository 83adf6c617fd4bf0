"""Pastes marks into photographs for the detectors to find: scrawls, handwriting, credit lines and a logo.

The handwriting is real: its ink is extracted from lettering by hand (script and capitals, brush and pen) in
other photographs. Sizes, places and colours are drawn from the given generator.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from backfire.types import Box, Rgb

Ink = NDArray[np.float64]
"""H,W in [0,1]: the opacity of the mark in each pixel."""

HANDS = (
    ("242078.jpg", (120, 280, 157, 303)),
    ("242078.jpg", (188, 281, 223, 302)),
    ("242078.jpg", (95, 182, 121, 197)),
    ("242078.jpg", (200, 129, 224, 139)),
    ("140075.jpg", (303, 167, 348, 180)),
    ("25098.jpg", (102, 28, 128, 45)),
    ("65019.jpg", (168, 263, 192, 300)),
    ("65019.jpg", (71, 87, 103, 188)),
    ("65074.jpg", (88, 364, 146, 375)),
)
"""Photographs with dark handwritten lettering on a light ground, and its boxes."""

CREDITS = ("© J. Doe 2024", "Photo: A. Berg", "M. Ito", "K. L. 98")


def signed(image: Rgb, kind: str, photos: Path, rng: np.random.Generator) -> tuple[Rgb, Box]:
    """The picture with a mark in one of its corners, 4 to 14 pixels from its edges, and the mark's box.

    Args:
        kind: one of `KINDS`.
        photos: the folder of the photographs in `HANDS`.
    """
    ink = KINDS[kind](photos, rng) * rng.uniform(0.75, 1)
    (height, width), (right, bottom) = ink.shape, rng.random(2) < 0.5
    across, down = (int(offset) for offset in rng.integers(4, 15, 2))
    left = image.shape[1] - width - across if right else across
    top = image.shape[0] - height - down if bottom else down
    box = Box(left, top, left + width, top + height)
    ground = image[box.slices].astype(np.float64)
    colour = np.array([255, 250, 240]) if ground.mean() < 110 else np.array([15, 15, 25])
    marked = image.copy()
    marked[box.slices] = (ground * (1 - ink[..., None]) + colour * ink[..., None]).astype(np.uint8)
    return marked, box


def _scrawl(photos: Path, rng: np.random.Generator) -> Ink:
    """Slanted loops, as drawn with a pen."""
    width = int(rng.integers(80, 150))
    height = int(0.4 * width)
    loops = int(rng.integers(7, 12))
    turn = np.linspace(0, loops * 2 * np.pi, loops * 24)
    tall = np.interp(
        np.arange(len(turn)), np.linspace(0, len(turn) - 1, loops), rng.uniform(0.12, 0.5, loops)
    )
    y = tall * height * np.cos(turn * rng.uniform(0.9, 1.1))
    x = turn / turn[-1] * 0.8 * width + np.sin(turn) * 0.35 * width / loops - 0.35 * y
    canvas = Image.new("L", (4 * width, 4 * height))
    line = [(4 * (a + 0.1 * width), 4 * (b + height / 2)) for a, b in zip(x, y, strict=True)]
    ImageDraw.Draw(canvas).line(line, fill=255, width=max(4, round(0.18 * height)), joint="curve")
    return np.asarray(canvas.resize((width, height), Image.Resampling.LANCZOS)) / 255


def _hand(photos: Path, rng: np.random.Generator) -> Ink:
    """Real handwriting: a line 16 to 35 pixels high, or a column of signs up to twice as high."""
    name, box = HANDS[int(rng.integers(len(HANDS)))]
    ink = _ink(photos / name, box)
    height = int(rng.integers(16, 36)) * (2 if ink.shape[0] > 60 else 1)
    size = ink.shape[1] * height // ink.shape[0], height
    return (
        np.asarray(Image.fromarray((ink * 255).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)) / 255
    )


@cache
def _ink(path: Path, box: tuple[int, int, int, int]) -> Ink:
    """The ink of lettering in a photograph, by how much darker than its ground each pixel is."""
    with Image.open(path) as picture:
        green = np.array(picture.convert("RGB").crop(box))[..., 1].astype(np.float64)
    darker = ndimage.gaussian_filter(ndimage.maximum_filter(green, 9), 4) - green
    ink = np.clip(darker / (0.75 * np.percentile(darker, 99)), 0, 1)
    return np.where(ink < 0.35, 0, ink)


def _credit(photos: Path, rng: np.random.Generator) -> Ink:
    """A printed credit line in a font of 11 to 18 pixels."""
    text = CREDITS[int(rng.integers(len(CREDITS)))]
    font = ImageFont.load_default(int(rng.integers(11, 19)))
    _, _, right, bottom = font.getbbox(text)
    canvas = Image.new("L", (int(right) + 2, int(bottom) + 2))
    ImageDraw.Draw(canvas).text((1, 1), text, font=font, fill=255)
    return np.asarray(canvas.crop(canvas.getbbox())) / 255


KINDS: dict[str, Callable[[Path, np.random.Generator], Ink]] = {
    "scrawl": _scrawl,
    "hand": _hand,
    "credit": _credit,
}


def logo() -> Image.Image:
    """The logo of a fictitious firm, on a transparent background."""
    image = Image.new("RGBA", (480, 320))
    draw = ImageDraw.Draw(image)
    draw.ellipse((10, 10, 300, 300), fill=(200, 30, 40, 255))
    draw.polygon([(155, 40), (260, 240), (60, 240)], fill=(255, 255, 255, 255))
    draw.rectangle((130, 150, 180, 240), fill=(30, 30, 30, 255))
    draw.rectangle((290, 110, 475, 210), fill=(20, 60, 160, 255))
    draw.text((300, 120), "ACME", font=ImageFont.load_default(62), fill=(255, 255, 255, 255))
    return image


def pasted(
    image: Rgb, mark: Image.Image, size: int, opacity: float, rng: np.random.Generator
) -> tuple[Rgb, Box]:
    """The picture with a logo pasted in, and the logo's box.

    The logo's long side is `size` pixels; it is rotated by up to 35 degrees and distorted in perspective.
    """
    import cv2

    flat = np.array([[0, 0], [mark.width, 0], [mark.width, mark.height], [0, mark.height]], dtype=np.float64)
    scale, angle = size / max(mark.size), rng.uniform(-0.6, 0.6)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = ((flat - flat.mean(axis=0)) * scale) @ turn.T * (1 + rng.uniform(-0.08, 0.08, (4, 1)))
    corners -= corners.min(axis=0)
    room = np.array(image.shape[1::-1]) - corners.max(axis=0)
    corners += rng.uniform(0, 1, 2) * np.maximum(room, 0)
    layers = np.array(mark, dtype=np.float32)
    layers[..., :3] *= layers[..., 3:] / 255
    blur = max(int(1 / scale), 1)
    matrix = cv2.getPerspectiveTransform(flat.astype(np.float32), corners.astype(np.float32))
    warped = cv2.warpPerspective(cv2.blur(layers, (blur, blur)), matrix, image.shape[1::-1])
    share = warped[..., 3:] / 255 * opacity
    mixed = np.clip(image * (1 - share) + warped[..., :3] * opacity, 0, 255).astype(np.uint8)
    (left, top), (right, bottom) = np.floor(corners.min(axis=0)), np.ceil(corners.max(axis=0))
    height, width = image.shape[:2]
    return mixed, Box(int(left), int(top), min(int(right), width), min(int(bottom), height))
