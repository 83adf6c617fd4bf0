"""Training data: photographs kept in memory, random crops of them, and random holes to fill."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training.run import Options, machine

EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"}
ENDLESS = sys.maxsize

Seen = Callable[[int], tuple[int, int]]
"""Step → the number of crops in its batch, and their side in pixels."""
Crop = Callable[[Image.Image, int, np.random.Generator], NDArray[np.uint8]]
"""(photograph, side, random numbers) → a crop, S,S,3."""
Hole = Callable[[int, np.random.Generator], NDArray[np.float32]]
"""(side, random numbers) → a mask, S,S, 1 = repaint."""


def load(folder: Path, most: int | None = None, seed: int = 0) -> list[Image.Image]:
    """All pictures below `folder` as RGB, in name order (about 350 MB per 1,000 small photographs).

    A file that cannot be read is named and left out.

    Args:
        folder: where they lie.
        most: load only so many of them, which `seed` picks, in an order of its own.
        seed: of that choice.

    Raises:
        SystemExit: there are none.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS)
    if most is not None:
        paths = [paths[index] for index in np.random.default_rng(seed).permutation(len(paths))]
    pictures: list[Image.Image] = []
    for path in paths:
        if len(pictures) == most:
            break
        try:
            with Image.open(path) as picture:
                pictures.append(picture.convert("RGB"))
        # Pillow raises SyntaxError for a damaged PNG.
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            print(f"{path}: cannot be read ({error}), and is left out", file=sys.stderr)
    if not pictures:
        raise SystemExit(f"{folder}: no pictures found; name a folder of photographs with --data")
    return pictures


@dataclass(frozen=True, eq=False)
class Photographs:
    """What crops are drawn from: pictures of anything, and portraits of one person each, if there are any."""

    pictures: list[Image.Image]
    portraits: list[Image.Image] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """The function `digest` of the pictures, and of the portraits where there are any."""
        own = digest(self.pictures)
        return f"{own}+{digest(self.portraits)}" if self.portraits else own


def digest(pictures: list[Image.Image]) -> str:
    """The first digits of a SHA-256 of all pictures, in their order."""
    found = hashlib.sha256()
    for picture in pictures:
        found.update(f"{picture.size}".encode())
        found.update(picture.tobytes())
    return found.hexdigest()[:16]


