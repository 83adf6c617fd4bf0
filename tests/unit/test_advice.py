"""The catalogue of sentences: each reason and each code is told in plain words, with an action and a page."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from backfire import advice
from backfire.config import Settings, Verify
from backfire.errors import Code, InputError
from backfire.evaluate import words
from backfire.evaluate.judge import EditResult, judge
from backfire.evaluate.receipt import in_short
from backfire.imaging.decoding import decode
from backfire.imaging.formats import sniff
from backfire.types import Budget, Choice, Job, JobState, MaskKind, Verdict
from backfire.web.actions import offered
from backfire.web.options import Options

ROOT = Path(__file__).parents[2]


def edits(**ssim: float) -> list[EditResult]:
    """Edits that all meet the thresholds, but for those that are given by their kind."""
    fine = {"trigger": 0.4, "dilated": 0.5, "partial": 0.5, "near": 0.95, "far": 0.99, **ssim}
    return [
        EditResult(
            "one",
            0,
            MaskKind(kind),
            value,
            0.1,
            held_out=False,
            control_ssim=0.97 if kind == "trigger" else None,
        )
        for kind, value in fine.items()
    ]


def job(state: JobState = JobState.ARCHIVED, **fields: object) -> Job:
    return dataclasses.replace(Job(17, b"desk/a.jpg", state), **fields)  # type: ignore[arg-type]


def judged(rows: list[EditResult], largest: int = 5) -> Job:
    """A job as the daemon records it after this judgement."""
    verdict, reasons = judge(rows, largest, Budget(5), Verify())
    if verdict == Verdict.FAILED:
        message = f"a.jpg: verification failed: {'; '.join(reasons)}; see the sheet in the reports folder"
        return job(JobState.FAILED, code="not_protected", verdict=verdict, message=message)
    return job(verdict=verdict, message=in_short(reasons))


CASES = {
    "no_tool": edits(trigger=0.8),
    "partial": edits(partial=0.9),
    "dilated": edits(dilated=0.9),
    "held_out": [
        *edits(),
        EditResult("two", 0, MaskKind.TRIGGER, 0.99, 0.01, held_out=True, control_ssim=None),
    ],
    "beside": edits(near=0.5),
    "hardly": edits(trigger=0.99),
    "noise": [
        dataclasses.replace(row, control_ssim=0.62) if row.control_ssim else row for row in edits(trigger=0.6)
    ],
    "not_finite": edits(trigger=float("nan")),
    "not_replayed": edits()[1:],
}


@pytest.mark.parametrize("key", CASES)
def test_what_the_judge_says_is_recognised(key: str) -> None:
    found = advice.of(judged(CASES[key]))
    assert found is not None
    assert found.key == key
    assert not re.search(r"SSIM|L1|0\.\d", str(found)), "numbers are in the details"
    assert re.search(r"\d|replayed|finite", found.details)


def test_a_held_out_editor_that_cannot_judge_is_told_in_both_languages() -> None:
    why = "region 0: the held-out editor other cannot judge, as its edits of one and the same picture differ"
    verdict, reasons = judge(edits(), 5, Budget(5), Verify(), cannot_judge=[why])
    weak = job(verdict=verdict, message=in_short(reasons))
    for language, remedy in (
        ("en", "name another one in verify.held_out"),
        ("de", "einen anderen nennen"),
    ):
        found = advice.of(weak, language, "status_page")
        assert found is not None
        assert found.key == "cannot_judge"
        assert remedy in found.action
    assert words.reason(why).startswith("region 0: other (only judged) cannot judge")


def test_joined_regions_that_are_judged_in_part_are_told_in_both_languages() -> None:
    why = "region 0: edited in 7 parts, of which the 4 largest are replayed, and it stands for 7 regions"
    verdict, reasons = judge(edits(), 5, Budget(5), Verify(), cannot_judge=[why])
    weak = job(verdict=verdict, message=in_short(reasons))
    for language, remedy in (("en", "Raise regions.most"), ("de", "Den Wert von regions.most")):
        found = advice.of(weak, language, "status_page")
        assert found is not None
        assert found.key == "joined"
        assert found.mend.startswith(remedy)


def test_over_budget_and_nothing_at_all() -> None:
    for rows, largest, key in ((edits(), 9, "over_budget"), ([], 5, "not_replayed")):
        found = advice.of(judged(rows, largest))
        assert found is not None
        assert found.key == key


def test_the_tools_are_named() -> None:
    message = "broken in IOPaint; not broken in Forge's whole-picture mode, ComfyUI (and 2 more)"
    found = advice.of(job(verdict=Verdict.WEAK, message=message))
    assert found is not None
    assert (
        found.sentence
        == "An edit of the region does not break enough in Forge's whole-picture mode and ComfyUI."
    )


def test_where_no_tool_breaks_it_the_strength_is_to_be_raised() -> None:
    found = advice.of(judged(edits(trigger=0.8)))
    assert found is not None
    assert found.sentence == "An edit of the region breaks enough in no tool that was tried: IOPaint."
    assert found.action == (
        "It is in the outbox all the same. Accept it, which changes no file and ends this notice: backfire "
        "accept 17; or set protect.strength: strong (in config.yaml, under protect; then reload or restart "
        "the daemon) and drop the original, with its mask if it has one, into the inbox again: its new "
        "result comes to lie beside this one, "
        "under a longer name."
    )


def test_no_sentence_claims_that_an_edit_succeeds() -> None:
    """What is measured is that it does not break; the clean edit by a small editor may itself be poor."""
    said = json.dumps([advice.CATALOGUE[kind] for kind in ("reason", "code")], ensure_ascii=False)
    for word in ("succe", "still works", "still edits", "gelingt noch", "Erfolg", "bearbeitet die Region"):
        assert word not in said


def test_the_gravest_reason_is_told_where_there_are_several() -> None:
    _, reasons = judge(edits(partial=0.86, near=0.5), 5, Budget(5), Verify())
    message = f"a.jpg: protection is weak: {'; '.join(reasons)}; verify.on_weak: publish would let it pass"
    found = advice.of(job(JobState.FAILED, code="weak", verdict=Verdict.WEAK, message=message))
    assert found is not None
    assert found.key == "beside"


@pytest.mark.parametrize("code", list(Code))
def test_every_code_has_a_sentence_and_an_action(code: Code) -> None:
    found = advice.of(job(JobState.FAILED, code=code.value, message=f"a.jpg: {code}"))
    assert found is not None
    assert found.sentence.endswith(".")
    if code == Code.UNSUPPORTED:  # what is exported is another file
        assert found.action.endswith(", and drop that into the inbox.")
    else:
        assert found.action.endswith("; then: backfire retry 17.") == (code not in advice.COPIED_AGAIN)
        assert ("into the inbox" in found.action) == (code in advice.COPIED_AGAIN)
    assert found.details == f"a.jpg: {code}"


@pytest.mark.parametrize(
    "more", ["", "a.gif: has 3 frames, expected 1; save each as a file, or set output.frames: first"]
)
@pytest.mark.parametrize("code", [*Code])
@pytest.mark.parametrize("paint", ["white", ""])
def test_the_page_offers_what_its_sentence_and_the_commands_do(code: Code, more: str, paint: str) -> None:
    one = job(JobState.FAILED, code=code.value, message=more or f"a.jpg: {code}", input_sha256="a")
    sentences = [advice.of(one, where="status_page", masks=bool(paint)), advice.of(one)]
    page, command = (found.action if found else "" for found in sentences)
    actions = offered(one, Options(Path("config.yaml"), {}, ("", 0), masks=((".*", paint),)))
    assert ("retry" in actions) == ("try again" in page) == ("backfire retry" in command)
    assert ("region" in actions) == ("draw a region" in page)


@pytest.mark.parametrize("code", ["no_region", "weak"])
def test_what_is_held_names_the_decision(code: str) -> None:
    found = advice.of(job(JobState.REVIEW, code=code, message="why"))
    assert found is not None
    assert "waits for you" in found.sentence
    assert f"backfire {'accept' if code == 'weak' else 'release'} 17" in found.action
    page = [
        advice.of(job(JobState.REVIEW, code=code, message="why"), where="status_page", masks=masks)
        for masks in (True, False)
    ]
    assert ["draw" in one.action.lower() for one in page if one] == [True, False]


def test_to_publish_unprotected_is_the_last_that_is_offered() -> None:
    held = job(JobState.REVIEW, code="no_region", message="why")
    for where, least in (("command_line", "backfire release 17."), ("status_page", "unprotected.")):
        found = advice.of(held, where=where)  # type: ignore[arg-type]
        assert found is not None
        assert found.action.endswith(least)


def test_of_a_picture_that_is_well_there_is_nothing_to_say() -> None:
    assert advice.of(job(verdict=Verdict.PROTECTED)) is None
    assert advice.of(job(JobState.RUNNING)) is None
    assert advice.of(job(verdict=Verdict.UNPROTECTED)) is None


def test_a_weak_picture_whose_reason_nobody_knows_is_weak() -> None:
    found = advice.of(job(verdict=Verdict.WEAK, message="something new"))
    assert found is not None
    assert (found.key, found.details) == ("weak", "something new")


def test_nobody_is_asked_to_accept_what_is_accepted_or_was_not_published() -> None:
    weak = judged(CASES["partial"])
    accepted = advice.of(dataclasses.replace(weak, choice=Choice.RELEASE))
    assert accepted is not None
    assert accepted.action == "It was accepted as it is."
    failed = advice.of(dataclasses.replace(weak, state=JobState.FAILED, code="weak"))
    assert failed is not None
    assert failed.action == (
        "Set protect.strength: strong (in config.yaml, under protect; then reload or restart the "
        "daemon); then: backfire retry 17."
    )


def test_where_a_setting_stands_is_said_once_and_each_setting_exists() -> None:
    large = advice.of(job(JobState.FAILED, code="too_large", message="a.jpg: too large"), "de", "status_page")
    assert large is not None
    where = "(in config.yaml unter output und limits; danach den Dienst neu laden oder neu starten)"
    assert large.mend == f"Verkleinern, oder output.max_pixels oder limits.max_bytes {where} erhöhen."
    entries = [*advice.CATALOGUE["reason"].values(), *advice.CATALOGUE["code"].values()]
    mends = [mend for one in entries for mend in (one["en"][1], one["de"][1])]
    named = {name for mend in mends for name in re.findall(r"\b[a-z]+\.[a-z_]+\b", mend)}
    assert named
    for section, key in (name.split(".") for name in named):
        assert key in getattr(Settings.model_fields[section].annotation, "model_fields", ())


@pytest.mark.parametrize("language", ["en", "de"])
def test_the_status_page_says_the_same_with_its_buttons(language: str) -> None:
    """No command is named that somebody before a browser cannot give, and none of the blanks stays."""
    jobs = [
        job(JobState.FAILED, code=code.value, message=f"a.jpg: {code}", input_sha256="a") for code in Code
    ]
    jobs += [job(JobState.REVIEW, code=code, message="why") for code in ("no_region", "weak")]
    jobs += [judged(rows) for rows in CASES.values()]
    for one in jobs:
        there, here = advice.of(one, language, "status_page"), advice.of(one)
        assert there is not None
        assert here is not None
        assert "backfire retry" not in str(there)
        assert "backfire release" not in str(there)
        assert "backfire accept" not in str(there)
        assert not re.search(r"[{}]", str(there))
        assert (there.sentence == here.sentence) == (language == "en")
        assert there.key == here.key


def test_the_catalogue_has_both_languages_with_the_same_blanks() -> None:
    for entries in (advice.CATALOGUE["reason"], advice.CATALOGUE["code"]):
        for key, entry in entries.items():
            blanks = [sorted(re.findall(r"{(\w+)}", " ".join(entry[language]))) for language in ("en", "de")]
            assert blanks[0] == blanks[1], key
            assert [len(entry[language]) for language in ("en", "de")] == [2, 2], key
    assert set(advice.CATALOGUE["code"]) == {code.value for code in Code}
    english, german = (set(advice.CATALOGUE["frame"]["status_page"][language]) for language in ("en", "de"))
    assert english == german


def test_every_page_is_there() -> None:
    entries = [*advice.CATALOGUE["reason"].values(), *advice.CATALOGUE["code"].values()]
    pages = {entry["page"] for entry in entries if "page" in entry} | {advice.WEAK_PAGE}
    pages |= {f"docs/troubleshooting/codes.md#{code.value}" for code in Code}
    for page in pages:
        file, _, anchor = page.partition("#")
        headings = re.findall(r"^#+ (.+)$", (ROOT / file).read_text(), re.MULTILINE)
        slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
        assert anchor in slugs, page
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"{project['urls']['Source']}/blob/main/" == advice.DOCUMENTATION


@pytest.mark.parametrize(
    ("data", "name", "sentence", "action"),
    [
        (
            b"\xff\xd8" + bytes(99),
            "a.jpg",
            "The file is a damaged JPEG.",
            "Copy it again from where it came, and drop",
        ),
        (
            b"FUJIFILMCCD-RAW " + bytes(99),
            "a.raf",
            "The file is a camera raw file.",
            "Export it as JPEG or TIFF",
        ),
        (
            b"8BPS" + bytes(99),
            "a.jpg",
            "The file is a Photoshop document.",
            "Save a copy as TIFF (8 or 16 bits)",
        ),
    ],
)
def test_a_file_that_is_no_picture_is_named_by_its_kind(
    data: bytes, name: str, sentence: str, action: str
) -> None:
    with pytest.raises(InputError) as caught:
        sniff(data, name)
    found = advice.of(job(JobState.FAILED, code="unsupported", message=caught.value.message))
    assert found is not None
    assert found.sentence == sentence
    assert found.action.startswith(action)
    stays = "output." in action  # a setting takes the file as it is
    assert found.action.endswith("; then: backfire retry 17." if stays else ", and drop that into the inbox.")
    german = advice.of(
        job(JobState.FAILED, code="unsupported", message=caught.value.message), "de", "status_page"
    )
    assert german is not None
    assert re.search("beschädigtes JPEG|Kamera-Rohdatei|Photoshop-Dokument", german.sentence)


def test_an_animation_is_named_with_the_count_of_its_frames() -> None:
    file = io.BytesIO()
    frames = [Image.new("RGB", (32, 24), colour) for colour in ("red", "blue")]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(InputError) as caught:
        decode(file.getvalue(), name="a.gif", max_pixels=10**6)
    found = advice.of(job(JobState.FAILED, code="unsupported", message=caught.value.message))
    assert found is not None
    assert found.sentence == "The file has 2 pages or frames."
    assert (
        "publish the first alone: set output.frames: first (in config.yaml, under output; then reload or "
        "restart the daemon), and then: " in found.action
    )


@pytest.mark.parametrize("state", [JobState.RELEASING, JobState.SETTLING, JobState.READY, JobState.RUNNING])
def test_a_job_that_goes_on_as_a_person_decided_needs_no_advice(state: JobState) -> None:
    """Its code is that of before the decision; to retry it would be refused."""
    held = job(JobState.REVIEW, code="no_region", message="a.jpg: no region found")
    assert advice.of(held)
    assert advice.of(dataclasses.replace(held, state=state, choice=Choice.AGAIN)) is None
    assert advice.of(dataclasses.replace(held, state=JobState.FAILED, choice=Choice.AGAIN))
