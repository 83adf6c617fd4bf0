"""The pages over a real server: what they show, to whom, and what no browser and no picture can do."""

from __future__ import annotations

import html
import io
import json
import os
import re
import shutil
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from PIL import Image

from backfire.admin import probes
from backfire.types import JobState, Verdict
from backfire.web import today
from backfire.web.guard import TOKEN_FILE
from backfire.web.live import KEEP_ALIVE_S
from backfire.web.parameters import FORM_BYTES
from tests.support.page import RECEIPT, Desk, Server, Serving, servers
from tests.support.pictures import encoded, photo, turned
from tests.support.sandbox import wait_for

HOSTILE = {
    "markup": b"press/<img src=x onerror=alert(1)>.png",
    "direction": "press/\u202egnp.exe.png".encode(),
    "latin-1": b"press/na\xefve.png",
    "line": b"press/two\nlines.png",
    "quote": b"press/\"'&amp;.png",
}
PROTECTIVE = {
    "content-security-policy": "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
"""Written out, so that none can be weakened or left out without a test that fails."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    desk = Desk(tmp_path_factory.mktemp("page"), allowed_hosts=("desk.example.org",))
    desk.published("press/good.png")
    desk.published("press/so so.png", Verdict.WEAK)
    desk.failed("sport/no face.jpg")
    desk.failed("sport/empty.jpg", "empty", data=b"\0")
    desk.held("sport/held.jpg")
    for name in HOSTILE.values():
        desk.published(name)
    desk.job("waiting.jpg", JobState.READY)
    with servers() as start:
        yield start(desk)


def number_of(server: Server, name: str) -> int:
    return server.desk.store.by_path(os.fsencode(name))[0].id


@pytest.mark.parametrize("path", ["/", "/pictures", "/today", "/settings", "/unlock", "/picture/1", "/no"])
def test_every_answer_has_its_protective_headers(server: Server, path: str) -> None:
    answer = server.ask(path)
    assert {name: answer.headers.get(name) for name in PROTECTIVE} == PROTECTIVE


def test_a_host_that_is_not_allowed_is_refused(server: Server) -> None:
    assert server.ask("/", Host="evil.example").status == 400
    assert server.ask("/", Host="desk.example.org").status == 200
    assert server.ask("/", Host="localhost:1").status == 200


def test_the_page_is_not_taken_for_the_daemon(server: Server) -> None:
    assert probes.answering(("127.0.0.1", server.desk.port)) == "page"


def test_lists_say_what_needs_a_person_and_why(server: Server) -> None:
    text = server.ask("/").text
    needs = text.partition('id="needs"')[2].partition("</section>")[0]
    assert re.findall(r'class="name">([^<]*)<', needs) == [
        "empty.jpg",
        "no face.jpg",
        "held.jpg",
        "so so.png",
    ]
    assert "Nothing to protect was found." in needs
    assert "The file is empty." in needs
    assert "good.png" in text.partition('id="done"')[2]


def test_a_picture_whose_time_for_a_mask_is_over_waits_in_line(serving: Serving, tmp_path: Path) -> None:
    desk = Desk(tmp_path, extra={"watch": {"mask_wait_s": 3600}})
    desk.job("new.jpg", JobState.WAITING_MASK)
    server = serving(desk)
    assert "waits for a mask" in server.ask("/").text
    desk.now -= desk.settings.watch.mask_wait_s + 1
    desk.job("old.jpg", JobState.WAITING_MASK)
    assert "waits in line behind others" in server.ask("/").text


def test_files_that_no_picture_uses_are_folded_below_what_needs_a_person(
    serving: Serving, desk: Desk
) -> None:
    desk.runs()
    fact = {"unused": {"a.txt": "is no picture"}, "trouble": "disk full"}
    desk.store.set_fact("daemon", fact, at=desk.now)
    server = serving(desk)

    def told() -> str:
        return server.ask("/").text.partition('<details id="unused"')[2].partition("</details>")[0]

    assert "disk full" in server.ask("/").text.partition('<main id="main"')[0]
    assert "a.txt: is no picture" in told()
    assert "no picture uses: 1<" in told()
    assert "These are" not in told()
    desk.store.set_fact("daemon", {**fact, "in_all": {"unused": 1300}}, at=desk.now)
    assert "no picture uses: 1,300<" in told()
    assert "These are 1 of 1,300." in told()


def test_today_names_the_device_while_only_weak_pictures_were_published(serving: Serving, desk: Desk) -> None:
    desk.published("a.png", Verdict.WEAK, device="cuda:7")
    assert "<dd>cuda:7" in serving(desk).ask("/today").text


@pytest.mark.parametrize(
    ("says", "shown"),
    [
        ("echo 'NVIDIA H200, 37, 20480, 143771'", "NVIDIA H200: 37% busy, 21.5 GB of 151 GB memory in use"),
        ("echo 'NVIDIA T4, [N/A], 1, 2'", ""),
        ("exit 9", ""),
    ],
)
def test_today_tells_of_the_gpu_where_there_is_one(
    serving: Serving, desk: Desk, monkeypatch: pytest.MonkeyPatch, says: str, shown: str
) -> None:
    program = desk.base / "bin/nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{says}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    desk.published("a.png", device="NVIDIA H200", peak_memory_mb=4000)
    text = serving(desk).ask("/today").text
    assert "NVIDIA H200, 4.2 GB of memory for the last picture" in text
    assert shown in text
    assert ("<dt>GPU</dt>" in text) == bool(shown)


def test_a_call_for_the_gpus_that_hangs_costs_one_page_some_seconds_and_no_second_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called, ends = [], threading.Event()

    def hangs() -> list[today.Gpu]:
        called.append(time.monotonic())
        ends.wait(60)
        return [today.Gpu("T4", 0.5, 1, 2)]

    monkeypatch.setattr(today, "_gpus", hangs)
    monkeypatch.setattr(today, "GPU_S", 0.5)
    monkeypatch.setattr(today, "GPU_EVERY_S", 0.0)
    gpus = today.Gpus()
    began = time.monotonic()
    assert gpus() == []
    first = time.monotonic() - began
    began = time.monotonic()
    assert [gpus() for _ in range(3)] == [[]] * 3
    assert time.monotonic() - began < first
    ends.set()
    wait_for(lambda: gpus() != [], because="the answer that came late")
    monkeypatch.setattr(today, "GPU_EVERY_S", 10.0)
    asked = len(called)
    assert [one.name for _ in range(3) for one in gpus()] == ["T4"] * 3
    assert len(called) == asked


def test_today_counts_what_is_held_and_a_picture_that_failed_twice_once(serving: Serving, desk: Desk) -> None:
    for _ in range(2):
        desk.failed("cut.jpg", "truncated")
    desk.held("held.jpg")
    text = serving(desk).ask("/today").text
    figures = text.partition('class="figures"')[2].partition("</ul>")[0]
    found = re.findall(r"<strong>([^<]*)</strong>.*?</svg>([^<]*)<", figures, re.DOTALL)
    assert found == [("0", "protected"), ("0", "weak"), ("1", "failed"), ("1", "to review")]
    disk = text.partition('class="disks"')[2]
    used, total = (int(re.search(rf'<meter[^>]* {name}="(\d+)"', disk)[1]) for name in ("value", "max"))  # type: ignore[index]
    really = shutil.disk_usage(desk.base)
    assert total == really.total
    assert used == pytest.approx(total - really.free, rel=0.05), "the bar is filled by what is used"


def test_german_is_spoken_where_the_browser_asks_or_the_reader_chose(server: Server) -> None:
    assert "Braucht Sie" in server.ask("/", Accept_Language="de-AT,de;q=0.9").text
    chosen = server.ask("/?lang=de", Accept_Language="en")
    assert 'lang="de"' in chosen.text
    assert "language=de" in chosen.headers["set-cookie"]


def test_originals_are_shown_to_those_alone_who_have_the_token(server: Server) -> None:
    one = number_of(server, "press/good.png")
    locked = [f"/picture/{one}/{what}" for what in ("original", "sheet", "change")]
    assert [server.ask(path, Cookie="").status for path in locked] == [403, 403, 403]
    failed = number_of(server, "sport/no face.jpg")
    thumbnail = server.ask(f"/picture/{failed}/thumbnail", Cookie="")
    assert thumbnail.headers["location"].startswith("/static/none.svg")
    assert server.ask(f"/picture/{one}/published", Cookie="").status == 200
    assert server.ask("/settings", Cookie="").text.count("of the picture desk") == 0
    server.unlock()
    assert [server.ask(path).status for path in locked] == [200, 200, 200]
    assert server.ask(f"/picture/{failed}/thumbnail").headers["content-type"] == "image/jpeg"
    assert "of the picture desk" in server.ask("/settings").text


def test_edits_are_shown_side_by_side_to_those_who_may_see_the_original(serving: Serving, desk: Desk) -> None:
    edits: list[dict[str, Any]] = [
        {**row, "on_sheet": [8, 40 + 200 * i, 396, 196]} for i, row in enumerate(RECEIPT["edits"])
    ]
    edits.append({**edits[0], "path": "forge-whole", "on_sheet": [1, 2, "x"]})
    job = desk.published("a.png", edits=edits, sheet={"width": 300, "height": 200})
    server = serving(desk)
    path = f"/picture/{job.id}"
    assert "pair-of-edits" not in server.ask(path).text
    server.unlock()
    shown = server.ask(path).text
    assert re.findall(r'class="pair-of-edits" viewBox="([^"]*)"', shown) == ["8 40 396 196", "8 240 396 196"]
    assert f'<image href="{path}/sheet" width="300" height="200"/>' in shown
    assert 'aria-label="Edit of the region in IOPaint by flux2-mini: left of the original' in shown
    assert "Forge or A1111 (whole picture)" in shown, "the tool is named, and the spoilt place is left out"


def test_the_original_and_the_published_file_are_what_lies_on_the_disk(server: Server) -> None:
    server.unlock()
    one = number_of(server, "press/good.png")
    for what, folder in (("original", "archive"), ("published", "outbox")):
        expected = (server.desk.base / folder / "press/good.png").read_bytes()
        assert server.ask(f"/picture/{one}/{what}").body == expected
    sent = server.ask(f"/picture/{one}/original?download").headers["content-disposition"]
    assert sent == "attachment; filename*=UTF-8''good.png"


def test_what_a_browser_does_not_show_is_converted(serving: Serving, desk: Desk) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (60, 40), (10, 120, 200)).save(buffer, "TIFF")
    job = desk.failed("a.tif", data=buffer.getvalue())
    server = serving(desk)
    server.unlock()
    shown = Image.open(io.BytesIO(server.ask(f"/picture/{job.id}/original").body))
    assert (shown.format, shown.size) == ("JPEG", (60, 40))
    assert server.ask(f"/picture/{job.id}/original?download").body == buffer.getvalue()


@pytest.mark.parametrize("kind", ["WEBP", "PNG", "profile", "AVIF"])
def test_a_picture_that_browsers_turn_in_their_own_ways_is_shown_upright(
    serving: Serving, desk: Desk, kind: str
) -> None:
    data = turned(photo((160, 120)), kind)
    job = desk.failed("a.png", data=data)
    server = serving(desk)
    server.unlock()
    shown = Image.open(io.BytesIO(server.ask(f"/picture/{job.id}/original").body))
    assert (shown.format, shown.size, dict(shown.getexif())) == ("JPEG", (120, 160), {})
    assert server.ask(f"/picture/{job.id}/original?download").body == data


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_a_picture_that_may_have_to_be_turned_and_cannot_be_decoded_is_not_shown(
    serving: Serving, desk: Desk, orientation: int
) -> None:
    """A region drawn on the stored pixels would go to a mirrored place, which no size tells."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo((160, 120)), "WEBP", exif=exif)
    job = desk.failed("a.webp", data=data[:-30])
    server = serving(desk)
    server.unlock()
    assert server.ask(f"/picture/{job.id}/original").status == 404
    assert server.ask(f"/picture/{job.id}/original?download").body == data[:-30]


def test_a_link_in_place_of_a_published_file_is_not_followed(serving: Serving, desk: Desk) -> None:
    job = desk.published("a/b.png")
    secret = desk.base / "secret"
    secret.write_text("secret")
    (desk.base / "outbox/a/b.png").unlink()
    (desk.base / "outbox/a/b.png").symlink_to(secret)
    server = serving(desk)
    assert server.ask(f"/picture/{job.id}/published").status == 404
    (desk.base / "outbox/a").rename(desk.base / "elsewhere")
    (desk.base / "elsewhere/b.png").unlink()
    (desk.base / "elsewhere/b.png").write_bytes(b"secret")
    (desk.base / "outbox/a").symlink_to(desk.base / "elsewhere")
    assert server.ask(f"/picture/{job.id}/published").status == 404


def test_a_later_picture_of_the_same_name_is_not_shown_as_the_earlier_one(
    serving: Serving, desk: Desk
) -> None:
    """The first one was taken out of the outbox, which freed its name."""
    first = desk.published("a.png")
    (desk.base / "outbox/a.png").unlink()
    second = desk.published("a.png", seed=2)
    server = serving(desk)
    server.unlock()
    shown = {job.id: server.ask(f"/picture/{job.id}").text for job in (first, second)}
    for job, is_there in ((first, False), (second, True)):
        assert (f"/picture/{job.id}/published" in shown[job.id]) == is_there
        assert server.ask(f"/picture/{job.id}/published").status == (200 if is_there else 404)
        kind = server.ask(f"/picture/{job.id}/thumbnail").headers.get("content-type")
        assert (kind == "image/jpeg") == is_there


def test_what_was_published_without_protection_is_shown(serving: Serving, desk: Desk) -> None:
    job = desk.published("a.png", Verdict.UNPROTECTED)
    server = serving(desk)
    for _ in range(2):  # read once, known after that
        shown = server.ask(f"/picture/{job.id}/published")
        assert shown.body == (desk.base / "outbox/a.png").read_bytes()
    (desk.base / "outbox/a.png").write_bytes(b"written over")
    assert server.ask(f"/picture/{job.id}/published").status == 404


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_names_are_text(server: Server, kind: str) -> None:
    name = HOSTILE[kind]
    (job,) = server.desk.store.by_path(name)
    shown_in = ("/", "/pictures?show=done", f"/picture/{job.id}", f"/pictures?q={quote(name[-6:])}")
    for path in shown_in:
        answer = server.ask(path)
        assert answer.status == 200
        assert f"/picture/{job.id}" in answer.text, path
        assert "<img src=x" not in answer.text
        assert "\u202e" not in answer.text
    assert server.ask(f"/picture/{job.id}/published?download").status == 200
    hostile = f"/?done=retried&name={'<script>'}&why=x"
    assert "<script>x" not in server.ask(hostile).text
    assert "<script> was put" not in server.ask(hostile).text


def test_what_messages_and_receipts_say_is_text(serving: Serving, desk: Desk) -> None:
    hostile = "<img src=x>\u202egnp.exe\u200b, a\tb"
    failed = desk.failed("a.jpg", "unsupported")
    told = f"a.jpg: is {hostile}, expected a picture; export {hostile}\nand more"
    desk.store.update(failed.id, failed.state, at=desk.now, message=told)
    region = {"box": [1, 2, 3, 4], "label": hostile, "score": 1.0, "detector": hostile}
    edit = {**RECEIPT["edits"][0], "editor": hostile, "path": hostile}
    out = desk.published(
        "b.png", regions=[region], edits=[edit], promise=hostile, reasons=[hostile], note={hostile: hostile}
    )
    server = serving(desk)
    for path in ("/", f"/picture/{failed.id}", f"/picture/{out.id}"):
        for session in ("", server.cookie):
            text = server.ask(path, Cookie=session).text
            assert "&lt;img src=x&gt;⟨202E⟩gnp.exe⟨200B⟩, a⟨0009⟩b" in text, path
            assert not {"\u202e", "\u200b", "\t"} & set(text)
            assert "<img src=x" not in text
        server.unlock()
    assert "<br>and more" in server.ask(f"/picture/{failed.id}").text
    # What somebody searches for goes back into the field as it was typed, joiners of letters with it.
    asked = server.ask(f"/pictures?q={quote(hostile)}").text
    assert f'value="{hostile.replace("<", "&lt;").replace(">", "&gt;")}"' in asked


def test_the_receipt_is_a_table_and_json(server: Server) -> None:
    one = number_of(server, "press/so so.png")
    text = server.ask(f"/picture/{one}").text
    assert re.search(r"✓</span> broken", text)
    assert re.search(r"✗</span> not kept", text)
    assert re.findall(r'class="soft">(SSIM[^<]*)<', text) == [
        "SSIM 0.30, plainly seen over 90%",
        "SSIM 0.88",
    ]
    for language, says in (("en", "SSIM, the structural similarity"), ("de", "SSIM, die strukturelle")):
        assert says in server.ask(f"/picture/{one}", Accept_Language=language).text
    assert "<dt>timings_s.optimise</dt><dd>12.5</dd>" in text
    document = json.loads(server.ask(f"/picture/{one}/receipt.json").body)
    assert document["key"] == server.desk.store.get(one).key  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("language", "says"),
    [("en", "✗</span> gave no finite picture"), ("de", "✗</span> ergab kein endliches Bild")],
)
def test_an_edit_without_a_finite_picture_is_named(
    serving: Serving, desk: Desk, language: str, says: str
) -> None:
    edits = [{**RECEIPT["edits"][0], "ssim": None, "l1": None, "visible": None}, RECEIPT["edits"][1]]
    job = desk.published("a.png", edits=edits)
    text = serving(desk).ask(f"/picture/{job.id}", Accept_Language=language).text
    assert says in text
    assert text.count('class="soft">SSIM') == 1


