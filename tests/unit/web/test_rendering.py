"""Pages in this process, under a clock of the test's own: what is kept of them, and for how long."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Mapping
from urllib.parse import urlencode, urlsplit

import pytest
from anyio import to_thread
from starlette.responses import Response
from starlette.types import Message

from backfire.admin.status import status
from backfire.cli.page import options_of
from backfire.types import JobState, Verdict
from backfire.web import actions, parameters
from backfire.web.application import Page
from backfire.web.board import HEARTBEAT_S
from backfire.web.rendering import KEPT_S, _split_comment
from backfire.web.words import Words
from tests.support.page import Answer, Desk

DAY = 86_400.0


class Reader:
    """A browser with a session; `now` is what the page's clock shows."""

    def __init__(self, desk: Desk) -> None:
        self.now = desk.now
        self.page = Page(options_of(desk.settings, desk.config, ("127.0.0.1", desk.port)), lambda: self.now)
        response = Response()
        self.page.guard.let_in(response, secure=False)
        self.cookie = response.headers["set-cookie"].partition(";")[0]

    def reads(self, address: str, form: bytes | None = None) -> str:
        return asyncio.run(self.asks(address, form))

    async def asks(self, address: str, form: bytes | None = None, host: str = "localhost") -> str:
        return (await self.answered(address, form, host=host, cookie=self.cookie)).body.decode()

    async def answered(self, address: str, form: bytes | None = None, **headers: str) -> Answer:
        url, sent = urlsplit(address), list[Message]()

        async def send(message: Message) -> None:
            sent.append(message)

        async def receive() -> Message:
            return {"type": "http.request", "body": form or b""}

        if form is not None:
            headers |= {
                "content_length": str(len(form)),
                "content_type": "application/x-www-form-urlencoded",
            }
        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"},
            "method": "GET" if form is None else "POST",
            "scheme": "http", "path": url.path, "query_string": url.query.encode(),
            "headers": [(name.replace("_", "-").encode(), text.encode()) for name, text in headers.items()],
            "root_path": "",
        }  # fmt: skip
        await self.page.application(scope, receive, send)
        start, *rest = sent
        found = {name.decode(): text.decode() for name, text in start["headers"]}
        return Answer(start["status"], found, b"".join(message.get("body", b"") for message in rest))

    def answer(self, address: str, form: Mapping[str, str] | None = None, **headers: str) -> Answer:
        body = None if form is None else urlencode(form).encode()
        return asyncio.run(self.answered(address, body, **{"host": "localhost", **headers}))

    @property
    def session(self) -> str:
        return self.cookie.partition("=")[2].rpartition(".")[0]


@pytest.fixture
def reader(desk: Desk) -> Reader:
    return Reader(desk)


def test_the_settings_are_shown_as_the_file_is_now(desk: Desk, reader: Reader) -> None:
    assert "free_mb" not in reader.reads("/settings")
    with desk.config.open("a") as file:
        file.write("limits: {free_mb: 424242}\n")
    assert "424242" in reader.reads("/settings")


@pytest.mark.parametrize(
    "written",
    [
        "hooks: {webhook: 'https://desk:SECRET@host/x', command: null}",
        'hooks:\n  "webhook": "https://desk:SECRET@\\\n    host/SECRET"\n  command: null',
        "hooks:\n  webhook: >-\n    https://desk:SECRET@host/\n    SECRET\n  command: null",
        "hooks:\n  ? webhook\n  : https://desk:SECRET@host/\n  command: null",
        "x: &hook https://desk:SECRET@host/\nhooks:\n  webhook: *hook\n  command: null",
        "x: &hook {webhook: https://desk:SECRET@host/}\nhooks: {<<: *hook, command: null}",
        "hooks:  # webhook: https://desk:SECRET@host/\n  webhook: null\n  command: null",
        "# once https://desk:SECRET@host/\nhooks:\n  webhook: https://desk:SECRET@host/\n  command: null",
    ],
)
def test_the_address_of_a_webhook_is_shown_in_no_way_of_writing_it(
    desk: Desk, reader: Reader, written: str
) -> None:
    with desk.config.open("a") as file:
        file.write(f"{written}\n")
    shown = reader.reads("/settings")
    assert "•••" in shown
    assert re.search(r"(?m)^hooks: .*command: null|^  command: null$", shown)
    assert "SECRET" not in shown


@pytest.mark.parametrize("written", ["a: [SECRET", "a: *SECRET", "webhook: &a [*a, SECRET]\n---\nb: 1"])
def test_a_configuration_whose_secrets_cannot_be_found_is_not_shown(
    desk: Desk, reader: Reader, written: str
) -> None:
    with desk.config.open("a") as file:
        file.write(f"{written}\n")
    shown = reader.reads("/settings")
    assert "no valid YAML" in shown
    assert "SECRET" not in shown


