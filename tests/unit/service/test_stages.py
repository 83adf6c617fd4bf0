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
    {
        "worker.actors",
        "worker.answers",
        "worker.checkers",
        "worker.child",
        "worker.cluster",
        "worker.driver",
        "worker.link",
        "worker.local",
        "worker.node",
        "worker.orders",
        "worker.pipe",
        "worker.returned",
        "worker.seat",
        "worker.slots",
        "worker.survey",
    },
    {"retry_policy"},
    {"publisher", "review", "held", "reports", "report_files", "set_aside", "originals"},
]
"""In the order in which a picture passes them."""
SHARED = {
    *("loop", "health", "heartbeat", "metrics", "endpoint", "preflight", "systemd"),  # the daemon as a whole
    *("store", "jobs", "job_settings", "queue", "spool", "worker.protocol", "pool", "shared_steps"),
    *("inbox", "first_bytes", "mounts", "unused"),
    "hooks",
}
"""Modules and packages that are no stage: what runs the stages, and what several of them use."""


def _modules() -> list[str]:
    """The modules of the service below it, of a package that is shared its name once for each."""
    paths = [path.relative_to(SERVICE).with_suffix("") for path in SERVICE.rglob("*.py")]
    names = [".".join(path.parts) for path in paths if path.name != "__init__"]
    return [name.partition(".")[0] if name.partition(".")[0] in SHARED else name for name in names]


def test_every_module_is_in_one_stage_or_shared() -> None:
    told = [*SHARED, *(module for stage in STAGES for module in stage)]
    assert sorted(told) == sorted(set(_modules()))


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
    imported = {module: _imported(module) for module in STAGES[number]}
    assert any(imported.values()), "the test finds imports at all"
    assert not [module for module, names in imported.items() if names & earlier]
