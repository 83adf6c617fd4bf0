"""Daemons that the benchmarks start, watch and kill, and what processes have used (Linux only)."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path

from backfire.types import ACTIVE, JobState
from benchmarks.rows import child_environment

ENDS = {*JobState} - ACTIVE


class Daemon:
    """A daemon on a folder, which runs within a `with` block and ends with it, also by an error.

    Args:
        base: the folder, with its `config.yaml`.
        module: what is run, by default the daemon whose worker publishes pictures unchanged.
        environment: beside that of this process.

    Attributes:
        kills: how many processes of each kind were killed.
    """

    def __init__(
        self,
        base: Path,
        module: str = "benchmarks.passthrough",
        environment: dict[str, str] | None = None,
    ) -> None:
        self.base, self.log, self.kills = base, base / "backfire.log", Counter[str]()
        self._command = [sys.executable, "-m", module, "run"]
        self._environment = {**child_environment(), **(environment or {})}

    def __enter__(self) -> Daemon:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop the daemon as systemd would."""
        try:
            self.process.terminate()
            self.process.wait(120)
        finally:
            self.end()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, cwd=self.base, stdout=log, stderr=log, env=self._environment
            )

    def end(self) -> None:
        """End the daemon with SIGKILL, at whatever moment."""
        self.process.kill()
        self.process.wait()

    def kill(self, what: str, chance: random.Random) -> bool:
        """End the daemon and start another, or end one of its children.

        Args:
            what: `daemon`, or a kind of children.
            chance: picks among several.

        Returns:
            Whether there was such a process.
        """
        if what == "daemon":
            self.end()
            self.start()
        else:
            found = [child for child, kind in self.children().items() if kind == what]
            if not found:
                return False
            try:
                os.kill(chance.choice(found), signal.SIGKILL)
            except ProcessLookupError:
                return False
        self.kills[what] += 1
        return True

    def children(self) -> dict[int, str]:
        """Its child processes so far: a `driver` has Ray loaded, a `worker` is another one of ours."""
        main, found = self.process.pid, dict[int, str]()
        with suppress(OSError):
            for child in Path(f"/proc/{main}/task/{main}/children").read_text().split():
                with suppress(OSError):  # it has ended in the meantime
                    process = Path(f"/proc/{child}")
                    if b"spawn_main" in (process / "cmdline").read_bytes():
                        is_driver = "/ray/" in (process / "maps").read_text()
                        found[int(child)] = "driver" if is_driver else "worker"
        return found

    def cpu_s(self) -> dict[str, float]:
        """Processor seconds of the `daemon` and of each kind of its children so far."""
        found = dict[str, float]()
        for process, kind in {self.process.pid: "daemon", **self.children()}.items():
            with suppress(OSError):
                found[kind] = found.get(kind, 0.0) + cpu_s(process)
        return found

    def states(self) -> Counter[str]:
        """The number of jobs in each state; empty while the database cannot be read."""
        try:
            database = f"file:{self.base}/state/backfire.sqlite?mode=ro"
            with closing(sqlite3.connect(database, uri=True)) as jobs:
                return Counter(dict(jobs.execute("select state, count(*) from jobs group by state")))
        except sqlite3.Error:
            return Counter()

    def ended(self, count: int) -> bool:
        """Whether so many jobs have come to an end, archived or not, and no others are left.

        Raises:
            SystemExit: the daemon has ended by itself.
        """
        self.alive()
        states = self.states()
        return states.total() >= count and not states.keys() - ENDS

    def alive(self) -> None:
        """Exit with an error if the daemon has ended by itself."""
        if self.process.poll() is not None:
            told = self.log.read_text(errors="replace")[-2000:]
            raise SystemExit(f"the daemon ended with {self.process.returncode}: {self.log}\n{told}")


def unarchived(jobs: Counter[str]) -> str:
    """What a line of figures has to add where jobs came to another end than they should have."""
    others = {state: number for state, number in jobs.items() if state != "archived"}
    return f"; NOT ARCHIVED: {others}" if others else ""


def cpu_s(process: int) -> float:
    """Processor seconds that a process has used so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    return sum(int(ticks) for ticks in fields[11:13]) / os.sysconf("SC_CLK_TCK")


def memory_mb(process: int) -> int:
    """Resident memory of a process in MiB."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) >> 10
    return 0