def test_the_page_answers_at_its_own_address(desk: Desk, reader: Reader) -> None:
    reader.page = Page(options_of(desk.settings, desk.config, ("127.0.0.2", desk.port)))
    for host, refused in (("127.0.0.2", False), ("localhost", False), ("127.0.0.3", True)):
        answer = asyncio.run(reader.asks("/settings", host=f"{host}:{desk.port}"))
        assert (answer == "Invalid host header") == refused


def test_a_page_is_kept_for_some_seconds_and_not_over_midnight(desk: Desk, reader: Reader) -> None:
    desk.published("a.png")
    computed = []
    render = reader.page.rendering.render

    def counted(name: str, *args: object, **values: object) -> str:
        computed.append(name)
        return render(name, *args, **values)  # type: ignore[arg-type]

    reader.page.rendering.render = counted  # type: ignore[method-assign]
    before = reader.page.rendering.version()
    for later in (0.0, KEPT_S / 2, KEPT_S + 1):
        reader.now = desk.now + later
        text = reader.reads("/today")
    assert len(computed) == 2
    assert "<strong>1</strong>" in text
    reader.now = desk.now + 3 * DAY
    assert reader.page.rendering.version() != before, "so that pages which are open are fetched again"
    assert "<strong>1</strong>" not in reader.reads("/today")


def test_a_change_while_a_page_is_made_is_not_taken_for_shown(desk: Desk, reader: Reader) -> None:
    tally = reader.page.listing.tally

    def changes_after(since: float) -> object:
        found = tally(since)
        desk.failed("late.jpg", "empty")
        return found

    reader.page.listing.tally = changes_after  # type: ignore[assignment]
    before = reader.page.rendering.version()
    text = reader.reads("/today")
    assert "<strong>1</strong>" not in text
    assert f'data-version="{before}"' in text, "with the version of now nobody would fetch it again"
    assert reader.page.rendering.version() != before


def test_the_place_in_line_is_told_where_it_is_known_alone(desk: Desk, reader: Reader) -> None:
    for number in range(60):
        desk.job(f"q{number:02}.jpg", JobState.READY)

    def places(address: str) -> list[str]:
        return re.findall(r"number (\d+) in line", reader.reads(address))

    assert places("/") == [str(number) for number in range(1, 9)]
    assert places("/pictures?show=waiting&page=2") == [str(number) for number in range(49, 61)]
    for address in ("/pictures?show=all", "/pictures?show=waiting&q=q57", "/pictures?show=waiting&folder=x"):
        assert places(address) == []
    reader.page.board.options = reader.page.options.__class__.from_json(
        reader.page.options.to_json().replace('"priorities": {}', '"priorities": {"fast": 1}')
    )
    assert places("/pictures?show=waiting&x") == []
    assert len(places("/?x")) == 8, "the first page ranks them"


def worked(desk: Desk, *seconds: float) -> None:
    """Published pictures that took so long."""
    for number, taken in enumerate(seconds):
        (job,) = desk.store.add([f"done{number}.jpg".encode()], at=desk.now)
        desk.store.update(job.id, JobState.RUNNING, at=desk.now - taken)
        desk.store.update(job.id, JobState.ARCHIVED, at=desk.now, verdict=Verdict.PROTECTED)


def test_the_queue_ends_at_the_pace_that_the_commands_tell(desk: Desk, reader: Reader) -> None:
    worked(desk, 100, 100, 1000)
    desk.job("a.jpg", JobState.READY)
    desk.store.set_fact("daemon", {"pid": 1}, at=desk.now)
    text = reader.reads("/")
    told = status(desk.base / "state", desk.store)
    assert told.eta_s == pytest.approx(400)
    assert f"all done at about {Words('en').clock(desk.now + 400)}" in text
    assert "starts in about 7 min" in text
    desk.store.set_fact("daemon", {"pid": 1, "trouble": "the disk is full; free some space"}, at=desk.now)
    text = reader.reads("/")
    assert "the disk is full" in text
    assert "all done at" not in text, "nobody knows while it stands still"
    assert "starts in about" not in text


def test_of_a_daemon_that_does_not_run_neither_trouble_nor_time_left_is_told(
    desk: Desk, reader: Reader
) -> None:
    worked(desk, 100)
    desk.job("a.jpg", JobState.RUNNING)
    desk.store.set_fact("daemon", {"pid": 1, "trouble": "the disk is full"}, at=desk.now)
    text = reader.reads("/")
    assert "the disk is full" in text
    assert "left" in text.partition('id="working"')[2].partition("</section>")[0]
    reader.now += HEARTBEAT_S + KEPT_S
    text = reader.reads("/")
    assert "The daemon is not running." in text
    assert "the disk is full" not in text
    assert "left" not in text.partition('id="working"')[2].partition("</section>")[0]


