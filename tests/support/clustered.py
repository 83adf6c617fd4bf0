"""The daemon with a Ray cluster on this machine, whose workers publish pictures unchanged.

`python -m tests.support.clustered run -c config.yaml` is `backfire run` with such workers. What a worker does
beside that depends on the picture's name: `die` ends its process, `hang` never ends, `raise` raises where
nothing is expected to, `slow` takes a second or two, `gate` waits while there is a file `gate` by the token.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from backfire import cli
from backfire.service.worker import driver
from backfire.service.worker.protocol import Finished, Order
from benchmarks import nodes

real_drive = driver.drive


def process(order: Order, progress: Callable[[str, int, int], None]) -> Finished:
    gate = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).with_name("gate")
    name = order.name
    if "die" in name:
        os._exit(1)
    if "hang" in name:
        time.sleep(3600)
    if "slow" in name:
        time.sleep(1.5)
    while "gate" in name and gate.exists():
        progress("optimise", 1, 2)
        time.sleep(0.05)
    return nodes.process(order, progress)


def actor_class() -> type[Any]:
    """Actors with `process` as their work."""
    from backfire.service.worker import node

    class Actor(node.Actor):
        process = staticmethod(process)

        def __init__(self, version: str) -> None:
            other = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).with_name("version")
            super().__init__(other.read_text() if other.exists() else version)

        def prepare(self) -> None:
            pass  # no torch is needed

        def work(self, order: dict[str, Any], *rest: Any) -> Any:
            if "raise" in order["name"]:
                raise ValueError("a bug on the node")
            return super().work(order, *rest)

    return Actor


def drive(connection: Connection, parent: int) -> None:
    """The driver's main function, with these actors."""
    real_drive(connection, parent, actor_class)


def stand_in() -> None:
    """Have this process start such drivers."""
    driver.drive = drive  # type: ignore[assignment]


if __name__ == "__main__":
    from tests.support import clustered

    clustered.stand_in()
    cli.main()
