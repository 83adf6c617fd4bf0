"""A fault double: `backfire once` that kills itself with SIGKILL at the step that its argument names.

A step is a function of `outbox` or `manifest`, `record STATE`, or `unlink`; with `after` before it, the kill
comes when it is done. A second argument names the module of another worker than that of `passthrough`.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from backfire import cli
from backfire.files import manifest, outbox
from backfire.service import loop
from backfire.service.store.store import Store
from backfire.service.worker import child
from backfire.types import JobState


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def around(function: Callable[..., Any], *, before: bool, when: Callable[..., bool]) -> Callable[..., Any]:
    def wrapped(*arguments: Any, **options: Any) -> Any:
        if before and when(*arguments, **options):
            die()
        result = function(*arguments, **options)
        if when(*arguments, **options):
            die()
        return result

    return wrapped


def always(*_: Any, **__: Any) -> bool:
    return True


def records(wanted: JobState) -> Callable[..., bool]:
    def when(store: Store, job_id: int, state: JobState, **_: Any) -> bool:
        return state == wanted

    return when


def is_aside(path: bytes | str, *_: Any, dir_fd: int | None = None, **__: Any) -> bool:
    return dir_fd is not None and b".backfire-" in os.fsencode(path)


def main() -> None:
    step, worker = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "benchmarks.passthrough"
    before = not step.startswith("after ")
    what = step.removeprefix("after ")
    if what.startswith("record"):
        state = JobState(what.removeprefix("record").strip() or "published")
        Store.update = around(  # type: ignore[method-assign]
            Store.update, before=before, when=records(state)
        )
    elif what == "unlink":
        # At this point of `remove`, the original has been renamed to a hidden name.
        os.unlink = around(os.unlink, before=before, when=is_aside)
    else:
        module = manifest if what == "append" else outbox
        setattr(module, what, around(getattr(module, what), before=before, when=always))
    child.serve = importlib.import_module(worker).serve
    loop.TICK_S = 0.1
    sys.argv[1:] = ["once"]
    cli.main()


if __name__ == "__main__":
    main()
