"""What became of a picture and what to do, in one sentence and one action.

The sentences stand in `advice.toml`, in English and German. Job messages hold the names and numbers of one
picture; the sentences are for a person who has not read anything else. `backfire jobs`, `explain` and
`today`, the status page, hooks, the log and the notes beside the originals show them, with the message as the
details.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from backfire.errors import Code
from backfire.types import Choice, Job, JobState, Verdict

CATALOGUE: Mapping[str, Mapping[str, Any]] = tomllib.loads(
    Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
)
"""Frames, reasons, refused kinds of files and codes, as `advice.toml` describes them."""
DOCUMENTATION = "https://github.com/backfire-project/backfire/blob/main/"
"""Where the pages lie for everybody: a wheel, a Debian package and an image hold none of them."""
WEAK_PAGE = "docs/concepts/verdicts.md#what-to-do-about-a-weak-verdict"
REGION_HELPS = frozenset(
    {"no_region", "mask_unreadable", "mask_size", "mask_empty", "not_protected", "weak", "detector"}
)
"""The codes of failures that a region drawn by hand may mend."""
COPIED_AGAIN = frozenset({Code.UNREADABLE, Code.EMPTY, Code.TRUNCATED, Code.CHANGED, Code.CHECKSUM})
"""The codes of files that are to come into the inbox again, so that there is nothing to retry: the bytes in
the failed folder are those that could not be read, ended too early or differ from their checksum."""
Where = Literal["command_line", "status_page"]

_REFUSED = re.compile(r": (?:says \.\w+, )?(?P<what>(?:is|has) [^;]+?), expected [^;]+; (?P<remedy>[^;]+)$")
"""What a file is that is no picture that can be protected, and the remedy, in a job's message."""
_SETTING = re.compile(
    r"\b(?P<section>limits|output|protect|regions|verify|watch)\.[a-z][a-z_.]*\b"
    r"((?:: | to )(\[[^]]*\]|[\w-]+))?"
)
"""A setting with its value, as it is named in what mends a picture."""


@dataclass(frozen=True)
class Advice:
    """What is said of one job.

    Attributes:
        key: of the entry in the catalogue.
        sentence: what became of the picture.
        action: what to do.
        mend: the part of the action that holds for all pictures with this reason.
        bare_mend: the same without where a setting stands, for who is told that once for all pictures.
        page: the address of the page of the documentation that says more, with its anchor.
        details: the job's own message, with names and numbers.
    """

    key: str
    sentence: str
    action: str
    mend: str
    bare_mend: str
    page: str
    details: str

    def __str__(self) -> str:
        return f"{self.sentence} {self.action}"


@dataclass(frozen=True)
class _Entry:
    """What is said of a reason or a code, with its blanks filled; the page by its path in the repository."""

    key: str
    sentence: str
    mend: str
    page: str


DECIDED = frozenset({JobState.RELEASING, JobState.SETTLING, JobState.READY, JobState.RUNNING})
"""The states of a job that goes on as a person decided, in which its code is still that of before."""


def of(job: Job, language: str = "en", where: Where = "command_line", *, masks: bool = True) -> Advice | None:
    """What to say of a job that failed, is held or is weak; None of others.

    Args:
        language: `en` or, on the status page, `de`.
        where: what the person can use: commands or buttons.
        masks: whether the status page offers to draw a region, since the picture's settings read masks.
    """
    message, key = job.message or "", job.code or ""
    known = Code(key) if key in [*Code] else None
    if known is None and job.verdict != Verdict.WEAK:
        return None
    if job.choice is not None and job.state in DECIDED:
        return None
    held = job.state in (JobState.HOLDING, JobState.REVIEW)
    found = None
    if known in (None, Code.NOT_PROTECTED, Code.WEAK):
        found = _by_reason(message, language)
    if known == Code.UNSUPPORTED:
        found = _refused(message, language)
    if found is None:
        code = known or Code.WEAK
        found = _entry(code.value, CATALOGUE["code"][code.value], language, code.value)
    sentence = CATALOGUE["waits"][language].format(sentence=found.sentence) if held else found.sentence
    frames = CATALOGUE["frame"][where][language]
    mends = _placed(found.mend, language)
    mend = _begun(mends)
    frame = frames[_frame(job, known, where, found.mend, masks=masks)]
    action = frame.format(id=job.id, mend=mends, Mend=mend)
    key = f"held_{known.value}" if held and known else found.key
    bare = f"{_begun(found.mend)}."
    return Advice(key, sentence, action, f"{mend}.", bare, DOCUMENTATION + found.page, message)


