"""Ingest alone: files per second, memory, time until READY, and size of the database.

The daemon runs with a method that changes nothing; all the rest is as usual: copy, hash, sync, record,
publish, archive. Files per second are compared with `scandir` and SHA-256 of the same files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.daemons import Daemon, memory_mb, unarchived
from benchmarks.soak import png


class Sample(NamedTuple):
    """The progress of a daemon at one moment, and the resources it had used until then."""

    archived: int
    processor_s: float
    resident_mb: int


def configure(base: Path, settle_s: float) -> None:
    """Write the configuration of the pass-through daemon, and make its inbox."""
    settings = {
        "folders": {"inbox": "inbox"},
        "watch": {"settle_s": settle_s, "mask_wait_s": 0, "rescan_s": 1},
        "regions": {"detectors": ["faces"]},
        "limits": {"free_mb": 0},
    }
    (base / "config.yaml").write_text(json.dumps(settings))
    (base / "inbox").mkdir(exist_ok=True)


def plain(folder: Path) -> tuple[float, float]:
    """Elapsed and processor seconds of `scandir`, reading and SHA-256: the least that any ingest needs."""
    began, processor = time.perf_counter(), time.process_time()
    with os.scandir(folder) as entries:
        for entry in entries:
            with open(entry.path, "rb") as file:
                hashlib.file_digest(file, "sha256").hexdigest()
    return time.perf_counter() - began, time.process_time() - processor


def ready_s(daemon: Daemon, offset: int, began: float) -> float:
    """Seconds from `began` until the log, read from `offset` on, says that the daemon is ready."""
    while '"ready"' not in daemon.log.read_text()[offset:]:
        daemon.alive()
        time.sleep(0.01)
    return time.monotonic() - began


def database_mb(base: Path) -> float:
    """The size of the database and its write-ahead log in MiB."""
    return sum(path.stat().st_size for path in (base / "state").glob("backfire.sqlite*")) / 2**20


def throughput(files: int, kilobytes: int) -> dict[str, Any]:
    """Files that the daemon takes in per second, compared with reading and hashing them."""
    with tempfile.TemporaryDirectory(prefix="backfire-ingest-") as folder:
        base = Path(folder)
        configure(base, settle_s=0.1)
        filling = random.Random(0).randbytes(kilobytes << 10)
        for number in range(files):
            (base / "inbox" / f"{number}.png").write_bytes(png(str(number)) + filling)
        baseline, baseline_processor = plain(base / "inbox")
        disk = sync_s(base)
        with Daemon(base) as daemon:
            samples, over = list[Sample](), False
            while not over:
                over, jobs = daemon.ended(files), daemon.states()
                if jobs["archived"] or over:
                    used = sum(daemon.cpu_s().values())
                    samples.append(Sample(jobs["archived"], used, memory_mb(daemon.process.pid)))
                time.sleep(0.2)
        seconds = worked_s(base / "state" / "backfire.sqlite")
        size = database_mb(base)
    half, first, last = samples[len(samples) // 2], samples[0], samples[-1]
    # The difference of two samples leaves out the start of the processes, which happens only once.
    processor = (last.processor_s - first.processor_s) / max(last.archived - first.archived, 1)
    print(
        f"{files} files of {kilobytes} KB: {files / seconds:.0f} a second; scandir + SHA-256 "
        f"{files / baseline:.0f} a second; ratio {baseline / seconds:.3f}; processor "
        f"{processor * 1e3:.2f} ms a file, {baseline_processor / files * 1e3:.2f} ms; resident "
        f"{first.resident_mb} MB at first, {half.resident_mb} half-way, {last.resident_mb} at the end; "
        f"database {size * 100_000 / files:.0f} MB per 100,000 jobs{unarchived(jobs)}",
        flush=True,
    )
    return {
        "files": files,
        "kilobytes": kilobytes,
        "jobs": dict(jobs),
        "files_per_s": round(files / seconds, 1),
        "scandir_sha256_files_per_s": round(files / baseline, 1),
        "ratio": round(baseline / seconds, 4),
        "processor_ms_per_file": round(processor * 1e3, 3),
        "scandir_sha256_processor_ms_per_file": round(baseline_processor / files * 1e3, 3),
        "sync_ms": round(disk * 1e3, 2),
        "syncs_per_file": round(seconds / files / disk, 1),
        "resident_mb": [first.resident_mb, half.resident_mb, last.resident_mb],
        "database_mb_per_100000_jobs": round(size * 100_000 / files),
    }


def worked_s(database: Path) -> float:
    """Seconds from the worker's first result to the last archived original, without the worker's start."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        query = "select max(at) - min(at) from events where state in ('publishing', 'archived')"
        (seconds,) = connection.execute(query).fetchone()
    if seconds is None:
        raise SystemExit(f"{database}: no file was archived")
    return float(seconds)