def crop(picture: Image.Image, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A size x size crop at a random scale (0.6 to 1.8), place and flip; uint8 H,W,3."""
    least = size / min(picture.size)
    scale = max(least, float(np.exp(rng.uniform(np.log(0.6), np.log(1.8)))))
    span = size / scale
    left = rng.uniform(0, max(picture.width - span, 0))
    top = rng.uniform(0, max(picture.height - span, 0))
    box = (left, top, left + span, top + span)
    piece = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, box=box))
    return piece[:, ::-1] if rng.random() < 0.5 else piece


def toned(piece: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The crop in another light, H,W,3: each channel under a gamma and a gain of its own."""
    gamma = np.exp(rng.uniform(-0.7, 0.7) + rng.normal(0, 0.1, 3))
    gain = np.exp(rng.uniform(-0.4, 0.1) + rng.normal(0, 0.1, 3))
    return np.clip(255 * gain * (piece / 255) ** gamma, 0, 255).astype(np.uint8)


def plain(size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A backdrop, S,S,3: one colour that runs into another, faint clouds, and grain."""
    first, second = rng.uniform(0, 1, (2, 3))
    second = first + (second - first) * rng.choice([0.1, 0.3, 0.8])
    angle, bend = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 2)
    down, right = np.mgrid[0:size, 0:size] / size - 0.5
    along = np.clip(0.5 + (right * np.cos(angle) + down * np.sin(angle)) / 1.4, 0, 1) ** bend
    cells = int(rng.choice([3, 5, 9]))
    clouds = Image.fromarray(rng.normal(0, 1, (cells, cells)).astype(np.float32))
    drift = np.asarray(clouds.resize((size, size), Image.Resampling.BICUBIC))[..., None]
    grain = rng.normal(0, 1, (size, size, 1)) + 0.5 * rng.normal(0, 1, (size, size, 3))
    shade = first + (second - first) * along[..., None]
    shade = shade + drift * rng.uniform(0, 0.05) + grain * rng.uniform(0, 0.012)
    backdrop: NDArray[np.uint8] = np.clip(255 * shade + 0.5, 0, 255).astype(np.uint8)
    return backdrop


def hole(size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A random mask, H,W, 1 = repaint: a box, an ellipse or brush strokes; a fifth to two thirds wide."""
    canvas = Image.new("L", (size, size), 0)
    draw = ImageDraw.Draw(canvas)
    kind = rng.integers(0, 3)
    for _ in range(1 if kind < 2 else 2):
        w, h = (size * rng.uniform(0.2, 0.66, 2)).astype(int)
        x, y = int(rng.uniform(-0.1 * w, size - 0.9 * w)), int(rng.uniform(-0.1 * h, size - 0.9 * h))
        if kind == 0:
            draw.rectangle((x, y, x + w, y + h), fill=255)
        elif kind == 1:
            draw.ellipse((x, y, x + w, y + h), fill=255)
        else:
            points = [(x + rng.uniform(0, w), y + rng.uniform(0, h)) for _ in range(5)]
            draw.line(points, fill=255, width=int(size * rng.uniform(0.08, 0.2)), joint="curve")
    return (np.asarray(canvas) > 127).astype(np.float32)


def small_hole(size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """As `hole`, but as of a credit line, a signature or a spot: at most a fifth of the side across."""
    canvas = Image.new("L", (size, size), 0)
    draw = ImageDraw.Draw(canvas)
    along, across = size * rng.uniform(0.08, 0.8), size * rng.uniform(0.05, 0.2)
    w, h = (along, across) if rng.random() < 0.75 else (across, along)
    x, y = rng.uniform(-0.05 * size, size - 0.9 * w), rng.uniform(-0.05 * size, size - 0.9 * h)
    shape = draw.ellipse if rng.random() < 0.25 else draw.rectangle
    shape((x, y, x + w, y + h), fill=255)
    return (np.asarray(canvas) > 127).astype(np.float32)


def portrait(
    picture: Image.Image, size: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A crop S,S,3 around the face of a portrait, and a mask S,S, 1 = repaint, mostly over that face.

    The portrait shows one person from the chest up, with the face in the middle of its upper half, as
    official ones do. Where it is smaller than the crop, its mirror image goes on beside it, and its backdrop
    above. What was enlarged is sharpened and gets a grain, as a face is not to be known by its blur.
    """
    width = size * float(np.exp(rng.uniform(np.log(0.6), np.log(1.5))))
    shown = _resized(picture, width, rng)
    face = width * rng.normal(0.5, 0.02), shown.height * rng.normal(0.37, 0.03)
    middle = size * rng.uniform(0.3, 0.7, 2)
    window = _window(np.asarray(shown), round(face[0] - middle[0]), round(face[1] - middle[1]), size)
    piece = window + rng.normal(0, rng.uniform(0, 3), window.shape)
    mask = _over_face(size, middle, width, rng)
    if rng.random() < 0.25:
        mask = small_hole(size, rng)
    turn = slice(None, None, -1 if rng.random() < 0.5 else 1)
    return np.clip(piece + 0.5, 0, 255).astype(np.uint8)[:, turn], mask[:, turn]


def _resized(picture: Image.Image, width: float, rng: np.random.Generator) -> Image.Image:
    scale = width / picture.width
    shown = picture.resize((round(width), round(picture.height * scale)), Image.Resampling.LANCZOS)
    if scale <= 1:
        return shown
    return shown.filter(ImageFilter.UnsharpMask(radius=scale, percent=int(rng.uniform(40, 140)), threshold=0))


def _window(pixels: NDArray[np.uint8], left: int, top: int, size: int) -> NDArray[np.uint8]:
    """The square at that place. Beside the picture its mirror image goes on, above and below its last row."""
    height, width = pixels.shape[:2]
    above, below = max(-top, 0), max(top + size - height, 0)
    beside = max(-left, 0), max(left + size - width, 0)
    padded = np.pad(pixels, ((above, below), (0, 0), (0, 0)), mode="edge")
    padded = np.pad(padded, ((0, 0), beside, (0, 0)), mode="symmetric")
    return padded[max(top, 0) :, max(left, 0) :][:size, :size]


def _over_face(
    size: int, middle: NDArray[np.float64], width: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """An ellipse or a box over a face or a part of it, S,S, 1 = repaint.

    Args:
        middle: x and y of the face in pixels.
        width: that of the portrait in pixels, of which a face takes some two fifths.
    """
    canvas = Image.new("L", (size, size), 0)
    draw = ImageDraw.Draw(canvas)
    half = width * np.array([0.2, 0.253]) * rng.uniform(0.6, 1.5) * rng.uniform(0.85, 1.15, 2)
    at = middle + rng.normal(0, 0.06, 2) * width
    shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
    shape((*(at - half), *(at + half)), fill=255)
    return (np.asarray(canvas) > 127).astype(np.float32)


def draw(
    pictures: list[Image.Image],
    count: int,
    size: int,
    rng: np.random.Generator,
    device: torch.device,
    holes: Hole = hole,
    crops: Crop = crop,
) -> tuple[Tensor, Tensor]:
    """A batch of random crops N,3,S,S in [0,1], channels-last, and masks N,1,S,S in {0,1}, 1 = repaint."""
    return _ready(*_drawn(pictures, count, size, rng, holes, crops), device)


def draw_portraits(
    pictures: list[Image.Image], count: int, size: int, rng: np.random.Generator, device: torch.device
) -> tuple[Tensor, Tensor]:
    """As `draw`, of portraits, see `portrait`; nearly half of them in another light."""
    drawn = [portrait(pictures[i], size, rng) for i in rng.integers(0, len(pictures), count)]
    pieces = [toned(piece, rng) if rng.random() < 0.45 else piece for piece, _ in drawn]
    mask = np.stack([mask for _, mask in drawn]).astype(np.uint8)
    return _ready(torch.from_numpy(np.stack(pieces)), torch.from_numpy(mask)[:, None], device)


def stream(
    pictures: list[Image.Image], seen: Seen, options: Options, start: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches as from `draw`, one for each step from `start` on, on the machine's device.

    A batch depends on the seed and the step alone, so that a resumed run, with any number of worker
    processes, sees the same batches as an uninterrupted one.
    """
    device, workers = machine(), options.workers
    loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
        _Steps(pictures, seen, options.seed),
        batch_size=None,
        sampler=range(start, ENDLESS),
        num_workers=workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if workers else None,
    )
    for image, mask in loader:
        yield _ready(image, mask, device)


class _Steps(Dataset[tuple[Tensor, Tensor]]):
    """The batch of each step, as bytes: floats would be four times as much to send between processes."""

    def __init__(self, pictures: list[Image.Image], seen: Seen, seed: int) -> None:
        self._pictures, self._seen, self._seed = pictures, seen, seed

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        return _drawn(self._pictures, *self._seen(step), np.random.default_rng([self._seed, step]))


def _drawn(
    pictures: list[Image.Image],
    count: int,
    size: int,
    rng: np.random.Generator,
    holes: Hole = hole,
    crops: Crop = crop,
) -> tuple[Tensor, Tensor]:
    """A batch as uint8: image N,S,S,3 and mask N,1,S,S."""
    chosen = rng.integers(0, len(pictures), count)
    image = np.stack([crops(pictures[i], size, rng) for i in chosen])
    mask = np.stack([holes(size, rng) for _ in range(count)]).astype(np.uint8)
    return torch.from_numpy(image), torch.from_numpy(mask)[:, None]


def _ready(image: Tensor, mask: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """A batch of `_drawn` as floats on the device."""
    planes = image.to(device, non_blocking=True).permute(0, 3, 1, 2).float().div(255)
    return (
        planes.contiguous(memory_format=torch.channels_last),
        mask.to(device, non_blocking=True).float(),
    )
