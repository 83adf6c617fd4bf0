"""The daemon with a worker that finds nothing in a picture without a mask, unless all of it is protected."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection

from backfire import cli
from backfire.service.worker import child
from backfire.service.worker.protocol import Finished, Order, on_none
from backfire.types import Verdict
from benchmarks import passthrough


def process(order: Order, progress: Callable[[str, int, int], None]) -> Finished:
    outcome = replace(passthrough.process(order, progress), on_none=on_none(order.settings))
    found = order.masks or order.settings.regions.detectors == ("whole",)
    return outcome if found else replace(outcome, verdict=Verdict.UNPROTECTED)


def serve(connection: Connection, parent: int, memory_mb: int = 0, process: child.Process = process) -> None:
    passthrough.real_serve(connection, parent, memory_mb, process)


if __name__ == "__main__":
    from backfire.service import loop

    loop.TICK_S = 0.1
    child.serve = importlib.import_module("tests.support.nothing_found").serve
    cli.main()