def test_pictures_that_are_painted_slowly_leave_threads_for_pages(
    desk: Desk, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, ends = desk.published("a.png"), threading.Event()
    monkeypatch.setattr(reader.page.painter, "_asked", lambda *_: ends.wait(60) and b"small")

    async def asks() -> int:
        limiter = to_thread.current_default_thread_limiter()
        waiting = [
            asyncio.create_task(reader.asks(f"/picture/{job.id}/thumbnail"))
            for _ in range(int(limiter.total_tokens) + 1)
        ]
        try:
            return len(await asyncio.wait_for(reader.asks("/settings"), 30))
        finally:
            ends.set()
            assert set(await asyncio.gather(*waiting)) == {"small"}

    assert asyncio.run(asks())


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("a: 1  # why", ("a: 1  ", "#", " why")),
        ("a: '# no'  # why", ("a: '# no'  ", "#", " why")),
        ("a: b#c", ("a: b#c", "", "")),
        ("a: it's here", ("a: it's here", "", "")),
        ('a: "x', ('a: "x', "", "")),
        ("", ("", "", "")),
    ],
)
def test_no_part_of_a_line_of_the_settings_is_lost(line: str, parts: tuple[str, str, str]) -> None:
    assert _split_comment(line) == parts


def test_a_day_on_which_the_clock_is_changed_ends_at_midnight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        for day, hours in (("2026-03-29", 23), ("2026-10-25", 25), ("2026-12-31", 24)):
            found = parameters.filters({"since": day, "until": day})
            assert found.since is not None
            assert found.until == found.since + hours * 3600
    finally:
        monkeypatch.undo()
        time.tzset()


def test_after_a_wrong_token_the_page_to_go_back_to_is_kept(reader: Reader) -> None:
    text = reader.reads("/unlock", b"token=wrong&back=%2Fpicture%2F7")
    assert '<input type="hidden" name="back" value="/picture/7">' in text


def test_the_change_is_offered_where_both_pictures_have_one_size(desk: Desk, reader: Reader) -> None:
    same, scaled = desk.published("a.png"), desk.published("b.png", scaled_from=[400, 300])
    assert f"/picture/{same.id}/change" in reader.reads(f"/picture/{same.id}")
    assert f"/picture/{scaled.id}/change" not in reader.reads(f"/picture/{scaled.id}")


def test_a_notice_is_shown_to_the_session_alone_that_this_page_told_it(desk: Desk, reader: Reader) -> None:
    outcome = actions.Outcome("action_failed", "<b>call</b> 0800\nnow")
    fields = parameters.told(outcome, "press/é <script>.jpg", reader.session, reader.page.guard)

    def notice(**changes: str) -> str:
        text = reader.reads(f"/?{urlencode({**fields, **changes})}")
        return text.partition('role="alert"')[2].partition("</p>")[0]

    assert "press/é &lt;script&gt;.jpg: &lt;b&gt;call&lt;/b&gt; 0800<br>now" in notice()
    assert notice(why="call 0900") == ""
    assert notice(done="region_saved") == "", "nor is what was drawn forgotten"
    assert notice(seal="") == ""
    others = parameters.told(outcome, "a.jpg", f"{reader.session}x", reader.page.guard)
    assert notice(**others) == ""


def test_after_a_refused_form_all_links_lead_to_the_picture(desk: Desk, reader: Reader) -> None:
    job = desk.failed("a.jpg")
    address = f"/picture/{job.id}"
    locked = reader.answer(f"{address}/retry", {"key": "x"}).body.decode()
    assert "Unlock the page first." in locked
    assert f'href="/unlock?back={address}"' in locked
    assert f'href="{address}?lang=de"' in locked
    stale = reader.answer(f"{address}/region", {"key": "x"}, cookie=reader.cookie).body.decode()
    assert "This form is too old" in stale
    assert f'href="{address}?lang=de"' in stale


@pytest.mark.parametrize(
    ("language", "says"),
    [("en", "from https://desk.example, but the request is for the host localhost"),
     ("de", "von https://desk.example, die Anfrage nennt aber den Host localhost")],
)  # fmt: skip
def test_a_proxy_that_does_not_pass_the_host_on_is_told_apart_from_a_wrong_token(
    desk: Desk, reader: Reader, language: str, says: str
) -> None:
    job = desk.failed("a.jpg")
    through = {"origin": "https://desk.example", "accept_language": language}
    for address, form in (("/unlock", {"token": desk.token}), (f"/picture/{job.id}/retry", {"key": "x"})):
        answer = reader.answer(address, form, cookie=reader.cookie, **through)
        assert answer.status == 403
        text = answer.body.decode()
        assert says in text
        assert "serve.allowed_hosts" in text
        assert "token of this page" not in text
    assert "token of this page" in reader.answer("/unlock", {"token": "wrong"}).body.decode()


def test_a_browser_that_is_let_in_already_is_led_on(desk: Desk, reader: Reader) -> None:
    answer = reader.answer("/unlock?back=/picture/7", cookie=reader.cookie)
    # The empty fragment keeps the browser from carrying on that of the printed address, which is the token.
    assert (answer.status, answer.headers["location"]) == (303, "/picture/7#")
    assert reader.answer("/unlock?back=//evil", cookie=reader.cookie).headers["location"] == "/#"
    assert reader.answer("/unlock?back=/picture/7").status == 200
