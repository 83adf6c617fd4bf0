"""Delivers events to a webhook or a command when a picture is published, held for review, or has failed.

A delivery is a small file in `state/hooks`. It is synced to disk before the end of the job is recorded, and
deleted once the receiver has taken it. It therefore survives restarts and arrives at least once; a repeated
delivery has the same `id`. A separate thread delivers, so that no job waits. A delivery that cannot be
written (no space) or that fails `attempts` times is given up with an error in the log. The log shows only the
scheme and the host of a webhook, because its path, query and credentials may hold secrets.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import structlog

from backfire import advice
from backfire.config import Hooks, Settings
from backfire.errors import BackfireError
from backfire.files import outbox
from backfire.service.hooks.webhook import DeliveryFailed, masked, post
from backfire.types import Job, JobState, shown

log = structlog.get_logger()

FIRST_S, LONGEST_S = 5.0, 3600.0
"""The wait after the first failure, which doubles with each further one, and the longest wait."""

EVENTS = {
    JobState.PUBLISHED: "published",
    JobState.REVIEW: "review",
    JobState.FAILED: "failed",
    JobState.QUARANTINED: "failed",
}

FOLDERS = {"published": "outbox", "review": "review", "failed": "failed"}
"""By event, the folder in which the picture lies."""


@dataclass(frozen=True)
class Delivery:
    """One event for one target, as it is stored in its file.

    Attributes:
        target: `webhook` or `command`.
        payload: the JSON that is sent.
        attempts: how many attempts have failed.
        not_before: the time of the next attempt, in Unix seconds.
    """

    target: str
    payload: dict[str, Any]
    attempts: int = 0
    not_before: float = 0.0

    @property
    def file(self) -> str:
        return f"{self.payload['id']}-{self.target}.json"


class Courier:
    """Stores deliveries on disk and carries them out.

    Args:
        settings: `hooks` and the folders are used.
        now: the wall clock, in Unix seconds.
    """

    def __init__(self, settings: Settings, *, now: Callable[[], float] = time.time) -> None:
        self._hooks, self._folders = settings.hooks, settings.folders
        self._folder = settings.folders.state / "hooks"
        self._now = now
        self._lock = threading.Lock()
        self._pending: dict[str, Delivery] = {}
        self._wake = threading.Event()
        self._draining = self._ended = False
        self._command: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self.delivered = self.given_up = 0

    @property
    def pending(self) -> int:
        """The number of deliveries that wait."""
        return len(self._pending)

    def configure(self, hooks: Hooks) -> None:
        """Use other settings from now on; deliveries to a target that is gone from them are dropped."""
        self._hooks = hooks
        self.start()
        self._wake.set()

    def start(self) -> None:
        """Start the thread if there is a target or a delivery that an earlier process left.

        Calling it again does nothing.
        """
        if self._thread is None and (self._targets() or self._folder.is_dir()):
            self._load()
            self._thread = threading.Thread(target=self._work, name="hooks", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Attempt what is due within `timeout_s`, then stop; the rest waits for the next start."""
        self._draining = True
        self._wake.set()
        if self._thread is None:
            return
        self._thread.join(self._hooks.timeout_s)
        self._ended = True
        self._kill()
        self._thread.join(1)

    def __call__(self, job: Job, timings: dict[str, float] | None = None) -> None:
        """Store the deliveries for the new state of a job. A full disk is logged and not raised."""
        event = EVENTS.get(job.state)
        if event is not None and self.wants(event):
            self.send(self._payload(job, event))

    def wants(self, event: str) -> bool:
        """Whether anybody is to be told of such events."""
        return event in self._hooks.events and bool(self._targets())

    @property
    def digest_s(self) -> float:
        """After how many seconds without a further result a folder's batch is complete."""
        return self._hooks.digest_s

    def send(self, payload: dict[str, Any]) -> None:
        """Store the deliveries of an event. A full disk is logged and not raised."""
        for target in self._targets():
            delivery = Delivery(target, payload)
            try:
                self._keep(delivery)
            except (BackfireError, OSError) as error:
                self.given_up += 1
                log.error("hook_lost", id=delivery.payload["id"], target=target, error=str(error))
        self._wake.set()

    def step(self) -> float | None:
        """Attempt what is due; returns the seconds until the next delivery is, None if none waits."""
        for delivery in sorted(self._pending.values(), key=lambda d: d.not_before):
            if self._ended:
                break
            if self._wait(delivery) <= 0:
                self._try(delivery)
        return min((self._wait(delivery) for delivery in list(self._pending.values())), default=None)

    def _wait(self, delivery: Delivery) -> float:
        """The seconds until a delivery is due; 0 if its time is so far off that the clock was set back."""
        wait = delivery.not_before - self._now()
        return wait if 0 < wait <= 2 * LONGEST_S else 0.0

    def _work(self) -> None:
        while not self._ended:
            self._wake.clear()
            wait = self.step()
            if self._draining and (wait is None or wait > 0):
                return
            # Waits at most a minute, because the wall clock may be set back meanwhile.
            self._wake.wait(min(60.0, wait if wait is not None else 60.0))

    def _targets(self) -> list[str]:
        return ["webhook"] * (self._hooks.webhook is not None) + ["command"] * bool(self._hooks.command)

    def _payload(self, job: Job, event: str) -> dict[str, Any]:
        said = advice.of(job)
        # A job ends once, but one that is held may be worked again and then be held again.
        which = f"review-{job.lease}" if event == "review" else event
        return {
            "id": f"{(job.key or '')[:16]}-{job.id}-{which}",
            "event": event,
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(job.updated)),
            "job": job.id,
            "file": job.name,
            "folder": str(self._folders.named()[FOLDERS[event]]),
            "output": shown(job.output_path) if job.output_path else None,
            "verdict": job.verdict.value if job.verdict else None,
            "code": job.code,
            "message": str(said) if said else job.message,
            "details": said.details if said else None,
            "page": said.page if said else None,
            "attempts": job.attempts,
            "input_sha256": job.input_sha256,
            "output_sha256": job.output_sha256,
        }

    def _try(self, delivery: Delivery) -> None:
        about = {"id": delivery.payload["id"], "target": delivery.target}
        body = json.dumps(delivery.payload).encode()
        try:
            if delivery.target == "webhook" and self._hooks.webhook is not None:
                about["to"] = masked(self._hooks.webhook.get_secret_value())
                post(self._hooks.webhook.get_secret_value(), body, about["id"], self._hooks.timeout_s)
            elif delivery.target == "command" and self._hooks.command:
                about["to"] = self._hooks.command[0]
                self._run(body)
            else:
                raise DeliveryFailed("its target is no longer configured")
        except DeliveryFailed as error:
            self._failed(delivery, str(error), about)
            return
        except Exception as error:  # the thread must go on, and the text of the error may hold the address
            self._failed(delivery, type(error).__name__, about)
            return
        self.delivered += 1
        self._drop(delivery)

    def _failed(self, delivery: Delivery, error: str, about: dict[str, str]) -> None:
        if self._ended:
            return  # the daemon stopped it, so it does not count as an attempt
        attempts = delivery.attempts + 1
        if attempts >= self._hooks.attempts or delivery.target not in self._targets():
            self.given_up += 1
            log.error("hook_given_up", **about, attempts=attempts, error=error)
            self._drop(delivery)
            return
        wait = min(FIRST_S * 2 ** min(delivery.attempts, 20), LONGEST_S)
        log.warning("hook_failed", **about, attempts=attempts, error=error, retry_s=wait)
        again = replace(delivery, attempts=attempts, not_before=self._now() + wait)
        self._pending[again.file] = again  # also if the disk is too full to store it
        with suppress(BackfireError, OSError):
            self._keep(again)

    def _run(self, body: bytes) -> None:
        """Run the command without a shell, in its own session, with the payload on its standard input."""
        hidden = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")  # only the daemon talks to systemd
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        with tempfile.TemporaryFile() as payload:  # not a pipe, which breaks if the command does not read it
            payload.write(body)
            payload.seek(0)
            try:
                command = subprocess.Popen(
                    self._hooks.command, stdin=payload, stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL, env=environment, start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                raise DeliveryFailed(f"cannot be started ({error.strerror})") from error
        self._command = command
        try:
            command.wait(self._hooks.timeout_s)
        except subprocess.TimeoutExpired:
            self._kill()
            command.wait()
            raise DeliveryFailed(f"took longer than {self._hooks.timeout_s:g} s") from None
        finally:
            self._command = None
        if command.returncode:
            raise DeliveryFailed(f"exit status {command.returncode}")

    def _kill(self) -> None:
        command = self._command
        if command is not None:
            with suppress(ProcessLookupError):
                os.killpg(command.pid, signal.SIGKILL)  # and all that it has started

    def _load(self) -> None:
        with suppress(FileNotFoundError):
            for file in sorted(self._folder.glob("*.json")):
                try:
                    delivery = Delivery(**json.loads(file.read_bytes()))
                    self._pending[delivery.file] = delivery
                except (OSError, ValueError, TypeError, KeyError) as error:
                    log.error("hook_unreadable", file=str(file), error=repr(error))

    def _keep(self, delivery: Delivery) -> None:
        with self._lock:
            outbox.replace(json.dumps(asdict(delivery)).encode(), self._folder, delivery.file.encode())
            self._pending[delivery.file] = delivery

    def _drop(self, delivery: Delivery) -> None:
        with self._lock:
            self._pending.pop(delivery.file, None)
            with suppress(OSError):  # it is then delivered again after the next start
                (self._folder / delivery.file).unlink(missing_ok=True)
