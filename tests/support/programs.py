"""Programs that are not ours, by which tests judge our files."""

from __future__ import annotations

import shutil
import subprocess

import pytest


def tool(name: str, version: str = "-version") -> str:
    """The path of a program that answers `version`; the test is skipped where there is none."""
    found = shutil.which(name)
    if found is None or subprocess.run([found, version], capture_output=True, check=False).returncode:
        pytest.skip(f"needs {name}, a reader that is not ours; apt install it")
    return found
