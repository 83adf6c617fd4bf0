"""The status page: time to the first byte and memory with many jobs, and what open pages cost the daemon.

Every timed request follows a change in the database, so that nothing that was kept can be shown again. Open
pages do what browsers do: they listen, and fetch the page again when they are told of a change.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from backfire import config
from backfire.cli.page import options_of
from backfire.service.store.store import Store
from backfire.types import JobState
from backfire.web.board import PAGE
from benchmarks.daemons import Daemon, cpu_s, memory_mb, unarchived
from benchmarks.ingest import configure, worked_s
from benchmarks.rows import child_environment
from benchmarks.soak import png


def paths(jobs: int) -> dict[str, str]:
    """The pages to ask for where there are so many jobs; the search finds about a hundred of them."""
    return {
        "first page": "/",
        "done": "/pictures?show=done",
        "last page of all": f"/pictures?show=all&page={-(-jobs // PAGE)}",
        "search": f"/pictures?q={f'IMG_{jobs // 2:06}'[:-2]}",
        "weak of a folder": "/pictures?show=all&verdict=weak&folder=press",
        "one picture": f"/picture/{max(jobs // 2, 1)}",
        "today": "/today",
    }


def fill(database: Path, jobs: int, now: float) -> None:
    """Jobs as a desk has them after a year: most are protected, some weak, a few failed, a few wait."""
    folders = ("press", "sport", "portraits", "archive")

    def rows() -> Iterator[tuple[Any, ...]]:
        for number in range(jobs):
            at, kind = now - 20.0 * (jobs - number), number % 100
            path = f"{folders[number % 4]}/IMG_{number:06}.jpg".encode()
            verdict: str | None = "weak" if kind < 7 else "protected"
            code: str | None = None
            state = "archived"
            if number >= jobs - 40:
                state, verdict = "ready", None
            elif kind < 3:
                state, verdict, code = "failed", None, "truncated"
            yield path, state, f"{number:064x}", verdict, code, at - 60, at

    connection = sqlite3.connect(database)
    columns = "path, state, key, verdict, code, created, updated, attempts, not_before"
    connection.executemany(f"INSERT INTO jobs ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, 1, 0)", rows())
    for state in ("running", "publishing"):
        events = "SELECT id, updated, ?, '{}' FROM jobs WHERE state = 'archived'"
        connection.execute(f"INSERT INTO events (job_id, at, state, detail) {events}", (state,))
    connection.commit()
    connection.close()


@contextmanager
def serving(base: Path) -> Iterator[tuple[int, int]]:
    """The page's process over a folder: its port and process id.

    Raises:
        SystemExit: it has ended by itself.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = config.load(base / "config.yaml")
    options = options_of(settings, base / "config.yaml", ("127.0.0.1", port)).to_json()
    process = subprocess.Popen([sys.executable, "-m", "backfire.web", options], env=child_environment())
    try:
        while True:
            if process.poll() is not None:
                raise SystemExit(f"the page ended with {process.returncode} before it answered")
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.02)
        yield port, process.pid
        if process.poll() is not None:
            raise SystemExit(f"the page ended with {process.returncode} while it was measured")
    finally:
        process.terminate()
        process.wait()


