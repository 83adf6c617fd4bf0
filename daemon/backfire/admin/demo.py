"""`backfire demo`: sample pictures through the real daemon, in a folder of their own.

The pictures ship with scikit-image: an astronaut (NASA, public domain), whose face the detector finds, and
a rocket (SpaceX, public domain) and a cat (CC0), which get a credit line and a mask for it here. Taking a
credit line off a picture is what most thieves do, and what editors do well. The pictures are made smaller,
because without a GPU every pixel takes time.
"""

from __future__ import annotations

from pathlib import Path

import skimage
from PIL import Image, ImageDraw, ImageFont

DATA = Path(skimage.__file__).parent / "data"
CONFIG = """\
# Written by `backfire demo`; see config.example.yaml for every setting.
folders: {inbox: inbox}
watch: {settle_s: 1, mask_wait_s: 1}
"""
CREDIT = "© Jane Doe 2026"
LETTERS_PX = 20


def prepare(folder: Path) -> Path:
    """Make inbox and configuration in `folder` and drop the sample pictures; returns the configuration."""
    inbox = folder / "inbox"
    (inbox / "desk").mkdir(parents=True, exist_ok=True)
    config = folder / "config.yaml"
    config.write_text(CONFIG)
    _sample("astronaut.png", (320, 320)).save(inbox / "astronaut.png")
    rocket = _sample("rocket.jpg", (384, 256))
    _credited(rocket, (150, 10)).save(inbox / "desk" / "rocket.mask.png")
    rocket.save(inbox / "desk" / "rocket.jpg", quality=92)
    cat = _sample("chelsea.png", (360, 240))
    _credited(cat, (110, 16)).save(inbox / "cat.mask.png")
    cat.save(inbox / "cat.png")
    return config


def _sample(name: str, size: tuple[int, int]) -> Image.Image:
    with Image.open(DATA / name) as picture:
        return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _credited(picture: Image.Image, place: tuple[int, int]) -> Image.Image:
    """Write a credit line into a picture; returns the mask of its box, white = protected."""
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(LETTERS_PX)
    left, top, right, bottom = draw.textbbox(place, CREDIT, font=font)
    draw.text(place, CREDIT, fill=(240, 240, 240), font=font)
    mask = Image.new("L", picture.size, 0)
    ImageDraw.Draw(mask).rectangle((left - 4, top - 4, right + 3, bottom + 3), fill=255)
    return mask
