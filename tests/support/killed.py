"""A fault double: `backfire once` that kills itself with SIGKILL at the step that its argument names."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from backfire import cli
from backfire.files import manifest, outbox
from backfire.service.store.store import Store
from backfire.service.worker import local
from backfire.types import JobState
from benchmarks import passthrough


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


def published(store: Store, job_id: int, state: JobState, **_: Any) -> bool:
    return state == JobState.PUBLISHED


def is_aside(path: bytes | str, *_: Any, dir_fd: int | None = None, **__: Any) -> bool:
    return dir_fd is not None and b".backfire-" in os.fsencode(path)


def main() -> None:
    step = sys.argv.pop()
    before = not step.startswith("after ")
    what = step.removeprefix("after ")
    if what == "record":
        Store.update = around(Store.update, before=before, when=published)  # type: ignore[method-assign]
    elif what == "unlink":
        # At this point of `remove`, the original has been renamed to a hidden name.
        os.unlink = around(os.unlink, before=before, when=is_aside)
    else:
        module = manifest if what == "append" else outbox
        setattr(module, what, around(getattr(module, what), before=before, when=always))
    local.serve = passthrough.serve
    sys.argv[1:] = ["once"]
    cli.main()


if __name__ == "__main__":
    main()
