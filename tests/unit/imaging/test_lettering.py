"""Every letter of a name is drawn, or written so that it can be told; no text overflows its line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from backfire.imaging import lettering
from backfire.types import Rgb

GREEK, CYRILLIC = "Ελλάδα", "Москва"
INK = (32, 32, 32)


@pytest.fixture
def no_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A system with no font of its own."""
    yield from _with_folders((), monkeypatch)


@pytest.fixture
def fonts() -> None:
    """A system with a font that has Greek letters."""
    if lettering.written(GREEK) != GREEK:
        pytest.skip("no font of this system has Greek letters")


def _with_folders(folders: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def forget() -> None:
        for one in (lettering._files, lettering._file_with, lettering._drawable):
            one.cache_clear()

    monkeypatch.setattr(lettering, "FOLDERS", folders)
    forget()
    yield
    forget()


def drawn(text: str) -> Rgb:
    page = Image.new("RGB", (400, 40), (255, 255, 255))
    lettering.write(ImageDraw.Draw(page), (8, 6), text, 22, INK)
    return np.asarray(page)


@pytest.mark.usefixtures("no_fonts")
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\x1b[31m\nb.jpg", r"a\x1b[31m\nb.jpg"),
        ("caf\xe9 e\u0301.jpg", "cafe e.jpg"),
        ("日本.jpg", r"\u65e5\u672c.jpg"),
        ("\u0391\u20131.jpg", r"\u0391\u20131.jpg"),
        ("gpj.\u202eexe", r"gpj.\u202eexe"),
        ("\udcff.jpg", r"\udcff.jpg"),
        (r"caf\xe9.jpg", r"caf\xe9.jpg"),
    ],
)
def test_without_a_font_that_has_them_odd_names_are_written_so_that_they_can_be_told(
    name: str, shown: str
) -> None:
    assert lettering.fitted(name, 11, 2000) == shown
    assert np.array_equal(drawn(name), drawn(shown))


@pytest.mark.usefixtures("fonts")
@pytest.mark.parametrize("text", [GREEK, CYRILLIC, "a\u2013b", "caf\xe9"])
def test_a_letter_that_the_own_font_lacks_is_drawn_in_one_of_the_system(text: str) -> None:
    assert lettering.written(text) == text
    page = Image.new("RGB", (400, 40), (255, 255, 255))
    ImageDraw.Draw(page).text((8, 6), text, fill=INK, font=ImageFont.load_default(22))
    assert not np.array_equal(drawn(text), np.asarray(page)), "these are boxes"
    letters = [drawn(one) for one in dict.fromkeys(text)]
    assert len({one.tobytes() for one in letters}) == len(letters), "no two are the same box"


@pytest.mark.usefixtures("fonts")
def test_a_name_of_two_fonts_is_one_line_as_long_as_it_says() -> None:
    """All its letters stand on one base line, and neither cover each other nor leave a gap."""
    text = f"HH{GREEK}HH"
    left, top, right, bottom = lettering.bounds(text, 22)
    rows, columns = np.nonzero(drawn(text)[..., 0] < 250)
    assert (rows.min() - 6, rows.max() + 1 - 6) == pytest.approx((top, bottom), abs=1)
    # Beside the letters there is a little space, which belongs to them.
    assert left <= columns.min() - 8 <= left + 3
    assert right - 3 <= columns.max() + 1 - 8 <= right
    assert lettering.length(text, 22) == pytest.approx(right, abs=3)
    assert lettering.length(text, 22) == pytest.approx(
        sum(lettering.length(one, 22) for one in ("HH", GREEK, "HH"))
    )


def test_plain_text_is_drawn_as_the_own_font_draws_it() -> None:
    text, font = "a_b (1).jpg: verdict, 0.5 dB · why…", ImageFont.load_default(22)
    page = Image.new("RGB", (400, 40), (255, 255, 255))
    ImageDraw.Draw(page).text((8, 6), text, fill=INK, font=font)
    assert np.array_equal(drawn(text), np.asarray(page))
    assert lettering.bounds(text, 22) == font.getbbox(text)
    assert lettering.length("", 22) == 0
    assert lettering.bounds("", 22) == (0, 0, 0, 0)


def test_a_file_that_is_no_font_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / lettering.NAMES[0]).write_bytes(b"no font")
    for _ in _with_folders((str(tmp_path),), monkeypatch):
        assert lettering.written("\u0391") == r"\u0391"


def test_long_names_keep_their_beginning_and_their_end() -> None:
    short = lettering.fitted("long" * 60 + ".jpg", 11, 100)
    assert short.startswith("long")
    assert short.endswith(".jpg")
    assert "…" in short
    assert len(lettering.fitted("x" * 4000, 11, 5)) <= 2
