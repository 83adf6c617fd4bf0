"""Writes text onto drawn pages, in Pillow's own font and, where that lacks a letter, in one of the system."""

from __future__ import annotations

import os
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from math import ceil
from pathlib import Path

from PIL import ImageDraw, ImageFont

FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "/System/Library/Fonts", "/Library/Fonts")
"""Where systems keep their fonts. Those of users are left out: a daemon and a person draw the same."""
NAMES = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSans[wght].ttf",
    "LiberationSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJK-VF.ttc",
    "DroidSansFallbackFull.ttf",
    "wqy-zenhei.ttc",
    "Arial Unicode.ttf",
    "Hiragino Sans GB.ttc",
)
"""The fonts that are asked for a letter, in this order: of Debian, Fedora and macOS, CJK last."""
NO_LETTER = "\U0010ffff"
"""A character that no font has, and for which each draws its box."""
Bounds = tuple[float, float, float, float]


def write(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, size: int, fill: tuple[int, int, int]
) -> None:
    """Write a line of text at a size in pixels; `place` is its left and the top of Pillow's own font."""
    left, baseline = float(place[0]), place[1] + _font("", size).getmetrics()[0]
    for part, font in _parts(text, size):
        draw.text((left, baseline), part, fill=fill, font=font, anchor="ls")
        left += font.getlength(part)


def length(text: str, size: int) -> float:
    """The width of a line of text, in pixels."""
    return sum(font.getlength(part) for part, font in _parts(text, size))


def bounds(text: str, size: int) -> Bounds:
    """Left, top, right and bottom of a line of text that is written at the origin, in pixels."""
    left, baseline = 0.0, _font("", size).getmetrics()[0]
    boxes: list[Bounds] = []
    for part, font in _parts(text, size):
        box = font.getbbox(part, anchor="ls")
        boxes.append((box[0] + left, box[1] + baseline, box[2] + left, box[3] + baseline))
        left += font.getlength(part)
    lefts, tops, rights, bottoms = zip(*boxes or [(0, 0, 0, 0)], strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def written(text: str) -> str:
    """A text as it is written.

    What no font has a letter for, and what is no letter at all, becomes the plain letter below its accent, or
    a backslash escape.
    """
    return "".join(map(_drawable, unicodedata.normalize("NFC", text)))


def fitted(text: str, size: int, wide: int) -> str:
    """A text as it is written in one line of so many pixels: its middle is left out where it is too long."""
    text = written(text)
    if length(text, size) <= wide:
        return text

    def short(keep: int) -> str:
        return f"{text[: keep // 2]}…{text[len(text) - (keep - keep // 2) :]}" if keep else "…"

    # A text is the wider the more of it is kept.
    most = bisect_right(range(1, len(text)), wide, key=lambda keep: ceil(length(short(keep), size)))
    return short(most if most > 1 else 0)


def _parts(text: str, size: int) -> list[tuple[str, ImageFont.FreeTypeFont]]:
    """A text as it is written, in parts of one font each."""
    return [("".join(part), _font(file or "", size)) for file, part in groupby(written(text), key=_file_with)]


@cache
def _drawable(one: str) -> str:
    if one.isprintable() and _file_with(one) is not None:
        return one
    plain = unicodedata.normalize("NFD", one)[0]
    return plain if plain.isascii() and plain.isalpha() else one.encode("unicode_escape").decode()


@cache
def _file_with(one: str) -> str | None:
    """The first font that draws a character as itself, empty for Pillow's own; None where there is none."""
    if one.isascii():
        return ""
    return next((file for file in ("", *_files()) if _has_letter(file, one)), None)


@cache
def _has_letter(file: str, one: str) -> bool:
    """Whether a font draws a character as itself and not as the box for unknown ones."""
    font = _font(file, 16)
    return bytes(font.getmask(one)) != bytes(font.getmask(NO_LETTER))


@cache
def _files() -> Sequence[str]:
    """The fonts of `NAMES` that this system has and Pillow can read."""
    found: dict[str, str] = {}
    for folder in FOLDERS:
        for place, below, names in os.walk(folder):
            below.sort()  # the same on every run
            for name in set(NAMES).intersection(names):
                found.setdefault(name, str(Path(place, name)))
    return [found[name] for name in NAMES if name in found and _is_readable(found[name])]


def _is_readable(file: str) -> bool:
    try:
        _font(file, 16)
    except OSError:
        return False
    return True


@cache
def _font(file: str, size: int) -> ImageFont.FreeTypeFont:
    # Not by `truetype`, which looks elsewhere for another file of the name when it cannot read this one.
    font = ImageFont.FreeTypeFont(file, size) if file else ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # at a size Pillow's own is no bitmap
    return font
