"""What passes between the daemon and a worker: orders to it, progress and outcomes from it.

Every message carries the job and the lease under which it was started, so that whatever a worker says
about an earlier start of the same job is recognised and dropped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import TypeAdapter

from backfire.config import Settings
from backfire.errors import Code
from backfire.files import durable
from backfire.types import Job, Verdict

RESULT = "result.json"
FILES = ("output", "receipt.json", "sheet.jpg")
"""What a worker leaves in the spool folder of a job beside `RESULT`."""


@dataclass(frozen=True)
class Message:
    """Something about one start of one job."""

    job: int
    lease: int

    def concerns(self, job: Job) -> bool:
        """Whether it is about this job as it was last started."""
        return (self.job, self.lease) == (job.id, job.lease)


@dataclass(frozen=True)
class Order(Message):
    """A job for a worker.

    Attributes:
        folder: its spool folder, which holds `input` and the masks.
        name: the picture's name, for messages.
        masks: of each mask its name for messages and its file name in the folder.
        settings: those of the picture.
        rung: how many rungs of the memory ladder to skip, because the worker was killed on them.
        device: where to work it if the settings leave that open.
    """

    folder: Path
    name: str
    masks: tuple[tuple[str, str], ...]
    settings: Settings
    rung: int = 0
    device: str | None = None


@dataclass(frozen=True)
class Progress(Message):
    """How far a worker is with a job: `done` of `total` steps of a phase."""

    phase: str
    done: int
    total: int


@dataclass(frozen=True)
class Finished(Message):
    """The spool folder holds `output`, `receipt.json` and, where something was protected, `sheet.jpg`.

    Attributes:
        verdict: what replaying the edits on the output showed.
        extension: of the format that was written.
        output_sha256: of `output`.
        on_weak, on_none: what becomes of a weak result, and of one without a region, by the settings it was
            worked under; others may be in force by now.
        reasons: why the verdict is not better.
        timings_s: seconds by stage.
        seconds: how long the worker had the job.
        worked_as: the picture whose result was taken over; None if this one was worked.
    """

    verdict: Verdict
    extension: str
    output_sha256: str
    on_weak: Literal["publish", "review", "fail"]
    on_none: Literal["publish", "review"] = "publish"
    reasons: tuple[str, ...] = ()
    timings_s: dict[str, float] | None = None
    seconds: float = 0.0
    worked_as: str | None = None


@dataclass(frozen=True)
class Failed(Message):
    """The picture could not be worked, for a reason of its own.

    Attributes:
        code, message: why.
        retryable: whether another attempt may succeed.
        seconds: how long the worker had the job.
    """

    code: Code
    message: str
    retryable: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class Hindered(Message):
    """The system prevented the work: no space in the spool, weights that do not load, a failed GPU.

    Attributes:
        code, message: what prevented it.
        suspicious: it may be the picture's doing after all, if others are worked in the meantime.
        unusable: the worker can do no more work; it needs a new process.
        seconds: how long the worker had the job.
    """

    code: Code
    message: str
    suspicious: bool = False
    unusable: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class GivenBack(Message):
    """The job was returned unworked, so that its attempt does not count."""

    reason: str = ""


@dataclass(frozen=True)
class Interrupted(Message):
    """The process that worked the job ended in the midst of it: the attempt counts.

    Attributes:
        reason: how it ended.
        killed: it was killed, as the kernel does when memory runs out: the next attempt must need less.
    """

    reason: str
    killed: bool = False


def on_none(settings: Settings) -> Literal["publish", "review"]:
    """What becomes of a result without a region."""
    return "review" if settings.regions.none_found == "review" else "publish"


Result = Finished | Failed
"""An outcome that a worker leaves in the spool before it reports it."""

Outcome = Result | Hindered | GivenBack | Interrupted
"""How one start of a job ended. All but `Interrupted` come from a worker; the daemon may state any."""


@dataclass(frozen=True)
class Place:
    """Where a worker works.

    Attributes:
        device: one of `limits.devices`; None where the settings of each picture name it.
        node: the machine of a cluster; None for this machine.
        actor: the number of the worker in its cluster.
        turn: how many pictures that worker has returned.
    """

    device: str | None = None
    node: str | None = None
    actor: int = 0
    turn: int = 0


HERE = Place()


class WorkerProcess(Protocol):
    """A worker as the daemon sees it; `local.Child` is one.

    Attributes:
        jobs: the leases of the jobs that it has, by their ids.
        heard: when it last reported anything, by `time.monotonic`.
    """

    jobs: dict[int, int]
    heard: float

    @property
    def waitables(self) -> list[Any]:
        """What becomes readable, for `multiprocessing.connection.wait`, when it reports something or dies."""

    @property
    def exitcode(self) -> int | None:
        """How it ended, negative for a signal; None while it has not."""

    def send(self, orders: Sequence[Order]) -> None:
        """Hand over some jobs, to be worked in this order; it must be idle.

        Raises:
            OSError: it has died.
        """

    def receive(self, timeout: float) -> list[Progress | Outcome]:
        """What it reported within `timeout` seconds; an empty list if nothing.

        Raises:
            EOFError: it has died; `exitcode` says how.
        """

    def stop(self, patience_s: float) -> list[Outcome]:
        """Ask for the running jobs back, then end it; the outcomes that it still reported.

        A job on which it has died is `Interrupted`.
        """

    def kill(self) -> None:
        """End it now."""


class Backend(Protocol):
    """Where workers come from: `local.Devices` of this machine, or a `cluster.Cluster`."""

    @property
    def batch_max(self) -> int:
        """The most jobs that one of its workers may have at a time."""

    @property
    def is_shared(self) -> bool:
        """Whether the death of a worker, or of the daemon, may be the doing of another one's picture, as they
        share one machine or whatever it was that died: then the last attempt of each is made alone."""

    @property
    def trouble(self) -> str:
        """Why it has fewer workers than it should, for a person; empty if it has not."""

    def configure(self, settings: Settings) -> None:
        """Work by other settings from now on."""

    def places(self, waiting: int) -> Sequence[Place]:
        """Where workers can be had now, for so many pictures with work left; the same object if unchanged."""

    def start(self, place: Place) -> WorkerProcess:
        """An idle worker at one of those places.

        Raises:
            OSError: it cannot be started.
        """

    def close(self) -> None:
        """End what serves all workers together."""


def to_json(message: Progress | Outcome) -> dict[str, Any]:
    """A message as JSON can hold it."""
    return {"type": type(message).__name__, **asdict(message)}


def from_json(data: dict[str, Any]) -> Progress | Outcome:
    """The message that `to_json` was given.

    Raises:
        ValueError, TypeError, KeyError: it is none that is known here.
    """
    given = dict(data)
    kind = _KINDS[given.pop("type")]
    if unknown := given.keys() - {field.name for field in fields(kind)}:
        raise TypeError(f"{kind.__name__} has no {', '.join(sorted(unknown))}")
    message: Progress | Outcome = _checkers()[kind].validate_python(given)
    return message


_KINDS: dict[str, type[Progress | Outcome]] = {
    kind.__name__: kind for kind in (Progress, Finished, Failed, Hindered, GivenBack, Interrupted)
}


@cache
def _checkers() -> dict[type[Progress | Outcome], TypeAdapter[Any]]:
    """What checks the type of each field: what is read may be what another machine wrote."""
    return {kind: TypeAdapter(kind) for kind in _KINDS.values()}


def write_result(folder: Path, result: Result) -> None:
    """Leave a result in a spool folder, atomically, after the files beside it are durable.

    Raises:
        OSError: the spool cannot be written.
    """
    part = folder / (RESULT + ".part")
    part.write_bytes(json.dumps(to_json(result)).encode())
    for name in (*FILES, part.name):
        with suppress(FileNotFoundError):
            durable.sync(folder / name)
    part.rename(folder / RESULT)


def read_result(folder: Path, job: Job) -> Result | None:
    """The result that a worker left for the last start of a job.

    None where it did not finish, and where a version of Backfire wrote the file that is not known here: the
    picture is worked again then.
    """
    try:
        data: dict[str, Any] = json.loads((folder / RESULT).read_bytes())
        if "type" not in data:
            data = _of_first_version(data)
        result = from_json(data)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return result if isinstance(result, Finished | Failed) and result.concerns(job) else None


def _of_first_version(data: dict[str, Any]) -> dict[str, Any]:
    """A result of the first version in today's form; without it an upgrade would publish a second time."""
    kind = "Finished" if data["code"] is None else "Failed"
    wanted = {field.name for field in fields(Finished if kind == "Finished" else Failed)}
    known = {name: value for name, value in data.items() if name in wanted}
    if kind == "Finished" and known["on_weak"] is None:
        known["on_weak"] = "fail"
    return {"type": kind, **known}
