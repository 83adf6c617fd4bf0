"""The examples in deploy/ can be read, and ask for a token; no engine, cluster or cloud is needed."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from backfire import config

DEPLOY = Path(__file__).parents[2] / "deploy"
FILES = sorted(DEPLOY.glob("*.yaml"))
GUIDE = (DEPLOY.parent / "docs/guides/cluster.md").read_text()


def document(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / name).read_text()))


def starts(inside: Any) -> Iterator[list[str]]:
    """The words behind each `ray start` in a document."""
    if isinstance(inside, str):
        for command in re.findall(r"ray start ([^&|;\"]*)", inside):
            yield shlex.split(command)
    elif isinstance(inside, dict | list):
        for one in inside.values() if isinstance(inside, dict) else inside:
            yield from starts(one)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_section_that_an_example_shows_is_one_that_the_daemon_takes(file: Path, tmp_path: Path) -> None:
    (shown,) = re.findall(r"# +(cluster: \{.*\})$", file.read_text(), re.MULTILINE)
    section = yaml.safe_load(shown)["cluster"]
    settings = config.parse({"folders": {"inbox": "inbox"}, "cluster": section}, base=tmp_path)
    assert settings.cluster.address == section["address"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_an_example_asks_for_a_token_and_is_in_the_guide(file: Path) -> None:
    text = re.sub(r"#.*", "", file.read_text())
    assert re.search(r"RAY_AUTH_MODE[=:] ?token|mode: token", text)
    assert f"`{file.name}`" in GUIDE


@pytest.mark.parametrize("name", ["compose.yaml", "ray-up.yaml"])
def test_heads_have_no_dashboard_and_all_options_are_ray_s(name: str) -> None:
    scripts = pytest.importorskip("ray.scripts.scripts", reason="needs the extra ray")
    known = {option for one in scripts.start.params for option in (*one.opts, *one.secondary_opts)}
    found = [*starts(document(name))]
    assert len(found) == 2
    for words in found:
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert options <= known
        assert ("--include-dashboard=false" in words) == ("--head" in words)


def test_the_heads_have_no_workers() -> None:
    words = next(words for words in starts(document("compose.yaml")) if "--head" in words)
    assert {"--num-cpus=0", "--num-gpus=0"} <= {*words}
    head = document("kuberay.yaml")["spec"]["headGroupSpec"]["rayStartParams"]
    assert (head["num-cpus"], head["num-gpus"], head["include-dashboard"]) == ("0", "0", "false")
    launched = document("ray-up.yaml")
    assert launched["available_node_types"][launched["head_node_type"]]["resources"] == {"CPU": 0, "GPU": 0}


def test_the_launcher_s_file_is_one_that_ray_takes() -> None:
    launcher = pytest.importorskip("ray.autoscaler._private.util", reason="needs the extra ray")
    launcher.validate_config(launcher.prepare_config(document("ray-up.yaml")))
    schema = json.loads((Path(launcher.__file__).parents[1] / "ray-schema.json").read_text())
    launched = document("ray-up.yaml")
    assert {*launched} <= {*schema["properties"]}, "the schema allows anything else"
    workers = launched["available_node_types"]["gpu"]
    assert workers["max_workers"] == launched["max_workers"]
    mounted = [*launched["file_mounts"]]
    assert all(file.endswith("/.ray/auth_token") for file in mounted)


def test_compose_files_name_only_what_they_have() -> None:
    compose = document("compose.yaml")
    for service in compose["services"].values():
        assert {*service["secrets"]} <= {*compose["secrets"]}
        assert {*service["networks"]} <= {*compose["networks"]}
        assert {*service.get("depends_on", ())} <= {*compose["services"]}


def test_the_firewall_closes_every_port_that_ray_opens() -> None:
    """Those that the guide names, and those that `ray start --head` opens unasked."""
    (dropped,) = re.findall(r"tcp dport \{ (.*) \} drop", (DEPLOY / "firewall.nft").read_text())
    closed: set[int] = set()
    for part in dropped.split(", "):
        first, _, last = part.partition("-")
        closed |= {*range(int(first), int(last or first) + 1)}
    named = {int(port) for port in re.findall(r"port=(\d+)", GUIDE)}
    assert len(named) > 7
    assert named | {10001, 44217} <= closed


@pytest.mark.parametrize("name", ["kuberay.yaml", "ray-up.yaml"])
def test_a_daemon_that_ends_by_itself_is_started_again(name: str, tmp_path: Path) -> None:
    """The command that starts it, with a double that fails the first time."""
    if name == "ray-up.yaml":
        command = document(name)["head_start_ray_commands"][-1]
    else:
        (container,) = document(name)["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
        *shell, command = container["lifecycle"]["postStart"]["exec"]["command"]
        assert shell == ["sh", "-c"]
    for before, after in (("sleep 15", "sleep 0"), ("/proc/1/fd/2", "log"), ("/opt/backfire/bin/", "")):
        command = command.replace(before, after)
    double = tmp_path / "backfire"
    double.write_text('#!/bin/sh\necho "$@" >> started; [ "$(wc -l < started)" = 2 ]\n')
    double.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)}
    subprocess.run(["sh", "-c", f"{command} wait"], check=True, cwd=tmp_path, env=environment)
    assert (tmp_path / "started").read_text() == "run -c /etc/backfire/config.yaml\n" * 2