def sync_s(base: Path, times: int = 40) -> float:
    """Median seconds until a new small file is durable: the unit in which durability costs on this disk."""
    took = []
    for _ in range(times):
        began = time.perf_counter()
        with (base / "probe").open("wb") as file:
            file.write(b"x" * 1024)
            file.flush()
            os.fsync(file.fileno())
        took.append(time.perf_counter() - began)
        (base / "probe").unlink()
    return statistics.median(took)


def backlog(files: int) -> dict[str, Any]:
    """Time until READY with a backlog: at the first start, and again with all files in the database."""
    with tempfile.TemporaryDirectory(prefix="backfire-ingest-") as folder:
        base = Path(folder)
        configure(base, settle_s=3600)
        data = png("backlog")
        for number in range(files):
            place = base / "inbox" / str(number % 100)
            if number < 100:
                place.mkdir()
            (place / f"{number}.png").write_bytes(data)
        began = time.monotonic()
        with Daemon(base) as daemon:
            first, first_processor = ready_s(daemon, 0, began), sum(daemon.cpu_s().values())
            while daemon.states()["settling"] < files:
                daemon.alive()
                time.sleep(0.2)
            sighted, resident = time.monotonic() - began, memory_mb(daemon.process.pid)
            daemon.end()
            offset, began = len(daemon.log.read_text()), time.monotonic()
            daemon.start()
            again, again_processor = ready_s(daemon, offset, began), sum(daemon.cpu_s().values())
        print(
            f"backlog of {files}: READY after {first:.1f} s (processor {first_processor:.1f} s), all in the "
            f"database after {sighted:.1f} s ({database_mb(base):.0f} MB, {resident} MB resident); killed, "
            f"READY again after {again:.1f} s (processor {again_processor:.1f} s)",
            flush=True,
        )
        return {
            "files": files,
            "ready_s": round(first, 2),
            "ready_processor_s": round(first_processor, 2),
            "all_recorded_s": round(sighted, 1),
            "ready_again_after_kill_s": round(again, 2),
            "ready_again_processor_s": round(again_processor, 2),
            "resident_mb": resident,
            "database_mb": round(database_mb(base), 1),
        }


def main(arguments: list[str]) -> int:
    """Measure small, medium and large files, then a backlog."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks ingest", description=__doc__)
    parser.add_argument("--small", type=int, default=2000, help="number of files of 1 KB")
    parser.add_argument("--medium", type=int, default=500, help="number of files of 100 KB")
    parser.add_argument("--large", type=int, default=200, help="number of files of 8 MB")
    parser.add_argument("--times", type=int, default=1, help="how often to measure each size")
    parser.add_argument(
        "--backlog", type=int, default=100_000, help="number of files in the backlog; 0: none"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    machine = {"python": sys.version.split()[0], "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    print(f"Python {machine['python']}, {machine['cores']} cores, load {machine['load']:.1f}")
    sizes = ((options.small, 1), (options.medium, 100), (options.large, 8 << 10))
    found: dict[str, Any] = {"machine": machine, "throughput": []}
    for files, kilobytes in (size for _ in range(options.times) for size in sizes if size[0]):
        found["throughput"].append(throughput(files, kilobytes))
    if options.backlog:
        found["backlog"] = backlog(options.backlog)
    machine["load_at_the_end"] = os.getloadavg()[0]
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0
