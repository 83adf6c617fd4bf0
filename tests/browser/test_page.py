"""The status page in a real browser."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, CDPSession, Page, Route, expect

from backfire.types import Job, JobState, Verdict
from tests.support.page import Desk, Server, Serving
from tests.support.pictures import SAMPLES, encoded, photo, turned
from tests.support.sandbox import BRISK, QUICK, ROOT, Sandbox, wait_for

SIZE, REGION = (224, 208), (70, 60, 160, 140)
"""Of a picture whose edits break under the default settings, see tests/e2e/test_effect.py."""


def fill(desk: Desk) -> dict[str, Job]:
    """Some pictures of each kind."""
    return {
        "failed": desk.failed("sport/interrupted.jpg", "truncated"),
        "held": desk.held("sport/no face.jpg"),
        "weak": desk.published("press/so so.png", Verdict.WEAK),
        "good": desk.published("press/good.png"),
        "markup": desk.published(b"press/<img src=x onerror=document.title=1>\xff\n\xe2\x80\xaegnp.exe.png"),
        "ready": desk.job("waiting.jpg", JobState.READY),
        "running": desk.job("at work.jpg", JobState.RUNNING),
    }


def unlock(page: Page, desk: Desk) -> None:
    """Open the address that `backfire page --token` prints."""
    page.goto(f"{desk.url}/unlock#{desk.token}")
    page.wait_for_url(f"{desk.url}/")


def until(page: Page, condition: str) -> None:
    """Wait for a condition in JavaScript; Playwright's own function for that needs what the page forbids."""
    wait_for(lambda: page.evaluate(condition), seconds=20, because=condition)


def touch(session: CDPSession, kind: str, *places: tuple[float, float]) -> None:
    """Touch the screen where all fingers are by then; Playwright itself can only tap."""
    points = [{"x": left, "y": top, "id": finger} for finger, (left, top) in enumerate(places)]
    session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})


def test_the_printed_address_unlocks_and_leaves_no_token_behind(
    serving: Serving, desk: Desk, page: Page
) -> None:
    fill(desk)
    serving(desk)
    unlock(page, desk)
    expect(page.get_by_role("button", name="Lock")).to_be_visible()
    assert desk.token not in page.evaluate("document.cookie + location.href + document.body.innerHTML")
    page.goto("about:blank")
    page.goto(f"{desk.url}/unlock#{desk.token}")  # once more, with a session
    expect(page.get_by_role("button", name="Lock")).to_be_visible()
    assert desk.token not in page.evaluate("location.href")
    page.get_by_role("button", name="Lock").click()
    expect(page.get_by_role("link", name="Unlock", exact=True)).to_be_visible()


def test_the_printed_address_unlocks_a_page_that_asks_for_the_token_already(
    serving: Serving, desk: Desk, page: Page
) -> None:
    serving(desk)
    page.goto(f"{desk.url}/unlock")
    page.goto(f"{desk.url}/unlock#{desk.token}")  # only what is behind the # differs: nothing is loaded
    page.wait_for_url(f"{desk.url}/")
    expect(page.get_by_role("button", name="Lock")).to_be_visible()


def test_rows_change_without_reload_while_focus_scroll_and_typing_stay(
    serving: Serving, desk: Desk, page: Page
) -> None:
    fill(desk)
    waiting = desk.job("next.jpg", JobState.READY)
    serving(desk)
    unlock(page, desk)
    until(page, "document.body.dataset.live === 'yes'")
    page.evaluate("window.stays = true")
    page.locator("#done input[name=q]").fill("half typed")
    page.evaluate("scrollTo(0, 200)")
    before = page.evaluate("scrollY")
    desk.store.update(waiting.id, JobState.FAILED, at=time.time(), code="empty", message="next.jpg: empty")
    expect(page.locator(f"#needs #job-{waiting.id}")).to_be_visible(timeout=15_000)
    expect(page.locator(f"#waiting #job-{waiting.id}")).to_have_count(0)
    assert page.evaluate("window.stays") is True
    assert page.evaluate("document.activeElement.name") == "q"
    assert page.locator("#done input[name=q]").input_value() == "half typed"
    assert page.evaluate("scrollY") >= before
    assert page.title().startswith("(4)")


