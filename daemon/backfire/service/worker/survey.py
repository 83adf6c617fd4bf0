"""What each node of a cluster has: versions, devices, and the digests of editors' and detectors' files."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from backfire import __version__
from backfire.config import Settings
from backfire.config.cluster import Cluster
from backfire.service.worker import answers

PATIENCE_S = 300.0
"""How long the nodes may take to read the weights of all editors."""


@dataclass(frozen=True)
class Node:
    """One node.

    Attributes:
        name: its address, and its number among those of Ray.
        fits: how many workers do on it.
        devices: what Ray knows of its CPU cores and accelerators.
        facts: versions and digests, by what they are of; empty where it did not answer.
        trouble: why it did not.
    """

    name: str
    fits: int
    devices: str
    facts: dict[str, str] = field(default_factory=dict)
    trouble: str = ""


def survey(settings: Settings, variants: Sequence[dict[str, Any]]) -> list[Node]:
    """Ask all nodes; `driver.join` has to be called before this module is imported.

    Args:
        settings: the configuration.
        variants: the sections of settings of `orders.settings`, whose editors are read.
    """
    section = settings.cluster
    ray.init(
        address=section.address,
        namespace="backfire",
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env=section.runtime or None,
    )
    try:
        alive = [one for one in ray.nodes() if one["Alive"]]
        asked = []
        for node in alive:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            # It reserves nothing, so that it runs while the daemon has all workers at work.
            task = ray.remote(facts).options(num_cpus=0, scheduling_strategy=there, max_retries=0)
            fits = fitting(node["Resources"], section)
            asked.append((node, fits, task.remote(list(variants) if fits else [])))
        until = time.monotonic() + PATIENCE_S
        return [_told(node, fits, ref, until) for node, fits, ref in asked]
    finally:
        ray.shutdown()


def _told(node: dict[str, Any], fits: int, ref: Any, until: float) -> Node:
    has = node["Resources"]
    devices = [f"{has[name]:g} {name}" for name in ("CPU", "GPU") if has.get(name)]
    devices += [name.partition(":")[2] for name in has if name.startswith("accelerator_type:")]
    name, listed = f"{node['NodeManagerAddress']}-{node['NodeID'][:6]}", ", ".join(devices) or "no device"
    try:
        return Node(name, fits, listed, ray.get(ref, timeout=max(until - time.monotonic(), 0)))
    except GetTimeoutError:
        trouble = f"has told nothing for {PATIENCE_S:g} s; look whether it is busy, or its disk slow"
    except RayError as error:
        trouble = answers.first_cause(error)
    return Node(name, fits, listed, trouble=trouble)


def fitting(has: dict[str, float], section: Cluster) -> int:
    """How many workers fit on a node with these resources."""
    return int(min(has.get(name, 0.0) / amount for name, amount in section.needs.items()) + 1e-9)


def facts(variants: Sequence[dict[str, Any]]) -> dict[str, str]:
    """What this machine has: the versions that decide results, and the digest of each editor's weights.

    So it is of each detector that works with files of your own.
    """
    import numpy
    import torch

    from backfire import detectors, inpaint
    from backfire.errors import BackfireError
    from backfire.perturb import methods

    found = {
        "Backfire": __version__,
        "Python": platform.python_version(),
        "Ray": ray.__version__,
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
    }
    for sections in variants:
        settings = methods.with_surrogates(
            Settings.model_validate({**sections, "folders": {"inbox": Path("/nowhere")}})
        )
        for name in dict.fromkeys((*settings.protect.surrogates, *settings.verify.held_out)):
            try:
                editor = inpaint.get(name, torch.device("cpu"), settings)
                found[f"editor {name}"] = editor.weights_sha256[:12]
            except BackfireError as error:
                found[f"editor {name}"] = f"not usable: {error}"
        for name in settings.regions.detectors:
            try:
                digest = detectors.digest(name, settings.regions)[:12]
            except OSError as error:
                digest = f"not usable: {error}"
            if digest:  # rules may have other files; those of all of them count
                told = found.get(f"detector {name}", digest)
                found[f"detector {name}"] = told if digest in told else f"{told}, {digest}"
    return found
