"""Weights are fetched from a server on loopback, recorded and verified; what may go wrong with each."""

from __future__ import annotations

import errno
import hashlib
import http.client
import io
import json
import os
import shutil
import stat
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from backfire import inpaint, weights
from backfire.config import Settings
from backfire.errors import ConfigError, ModelError
from backfire.weights import File, Model
from backfire.weights.download import FileProgress, fetch
from backfire.weights.pipelines import Pipeline, pipelines
from backfire.weights.transfer import Redirects
from training import __main__ as training

DATA = bytes(range(256)) * 4096  # 1 MiB
DIGEST = hashlib.sha256(DATA).hexdigest()


@dataclass
class Site:
    """What the server answers, and which ranges it was asked for."""

    url: str = ""
    data: bytes = DATA
    etag: str = '"one"'
    break_after: list[int] = field(default_factory=list)
    """For each of the next answers, after how many bytes the connection is closed."""
    status: list[int] = field(default_factory=list)
    """For each of the next answers, the status that is sent instead of the file."""
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
            with suppress(ConnectionError):  # the client may have hung up
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


def test_a_file_is_fetched_once(site: Site, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    (path,) = fetch(model(site.url), tmp_path, progress=lambda _, done, total: seen.append((done, total)))
    assert path == tmp_path / "toy" / "weights.bin"
    assert path.read_bytes() == DATA
    assert seen[-1] == (len(DATA), len(DATA))
    assert [p.name for p in path.parent.iterdir()] == ["weights.bin"], "nothing is left beside it"
    fetch(model("http://127.0.0.1:9/gone"), tmp_path)  # offline
    assert site.ranges == [None]


def test_after_a_broken_connection_the_rest_is_fetched(site: Site, tmp_path: Path) -> None:
    site.break_after = [300_000, 200_000]
    (path,) = fetch(model(site.url), tmp_path, sleep=no_sleep)
    assert path.read_bytes() == DATA
    assert site.ranges == [None, "bytes=300000-", "bytes=500000-"]


def test_a_later_fetch_resumes_an_interrupted_one(site: Site, tmp_path: Path) -> None:
    def interrupt(path: str, done: int, total: int | None) -> None:
        if done > 500_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(model(site.url), tmp_path, progress=interrupt)
    assert not (tmp_path / "toy" / "weights.bin").exists(), "only a complete file has its final name"
    have = (tmp_path / "toy" / "weights.bin.part").stat().st_size
    assert 0 < have < len(DATA)
    (path,) = fetch(model(site.url), tmp_path)
    assert path.read_bytes() == DATA
    assert site.ranges[-1] == f"bytes={have}-"


def test_halves_of_two_versions_are_not_joined(site: Site, tmp_path: Path) -> None:
    """The digest of this file is not known, so only the server can tell that it has changed."""
    site.break_after = [300_000]
    site.status = []
    toy = model(site.url, sha256=None, size=None)

    def change(seconds: float) -> None:
        site.data, site.etag = DATA[::-1], '"two"'

    (path,) = fetch(toy, tmp_path, sleep=change)
    assert path.read_bytes() == DATA[::-1]


@pytest.mark.parametrize("extra", [b"", b"more"])
def test_a_part_may_be_as_long_as_the_file_or_longer(site: Site, tmp_path: Path, extra: bytes) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "weights.bin.part").write_bytes(DATA + extra)
    (path,) = fetch(model(site.url), tmp_path, sleep=no_sleep)
    assert path.read_bytes() == DATA


def test_a_file_of_the_wrong_digest_is_deleted(site: Site, tmp_path: Path) -> None:
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


def test_an_unpublished_digest_is_recorded_and_required_from_then_on(site: Site, tmp_path: Path) -> None:
    toy = model(site.url, sha256=None)
    (path,) = fetch(toy, tmp_path)
    assert weights.pins(tmp_path) == {"toy/weights.bin": DIGEST}
    path.unlink()
    site.data = DATA[::-1]
    with pytest.raises(ModelError, match=f"expected {DIGEST}"):
        fetch(toy, tmp_path)


