"""The workers: one at each place that their back end has, how fast they are, whether they hang.

Knows which jobs the workers have, but not what an outcome means for a job: that is the retry policy's part.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import structlog

from backfire.config import Settings
from backfire.files.parallel import in_parallel
from backfire.service.jobs import STUCK_AFTER
from backfire.service.worker.local import BATCH_MAX, Devices, await_any, exit_reason
from backfire.service.worker.protocol import (
    HERE,
    Backend,
    Failed,
    Finished,
    Hindered,
    Outcome,
    Place,
    Progress,
    WorkerProcess,
)
from backfire.types import Job

log = structlog.get_logger()

DRAIN_S = 60.0
"""How long the workers may take to give their jobs back at the end."""
PAUSE_S = 2.0
LONG_PAUSE_S = 30.0
"""How long a worker pauses after trouble that is not the picture's, such as a full disk; the longer pause
follows repeated trouble."""
QUICK_S = 0.05
"""The seconds for each of its jobs up to which a worker gets more than one at a time."""


@dataclass(frozen=True)
class Death:
    """The process of a worker has ended, or was ended because it hung.

    Attributes:
        reason: how, for a person.
        killed: by SIGKILL, as the kernel does when memory runs out.
    """

    reason: str
    killed: bool = False


@dataclass(eq=False)
class Worker:
    """A process and the jobs that it has: one at a time, and more as long as it is quick with them.

    Attributes:
        place: where it works.
        batch_max: the most jobs that it may have at a time.
        child: its process, if there is one.
        running: its jobs by their ids.
        current: the id of the job that it last reported on; 0 while it has reported on none of a batch.
        pace: how many jobs it gets at a time.
        pauses: how often in a row it could not work for reasons that are not the picture's.
        hindered_by: why it paused last; empty once it could work again.
        paused_until: when its pause ends, by the monotonic clock.
        retired: its place is gone; it finishes what it has.
    """

    place: Place = HERE
    batch_max: int = BATCH_MAX
    child: WorkerProcess | None = None
    running: dict[int, Job] = field(default_factory=dict)
    current: int = 0
    pace: int = 1
    pauses: int = 0
    hindered_by: str = ""
    paused_until: float = 0.0
    retired: bool = False

    @property
    def device(self) -> str | None:
        """The device of its place."""
        return self.place.device

    @property
    def job(self) -> Job | None:
        """Which of its jobs it works at, as far as it has reported; None while it has none."""
        return self.running.get(self.current) or next(iter(self.running.values()), None)

    def end(self) -> None:
        """Kill the process, if there is one."""
        if self.child is not None:
            self.child.kill()
        self.child = None

    def adapt(self, outcomes: Sequence[Outcome]) -> None:
        """Set the pace by how a batch went: twice as many jobs next time if it was quick, else half."""
        begun = [outcome for outcome in outcomes if isinstance(outcome, Finished | Failed | Hindered)]
        if any(isinstance(outcome, Hindered) for outcome in begun):
            self.pace = 1  # the next jobs may be hindered as well
        elif sum(outcome.seconds for outcome in begun) <= QUICK_S * len(begun):
            # Where some were given back it had no time for more.
            most = 2 * self.pace if len(begun) == len(outcomes) else len(begun)
            self.pace = max(min(most, self.batch_max), 1)
        else:
            self.pace = max(min(self.pace, len(begun)) // 2, 1)


class Pool:
    """The workers of one configuration.

    Args:
        settings: `limits` is used.
        monotonic: the clock of the workers' pauses.
        backend: where the workers come from; by default the devices of this machine.

    Attributes:
        workers: those of the back end's places in their order, then those that are retired and still have
            jobs.
    """

    def __init__(
        self, settings: Settings, monotonic: Callable[[], float], backend: Backend | None = None
    ) -> None:
        self._monotonic, self._backend = monotonic, backend or Devices(settings)
        self.workers: list[Worker] = []
        self._places: Sequence[Place] = ()
        self._waiting = 0
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        """Work by other settings from now on; a worker whose place is gone finishes its jobs."""
        self._limits = settings.limits
        self._backend.configure(settings)
        self.refresh(self._waiting)

    @property
    def is_changed(self) -> bool:
        """Whether `refresh` would find other places, so that there may be an idle worker."""
        return self._backend.places(self._waiting) is not self._places

    def refresh(self, waiting: int) -> None:
        """Have a worker at each place that the back end has now, for so many pictures with work left."""
        self._waiting = waiting
        places = self._backend.places(waiting)
        if places is not self._places:
            self._places = places
            known = {worker.place: worker for worker in self.workers}
            wanted = [
                known.pop(place) if place in known else Worker(place, self._backend.batch_max)
                for place in places
            ]
            self.workers = [*wanted, *known.values()]
            for worker in self.workers:
                worker.retired = worker.place in known
        self.dismiss()

    def dismiss(self) -> None:
        """End the retired workers that have no jobs left."""
        for worker in [worker for worker in self.workers if worker.retired and not worker.running]:
            worker.end()
            self.workers.remove(worker)

    # Looking up

    @property
    def running(self) -> list[Job]:
        """The job at which each busy worker works."""
        return [job for worker in self.workers if (job := worker.job) is not None]

    @property
    def pace(self) -> int:
        """How many jobs the workers get at a time."""
        return sum(worker.pace for worker in self.workers)

    @property
    def pauses(self) -> int:
        """How often in a row no worker at all could work for reasons that are not the picture's."""
        return min((worker.pauses for worker in self.workers), default=0)

    @property
    def present(self) -> list[Worker]:
        """The workers that are not retired."""
        return [worker for worker in self.workers if not worker.retired]

    @property
    def by_node(self) -> dict[str, tuple[int, int]]:
        """How many workers are busy and idle on each node of the cluster; `local` is this machine."""
        found: dict[str, tuple[int, int]] = {}
        for worker in self.present:
            busy, idle = found.get(worker.place.node or "local", (0, 0))
            at_work = bool(worker.running)
            found[worker.place.node or "local"] = busy + at_work, idle + (not at_work)
        return found

    @property
    def trouble(self) -> str:
        """Why there are fewer workers than there should be, or why none can work; empty if neither is so."""
        hindered = self.workers[0].hindered_by if self.pauses >= STUCK_AFTER else ""
        return self._backend.trouble or hindered

    @property
    def is_shared(self) -> bool:
        """Whether the death of a worker or of the daemon may be the doing of any picture that is worked."""
        return self._backend.is_shared

    @property
    def heard(self) -> float | None:
        """When the busy worker that has been silent longest last reported; None while none is busy."""
        busy = (worker.child for worker in self.workers if worker.running)
        return min((child.heard for child in busy if child is not None), default=None)

    def idle(self) -> Iterator[Worker]:
        """The workers that may be given jobs now."""
        for worker in self.workers:
            if not (worker.running or worker.retired) and self._monotonic() >= worker.paused_until:
                yield worker

    def worker_of(self, job: Job) -> Worker | None:
        """The worker that has a job."""
        return next((worker for worker in self.workers if job.id in worker.running), None)

    def suits(self, worker: Worker, device: str) -> bool:
        """Whether a job for a device may go to a worker.

        `auto` may go to any of them, and a device that no worker has to the first.
        """
        device = "cuda:0" if device == "cuda" else device
        devices = [one.device for one in self.workers if not one.retired]
        return device == "auto" or worker.device == (device if device in devices else devices[0])

    # Starting, listening, ending

    def start(self, worker: Worker) -> WorkerProcess:
        """The worker's process, idle; a new one where there is none.

        Raises:
            OSError: it cannot be started.
        """
        if worker.child is not None and worker.child.jobs:
            worker.end()  # after an internal error; at work, it would take new orders for a request to stop
        if worker.child is None:
            worker.child = self._backend.start(worker.place)
        return worker.child

    def listen(self, seconds: float) -> Iterator[tuple[Worker, list[Progress | Outcome] | Death]]:
        """What the busy workers report within so many seconds, or that one of them has died or hung.

        Returns at the first report; the caller handles each before the next worker is asked.
        """
        busy = [worker for worker in self.workers if worker.running]
        if len(busy) > 1:
            await_any([worker.child for worker in busy if worker.child is not None], seconds)
        for worker in busy:
            if worker.child is None:
                continue
            try:
                messages = worker.child.receive(0 if len(busy) > 1 else seconds)
            except EOFError:
                yield worker, bury(worker)
                continue
            yield worker, messages
            silence = self._limits.silence_s
            hung = worker.child is not None and time.monotonic() - worker.child.heard > silence
            if hung and (job := worker.job) is not None:
                log.error("worker_hung", path=job.name, silent_s=silence)
                worker.end()
                yield worker, Death(f"hung for {silence:g} s")

    def adopt(self, job: Job) -> bool:
        """Give a running job back to the worker whose process still has this start of it; whether one has."""
        for worker in self.workers:
            if worker.child is not None and worker.child.jobs.get(job.id) == job.lease:
                worker.running[job.id] = job
                return True
        return False

    def forget_running(self) -> None:
        """Take all jobs off the workers' lists, whatever their processes do."""
        for worker in self.workers:
            worker.running = {}

    def pause(self, worker: Worker, why: str, *, long: bool) -> None:
        """Give a worker no jobs for a while, a longer one where that is allowed and it happened often."""
        now = self._monotonic()
        if now >= worker.paused_until:  # several hindered jobs of one batch count once
            worker.pauses += 1
        worker.hindered_by = why
        wait = LONG_PAUSE_S if worker.pauses > STUCK_AFTER and long else PAUSE_S
        worker.paused_until = now + wait

    def stop(self) -> dict[int, Outcome]:
        """Ask all processes for their jobs back and end them; by job id, the outcomes that they reported."""
        manned = [worker for worker in self.workers if worker.child is not None]
        outcomes = in_parallel(_stop, manned)
        return {outcome.job: outcome for some in outcomes for outcome in some}

    def close(self) -> None:
        """End what serves all workers together."""
        self._backend.close()


def bury(worker: Worker) -> Death:
    """Clear away a process that has ended."""
    assert worker.child is not None
    exitcode = worker.child.exitcode
    worker.end()
    return Death(exit_reason(exitcode), killed=exitcode == -signal.SIGKILL)


def _stop(worker: Worker) -> list[Outcome]:
    assert worker.child is not None
    outcomes = worker.child.stop(DRAIN_S if worker.running else 0)
    worker.child = None
    return outcomes
