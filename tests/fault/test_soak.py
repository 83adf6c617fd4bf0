"""What the soak test checks after each round: it accepts what the daemon should leave, and nothing else."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from backfire.files import manifest, outbox
from benchmarks.soak import faults, png


@pytest.fixture
def left(tmp_path: Path) -> tuple[Path, list[dict[str, Any]]]:
    """Folders as a good round leaves them, and what its writers recorded."""
    told = []
    for name in ("inbox", "failed", "reports"):
        (tmp_path / name).mkdir()
    for name in ("a.png", "b.png"):
        data = png(name)
        sha = hashlib.sha256(data).hexdigest()
        told.append({"sha": sha, "before": [], "renamed": False})
        (tmp_path / "reports" / f"{name}.json").write_text("{}")
        for folder in (tmp_path / "outbox", tmp_path / "archive"):
            entry = manifest.Entry(outbox.place(data, folder, name.encode(), key="k"), sha)
            manifest.append(folder, [entry], at=1.0)
    return tmp_path, told


def test_a_good_round_has_no_faults(left: tuple[Path, list[dict[str, Any]]]) -> None:
    assert faults(*left) == []


@pytest.mark.parametrize(
    ("folder", "name", "data", "said"),
    [
        ("outbox", "a.png", b"half", "1 final contents are not in the outbox"),
        ("archive", "a.png", b"half", "1 contents in the archive were never dropped whole"),
        ("outbox", "c.png", png("a.png"), "1 contents lie in the outbox more than once"),
        ("archive", ".manifest-1970-01-01.sha256", b"", "2 contents in the archive are not in its manifest"),
        ("inbox", "a.png", b"", "1 files are left in inbox"),
        ("outbox", ".backfire-k.part", b"", "1 temporary files are left"),
    ],
)
def test_each_broken_promise_is_a_fault(
    left: tuple[Path, list[dict[str, Any]]], folder: str, name: str, data: bytes, said: str
) -> None:
    base, told = left
    (base / folder / name).write_bytes(data)
    assert said in "; ".join(faults(base, told))
