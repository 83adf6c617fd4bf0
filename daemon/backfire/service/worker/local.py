"""The worker: a child process that turns spooled pictures into results in the spool.

A device assert, an out-of-memory kill or a crashing decoder takes the child, not the daemon.
The child sees private copies only and touches neither the inbox, the outbox nor the store. Longer than 300
lines so that both ends of the pipe and what passes through it stand together.
"""

from __future__ import annotations

import ctypes
import errno
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from backfire.config import Settings
from backfire.errors import Code, DeviceError, JobError, ModelError
from backfire.files import durable
from backfire.files.parallel import in_parallel

RESULT = "result.json"
KILLED = "killed by SIGKILL"
"""What `Child.exitcode` says of a child that was killed, by the kernel or by somebody."""
MADE = ("output", "receipt.json", "sheet.jpg")
"""What a job leaves in its spool folder beside its outcome."""
AT_MOST_S = 1.0
"""After so long a child hands back the orders that it has not begun."""


@dataclass(frozen=True)
class Order:
    """A job for the child: `folder` is its spool folder, holding `input` and `masks`."""

    job: int
    folder: Path
    name: str
    masks: tuple[tuple[str, str], ...]
    """(display name, file name in the folder)"""
    settings: Settings
    lease: int = 0
    rung: int = 0
    """How many rungs of the memory ladder to skip: the worker was killed on the ones above."""
    device: str | None = None
    """Where to work it if its settings leave that open."""


@dataclass(frozen=True)
class Progress:
    """How far the child is with a job."""

    job: int
    phase: str
    done: int
    total: int


@dataclass(frozen=True)
class Outcome:
    """How a job ended in the child; written to the spool before it is told.

    With `code` None the spool folder holds `output`, `receipt.json` and, where something was
    protected, `sheet.jpg`.
    """

    job: int
    lease: int = 0
    verdict: str | None = None
    extension: str = ""
    output_sha256: str | None = None
    reasons: tuple[str, ...] = ()
    timings_s: dict[str, float] | None = None
    seconds: float = 0.0
    """How long the child had the job."""
    code: str | None = None
    message: str = ""
    retryable: bool = False
    transient: bool = False
    """The trouble is not the picture's: no space in the spool, weights that do not load."""
    doubtful: bool = False
    """It may be the picture's after all, if others are worked meanwhile."""
    spent: bool = False
    """The child can do no more: its GPU failed under it, and stays so for this process."""
    stopped: bool = False
    on_weak: str | None = None
    """`verify.on_weak` of the settings it was worked under; None in an outcome of an older version."""

    @classmethod
    def read(cls, folder: Path, lease: int) -> Outcome | None:
        """The outcome a child left in a spool folder under a lease; None if it did not finish."""
        try:
            data: dict[str, Any] = json.loads((folder / RESULT).read_bytes())
            outcome = cls(**{**data, "reasons": tuple(data["reasons"])})
        except (OSError, ValueError, TypeError, KeyError):  # absent, or written by another version
            return None
        return outcome if outcome.lease == lease else None

    def write(self, folder: Path) -> None:
        """Leave the outcome in a spool folder, atomically and last, once what lies there is durable."""
        part = folder / (RESULT + ".part")
        part.write_bytes(json.dumps(asdict(self)).encode())
        for name in (*MADE, part.name):
            with suppress(FileNotFoundError):
                durable.sync(folder / name)
        part.rename(folder / RESULT)


class Stopped(Exception):
    """The daemon asked the child to give the job back."""


class Child:
    """The daemon's end: starts, feeds, watches and ends the process.

    Args:
        memory_mb: how much host memory it may allocate; 0 for no limit.
    """

    def __init__(self, memory_mb: int = 0) -> None:
        self.jobs = dict[int, int]()
        """The leases of the jobs that it has, by their ids."""
        self.heard = time.monotonic()
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = (theirs, os.getpid(), memory_mb)
        self._process = context.Process(target=serve, args=arguments, name="worker", daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int | None:
        """Process id."""
        return self._process.pid

    @property
    def signs(self) -> list[Any]:
        """What becomes readable when the child says something or dies."""
        return [self._connection, self._process.sentinel]

    def send(self, orders: Sequence[Order]) -> None:
        """Hand over some jobs, to be worked in this order; the child must be idle."""
        self.jobs = {order.job: order.lease for order in orders}
        self.heard = time.monotonic()
        self._connection.send(orders)

    def receive(self, timeout: float) -> list[Progress | Outcome]:
        """What the child said within `timeout` seconds; an empty list if nothing.

        Raises:
            EOFError: the child has died; `exitcode` says how.
        """
        wait(self.signs, timeout)
        messages: list[Progress | Outcome] = []
        try:
            while self._connection.poll():
                messages += self._connection.recv()
        except (EOFError, OSError):
            if not messages:
                raise EOFError from None
        if messages:
            self.heard = time.monotonic()
            for told in messages:
                if isinstance(told, Outcome) and self.jobs.get(told.job) == told.lease:
                    del self.jobs[told.job]
        elif not self._process.is_alive():
            raise EOFError
        return messages

    def exitcode(self) -> str:
        """How the process ended, for a person."""
        self._process.join(5)
        code = self._process.exitcode
        if code is not None and code < 0:
            try:
                return f"killed by {signal.Signals(-code).name}"
            except ValueError:  # a real-time signal: most have no name
                return f"killed by signal {-code}"
        return f"exit code {code}"

    def stop(self, patience: float) -> list[Outcome]:
        """Ask for the running jobs back, then end the process; the outcomes that it still told."""
        outcomes: list[Outcome] = []
        deadline = time.monotonic() + patience
        try:
            self._connection.send(None)
            while self.jobs and time.monotonic() < deadline:
                outcomes += [told for told in self.receive(0.2) if isinstance(told, Outcome)]
        except (EOFError, OSError):
            pass
        self.kill()
        return outcomes

    def kill(self) -> None:
        """End the process now."""
        self._connection.close()
        self._process.join(1)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def await_any(children: Sequence[Child], timeout: float) -> None:
    """Wait until one of several children says something or dies, `timeout` seconds at most."""
    wait([sign for child in children for sign in child.signs], timeout)


def serve(connection: Connection, parent: int, memory_mb: int = 0) -> None:
    """The child's main loop: orders until the daemon closes the pipe or sends None."""
    _die_with(parent)
    _limit(memory_mb)
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)  # the daemon decides; a Ctrl-C reaches the whole group
    while True:
        try:
            orders = connection.recv()
            if orders is None:
                return
            connection.send(work(orders, connection))
        except (EOFError, OSError):
            return


