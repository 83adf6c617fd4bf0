"""The texts: complete in both languages, and used."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from backfire import web
from backfire.types import JobState, Verdict
from backfire.web.words import LANGUAGES, TEXTS, Words, plain

SOURCE = Path(web.__file__).parent


def test_every_text_is_there_in_both_languages_with_the_same_blanks() -> None:
    for key, text in TEXTS.items():
        assert set(text) == set(LANGUAGES), key
        blanks = [sorted(re.findall(r"\{(\w+)\}", text[language])) for language in LANGUAGES]
        assert blanks[0] == blanks[1], key


def test_every_state_and_verdict_has_a_name() -> None:
    assert {f"state_{state.value}" for state in JobState} <= set(TEXTS)
    assert {verdict.value for verdict in Verdict} <= set(TEXTS)


def test_every_text_that_is_asked_for_exists() -> None:
    files = [*SOURCE.glob("*.py"), *SOURCE.glob("templates/*.html")]
    asked = {
        key for file in files for key in re.findall(r"""\b(?:w|words)\(["'](\w+)["'][,)]""", file.read_text())
    }
    assert len(asked) > 80
    assert asked <= set(TEXTS)


@pytest.mark.parametrize(
    ("language", "number", "size", "share"),
    [("en", "12,345.6", "1.5 MB", "93%"), ("de", "12.345,6", "1,5 MB", "93 %")],
)
def test_numbers_as_the_language_writes_them(language: str, number: str, size: str, share: str) -> None:
    words = Words(language)
    assert (words.number(12345.6, 1), words.size(1_500_000), words.share(0.93)) == (number, size, share)


def test_times_have_a_date_where_they_are_of_another_day() -> None:
    noon = time.mktime((2026, 11, 28, 12, 5, 0, 0, 0, -1))
    english, german = (Words(language, now=lambda: noon + 3600) for language in LANGUAGES)
    assert (english.clock(noon), german.clock(noon)) == ("12:05", "12:05")
    assert english.clock(noon - 86400) == "27 Nov, 12:05"
    assert german.clock(noon - 86400) == "27. Nov., 12:05"
    assert english.clock(noon - 400 * 86400) == "24 Oct 2025, 12:05"


def test_invisible_characters_are_written_out() -> None:
    assert plain("a\u202eb\nc\x00\u200f") == "a⟨202E⟩b⟨000A⟩c⟨0000⟩⟨200F⟩"
    assert plain("naïve · 東京 👍") == "naïve · 東京 👍"
