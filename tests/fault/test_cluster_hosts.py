"""The guide from one machine to three, on three hosts: namespaces of this one, with addresses of their own.

The commands are those that docs/guides/cluster.md prints, the firewall is deploy/firewall.nft.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from benchmarks.nodes import TOKEN
from tests.support.jobs import picture
from tests.support.sandbox import BRISK, ROOT, environment, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray"),
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("nft") or not shutil.which("ip"),
        reason="needs root, nft and ip: it makes namespaces with a firewall each",
    ),
]

GUIDE = (ROOT / "docs" / "guides" / "cluster.md").read_text()


class Host:
    """Namespaces of network, mounts and processes, joined to a switch that is one, too."""

    def __init__(self, number: int, home: Path) -> None:
        self.address, self.home = f"10.0.0.{number}", home
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
             "sh", "-c", "mkdir -p /tmp/ray && mount -t tmpfs ray /tmp/ray && mount -t tmpfs shm /dev/shm"
             " && ip link set lo up && echo ready && exec sleep infinity"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n"
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text().split()
        self.pid = int(children[0])

    def run(self, command: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        told = subprocess.run(
            self.entered("sh", "-c", command), capture_output=True, text=True, timeout=300, check=False,
            env=self.environment,
        )  # fmt: skip
        assert not check or not told.returncode, told.stdout + told.stderr
        return told

    def entered(self, *command: str) -> list[str]:
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", "--pid", *command]

    @property
    def environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**environment(), "HOME": str(self.home), "PATH": path}

    def close(self) -> None:
        self._holder.kill()
        self._holder.communicate()


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[list[Host]]:
    """Three machines and a stranger in one network."""
    made: list[Host] = []
    try:
        for number in (1, 2, 3, 99):
            home = tmp_path / f"home-{number}"
            (home / ".ray").mkdir(parents=True)
            made.append(Host(number, home))
        switch, *others = made
        switch.run("ip link add switch type bridge && ip link set switch up")
        switch.run(f"ip addr add {switch.address}/24 dev switch")
        for host in others:
            switch.run(f"ip link add up{host.pid} type veth peer name eth0")
            switch.run(f"ip link set up{host.pid} master switch up")
            # From outside the process namespaces, where the other host's process can be named.
            link = f"ip link set eth0 netns {host.pid}"
            subprocess.run(["nsenter", f"--target={switch.pid}", "--net", *link.split()], check=True)
            host.run(f"ip addr add {host.address}/24 dev eth0 && ip link set eth0 up")
        yield made
    finally:
        for host in made:
            host.close()


def printed(start: str) -> str:
    """The block of commands in the guide that holds a line beginning so."""
    blocks = re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)
    (found,) = [block for block in blocks if re.search(f"^{re.escape(start)}", block, re.MULTILINE)]
    return str(found)


def test_the_guide_s_commands_make_a_cluster_that_only_its_machines_reach(
    hosts: list[Host], tmp_path: Path
) -> None:
    head, second, third, stranger = hosts
    for host in (head, second, third):
        (host.home / ".ray" / "auth_token").write_text(TOKEN)
        (host.home / ".ray" / "auth_token").chmod(0o600)
        host.run(f"nft -f {ROOT / 'deploy' / 'firewall.nft'}")
    start = printed("ray start --head")
    settings, head_command = start.split("ray start --head")
    head.run(settings + "ray start --head" + head_command)
    for host in (second, third):
        command = printed("ray start --address").replace("10.0.0.2", host.address)
        host.run(settings + command.replace("$PORTS", "$PORTS --num-cpus=1"))

    document = {
        "folders": {"inbox": "inbox"},
        "watch": BRISK,
        "limits": {"free_mb": 0},
        "regions": {"detectors": ["sidecar"]},
        "cluster": {"address": "10.0.0.1:6379", "num_gpus": 0},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(document))
    (tmp_path / "inbox").mkdir()
    told = head.run(f"cd {tmp_path} && backfire cluster check")
    print(told.stdout)
    assert told.stdout.count("ok  node 10.0.0.") == 3
    assert "reachable on all interfaces" in told.stdout

    reach = "import socket; socket.create_connection(('10.0.0.1', 6379), 3)"
    assert not second.run(f'python -c "{reach}"', check=False).returncode
    assert "TimeoutError" in stranger.run(f'python -c "{reach}"', check=False).stderr

    originals = {f"{number}.png": picture(number) for number in range(4)}
    for name, data in originals.items():
        (tmp_path / "inbox" / name).write_bytes(data)
    with (tmp_path / "log").open("w") as log:
        daemon = subprocess.Popen(
            head.entered("sh", "-c", f"cd {tmp_path} && exec python -m benchmarks.nodes run"),
            stdout=log, stderr=log, env=head.environment,
        )  # fmt: skip
    outbox = tmp_path / "outbox"
    wait_for(lambda: all((outbox / name).exists() for name in originals), because=str(tmp_path / "log"))
    assert {name: (outbox / name).read_bytes() for name in originals} == originals
    daemon.kill()
    daemon.wait()