def test_focus_stays_where_a_row_above_leaves_and_one_comes(serving: Serving, desk: Desk, page: Page) -> None:
    above, own, below = (desk.failed(f"{name}.jpg", "internal") for name in "cba")
    for job, at in ((above, 3), (own, 2), (below, 1)):  # the newest is the first
        desk.store.update(job.id, job.state, at=desk.now + at)
    serving(desk)
    unlock(page, desk)
    until(page, "document.body.dataset.live === 'yes'")
    focused = page.locator(f"#more-{own.id}")
    focused.focus()
    focused.evaluate("one => { window.blurred = 0; one.addEventListener('blur', () => window.blurred++); }")
    desk.store.update(above.id, JobState.READY, at=desk.now)
    expect(page.locator(f"#needs #job-{above.id}")).to_have_count(0, timeout=15_000)
    added = desk.failed("new.jpg", "internal")
    expect(page.locator(f"#needs #job-{added.id}")).to_be_visible(timeout=15_000)
    assert page.evaluate("window.blurred") == 0
    expect(focused).to_be_focused()


def test_nothing_moves_under_a_pointer_that_aims(serving: Serving, desk: Desk, page: Page) -> None:
    fill(desk)
    serving(desk)
    unlock(page, desk)
    until(page, "document.body.dataset.live === 'yes'")
    # From inside, where a slow machine makes no pause between two moves.
    page.evaluate(
        """() => { window.aiming = setInterval(() => document.querySelector("main").dispatchEvent(
            new PointerEvent("pointermove", {bubbles: true})), 50) }"""
    )
    page.wait_for_timeout(200)
    added = desk.failed("new.jpg", "empty")
    row = page.locator(f"#job-{added.id}")
    page.wait_for_timeout(2500)
    assert row.count() == 0
    page.evaluate("clearInterval(window.aiming)")
    expect(row).to_be_visible(timeout=15_000)


