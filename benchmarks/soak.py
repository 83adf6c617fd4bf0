"""Six writers with stalls, renames, replacements; `kill -9` of daemon and child; each original accounted for.

Each round has folders of its own and a seed that is printed: `--seed` repeats it. Every file has
content of its own, so that originals and outputs are told apart by their SHA-256 alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from backfire.files import manifest

ROOT = Path(__file__).parent.parent
WRITERS = 6
ENDS = {"archived", "failed", "quarantined", "skipped"}


def png(text: str) -> bytes:
    """A whole PNG of a few hundred bytes whose content is its own; cut short anywhere, it is no PNG."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0)
    rows = random.Random(text).randbytes(16 * 48)
    pixels = zlib.compress(b"".join(b"\0" + rows[i : i + 48] for i in range(0, len(rows), 48)))
    body = chunk(b"IHDR", head) + chunk(b"tEXt", b"name\0" + text.encode())
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def write(inbox: Path, who: int, count: int, seed: int, told: Path) -> None:
    """One writer: drops `count` pictures as people and programs do, and tells what it dropped.

    A line each: the final content's SHA-256, then those it replaced, and whether it was renamed.
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
                with suppress(FileNotFoundError):  # it was taken already
                    target.rename(own / f"{number}-renamed.png")
            sha = hashlib.sha256(data).hexdigest()
            lines.write(json.dumps({"sha": sha, "before": before, "renamed": way == "rename"}) + "\n")


class Daemon:
    """The pass-through daemon on a folder, started again whenever it was killed."""

    def __init__(self, base: Path) -> None:
        self.base, self.kills = base, Counter[str]()
        self.process = self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        with (self.base / "backfire.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "benchmarks.passthrough", "run"],
                cwd=self.base, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip

    def kill(self, what: str, rng: random.Random) -> None:
        """SIGKILL the daemon or one of its children, whatever they are doing."""
        if what == "daemon":
            self.process.kill()
            self.process.wait()
            self.process = self._started()
            self.kills[what] += 1
            return
        if children := self.children():
            with suppress(OSError):
                os.kill(rng.choice(children), signal.SIGKILL)
                self.kills[what] += 1

    def children(self) -> list[int]:
        """Its workers, as far as it has started them."""
        main = self.process.pid
        with suppress(OSError):
            found = Path(f"/proc/{main}/task/{main}/children").read_text().split()
            return [int(it) for it in found if b"spawn_main" in Path(f"/proc/{it}/cmdline").read_bytes()]
        return []

    def states(self) -> Counter[str]:
        """How many jobs are in each state; empty while nobody can tell."""
        try:
            connection = sqlite3.connect(f"file:{self.base}/state/backfire.sqlite?mode=ro", uri=True)
            try:
                return Counter(dict(connection.execute("select state, count(*) from jobs group by state")))
            finally:
                connection.close()
        except sqlite3.Error:
            return Counter()

    def alive(self) -> None:
        """Fail loudly if it ended by itself."""
        if self.process.poll() is not None:
            raise SystemExit(f"the daemon ended with {self.process.returncode}: {self.base}/backfire.log")

    def stop(self) -> None:
        """End it as systemd would."""
        self.process.terminate()
        self.process.wait(90)


def contents(folder: Path) -> Counter[str]:
    """How often each content lies below a folder; its manifest is none of them."""
    files = (path for path in folder.rglob("*") if path.is_file() and not _is_manifest(path))
    return Counter(hashlib.sha256(path.read_bytes()).hexdigest() for path in files)


def _is_manifest(path: Path) -> bool:
    return manifest.NAME.fullmatch(os.fsencode(path.name)) is not None


def faults(base: Path, told: list[dict[str, Any]]) -> list[str]:
    """What is not as promised, in words."""
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
        # A file renamed in the very moment of publishing is one file under either name.
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
    """One round: its figures, and under `faults` what was not as promised."""
    rng = random.Random(seed)
    # Every other round with two workers; the pass-through asks neither for its device.
    devices = ["cpu", "cuda:0"] if seed % 2 else []
    settings = {
        "folders": {"inbox": "inbox"},
        "watch": {"settle_s": 0.3, "mask_wait_s": 0, "rescan_s": 1, "incomplete_wait_s": 60},
        "regions": {"detectors": ["faces"]},
        # A kill is nobody's fault here: nothing may be set aside for it.
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
    daemon = Daemon(base)
    for writer in writers:
        writer.start()
    try:
        done = 0
        while any(writer.is_alive() for writer in writers) or done < files * 0.9:
            # Mostly once it got somewhere, or a slow machine never would; now and then while it still starts.
            goal = min(done + rng.randint(1, max(files // 40, 2)), files)
            while daemon.states()["archived"] < goal and rng.random() > 0.003:
                daemon.alive()
                time.sleep(0.05)
            time.sleep(rng.uniform(0, every))
            daemon.alive()
            done = daemon.states()["archived"]
            daemon.kill(rng.choice(["daemon", "child"]), rng)
        while set(daemon.states()) - ENDS or any(path.is_file() for path in (base / "inbox").rglob("*")):
            daemon.alive()
            time.sleep(0.2)
    finally:
        daemon.stop()
    told = [json.loads(line) for path in lists for line in path.read_text().splitlines()]
    found = faults(base, told)
    if len(told) != files:
        found.append(f"the writers dropped {len(told)} files, not {files}")
    seconds, jobs = time.monotonic() - began, dict(daemon.states())
    print(
        f"seed {seed}: {files} files with {len(devices) or 1} workers in {seconds:.0f} s, "
        f"killed {daemon.kills['daemon']} daemons and {daemon.kills['child']} children, jobs {jobs}: "
        + ("; ".join(found) if found else "every original accounted for, every output once"),
        flush=True,
    )
    kills = {"killed_daemons": daemon.kills["daemon"], "killed_children": daemon.kills["child"]}
    played = {"seed": seed, "files": files, "workers": len(devices) or 1}
    return {**played, "seconds": round(seconds), **kills, "jobs": jobs, "faults": found}


def main(arguments: list[str]) -> int:
    """Play the rounds; 0 if all went as promised."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks soak", description=__doc__)
    parser.add_argument("--files", type=int, default=10_000, help="a round")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, help="of the first round; the next ones count up")
    parser.add_argument("--every", type=float, default=1.0, help="seconds at most from progress to a kill")
    parser.add_argument("--keep", action="store_true", help="keep the folders of a round that failed")
    parser.add_argument(
        "--json",
        type=Path,
        help="write the figures there, after each round; a run goes on where the file ends",
    )
    options = parser.parse_args(arguments)
    rounds: list[dict[str, Any]] = []
    if options.json and options.json.exists():
        rounds = json.loads(options.json.read_text())
        print(f"{len(rounds)} rounds are done already, see {options.json}", flush=True)
    first = options.seed
    if first is None:
        first = rounds[0]["seed"] if rounds else random.SystemRandom().randrange(1 << 30)
    done = {(played["seed"], played["files"]) for played in rounds}
    for seed in range(first, first + options.rounds):
        if (seed, options.files) in done:
            continue
        folder = Path(tempfile.mkdtemp(prefix="backfire-soak-"))
        rounds.append(play(folder, options.files, seed, options.every))
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(rounds, indent=2) + "\n")
        if rounds[-1]["faults"] and options.keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder)
    return 1 if any(played["faults"] for played in rounds) else 0
