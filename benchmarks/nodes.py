"""A Ray cluster of simulated nodes on this machine, and a daemon whose workers do stub work there.

`python -m benchmarks.nodes run -c config.yaml` is `backfire run`; on the cluster each picture takes
`BACKFIRE_STUB_S` seconds of sleep, and its bytes come back unchanged. Only benchmarks and fault tests use it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from backfire import cli
from backfire.service.worker import child, driver, orders, protocol, returned
from backfire.service.worker.protocol import Finished, Order
from backfire.types import Verdict, job_key
from benchmarks import passthrough

real_drive = driver.drive
ROOT = Path(__file__).parents[1]
TOKEN = "0123456789abcdef" * 4
STORE = 80 << 20
"""The bytes of each node's object store: the least that Ray takes is a little below."""
RAY = {
    "RAY_AUTH_MODE": "token",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_raylet_start_wait_time_s": "120",  # on a busy machine
}
BARE = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
"""Without what a test of a cluster needs not: each is a process of Python."""
HELPER = """
import json, sys
from ray.cluster_utils import Cluster

def asked():
    return json.loads(sys.stdin.readline())

made = Cluster(initialize_head=True, head_node_args=asked())
nodes = [made.head_node]
print("=" + json.dumps(made.address), flush=True)
while (what := asked()) is not None:
    if isinstance(what, int):
        made.remove_node(nodes[what], allow_graceful=False)
        print("=0", flush=True)
    else:
        nodes.append(made.add_node(**what))
        print("=" + str(len(nodes) - 1), flush=True)
made.shutdown()
"""


class Nodes:
    """A cluster that asks for a token, in a process of its own: Ray reads its environment when it is loaded.

    Args:
        base: where the token's file and the cluster's log are made.
        environment: of the nodes, beside that of this process.
        head: resources of the head, see `ray.cluster_utils.Cluster.add_node`.
    """

    def __init__(self, base: Path, environment: dict[str, str] | None = None, **head: Any) -> None:
        self.token = base / "auth_token"
        self.token.write_text(TOKEN)
        self.token.chmod(0o600)
        ours = {**RAY, "RAY_AUTH_TOKEN_PATH": str(self.token), "PYTHONPATH": f"{ROOT / 'daemon'}:{ROOT}"}
        with (base / "cluster.log").open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", HELPER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **ours, **(environment or {})},
            )
        self.address = str(self._asked({**BARE, "object_store_memory": STORE, **head}))

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def add(self, **node: Any) -> int:
        """Start a node; returns its number."""
        return int(self._asked({"include_log_monitor": False, "object_store_memory": STORE, **node}))

    def kill(self, number: int) -> None:
        """End a node as a power cut does; 0 is the head."""
        self._asked(number)

    def close(self) -> None:
        """End all nodes."""
        try:
            if self._process.poll() is None:
                self._process.communicate("null\n", timeout=120)
        finally:
            self._process.kill()

    def _asked(self, what: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("="):
                return json.loads(line[1:])
        raise AssertionError(self.token.with_name("cluster.log").read_text())


def process(order: Order, progress: Callable[[str, int, int], None]) -> Finished:
    """The worker's `process` on a node: as that of `passthrough`, with the one verdict that the daemon takes.

    What is the original itself is taken from a node as unprotected alone.
    """
    outcome = replace(passthrough.process(order, progress), verdict=Verdict.UNPROTECTED)
    receipt = order.folder / "receipt.json"
    receipt.write_text(json.dumps({**json.loads(receipt.read_bytes()), "verdict": outcome.verdict.value}))
    return outcome


def actor_class() -> type[Any]:
    """Actors whose work is `process`."""
    from backfire.service.worker import node

    class Actor(node.Actor):
        process = staticmethod(process)

        def prepare(self) -> None:
            pass  # no torch is needed

    return Actor


def drive(connection: Connection, parent: int) -> None:
    """The driver's main function, with these actors."""
    real_drive(connection, parent, actor_class)


def drive_alone(connection: Connection, parent: int) -> None:
    """A driver without Ray: `BACKFIRE_STUB_WORKERS` workers that sleep and give each picture back.

    What it does to a picture's files is what the real one does, so that it shows what the daemon bears.
    """
    child.die_with(parent)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    asyncio.run(Alone(connection).run())


class Alone:
    """The workers of `drive_alone`."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._working = connection, set[asyncio.Task[None]]()
        self._seconds = float(os.environ.get("BACKFIRE_STUB_S", "0"))

    async def run(self) -> None:
        """Work until the daemon is gone."""
        workers = int(os.environ["BACKFIRE_STUB_WORKERS"])
        for number in range(1, workers + 1):
            self._send({"actor": number, "node": f"node-{number % 125}"})
        asyncio.get_running_loop().add_reader(self._connection.fileno(), self._hear)
        while True:
            self._send({"beat": "", "nodes": 125, "fit": workers})
            await asyncio.sleep(1)

    def _send(self, message: dict[str, Any]) -> None:
        self._connection.send_bytes(json.dumps(message).encode())

    def _hear(self) -> None:
        while self._connection.poll():
            message = json.loads(self._connection.recv_bytes())
            if "order" in message:
                task = asyncio.get_running_loop().create_task(self._work(message))
                self._working.add(task)
                task.add_done_callback(self._working.discard)

    async def _work(self, message: dict[str, Any]) -> None:
        order, folder = message["order"], Path(message["folder"])
        data = await asyncio.to_thread((folder / "input").read_bytes)
        await asyncio.sleep(self._seconds)
        told, files = await asyncio.to_thread(self._result, order, data)
        await asyncio.to_thread(returned.leave, folder, order["lease"], told, files)
        self._send({"actor": message["actor"], "returned": told["outcome"]})

    def _result(self, order: dict[str, Any], data: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
        sha256 = hashlib.sha256(data).hexdigest()
        settings = orders.unpacked(order, Path("/nowhere")).settings
        receipt = {
            "key": job_key(sha256, None, settings.sha256),
            "output_sha256": sha256,
            "verdict": Verdict.UNPROTECTED.value,
            "reasons": [],
        }
        files = {"output": data, "receipt.json": json.dumps(receipt).encode()}
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        outcome = Finished(order["job"], order["lease"], Verdict.UNPROTECTED, ".png", sha256, on_weak="fail")
        return {"outcome": protocol.to_json(outcome), "digests": digests}, files


if __name__ == "__main__":
    from benchmarks import nodes

    alone = "BACKFIRE_STUB_WORKERS" in os.environ
    driver.drive = nodes.drive_alone if alone else nodes.drive  # type: ignore[assignment]
    cli.main()
