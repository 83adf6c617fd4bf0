"""The commands that read the job database, on jobs of a service whose worker is a function."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner, Result

from backfire import advice
from backfire.admin import decisions
from backfire.admin.named import NotOneJob
from backfire.cli import edits
from backfire.cli.commands import app
from backfire.cli.common import UNKNOWN_FILE, print_receipt
from backfire.config import Verify
from backfire.errors import ConfigError, StoreError
from backfire.evaluate.judge import EditResult
from backfire.imaging import formats
from backfire.service.worker.protocol import Finished, Order
from backfire.types import Choice, Event, JobState, MaskKind, Verdict
from benchmarks import passthrough
from tests.support.house import House, house
from tests.support.pictures import encoded, photo

__all__ = ["house"]

SOON = {"settle_s": 1, "mask_wait_s": 0, "rescan_s": 1}
REASONS = (
    "region 0: partial edit by flux2-mini keeps SSIM 0.869 of the clean edit, at most 0.85 asked",
    "more",
)


def tell(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


@pytest.fixture
def weak(house: Callable[..., House], monkeypatch: pytest.MonkeyPatch) -> House:
    """A house in which desk/me.png was published as weak; its folder becomes the working folder."""

    def process(order: Order, progress: Callable[[str, int, int], None]) -> Finished:
        done = passthrough.process(order, progress)
        (order.folder / "sheet.jpg").write_bytes(b"sheet")
        receipt = order.folder / "receipt.json"
        receipt.write_text(json.dumps({**json.loads(receipt.read_text()), "reasons": REASONS}))
        return replace(done, verdict=Verdict.WEAK, reasons=REASONS)

    home = house(watch=SOON)
    home.process = process
    monkeypatch.chdir(home.base)
    (home.base / "config.yaml").write_text(yaml.safe_dump({"folders": {"inbox": "inbox"}}))
    (home.base / "inbox" / "desk").mkdir()
    (home.base / "inbox" / "desk" / "me.png").write_bytes(encoded(photo()))
    home.turn(times=8)
    assert home.states() == ["archived"]
    return home


def test_a_weak_job_says_why_where_the_measurements_are_and_what_to_do(weak: House) -> None:
    why = f"{REASONS[0]} (and 1 more)"
    assert [job["message"] for job in json.loads(tell("jobs", "--json").stdout)] == [why]
    said = "An edit of half the region does not break enough."
    assert said in " ".join(tell("jobs").stdout.split())
    lines = [line.strip() for line in tell("explain", "desk/me.png").stdout.splitlines()]
    assert lines[0].startswith("desk/me.png: is done, but its protection is weak; the result is ")
    assert lines[0].endswith(f"; its original is {weak.base / 'archive' / 'desk' / 'me.png'}")
    reports = [str(weak.base / "reports" / "desk" / f"me.png{end}") for end in (".json", ".sheet.jpg")]
    assert lines[-4:] == [*(f"details: {reason}" for reason in REASONS), *reports]
    assert lines[-6].startswith(f"{said} It is in the outbox all the same. Accept it, which changes no file")
    assert lines[-5] == f"more: {advice.DOCUMENTATION}{advice.WEAK_PAGE}"
    (job,) = json.loads(tell("explain", "desk/me.png", "--json").stdout)["jobs"]
    assert (job["message"], job["reports"]) == (why, reports)


@pytest.mark.parametrize(("verdict", "told"), [("protected", True), ("weak", True), ("failed", False)])
def test_what_becomes_of_edits_by_a_larger_mask_is_told(weak: House, verdict: str, told: bool) -> None:
    file = weak.base / "reports" / "desk" / "me.png.json"
    known = {**json.loads(file.read_text()), "verdict": verdict, "tools_dilated": {"iopaint": True}}
    sentence = "edits of the region and a little more: broken in IOPaint"
    for reasons in (REASONS, ()):
        file.write_text(json.dumps({**known, "reasons": reasons}))
        assert (sentence in tell("explain", "desk/me.png").stdout) == told


def test_jobs_are_listed_by_verdict(weak: House) -> None:
    assert len(json.loads(tell("jobs", "--verdict", "weak", "--json").stdout)) == 1
    assert json.loads(tell("jobs", "--verdict", "protected", "--json").stdout) == []
    assert len(json.loads(tell("jobs", "--state", "archived", "--json").stdout)) == 1
    refused = tell("jobs", "--state", "weak")
    assert refused.exit_code == 2
    assert "--verdict weak" in refused.output
    assert tell("jobs", "--state", "archve").exit_code == 2


def test_status_counts_verdicts_and_says_when_it_last_worked(weak: House) -> None:
    assert json.loads(tell("status", "--json").stdout)["verdicts"] == {"weak": 1}
    weak.crash()  # gives up the lock
    told = tell("status").stdout
    assert told.startswith("not running; last worked 20")
    assert "       1 weak\n" in told
    assert "backfire today says which pictures need a person" in told


def test_retry_of_a_published_picture_says_how_to_protect_it_anew(weak: House) -> None:
    told = tell("retry", "1")
    assert told.exit_code == 3
    original = weak.base / "archive" / "desk" / "me.png"
    command = f"backfire protect {original} -c config.yaml -o NEW.png"
    assert f"job 1 was published as weak; to protect it anew: {command}" in told.stdout
    assert original.exists()
    assert weak.files("inbox") == {}


def test_a_file_that_was_never_a_job_is_an_error_with_near_names(weak: House) -> None:
    for unknown in ("desk/ma.png", "desk/me.jpg", "ma.png"):
        told = tell("explain", unknown)
        assert told.exit_code == UNKNOWN_FILE
        assert "no job had this name" in told.stdout
        assert "near names: desk/me.png" in told.stdout
    told = tell("explain", "desk/ma.png", "--json")
    assert (told.exit_code, json.loads(told.stdout)["near"]) == (UNKNOWN_FILE, ["desk/me.png"])
    (weak.base / "inbox" / "waits.png").write_bytes(b"")
    assert tell("explain", "waits.png").exit_code == 0
    assert "near names: waits.png" in tell("explain", "wait.png").stdout


def test_a_name_without_its_folder_is_enough_unless_several_pictures_have_it(weak: House) -> None:
    told = tell("explain", "me.png")
    assert (told.exit_code, told.stdout.partition(":")[0]) == (0, "desk/me.png")
    (weak.base / "inbox" / "web").mkdir()
    (weak.base / "inbox" / "web" / "me.png").write_bytes(b"")
    told = tell("explain", "me.png")
    assert told.exit_code == UNKNOWN_FILE
    assert told.stdout.splitlines() == [
        "me.png: 2 pictures have this name; name one of them",
        "  web/me.png",
        "  desk/me.png",
    ]
    assert tell("explain", "web/me.png").exit_code == 0


def test_a_file_that_belongs_to_no_picture_is_told_as_the_daemon_saw_it(weak: House) -> None:
    (weak.base / "inbox" / "letter.pdf").write_bytes(b"%PDF-1.7")
    why = "is no picture and stays in the inbox"
    weak.service.jobs.store.set_fact("daemon", {"unused": {"letter.pdf": why}}, at=time.time())
    assert tell("explain", "letter.pdf").stdout == f"letter.pdf: {why}\n"


def test_a_companion_that_moved_is_found_with_its_picture(weak: House) -> None:
    (weak.base / "inbox" / "desk" / "me.aae").write_text("<plist/>")
    weak.turn(times=8)
    assert "desk/me.aae" not in weak.files("inbox")
    folder = weak.base / "archive"
    told = tell("explain", "desk/me.aae")
    went = f"went with it, and is in {folder}; it is never published, and nothing is to be done with it"
    assert " ".join(told.stdout.split()) == f"desk/me.aae: belongs to desk/me.png, {went}"
    assert told.exit_code == 0
    assert tell("explain", "desk/other.aae").exit_code == UNKNOWN_FILE


@pytest.mark.parametrize("mask", ["desk/me.mask.png", "desk/me.png.mask.png", "desk/masks/me.png"])
def test_a_mask_that_moved_is_found_with_its_picture(weak: House, mask: str) -> None:
    file = weak.base / "archive" / mask
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"mask")
    told = tell("explain", mask)
    assert told.exit_code == 0
    assert told.stdout.startswith(f"{mask}: is the mask of desk/me.png, went with it, and is in")
    assert tell("explain", "desk/other.mask.png").exit_code == UNKNOWN_FILE
    assert told.stdout.endswith("nothing is to be done with it\n")
    # Seen from the folder of the configuration the path may also lead into the archive.
    assert tell("explain", str(file)).stdout == told.stdout
    (weak.base / "failed" / mask).parent.mkdir(parents=True)
    file.rename(weak.base / "failed" / mask)
    assert tell("explain", mask).stdout.endswith("; backfire explain desk/me.png says what to do\n")


def test_a_picture_is_found_by_the_name_of_its_result(weak: House) -> None:
    store = weak.service.jobs.store
    (job,) = store.add([b"desk/scan.gif"], at=1.0)
    store.update(job.id, JobState.ARCHIVED, at=2.0, output_path=b"desk/scan.png")
    for name in ("outbox/desk/scan.png", "scan.png", "scan.gif"):
        told = tell("explain", name)
        assert (told.exit_code, told.stdout.partition(":")[0]) == (0, "desk/scan.gif"), name


def test_jobs_fit_eighty_columns_and_are_narrowed_by_time_and_name(weak: House) -> None:
    store, now = weak.service.jobs.store, time.time()
    for name, at in ((b"old/x.png", now - 3 * 86400), (b"new/\x1b[31mx.png", now - 60)):
        (job,) = store.add([name], at=at)
        message = f"{name.decode()}: " + "this mask has another size than its picture; " * 5
        store.update(job.id, JobState.FAILED, at=at, code="mask_size", message=message)
    told = tell("jobs").stdout
    assert max(map(len, told.splitlines())) <= 80
    assert "\x1b" not in told
    assert r"new/\x1b[31mx.png" in told
    assert time.strftime("%H:%M", time.localtime(now - 60)) in told

    def paths(*arguments: str) -> list[str]:
        return [job["path"] for job in json.loads(tell("jobs", *arguments, "--json").stdout)]

    assert paths("--since", "2h") == ["new/\x1b[31mx.png"]
    assert paths("--search", "OLD/") == ["old/x.png"]
    assert len(paths("--since", "5d", "--limit", "9")) == 2
    assert tell("jobs", "--since", "soon").exit_code == 2
    assert tell("jobs", "--search", "%").stdout == "no such jobs\n"


def test_a_failure_that_was_tried_again_counts_once(weak: House) -> None:
    store, now = weak.service.jobs.store, time.time()
    for state in (JobState.FAILED, JobState.FAILED, JobState.ARCHIVED):
        (job,) = store.add([b"again.png"], at=now)
        verdict = Verdict.PROTECTED if state == JobState.ARCHIVED else None
        store.update(job.id, state, at=now, verdict=verdict)
        listed = json.loads(tell("jobs", "--search", "again", "--json").stdout)
        assert [one["id"] for one in listed] == [job.id]
    assert json.loads(tell("status", "--json").stdout)["today"] == {"protected": 1}
    assert "job 2 was tried again as job 4, which is archived" in tell("retry", "2").stdout


def test_status_and_today_say_how_long_the_queue_takes_here(weak: House) -> None:
    store, now = weak.service.jobs.store, time.time()
    store.set_fact("daemon", {"workers": 2}, at=now)
    for seconds in (10, 30):
        (job,) = store.add([b"%d.png" % seconds], at=now)
        store.update(job.id, JobState.READY, at=now)
        store.start_attempt(job.id, at=now)
        store.update(job.id, JobState.PUBLISHING, at=now + seconds, verdict=Verdict.PROTECTED)
        store.update(job.id, JobState.ARCHIVED, at=now + 900)
    store.add([b"w%d.png" % number for number in range(9)], at=now)
    document = json.loads(tell("status", "--json").stdout)
    each = (10 + 30 + 0) / 3  # the picture of the fixture took no time at all, and counts
    assert document["seconds_a_picture"] == pytest.approx(each)
    assert document["eta_s"] == pytest.approx(9 * each / 2)
    assert "9 waiting, about 60 s (13.3 s a picture on this machine)" in tell("status").stdout
    told = tell("today").stdout
    assert "11  pictures came in" in told
    assert "9  waiting      about 60 s" in told


def test_decisions_are_told_in_the_words_of_the_commands(weak: House) -> None:
    store = weak.service.jobs.store
    assert "   job  picture: why\n     1  desk/me.png: " in tell("accept").stdout
    assert tell("accept", "1", "--by", "anna").exit_code == 0
    told = tell("explain", "desk/me.png").stdout
    assert "is done; its protection is weak, which was accepted by anna; the result is" in told
    assert re.search(r" archived +accepted, by anna$", told, re.MULTILINE)
    again = tell("accept", "1")
    assert again.stdout == "job 1 (desk/me.png): was accepted already; nothing was changed\n"
    (job,) = store.add([b"held.png"], at=time.time())
    review = store.update(job.id, JobState.REVIEW, at=time.time(), code="no_region")
    assert tell("release").stdout.splitlines()[1:2] == ["   job  picture: why"]
    folder = weak.settings.folders.review
    folder.mkdir(exist_ok=True)
    (folder / "held.png").write_bytes(data := encoded(photo()))
    store.update(review.id, JobState.REVIEW, at=time.time(), input_sha256=hashlib.sha256(data).hexdigest())
    mask = np.zeros((photo().height, photo().width), np.uint8)
    mask[10:40, 10:40] = 255
    Image.fromarray(mask).save("deer.png")
    assert "1 to be protected" in tell("release", "2", "--mask", "deer.png", "--by", "bert").stdout
    late = tell("release", "2").stdout
    assert late.endswith("; it was released with the mask deer.png by bert; nothing was changed\n")
    assert not late.startswith("0 "), "the reason alone, without a count of nothing"
    history = tell("explain", "held.png").stdout
    assert re.search(r" releasing +released with the mask deer\.png, by bert$", history, re.MULTILINE)
    assert tell("retry", "1").stdout.startswith("desk/me.png: not moved: ")


def test_names_in_a_history_cannot_move_the_cursor_of_a_terminal(weak: House) -> None:
    """Rich lets escape characters pass, and names come from whoever may write into the inbox."""
    store, hostile = weak.service.jobs.store, "\x1b[2Jx"
    (job,) = store.add([b"a.png"], at=time.time())
    detail = {"masks": [f"{hostile}.mask.png"], "reason": hostile}
    store.update(job.id, JobState.FAILED, at=time.time(), detail=detail, code="no_region", message="m")
    told = tell("explain", "a.png").stdout
    assert "masks \\x1b[2Jx.mask.png, reason \\x1b[2Jx" in told
    (held,) = store.add([os.fsencode(f"{hostile}.png")], at=time.time())
    store.update(held.id, JobState.FAILED, at=time.time(), code="no_region", message="m")
    refused, kept = tell("release", str(held.id)), tell("retry", str(held.id))
    assert "\\x1b[2Jx.png" in refused.stdout
    assert "\x1b" not in told + refused.stdout + kept.stdout


@pytest.mark.parametrize(
    ("state", "choice", "words"),
    [
        (JobState.ARCHIVED, "release", "accepted"),
        (JobState.RELEASING, "release", "released as it is"),
        (JobState.RELEASING, "whole", "released to be protected whole"),
        (JobState.RELEASING, "again", "released to be worked again"),
        (JobState.RELEASING, "of a later version", "of a later version"),
    ],
)
def test_decisions_of_earlier_versions_are_told_too(state: JobState, choice: str, words: str) -> None:
    assert decisions.in_words(Event(0.0, state, {"decided": choice, "by": "root"})) == words


def test_status_and_today_tell_what_is_worked_from_what_waits(weak: House) -> None:
    store, now = weak.service.jobs.store, time.time()
    for state in (JobState.RUNNING, JobState.SETTING_ASIDE, JobState.READY):
        (job,) = store.add([f"{state}.png".encode()], at=now)
        store.update(job.id, state, at=now)
    for command in ("status", "today"):
        document = json.loads(tell(command, "--json").stdout)
        assert (document["working"], document["waiting"]) == (2, 1)
        assert re.search(r"^ +2 +working$", tell(command).stdout, re.MULTILINE)
        assert re.search(r"^ +1 +waiting", tell(command).stdout, re.MULTILINE)


def test_files_that_no_picture_uses_need_nobody(weak: House) -> None:
    store = weak.service.jobs.store
    store.update(1, JobState.ARCHIVED, at=time.time(), choice=Choice.RELEASE)
    store.set_fact("daemon", {"unused": {"notes.txt": "is no picture"}}, at=time.time())
    told = tell("today").stdout
    assert "nothing needs a person\n1 file that no picture uses stays in the inbox:\n" in told
    assert re.search(r"^ +1 +is no picture \(notes\.txt\)$", told, re.MULTILINE)
    store.set_fact("daemon", {"unused": {"a.txt": "x", "b.txt": "x"}}, at=time.time())
    assert "2 files that no picture uses stay in the inbox:\n" in tell("today").stdout
    fact = {"unused": {"a.txt": "x", "b.txt": "x"}, "unreadable": {"shut": "y"}}
    store.set_fact("daemon", {**fact, "in_all": {"unused": 300, "unreadable": 40}}, at=time.time())
    told = tell("today").stdout
    assert "300 files that no picture uses stay in the inbox; 2 of them:\n" in told
    assert "40 folders" in told
    assert json.loads(tell("today", "--json").stdout)["left_over_in_all"] == 300
    told = tell("status").stdout
    assert "300 files are used by no picture; named above: 2\n" in told
    assert "40 folders cannot be read; named above: 1\n" in told


def test_a_weak_picture_of_another_day_is_not_forgotten(weak: House) -> None:
    store = weak.service.jobs.store
    store.update(1, JobState.ARCHIVED, at=time.time() - 3 * 86400)
    assert "and 1 weak picture from before today: backfire accept" in tell("today").stdout
    assert json.loads(tell("today", "--json").stdout)["earlier_weak"] == 1
    assert "1 weak\n" in tell("accept").stdout


def test_a_changed_setting_is_told_to_the_daemon_as_it_runs(
    weak: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, now = weak.service.jobs.store, time.time()
    store.update(1, JobState.ARCHIVED, at=now, message="not broken in IOPaint")
    store.set_fact("daemon", {"pid": 4321}, at=now)
    monkeypatch.setattr("backfire.admin.status.is_alive", lambda *_: False)
    told = " ".join(tell("today").stdout.split())
    assert "the daemon reads it when it is started" in told
    assert "reload" not in told
    monkeypatch.setattr("backfire.admin.status.is_alive", lambda *_: True)
    told = " ".join(tell("today").stdout.split())
    assert "where the daemon is a service of the system, else kill -HUP 4321" in told
    assert told.count("reload") == 1, "once for all pictures"


def test_status_of_an_empty_day_has_no_heading_without_figures(weak: House) -> None:
    assert "in all:" in tell("status").stdout
    weak.service.jobs.store.prune(before=time.time() + 60)
    told = tell("status").stdout
    assert "in all:" not in told
    assert "today: nothing yet" in told


def test_today_says_what_needs_a_person_and_what_to_do(weak: House) -> None:
    store, now = weak.service.jobs.store, time.time()
    for name in ("a.png", "b.png"):
        (job,) = store.add([name.encode()], at=now)
        message = f"{name}: has 1 px; export it again"
        store.update(job.id, JobState.FAILED, at=now, code="mask_size", message=message)
    (job,) = store.add([b"cat.png"], at=now)
    store.update(job.id, JobState.REVIEW, at=now, code="no_region", message="cat.png: nothing was found")
    told = tell("today").stdout
    assert len(told.splitlines()) <= 24, "one screen"
    assert max(map(len, told.splitlines())) <= 80
    said = " ".join(told.split())
    assert "- 2 failed: drop a mended picture into the inbox, or mend it in failed/ and then" in said
    assert " 2 The picture's mask has another size than the picture. " in said
    assert "(b.png is job 3, a.png is job 2)" in said
    assert "- 1 held: not published; decide: backfire release" in said
    assert " 1 Nothing to protect was found. The picture waits for you. " in said
    assert "(cat.png is job 4)" in said
    store.update(job.id, JobState.RELEASING, at=now)
    (job,) = store.add([b"deep/" * 700 + b"last.png"], at=now)
    store.update(job.id, JobState.REVIEW, at=now, code="no_region", message="nothing was found")
    told = tell("today").stdout
    assert len(told.splitlines()) <= 24, "one screen also with a path of 3.5 kB"
    assert re.search(r"\(deep/deep/\S+…\S+/deep/last\.png is\s+job 5\)", told)
    store.update(job.id, JobState.RELEASING, at=now)
    needs = json.loads(tell("today", "--json").stdout)["needs"]
    assert [(need["what"], need["count"]) for need in needs] == [("failed", 2)]


def test_today_tells_raw_files_of_several_makers_together(weak: House) -> None:
    store, now = weak.service.jobs.store, time.time()
    for name in ("a.nef", "b.cr2"):
        (job,) = store.add([name.encode()], at=now)
        refused = formats.raw_by_name(b"II*\0", name)
        assert refused is not None
        store.update(job.id, JobState.FAILED, at=now, code=refused.code.value, message=refused.message)
    said = " ".join(tell("today").stdout.split())
    assert (
        " 2 The file is a camera raw file. Export it as JPEG or TIFF. (b.cr2 is job 3, a.nef is job 2)"
        in said
    )


def test_retry_says_what_a_job_is_that_cannot_be_retried(weak: House) -> None:
    store = weak.service.jobs.store
    said = {
        JobState.REVIEW: "job 2 is held in",
        JobState.SKIPPED: "job 3 has no file",
        JobState.READY: "job 4 is ready and did not fail",
        JobState.FAILED: "job 5 failed, but its original is gone",
    }
    for number, state in enumerate(said, start=2):
        (job,) = store.add([b"%d.png" % number], at=1.0)
        store.update(job.id, state, at=2.0)
    told = tell("retry", "2", "3", "4", "5", "99")
    assert told.exit_code == 3
    for sentence in said.values():
        assert sentence in told.stdout
    assert "no job 99" in told.stdout


def put(house: House, state: JobState, *names: str) -> None:
    """One job after the other in a state, of pictures of these names."""
    store = house.service.jobs.store
    for name in names:
        (job,) = store.add([os.fsencode(name)], at=time.time())
        store.update(job.id, state, at=time.time(), code="no_region")


def test_a_name_that_pictures_in_several_folders_have_or_had_stands_for_none(weak: House) -> None:
    # The fixture's desk/me.png is archived.
    put(weak, JobState.REVIEW, "me.png")
    several = r"me\.png: 2 pictures have this name; give the number of a job: 2 \(me\.png\); nothing was done"
    for command in ("release", "retry", "accept"):
        with pytest.raises(NotOneJob, match=several if command == "release" else "me.png: 2 pictures"):
            tell(command, "me.png")
    assert "job 2 (me.png): its original is not in" in tell("release", "./me.png").stdout
    put(weak, JobState.REVIEW, "me.png")
    with pytest.raises(NotOneJob, match=r"it has several jobs; give the number of a job: 2 \(me\.png\), 3"):
        tell("release", "./me.png")


def test_a_path_that_leads_elsewhere_names_no_picture(weak: House, monkeypatch: pytest.MonkeyPatch) -> None:
    put(weak, JobState.REVIEW, "held.png", "web/b.png")
    link = weak.base.parent / "share"
    link.symlink_to(weak.base)
    for path in (
        "/mnt/share/held.png", "outbox/held.png", f"{weak.base}/archive/held.png", f"{link}/outbox/held.png",
        f"{weak.base}/review/web/held.png", "other/held.png",
    ):  # fmt: skip
        with pytest.raises(NotOneJob, match=r"has a job; .*; nothing was done$"):
            tell("release", path)
    (weak.base.parent / "new.jpg").write_bytes(b"elsewhere")
    for elsewhere in (weak.base.parent / "new.jpg", Path("../new.jpg")):
        with pytest.raises(NotOneJob, match=r"no picture of this name has a job"):
            tell("release", str(elsewhere))
    refused = "job 2 (held.png): its original is not in"
    for path in (f"{weak.base}/review/held.png", f"{link}/inbox/held.png", "inbox/held.png", "held.png"):
        assert refused in tell("release", path).stdout, path
    (weak.base / "inbox/web").mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(weak.base / "inbox/web")
    told = tell("release", "./b.png", "-c", str(weak.base / "config.yaml"))
    assert "job 3 (web/b.png): its original is not in" in told.stdout


def test_names_are_told_as_they_are_and_cannot_forge_lines(weak: House) -> None:
    put(weak, JobState.FAILED, "Zoe\u0301.jpg", "x\nbackfire: all of them are safe/a.jpg", "a.jpg", "7")
    gone = "not moved: job {} failed, but its original is gone"
    assert gone.format(2) in tell("retry", "Zo\xe9.jpg").stdout
    assert gone.format(5) in tell("retry", "./7").stdout
    with pytest.raises(NotOneJob, match="2 pictures") as error:
        tell("retry", "a.jpg")
    assert "\n" not in str(error.value)
    with pytest.raises(NotOneJob, match=r"near names: desk/me\.png, .*; nothing was done$"):
        tell("retry", "desk/ma.png")
    (weak.base / "inbox/new.jpg").write_bytes(b"waits")
    with pytest.raises(NotOneJob, match=r"new\.jpg: it waits in the inbox and has no job yet"):
        tell("release", "new.jpg")


def test_a_weak_picture_is_accepted_by_its_name_and_named(weak: House) -> None:
    assert tell("accept", "me.png").stdout == "1 accepted: desk/me.png\n"
    assert "job 1 (desk/me.png): was accepted already" in tell("accept", "me.png").stdout


def test_retry_says_which_pictures_will_most_likely_fail_again(weak: House) -> None:
    store, failed, data = weak.service.jobs.store, weak.base / "failed", b"damaged"
    failed.mkdir(exist_ok=True)
    sha256 = hashlib.sha256(data).hexdigest()
    for name, code in (("a", "unreadable"), ("b", "no_region"), ("c", "changed"), ("d", "unreadable")):
        (job,) = store.add([f"{name}.jpg".encode()], at=time.time())
        store.update(job.id, JobState.FAILED, at=time.time(), code=code, input_sha256=sha256)
        (failed / f"{name}.jpg").write_bytes(data)
    (failed / "d.jpg").write_bytes(b"mended")
    about = {"file": "d.jpg", "input_sha256": sha256}
    (failed / "d.jpg.error.json").write_text(json.dumps(about))
    told = tell("retry", "--failed")
    assert told.exit_code == 0
    first, second = told.stdout.splitlines()
    assert first.startswith("4 moved back into ")
    assert second.startswith("1 of them will most likely fail again")
    assert second.endswith(": a.jpg")


def test_a_path_may_be_relative_to_the_working_folder_the_configuration_or_the_inbox(
    weak: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(weak.base.parent)
    config = os.path.join(weak.base.name, "config.yaml")
    for path in (
        "inbox/desk/me.png",
        f"{weak.base.name}/inbox/desk/me.png",
        "desk/me.png",
        "outbox/desk/me.png",
    ):
        told = tell("explain", path, "-c", config)
        assert (told.exit_code, told.stdout.partition(":")[0]) == (0, "desk/me.png"), path


def test_before_the_first_run_both_commands_name_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"folders": {"inbox": "inbox"}}))
    for command in (["status"], ["explain", "inbox/me.png"]):
        with pytest.raises(StoreError, match="what lies in the inbox waits for `backfire once`"):
            tell(*command)


def test_each_threshold_is_shown_beside_the_measurement_in_80_columns() -> None:
    tool, micro = "comfyui-stitch-512", "flux2-micro"
    replayed = [
        EditResult("flux2-mini", 0, MaskKind.TRIGGER, 0.7, 0.1, False, control_ssim=0.97, visible=0.6),
        EditResult("flux2-mini", 0, MaskKind.DILATED, 0.869, 0.1, held_out=False, visible=1.0),
        EditResult("flux2-mini", 0, MaskKind.PARTIAL, -0.869, 0.1, held_out=False, visible=0.2),
        EditResult("flux2-mini", 0, MaskKind.FAR, 0.91, 0.01, held_out=False),
        EditResult("flux2-mini", 0, MaskKind.TRIGGER, 0.8, 0.1, False, path=tool, visible=0.3),
        EditResult("flux2-mini", 0, MaskKind.DILATED, 0.97, 0.01, False, path=tool, visible=0.0),
        EditResult(micro, 0, MaskKind.TRIGGER, 0.9, 0.1, True, path=tool, visible=0.3, flattened=True),
    ]
    receipt: dict[str, Any] = {"verdict": "weak", "file": "me.jpg", "reasons": []}
    receipt["edits"] = [{**edit.row(), "on_sheet": [0, 0, 9, 9]} for edit in replayed]
    printed = io.StringIO()
    print_receipt(receipt, Verify(), Console(file=printed, width=80))
    _, *lines = printed.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["edit", "SSIM", "asked", "L1", "asked", "seen", "asked", "result"]
    assert [" ".join(line.split()) for line in lines[1:]] == [
        "IOPaint, by flux2-mini",
        "of the region 0.700 <=0.75 0.100 >=0.05 60% >=50% met",
        "under plain noise instead 0.970",
        "of the region and a little more 0.869 0.100 >=0.03 100% >=25% met",
        "of half the region -0.869 <=0.85 0.100 >=0.03 20% >=25% missed",
        "elsewhere 0.910 >=0.92 0.010 missed",
        "ComfyUI with Inpaint Crop and Stitch (512 px), by flux2-mini",
        "of the region 0.800 <=0.85 0.100 >=0.03 30% >=25% met",
        "of the region and a little more 0.970 <=0.85 0.010 >=0.03 0% >=25% works",
        "ComfyUI with Inpaint Crop and Stitch (512 px), on white, by flux2-micro (only",
        "judged)",
        "of the region 0.900 <=0.85 0.100 >=0.03 30% >=25% missed",
        "an empty field: of this figure nothing is asked, or it was not measured",
    ]


def test_empty_fields_are_explained_where_there_are_any() -> None:
    full = EditResult("flux2-mini", 0, MaskKind.TRIGGER, 0.7, 0.1, held_out=False, visible=0.6)
    assert edits.EMPTY not in [line.plain for line in edits.lines([full], Verify())]
    for part in (replace(full, visible=None), replace(full, control_ssim=0.97)):
        assert [line.plain for line in edits.lines([part], Verify())][-1] == edits.EMPTY


def test_a_sheet_shows_what_is_done_by_folder_and_day(weak: House) -> None:
    store, now = weak.service.jobs.store, time.time()
    for name in (b"web/gone.png", b"web/\xff\n.png"):
        (job,) = store.add([name], at=now)
        store.update(job.id, JobState.FAILED, at=now, code="unreadable")
    told = tell("sheet", "--folder", "desk", "-o", "desk.jpg", "--json")
    assert json.loads(told.stdout) == {"pages": ["desk.jpg"], "pictures": 1}
    with Image.open("desk.jpg") as page:
        colours = np.asarray(page.convert("RGB")).astype(int)
    with Image.open("outbox/desk/me.png") as picture:
        mean = np.asarray(picture.convert("RGB")).mean(axis=(0, 1))
    tile = colours[107:235, 23:183]  # the first thumbnail: 160x128 pixels in the middle of 191x191
    assert np.abs(tile.mean(axis=(0, 1)) - mean).max() < 12
    assert json.loads(tell("sheet", "--json").stdout) == {"pages": ["sheet.jpg"], "pictures": 2}, "of today"
    assert tell("sheet", "--verdict", "weak", "--since", "today", "--json").exit_code == 0
    with pytest.raises(ConfigError, match=r"ends in \.jpg"):
        tell("sheet", "-o", "sheet.png")


def test_a_sheet_of_a_folder_holds_its_pictures_however_many_came_since(
    weak: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, now = weak.service.jobs.store, time.time()
    for name in (b"desk.png", b"desk0/a.png", b"desk-2/a.png", b"web/desk/a.png"):
        (job,) = store.add([name], at=now)
        store.update(job.id, JobState.FAILED, at=now, code="unreadable")
    monkeypatch.setattr("backfire.cli.sheet.MOST", 1)
    for folder in ("desk", "./desk", "/desk//", "web/../desk"):
        told = tell("sheet", "--folder", folder, "-o", "desk.jpg")
        assert told.stdout.startswith("1 pictures: desk.jpg"), folder
    Path("desk.jpg").unlink()
    for folder in ("desc", "de", "../desk"):
        refused = tell("sheet", "--folder", folder, "-o", "desk.jpg")
        assert refused.exit_code == 3
        assert f"--folder {folder}: no pictures of it are done" in refused.stderr
        assert not Path("desk.jpg").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("jobs", "--limit", "0"),
        ("jobs", "--limit", "-3"),
        ("jobs", "--limit", "9" * 20),
        ("jobs", "--since", "9" * 400 + "d"),
        ("jobs", "--since", "9" * 5000 + "d"),
        ("retry", "9" * 20),
        ("retry", "0"),
        ("release", "9" * 20),
        ("release", "1", "--all"),
        ("accept", "9" * 20),
        ("accept", "1", "--all"),
    ],
)
def test_arguments_out_of_bounds_or_at_odds_are_refused(weak: House, arguments: tuple[str, ...]) -> None:
    refused = tell(*arguments)
    assert refused.exit_code == 2, refused.output
    assert "Error" in refused.stderr
    assert weak.states() == ["archived"]
    assert weak.service.jobs.store.get(1).choice is None  # type: ignore[union-attr]


def test_a_time_before_all_times_means_always(weak: House) -> None:
    for since in ("999999999d", "999999999m", "0001-01-01"):
        assert len(json.loads(tell("jobs", "--since", since, "--json").stdout)) == 1
        assert tell("sheet", "--since", since, "--json").exit_code == 0
