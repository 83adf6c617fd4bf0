"""A stress test: writers that stall, rename and replace files, while daemon and workers are killed.

At the end of each round every original must be accounted for, and every output published exactly once.
Each round has folders of its own and prints its seed; `--seed` plays it again with the same files and the
same order of kills, at other moments. Every file has unique content, so that originals and outputs are
identified by their SHA-256 alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import struct
import tempfile
import time
import zlib
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from backfire.files import manifest
from benchmarks.daemons import ENDS, Daemon
from benchmarks.rows import code

WRITERS = 6


def png(text: str) -> bytes:
    """A small PNG with unique content made from `text`; any truncation of it is recognised as incomplete."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0)
    rows = random.Random(text).randbytes(16 * 48)
    pixels = zlib.compress(b"".join(b"\0" + rows[i : i + 48] for i in range(0, len(rows), 48)))
    body = chunk(b"IHDR", head) + chunk(b"tEXt", b"name\0" + text.encode())
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def write(inbox: Path, who: int, count: int, seed: int, told: Path) -> None:
    """One writer: drops `count` pictures as people and programs do, and records them in the file `told`.

    Each is a JSON line with the SHA-256 of the final content, those of the contents that it replaced, and
    whether the file was renamed.
    """
    rng = random.Random(seed * 1000 + who)
    own = inbox / f"writer-{who}"
    own.mkdir(parents=True, exist_ok=True)
    with told.open("w") as lines:
        for number in range(count):
            way = rng.choices(["plain", "stall", "part", "replace", "rename"], [50, 5, 30, 10, 5])[0]
            target, data = own / f"{number}.png", png(f"{seed}/{who}/{number}")
            before: list[str] = []
            if way == "plain":
                target.write_bytes(data)
            elif way == "stall":
                with target.open("wb") as file:
                    file.write(data[: rng.randrange(len(data))])
                time.sleep(rng.uniform(0, 1))  # the stall itself
                with target.open("r+b") as file:
                    file.write(data)
            elif way == "part":
                part = target.with_suffix(".png.part")
                part.write_bytes(data)
                part.rename(target)
            elif way == "replace":
                former = png(f"{seed}/{who}/{number} former")
                before = [hashlib.sha256(former).hexdigest()]
                target.write_bytes(former)
                time.sleep(rng.choice([0, 0, 0.3, 1]))
                part = target.with_suffix(".png.part")
                part.write_bytes(data)
                part.rename(target)
            else:
                target.write_bytes(data)
                time.sleep(rng.choice([0, 0.3]))
                with suppress(FileNotFoundError):  # the daemon has archived it already
                    target.rename(own / f"{number}-renamed.png")
            sha = hashlib.sha256(data).hexdigest()
            lines.write(json.dumps({"sha": sha, "before": before, "renamed": way == "rename"}) + "\n")


def contents(folder: Path) -> Counter[str]:
    """How often each content (by SHA-256) occurs below a folder, without its manifest."""
    files = (path for path in folder.rglob("*") if path.is_file() and not _is_manifest(path))
    return Counter(hashlib.sha256(path.read_bytes()).hexdigest() for path in files)


def _is_manifest(path: Path) -> bool:
    return manifest.NAME.fullmatch(os.fsencode(path.name)) is not None


def faults(base: Path, told: list[dict[str, Any]]) -> list[str]:
    """Descriptions of all violations of what the daemon guarantees."""
    outbox, archive = contents(base / "outbox"), contents(base / "archive")
    final = {line["sha"] for line in told}
    former = {sha for line in told for sha in line["before"]}
    renamed = {line["sha"] for line in told if line["renamed"]}
    found = []
    for name, folder in (("outbox", outbox), ("archive", archive)):
        if lost := final - folder.keys():
            found.append(f"{len(lost)} final contents are not in the {name}")
        if alien := folder.keys() - final - former:
            found.append(f"{len(alien)} contents in the {name} were never dropped whole")
        listed = {entry.sha256 for entry in manifest.read(base / name).entries}
        if unlisted := folder.keys() - listed:
            found.append(f"{len(unlisted)} contents in the {name} are not in its manifest")
        # A file that is renamed just while it is published may appear under both names.
        if twice := {sha for sha, count in folder.items() if count > 1 + (sha in renamed)}:
            found.append(f"{len(twice)} contents lie in the {name} more than once")
    for name in ("inbox", "failed"):
        if left := [path for path in (base / name).rglob("*") if path.is_file()]:
            found.append(f"{len(left)} files are left in {name}, e.g. {left[0].name}")
    if left := list(base.rglob(".backfire-*")):
        found.append(f"{len(left)} temporary files are left, e.g. {left[0]}")
    receipts = len(list((base / "reports").rglob("*.json")))
    if receipts < outbox.total():
        found.append(f"{outbox.total()} outputs but {receipts} receipts")
    return found


