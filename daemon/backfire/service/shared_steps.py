"""One step for several jobs at once: they share syncs, a write of the manifest or a commit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from backfire.errors import Code, PublishError
from backfire.files import outbox
from backfire.files.parallel import in_parallel
from backfire.service.jobs import Jobs, isolated
from backfire.types import Job, JobState

LASTING_TRIES = 2
"""The tries at a name that the outbox does not take, before the last one."""
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
            with isolated(job, PublishError, OSError):
                return do(job, unsynced)
        except (PublishError, OSError) as error:
            return error

    done: dict[Job, T] = {}
    for job, result in zip(some, in_parallel(attempt, some), strict=True):
        if _is_hopeless(jobs, job, result):
            with isolated(job):
                jobs.update(job, JobState.SETTING_ASIDE, code=Code.PUBLISH.value, message=str(result))
        elif isinstance(result, PublishError | OSError):
            jobs.retry_later(job, result)
        else:
            done[job] = result
    return done if for_all(jobs, done, lambda: outbox.sync(unsynced)) else {}


def _is_hopeless(jobs: Jobs, job: Job, result: object) -> bool:
    """Whether a result that is not published yet never can be, as some tries have shown."""
    lasting = isinstance(result, PublishError) and result.lasting
    return lasting and job.state == JobState.PUBLISHING and jobs.tries(job) >= LASTING_TRIES


def for_all(jobs: Jobs, some: Iterable[Job], do: Callable[[], None]) -> bool:
    """Do a step that several jobs share; where that cannot be done now, all are tried again later."""
    try:
        do()
    except (PublishError, OSError) as error:
        for job in some:
            jobs.retry_later(job, error)
        return False
    return True
