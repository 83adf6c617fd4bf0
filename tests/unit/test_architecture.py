"""Packages import only from those below them, and heavy or dangerous libraries by few modules."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "daemon"
PACKAGE = SOURCE / "backfire"

PACKAGES = [
    "types", "errors", "advice", "registry", "log", "config", "files", "imaging", "provenance", "weights",
    "detectors", "inpaint", "attack_paths", "perturb", "evaluate", "pipeline", "api", "service", "admin",
    "web", "cli",
]  # fmt: skip
"""In the order of imports: a package imports only from those before it."""


def _modules() -> list[Path]:
    return [p for p in sorted(PACKAGE.rglob("*.py")) if "migrations" not in p.parts]


@cache
def _imports(path: Path) -> Sequence[str]:
    """Dotted names of what a module imports; of `from a import b` it is `a.b`."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def _package(path: Path) -> str:
    """The package of a module, or the module itself where it lies in none; empty for the root."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py").removesuffix("__init__")


def test_every_package_has_its_place() -> None:
    assert {_package(path) for path in _modules()} - {""} == set(PACKAGES)


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downward(path: Path) -> None:
    own = _package(path)
    below = PACKAGES[: PACKAGES.index(own) + 1] if own else ["api"]
    for name in _imports(path):
        root, _, rest = name.partition(".")
        used = rest.partition(".")[0]
        if root == "backfire" and used != "__version__":
            assert used in below, f"{own or 'the root'} imports {name}"


DOORS = {
    "sqlalchemy": {
        f"service/store/{one}.py" for one in ("database", "reader", "schema", "statements", "store")
    },
    "sqlite3": {f"service/store/{one}.py" for one in ("database", "listing", "messages", "statements")},
    "alembic": {"service/store/schema.py"},
    "yaml": {"config/load.py", "web/config_text.py"},
    "watchdog": {"files/inbox/hints.py"},
    "PIL": {
        *(
            f"imaging/{one}.py"
            for one in (
                "readers",
                "colour",
                "contact_sheet",
                "drawing",
                "gathering",
                "jpegs",
                "lettering",
                "scaling",
                "writers",
            )
        ),
        "evaluate/sheet.py",
        "admin/demo.py",
        "web/paint.py",
    },
    "imagecodecs": {"imaging/readers.py", "imaging/tiff.py", "imaging/writers.py"},
    "tifffile": {"imaging/tiff.py"},
    "pillow_heif": {"imaging/heif.py"},
    "diffusers": {"inpaint/pipelines.py", "inpaint/ldm.py"},
    "prometheus_client": {"service/metrics.py"},
    "jinja2": {"web/rendering.py"},
    "starlette": {
        "service/endpoint.py",
        "web/application.py",
        "web/documents.py",
        "web/guard.py",
        "web/live.py",
        "web/parameters.py",
        "web/rendering.py",
    },
    "uvicorn": {"service/endpoint.py", "web/server.py"},
    "bagit": {"admin/bag.py"},
    "c2pa": {"provenance/signing.py"},
    "ray": {f"service/worker/{one}.py" for one in ("actors", "answers", "node", "survey")},
    "cryptography": {"provenance/credentials.py"},
    "transformers": {"inpaint/pipelines.py"},
    "huggingface_hub": {"inpaint/pipelines.py", "weights/__init__.py"},
    "onnxruntime": {"detectors/networks.py"},  # which turns its telemetry off before the first import
    "pickle": {"inpaint/mat/__init__.py"},
    "xml": {"detectors/metadata.py", "detectors/rdf.py", "imaging/xmp.py"},
    "defusedxml": {"detectors/rdf.py"},
    "subprocess": {
        "detectors/command.py",
        "provenance/command.py",
        "service/hooks/courier.py",
        "service/worker/driver.py",
        "web/actions.py",
        "web/painter.py",
        "web/today.py",
    },
}
"""The modules that import a heavy or dangerous library; not torch, which half of the package needs."""


@pytest.mark.parametrize("library", DOORS)
def test_a_heavy_or_dangerous_library_is_imported_by_its_modules_alone(library: str) -> None:
    users = {
        str(path.relative_to(PACKAGE))
        for path in _modules()
        if any(name.split(".")[0] == library for name in _imports(path))
    }
    assert users == DOORS[library]


def test_the_daemon_process_never_imports_torch() -> None:
    """Only workers need torch, which takes half a gigabyte of memory."""
    code = "import sys, backfire.cli.commands; sys.exit(bool({'torch', 'onnxruntime'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=SOURCE, check=False).returncode == 0


def test_the_page_loads_neither_configuration_nor_decoders() -> None:
    """They would double the memory of a process that only reads the database and fills templates."""
    heavy = {"pydantic", "sqlalchemy", "numpy", "PIL", "torch", "yaml"}
    code = f"import sys, backfire.web.server; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=SOURCE, check=False).returncode == 0
