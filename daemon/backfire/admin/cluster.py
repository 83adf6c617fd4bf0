"""`backfire cluster check`: whether all nodes of the cluster have the same versions and the same weights."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from backfire.admin.probes import Check
from backfire.config import Settings
from backfire.errors import ConfigError
from backfire.service import preflight
from backfire.service.worker import driver, orders

if TYPE_CHECKING:
    from backfire.service.worker.survey import Node

RAYS = {"raylet", "gcs_server"}
"""The programs with which Ray listens."""


def reachable(settings: Settings) -> Iterator[Check]:
    """Whether the cluster's head answers, and only with the token; and who reaches Ray on this machine."""
    subject = f"cluster {settings.cluster.address}"
    try:
        preflight.require_cluster(settings)
        driver.join(settings.cluster)
    except (ConfigError, OSError) as error:
        yield Check(subject, "not usable", str(error))
    else:
        yield Check(subject, "answers, and asks for the token")
    yield binding()


def check(settings: Settings) -> Iterator[Check]:
    """Ask all nodes, and compare them.

    Raises:
        ConfigError: no cluster is configured, or it cannot be used.
    """
    if settings.cluster.address is None:
        raise ConfigError("cluster.address: is not set; pictures are worked on this machine")
    preflight.require_cluster(settings)
    try:
        driver.join(settings.cluster)
    except (ConfigError, OSError) as error:
        raise ConfigError(f"cluster {settings.cluster.address}: {error}") from error
    from backfire.service.worker.survey import survey  # it loads Ray, which now finds the token

    variants = [orders.settings(variant) for _, variant in settings.variants()]
    nodes = survey(settings, variants)
    yield from compared(nodes)
    fits = sum(node.fits for node in nodes)
    needs = ", ".join(f"{amount:g} {name}" for name, amount in settings.cluster.needs.items())
    remedy = "" if fits else "start nodes with what a worker needs, or lower cluster.num_gpus and num_cpus"
    yield Check("workers", f"{fits} fit, each with {needs}", remedy)
    yield binding()


def compared(nodes: Sequence[Node]) -> Iterator[Check]:
    """A line for each node, which names what differs from most others.

    The daemon's own machine has no workers, and needs no weights then.
    """
    told = {
        name: Counter(node.facts[name] for node in nodes if name in node.facts)
        for name in dict.fromkeys(name for node in nodes for name in node.facts)
    }
    for node in nodes:
        subject = f"node {node.name}"
        if node.trouble:
            yield Check(subject, f"{node.devices}; does not answer", node.trouble)
            continue
        odd = [said for name, one in node.facts.items() if (said := _differs(name, one, told[name]))]
        broken = [f"{name} is {one}" for name, one in node.facts.items() if one.startswith("not usable")]
        versions = [
            f"{name} {one}"
            for name, one in node.facts.items()
            if not name.startswith(("editor ", "detector "))
        ]
        editors = sum(name.startswith("editor ") for name in node.facts)
        found = f"{node.devices}; {', '.join(versions)}; {editors} editors; {node.fits} workers fit"
        remedy = "; ".join(dict.fromkeys([*odd, *broken]))
        yield Check(subject, found, remedy and f"{remedy}: install the same everywhere")


def _differs(name: str, told: str, counts: Counter[str]) -> str:
    """How what a node told differs from most others; of two that are as many, both differ."""
    (usual, most), *others = counts.most_common(2)
    if others and others[0][1] == most:
        elsewhere = ", ".join(sorted(counts.keys() - {told}))
        return f"{name} is {told}, on others {elsewhere}"
    return "" if told == usual else f"{name} is {told}, on most nodes {usual}"


def binding() -> Check:
    """At how many ports Ray can be reached from outside, as far as this user may see."""
    ports = sorted(open_ports())
    if not ports:
        return Check("ports of Ray", "none of a process of this user")
    found = f"{len(ports)} reachable on all interfaces ({', '.join(map(str, ports[:8]))}…)"
    said = "Ray binds them so whatever address it is given; only a firewall keeps others out"
    return Check("ports of Ray", f"{found}; {said}")


def open_ports(proc: Path = Path("/proc")) -> set[int]:
    """The TCP ports at which this user's Ray processes listen on all interfaces, as Linux tells."""
    sockets: set[str] = set()
    for process in proc.glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or belongs to somebody else
            if (process / "comm").read_text().strip() not in RAYS:
                continue
            for one in (process / "fd").iterdir():
                with suppress(OSError):  # it was closed just now
                    sockets.add(os.readlink(one))
    ports: set[int] = set()
    for table in ("tcp", "tcp6"):
        lines: list[str] = []
        with suppress(OSError):  # there may be no IPv6, and elsewhere than on Linux there is neither
            lines = (proc / "net" / table).read_text().splitlines()[1:]
        for fields in map(str.split, lines):
            address, _, port = fields[1].partition(":")
            if fields[3] == "0A" and not address.strip("0") and f"socket:[{fields[9]}]" in sockets:
                ports.add(int(port, 16))
    return ports