@pytest.mark.parametrize("receipt", ["[]", "{", '{"edits": 3, "regions": [{"box": "x"}], "width": "y"}'])
def test_a_spoilt_receipt_costs_only_itself(serving: Serving, desk: Desk, receipt: str) -> None:
    job = desk.published("a.png")
    spoilt = receipt.replace("{", f'{{"key": "{job.key}", ', 1) if receipt[-1] == "}" else receipt
    (desk.base / "reports/a.png.json").write_text(spoilt)
    assert serving(desk).ask(f"/picture/{job.id}").status == 200


def test_filters_and_pages(serving: Serving, desk: Desk) -> None:
    with desk.store.together():
        for index in range(100):
            verdict = Verdict.WEAK if index % 10 == 0 else Verdict.PROTECTED
            desk.job(f"{'ab'[index % 2]}/{index:03}.png", JobState.ARCHIVED, verdict=verdict)
    server = serving(desk)

    def names(query: str) -> list[str]:
        return re.findall(r'class="name">([^<]*)<', server.ask(f"/pictures?{query}").text)

    everything = names("show=all") + names("show=all&page=2") + names("show=all&page=3")
    assert sorted(everything) == [f"{index:03}.png" for index in range(100)]
    assert len(names("verdict=weak")) == 10
    assert len(names("verdict=weak&folder=a")) == 10
    assert names("verdict=weak&folder=b") == []
    assert names("q=a/07") == ["078.png", "076.png", "074.png", "072.png", "070.png"]
    today, tomorrow = (time.strftime("%Y-%m-%d", time.localtime(desk.now + days * 86400)) for days in (0, 1))
    assert len(names(f"since={today}&until={today}&q=99")) == 1
    assert names(f"since={tomorrow}") == []
    assert names("q=%25") == []
    assert server.ask("/pictures?show=evil&page=-1&verdict=x&since=y").status == 200


