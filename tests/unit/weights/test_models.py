"""Fetching against a server on loopback: whole, broken off, wrong, full disk; pins; what is refused."""

from __future__ import annotations

import errno
import hashlib
import http.client
import io
import json
import os
import shutil
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from backfire import inpaint, weights
from backfire.errors import ModelError
from backfire.weights import File, Model, transfer
from backfire.weights.download import fetch
from training import __main__ as training
from training import latent_mini

DATA = bytes(range(256)) * 4096  # 1 MiB
DIGEST = hashlib.sha256(DATA).hexdigest()


@dataclass
class Site:
    """What the server does and what it was asked."""

    url: str = ""
    data: bytes = DATA
    etag: str = '"one"'
    break_after: list[int] = field(default_factory=list)
    """For each coming answer: close the connection after so many bytes."""
    status: list[int] = field(default_factory=list)
    """For each coming answer: answer so instead."""
    location: str = ""
    ranges: list[str | None] = field(default_factory=list)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    here = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            here.ranges.append(asked)
            if here.status:
                self.send_response(here.status.pop(0))
                if here.location:
                    self.send_header("Location", here.location)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
            if self.headers.get("If-Range") not in (None, here.etag):
                start = 0
            if start and start >= len(here.data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(here.data)}")
                self.end_headers()
                return
            body = here.data[start:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(here.data) - 1}/{len(here.data)}")
            self.send_header("ETag", here.etag)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with suppress(ConnectionError):  # the client may have had enough
                self.wfile.write(body[: here.break_after.pop(0)] if here.break_after else body)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    here.url = f"http://127.0.0.1:{server.server_port}/weights.bin"
    yield here
    server.shutdown()
    thread.join()
    server.server_close()


def model(url: str | None, sha256: str | None = DIGEST, size: int | None = len(DATA)) -> Model:
    return Model(
        "toy", "latent", "", "", 0.1, "", "", (File("weights.bin", url, size, sha256),), "ask its authors"
    )


def no_sleep(seconds: float) -> None:
    pass


def test_a_file_comes_whole_and_is_not_asked_for_again(site: Site, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    (path,) = fetch(model(site.url), tmp_path, progress=lambda _, done, total: seen.append((done, total)))
    assert path == tmp_path / "toy" / "weights.bin"
    assert path.read_bytes() == DATA
    assert seen[-1] == (len(DATA), len(DATA))
    assert [p.name for p in path.parent.iterdir()] == ["weights.bin"], "nothing is left beside it"
    fetch(model("http://127.0.0.1:9/gone"), tmp_path)  # offline
    assert site.ranges == [None]


def test_a_broken_connection_is_gone_on_with(site: Site, tmp_path: Path) -> None:
    site.break_after = [300_000, 200_000]
    (path,) = fetch(model(site.url), tmp_path, sleep=no_sleep)
    assert path.read_bytes() == DATA
    assert site.ranges == [None, "bytes=300000-", "bytes=500000-"]


def test_a_later_fetch_goes_on_where_an_interrupted_one_stopped(site: Site, tmp_path: Path) -> None:
    def interrupt(path: str, done: int, total: int | None) -> None:
        if done > 500_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(model(site.url), tmp_path, progress=interrupt)
    assert not (tmp_path / "toy" / "weights.bin").exists(), "the final name is for what is whole"
    have = (tmp_path / "toy" / "weights.bin.part").stat().st_size
    assert 0 < have < len(DATA)
    (path,) = fetch(model(site.url), tmp_path)
    assert path.read_bytes() == DATA
    assert site.ranges[-1] == f"bytes={have}-"


def test_halves_of_two_versions_are_not_joined(site: Site, tmp_path: Path) -> None:
    """Nobody knows this file's digest: only the server can say that it has changed meanwhile."""
    site.break_after = [300_000]
    site.status = []
    toy = model(site.url, sha256=None, size=None)

    def change(seconds: float) -> None:
        site.data, site.etag = DATA[::-1], '"two"'

    (path,) = fetch(toy, tmp_path, sleep=change)
    assert path.read_bytes() == DATA[::-1]


@pytest.mark.parametrize("extra", [b"", b"more"])
def test_a_part_as_long_as_the_file_or_longer(site: Site, tmp_path: Path, extra: bytes) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "weights.bin.part").write_bytes(DATA + extra)
    (path,) = fetch(model(site.url), tmp_path, sleep=no_sleep)
    assert path.read_bytes() == DATA


