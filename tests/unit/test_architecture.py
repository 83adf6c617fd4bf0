"""The floors of the house: imports point downward, and heavy or dangerous doors stay single."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.config import Settings  # noqa: F401  (the package must import)

PACKAGE = Path(__file__).parents[2] / "daemon"

FLOORS = [
    {"", "errors", "domain", "paths", "abreast", "life"},
    {"config", "log", "images", "store", "inbox", "outbox", "geometry", "perception", "models", "webhook"},
    {"manifest", "premis", "hooks", "history", "line", "systemd"},
    {"cuts"},
    {"probes", "trusted"},
    {"detectors", "editors", "methods"},
    {"finding", "overlay"},
    {"protect", "memory"},
    {"verify"},
    {"report"},
    {"pipeline"},
    {"worker"},
    {"spool"},
    {"ledger"},
    {"intake", "metrics"},
    {"operations", "originals", "twins"},
    {"publish"},
    {"dispatch", "premises"},
    {"service"},
    {"audit", "check", "demo"},
    {"bag"},
    {"cli"},
]
"""Top-level rooms by floor; within floor 2 the folders may use each other's protocols as listed."""

SIDEWAYS = {("methods", "editors")}
"""A method takes editors: it needs their protocol."""


def _modules() -> list[Path]:
    return [p for p in sorted(PACKAGE.rglob("*.py")) if "migrations" not in p.parts]


def _room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def _imports(path: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            # `from daemon import x` imports the room x.
            names += [f"daemon.{a.name}" if node.module == "daemon" else node.module for a in node.names]
    return names


def _own_room(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return (
        ""
        if relative.name == "__init__.py" and len(relative.parts) == 1
        else relative.parts[0].removesuffix(".py")
    )


def _floor(room: str) -> int:
    for level, rooms in enumerate(FLOORS):
        if room in rooms:
            return level
    raise AssertionError(
        f"{room} stands on no floor: add it to FLOORS and to the README's Architecture section"
    )


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downward(path: Path) -> None:
    own = _own_room(path)
    for name in _imports(path):
        if name != "daemon" and not name.startswith("daemon."):
            continue
        room = "" if name == "daemon.__version__" else _room(name)
        if room == own:
            continue
        assert _floor(room) < _floor(own) or (own, room) in SIDEWAYS, f"{own} imports {room}"


DOORS = {
    "sqlalchemy": {"store.py"},
    "yaml": {"config.py"},
    "watchdog": {"inbox/hints.py"},
    "PIL": {
        *(f"images/{one}.py" for one in ("readers", "colour", "gathering", "jpegs", "writers")),
        "report.py",
        "overlay.py",
        "demo.py",
    },
    "imagecodecs": {"images/readers.py", "images/tiff.py", "images/writers.py"},
    "tifffile": {"images/tiff.py"},
    "pillow_heif": {"images/heif.py"},
    "diffusers": {"editors/diffusion.py", "editors/encoders.py", "editors/ldm.py"},
    "prometheus_client": {"metrics.py"},
    "bagit": {"bag.py"},
}


@pytest.mark.parametrize("library", DOORS)
def test_single_doors(library: str) -> None:
    users = {
        str(path.relative_to(PACKAGE))
        for path in _modules()
        if any(name.split(".")[0] == library for name in _imports(path))
    }
    assert users <= DOORS[library]


def test_the_daemon_process_never_imports_torch() -> None:
    """torch lives in the worker's child: half a gigabyte that a waiting daemon need not hold."""
    code = "import sys, daemon.cli; sys.exit(bool({'torch', 'onnxruntime'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_room_is_in_the_readme() -> None:
    text = (PACKAGE.parent / "README.md").read_text()
    missing = {room for rooms in FLOORS for room in rooms if room and f"`{room}" not in text}
    assert not missing