def test_failed_finds_what_could_not_be_worked_and_a_folder_whose_name_is_no_text(
    serving: Serving, desk: Desk
) -> None:
    desk.failed("good/cut.jpg", "truncated")
    desk.job("died.jpg", JobState.QUARANTINED, code="worker_died", message="why")
    desk.failed(b"na\xefve\xe2\x80\xae/a.jpg", "internal")
    desk.published("out.png")
    server = serving(desk)

    def names(query: str) -> list[str]:
        return re.findall(r'class="name">([^<]*)<', server.ask(f"/pictures?show=all&{query}").text)

    assert sorted(names("verdict=failed")) == ["a.jpg", "cut.jpg", "died.jpg"]
    offered = re.findall('<option value="(na[^"]*)"', server.ask("/pictures").text)
    assert [names(urlencode({"folder": one})) for one in offered] == [["a.jpg"]]


# Forms


def test_nothing_is_done_without_the_token_or_for_another_site(serving: Serving, desk: Desk) -> None:
    job = desk.failed("a.jpg")
    server = serving(desk)
    path = f"/picture/{job.id}/retry"
    assert server.ask(path, {}).status == 403
    server.unlock()
    key = server.form_key()
    assert server.ask(path, {"key": "x"}).status == 403
    assert server.ask(path, {"key": key}, Sec_Fetch_Site="cross-site").status == 403
    assert server.ask(path, {"key": key}, Sec_Fetch_Site="same-site").status == 403
    assert server.ask(path, {"key": key}, Origin="http://evil.example").status == 403
    assert server.ask(path, {"key": key}, Origin="null").status == 403
    assert server.ask(path, {"key": key}, Cookie="").status == 403
    assert server.ask(path).status in (404, 405)
    assert server.ask(path, {"key": key}, Content_Type="text/plain").status == 415
    assert (desk.base / "failed/a.jpg").exists()