def test_a_wrong_digest_gets_no_name_and_leaves_nothing(site: Site, tmp_path: Path) -> None:
    site.data = DATA[:-1] + b"!"
    with pytest.raises(ModelError, match=f"SHA-256 is [0-9a-f]{{64}}, expected {DIGEST}") as caught:
        fetch(model(site.url), tmp_path)
    assert not caught.value.retryable
    assert list((tmp_path / "toy").iterdir()) == []
    site.data = DATA
    fetch(model(site.url), tmp_path)


def test_a_wrong_size_is_refused(site: Site, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="1048576 bytes, expected 1048577"):
        fetch(model(site.url, sha256=None, size=len(DATA) + 1), tmp_path)


def test_an_unpublished_digest_is_recorded_and_holds(site: Site, tmp_path: Path) -> None:
    toy = model(site.url, sha256=None)
    (path,) = fetch(toy, tmp_path)
    assert weights.pins(tmp_path) == {"toy/weights.bin": DIGEST}
    path.unlink()
    site.data = DATA[::-1]
    with pytest.raises(ModelError, match=f"expected {DIGEST}"):
        fetch(toy, tmp_path)


def test_a_first_copy_that_was_wrong_can_be_taken_back(site: Site, tmp_path: Path) -> None:
    toy = model(site.url, sha256=None)
    fetch(toy, tmp_path)
    (tmp_path / "toy" / "weights.bin").unlink()
    site.data = DATA[::-1]
    with pytest.raises(ModelError, match=rf"first copy .* take its line out of {tmp_path / weights.PINS}"):
        fetch(toy, tmp_path)
    (tmp_path / weights.PINS).write_text("{}")
    fetch(toy, tmp_path)


@pytest.mark.parametrize(
    ("data", "what"), [(b"", "empty"), (b"\n<!DOCTYPE html><title>Log in</title>", "a web page")]
)
def test_what_is_no_file_of_weights_is_not_trusted(
    site: Site, tmp_path: Path, data: bytes, what: str
) -> None:
    site.data = data
    with pytest.raises(ModelError, match=f"is {what}, expected weights"):
        fetch(model(site.url, sha256=None), tmp_path)
    assert weights.pins(tmp_path) == {}


def test_a_network_that_goes_while_it_sends_is_no_trouble_of_the_disk(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(self: http.client.HTTPResponse, amount: int) -> bytes:
        raise OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))

    monkeypatch.setattr(http.client.HTTPResponse, "read", gone)
    with pytest.raises(ModelError, match=r"cannot be read .*No route to host") as caught:
        fetch(model(site.url), tmp_path, sleep=no_sleep)
    assert caught.value.retryable


def test_a_source_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "mine.bin"
    source.write_bytes(DATA)
    opened = Path.open

    def refused(self: Path, *given: Any, **more: Any) -> Any:
        if self == source:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(self, *given, **more)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(ModelError, match=f"{source}: cannot be read"):
        fetch(model("http://unused/"), tmp_path / "models", source=str(source))


def test_a_damaged_record_trusts_nothing(site: Site, tmp_path: Path) -> None:
    (tmp_path / weights.PINS).write_text("{")
    with pytest.raises(ModelError, match="restore it"):
        fetch(model(site.url, sha256=None), tmp_path)


def test_not_found_is_final_and_names_the_way_out(site: Site, tmp_path: Path) -> None:
    site.status = [404]
    with pytest.raises(ModelError, match=r"answers 404 .* --from") as caught:
        fetch(model(site.url), tmp_path, sleep=no_sleep)
    assert (len(site.ranges), caught.value.retryable) == (1, False)


def test_a_busy_server_is_asked_again(site: Site, tmp_path: Path) -> None:
    site.status = [503, 502]
    waits: list[float] = []
    fetch(model(site.url), tmp_path, sleep=waits.append)
    assert waits == [1.0, 3.0]


def test_no_network_is_said_after_some_tries(tmp_path: Path) -> None:
    waits: list[float] = []
    with pytest.raises(ModelError, match="Connection refused") as caught:
        fetch(model("http://127.0.0.1:9/x"), tmp_path, sleep=waits.append)
    assert (len(waits), caught.value.retryable) == (3, True)


@pytest.mark.parametrize("location", ["file:///etc/hostname", "ftp://127.0.0.1/x"])
def test_redirects_stay_on_the_web(site: Site, tmp_path: Path, location: str) -> None:
    site.status, site.location = [302], location
    with pytest.raises(ModelError, match=r"redirects to|answers 302"):
        fetch(model(site.url), tmp_path, sleep=no_sleep)
    assert not (tmp_path / "toy" / "weights.bin").exists()