def work(orders: Sequence[Order], connection: Connection) -> list[Outcome]:
    """Process orders in turn, then leave all their outcomes in the spool: syncs at one time cost one.

    The rest is handed back after `AT_MOST_S`, after one that was stopped, and where it would fail alike.
    """
    deadline = time.monotonic() + AT_MOST_S
    outcomes: list[Outcome] = []
    for order in orders:
        last = outcomes[-1] if outcomes else None
        if last and (last.stopped or last.transient or time.monotonic() > deadline):
            outcomes.append(Outcome(order.job, order.lease, stopped=True))
        else:
            outcomes.append(_worked(order, connection))
    return in_parallel(_left, [*zip(orders, outcomes, strict=True)])


def _left(ended: tuple[Order, Outcome]) -> Outcome:
    """Leave an outcome in the spool: with it a restart publishes without working the picture again."""
    order, outcome = ended
    if outcome.stopped or outcome.transient:
        return outcome
    try:
        outcome.write(order.folder)
    except OSError as error:
        return replace(_unforeseen(order, error), lease=order.lease)
    return outcome


def _worked(order: Order, connection: Connection) -> Outcome:
    began, last = time.monotonic(), 0.0

    def progress(phase: str, done: int, total: int) -> None:
        nonlocal last
        try:
            if connection.poll():
                connection.recv()
                raise Stopped
            if time.monotonic() - last > 0.2 or done == total:
                last = time.monotonic()
                connection.send([Progress(order.job, phase, done, total)])
        except (EOFError, OSError):  # the daemon is gone
            raise Stopped from None

    try:
        progress("start", 0, 1)  # before the danger: should it kill us, the daemon knows which one it was
        outcome = _process(order, progress)
    except Stopped:
        return Outcome(order.job, order.lease, stopped=True)
    except DeviceError as error:
        outcome = replace(_failed(order, error, transient=True), doubtful=True, spent=True)
    except ModelError as error:
        # One that trying again does not mend (weights, device) would fail every picture alike.
        # Out of memory on the lowest rung is this picture's own trouble.
        outcome = _failed(order, error, transient=not error.retryable and error.code != Code.OUT_OF_MEMORY)
    except JobError as error:
        outcome = _failed(order, error)
    except Exception as error:
        outcome = _unforeseen(order, error)
    terms = order.settings.verify.on_weak
    return replace(outcome, lease=order.lease, on_weak=terms, seconds=time.monotonic() - began)


def _process(order: Order, progress: Callable[[str, int, int], None]) -> Outcome:
    # Here and not above: the daemon imports this module too, and must stay free of torch.
    from backfire import api
    from backfire.detectors import Sidecar
    from backfire.evaluate.receipt import to_json

    result = api.protect(
        (order.folder / "input").read_bytes(),
        mask=[Sidecar(name, (order.folder / file).read_bytes()) for name, file in order.masks],
        settings=order.settings,
        name=order.name,
        progress=progress,
        rung=order.rung,
        device=order.device,
    )
    (order.folder / "output").write_bytes(result.data)
    (order.folder / "receipt.json").write_bytes(to_json(result.receipt))
    if result.sheet is not None:
        (order.folder / "sheet.jpg").write_bytes(result.sheet)
    return Outcome(
        order.job,
        verdict=result.verdict.value,
        extension=result.extension,
        output_sha256=result.receipt["output_sha256"],
        reasons=tuple(result.receipt["reasons"]),
        timings_s=result.receipt["timings_s"],
    )


def _failed(order: Order, error: JobError, *, transient: bool = False) -> Outcome:
    return Outcome(
        order.job,
        code=error.code.value,
        message=error.message,
        retryable=error.retryable,
        transient=transient,
    )


def _unforeseen(order: Order, error: Exception) -> Outcome:
    """What the system refused is nobody's fault; the imaging libraries' own OSErrors bear no number."""
    number = error.errno if isinstance(error, OSError) else None
    system = isinstance(error, ImportError) or number is not None
    return Outcome(
        order.job,
        code=Code.INTERNAL.value,
        message=repr(error) if system else "".join(traceback.format_exception(error, limit=20)),
        transient=system,
        doubtful=system and number not in (errno.ENOSPC, errno.EDQUOT),
    )


def _limit(memory_mb: int) -> None:
    """A hostile picture must fill neither the disk with a core nor, where a limit is set, the memory."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_mb:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_mb << 20, resource.RLIM_INFINITY))


def _die_with(parent: int) -> None:
    """Ask Linux to kill this process when the daemon dies, so that no two children share a spool."""
    if sys.platform != "linux":
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)