def test_the_token_opens_a_session_whose_cookie_keeps_to_this_page(serving: Serving, desk: Desk) -> None:
    server = serving(desk)
    assert stat.S_IMODE((desk.base / "state" / TOKEN_FILE).stat().st_mode) == 0o600
    assert server.ask("/unlock", {"token": "wrong"}).status == 403
    assert server.ask("/unlock", {"token": desk.token}, Sec_Fetch_Site="cross-site").status == 403
    answer = server.ask("/unlock", {"token": desk.token, "back": "//evil.example"})
    assert answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert desk.token not in answer.headers["set-cookie"]


def test_a_failed_picture_is_tried_again(serving: Serving, desk: Desk) -> None:
    job = desk.failed("press/a.jpg")
    server = serving(desk)
    server.unlock()
    answer = server.ask(f"/picture/{job.id}/retry", {"key": server.form_key(), "back": "/"})
    assert answer.status == 303
    assert (desk.base / "inbox/press/a.jpg").exists()
    assert "press/a.jpg was put back into the inbox" in server.ask(answer.headers["location"]).text
    again = server.ask(f"/picture/{job.id}/retry", {"key": server.form_key(), "back": "/"})
    assert "its original is gone from" in server.ask(again.headers["location"]).text


def test_a_picture_that_is_not_whole_is_shown_as_that_and_not_tried_again(
    serving: Serving, desk: Desk
) -> None:
    cut = desk.failed("cut.jpg", "truncated")
    other = desk.failed("internal.jpg", "internal")
    server = serving(desk)
    server.unlock()
    page = server.ask(f"/picture/{cut.id}").text
    assert "What is shown is the part that can be read" in page
    assert f"/picture/{cut.id}/retry" not in page
    page = server.ask(f"/picture/{other.id}").text
    assert "What is shown is the part" not in page
    assert f"/picture/{other.id}/retry" in page


