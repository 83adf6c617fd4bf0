"""The rows of a benchmark: a JSON line for each measurement, written as soon as it is made.

A row's key is a digest of everything it depends on, including the code that made it. So an interrupted run
can be resumed, and rows of other settings or other code are never reused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

Row = dict[str, Any]

ROOT = Path(__file__).resolve().parents[1]


def child_environment() -> dict[str, str]:
    """The environment of a child process that imports this checkout, also where none is installed."""
    return {**os.environ, "PYTHONPATH": f"{ROOT / 'daemon'}{os.pathsep}{ROOT}"}


CODE = ("daemon/backfire/**/*.py", "daemon/backfire/perturb/starts/*.*", "benchmarks/*.py")
"""The code and the stored starts that rows depend on, besides weights and settings.

All of the package, since a protection depends on much of it, from the settings' defaults to the encoders.
"""


def read(log: Path) -> list[Row]:
    """The rows written so far, without an incomplete last line that a killed run may leave."""
    rows = []
    for line in log.read_text().splitlines() if log.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


@cache
def code() -> str:
    """A digest of the code that rows depend on."""
    files = sorted(path for pattern in CODE for path in ROOT.glob(pattern))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:16]


class Journal:
    """The rows in one file.

    Args:
        log: the file; it is made if it does not exist.
        version: a digest of the code that rows depend on; by default that of `CODE`.
    """

    def __init__(self, log: Path, version: str | None = None) -> None:
        self._version = version or code()
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        self._known = {row["key"]: row for row in read(log)}
        if log.exists() and not log.read_bytes().endswith(b"\n"):
            with log.open("a") as lines:  # so that the next row does not continue an incomplete line
                lines.write("\n")

    def row(self, what: Row, measure: Callable[[], Row]) -> Row:
        """The row of `what`, which is measured and written only if it is not known yet.

        Args:
            what: everything that the row depends on, except for the code.
            measure: makes the rest of the row.
        """
        key = self.key(what)
        if key not in self._known:
            self._known[key] = {"key": key, **what, **measure()}
            with self._log.open("a") as lines:
                lines.write(json.dumps(self._known[key]) + "\n")
        return self._known[key]

    def key(self, what: Row) -> str:
        """A digest of everything that a row depends on."""
        return hashlib.sha256(json.dumps([self._version, what], sort_keys=True).encode()).hexdigest()[:16]
