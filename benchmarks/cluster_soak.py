"""A stress test of a Ray cluster: nodes, drivers and daemons are killed while real editors are at work.

At the end of each round every picture must be published once, with the very bytes that the same work gives in
this process. A round prints its seed; `--seed` plays it again with the same pictures and the same order of
kills, at other moments.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from backfire import api, config
from backfire.files import manifest
from benchmarks.daemons import Daemon
from benchmarks.nodes import Nodes
from benchmarks.soak import contents

NODES = 3
SIZE = 64
QUICK: dict[str, Any] = {
    "regions": {"detectors": ["sidecar"]},
    "protect": {"iterations": 2, "margin_px": 32, "whole_px": 0, "device": "cpu", "attempts": 20},
    "verify": {"held_out": [], "paths": ["iopaint"], "on_weak": "publish"},
    "watch": {"settle_s": 0.3, "rescan_s": 1, "mask_wait_s": 0.3},
    "limits": {"free_mb": 0},
}
"""A real editor and few iterations; whatever the verdict, the bytes are what is compared."""


def encoded(pixels: np.ndarray[Any, Any], path: Path) -> bytes:
    Image.fromarray(pixels).save(path)
    return path.read_bytes()


def drop(base: Path, count: int, settings: config.Settings) -> dict[str, str]:
    """Write pictures and masks; returns the SHA-256 of what each is to become, as made in this process."""
    rng = np.random.default_rng(0)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[20:44, 20:44] = 255
    expected = {}
    (base / "made").mkdir()
    for number in range(count):
        coarse = rng.integers(0, 256, (8, 8, 3), np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        name = f"{number:03}"
        picture = encoded(smooth, base / "made" / f"{name}.png")
        shape = encoded(mask, base / "made" / f"{name}.mask.png")
        result = api.protect(picture, mask=shape, settings=settings, name=f"{name}.png")
        expected[f"{name}.png"] = hashlib.sha256(result.data).hexdigest()
    return expected


def play(base: Path, count: int, seed: int) -> dict[str, Any]:
    """One round; returns its figures, with all violations under `faults`."""
    # What depends on how fast the machine is must not draw from the seed, or the order of kills would too.
    rng, chance = random.Random(seed), random.Random()
    plain = config.parse({"folders": {"inbox": "inbox"}, **QUICK}, base=base)
    (base / "inbox").mkdir()
    expected = drop(base, count, plain)
    with Nodes(base, {"OMP_NUM_THREADS": "1"}, num_cpus=0) as cluster:
        alive = [cluster.add(num_cpus=1) for _ in range(NODES)]
        section = {"address": cluster.address, "token_file": str(cluster.token), "num_gpus": 0}
        document = {"folders": {"inbox": "inbox"}, **QUICK, "cluster": section}
        (base / "config.yaml").write_text(json.dumps(document))
        for file in (base / "made").iterdir():
            shutil.copy(file, base / "inbox")
        began = time.monotonic()
        with Daemon(base, "backfire.cli") as daemon:
            until = began + 1200
            done = 0
            while not daemon.ended(count) and time.monotonic() < until:
                goal = min(done + rng.randint(1, max(count // 6, 2)), count)
                while (done := daemon.states()["archived"]) < goal and chance.random() > 0.002:
                    if daemon.ended(count) or time.monotonic() > until:
                        break
                    time.sleep(0.1)
                if done == count:
                    break
                what = rng.choice(["node", "node", "driver", "daemon"])
                if what == "node":
                    cluster.kill(alive.pop(rng.randrange(len(alive))))
                    alive.append(cluster.add(num_cpus=1))
                    daemon.kills[what] += 1
                else:
                    daemon.kill(what, chance)
            seconds = time.monotonic() - began
    found = faults(base, expected)
    said = "; ".join(found) or "every picture published once, all bytes as on this machine"
    killed = dict(daemon.kills)
    print(f"seed {seed}: {count} pictures in {seconds:.0f} s, killed {killed}: {said}", flush=True)
    return {
        "seed": seed,
        "pictures": count,
        "seconds": round(seconds),
        "killed": killed,
        "faults": found,
    }


def faults(base: Path, expected: dict[str, str]) -> list[str]:
    """All violations of what the daemon guarantees."""
    found = []
    outbox = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (base / "outbox").iterdir()
        if not path.name.startswith(".")
    }
    if missing := expected.keys() - outbox.keys():
        found.append(f"{len(missing)} are not published, e.g. {min(missing)}")
    if alien := outbox.keys() - expected.keys():
        found.append(f"{len(alien)} are published that were not dropped, e.g. {min(alien)}")
    if other := [name for name in outbox.keys() & expected.keys() if outbox[name] != expected[name]]:
        found.append(f"{len(other)} have other bytes than this machine gives, e.g. {min(other)}")
    # A daemon that is killed between manifest and record writes the same line again, see `files.manifest`.
    listed = Counter(entry.path for entry in {*manifest.read(base / "outbox").entries})
    if twice := [path for path, times in listed.items() if times > 1]:
        found.append(f"{len(twice)} are listed with different contents")
    if unlisted := {*map(os.fsencode, outbox)} - listed.keys():
        found.append(f"{len(unlisted)} are not listed")
    if contents(base / "made") != contents(base / "archive"):
        found.append("the archive does not hold every original once")
    for folder in ("inbox", "failed"):
        if left := [path for path in (base / folder).rglob("*") if path.is_file()]:
            found.append(f"{len(left)} files are left in {folder}, e.g. {left[0].name}")
    with closing(sqlite3.connect(base / "state" / "backfire.sqlite")) as connection:
        query = "select count(*) from events where state = 'published' group by job_id having count(*) > 1"
        if again := connection.execute(query).fetchall():
            found.append(f"{len(again)} were published more than once")
    return found


def main(argv: list[str]) -> int:
    """Run the rounds; the exit status is 0 if there was no violation."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks cluster_soak", description=__doc__)
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--rounds", type=int, help="default: 10, or one where --seed is given")
    parser.add_argument("--seed", type=int, help="seed of the first round; later rounds count up from it")
    parser.add_argument("--out", type=Path, help="write the rounds there, as JSON")
    asked = parser.parse_args(argv)
    rounds = []
    first, count = (1, 10) if asked.seed is None else (asked.seed, 1)
    for seed in range(first, first + (asked.rounds or count)):
        base = Path(tempfile.mkdtemp(prefix="backfire-cluster-"))
        rounds.append(play(base, asked.pictures, seed))
        if not rounds[-1]["faults"]:
            shutil.rmtree(base, ignore_errors=True)
        if asked.out:
            asked.out.write_text(json.dumps(rounds, indent=1) + "\n")
    return int(any(one["faults"] for one in rounds))
