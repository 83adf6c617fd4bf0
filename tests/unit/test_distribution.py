"""What is published as sdist and wheel holds what the package needs, and is the same each time."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
NOT_IN_THE_WHEEL = {"backfire/service/store/migrations/script.py.mako"}
"""The template from which developers make migrations."""


def package() -> set[str]:
    """The files of the package below the source root."""
    source = ROOT / "daemon"
    files = {path.relative_to(source) for path in (source / "backfire").rglob("*") if path.is_file()}
    return {str(file) for file in files if "__pycache__" not in file.parts}


def test_the_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", "77")
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(
        ROOT / "daemon" / "backfire",
        tmp_path / "daemon" / "backfire",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    script = "import setuptools.build_meta as backend; backend.build_wheel('out')"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True)
    [wheel] = (tmp_path / "out").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == package() - NOT_IN_THE_WHEEL


def test_the_sdist_holds_every_file_that_is_committed() -> None:
    """But those of a checkout: the tests, which packagers run, too, read nearly all of the others."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("needs a checkout")
    of_a_checkout = {".ci/run", ".gitignore", ".pre-commit-config.yaml"}
    unasked = {"LICENSE", "MANIFEST.in", "README.md", "pyproject.toml"} | {
        f"daemon/{name}" for name in package() - NOT_IN_THE_WHEEL
    }
    lines = [line.split() for line in (ROOT / "MANIFEST.in").read_text().splitlines() if line[0] != "#"]
    assert {kind for kind, *_ in lines} == {"include", "graft"}
    included = {name for kind, *names in lines if kind == "include" for name in names}
    grafted = tuple(f"{folder}/" for kind, *folders in lines if kind == "graft" for folder in folders)
    files = {*listed.stdout.splitlines()}
    missing = {file for file in files - of_a_checkout - unasked - included if not file.startswith(grafted)}
    assert missing == set()
    assert included <= files


def test_the_version_is_the_same_wherever_it_is_written() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == VERSION
    notes = subprocess.run(
        [sys.executable, ROOT / "packaging/notes.py"], check=True, capture_output=True, text=True
    ).stdout
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert notes.strip() in changelog.partition(f"\n## {VERSION}")[2]
    assert "**New**" in notes
    assert not re.search("^## ", notes, re.MULTILINE)


def test_notes_of_a_version_without_a_section_are_an_error_that_says_what_to_write() -> None:
    refused = subprocess.run(
        [sys.executable, ROOT / "packaging/notes.py", "v99.0"], capture_output=True, text=True
    )
    assert refused.returncode == 1
    assert "expected one for 99.0; write what users can do now" in refused.stderr


def test_a_component_without_a_licence_is_named_and_the_others_are_listed(tmp_path: Path) -> None:
    listed = tmp_path / "list.json"
    components: list[dict[str, object]] = [
        {"name": "b", "version": "2", "licenses": [{"expression": "MIT OR Apache-2.0"}]},
        {"name": "a", "licenses": [{"license": {"name": "License :: OSI Approved :: BSD License"}}]},
        {"name": "protobuf", "version": "7"},
    ]
    command = [sys.executable, str(ROOT / "packaging/licences.py"), str(listed)]
    listed.write_text(json.dumps({"components": components}))
    table = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[2:]
    assert table == [
        "| a |  | BSD License |",
        "| b | 2 | MIT OR Apache-2.0 |",
        "| protobuf | 7 | BSD-3-Clause |",
    ]
    listed.write_text(json.dumps({"components": [*components, {"name": "secretive"}]}))
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "no licence is given for secretive, expected one" in refused.stderr


