"""A status page over a job database and folders that the test has filled."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import socket
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml

from backfire import config
from backfire.cli.page import options_of
from backfire.service.store.store import Store
from backfire.types import Job, JobState, Verdict
from backfire.web.guard import token
from tests.support.pictures import encoded, photo
from tests.support.sandbox import environment, forks, wait_for

FOLDERS = ("inbox", "outbox", "archive", "failed", "review", "reports", "state")


@dataclass
class Desk:
    """Folders, a job database and a configuration, as a daemon would leave them."""

    base: Path
    allowed_hosts: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # While it is bound nobody else is given the port, and a server with SO_REUSEADDR may listen at it.
        held = socket.socket()
        weakref.finalize(self, held.close)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        self.port = held.getsockname()[1]
        serve = {"page": f"127.0.0.1:{self.port}", "allowed_hosts": [*self.allowed_hosts]}
        self.config = self.base / "config.yaml"
        text = yaml.safe_dump({"folders": {"inbox": "inbox"}, "serve": serve, **self.extra})
        self.config.write_text(f"# of the picture desk\n{text}")
        self.settings = config.load(self.config)
        for name in FOLDERS:
            (self.base / name).mkdir(exist_ok=True)
        self.store = Store(self.settings.folders.database)
        self.now = time.time()

    def runs(self) -> None:
        """Hold the daemon's lock, as one does that runs."""
        held = (self.base / "state/lock").open("w")
        weakref.finalize(self, held.close)
        fcntl.flock(held, fcntl.LOCK_EX)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def token(self) -> str:
        return token(self.base / "state")

    def job(self, path: bytes | str, state: JobState, **changes: Any) -> Job:
        """A job in a state, with columns as given; `message` and others as the daemon sets them."""
        name = os.fsencode(path)
        (added,) = self.store.add([name], at=self.now)
        data = changes.pop("data", b"")
        changes.setdefault("input_sha256", sha256(data).hexdigest() if data else None)
        changes.setdefault("key", sha256(name).hexdigest())
        return self.store.update(added.id, state, at=self.now, **changes)

    def failed(self, path: bytes | str, code: str = "no_region", data: bytes | None = None) -> Job:
        """A picture that failed and lies in the failed folder."""
        data = encoded(photo((160, 120)), "JPEG") if data is None else data
        self._file("failed", path, data)
        return self.job(path, JobState.FAILED, code=code, message=f"{code}: why", data=data)

    def held(self, path: str, code: str = "no_region") -> Job:
        """A picture that is held for review."""
        data = encoded(photo((160, 120)), "JPEG")
        self._file("review", path, data)
        return self.job(path, JobState.REVIEW, code=code, message="nothing found", data=data)

    def published(
        self, path: bytes | str, verdict: Verdict = Verdict.PROTECTED, *, seed: int = 1, **more: Any
    ) -> Job:
        """A published picture of a seed with its archived original, receipt and sheet."""
        name = os.fsencode(path)
        before, after = encoded(photo((160, 120)), "PNG"), encoded(photo((160, 120), seed=seed), "PNG")
        self._file("archive", name, before)
        self._file("outbox", name, after)
        job = self.job(
            name, JobState.ARCHIVED, verdict=verdict, data=before, output_path=name,
            output_sha256=sha256(after).hexdigest(),
        )  # fmt: skip
        receipt = {**RECEIPT, "key": job.key, "verdict": verdict.value, **more}
        self._file("reports", name + b".json", json.dumps(receipt).encode())
        self._file("reports", name + b".sheet.jpg", encoded(photo((300, 200)), "JPEG"))
        return job

    def _file(self, folder: str, path: bytes | str, data: bytes) -> None:
        target = self.base / folder / os.fsdecode(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


RECEIPT: dict[str, Any] = {
    "schema": 1,
    "reasons": ["region 0: near edit by flux2-mini changes to SSIM 0.88, at least 0.9 asked"],
    "width": 160,
    "height": 120,
    "regions": [{"box": [20, 30, 80, 90], "label": "face", "score": 0.98, "detector": "faces"}],
    "edits": [
        {"editor": "flux2-mini", "region": 0, "mask_kind": "trigger", "path": "iopaint", "held_out": False,
         "ssim": 0.3, "l1": 0.2, "visible": 0.9, "control_ssim": 0.99},
        {"editor": "flux2-mini", "region": 0, "mask_kind": "near", "path": "iopaint", "held_out": False,
         "ssim": 0.88, "l1": 0.01, "visible": None, "control_ssim": None},
    ],
    "surrogates": [{"name": "flux2-mini", "weights_sha256": "ab" * 32}],
    "timings_s": {"decode": 0.1, "optimise": 12.5},
    "promise": "It promises nothing about other editors.",
}  # fmt: skip


@dataclass
class Answer:
    """What a server said."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


class Server:
    """The page's process over a desk."""

    def __init__(self, desk: Desk, ready: Callable[[], bool] | None = None) -> None:
        self.desk, self.cookie = desk, ""
        self._ready = ready or self._answers
        self.start()

    def start(self) -> None:
        address = self.desk.settings.serve.page_address
        assert address is not None
        options = options_of(self.desk.settings, self.desk.config, address).to_json()
        self.process = forks().start("backfire.web", [options], self.desk.base, environment(), 1, 2)
        wait_for(self._ready, because="the page to answer")

    def _answers(self) -> bool:
        assert self.process.poll() is None, "the page's process has ended"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.desk.port)) == 0

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)

    def ask(
        self, path: str, form: Mapping[str, str] | None = None, method: str = "", **headers: str
    ) -> Answer:
        """GET, or POST of a form; header names with `_` for `-`. Redirects are not followed."""
        connection = http.client.HTTPConnection("127.0.0.1", self.desk.port, timeout=150)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.cookie and "Cookie" not in sent:
            sent["Cookie"] = self.cookie
        body = None
        if form is not None:
            body = urlencode(form).encode()
            sent.setdefault("Content-Type", "application/x-www-form-urlencoded")
        try:
            connection.request(method or ("GET" if form is None else "POST"), path, body, sent)
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def unlock(self) -> None:
        """Give the token, and keep the cookie for what follows."""
        answer = self.ask("/unlock", {"token": self.desk.token})
        assert answer.status == 303, answer.text
        self.cookie = answer.headers["set-cookie"].partition(";")[0]

    def form_key(self) -> str:
        """The key that forms of the session carry."""
        return self.ask("/").text.partition('name="key" value="')[2].partition('"')[0]


Serving = Callable[[Desk], Server]
"""Starts a page over a desk."""


@contextmanager
def servers() -> Iterator[Serving]:
    """Starts servers that are stopped at the end."""
    started: list[Server] = []

    def start(desk: Desk) -> Server:
        started.append(Server(desk))
        return started[-1]

    try:
        yield start
    finally:
        for server in started:
            server.stop()
            server.desk.store.close()


@pytest.fixture
def serving() -> Iterator[Serving]:
    """Starts servers that are stopped at the end of the test."""
    with servers() as start:
        yield start


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A desk of the test's own."""
    return Desk(tmp_path)
