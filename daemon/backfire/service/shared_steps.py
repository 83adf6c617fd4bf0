"""One step for several jobs at once: they share syncs, a write of the manifest or a commit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from backfire.errors import PublishError
from backfire.files import outbox
from backfire.files.parallel import in_parallel
from backfire.service.jobs import Jobs, isolated
from backfire.types import Job

T = TypeVar("T")


def each(jobs: Jobs, some: Iterable[Job], do: Callable[[Job, set[bytes]], T]) -> dict[Job, T]:
    """Do a step for several jobs in parallel, then sync the folders in which it gave names, once.

    Args:
        jobs: where a step that cannot be done now is recorded, to be tried again later.
        some: jobs whose steps do not affect each other.
        do: the step, on files alone; adds the folders in which it gave names to the set it is given.

    Returns:
        What `do` returned for the jobs for which the step is done.
    """
    some, unsynced = list(some), set[bytes]()

    def attempt(job: Job) -> T | PublishError | OSError:
        try:
            with isolated(job):
                return do(job, unsynced)
        except (PublishError, OSError) as error:
            return error

    done: dict[Job, T] = {}
    for job, result in zip(some, in_parallel(attempt, some), strict=True):
        if isinstance(result, PublishError | OSError):
            jobs.retry_later(job, result)
        else:
            done[job] = result
    return done if for_all(jobs, done, lambda: outbox.sync(unsynced)) else {}


def for_all(jobs: Jobs, some: Iterable[Job], do: Callable[[], None]) -> bool:
    """Do a step that several jobs share; where that cannot be done now, all are tried again later."""
    try:
        do()
    except (PublishError, OSError) as error:
        for job in some:
            jobs.retry_later(job, error)
        return False
    return True