@pytest.mark.parametrize(("language", "says"), [("en", "A later job"), ("de", "Ein späterer Auftrag")])
def test_a_failure_that_was_tried_again_asks_for_nothing(
    serving: Serving, desk: Desk, language: str, says: str
) -> None:
    first, second = desk.failed("a.jpg"), desk.failed("a.jpg", "internal")
    server = serving(desk)
    server.unlock()
    page = server.ask(f"/picture/{first.id}", Accept_Language=language).text
    link = page.partition(f'<a href="/picture/{second.id}">')[2].partition("</a>")[0]
    assert says in link
    for offer in (f"/picture/{first.id}/retry", f"/picture/{first.id}/region", "#draw"):
        assert offer not in page
    page = server.ask(f"/picture/{second.id}", Accept_Language=language).text
    assert f"/picture/{second.id}/retry" in page
    assert says not in page


def test_a_failure_keeps_its_buttons_where_a_later_file_was_taken_away(serving: Serving, desk: Desk) -> None:
    job = desk.failed("a.jpg")
    desk.job("a.jpg", JobState.SKIPPED)
    server = serving(desk)
    server.unlock()
    page = server.ask(f"/picture/{job.id}").text
    assert f"/picture/{job.id}/region" in page
    assert "A later job" not in page


def test_a_region_drawn_on_a_failed_picture_becomes_its_mask(serving: Serving, desk: Desk) -> None:
    job = desk.failed("press/a.jpg")
    server = serving(desk)
    server.unlock()
    key = server.form_key()
    shapes = [{"rectangle": [10, 20, 50, 60]}, {"stroke": [[100, 100], [120, 100]], "width": 9}]
    form = {"key": key, "shapes": json.dumps(shapes), "left": "70", "top": "5", "width": "10", "height": "10"}
    answer = server.ask(f"/picture/{job.id}/region", form)
    assert "region of press/a.jpg was saved" in server.ask(answer.headers["location"]).text
    mask = Image.open(desk.base / "inbox/press/a.mask.png").convert("L")
    assert mask.size == (160, 120)
    marked = {(x, y) for x in range(160) for y in range(120) if mask.getpixel((x, y))}
    assert {(10, 20), (49, 59), (110, 100), (110, 104), (70, 5), (79, 14)} <= marked
    assert not {(9, 20), (50, 30), (110, 110), (80, 15)} & marked
    assert (desk.base / "inbox/press/a.jpg").exists()


