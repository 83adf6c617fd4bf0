"""Fixtures that tests of several packages use."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.sandbox import SHARED, Sandbox

# Before torch is imported, here and in child processes: as many tests run at once as there are cores, and
# threads beyond that only wait for each other. One thread also adds up in the same order every time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("KMP_BLOCKTIME", "0")
# Hundreds of child processes would each compile the package anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

LONGEST = (
    "e2e/test_effect.py",
    "browser/test_page.py",
    "unit/inpaint/test_flow.py",
    "fault/test_review.py",
    "e2e/test_daemon.py",
    "fault/test_arrivals.py",
    "contract/test_editors.py",
    "fault/test_processes.py",
    "unit/inpaint/test_registry.py",
    "fault/test_storage.py",
    "contract/test_methods.py",
    "unit/web/test_page.py",
    "unit/evaluate/test_replay.py",
    "fault/test_content.py",
)
"""Files that take longest. They come first, so that no core is left with one at the end, and those that
compute take turns with those that wait, so that both run at once."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = Path(__file__).parent
    place = {tests / name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


def pytest_collection_finish() -> None:
    """What was imported stays: collections in hundreds of tests need not look through it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"needs the shared data in {SHARED}")
    return SHARED


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    box = Sandbox(tmp_path)
    box.configure()
    yield box
    box.close()
