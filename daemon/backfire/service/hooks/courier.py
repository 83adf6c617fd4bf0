"""Telling others: a webhook or a command when a picture is published or has failed.

A delivery is a small file in `state/hooks`, synced before the job's end is recorded and deleted
when the other side took it: it survives restarts and arrives at least once; a repetition bears the
same `id`. A thread of its own delivers, so that no job ever waits. One that cannot be written
down (no space) or fails `attempts` times is given up with an error in the log. What is logged of a
webhook is its scheme and host only: paths, queries and credentials hold secrets.
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

from backfire.config import Hooks, Settings
from backfire.errors import BackfireError
from backfire.files import outbox
from backfire.service.hooks.webhook import DeliveryFailed, masked, post
from backfire.types import Job, JobState, shown

log = structlog.get_logger()

FIRST_S, LONGEST_S = 5.0, 3600.0
"""The wait after a first failure, which doubles, and the longest."""

EVENTS = {
    JobState.PUBLISHED: "published",
    JobState.FAILED: "failed",
    JobState.QUARANTINED: "failed",
}


@dataclass(frozen=True)
class Delivery:
    """One message for one target, as it lies in its file; `not_before` in Unix seconds."""

    target: str
    payload: dict[str, Any]
    attempts: int = 0
    not_before: float = 0.0

    @property
    def file(self) -> str:
        return f"{self.payload['id']}-{self.target}.json"


class Courier:
    """Writes deliveries down and carries them out.

    Args:
        settings: `hooks`, and `folders.state`.
        now: wall clock, Unix seconds.
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
        """How many deliveries wait."""
        return len(self._pending)

    def configure(self, hooks: Hooks) -> None:
        """Deliver by other settings from now on; what waits for a target that is gone is dropped."""
        self._hooks = hooks
        self.start()
        self._wake.set()

    def start(self) -> None:
        """Read what a former process left, and deliver in a thread. Harmless when repeated or unused."""
        if self._thread is None and (self._targets() or self._folder.is_dir()):
            self._load()
            self._thread = threading.Thread(target=self._work, name="hooks", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Give what is due its try within `timeout_s`, then end; the rest waits for the next start."""
        self._draining = True
        self._wake.set()
        if self._thread is None:
            return
        self._thread.join(self._hooks.timeout_s)
        self._ended = True
        self._kill()
        self._thread.join(1)

    def __call__(self, job: Job, timings: dict[str, float] | None = None) -> None:
        """Write down what the new state of a job gives rise to; never raises for want of space."""
        event = EVENTS.get(job.state)
        if event is None or event not in self._hooks.events:
            return
        for target in self._targets():
            delivery = Delivery(target, self._payload(job, event))
            try:
                self._keep(delivery)
            except (BackfireError, OSError) as error:
                self.given_up += 1
                log.error("hook lost", id=delivery.payload["id"], target=target, error=str(error))
        self._wake.set()

    def step(self) -> float | None:
        """Try every delivery that is due; returns the seconds until the next one is, None without any."""
        for delivery in sorted(self._pending.values(), key=lambda d: d.not_before):
            if self._ended:
                break
            if self._wait(delivery) <= 0:
                self._try(delivery)
        return min((self._wait(delivery) for delivery in list(self._pending.values())), default=None)

    def _wait(self, delivery: Delivery) -> float:
        """Seconds until it is due; none for a time so late that the clock must have been set back."""
        wait = delivery.not_before - self._now()
        return wait if 0 < wait <= 2 * LONGEST_S else 0.0

    def _work(self) -> None:
        while not self._ended:
            self._wake.clear()
            wait = self.step()
            if self._draining and (wait is None or wait > 0):
                return
            # Waits in pieces: the wall clock may be set back meanwhile.
            self._wake.wait(min(60.0, wait if wait is not None else 60.0))

    def _targets(self) -> list[str]:
        return ["webhook"] * (self._hooks.webhook is not None) + ["command"] * bool(self._hooks.command)

    def _payload(self, job: Job, event: str) -> dict[str, Any]:
        published = event == "published"
        return {
            "id": f"{(job.key or '')[:16]}-{job.id}-{event}",
            "event": event,
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(job.updated)),
            "job": job.id,
            "file": job.name,
            "folder": str(self._folders.outbox if published else self._folders.failed),
            "output": shown(job.output_path) if job.output_path else None,
            "verdict": job.verdict.value if job.verdict else None,
            "code": job.code,
            "message": job.message,
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
                raise DeliveryFailed("its target is not configured any more")
        except DeliveryFailed as error:
            self._failed(delivery, str(error), about)
            return
        except Exception as error:  # the thread must live on; the text of others may hold the address
            self._failed(delivery, type(error).__name__, about)
            return
        self.delivered += 1
        self._drop(delivery)

    def _failed(self, delivery: Delivery, error: str, about: dict[str, str]) -> None:
        if self._ended:
            return  # we ended it ourselves; that is no attempt
        attempts = delivery.attempts + 1
        if attempts >= self._hooks.attempts or delivery.target not in self._targets():
            self.given_up += 1
            log.error("hook given up", **about, attempts=attempts, error=error)
            self._drop(delivery)
            return
        wait = min(FIRST_S * 2 ** min(delivery.attempts, 20), LONGEST_S)
        log.warning("hook failed", **about, attempts=attempts, error=error, retry_s=wait)
        again = replace(delivery, attempts=attempts, not_before=self._now() + wait)
        self._pending[again.file] = again  # also where the disk is too full to write that down
        with suppress(BackfireError, OSError):
            self._keep(again)

    def _run(self, body: bytes) -> None:
        """The command, without a shell, in a session of its own; the payload is on its standard input."""
        hidden = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")  # it is not the daemon
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        with (
            tempfile.TemporaryFile() as payload
        ):  # not a pipe, which a command that reads nothing would break
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
                os.killpg(command.pid, signal.SIGKILL)  # with what it started itself

    # The files

    def _load(self) -> None:
        with suppress(FileNotFoundError):
            for file in sorted(self._folder.glob("*.json")):
                try:
                    delivery = Delivery(**json.loads(file.read_bytes()))
                    self._pending[delivery.file] = delivery
                except (OSError, ValueError, TypeError, KeyError) as error:
                    log.error("hook unreadable", file=str(file), error=repr(error))

    def _keep(self, delivery: Delivery) -> None:
        with self._lock:
            outbox.replace(json.dumps(asdict(delivery)).encode(), self._folder, delivery.file.encode())
            self._pending[delivery.file] = delivery

    def _drop(self, delivery: Delivery) -> None:
        with self._lock:
            self._pending.pop(delivery.file, None)
            with suppress(OSError):  # then it is delivered once more, after the next start
                (self._folder / delivery.file).unlink(missing_ok=True)
