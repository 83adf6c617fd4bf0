"""The daemon with a worker that publishes pictures unchanged, to test everything but the protection.

`python -m benchmarks.passthrough run -c config.yaml` is `backfire run`, but its worker only checks that the
file is complete and returns its bytes, after `BACKFIRE_STUB_S` seconds of sleep in place of work. Only
benchmarks and fault tests use it.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from backfire import cli
from backfire.imaging import containers, formats, refusals
from backfire.service.worker import child
from backfire.service.worker.protocol import Finished, Order
from backfire.types import Verdict, job_key, mask_digest

real_serve = child.serve


def process(order: Order, progress: Callable[[str, int, int], None]) -> Finished:
    """Takes the place of the worker's `process`, without any model: the output is the input.

    Raises:
        InputError: the file has no supported format, or is incomplete.
    """
    progress("decode", 0, 1)
    time.sleep(float(os.environ.get("BACKFIRE_STUB_S", "0")))
    data = (order.folder / "input").read_bytes()
    kind = formats.sniff(data, order.name)
    if not containers.is_complete(data, kind):
        raise refusals.cut_short(order.name, f"the {kind}")
    masks = [hashlib.sha256((order.folder / file).read_bytes()).hexdigest() for _, file in order.masks]
    sha = hashlib.sha256(data).hexdigest()
    receipt = {
        "file": order.name,
        "key": job_key(sha, mask_digest(masks), order.settings.sha256),
        "output_sha256": sha,
        "reasons": [],
    }
    (order.folder / "output").write_bytes(data)
    (order.folder / "receipt.json").write_text(json.dumps(receipt))
    extension = os.path.splitext(order.name)[1].lower()
    return Finished(
        order.job,
        order.lease,
        verdict=Verdict.PROTECTED,
        extension=extension,
        output_sha256=sha,
        on_weak=order.settings.verify.on_weak,
    )


def serve(connection: Connection, parent: int, memory_mb: int = 0, process: child.Process = process) -> None:
    """The real worker, with `process` in place of its own."""
    real_serve(connection, parent, memory_mb, process)


def main() -> None:
    """The commands of `backfire`, with that worker."""
    # Imported by its real name, since the worker process could not find a `serve` in `__main__`.
    child.serve = importlib.import_module("benchmarks.passthrough").serve
    cli.main()


if __name__ == "__main__":
    main()
