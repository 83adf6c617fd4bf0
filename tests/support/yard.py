"""Clusters of Ray and daemons that work on them, and what these have recorded and logged."""

from __future__ import annotations

import json
import socket
import sqlite3
from pathlib import Path
from typing import Any

from benchmarks.nodes import Nodes
from tests.support.jobs import children_of
from tests.support.sandbox import Sandbox, wait_for

ONE: dict[str, Any] = {"num_gpus": 0, "num_cpus": 1}


def daemon_of(base: Path, nodes: Nodes, **section: Any) -> Sandbox:
    """A daemon with its workers on a cluster."""
    sandbox = Sandbox(base, "tests.support.clustered")
    sandbox.configure(
        cluster={"address": nodes.address, "token_file": str(nodes.token), **ONE, **section},
        limits={"free_mb": 0},
        # These workers give pictures back unprotected, and without this each would wait for a person.
        regions={"none_found": "pass"},
    )
    return sandbox


def job(sandbox: Sandbox, name: str) -> Any:
    with sqlite3.connect(sandbox.base / "state" / "backfire.sqlite") as connection:
        connection.row_factory = sqlite3.Row
        found = connection.execute("SELECT * FROM jobs WHERE path = ?", (name.encode(),)).fetchone()
    return dict(found) if found else {}


def state(sandbox: Sandbox, name: str) -> str:
    return str(job(sandbox, name).get("state", ""))


def said(sandbox: Sandbox, event: str) -> list[dict[str, Any]]:
    """What the daemon has logged under a name."""
    lines = [json.loads(line) for line in sandbox.log().splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("event") == event]


def archived(sandbox: Sandbox, *names: str, seconds: float = 60) -> None:
    every = {"archived"}
    wait_for(lambda: {state(sandbox, name) for name in names} == every, seconds=seconds, because="archived")


def drivers(sandbox: Sandbox) -> list[int]:
    """The processes that the running daemon has as drivers: they have Ray loaded."""
    daemon = sandbox.processes[-1].pid
    return [one for one in children_of(daemon) if "ray" in Path(f"/proc/{one}/maps").read_text()]


class Yard:
    """Makes clusters and daemons, and ends them with the test."""

    def __init__(self, base: Path) -> None:
        self.base, self._made = base, list[Nodes | Sandbox]()

    def nodes(
        self, environment: dict[str, str] | None = None, base: Path | None = None, **head: Any
    ) -> Nodes:
        made = Nodes(base or self.base, environment, **head)
        self._made.append(made)
        return made

    def daemon(self, nodes: Nodes, base: Path | None = None, **section: Any) -> Sandbox:
        home = daemon_of(base or self.base, nodes, **section)
        self._made.insert(0, home)
        home.start()
        return home

    def close(self) -> None:
        for one in self._made:
            one.close()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("", 0))
        return int(one.getsockname()[1])