@pytest.mark.parametrize(
    "shapes", ["", "[]", "{", "[[1]]", '[{"rectangle": [1, 2]}]', '[{"rectangle": [9, 9, 1, 1]}]']
)
def test_a_form_without_a_region_does_nothing(serving: Serving, desk: Desk, shapes: str) -> None:
    job = desk.failed("a.jpg")
    server = serving(desk)
    server.unlock()
    answer = server.ask(f"/picture/{job.id}/region", {"key": server.form_key(), "shapes": shapes})
    assert "Nothing was drawn." in server.ask(answer.headers["location"]).text
    assert not (desk.base / "inbox/a.mask.png").exists()
    assert (desk.base / "failed/a.jpg").exists()


@pytest.mark.parametrize(
    ("language", "says"), [("en", "This drawing holds too much."), ("de", "Diese Zeichnung enthält zu viel.")]
)
def test_a_form_that_is_too_long_is_refused_in_words(
    serving: Serving, desk: Desk, language: str, says: str
) -> None:
    job = desk.failed("a.jpg")
    server = serving(desk)
    form = {"shapes": "x" * FORM_BYTES}
    answer = server.ask(f"/picture/{job.id}/region", form, Accept_Language=language)
    assert answer.status == 413
    assert "data-still" in answer.text, "at the address of an answer nothing is to be read"
    assert says in answer.text


