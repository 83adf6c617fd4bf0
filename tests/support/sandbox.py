"""A temporary installation of the daemon that tests drive through its commands, and `wait_for`."""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TypeVar

import pytest
import yaml

from tests.support.forks import Forked, Forks

T = TypeVar("T")
Process = subprocess.Popen[str] | Forked
ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
"""Data that the repository does not hold; tests that need it are marked `shared`."""


def wait_for(what: Callable[[], T], *, seconds: float = 120, because: str = "") -> T:
    """Poll until `what()` is truthy; the one place in the tests that sleeps."""
    deadline = time.monotonic() + seconds
    while True:
        value = what()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds} s for {because or what}")
        time.sleep(0.05)


BRISK: dict[str, Any] = {"settle_s": 0.3, "rescan_s": 1, "mask_wait_s": 0.3, "incomplete_wait_s": 0.5}
"""Short waiting times for `watch`, which tests use unless they set their own."""


@dataclass
class Sandbox:
    """The daemon's folders and configuration below a temporary folder, with methods to run it."""

    base: Path
    module: str = "backfire.cli"
    """The module that is run; a fault double can take the command line's place."""
    processes: list[Process] = field(default_factory=list)

    def configure(self, **sections: Any) -> Path:
        settings: dict[str, Any] = {
            "folders": {"inbox": "inbox"},
            **sections,
            "watch": {**BRISK, **sections.get("watch", {})},
        }
        path = self.base / "config.yaml"
        path.write_text(yaml.safe_dump(settings))
        for name in ("inbox", "outbox", "archive", "failed", "review", "reports"):
            (self.base / name).mkdir(exist_ok=True)
        return path

    def __getattr__(self, name: str) -> Path:
        if name in ("inbox", "outbox", "archive", "failed", "review", "reports", "state"):
            return self.base / name
        raise AttributeError(name)

    def backfire(self, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a command and wait for its end."""
        return self._run(self.module, *arguments, timeout=timeout)

    def killed_once(self, step: str, *worker: str) -> subprocess.CompletedProcess[str]:
        """`backfire once` that SIGKILLs itself at a step of publishing; see tests/support/killed.py."""
        return self._run("tests.support.killed", step, *worker)

    def _run(self, module: str, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        with TemporaryFile("w+") as output, TemporaryFile("w+") as errors:
            files = output.fileno(), errors.fileno()
            process = forks().start(module, arguments, self.base, environment(), *files)
            try:
                code = process.wait(timeout)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise
            output.seek(0)
            errors.seek(0)
            return subprocess.CompletedProcess([module, *arguments], code, output.read(), errors.read())

    def start(self, *prefix: str) -> Process:
        """Start `backfire run`, with a prefix such as `unshare`, and wait until it is ready."""
        log = (self.base / "backfire.log").open("a+")
        offset = log.seek(0, os.SEEK_END)
        process: Process
        if prefix:
            process = subprocess.Popen(
                [*prefix, sys.executable, "-m", self.module, "run"],
                cwd=self.base, stdout=log, stderr=log, text=True, env=environment(), start_new_session=True,
            )  # fmt: skip
        else:
            process = forks().start(
                self.module, ["run"], self.base, environment(), log.fileno(), log.fileno()
            )
        log.close()
        self.processes.append(process)

        def ready() -> bool:
            assert process.poll() is None, self.log()
            return '"ready"' in self.log()[offset:]

        wait_for(ready, because="the daemon to be ready")
        return process

    def log(self) -> str:
        return (self.base / "backfire.log").read_text()

    def files(self, folder: str) -> set[str]:
        """Paths of the files below a folder, without hidden ones; folders may vanish meanwhile."""
        top = self.base / folder
        return {
            str((Path(parent) / name).relative_to(top))
            for parent, _, names in os.walk(top)
            for name in names
            if not name.startswith(".")
        }

    def receipt(self, name: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.base / "reports" / f"{name}.json").read_bytes())
        return document

    def error(self, name: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.base / "failed" / f"{name}.error.json").read_bytes())
        return document

    def drop(self, source: Path | bytes, name: str) -> Path:
        """Put a file into the inbox under the given name."""
        target = self.base / "inbox" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source if isinstance(source, bytes) else source.read_bytes())
        return target

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@functools.cache
def forks() -> Forks:
    """The process that forks commands for this process of tests, started when it is first needed."""
    made = Forks(environment())
    atexit.register(made.close)
    return made


def environment() -> dict[str, str]:
    """The environment of a child process that finds the package and the doubles, wherever it is started."""
    # Waiting threads should sleep: several processes whose threads wait by spinning slow each other down.
    return {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": f"{ROOT / 'daemon'}:{ROOT}"}


LENIENT: dict[str, Any] = {
    "held_out": [],
    "paths": ["iopaint"],
    "trigger_ssim_max": 1.0,
    "incomplete_ssim_max": 1.0,
    "trigger_l1_min": 0.0,
    "incomplete_l1_min": 0.0,
    "trigger_visible_min": 0.0,
    "incomplete_visible_min": 0.0,
    "near_ssim_min": 0.0,
    "far_ssim_min": 0.0,
    "control_factor": 0.0,
}
"""Thresholds that any result meets, for tests of everything but the effect on edits."""

QUICK: dict[str, Any] = {"protect": {"iterations": 2, "margin_px": 32, "whole_px": 0}, "verify": LENIENT}
