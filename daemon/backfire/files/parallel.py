"""One step on the files of several jobs, side by side.

A journal makes syncs that come at the same time durable in one go: sixteen files written and
synced abreast take about as long as two that are synced one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from itertools import count
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

AT_ONCE = 8


def abreast(do: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """`do` of each item, in their order, in up to `AT_ONCE` threads; returns when all have ended.

    `do` must not come here itself: it would wait for threads that wait for it.

    Raises:
        BaseException: what `do` raised for the first item that it failed on; the others were done too.
    """
    done: list[Future[R]] = [Future() for _ in items]
    turn = count()

    def work() -> None:
        # Whoever is free takes the next one: a future for each item, but no hand-over of each.
        while (number := next(turn)) < len(done):
            try:
                done[number].set_result(do(items[number]))
            except BaseException as error:
                done[number].set_exception(error)

    for _ in range(min(AT_ONCE, len(items)) - 1):
        try:
            _pool(AT_ONCE).submit(work)
        except RuntimeError:  # no room for a thread: this one does it
            break
    work()
    return [future.result() for future in done]


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Kept: a thread takes longer to start than a small file to write."""
    return ThreadPoolExecutor(threads, thread_name_prefix="abreast")
