"""A fault double: the pass-through daemon whose worker waits as long as there is a file `gate` by the inbox.

If the file says `silent`, the worker sends no heartbeat, like one that hangs; with any other text, such as
`open`, it does. The worker writes its process id to `begun` when it starts on a picture.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from backfire import cli
from backfire.service.worker import child
from backfire.service.worker.protocol import Finished, Order
from benchmarks import passthrough


def process(order: Order, progress: Callable[[str, int, int], None]) -> Finished:
    gate = order.folder.parents[2] / "gate"
    gate.with_name("begun").write_text(str(os.getpid()))
    while gate.exists():
        if gate.read_text() != "silent":
            progress("optimise", 0, 2)
        time.sleep(0.01)
    outcome = passthrough.process(order, progress)
    receipt = json.loads((order.folder / "receipt.json").read_bytes())
    (order.folder / "receipt.json").write_text(json.dumps({**receipt, "rung": order.rung}))
    return outcome


def serve(connection: Connection, parent: int, memory_mb: int = 0, process: child.Process = process) -> None:
    passthrough.real_serve(connection, parent, memory_mb, process)


if __name__ == "__main__":
    from backfire.service import loop
    from tests.support import gated

    child.serve = gated.serve
    loop.TICK_S = 0.1
    cli.main()
