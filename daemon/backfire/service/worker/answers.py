"""What an actor answers, and what an error of Ray means: whether the picture is at fault, or the node."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError, RayError, RayTaskError

from backfire.errors import Code
from backfire.service.worker.protocol import Failed, GivenBack, Interrupted

SAID_MAX = 4000
"""How many characters of what a node says are told to the daemon."""
CAUSE_S = 10.0
"""How long it may take Ray to find out why an actor does not answer: at first it says only that."""
CAUSE_AGAIN_S = 0.2


async def result(ref: Any) -> Any:
    """What an object of Ray holds, as soon as there is one.

    Raises:
        RayError: see Ray.
    """
    return await asyncio.wrap_future(ref.future())


async def cause(actor: Any, error: RayError) -> RayError:
    """Why an actor is of no use: the error, or where that says only that it does not answer, a later one."""
    deadline = time.monotonic() + CAUSE_S
    while isinstance(error, ActorUnavailableError) and time.monotonic() < deadline:
        try:
            await asyncio.wait_for(result(actor.name.remote()), CAUSE_S)
            break  # it answers again, and is at work on what Ray has given up
        except RayError as later:
            error = later
            await asyncio.sleep(CAUSE_AGAIN_S)
        except TimeoutError:
            break
    return error


def outcome(error: RayError, job: int, lease: int) -> Failed | Interrupted | GivenBack:
    """How the order ended with which this error came. Only after `Failed` the actor may be used again.

    A picture bears what its own work raised, and that the process ended in which it was worked; for all else,
    such as a node or an object that is gone, it is given back.
    """
    if isinstance(error, RayTaskError):  # may be an OSError or a TimeoutError as well
        return Failed(job, lease, Code.INTERNAL, str(error)[-SAID_MAX:])
    if isinstance(error, OutOfMemoryError):
        return Interrupted(job, lease, "worker died: its node ran out of memory", killed=True)
    if isinstance(error, ActorDiedError):
        if "worker process has died" in str(error):
            # Ray cannot tell whether it crashed or was killed, as kernels do when memory runs out.
            return Interrupted(job, lease, f"worker died: {first_cause(error)}", killed=True)
        return GivenBack(job, lease, f"its node is gone ({first_cause(error)})")
    return GivenBack(job, lease, f"its node or its files are gone ({first_cause(error)})")


def first_cause(error: Exception) -> str:
    """What an error of Ray says in the line that names the cause, or in its last one; else its name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    cause = next((line for line in lines if line.startswith("The actor is dead because")), lines[-1])
    return cause.partition(" Some common causes")[0][:400]
