"""The child's end of a worker on this machine: works the orders that come through the pipe.

It sees private copies only and touches neither the inbox, the outbox nor the store. `local` is the daemon's
end.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Protocol

from backfire import log
from backfire.errors import Code, ConfigError, DeviceError, JobError, ModelError, SigningError
from backfire.files.parallel import in_parallel
from backfire.pipeline.result import PhaseProgress
from backfire.service.worker import protocol
from backfire.service.worker.protocol import Failed, Finished, GivenBack, Hindered, Order, Outcome, Progress

BATCH_S = 1.0
"""The time after which a child hands back the orders of a batch that it has not begun."""
PROGRESS_S = 0.2
"""The least time between two reports of progress."""

Process = Callable[[Order, PhaseProgress], Finished]
"""What works one order, as `process` does."""


class Stopped(Exception):
    """The daemon asked the child to give the job back."""


def process(order: Order, progress: PhaseProgress) -> Finished:
    """Work one order: read the picture from its spool and leave the result there.

    Raises:
        JobError: the picture, or what it needs, is at fault.
        Stopped: `progress` was told to give the job back.
    """
    # Imported here and not above, because the daemon imports this module, too, and must not load torch.
    from backfire import api
    from backfire.detectors import Sidecar
    from backfire.evaluate.receipt import to_json

    result = api.protect(
        (order.folder / "input").read_bytes(),
        mask=[Sidecar(name, (order.folder / file).read_bytes()) for name, file in order.masks],
        settings=order.settings,
        name=order.name,
        progress=progress,
        attempt=api.Attempt(order.rung, order.device, reviewed=True),
    )
    (order.folder / "output").write_bytes(result.data)
    (order.folder / "receipt.json").write_bytes(to_json(result.receipt))
    if result.sheet is not None:
        (order.folder / "sheet.jpg").write_bytes(result.sheet)
    return Finished(
        order.job,
        order.lease,
        verdict=result.verdict,
        extension=result.extension,
        output_sha256=result.receipt["output_sha256"],
        on_weak=order.settings.verify.on_weak,
        on_none=protocol.on_none(order.settings),
        reasons=tuple(result.receipt["reasons"]),
        timings_s=result.receipt["timings_s"],
    )


def serve(connection: Connection, parent: int, memory_mb: int = 0, process: Process = process) -> None:
    """The child's main loop: work orders until the daemon closes the pipe or sends None.

    Args:
        connection: the child's end of the pipe.
        parent: the daemon's process id.
        memory_mb: how much host memory it may allocate; 0 for no limit.
        process: works one order; doubles stand in for it.
    """
    log.setup()
    die_with(parent)
    limit_memory(memory_mb)
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)  # the daemon decides; a Ctrl-C reaches the whole group
    while True:
        try:
            orders = connection.recv()
            if orders is None:
                return
            connection.send(work(orders, connection, process))
        except (EOFError, OSError):
            return


def work(
    orders: Sequence[Order], connection: BatchEnd, process: Process = process, *, batch_s: float = BATCH_S
) -> list[Outcome]:
    """Work a batch of orders one by one, then leave all results in the spool: syncs at one time cost as one.

    The rest is given back after `batch_s` seconds, after an order that was given back on request, and after
    one that was hindered, for what hindered it would hinder the others too. An order that is at work by then
    holds up nobody: what has ended before it is reported.

    Returns:
        The outcomes that were not reported before.
    """
    deadline = time.monotonic() + batch_s
    ended: list[tuple[Order, Outcome]] = []

    def report_ended() -> None:
        if ended and time.monotonic() > deadline:
            outcomes = in_parallel(_written, ended)
            ended.clear()
            connection.send(outcomes)

    last: Outcome | None = None
    for order in orders:
        if isinstance(last, GivenBack | Hindered) or (last and time.monotonic() > deadline):
            last = GivenBack(order.job, order.lease)
        else:
            last = worked(order, connection, process, report_ended)
        ended.append((order, last))
    return in_parallel(_written, ended)


def _written(ended: tuple[Order, Outcome]) -> Outcome:
    """Leave a result in the spool: after a restart it is published without working the picture again."""
    order, outcome = ended
    if not isinstance(outcome, Finished | Failed):
        return outcome
    try:
        protocol.write_result(order.folder, outcome)
    except OSError as error:
        return _unexpected(order, error)
    return outcome


class DaemonEnd(Protocol):
    """What a worker needs of its connection: to report progress, and to hear that it should stop."""

    def poll(self) -> bool:
        """Whether it should stop."""

    def recv(self) -> object:
        """Take in what was sent."""

    def send(self, obj: Sequence[Progress]) -> None:
        """Report."""


class BatchEnd(DaemonEnd, Protocol):
    """A connection that takes outcomes, too."""

    def send(self, obj: Sequence[Progress | Outcome]) -> None:
        """Report."""


def worked(
    order: Order,
    connection: DaemonEnd,
    process: Process = process,
    at_work: Callable[[], None] = lambda: None,
) -> Outcome:
    """How one order ended; nothing but an interrupt of this process is raised.

    Args:
        at_work: called whenever there is progress.
    """
    began, reported = time.monotonic(), 0.0

    def report(phase: str, done: int, total: int) -> None:
        nonlocal reported
        try:
            if connection.poll():
                connection.recv()
                raise Stopped
            if time.monotonic() - reported > PROGRESS_S or done == total:
                reported = time.monotonic()
                connection.send([Progress(order.job, order.lease, phase, done, total)])
            at_work()
        except (EOFError, OSError):  # the daemon is gone
            raise Stopped from None

    outcome: Finished | Failed | Hindered
    try:
        report("start", 0, 1)  # tells the daemon which picture it was, should this kill the process
        outcome = process(order, report)
    except Stopped:
        return GivenBack(order.job, order.lease)
    except JobError as error:
        outcome = _refused(order, error)
    except ConfigError as error:
        # What only the loaded weights show to be wrong with the settings holds up every picture alike.
        outcome = Hindered(order.job, order.lease, Code.MODEL, str(error))
    except Exception as error:
        outcome = _unexpected(order, error)
    return replace(outcome, seconds=time.monotonic() - began)


def _refused(order: Order, error: JobError) -> Failed | Hindered:
    """What an error of ours means: trouble of this picture, or trouble that every picture would meet."""
    if isinstance(error, DeviceError):
        message = error.message
        return Hindered(order.job, order.lease, error.code, message, suspicious=True, unusable=True)
    if isinstance(error, SigningError):
        return Hindered(order.job, order.lease, error.code, error.message)
    # A model error that another attempt does not mend (weights, device) fails every picture alike. Running
    # out of memory on the lowest rung of the ladder is this picture's own trouble.
    if isinstance(error, ModelError) and not error.retryable and error.code != Code.OUT_OF_MEMORY:
        return Hindered(order.job, order.lease, error.code, error.message)
    return Failed(order.job, order.lease, error.code, error.message, retryable=error.retryable)


def _unexpected(order: Order, error: Exception) -> Failed | Hindered:
    """What the system refused is no fault of the picture; OSErrors of imaging libraries have no number."""
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, ImportError) or number is not None:
        full = number in (errno.ENOSPC, errno.EDQUOT)
        return Hindered(order.job, order.lease, Code.INTERNAL, repr(error), suspicious=not full)
    text = "".join(traceback.format_exception(error, limit=20))
    return Failed(order.job, order.lease, Code.INTERNAL, text)


def limit_memory(memory_mb: int) -> None:
    """A hostile picture must fill neither the disk with a core dump nor, where a limit is set, the memory."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_mb:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_mb << 20, resource.RLIM_INFINITY))


def die_with(parent: int) -> None:
    """Ask Linux to kill this process when the daemon dies, so that no two children share a spool."""
    if sys.platform != "linux":
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)