def test_redirects_never_leave_https() -> None:
    request = urllib.request.Request("https://example.org/weights.bin")
    with pytest.raises(ModelError, match=r"redirects to http://example\.org/x, which is refused"):
        transfer._Redirects().redirect_request(request, None, 302, "", {}, "http://example.org/x")


def test_an_answer_without_end_is_cut_off(site: Site, tmp_path: Path) -> None:
    seen: list[int] = []
    toy = model(site.url, sha256=None, size=10)
    with pytest.raises(ModelError, match="bytes, expected 10"):
        fetch(toy, tmp_path, progress=lambda _, done, total: seen.append(done))
    assert seen[-1] < len(DATA)


def test_redirects_on_the_web_are_followed(site: Site, tmp_path: Path) -> None:
    site.status, site.location = [302], site.url
    (path,) = fetch(model(site.url), tmp_path)
    assert path.read_bytes() == DATA


class FullDisk(io.FileIO):
    """A file on a disk that is full after so many bytes: `write` raises as the kernel would."""

    left = 600_000

    def write(self, data: Any) -> int:
        if len(data) > self.left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.left -= len(data)
        return super().write(data)


def test_the_licence_is_said_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from backfire.cli.commands import app

    (tmp_path / "config.yaml").write_text("{folders: {inbox: inbox}, models: {folder: weights}}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ModelError, SystemExit)):
        app(["models", "fetch", "mat-places", "--from", "nowhere"])
    assert "mat-places: licence CC BY-NC 4.0, non-commercial" in capsys.readouterr().err


def test_a_full_disk_keeps_what_came_and_goes_on_later(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(transfer, "_append", lambda path: FullDisk(path, "ab"))
        with pytest.raises(ModelError, match=r"No space left.*resumes where it stopped") as caught:
            fetch(model(site.url), tmp_path)
    assert caught.value.retryable
    have = (tmp_path / "toy" / "weights.bin.part").stat().st_size
    assert 0 < have <= 600_000
    (path,) = fetch(model(site.url), tmp_path)
    assert path.read_bytes() == DATA
    assert site.ranges[-1] == f"bytes={have}-"


def test_too_little_room_is_said_before_anything_comes(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(ModelError, match="1048576 bytes more are needed"):
        fetch(model(site.url), tmp_path)


def test_a_file_or_a_folder_stands_in_and_is_held_to_the_same_digest(tmp_path: Path) -> None:
    (tmp_path / "mirror").mkdir()
    file = tmp_path / "mirror" / "weights.bin"
    file.write_bytes(DATA)
    for source in (file, file.parent):
        (path,) = fetch(model(None), tmp_path / "models", source=str(source))
        assert path.read_bytes() == DATA
        path.unlink()
    file.write_bytes(b"something else")
    with pytest.raises(ModelError, match=f"expected {DIGEST}"):
        fetch(model(None), tmp_path / "models", source=str(file))
    assert file.read_bytes() == b"something else", "the source is never touched"


def test_a_mirror_stands_in(site: Site, tmp_path: Path) -> None:
    (path,) = fetch(model("http://127.0.0.1:9/x"), tmp_path, source=site.url.rpartition("/")[0] + "/")
    assert path.read_bytes() == DATA


@pytest.mark.parametrize(
    ("source", "says"),
    [(None, "ask its authors"), ("file:///etc/hostname", "got file:"), ("/nowhere", "does not hold")],
)
def test_what_is_no_source_is_refused(tmp_path: Path, source: str | None, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        fetch(model(None), tmp_path, source=source)


def test_two_fetches_do_not_write_one_file(site: Site, tmp_path: Path) -> None:
    def again(path: str, done: int, total: int | None) -> None:
        fetch(model(site.url), tmp_path)

    with pytest.raises(ModelError, match="another fetch"):
        fetch(model(site.url), tmp_path, progress=again)


def test_the_catalogue_holds_what_is_known_and_no_more() -> None:
    for entry in weights.catalogue().values():
        assert entry.licence
        assert entry.home.startswith("https://")
        for file in entry.files:
            assert not Path(file.path).is_absolute()
            assert ".." not in Path(file.path).parts
            assert file.url is None or file.url.startswith("https://")
            assert file.url or entry.note, "says how to get it"
            assert file.sha256 is None or len(bytes.fromhex(file.sha256)) == 32


@pytest.mark.shared
def test_the_published_digest_of_taef2_is_that_of_the_file(shared: Path, tmp_path: Path) -> None:
    files = fetch(weights.catalogue()["taef2"], tmp_path, source=str(shared / "weights"))
    assert [path.stat().st_size for path in files] == [2704692, 2704756]
    assert weights.located("taef2", tmp_path) == tmp_path / "taef2"
    assert {finding.state for finding in weights.verify(tmp_path)} == {"ok"}
    files[0].write_bytes(b"changed")
    with pytest.raises(ModelError, match=r"taef2_encoder.pth has changed, SHA-256 is .*, expected "):
        weights.located("taef2", tmp_path)
    files[1].unlink()
    assert [finding.state for finding in weights.verify(tmp_path)] == ["changed", "absent"]
    with pytest.raises(ModelError, match="backfire models fetch taef2"):
        weights.located("taef2", tmp_path)


Command = Callable[..., tuple[int, Any]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Command:
    """`backfire models …`: its exit code, and what it printed or, with --json, said."""
    from backfire.cli.commands import app

    def command(*arguments: str) -> tuple[int, Any]:
        with pytest.raises(SystemExit) as caught:
            app(["models", *arguments])
        text = capsys.readouterr().out
        assert isinstance(caught.value.code, int | None)
        return caught.value.code or 0, json.loads(text) if "--json" in arguments else text

    return command


def test_what_ships_inside_is_held_to_its_digests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    assert {path.name for path in weights.INSIDE.glob("*.safetensors")} == weights.inside().keys()
    assert {finding.state for finding in weights.verify_inside()} == {"ok"}
    copy = tmp_path / "weights"
    shutil.copytree(weights.INSIDE, copy)
    monkeypatch.setattr(weights, "INSIDE", copy)
    editor = inpaint.BUILT_IN["latent-mini"]
    assert editor.load().weights_sha256 == weights.inside()[editor.file.name]
    data = bytearray(editor.file.read_bytes())
    data[-1] ^= 1  # the last of the weights: it would load, and work nearly as before
    editor.file.write_bytes(data)
    assert [finding.state for finding in weights.verify_inside()] == ["ok", "changed", "ok", "ok"]
    with pytest.raises(ModelError, match=r"SHA-256 is .*, expected .*; install backfire again"):
        editor.load()
    shutil.copy(editor.file, copy / "stray.safetensors")
    monkeypatch.setattr(latent_mini, "export", lambda run, target: target.write_bytes(b"trained"))
    monkeypatch.setattr(sys, "argv", ["training", "export", "--weights", str(editor.file)])
    training.main()
    assert weights.inside()[editor.file.name] == hashlib.sha256(b"trained").hexdigest()
    assert [found.path for found in weights.verify_inside() if found.state == "unpinned"] == [
        "stray.safetensors"
    ]
    editor.file.unlink()
    with pytest.raises(ModelError, match="install backfire again"):
        editor.load()
    assert run("verify")[0] == 3
    assert "BAD latent-mini/latent-mini.safetensors: absent; install backfire again" in run("verify")[1]
    here = {model["name"]: model["here"] for model in run("list", "--json")[1]["models"]}
    assert (here["latent-mini"], here["flux2-mini"]) == ("no", "yes")
    (copy / weights.SUMS).unlink()
    with pytest.raises(ModelError, match=r"SHA256SUMS: cannot be read .*; install backfire again"):
        inpaint.BUILT_IN["ldm-mini"].load()


def test_a_file_put_there_by_hand_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "mat-places").mkdir()
    (tmp_path / "mat-places" / "Places_512_FullData_G.pth").write_bytes(b"?")
    assert [finding.state for finding in weights.verify(tmp_path)] == ["unpinned"]


def test_the_command(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Command) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("{folders: {inbox: inbox}, models: {folder: weights}}")
    monkeypatch.setattr(weights, "catalogue", lambda: {"toy": model(site.url)})

    assert run("verify")[1].splitlines()[0] == f"no models in {tmp_path / 'weights'}"
    assert run("verify")[1].count("ok  ") == len(weights.inside()), "what ships inside is hashed, too"
    assert run("list", "--json")[1]["models"][-1]["here"] == "no"
    assert DIGEST in run("fetch", "toy")[1]
    assert run("list", "--json")[1]["models"][-1]["here"] == "yes"
    assert run("verify")[0] == 0
    (tmp_path / "weights" / "toy" / "weights.bin").write_bytes(b"rot")
    code, text = run("verify")
    assert code == 3
    assert "changed" in text
    assert run("fetch", "toy", "--json") == (
        0,
        [{"file": str(tmp_path / "weights/toy/weights.bin"), "sha256": DIGEST}],
    )
