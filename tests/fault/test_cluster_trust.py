"""Clusters that are not to be trusted, nodes that differ, deaths that are explained late, a move elsewhere.

The clusters are real ones on this machine.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.jobs import picture, trouble
from tests.support.sandbox import ROOT, wait_for
from tests.support.yard import Yard, archived, daemon_of, job, said, state

if find_spec("ray") is None:  # and not imported here: Ray reads its environment when it is loaded
    pytest.skip("needs the extra ray", allow_module_level=True)

pytestmark = pytest.mark.slow  # a cluster alone takes some thirty seconds of a processor


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    made = Yard(tmp_path)
    yield made
    made.close()


def test_a_cluster_that_lets_in_anybody_is_refused_and_nothing_is_sent_there(yard: Yard) -> None:
    nodes = yard.nodes({"RAY_AUTH_MODE": "disabled"}, num_cpus=1)
    home = yard.daemon(nodes)
    home.drop(picture(1), "p.png")
    wait_for(lambda: "lets in clients without a token" in trouble(home), because="it to be said")
    assert "RAY_AUTH_MODE=token" in trouble(home), "what to do"
    assert not said(home, "cluster_joined")
    assert state(home, "p.png") in {"settling", "ready"}, "nothing fails for it"
    told = home.backfire("cluster", "check")
    assert told.returncode
    assert "lets in clients without a token" in told.stdout + told.stderr


def test_the_check_names_the_node_with_another_version_and_other_weights(yard: Yard, tmp_path: Path) -> None:
    nodes = yard.nodes(num_cpus=0)
    for _ in range(2):
        nodes.add(num_cpus=1)
    other = another_installation(tmp_path / "other")
    nodes.add(num_cpus=1, env_vars={"PYTHONPATH": f"{other}:{ROOT}"}, resources={"odd": 1})
    home = daemon_of(tmp_path, nodes)
    home.module = "backfire.cli"
    told = home.backfire("cluster", "check", "--json")
    assert told.returncode, told.stdout + told.stderr
    checks = [one for one in json.loads(told.stdout) if one["subject"].startswith("node ")]
    (odd,) = [one for one in checks if one["remedy"]]
    assert "Backfire is 0.0.9, on most nodes " in odd["remedy"]
    assert "editor flux2-mini is " in odd["remedy"]
    assert "install the same everywhere" in odd["remedy"]
    assert len(checks) == 4


def another_installation(folder: Path) -> Path:
    """A copy of the package under another version, one of whose files of weights has other bytes."""
    package = shutil.copytree(
        ROOT / "daemon" / "backfire", folder / "backfire", ignore=shutil.ignore_patterns("__pycache__")
    )
    with (package / "__init__.py").open("a") as file:
        file.write('__version__ = "0.0.9"\n')
    weights = package / "inpaint" / "weights"
    code = (
        "import sys; from safetensors.numpy import load_file, save_file\n"
        "save_file(load_file(sys.argv[1]), sys.argv[1], {'made': 'elsewhere'})"
    )
    subprocess.run([sys.executable, "-c", code, weights / "flux2-mini.safetensors"], check=True)
    sums = subprocess.run(
        "sha256sum *.safetensors", shell=True, cwd=weights, stdout=subprocess.PIPE, check=True
    )
    (weights / "SHA256SUMS").write_bytes(sums.stdout)
    return folder


def test_a_death_that_ray_explains_late_is_the_picture_s_all_the_same(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a busy machine: what Ray says at first is only that the worker does not answer.
    monkeypatch.setenv("RAY_timeout_ms_task_wait_for_death_info", "0")
    nodes = yard.nodes(num_cpus=1)
    home = yard.daemon(nodes)
    home.drop(picture(1), "die.png")
    wait_for(lambda: state(home, "die.png") == "quarantined", because="it to be set aside")
    assert len(said(home, "worker_died")) == 3
    assert not said(home, "node_lost")


def test_a_reload_moves_the_daemon_to_another_cluster_and_gives_running_jobs_back(
    yard: Yard, tmp_path: Path
) -> None:
    (tmp_path / "second").mkdir()
    nodes = yard.nodes(num_cpus=1)
    others = yard.nodes(num_cpus=1, base=tmp_path / "second")
    home = yard.daemon(nodes)
    (tmp_path / "gate").touch()
    home.drop(picture(1), "gate.png")
    wait_for(lambda: state(home, "gate.png") == "running", because="it to be at work")
    daemon_of(tmp_path, others)  # writes the configuration
    nodes.close()
    home.processes[-1].send_signal(signal.SIGHUP)
    wait_for(lambda: said(home, "cluster_left"), because="the daemon to leave")
    archived(home, "gate.png", seconds=120)
    assert job(home, "gate.png")["attempts"] == 1
    assert [one["address"] for one in said(home, "cluster_joined")] == [nodes.address, others.address]


def test_a_reload_from_a_cluster_to_this_machine_is_refused_with_the_remedy(
    yard: Yard, tmp_path: Path
) -> None:
    nodes = yard.nodes(num_cpus=1)
    home = yard.daemon(nodes)
    home.configure(limits={"free_mb": 0})
    home.processes[-1].send_signal(signal.SIGHUP)
    wait_for(lambda: said(home, "configuration_refused"), because="the refusal")
    assert "restart it" in said(home, "configuration_refused")[0]["error"]
    home.drop(picture(1), "p.png")
    archived(home, "p.png")