@pytest.mark.parametrize(
    ("action", "choice"), [("release", "release"), ("whole", "whole"), ("region", "again")]
)
def test_a_held_picture_is_decided_about(serving: Serving, desk: Desk, action: str, choice: str) -> None:
    job = desk.held("a.jpg")
    server = serving(desk)
    server.unlock()
    form = {"key": server.form_key(), "shapes": '[{"rectangle": [40, 30, 120, 90]}]'}
    answer = server.ask(f"/picture/{job.id}/{action}", form)
    assert "/picture/" in answer.headers["location"]
    decided = desk.store.get(job.id)
    assert decided is not None
    assert (decided.state, decided.choice) == (JobState.RELEASING, choice)
    assert desk.store.history(job.id)[-1].detail["by"] == "the status page"
    assert (desk.base / "review/a.mask.png").exists() == (action == "region")
    late = server.ask(f"/picture/{job.id}/release", {"key": form["key"]})
    assert "is not held any more" in server.ask(late.headers["location"]).text


@pytest.mark.parametrize(
    ("language", "says"),
    [("en", "This cannot be undone."), ("de", "Das lässt sich nicht rückgängig machen.")],
)
def test_to_publish_unchanged_is_asked_once_more(
    serving: Serving, desk: Desk, language: str, says: str
) -> None:
    job = desk.held("press/a.jpg")
    server = serving(desk)
    server.unlock()
    listed = "/pictures?show=needs&q=press"
    cards = server.ask(listed).text
    assert f'action="/picture/{job.id}/release"' not in cards, "one click is not enough"
    assert f'name="back" value="{listed.replace("&", "&amp;")}"' in cards, "the others lead back to this list"
    (link,) = re.findall(r'href="(/picture/\d+/release[^"]*)"', cards)
    asked = server.ask(link, Accept_Language=language).text
    assert says in asked
    assert 'class="name">a.jpg<' in asked
    assert f'<img src="/picture/{job.id}/original"' in asked
    cancel = f'<a class="button" href="{listed.replace("&", "&amp;")}'
    assert asked.index(cancel) < asked.index(f'action="/picture/{job.id}/release"')
    form = asked.partition(f'action="/picture/{job.id}/release"')[2].partition("</form>")[0]
    back = re.search('name="back" value="([^"]*)"', form)
    assert back is not None
    answer = server.ask(
        f"/picture/{job.id}/release", {"key": server.form_key(), "back": html.unescape(back[1])}
    )
    assert answer.headers["location"].startswith(f"{listed}&done=released")
    moved_on = server.ask(link).text
    assert "not held any more" in moved_on
    assert '<form method="post" action="/picture' not in moved_on
    assert says not in server.ask(link, Cookie="", Accept_Language=language).text