def test_a_recorded_digest_that_was_wrong_can_be_deleted(site: Site, tmp_path: Path) -> None:
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
def test_an_empty_file_or_a_web_page_is_not_trusted(
    site: Site, tmp_path: Path, data: bytes, what: str
) -> None:
    site.data = data
    with pytest.raises(ModelError, match=f"is {what}, expected weights"):
        fetch(model(site.url, sha256=None), tmp_path)
    assert weights.pins(tmp_path) == {}


def test_an_error_of_the_network_while_reading_is_not_taken_for_one_of_the_disk(
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


def test_with_a_damaged_record_nothing_is_trusted(site: Site, tmp_path: Path) -> None:
    (tmp_path / weights.PINS).write_text("{")
    with pytest.raises(ModelError, match="restore it"):
        fetch(model(site.url, sha256=None), tmp_path)


def test_not_found_is_final_and_the_error_names_the_remedy(site: Site, tmp_path: Path) -> None:
    site.status = [404]
    with pytest.raises(ModelError, match=r"answers 404 .* --from") as caught:
        fetch(model(site.url), tmp_path, sleep=no_sleep)
    assert (len(site.ranges), caught.value.retryable) == (1, False)


def test_a_busy_server_is_asked_again(site: Site, tmp_path: Path) -> None:
    site.status = [503, 502]
    waits: list[float] = []
    fetch(model(site.url), tmp_path, sleep=waits.append)
    assert waits == [1.0, 3.0]


def test_a_missing_network_is_an_error_after_some_tries(tmp_path: Path) -> None:
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
        Redirects().redirect_request(request, None, 302, "", {}, "http://example.org/x")


def test_an_endless_answer_is_ended(site: Site, tmp_path: Path) -> None:
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


def test_the_licence_is_printed_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from backfire.cli.commands import app

    (tmp_path / "config.yaml").write_text("{folders: {inbox: inbox}, models: {folder: weights}}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ModelError, SystemExit)):
        app(["models", "fetch", "mat-places", "--from", "nowhere"])
    said = "mat-places: 1 file of unknown size, licence CC BY-NC 4.0, non-commercial"
    assert said in capsys.readouterr().err


def test_a_set_is_said_whole_before_it_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from backfire.cli.commands import app

    (tmp_path / "config.yaml").write_text("{folders: {inbox: inbox}, models: {folder: weights}}")
    monkeypatch.chdir(tmp_path)
    said = Fetched(monkeypatch, lambda: capsys.readouterr().err).said
    with pytest.raises(SystemExit) as ended:
        app(["models", "fetch", "--set", "recommended"])
    assert ended.value.code == 0
    names = [model.name for model in weights.members("recommended")]
    assert {"taef1", "taef2", "big-lama"} <= set(names)
    assert len(said) == len(names)
    *lines, total = said[0].splitlines()
    assert [line.partition(":")[0] for line in lines] == names
    assert "big-lama: 206 MB, licence Apache-2.0" in said[0]
    assert total == said_of("recommended")


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_what_is_fetched_has_the_rights_that_the_users_umask_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int
) -> None:
    from backfire.cli import common, models

    Fetched(monkeypatch, str)
    monkeypatch.setattr(common, "users_umask", umask)
    before = os.umask(0o027)  # as the program sets it
    try:
        ((file, *_),) = models.fetch_all([weights.catalogue()["mat-places"]], tmp_path, ask=False)
    finally:
        after = os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask
    assert after == 0o027, "a demo runs the daemon next"


def said_of(group: str) -> str:
    """The line about the size of a whole set, by the catalogue."""
    files = [file for model in weights.members(group) for file in model.files]
    known = sum(file.size or 0 for file in files) / 1e6
    unknown = sum(file.size is None for file in files)
    assert unknown > 1, "the catalogue knows all sizes: take files of unknown size out of the test"
    return f"in all: at least {known:,.0f} MB, {unknown} files of unknown size"


class Fetched:
    """In place of downloads: empty files, and what had been said when each model was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, heard: Callable[[], str]) -> None:
        from backfire.cli import models

        self.said: list[str] = []

        def bring(model: Model, folder: Path, *, progress: FileProgress, **_: Any) -> list[Path]:
            self.said.append(heard())
            paths = [folder / model.name / file.path for file in model.files]
            for path in paths:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
                progress(path.name, 1, 2)
            return paths

        monkeypatch.setattr(models, "bring", bring)


def test_the_demo_says_what_it_fetches_before_it_does_and_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backfire.cli import models, serve
    from backfire.cli.commands import app
    from backfire.service.loop import Summary

    told = Console(file=io.StringIO(), force_terminal=True, width=200, color_system=None)
    monkeypatch.setattr(models, "err", told)
    monkeypatch.setattr(serve, "serve", lambda settings, until_idle: Summary())
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    said = Fetched(monkeypatch, lambda: told.file.getvalue()).said  # type: ignore[attr-defined]  # a StringIO
    ended = CliRunner().invoke(app, ["demo", str(tmp_path / "show"), "--fetch"])
    assert ended.exit_code == 0, ended.output
    names = [model.name for model in weights.members("light")]
    lines = said[0].splitlines()
    assert [line.partition(":")[0] for line in lines[: len(names)]] == names
    assert f"taesd: 10 MB, licence MIT; {weights.catalogue()['taesd'].home}" in lines
    assert said_of("light") in lines
    assert len(said) == len(names)
    assert "taesd_encoder.pth" in told.file.getvalue(), "the bar"  # type: ignore[attr-defined]
    assert all(weights.is_there(name, tmp_path / "home" / "backfire" / "models") for name in names)
    assert (tmp_path / "show" / "inbox" / "astronaut.png").is_file()


def test_each_set_has_those_of_the_one_before() -> None:
    light, recommended, gpu, everything = (set(map(id, weights.members(name))) for name in weights.SETS)
    assert light < recommended < gpu < everything
    # Once they are here they take part by default, and an edit of a minute would take a CPU hours a picture.
    assert all(model.edit_cpu_s < 10 for model in weights.members("recommended"))
    assert all(file.url for model in weights.members("all") for file in model.files)


@pytest.mark.parametrize("arguments", [[], ["taef2", "--set", "light"], ["--set", "light", "--from", "x"]])
def test_either_a_name_or_a_set_is_fetched(arguments: list[str]) -> None:
    from backfire.cli.commands import app

    with pytest.raises((ConfigError, SystemExit)) as caught:
        app(["models", "fetch", *arguments])
    assert not isinstance(caught.value, SystemExit) or caught.value.code != 0


def test_after_a_full_disk_a_fetch_resumes_with_what_arrived(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    def on_full_disk(path: Path, mode: str = "r", *given: Any, **more: Any) -> Any:
        return FullDisk(path, mode) if mode == "ab" else opened(path, mode, *given, **more)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", on_full_disk)
        with pytest.raises(ModelError, match=r"No space left.*resumes where it stopped") as caught:
            fetch(model(site.url), tmp_path)
    assert caught.value.retryable
    have = (tmp_path / "toy" / "weights.bin.part").stat().st_size
    assert 0 < have <= 600_000
    (path,) = fetch(model(site.url), tmp_path)
    assert path.read_bytes() == DATA
    assert site.ranges[-1] == f"bytes={have}-"


def test_too_little_space_is_an_error_before_anything_is_written(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(ModelError, match="1048576 bytes more are needed"):
        fetch(model(site.url), tmp_path)


def test_a_file_or_a_folder_can_be_the_source_and_must_have_the_same_digest(tmp_path: Path) -> None:
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


def test_a_mirror_can_be_the_source(site: Site, tmp_path: Path) -> None:
    (path,) = fetch(model("http://127.0.0.1:9/x"), tmp_path, source=site.url.rpartition("/")[0] + "/")
    assert path.read_bytes() == DATA


@pytest.mark.parametrize(
    ("source", "says"),
    [(None, "ask its authors"), ("file:///etc/hostname", "got file:"), ("/nowhere", "does not hold")],
)
def test_an_unusable_source_is_refused(tmp_path: Path, source: str | None, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        fetch(model(None), tmp_path, source=source)


def test_two_fetches_do_not_write_one_file(site: Site, tmp_path: Path) -> None:
    def again(path: str, done: int, total: int | None) -> None:
        fetch(model(site.url), tmp_path)

    with pytest.raises(ModelError, match="another fetch"):
        fetch(model(site.url), tmp_path, progress=again)


def test_a_folder_that_may_not_be_entered_is_an_error_that_says_who_needs_access(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may enter any, so the system's answer is a double."""

    def refused(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refused)
    inbox, folder = tmp_path / "inbox", tmp_path / "models"
    settings = Settings.model_validate({"folders": {"inbox": inbox}, "models": {"folder": folder}})
    says = rf"{folder}/\S+ cannot be read as uid \d+ \(Permission denied\); give uid \d+ access"
    with pytest.raises(ConfigError, match=rf"models\.folder {folder}: {says}"):
        inpaint.present(settings)
    with pytest.raises(ModelError, match=says) as caught:
        weights.located("taef2", folder)
    assert not caught.value.retryable
    monkeypatch.setattr(Path, "exists", refused)
    mine = {"mine": {"kind": "latent", "weights": ["/elsewhere/w.safetensors"]}}
    with pytest.raises(ConfigError, match="editors: weights /elsewhere/"):
        inpaint.present(Settings.model_validate({"folders": {"inbox": inbox}, "editors": mine}))


def test_every_entry_of_the_catalogue_is_well_formed() -> None:
    for entry in weights.catalogue().values():
        assert entry.licence
        assert entry.home.startswith("https://")
        for file in entry.files:
            assert not Path(file.path).is_absolute()
            assert ".." not in Path(file.path).parts
            assert file.url is None or file.url.startswith("https://")
            assert file.url or entry.note, "the note says how to get it"
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
    """Runs `backfire models …`; returns its exit code and its output, decoded where that is JSON."""
    from backfire.cli.commands import app

    def command(*arguments: str) -> tuple[int, Any]:
        with pytest.raises(SystemExit) as caught:
            app(["models", *arguments])
        text = capsys.readouterr().out
        assert isinstance(caught.value.code, int | None)
        return caught.value.code or 0, json.loads(text) if "--json" in arguments else text

    return command


def test_weights_inside_the_package_must_have_their_digests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    assert {path.name for path in weights.INSIDE.glob("*.safetensors")} == weights.inside().keys()
    assert {finding.state for finding in weights.verify_inside()} == {"ok"}
    copy = tmp_path / "weights"
    shutil.copytree(weights.INSIDE, copy)
    monkeypatch.setattr(weights, "INSIDE", copy)
    editor = inpaint.BUILT_IN["flux2-mini"]
    assert editor.load().weights_sha256 == weights.inside()[editor.file.name]
    data = bytearray(editor.file.read_bytes())
    data[-1] ^= 1  # a bit of the last weight: the file would load, and work nearly as before
    editor.file.write_bytes(data)
    assert [finding.state for finding in weights.verify_inside()] == ["ok", "changed", "ok"]
    with pytest.raises(ModelError, match=r"SHA-256 is .*, expected .*; install backfire again"):
        editor.load()
    shutil.copy(editor.file, copy / "stray.safetensors")
    other = copy / "ldm-mini.safetensors"
    whole = other.read_bytes()
    other.write_bytes(b"damaged")
    editor.file.write_bytes(b"trained")
    training.state_sum(editor.file)  # as `python -m training export` does
    assert weights.inside()[editor.file.name] == hashlib.sha256(b"trained").hexdigest()
    assert [found.path for found in weights.verify_inside() if found.state == "changed"] == [other.name]
    other.write_bytes(whole)
    assert [found.path for found in weights.verify_inside() if found.state == "unpinned"] == [
        "stray.safetensors"
    ]
    training.state_sum(copy / "stray.safetensors")  # as an export of an editor that has no line yet
    assert "unpinned" not in {found.state for found in weights.verify_inside()}
    editor.file.unlink()
    with pytest.raises(ModelError, match="install backfire again"):
        editor.load()
    assert run("verify")[0] == 3
    assert "BAD flux2-mini/flux2-mini.safetensors: absent; install backfire again" in run("verify")[1]
    here = {model["name"]: model["here"] for model in run("list", "--json")[1]["models"]}
    assert (here["flux2-mini"], here["ldm-mini"]) == ("no", "yes")
    (copy / weights.SUMS).unlink()
    with pytest.raises(ModelError, match=r"SHA256SUMS: cannot be read .*; install backfire again"):
        inpaint.BUILT_IN["ldm-mini"].load()


def test_a_file_that_was_not_fetched_is_unpinned(tmp_path: Path) -> None:
    (tmp_path / "mat-places").mkdir()
    (tmp_path / "mat-places" / "Places_512_FullData_G.pth").write_bytes(b"?")
    assert [finding.state for finding in weights.verify(tmp_path)] == ["unpinned"]


def test_the_commands_list_fetch_and_verify_models(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("{folders: {inbox: inbox}, models: {folder: weights}}")

    def here() -> str:
        (listed,) = (one for one in run("list", "--json")[1]["models"] if one["name"] == "mat-places")
        state: str = listed["here"]
        return state

    assert run("verify")[1].splitlines()[0] == f"no models in {tmp_path / 'weights'}"
    assert run("verify")[1].count("ok  ") == len(weights.inside()), "what ships inside is hashed, too"
    assert here() == "no"
    assert DIGEST in run("fetch", "mat-places", "--from", site.url)[1]
    assert here() == "yes"
    assert run("verify")[0] == 0
    file = tmp_path / "weights" / "mat-places" / "Places_512_FullData_G.pth"
    file.write_bytes(b"rot")
    code, text = run("verify")
    assert code == 3
    assert "changed" in text
    fetched = run("fetch", "mat-places", "--from", site.url, "--json")
    assert fetched == (0, [{"file": str(file), "sha256": DIGEST}])


def test_flux2_klein_is_pinned_whole(tmp_path: Path) -> None:
    klein = weights.catalogue()["flux2-klein-4b"]
    assert (klein.kind, klein.licence, klein.published) == ("flow", "Apache-2.0", len(klein.files))
    assert "gpu" in klein.sets
    assert "recommended" not in klein.sets
    (pipeline,) = (one for one in pipelines() if one.catalogue == klein.name)
    sizes = {file.path: file.size for file in klein.files}
    size = sizes["transformer/diffusion_pytorch_model.safetensors"]
    assert size == pytest.approx(2 * pipeline.parameters, rel=1e-4), "two bytes a parameter"
    assert klein.home.endswith(pipeline.hub)
    assert pipeline.gradient_gb < 24


def test_what_a_gradient_takes_is_the_weights_and_the_larger_of_two_backward_passes() -> None:
    small = Pipeline("o/n", "P", "L", "https://x", False, 10**9, 10**8, 1000, 1000, 10, encoder_gb=1)
    assert small.gradient_gb == pytest.approx(2.2 + 1)
    assert replace(small, encoder_gb=0).gradient_gb == pytest.approx(2.2 + 50 * 0.002)
    assert replace(small, encoder_gb=0, tokens=10**6).gradient_gb == pytest.approx(2.2 + 50 * 2)


def test_listed_pipelines_are_those_that_can_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Command
) -> None:
    from backfire.inpaint.families import FAMILIES

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    listed = {row["weights"]: row for row in run("list", "--json")[1]["pipelines"]}
    assert {row["pipeline"] for row in listed.values()} == {family.pipeline for family in FAMILIES}
    assert {row["here"] for row in listed.values()} == {"no"}
    assert listed["Qwen/Qwen-Image"]["licence_read_in"] == "https://huggingface.co/Qwen/Qwen-Image"
    (tmp_path / "hub" / "models--Qwen--Qwen-Image" / "snapshots" / "0").mkdir(parents=True)
    (again,) = (one for one in run("list", "--json")[1]["pipelines"] if one["weights"] == "Qwen/Qwen-Image")
    assert again["here"] == "yes"
    text = run("list")[1]
    assert all(name in text for name in listed)
    assert "not pinned" in text
    assert "models fetch flux2-klein-4b" in text
