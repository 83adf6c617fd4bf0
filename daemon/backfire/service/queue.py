"""The order in which waiting pictures are served: by priority, then the oldest and the smallest alternately.

Alternately, so that a small picture does not wait behind a backlog of large ones, nor a large one behind an
unending stream of small ones. Pure bookkeeping.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping

from backfire.types import Job, composed


def priority(path: bytes, priorities: Mapping[str, int]) -> int:
    """The priority of a path's innermost folder that has one; 0 without. The folders are `composed`."""
    if not priorities:
        return 0
    folder = os.path.dirname(path)
    while folder:
        found = priorities.get(composed(folder))
        if found is not None:
            return found
        folder = os.path.dirname(folder)
    return priorities.get(".", 0)


class WaitingQueue:
    """Jobs in the order in which they are to be served; each is yielded once.

    Args:
        jobs: (job, size in bytes) of all that wait.
        priorities: by folder, relative to the inbox; `.` is the inbox itself.
    """

    def __init__(self, jobs: Iterable[tuple[Job, int]], priorities: Mapping[str, int]) -> None:
        ranked = [(priority(job.path, priorities), job, size) for job, size in jobs]
        self._oldest = sorted(ranked, key=lambda entry: (-entry[0], entry[1].id))
        self._smallest = sorted(ranked, key=lambda entry: (-entry[0], entry[2], entry[1].id))

    def __iter__(self) -> Iterator[tuple[int, Job]]:
        """(priority, job), the next one to be served first."""
        served: set[int] = set()
        orders = [iter(self._oldest), iter(self._smallest)]
        while True:
            for order in orders:
                entry = next((entry for entry in order if entry[1].id not in served), None)
                if entry is None:  # both orders hold the same jobs, so both are exhausted
                    return
                served.add(entry[1].id)
                yield entry[0], entry[1]
