"""The unit files, judged by systemd's own tools."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[3] / "systemd"


def run(*command: str, cwd: Path) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]}")
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, naming a program that exists here: systemd warns of one that does not."""
    for path in (*UNITS.glob("*.service"), *UNITS.glob("*.timer")):
        (tmp_path / path.name).write_text(path.read_text().replace("/opt/backfire/bin/", "/bin/true "))
    return tmp_path


def test_units_are_valid(units: Path) -> None:
    names = sorted(f"./{path.name}" for path in units.iterdir())
    assert names == [
        "./backfire-audit.service", "./backfire-audit.timer", "./backfire-page.service",
        "./backfire-ray.service", "./backfire.service",
    ]  # fmt: skip
    assert run("systemd-analyze", "verify", *names, cwd=units) == "", "not even a warning"


@pytest.mark.parametrize("name", ["backfire.service", "backfire-page.service"])
def test_a_process_that_the_kernel_kills_for_its_memory_does_not_end_the_service(name: str) -> None:
    """By default systemd stops all of a service then, and what the daemon knows of the picture is lost."""
    assert "OOMPolicy=continue" in (UNITS / name).read_text().splitlines()


@pytest.mark.parametrize(
    ("unit", "drop_in", "most"),
    [
        ("backfire.service", None, 0.4),
        ("backfire.service", "gpu.conf", 0.6),
        ("backfire.service", "metrics.conf", 1.1),
        ("backfire.service", "webhook.conf", 1.1),
        ("backfire.service", "signing.conf", 0.4),
        ("backfire.service", "ray.conf", 1.1),
        ("backfire-ray.service", None, 2.0),
        ("backfire-page.service", None, 0.4),
        ("backfire-page.service", "page-tcp.conf", 1.1),
        ("backfire-audit.service", None, 0.4),
    ],
)
def test_exposure_is_what_the_documentation_says(
    units: Path, unit: str, drop_in: str | None, most: float
) -> None:
    if drop_in:
        (units / f"{unit}.d").mkdir()
        (units / f"{unit}.d" / drop_in).write_text((UNITS / drop_in).read_text())
    run("systemd-analyze", "verify", f"./{unit}", cwd=units)
    told = run("systemd-analyze", "security", "--offline=yes", f"./{unit}", cwd=units)
    found = re.search(r"exposure level for \S+: ([0-9.]+)", told)
    assert found
    assert float(found[1]) <= most


@pytest.mark.skipif(os.geteuid() != 0, reason="systemd-tmpfiles gives folders away: needs root")
def test_user_and_folders_are_made(tmp_path: Path) -> None:
    for kind in ("sysusers", "tmpfiles"):
        target = tmp_path / "usr" / "lib" / f"{kind}.d" / "backfire.conf"
        target.parent.mkdir(parents=True)
        target.write_text((UNITS / f"backfire.{kind}").read_text())
    (tmp_path / "var" / "lib").mkdir(parents=True)
    (tmp_path / "etc").mkdir()
    run("systemd-sysusers", f"--root={tmp_path}", cwd=tmp_path)
    run("systemd-tmpfiles", "--create", f"--root={tmp_path}", cwd=tmp_path)
    (line,) = (tmp_path / "etc" / "passwd").read_text().splitlines()
    name, _, uid, *_ = line.split(":")
    assert name == "backfire"
    for folder, mode in (("", 0o750), ("inbox", 0o2770), ("outbox", 0o2750)):
        status = (tmp_path / "var" / "lib" / "backfire" / folder).stat()
        assert (status.st_uid, status.st_mode & 0o7777) == (int(uid), mode)
    if shutil.which("getfacl"):
        told = run("getfacl", "-p", str(tmp_path / "var" / "lib" / "backfire" / "inbox"), cwd=tmp_path)
        assert "default:group::rwx" in told
