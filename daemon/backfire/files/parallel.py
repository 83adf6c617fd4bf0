"""One step on the files of several jobs, in parallel threads.

A journalling file system makes syncs that arrive at the same time durable in one go: sixteen files that are
written and synced in parallel take about as long as two that are synced one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from itertools import count
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

THREADS = 8


def in_parallel(do: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Call `do` on each item in up to `THREADS` threads; returns the results in the items' order.

    `do` must not call this function itself: it would wait for threads that wait for it.

    Raises:
        BaseException: what `do` raised for the first item that it failed on, after all items were tried.
    """
    done: list[Future[R]] = [Future() for _ in items]
    numbers = count()

    def work() -> None:
        # Each thread takes the next item itself, which costs less than handing every item to the pool.
        while (number := next(numbers)) < len(done):
            try:
                done[number].set_result(do(items[number]))
            except BaseException as error:
                done[number].set_exception(error)

    for _ in range(min(THREADS, len(items)) - 1):
        try:
            _pool(THREADS).submit(work)
        except RuntimeError:  # no thread can be started: this one does the work
            break
    work()
    return [future.result() for future in done]


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """The threads are kept: starting one takes longer than writing a small file."""
    return ThreadPoolExecutor(threads, thread_name_prefix="parallel")
