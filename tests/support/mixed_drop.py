"""A mixed drop of sixty files, as a desk's day brings them: python -m tests.support.mixed_drop SHARED INBOX.

SHARED is the folder with the shared pictures (`faces`, `photos/dev`). The files are small, so that they
are worked in minutes. Nothing is random.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 224
"""The longer side of the pictures, in pixels."""


def encoded(picture: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def opened(file: Path, side: int = SIDE) -> Image.Image:
    with Image.open(file) as picture:
        small = picture.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small


def disc(size: tuple[int, int]) -> Image.Image:
    """A mask, white in the middle."""
    rows, columns = np.mgrid[: size[1], : size[0]]
    inside = (rows - size[1] / 2) ** 2 + (columns - size[0] / 2) ** 2 < (min(size) / 5) ** 2
    return Image.fromarray((inside * 255).astype(np.uint8))


def files(shared: Path) -> dict[bytes, bytes]:
    """The sixty files by their path in the inbox."""
    faces = [opened(shared / "faces" / name) for name in ("biden.jpg", "obama.jpg", "obama2.jpg")]
    faces += [opened(shared / "faces" / name, 220) for name in ("biden.jpg", "obama.jpg", "two_people.jpg")]
    scenes = [opened(file) for file in sorted((shared / "photos" / "dev").glob("*.jpg"))[:24]]
    found: dict[bytes, bytes] = {}

    def put(name: str | bytes, data: bytes) -> None:
        found[os.fsencode(name)] = data

    for number, face in enumerate(faces):  # 6 with faces
        put(f"desk/portrait-{number}.jpg", encoded(face, quality=92))
    for number, scene in enumerate(scenes[:8]):  # 8 without
        put(f"web/scene-{number}.jpg", encoded(scene, quality=92))
    for number, scene in enumerate(scenes[8:13]):  # 5 with masks: 10 files
        put(f"archive/plate-{number}.png", encoded(scene, "PNG"))
        put(f"archive/plate-{number}.mask.png", encoded(disc(scene.size), "PNG"))
    # 6: masks that do not fit
    put("desk/small-mask.png", encoded(scenes[13], "PNG"))
    put("desk/small-mask.mask.png", encoded(disc((64, 64)), "PNG"))
    put("desk/black-mask.png", encoded(scenes[14], "PNG"))
    put("desk/black-mask.mask.png", encoded(Image.new("L", scenes[14].size), "PNG"))
    put("desk/lonely.mask.png", encoded(disc((64, 64)), "PNG"))
    put("desk/portrait-0_mask.png", encoded(disc(faces[0].size), "PNG"))
    # 7 that cannot be read
    whole = encoded(scenes[15], quality=92)
    put("desk/cut-short.jpg", whole[: len(whole) // 2])
    put("desk/empty.jpg", b"")
    put("desk/zeros.jpg", bytes(20_000))
    put("desk/page.jpg", b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n" * 20)
    put("desk/letter.pdf", b"%PDF-1.7\n" + b"x" * 2000)
    put("desk/noise.png", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40)
    put("desk/vector.svg", b'<svg xmlns="http://www.w3.org/2000/svg"><circle r="9"/></svg>')
    # 7 that come with pictures, or with none
    put("desk/portrait-1.xmp", b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>")
    put("desk/portrait-2.jpg.pp3", b"[Version]\nAppVersion=5.9\n")
    put("web/scene-0.aae", b"<?xml version='1.0'?><plist/>")
    put("web/scene-1.mov", b"\0\0\0\x14ftypqt  \0\0\0\0qt  " + bytes(3000))
    put("desk/read me.txt", b"The portraits are for Friday.\n")
    put("desk/portrait-3.jpg:Zone.Identifier", b"[ZoneTransfer]\nZoneId=3\n")
    put("web/nobody.dop", b"Sidecar = {}\n")
    # 4 raw files
    samples = bytes(range(1, 256)) * 16
    for name in ("desk/IMG_0001.CR2", "desk/IMG_0002.NEF", "desk/IMG_0003.DNG"):
        put(name, b"II*\0\x10\0\0\0CR\x02\0" + samples)
    put("desk/IMG_0004.ARW", b"II*\0\x08\0\0\0" + samples)
    # 3 with the same content as others
    put("web/copy-of-portrait-0.jpg", found[b"desk/portrait-0.jpg"])
    put("web/portrait-1.jpg", found[b"desk/portrait-1.jpg"])
    put("desk/portrait-2 (1).jpg", found[b"desk/portrait-2.jpg"])
    # 9 with odd names or kinds
    put("web/a-png.jpg", encoded(scenes[16], "PNG"))
    put("web/a-jpeg.png", encoded(faces[3].transpose(Image.Transpose.FLIP_LEFT_RIGHT)))
    put("web/without-ending", encoded(scenes[17], quality=92))
    put("web/\x1b[31mred\nline.jpg", encoded(scenes[18], quality=92))
    put(b"web/caf\xe9.jpg", encoded(scenes[19], quality=92))
    put("web/" + "long" * 50 + ".jpg", encoded(scenes[20], quality=92))
    put("web/" + "日本.jpg", encoded(faces[4].transpose(Image.Transpose.FLIP_LEFT_RIGHT), quality=92))
    put("web/moving.gif", encoded(scenes[21], "GIF", save_all=True, append_images=[scenes[22]]))
    put("web/scan.bmp", encoded(scenes[23], "BMP"))
    return found


def drop(shared: Path, inbox: Path) -> int:
    """Write the files into the inbox; returns how many."""
    found = files(shared)
    for name, data in found.items():
        file = os.path.join(os.fsencode(inbox), name)
        os.makedirs(os.path.dirname(file), exist_ok=True)
        with open(file, "wb") as out:
            out.write(data)
    return len(found)


if __name__ == "__main__":
    print(drop(Path(sys.argv[1]), Path(sys.argv[2])))