def test_a_weak_picture_is_accepted_and_needs_nobody_any_more(serving: Serving, desk: Desk) -> None:
    job = desk.published("a.png", Verdict.WEAK)
    server = serving(desk)
    server.unlock()

    def listed(text: str, section: str) -> str:
        return text.partition(f'id="{section}"')[2].partition("</section>")[0]

    before = server.ask("/").text
    assert ("a.png" in listed(before, "needs"), "a.png" in listed(before, "done")) == (True, False)
    answer = server.ask(f"/picture/{job.id}/accept", {"key": server.form_key(), "back": "/"})
    shown = server.ask(answer.headers["location"]).text
    assert "a.png is accepted as it is." in shown
    assert "Nothing needs you." in listed(shown, "needs")
    assert "weak</span>\n accepted" in listed(shown, "done")


# Without a database, and under load


def test_before_the_first_run_it_says_so_and_goes_on_later(serving: Serving, tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.store.close()
    database = desk.settings.folders.database
    for file in database.parent.glob("backfire.sqlite*"):
        file.rename(tmp_path / file.name)
    server = serving(desk)
    assert "Nothing has run yet" in server.ask("/").text
    for file in tmp_path.glob("backfire.sqlite*"):
        file.rename(database.parent / file.name)
    assert "Nothing needs you" in server.ask("/").text


@pytest.mark.parametrize(("language", "says"), [("en", "cannot be read"), ("de", "lässt sich nicht lesen")])
def test_a_database_that_cannot_be_read_is_no_first_run(
    serving: Serving, tmp_path: Path, language: str, says: str
) -> None:
    desk = Desk(tmp_path)
    desk.store.close()
    for file in (tmp_path / "state").glob("backfire.sqlite*"):
        file.write_bytes(b"not a database" * 100)
    server = serving(desk)
    for path in ("/", "/pictures", "/today"):
        answer = server.ask(path, Accept_Language=language)
        assert answer.status == 503
        assert "data-still" not in answer.text, "it recovers by itself"
        assert says in answer.text.partition('id="stands"')[2].partition("<main")[0]
        assert "file is not a database" in answer.text.partition("<main")[2]


def test_changes_are_told_at_once_and_heartbeats_without_news_are_not(serving: Serving, desk: Desk) -> None:
    server = serving(desk)
    desk.store.set_fact("daemon", {"pid": 1}, at=desk.now)
    with socket.create_connection(("127.0.0.1", desk.port), timeout=10) as stream:
        stream.sendall(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        file = stream.makefile("rb")

        def told() -> bytes:
            while not (line := file.readline()).startswith(b"data: "):
                assert line, "the stream has ended"
            return line

        first = told()
        desk.store.set_fact("daemon", {"pid": 1}, at=desk.now + 2)
        stream.settimeout(1.5)
        with pytest.raises(TimeoutError):
            told()
    with socket.create_connection(("127.0.0.1", desk.port), timeout=10) as stream:
        stream.sendall(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        file = stream.makefile("rb")
        assert told() == first
        stream.settimeout(KEEP_ALIVE_S / 2)  # it does not wait for what is sent anyway
        desk.job("new.jpg", JobState.READY)
        assert told() != first
    assert server.process.poll() is None


def test_a_unix_socket_serves_its_group_and_is_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "page.sock"
    desk = Desk(tmp_path, extra={})
    desk.settings = desk.settings.model_copy(
        update={"serve": desk.settings.serve.model_copy(update={"page": f"unix:{path}"})}
    )
    server = Server(desk, ready=path.exists)
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
            assert client.makefile("rb").readline().startswith(b"HTTP/1.1 200")
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
    finally:
        server.stop()
    assert not path.exists()
