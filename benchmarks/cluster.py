"""Pictures a second on a Ray cluster against its workers, with stub work: `python -m benchmarks cluster`.

The nodes are simulated on this machine and share it with the daemon; a worker sleeps and returns the picture.
What the daemon's own processes cost is therefore told apart, in CPU seconds for each picture: on a machine
that has a core for each of them, none passes more pictures a second than one over that.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import tempfile
import time
import zlib
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import yaml

from benchmarks.daemons import Daemon
from benchmarks.nodes import Nodes
from benchmarks.soak import png

PER_NODE = 8
"""How many workers a simulated node has at most."""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks cluster", description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", help="default: 1 2 4 8; --local has one")
    parser.add_argument("--each", type=int, default=8, help="pictures for each worker")
    parser.add_argument("--seconds", type=float, default=3.0, help="of stub work for a picture")
    parser.add_argument("--mb", type=float, default=5.0, help="megabytes of a picture")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--local", action="store_true", help="the same with the one worker of this machine")
    how.add_argument(
        "--alone", action="store_true", help="without Ray: what the daemon bears, with any number of workers"
    )
    parser.add_argument("--out", type=Path, help="write the rows there, as JSON")
    asked = parser.parse_args(argv)
    if asked.local and asked.workers not in (None, [1]):
        parser.error("--local has one worker; leave --workers out")
    rows = []
    for workers in asked.workers or ([1] if asked.local else [1, 2, 4, 8]):
        rows.append(measure(workers, asked.each * workers, asked.seconds, asked.mb, how=how_of(asked)))
        print(json.dumps(rows[-1]), flush=True)
    if asked.out:
        told = {"python": platform.python_version(), "cores": os.cpu_count(), "rows": rows}
        asked.out.write_text(json.dumps(told, indent=1) + "\n")
    return 0


def how_of(asked: argparse.Namespace) -> str:
    """`ray`, `local` or `alone`."""
    return "local" if asked.local else "alone" if asked.alone else "ray"


def measure(workers: int, count: int, seconds: float, mb: float, *, how: str) -> dict[str, Any]:
    """Publish so many pictures, and tell how fast that went from the first start to the last result."""
    with (
        tempfile.TemporaryDirectory(prefix="backfire-cluster-", ignore_cleanup_errors=True) as folder,
        ExitStack() as opened,
    ):
        base = Path(folder)
        (base / "inbox").mkdir()
        for number in range(count):
            (base / "inbox" / f"{number:05}.png").write_bytes(picture(number, int(mb * 1e6)))
        stub = {"BACKFIRE_STUB_S": str(seconds)}
        nodes = None
        if how == "alone":
            stub["BACKFIRE_STUB_WORKERS"] = str(workers)
        elif how == "ray":
            nodes = opened.enter_context(Nodes(base, stub, num_cpus=0))
            for begin in range(0, workers, PER_NODE):
                nodes.add(num_cpus=0, resources={"stub": min(PER_NODE, workers - begin)})
        row = published(base, nodes, workers, count, how=how, stub=stub)
    shown = {"how": how, "workers": workers, "pictures": count, "seconds": seconds, "mb": mb, **row}
    if seconds:
        shown["efficiency"] = round(row["per_s"] * seconds / workers, 3)
    return shown


def published(
    base: Path, nodes: Nodes | None, workers: int, count: int, *, how: str, stub: dict[str, str]
) -> dict[str, Any]:
    """Run the daemon until all jobs have come to an end."""
    settings: dict[str, Any] = {
        "folders": {"inbox": "inbox"},
        "watch": {"settle_s": 0.5, "rescan_s": 5},
        "limits": {"free_mb": 0},
        # The stub gives pictures back unprotected, and without this each would wait for a person.
        "regions": {"none_found": "pass"},
    }
    if nodes is not None:
        settings["cluster"] = {
            "address": nodes.address, "token_file": str(nodes.token), "actors": workers,
            "num_gpus": 0, "num_cpus": 0, "resources": {"stub": 1},
        }  # fmt: skip
    elif how == "alone":
        (base / "auth_token").write_text("0" * 64)
        (base / "auth_token").chmod(0o600)
        settings["cluster"] = {"address": "127.0.0.1:6379", "token_file": str(base / "auth_token")}
    (base / "config.yaml").write_text(yaml.safe_dump(settings))
    module = "benchmarks.passthrough" if how == "local" else "benchmarks.nodes"
    cpu, begun = dict[str, float](), dict[str, float]()
    with Daemon(base, module, stub) as daemon:
        while True:
            time.sleep(0.5)
            over, jobs = daemon.ended(count), daemon.states()
            cpu = {**cpu, **daemon.cpu_s()}
            if not begun and {"running", "publishing", "archived"} & jobs.keys():
                begun = dict(cpu)
            if over:
                break
        with closing(sqlite3.connect(base / "state" / "backfire.sqlite")) as connection:
            query = (
                "select min(at) filter (where state = 'running'), "
                "max(at) filter (where state = 'publishing') from events"
            )
            first, last = connection.execute(query).fetchone()
    if not jobs["archived"]:
        raise SystemExit(f"no picture was archived: {dict(jobs)}")
    return {
        "per_s": round(jobs["archived"] / (last - first), 3),
        "jobs": dict(jobs),
        "cpu_s_each": {name: round((used - begun.get(name, 0)) / count, 4) for name, used in cpu.items()},
    }


def picture(number: int, size: int) -> bytes:
    """A small PNG with a private chunk of random bytes."""
    small, content = png(str(number)), b"baCk" + os.urandom(size)
    chunk = size.to_bytes(4, "big") + content + zlib.crc32(content).to_bytes(4, "big")
    return small[:33] + chunk + small[33:]