def play(base: Path, files: int, seed: int, every: float) -> dict[str, Any]:
    """Run one round; returns its figures, with all violations under `faults`."""
    # What depends on how fast the machine is must not draw from the seed, or the order of kills would too.
    rng, chance = random.Random(seed), random.Random()
    # Every other round has two workers; the pass-through worker does not use its device.
    devices = ["cpu", "cuda:0"] if seed % 2 else []
    settings = {
        "folders": {"inbox": "inbox"},
        "watch": {"settle_s": 0.3, "mask_wait_s": 0, "rescan_s": 1, "incomplete_wait_s": 60},
        "regions": {"detectors": ["faces"]},
        # No picture may be set aside as the cause of the kills, so many attempts are allowed.
        "protect": {"attempts": 20},
        "limits": {"free_mb": 0, "devices": devices},
    }
    (base / "config.yaml").write_text(json.dumps(settings))
    (base / "inbox").mkdir()
    context = multiprocessing.get_context("spawn")
    shares = [files // WRITERS + (index < files % WRITERS) for index in range(WRITERS)]
    lists = [base / f"told-{index}" for index in range(WRITERS)]
    writers = [
        context.Process(target=write, args=(base / "inbox", index, share, seed, told))
        for index, (share, told) in enumerate(zip(shares, lists, strict=True))
    ]
    began = time.monotonic()
    with Daemon(base) as daemon:
        for writer in writers:
            writer.start()
        done = 0
        while any(writer.is_alive() for writer in writers) or done < files * 0.9:
            # Mostly kill after some progress, or a slow machine would never finish; now and then earlier.
            goal = min(done + rng.randint(1, max(files // 40, 2)), files)
            while daemon.states()["archived"] < goal and chance.random() > 0.003:
                daemon.alive()
                time.sleep(0.05)
            time.sleep(rng.uniform(0, every))
            daemon.alive()
            done = daemon.states()["archived"]
            daemon.kill(rng.choice(["daemon", "worker"]), chance)
        while set(daemon.states()) - ENDS or any(path.is_file() for path in (base / "inbox").rglob("*")):
            daemon.alive()
            time.sleep(0.2)
    told = [json.loads(line) for path in lists for line in path.read_text().splitlines()]
    found = faults(base, told)
    if len(told) != files:
        found.append(f"the writers dropped {len(told)} files, not {files}")
    seconds, jobs = time.monotonic() - began, dict(daemon.states())
    print(
        f"seed {seed}: {files} files with {len(devices) or 1} workers in {seconds:.0f} s, "
        f"killed {daemon.kills['daemon']} daemons and {daemon.kills['worker']} children, jobs {jobs}: "
        + ("; ".join(found) if found else "every original accounted for, every output once"),
        flush=True,
    )
    kills = {"killed_daemons": daemon.kills["daemon"], "killed_children": daemon.kills["worker"]}
    played = {"seed": seed, "files": files, "every": every, "code": code(), "workers": len(devices) or 1}
    return {**played, "seconds": round(seconds), **kills, "jobs": jobs, "faults": found}


def main(arguments: list[str]) -> int:
    """Run the rounds; the exit status is 0 if there was no violation."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks soak", description=__doc__)
    parser.add_argument("--files", type=int, default=10_000, help="number of files per round")
    parser.add_argument("--rounds", type=int, help="default: 20, or one where --seed is given")
    parser.add_argument("--seed", type=int, help="seed of the first round; later rounds count up from it")
    parser.add_argument("--every", type=float, default=1.0, help="the most seconds from progress to a kill")
    parser.add_argument("--keep", action="store_true", help="keep the folders of a round that failed")
    parser.add_argument(
        "--json",
        type=Path,
        help="write the figures to this file after each round; a run resumes after those in it that were "
        "played with the same options and the same code",
    )
    options = parser.parse_args(arguments)
    every: list[dict[str, Any]] = []
    if options.json and options.json.exists():
        every = json.loads(options.json.read_text())
    same = {"files": options.files, "every": options.every, "code": code()}
    rounds = [played for played in every if same.items() <= played.items()]
    if every:
        print(f"{len(rounds)} of the {len(every)} rounds in {options.json} are such as these", flush=True)
    first, count = options.seed, options.rounds or (20 if options.seed is None else 1)
    if first is None:
        first = rounds[0]["seed"] if rounds else random.SystemRandom().randrange(1 << 30)
    done = {played["seed"] for played in rounds}
    for seed in range(first, first + count):
        if seed in done:
            continue
        folder = Path(tempfile.mkdtemp(prefix="backfire-soak-"))
        rounds.append(play(folder, options.files, seed, options.every))
        every.append(rounds[-1])
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(every, indent=2) + "\n")
        if rounds[-1]["faults"] and options.keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder)
    return 1 if any(played["faults"] for played in rounds) else 0
