"""`backfire demo`: sample pictures through the real daemon, in a folder of their own.

The pictures ship with scikit-image: an astronaut (NASA, public domain), whose face the detector finds,
and a cup of coffee and a cat (both CC0), whose sidecar masks are drawn here. Two are made smaller,
because without a GPU every pixel takes time.
"""

from __future__ import annotations

from pathlib import Path

import skimage
from PIL import Image, ImageDraw

DATA = Path(skimage.__file__).parent / "data"
CONFIG = """\
# Written by `backfire demo`; see config.example.yaml for every setting.
folders: {inbox: inbox}
watch: {settle_s: 1, mask_wait_s: 1}
"""


def prepare(folder: Path) -> Path:
    """Make inbox and configuration in `folder` and drop the sample pictures; returns the configuration."""
    inbox = folder / "inbox"
    (inbox / "desk").mkdir(parents=True, exist_ok=True)
    config = folder / "config.yaml"
    config.write_text(CONFIG)
    with Image.open(DATA / "astronaut.png") as astronaut:
        astronaut.resize((400, 400), Image.Resampling.LANCZOS).save(inbox / "astronaut.png")
    with Image.open(DATA / "coffee.png") as coffee:
        small = coffee.convert("RGB").resize((450, 300), Image.Resampling.LANCZOS)
        small.save(inbox / "desk" / "coffee.jpg", quality=92)
        _mask(small.size, (142, 71, 311, 218)).save(inbox / "desk" / "coffee.mask.png")
    with Image.open(DATA / "chelsea.png") as cat:
        cat.save(inbox / "cat.png")
        _mask(cat.size, (105, 75, 250, 215)).save(inbox / "cat.mask.png")
    return config


def _mask(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """A mask with an ellipse; white = protected."""
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    return mask
