"""Commands as forks of one process that has imported the package already.

A start of the command line takes a second of a processor, nearly all of it for imports, and the tests start
it some three hundred times. A fork is a process of its own as much as a started one: it has its own
folder, files, session and signals, and runs its module as `python -m` does. `Forks` is the tests' side,
and this module run by `python -m` the other. Each request and each answer is a line of JSON.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

IMPORTED = (
    "alembic.command",
    "backfire.cli.commands",
    "backfire.service.dispatcher",
    "backfire.service.intake",
    "backfire.service.loop",
    "backfire.service.preflight",
    "backfire.service.publisher",
    "backfire.service.worker.local",
    "backfire.web.server",
)
"""Modules that commands need. None may depend on the environment or the folder at its import."""


class Forked:
    """A running command; the methods are those of `subprocess.Popen`, as far as the tests need them."""

    def __init__(self, forks: Forks, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._forks = forks

    def poll(self) -> int | None:
        if self.returncode is None:
            status = self._forks.ask({"ended": self.pid})
            if status is not None:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.poll() is None:
            ended = os.pidfd_open(self.pid)
            try:
                if not select.select([ended], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            finally:
                os.close(ended)
            self.poll()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class Forks:
    """The process that forks, as the tests see it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=environment,
            )
        self._answers = self._socket.makefile()

    def start(
        self,
        module: str,
        arguments: Sequence[str],
        cwd: Path,
        environment: dict[str, str],
        output: int,
        errors: int,
    ) -> Forked:
        """Run `python -m module` in a session of its own, with no standard input."""
        order = {"module": module, "arguments": arguments, "cwd": str(cwd), "environment": environment}
        pid = self.ask({"start": order}, output, errors)
        assert pid is not None
        return Forked(self, pid)

    def ask(self, request: dict[str, Any], *files: int) -> int | None:
        line = json.dumps(request, ensure_ascii=True).encode() + b"\n"
        socket.send_fds(self._socket, [line], files) if files else self._socket.sendall(line)
        answer: int | None = json.loads(self._answers.readline())
        return answer

    def close(self) -> None:
        self._answers.close()
        self._socket.close()
        self._process.wait()


def requests(control: socket.socket) -> dict[str, Any] | None:
    """Answer requests; returns in each fork, with what it is to run, and with None at the end."""
    data, files = b"", list[int]()
    while True:
        while b"\n" not in data:
            more, fds, _, _ = socket.recv_fds(control, 1 << 20, 2)
            if not more:
                return None
            data, files = data + more, files + fds
        line, _, data = data.partition(b"\n")
        request = json.loads(line)
        answer: int | None
        if "start" in request:
            pid = os.fork()
            if not pid:
                control.close()
                for number, file in enumerate(files, start=1):
                    os.dup2(file, number)
                    os.close(file)
                order: dict[str, Any] = request["start"]
                return order
            for file in files:
                os.close(file)
            files, answer = [], pid
        else:
            ended, status = os.waitpid(request["ended"], os.WNOHANG)
            answer = status if ended else None
        control.sendall(json.dumps(answer).encode() + b"\n")


def main() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    # What is imported stays: forks need not look through it at each collection and once more at their end.
    gc.collect()
    gc.freeze()
    order = requests(socket.socket(fileno=int(sys.argv[1])))
    if order is None:
        return
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.argv = [order["module"], *order["arguments"]]
    sys.path[0] = order["cwd"]  # as `python -m` has it
    runpy.run_module(order["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
