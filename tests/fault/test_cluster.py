"""Workers on a Ray cluster: what becomes of pictures when nodes, workers, driver or the cluster are lost.

The clusters are real ones on this machine.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.nodes import STORE, Nodes
from tests.support.jobs import kill, picture, running, trouble
from tests.support.sandbox import Sandbox, environment, wait_for
from tests.support.yard import Yard, archived, daemon_of, drivers, free_port, job, said, state

if find_spec("ray") is None:  # and not imported here: Ray reads its environment when it is loaded
    pytest.skip("needs the extra ray", allow_module_level=True)

pytestmark = pytest.mark.slow  # a cluster alone takes some thirty seconds of a processor

# One small cluster and one daemon for all of these


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    base = tmp_path_factory.mktemp("cluster")
    nodes = Nodes(base, num_cpus=1)
    sandbox = daemon_of(base, nodes, deadline_s=5)
    sandbox.start()
    yield sandbox
    sandbox.close()
    nodes.close()


def test_pictures_are_worked_on_a_node_and_published_once(small: Sandbox) -> None:
    originals = {f"plain-{number}.png": picture(number) for number in range(6)}
    for name, data in originals.items():
        small.drop(data, name)
    archived(small, *originals)
    assert {name: (small.outbox / name).read_bytes() for name in originals} == originals
    assert {job(small, name)["attempts"] for name in originals} == {1}
    assert len(said(small, "worker_joined")) == 1


def test_a_poisoned_picture_is_set_aside_and_the_others_go_on(small: Sandbox) -> None:
    small.drop(picture(20), "die.png")
    small.drop(picture(21), "beside.png")
    archived(small, "beside.png")
    wait_for(lambda: state(small, "die.png") == "quarantined", because="it to be set aside")
    assert (job(small, "die.png")["code"], job(small, "die.png")["attempts"]) == ("worker_died", 3)
    assert job(small, "beside.png")["attempts"] == 1


def test_what_raises_on_a_node_blames_the_picture(small: Sandbox) -> None:
    small.drop(picture(30), "raise.png")
    wait_for(lambda: state(small, "raise.png") == "failed", because="it to fail")
    assert "a bug on the node" in job(small, "raise.png")["message"]


def test_a_worker_is_killed_at_its_deadline(small: Sandbox) -> None:
    small.drop(picture(40), "hang.png")
    wait_for(lambda: state(small, "hang.png") == "quarantined", because="it to be set aside")
    assert "deadline_s" in json.dumps(said(small, "worker_died"))


def test_a_killed_driver_costs_no_attempt(small: Sandbox) -> None:
    (small.base / "gate").touch()
    small.drop(picture(50), "gate.png")
    wait_for(lambda: state(small, "gate.png") == "running", because="it to be at work")
    kill(drivers(small)[0])
    wait_for(lambda: said(small, "cluster_lost"), because="the daemon to miss it")
    (small.base / "gate").unlink()
    archived(small, "gate.png")
    assert job(small, "gate.png")["attempts"] == 1


def test_a_daemon_that_is_killed_or_drained_leaves_no_picture_behind(small: Sandbox) -> None:
    for end in (signal.SIGKILL, signal.SIGTERM):
        (small.base / "gate").touch()
        name = f"gate-{int(end)}.png"
        small.drop(picture(60 + end), name)
        wait_for(lambda name=name: state(small, name) == "running", because="it to be at work")  # type: ignore[misc]
        driver = drivers(small)
        small.processes[-1].send_signal(end)
        small.processes[-1].wait(60)
        wait_for(lambda gone=driver: not any(map(running, gone)), because="its driver to end")  # type: ignore[misc]
        (small.base / "gate").unlink()
        small.start()
        archived(small, name)
        assert job(small, name)["attempts"] == 1, "on another machine it cannot be why the daemon ended"


def test_a_wrong_token_is_said_and_nothing_fails(small: Sandbox, tmp_path: Path) -> None:
    token = tmp_path / "auth_token"
    token.write_text("f" * 64)
    token.chmod(0o600)
    address = said(small, "cluster_joined")[0]["address"]
    code = (
        "from backfire.config.cluster import Cluster; from backfire.service.worker import driver\n"
        f"driver.join(Cluster(address={address!r}, token_file={str(token)!r}))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False
    )
    assert "refuses the token" in told.stderr.splitlines()[-1]
    token.chmod(0o644)
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False
    )
    assert "chmod 600" in told.stderr.splitlines()[-1]


# Clusters of several nodes


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    made = Yard(tmp_path)
    yield made
    made.close()


def test_a_node_lost_before_in_and_after_work_costs_no_attempt(yard: Yard, tmp_path: Path) -> None:
    nodes = yard.nodes(num_cpus=0)
    first, second = nodes.add(num_cpus=1), nodes.add(num_cpus=1)
    home = yard.daemon(nodes, min_actors=2)
    wait_for(lambda: len(said(home, "worker_joined")) == 2, because="both nodes to have a worker")

    nodes.kill(first)  # before: its worker is idle, and nobody has noticed
    before = [f"before-{number}.png" for number in range(4)]
    for number, name in enumerate(before):
        home.drop(picture(10 + number), name)
    archived(home, *before, seconds=120)

    third = nodes.add(num_cpus=1)
    (tmp_path / "gate").touch()
    during = ["gate-0.png", "gate-1.png"]
    for number, name in enumerate(during):
        home.drop(picture(20 + number), name)
    wait_for(lambda: [state(home, name) for name in during] == ["running"] * 2, because="both to be at work")
    nodes.kill(second)  # in the midst of work
    wait_for(lambda: len(said(home, "node_lost")) >= 1, because="the loss to be noticed")
    (tmp_path / "gate").unlink()
    archived(home, *during, seconds=120)

    nodes.add(num_cpus=1)
    home.drop(picture(30), "slow-after.png")
    archived(home, "slow-after.png", seconds=120)
    nodes.kill(third)  # after: what it returned stays published
    home.drop(picture(31), "slow-last.png")
    archived(home, "slow-last.png", seconds=120)

    names = [*before, *during, "slow-after.png", "slow-last.png"]
    assert {job(home, name)["attempts"] for name in names} == {1}
    assert home.files("outbox") == {*names}


def test_a_node_lost_with_many_idle_workers_costs_one_picture_no_attempt(yard: Yard) -> None:
    nodes = yard.nodes(num_cpus=0)
    first = nodes.add(num_cpus=8)
    home = yard.daemon(nodes, min_actors=8)
    wait_for(lambda: len(said(home, "worker_joined")) == 8, because="all workers to be there")
    nodes.kill(first)
    home.drop(picture(1), "p.png")
    wait_for(lambda: len(said(home, "worker_left")) == 8, because="all workers to be gone")
    nodes.add(num_cpus=1)
    archived(home, "p.png", seconds=120)
    assert job(home, "p.png")["attempts"] == 1
    assert len(said(home, "node_lost")) <= 1


def test_a_poisoned_picture_ends_workers_on_three_nodes_and_no_more(yard: Yard, tmp_path: Path) -> None:
    nodes = yard.nodes(num_cpus=0)
    for _ in range(3):
        nodes.add(num_cpus=1)
    home = yard.daemon(nodes)
    names = [f"slow-{number}.png" for number in range(9)]
    home.drop(picture(50), "die.png")
    for number, name in enumerate(names):
        home.drop(picture(number), name)
    archived(home, *names, seconds=120)
    wait_for(lambda: state(home, "die.png") == "quarantined", because="it to be set aside")
    assert len(said(home, "worker_died")) == 3
    assert {job(home, name)["attempts"] for name in names} == {1}


def test_a_picture_larger_than_the_object_store_passes_through_the_disk(yard: Yard, tmp_path: Path) -> None:
    nodes = yard.nodes(num_cpus=1)
    home = yard.daemon(nodes)
    data = padded(picture(1), STORE + (20 << 20))
    home.drop(data, "large.png")
    archived(home, "large.png", seconds=180)
    assert (home.outbox / "large.png").read_bytes() == data
    assert job(home, "large.png")["attempts"] == 1


def padded(png: bytes, size: int) -> bytes:
    """A PNG with a private chunk of so many bytes behind its header."""
    content = b"baCk" + bytes(size)
    chunk = size.to_bytes(4, "big") + content + zlib.crc32(content).to_bytes(4, "big")
    return png[:33] + chunk + png[33:]


def test_a_node_of_another_version_and_want_of_nodes_are_said(yard: Yard, tmp_path: Path) -> None:
    (tmp_path / "version").write_text("0.0.9")
    nodes = yard.nodes(num_cpus=1)
    home = yard.daemon(nodes, actors=3)
    names = [f"{number}.png" for number in range(3)]
    for number, name in enumerate(names):
        home.drop(picture(number), name)
    wait_for(lambda: "the daemon 0.0.9" in str(said(home, "cluster_trouble")), because="versions to be said")
    assert {state(home, name) for name in names} <= {"settling", "ready"}, "nothing fails for it"
    (tmp_path / "version").unlink()
    archived(home, *names, seconds=120)
    (tmp_path / "gate").touch()
    home.drop(picture(9), "gate.png")
    for number in range(3):
        home.drop(picture(20 + number), f"gate-{number}.png")
    wait_for(lambda: "workers wait for a node" in trouble(home), because="want of nodes to be said")
    (tmp_path / "gate").unlink()
    archived(home, "gate.png", seconds=120)


def test_a_cluster_that_is_gone_for_a_minute_is_waited_for(yard: Yard, tmp_path: Path) -> None:
    port = free_port()
    nodes = yard.nodes(num_cpus=1, gcs_server_port=port)
    home = yard.daemon(nodes)
    home.drop(picture(1), "before.png")
    archived(home, "before.png", seconds=120)
    (tmp_path / "gate").touch()
    home.drop(picture(2), "gate.png")
    wait_for(lambda: state(home, "gate.png") == "running", because="it to be at work")
    nodes.close()
    home.drop(picture(3), "meanwhile.png")
    wait_for(lambda: said(home, "cluster_lost"), because="the loss to be noticed")
    until = time.monotonic() + 60
    wait_for(lambda: time.monotonic() > until, because="a minute to pass")
    assert "does not answer" in trouble(home)
    assert {state(home, "gate.png"), state(home, "meanwhile.png")} == {"ready"}
    (tmp_path / "gate").unlink()
    again = yard.nodes(num_cpus=1, gcs_server_port=port)
    assert again.address == nodes.address
    archived(home, "gate.png", "meanwhile.png", seconds=180)
    assert {job(home, name)["attempts"] for name in ("gate.png", "meanwhile.png")} == {1}


def test_two_daemons_share_a_cluster(yard: Yard, tmp_path: Path) -> None:
    nodes = yard.nodes(num_cpus=2)
    homes = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        homes.append(yard.daemon(nodes, tmp_path / name, actors=1))
    names = [f"{number}.png" for number in range(6)]
    for seed, home in enumerate(homes):
        for number, name in enumerate(names):
            home.drop(picture(100 * seed + number), name)
    for seed, home in enumerate(homes):
        archived(home, *names, seconds=120)
        expected = {name: picture(100 * seed + number) for number, name in enumerate(names)}
        assert {name: (home.outbox / name).read_bytes() for name in names} == expected
