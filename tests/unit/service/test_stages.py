"""A picture passes the stages of the service in one direction: none imports from an earlier one."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import backfire.service

SERVICE = Path(backfire.service.__file__).parent
STAGES = [
    {"intake"},
    {"dispatcher", "deduplicate"},
    {"worker.local", "worker.child", "worker.cluster"},
    {"retry_policy"},
    {"publisher", "reports", "set_aside", "originals"},
]
"""In the order in which a picture passes them. Modules that they share are not among them, such as jobs."""


def _imported(module: str) -> set[str]:
    """The modules of the service that a module imports from, as dotted names below it."""
    tree = ast.parse((SERVICE / (module.replace(".", "/") + ".py")).read_text())
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("backfire.service"):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name.removeprefix("backfire.service.") for name in names}


@pytest.mark.parametrize("number", range(1, len(STAGES)))
def test_a_later_stage_imports_nothing_from_an_earlier_one(number: int) -> None:
    earlier = set().union(*STAGES[:number])
    for module in STAGES[number]:
        assert _imported(module), "the test finds imports at all"
        assert not _imported(module) & earlier, module