def first_byte_s(port: int, path: str) -> float:
    """Seconds from sending a request to the first byte of its answer; the connection stands already."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        began = time.perf_counter()
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        head = connection.recv(16)
        took = time.perf_counter() - began
        while connection.recv(1 << 16):
            pass
    if not head.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"{path}: {head!r}")
    return took


def answers(jobs: int, times: int) -> dict[str, Any]:
    """Time to the first byte of each kind of page, and the memory of the process afterwards."""
    with tempfile.TemporaryDirectory(prefix="backfire-page-") as folder:
        base, now = Path(folder), time.time()
        configure(base, settle_s=0)
        settings = config.load(base / "config.yaml")
        with Store(settings.folders.database) as store:
            fill(settings.folders.database, jobs, now)
            with serving(base) as (port, process):
                time.sleep(1)
                cold = first_byte_s(port, "/")
                found: dict[str, Any] = {}
                for name, path in paths(jobs).items():
                    took, began = [], cpu_s(process)
                    for turn in range(times):
                        store.update(jobs, JobState.READY, at=now + turn, detail={"reason": "a change"})
                        took.append(first_byte_s(port, path))
                    found[name] = {
                        "processor_ms": round(1e3 * (cpu_s(process) - began) / times, 1),
                        "median_ms": round(1e3 * statistics.median(took), 1),
                        "most_ms": round(1e3 * max(took), 1),
                    }
                resident = memory_mb(process)
    for name, row in found.items():
        print(
            f"{name:<18} {row['median_ms']:6.1f} ms, at most {row['most_ms']:.1f} ms; processor "
            f"{row['processor_ms']:.1f} ms",
            flush=True,
        )
    print(f"first request after the start {1e3 * cold:.1f} ms; {resident} MB resident", flush=True)
    return {"jobs": jobs, "first_ms": round(1e3 * cold, 1), "resident_mb": resident, "pages": found}


def stay_open(port: int, over: threading.Event, fetched: list[int]) -> None:
    """What a browser does with the first page open, until told that it is over or the page has ended."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with socket.create_connection(("127.0.0.1", port), timeout=1) as live:
        live.sendall(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        while not over.is_set():
            try:
                news = live.recv(1 << 16)
            except TimeoutError:
                continue
            if not news:
                break
            if b"data: " in news:
                connection.request("GET", "/")
                connection.getresponse().read()
                fetched.append(1)
    connection.close()


def throughput(files: int, pages: int) -> dict[str, Any]:
    """Files that the daemon takes in per second with so many pages open."""
    with tempfile.TemporaryDirectory(prefix="backfire-page-") as folder:
        base = Path(folder)
        configure(base, settle_s=0.1)
        for number in range(files):
            (base / "inbox" / f"{number}.png").write_bytes(png(str(number)))
        (base / "state").mkdir()
        over, fetched = threading.Event(), list[int]()
        with serving(base) as (port, process):
            clients = [threading.Thread(target=stay_open, args=(port, over, fetched)) for _ in range(pages)]
            for client in clients:
                client.start()
            try:
                with Daemon(base) as daemon:
                    while not daemon.ended(files):
                        time.sleep(0.2)
                    processor, jobs = sum(daemon.cpu_s().values()), daemon.states()
                resident = memory_mb(process)
            finally:
                over.set()
                for client in clients:
                    client.join()
        seconds = worked_s(base / "state" / "backfire.sqlite")
    row = {
        "pages": pages,
        "jobs": dict(jobs),
        "files_per_s": round(files / seconds, 1),
        "daemon_processor_ms_per_file": round(1e3 * processor / files, 2),
        "fetched": len(fetched),
        "page_resident_mb": resident,
    }
    print(
        f"{pages} open pages: {row['files_per_s']} files a second, processor of the daemon "
        f"{row['daemon_processor_ms_per_file']} ms a file; pages fetched {len(fetched)} times; "
        f"{resident} MB resident{unarchived(jobs)}",
        flush=True,
    )
    return row


def main(arguments: list[str]) -> int:
    """Measure the answers, then the daemon with and without open pages, by turns."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks page", description=__doc__)
    parser.add_argument("--jobs", type=int, default=100_000, help="number of jobs in the database; 0: none")
    parser.add_argument("--times", type=int, default=20, help="how often to ask for each page")
    parser.add_argument("--files", type=int, default=1000, help="number of files for the daemon; 0: none")
    parser.add_argument("--pages", type=int, default=10, help="number of open pages")
    parser.add_argument("--turns", type=int, default=2, help="how often to run the daemon in each manner")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    found: dict[str, Any] = {"cores": os.cpu_count(), "load": os.getloadavg()[0]}
    if options.jobs:
        found["answers"] = answers(options.jobs, options.times)
    if options.files:
        manners = [0, options.pages] * options.turns
        found["throughput"] = [throughput(options.files, pages) for pages in manners]
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0