def _begun(text: str) -> str:
    """A text as the beginning of a sentence."""
    return text[:1].upper() + text[1:]


def may_retry(job: Job) -> bool:
    """Whether another try of a failed job is what its advice ends with; commands and page offer no other."""
    if (found := of(job)) is None:
        return True
    key = job.code or ""
    known = Code(key) if key in [*Code] else None
    return _frame(job, known, "command_line", found.mend) not in ("failed_again", "failed_other")


def _frame(job: Job, known: Code | None, where: Where, mend: str, *, masks: bool = True) -> str:
    """Which frame the action has, by how the picture stands."""
    if job.state in (JobState.HOLDING, JobState.REVIEW) and known in (Code.NO_REGION, Code.WEAK):
        return f"held_{known.value}{'' if masks else '_without_masks'}"
    if known is None:
        return "accepted" if job.choice == Choice.RELEASE else "published"
    if known == Code.UNSUPPORTED:  # what is exported is another file, which no retry would find
        return "failed_either" if "output." in mend else "failed_other"
    if known in COPIED_AGAIN:
        return "failed_again"
    drawn = where == "status_page" and masks and known.value in REGION_HELPS and job.input_sha256 is not None
    return "failed_region" if drawn else "failed"


def _placed(mend: str, language: str) -> str:
    """What mends a picture, with where in the configuration the settings stand that it names."""
    named = [*_SETTING.finditer(mend)]
    if not named:
        return mend
    sections = ", ".join(dict.fromkeys(match["section"] for match in named))
    stands: str = CATALOGUE["stands"][language].format(sections=_listed(sections, language))
    end = named[-1].end()
    return mend[:end] + stands + mend[end:]


def names_setting(text: str) -> bool:
    """Whether a text names a setting that is to be changed."""
    return _SETTING.search(text) is not None


def _entry(
    key: str, entry: Mapping[str, Any], language: str, code: str, words: Mapping[str, str] | None = None
) -> _Entry:
    sentence, mend = (text.format(**(words or {})) for text in entry[language])
    page = WEAK_PAGE if code == "reason" else f"docs/troubleshooting/codes.md#{code}"
    return _Entry(key, sentence, mend, entry.get("page", page))


def _by_reason(message: str, language: str) -> _Entry | None:
    """The entry for the reason that stands first in a message, which is the gravest one."""
    entries: Mapping[str, Mapping[str, Any]] = CATALOGUE["reason"]
    found = {key: match for key, entry in entries.items() if (match := re.search(entry["pattern"], message))}
    if not found:
        return None
    key, match = min(found.items(), key=lambda item: item[1].start())
    names = {name: _listed(text, language) for name, text in match.groupdict().items()}
    return _entry(key, entries[key], language, "reason", names)


def _listed(names: str, language: str) -> str:
    """Names between commas, with the word before the last that a person would say."""
    *others, last = names.split(", ")
    word = "und" if language == "de" else "and"
    return f"{', '.join(others)} {word} {last}" if others else last


def _refused(message: str, language: str) -> _Entry | None:
    """What a refused file is: English as the message says it, other languages by its kind."""
    code = Code.UNSUPPORTED.value
    if (refused := _REFUSED.search(message)) is None:
        return None
    if language == "en":
        page = f"docs/troubleshooting/codes.md#{code}"
        return _Entry(code, f"The file {refused['what']}.", refused["remedy"], page)
    for entry in CATALOGUE["refused"].values():
        if (match := re.search(entry["pattern"], refused["what"])) is not None:
            return _entry(code, entry, language, code, match.groupdict())
    return None