def test_a_page_of_a_proxy_is_not_taken_for_ours_and_not_asked_for_in_a_storm(
    serving: Serving, desk: Desk, page: Page
) -> None:
    fill(desk)
    serving(desk)
    page.goto(desk.url)
    until(page, "document.body.dataset.live === 'yes'")
    asked = []

    def log_in(route: Route) -> None:
        asked.append(time.monotonic())
        route.fulfill(content_type="text/html", body="<p>Log in</p>")

    page.route(f"{desk.url}/", log_in)
    added = desk.failed("new.jpg", "empty")
    expect(page.locator("#lost")).to_be_visible(timeout=15_000)
    page.wait_for_timeout(4000)
    pauses = [after - before for before, after in itertools.pairwise(asked)]
    assert len(pauses) >= 2
    assert pauses[-1] > pauses[0], "it asks later and later"
    assert page.locator("main").inner_text() != ""
    page.unroute(f"{desk.url}/")
    expect(page.locator(f"#job-{added.id}")).to_be_visible(timeout=30_000)
    expect(page.locator("#lost")).to_be_hidden()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def through_nginx(desk: Desk, tmp_path: Path) -> Iterator[str]:
    """The address of an nginx in front of the desk's page, configured as the guide says."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("needs nginx; apt install nginx-light")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    guide = (ROOT / "docs/guides/page.md").read_text()
    place = re.search(r"location / \{.*?\n    \}", guide, re.DOTALL)
    assert place is not None
    location = place[0].replace("unix:/run/backfire/page.sock", f"127.0.0.1:{desk.port}")
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; pid {tmp_path}/nginx.pid; error_log {tmp_path}/nginx.log; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {tmp_path}/body; proxy_temp_path {tmp_path}/proxy;\n"
        f"server {{ listen 127.0.0.1:{port};\n{location}\n}} }}\n"
    )
    process = subprocess.Popen([program, "-p", tmp_path, "-c", tmp_path / "nginx.conf"])
    try:
        wait_for(lambda: listens(port), because="nginx")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.parametrize("behind", ["", "nginx"])
def test_it_connects_again_after_the_server_was_away(
    serving: Serving, desk: Desk, page: Page, behind: str, request: pytest.FixtureRequest
) -> None:
    fill(desk)
    server = serving(desk)
    page.goto(request.getfixturevalue("through_nginx") if behind else desk.url)
    until(page, "document.body.dataset.live === 'yes'")
    changed = desk.failed("at once.jpg", "empty")
    expect(page.locator(f"#job-{changed.id}")).to_be_visible(timeout=15_000)
    expect(page.locator("#lost")).to_be_hidden()
    server.stop()
    expect(page.locator("#lost")).to_be_visible(timeout=10_000)
    added = desk.failed("meanwhile.jpg", "empty")
    server.start()
    expect(page.locator("#lost")).to_be_hidden(timeout=15_000)
    expect(page.locator(f"#job-{added.id}")).to_be_visible(timeout=15_000)


def test_hostile_names_run_nothing_and_are_shown(serving: Serving, desk: Desk, page: Page) -> None:
    jobs = fill(desk)
    serving(desk)
    unlock(page, desk)
    for path in ("/", f"/picture/{jobs['markup'].id}", "/pictures?q=onerror"):
        page.goto(desk.url + path)
        assert page.title() != "1"
        shown = page.locator(".name").filter(has_text="<img src=x").first
        assert "⟨202E⟩gnp.exe.png" in shown.inner_text()
        assert "⟨000A⟩" in shown.inner_text()


def test_the_slider_is_moved_by_keys_and_by_hand(serving: Serving, desk: Desk, page: Page) -> None:
    jobs = fill(desk)
    serving(desk)
    unlock(page, desk)
    page.goto(f"{desk.url}/picture/{jobs['good'].id}")
    until(page, "[...document.querySelectorAll('.pair img')].every((one) => one.naturalWidth === 160)")
    slider = page.get_by_role("slider", name="Divide between before and after")
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator(".pair").evaluate("one => one.style.getPropertyValue('--x')") == "52%"
    box = page.locator(".pair").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    assert slider.input_value() == "25"
    page.get_by_role("button", name="Actual size").click()
    assert page.locator(".pair .after").evaluate("one => one.clientWidth") == 160


def test_what_a_refresh_brings_can_be_used_at_once(serving: Serving, desk: Desk, page: Page) -> None:
    """The picture is in work when its page is opened; it is held, and published in the end."""
    data = encoded(photo((160, 120)), "PNG")
    job = desk.job("a.png", JobState.RUNNING, data=data)
    serving(desk)
    unlock(page, desk)
    page.goto(f"{desk.url}/picture/{job.id}")
    until(page, "document.body.dataset.live === 'yes'")

    def drag(place: str) -> None:
        until(page, f"document.querySelector('{place} img')?.naturalWidth === 160")
        page.locator(place).scroll_into_view_if_needed()
        box = page.locator(place).bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 4)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 3 / 4, box["y"] + box["height"] * 3 / 4, steps=4)
        page.mouse.up()

    (desk.base / "review/a.png").write_bytes(data)
    desk.store.update(job.id, JobState.REVIEW, at=desk.now, code="no_region", message="nothing found")
    drag(".easel")
    (shape,) = json.loads(page.locator("[name=shapes]").input_value())
    assert shape["rectangle"] == pytest.approx([40, 30, 120, 90], abs=1)
    for folder in ("archive", "outbox"):
        (desk.base / folder / "a.png").write_bytes(data)
    desk.store.update(
        job.id, JobState.ARCHIVED, at=desk.now, output_path=b"a.png", verdict=Verdict.PROTECTED,
        output_sha256=sha256(data).hexdigest(),
    )  # fmt: skip
    drag(".pair")
    assert page.locator("#divide").input_value() == "75"


def test_a_drawing_that_is_refused_is_kept_until_it_is_saved(
    serving: Serving, desk: Desk, page: Page
) -> None:
    job = desk.failed("a.jpg")
    (desk.base / "inbox/a.jpg").write_bytes(b"another one")
    serving(desk)
    unlock(page, desk)
    page.goto(f"{desk.url}/picture/{job.id}#draw")
    until(page, "document.querySelector('.easel img').naturalWidth === 160")
    canvas = page.locator(".easel canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    x, y, wide, high = (box[name] for name in ("x", "y", "width", "height"))
    page.mouse.move(x + wide / 4, y + high / 4)
    page.mouse.down(button="right")
    page.mouse.move(x + wide / 2, y + high / 2)
    page.mouse.up(button="right")
    field = page.locator("[name=shapes]")
    assert field.input_value() == "[]"
    touch = page.context.new_cdp_session(page)

    def touches(kind: str, *places: tuple[float, float]) -> None:
        points = [
            {"x": x + wide * left, "y": y + high * top, "id": i} for i, (left, top) in enumerate(places)
        ]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touches("touchStart", (0.1, 0.1))
    touches("touchMove", (0.3, 0.3))
    touches("touchCancel")
    assert field.input_value() == "[]"
    touches("touchStart", (0.25, 0.25))
    touches("touchStart", (0.25, 0.25), (0.9, 0.9))  # the ball of the hand
    touches("touchMove", (0.75, 0.75), (0.1, 0.9))
    touches("touchEnd", (0.75, 0.75))
    touches("touchEnd")
    (shape,) = json.loads(field.input_value())
    assert shape["rectangle"] == pytest.approx([40, 30, 120, 90], abs=1)
    drawn = field.input_value()
    page.get_by_role("button", name="Save and protect").click(timeout=60_000)
    expect(page.get_by_role("alert")).to_contain_text("The inbox has another picture")
    expect(field).to_have_value(drawn)
    (desk.base / "inbox/a.jpg").unlink()
    page.get_by_role("button", name="Save and protect").click(timeout=120_000)
    expect(page.get_by_role("alert")).to_contain_text("was saved", timeout=60_000)
    until(page, f"sessionStorage.getItem('drawing /picture/{job.id}') === '[]'")


@pytest.mark.parametrize("kind", ["WEBP", "profile"])
def test_a_region_lies_where_it_was_drawn_on_a_turned_picture(
    serving: Serving, desk: Desk, page: Page, kind: str
) -> None:
    job = desk.failed("a.png", data=turned(photo((160, 120)), kind))
    serving(desk)
    unlock(page, desk)
    page.goto(f"{desk.url}/picture/{job.id}#draw")
    until(page, "document.querySelector('.easel img').naturalWidth === 120")
    page.locator(".easel canvas").scroll_into_view_if_needed()
    box = page.locator(".easel canvas").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] * 3 / 4, steps=3)
    page.mouse.up()
    page.get_by_role("button", name="Save and protect").click(timeout=120_000)
    expect(page.get_by_role("alert")).to_contain_text("was saved", timeout=60_000)
    with Image.open(desk.base / "inbox/a.mask.png") as mask:
        assert mask.size == (120, 160)
        assert mask.getbbox() == pytest.approx((30, 80, 60, 120), abs=2)


def test_a_finger_moves_the_picture_at_its_actual_size(serving: Serving, desk: Desk, page: Page) -> None:
    job = desk.published("a.png")
    serving(desk)
    unlock(page, desk)
    page.goto(f"{desk.url}/picture/{job.id}")
    until(page, "document.querySelector('.pair .after').naturalWidth === 160")
    page.get_by_role("button", name="Actual size").click()
    page.evaluate("document.querySelector('.pair .after').style.width = '3000px'")  # as a large one is
    box = page.locator(".compare").bounding_box()
    assert box is not None
    places = [(box["x"] + 500 - 20 * step, box["y"] + 60) for step in range(10)]
    session = page.context.new_cdp_session(page)
    for kind, place in [("touchStart", places[0]), *(("touchMove", one) for one in places)]:
        touch(session, kind, place)
    touch(session, "touchEnd")
    assert page.evaluate("document.querySelector('.compare').scrollLeft") > 100
    assert page.locator("#divide").input_value() == "50"


def test_a_picture_is_released_from_its_card(serving: Serving, desk: Desk, page: Page) -> None:
    jobs = fill(desk)
    serving(desk)
    unlock(page, desk)
    page.locator(f"#job-{jobs['held'].id}").get_by_role("link", name="Publish unchanged").click(
        timeout=120_000
    )
    expect(page.get_by_role("heading", name="Publish this picture unchanged?")).to_be_visible()
    page.get_by_role("button", name="Publish unchanged").click()
    expect(page.get_by_role("alert")).to_contain_text("is published as it is", timeout=60_000)
    decided = desk.store.get(jobs["held"].id)
    assert decided is not None
    assert decided.state == JobState.RELEASING
    expect(page.locator(f"#waiting #job-{decided.id}")).to_be_visible()


def test_a_form_of_another_site_does_nothing(
    serving: Serving, desk: Desk, page: Page, browser: Browser
) -> None:
    jobs = fill(desk)
    serving(desk)
    unlock(page, desk)
    form = (
        f'<form method="post" action="{desk.url}/picture/{jobs["failed"].id}/retry"><button>x</button></form>'
    )
    page.route("http://elsewhere.example/", lambda route: route.fulfill(content_type="text/html", body=form))
    page.goto("http://elsewhere.example/")
    with page.expect_response(lambda response: "/retry" in response.url) as told:
        page.get_by_role("button").click()
    assert told.value.status == 403
    assert (desk.base / "failed/sport/interrupted.jpg").exists()


def test_axe_finds_nothing(serving: Serving, desk: Desk, page: Page) -> None:
    jobs = fill(desk)
    serving(desk)
    unlock(page, desk)
    pictures = (f"/picture/{jobs[what].id}" for what in ("good", "held"))
    asked = f"/picture/{jobs['held'].id}/release"
    for path in ("/", "/pictures", *pictures, asked, "/today", "/settings", "/unlock"):
        page.goto(desk.url + path)
        page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
        for colours in ("light", "dark"):
            page.emulate_media(color_scheme=colours)
            found = Axe().run(page)
            assert found.violations_count == 0, f"{path}, {colours}: {found.generate_report()}"


@pytest.mark.parametrize(("width", "zoom"), [(390, 1), (1280, 2)])
def test_nothing_overflows_on_a_phone_or_when_zoomed(
    serving: Serving, desk: Desk, browser: Browser, width: int, zoom: int
) -> None:
    jobs = fill(desk)
    desk.failed("press/" + "a_name_without_any_space_" * 8 + ".jpg")
    serving(desk)
    # What zooming does: fewer CSS pixels, each of them larger.
    context = browser.new_context(
        viewport={"width": width // zoom, "height": 844}, device_scale_factor=2, locale="de-DE"
    )
    page = context.new_page()
    unlock(page, desk)
    for path in ("/", "/pictures", f"/picture/{jobs['good'].id}", f"/picture/{jobs['held'].id}", "/today"):
        page.goto(desk.url + path)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
    context.close()


def test_it_is_worked_by_keyboard_alone(serving: Serving, desk: Desk, page: Page) -> None:
    desk.failed("sport/died.jpg", "worker_died")  # may be tried again
    jobs = fill(desk)
    serving(desk)
    unlock(page, desk)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    first_word = "document.activeElement.textContent.trim().split(/\\s+/)[0]"
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(first_word))
    assert {"Draw", "Try", "Publish", "Protect", "Accept", "Look"} <= reached
    while page.evaluate(first_word) != "Publish":
        page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Publish this picture unchanged?")).to_be_visible()
    while page.evaluate(first_word) != "Publish":
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("is published as it is", timeout=60_000)
    decided = desk.store.get(jobs["held"].id)
    assert decided is not None
    assert decided.state == JobState.RELEASING


def test_ten_thousand_jobs_are_searched_and_paged(serving: Serving, desk: Desk, page: Page) -> None:
    desk.store.add((f"press/IMG_{index:05}.jpg".encode() for index in range(10_000)), at=desk.now)
    with closing(sqlite3.connect(desk.settings.folders.database)) as database, database:
        database.execute("UPDATE jobs SET state = ?, verdict = ?", (JobState.ARCHIVED, Verdict.PROTECTED))
    serving(desk)
    page.goto(f"{desk.url}/pictures?show=done")
    expect(page.get_by_role("heading", level=1)).to_contain_text("10,000 pictures")
    page.get_by_role("link", name="Older").click()
    expect(page.get_by_text("Page 2 of 209")).to_be_visible()
    page.get_by_label("Name contains").fill("IMG_00042")
    page.get_by_role("button", name="Show").click()
    expect(page.locator(".tile")).to_have_count(1)


def test_a_region_is_drawn_and_the_picture_protected(sandbox: Sandbox, browser: Browser) -> None:
    """From a picture in which nothing is found to a protected one, with the real daemon and its method."""
    desk = Desk(sandbox.base, extra={"regions": {"detectors": ["sidecar"]}, "watch": BRISK, **QUICK})
    with Image.open(SAMPLES / "chelsea.png") as cat:
        cat.crop((100, 50, 324, 258)).save(sandbox.base / "inbox/a.png")
    sandbox.start()
    server = Server(desk)
    page = browser.new_page(locale="en-GB")
    try:
        unlock(page, desk)
        page.get_by_role("link", name="Draw a region a.png").click(timeout=60_000)
        canvas = page.locator("[data-draw] canvas")
        canvas.scroll_into_view_if_needed()
        until(page, "document.querySelector('[data-draw] img').naturalWidth === 224")
        box = canvas.bounding_box()
        assert box is not None
        left, top, right, bottom = (edge / SIZE[i % 2] for i, edge in enumerate(REGION))
        page.mouse.move(box["x"] + left * box["width"], box["y"] + top * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + right * box["width"], box["y"] + bottom * box["height"], steps=4)
        page.mouse.up()
        page.get_by_role("button", name="Save and protect").click(timeout=120_000)
        expect(page.get_by_role("alert")).to_contain_text("was saved", timeout=120_000)
        wait_for(lambda: sandbox.files("archive") >= {"a.png"}, seconds=500, because="the picture to be done")
        (region,) = sandbox.receipt("a.png")["regions"]
        assert region["box"] == pytest.approx(REGION, abs=2)
        page.goto(desk.url)
        expect(page.locator("#done .tile")).to_have_count(1)
    finally:
        page.context.close()
        server.stop()
        desk.store.close()