def test_an_upgrade_of_the_debian_package_stops_what_runs_and_starts_that_again(tmp_path: Path) -> None:
    """With the package's own scripts, in a system of doubles in a folder."""
    for folder in ("bin", "run/systemd/system", "opt/backfire/bin"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "running").write_text("backfire.service\n")
    double = f'#!/bin/sh\necho "$(basename "$0") $*" >> {tmp_path}/done\n'
    for name in ("bin/systemd-sysusers", "bin/systemd-tmpfiles", "opt/backfire/bin/python", "bin/systemctl"):
        (tmp_path / name).write_text(double)
        (tmp_path / name).chmod(0o755)
    with (tmp_path / "bin/systemctl").open("a") as systemctl:
        systemctl.write(f'[ "$1" != is-active ] || {{ grep -qx "$2" {tmp_path}/running && echo active; }}\n')

    def said_by(script: str, *arguments: str) -> list[str]:
        text = (ROOT / "packaging/deb" / script).read_text()
        text = text.replace("/opt/", f"{tmp_path}/opt/").replace("/run/", f"{tmp_path}/run/")
        (tmp_path / "done").write_text("")
        environment = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin"}
        subprocess.run(["sh", "-c", text, script, *arguments], check=True, env=environment)
        said = (tmp_path / "done").read_text().splitlines()
        return [line.removeprefix("systemctl ") for line in said if " is-active " not in line]

    start = "start --no-block backfire.service"
    assert said_by("prerm", "upgrade", "0.2") == ["stop backfire.service"], "the page does not run"
    *before, last = said_by("postinst", "configure", "0.1")
    assert last == start, "after everything is compiled"
    assert any("compileall" in line for line in before)
    assert start not in said_by("postinst", "configure", "0.1"), "only what ran just now"
    said_by("prerm", "upgrade", "0.2")
    assert said_by("postinst", "abort-upgrade", "0.2") == [start]


@pytest.mark.parametrize("left", [True, False])
def test_a_purge_of_the_debian_package_leaves_its_user_to_whom_pictures_elsewhere_may_belong(
    tmp_path: Path, left: bool
) -> None:
    library, tools, called = tmp_path / "library", tmp_path / "bin", tmp_path / "called"
    library.mkdir()
    tools.mkdir()
    (library / "state").mkdir()
    if left:
        (library / "outbox").mkdir()
        (library / "outbox" / "a.png").touch()
    for name in ("systemctl", "deluser", "delgroup", "userdel", "groupdel", "getent"):
        (tools / name).write_text(f'#!/bin/sh\necho {name} >> "{called}"\n')
        (tools / name).chmod(0o755)
    script = (ROOT / "packaging/deb/postrm").read_text().replace("/var/lib/backfire", str(library))
    command, environment = ["sh", "-c", script, "postrm", "purge"], {"PATH": f"{tools}:/usr/bin:/bin"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert library.exists() == left
    assert (library / "outbox" / "a.png").exists() == left
    assert set(called.read_text().split()) <= {"systemctl", "getent"}
    assert "the user and group backfire stay" in done.stderr
    assert ("files were left" in done.stderr) == left


@pytest.mark.slow
def test_a_commit_gives_the_same_files_each_time(tmp_path: Path) -> None:
    pytest.importorskip("build")
    built: list[dict[str, bytes]] = []
    for folder in (tmp_path / "once", tmp_path / "again"):
        command = [sys.executable, str(ROOT / "packaging/dist.py"), str(folder), "--no-isolation"]
        subprocess.run(command, check=True, capture_output=True)
        built.append({file.name: file.read_bytes() for file in folder.iterdir()})
    assert sorted(built[0]) == [f"backfire-{VERSION}-py3-none-any.whl", f"backfire-{VERSION}.tar.gz"]
    assert built[0] == built[1]
    with tarfile.open(tmp_path / "once" / f"backfire-{VERSION}.tar.gz") as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
        info = sdist.extractfile(f"backfire-{VERSION}/PKG-INFO")
        assert info is not None
        readme = Parser().parsestr(info.read().decode()).get_payload()
    assert {"daemon/backfire/api.py", "systemd/backfire.service", "tests/conftest.py"} <= names
    targets = re.findall(r"\]\(([^)\s]+)\)", str(readme))
    assert len(targets) > 20
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []
