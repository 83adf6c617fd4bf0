"""The helper process of the page that decodes pictures: `python -m backfire.web.paint DESCRIPTOR IDLE_S`.

It gets orders with open files over a socket and answers with picture files. What it decodes comes from
strangers, so that it may die of it; the page then goes on without that picture.
"""

from __future__ import annotations

import io
import json
import os
import resource
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from backfire import imaging
from backfire.types import Rgb

MOST_PIXELS = 400_000_000
MOST_BYTES = 2_000_000_000
MEMORY_BYTES = 8 << 30
THUMBNAIL = 480
"""The longer side of a thumbnail, in pixels; pages show it at half of that on sharp screens."""
CHANGE = 2000
"""The longer side of the picture of a change, in pixels."""
AMPLIFIED = 20
ORIENTED = (b"Exif", b"eXIf", b"EXIF", b"Raw profile type ", b"irot", b"imir")
"""What a PNG, WebP or AVIF has if its stored pixels may have to be turned: EXIF, or the container's turn."""


def thumbnail(file: bytes) -> bytes:
    """A small JPEG of a picture."""
    small = _small_jpeg(file) if file[:3] == b"\xff\xd8\xff" else None
    picture = small or Image.fromarray(_decoded(file))
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return _jpeg(picture, 82)


def view(file: bytes) -> bytes:
    """The whole picture as a JPEG, for formats that browsers do not show."""
    return _jpeg(Image.fromarray(_decoded(file)), 94)


def turned(file: bytes) -> bytes:
    """The whole picture as a JPEG if its stored pixels are to be turned; empty if they are upright.

    Of other formats than JPEG, browsers disagree about what turns them.
    """
    if not any(mark in file for mark in ORIENTED):
        return b""
    upright = imaging.orientation(file, name="picture", max_pixels=MOST_PIXELS) == 1
    return b"" if upright else view(file)


def size(file: bytes) -> bytes:
    """Width and height of the upright picture, as `160x120`."""
    height, width = _decoded(file).shape[:2]
    return f"{width}x{height}".encode()


def change(before: bytes, after: bytes) -> bytes | None:
    """The difference of two pictures, amplified around grey; large ones are sampled and not averaged."""
    one, other = _decoded(before), _decoded(after)
    if one.shape != other.shape:
        return None
    step = max(1, -(-max(one.shape[:2]) // CHANGE))
    one, other = one[::step, ::step], other[::step, ::step]
    amplified = (other.astype(np.int16) - one) * AMPLIFIED + 128
    return _jpeg(Image.fromarray(np.clip(amplified, 0, 255).astype(np.uint8)), 90)


def mask(file: bytes, shapes: Sequence[Mapping[str, Any]], paint: str = "white") -> bytes:
    """A mask of the picture's size as a PNG, painted where something was drawn; empty where nothing was.

    Args:
        file: the picture.
        shapes: `{"rectangle": [left, top, right, bottom]}` or `{"stroke": [[x, y], …], "width": w}`, in
            pixels of the upright picture.
        paint: `white` or `black`, see `Sidecars.protected`; all else is of the other.
    """
    height, width = _decoded(file).shape[:2]
    plane = Image.new("L", (width, height), 0)
    draw = ImageDraw.Draw(plane)
    for shape in shapes:
        if "rectangle" in shape:
            left, top, right, bottom = map(float, shape["rectangle"])
            if right > left and bottom > top:
                draw.rectangle((round(left), round(top), round(right) - 1, round(bottom) - 1), fill=255)
        else:
            points = [(float(x), float(y)) for x, y in shape["stroke"]]
            wide = min(max(float(shape["width"]), 1), max(width, height))
            draw.line(points, fill=255, width=round(wide), joint="curve")
            for x, y in points:
                draw.ellipse((x - wide / 2, y - wide / 2, x + wide / 2, y + wide / 2), fill=255)
    if plane.getbbox() is None:
        return b""
    buffer = io.BytesIO()
    (ImageOps.invert(plane) if paint == "black" else plane).convert("1").save(buffer, "PNG")
    return buffer.getvalue()


ORDERS: Mapping[str, Callable[..., bytes | None]] = {
    "thumbnail": thumbnail,
    "view": view,
    "turned": turned,
    "size": size,
    "change": change,
    "mask": mask,
}


def _small_jpeg(file: bytes) -> Image.Image | None:
    """A JPEG decoded at a fraction of its size, upright; None where only `imaging` may read it."""
    with suppress(OSError, ValueError, SyntaxError):
        picture = Image.open(io.BytesIO(file), formats=["JPEG"])
        if picture.mode in ("RGB", "L"):
            picture.draft("RGB", (THUMBNAIL, THUMBNAIL))
            return ImageOps.exif_transpose(picture).convert("RGB")
    return None


def _decoded(file: bytes) -> Rgb:
    return imaging.decode(file, name="picture", max_pixels=MOST_PIXELS, frames="first").rgb


def _jpeg(picture: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=quality, subsampling=0 if quality > 90 else 2)
    return buffer.getvalue()


def serve(connection: socket.socket, idle_s: float) -> None:
    """Answer orders until there are none for a while, or the page is gone."""
    connection.settimeout(idle_s)
    with suppress(TimeoutError, ConnectionError):
        while True:
            head, files, _, _ = socket.recv_fds(connection, 1 << 20, 4)
            if len(head) < 4:
                return
            order = head[4:]
            while len(order) < int.from_bytes(head[:4], "big"):
                order += connection.recv(1 << 20)
            answer = _answer(order, files)
            status = b"-" if answer is None else b"+"
            connection.settimeout(None)  # the page may be slow to read
            connection.sendall(status + len(answer or b"").to_bytes(8, "big") + (answer or b""))
            connection.settimeout(idle_s)


def _answer(order: bytes, files: list[int]) -> bytes | None:
    try:
        what, more = json.loads(order)
        contents = [_content(file) for file in files]
        return ORDERS[what](*contents, **more)
    except Exception:  # whatever a stranger's picture does to a decoder
        return None
    finally:
        for file in files:
            os.close(file)


def _content(file: int) -> bytes:
    size = os.fstat(file).st_size
    if size > MOST_BYTES:
        raise ValueError("too large")
    return os.pread(file, size, 0)


if __name__ == "__main__":
    with suppress(OSError, ValueError):  # the systemd unit forbids it, and bounds memory itself
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    serve(socket.socket(fileno=int(sys.argv[1])), float(sys.argv[2]))
