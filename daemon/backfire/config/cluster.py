"""The section `cluster`: pictures are worked on the machines of a Ray cluster."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from backfire.config.section import FromFile, Positive, Section


class Cluster(Section):
    """A Ray cluster whose machines work the pictures in place of this one; see docs/guides/cluster.md."""

    address: str | None = None
    """The host and port of the cluster's head, such as 10.0.0.1:6379; this machine must be one of its nodes.
    With null, pictures are worked on this machine."""
    token_file: FromFile | None = None
    """The file with the cluster's token, readable by its owner alone; null is ~/.ray/auth_token."""
    actors: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """The most workers that the cluster is asked for; auto is as many as fit on its nodes now."""
    min_actors: Annotated[int, Field(ge=0)] = 0
    """The workers that are kept while nothing waits; those above it are as many as there are pictures."""
    idle_s: Positive = 300
    """The seconds after which a worker that nothing needs is ended, so that its node can be taken away."""
    num_gpus: Annotated[float, Field(ge=0)] = 1
    """The GPUs that a worker reserves; 0.5 puts two workers on each."""
    num_cpus: Annotated[float, Field(ge=0)] = 1
    """The CPU cores that a worker reserves."""
    resources: dict[str, Positive] = Field(default_factory=dict)
    """What a worker reserves of the resources that nodes were started with, such as {a100: 1}."""
    deadline_s: Positive = 1800
    """The seconds after which a worker is killed and its picture tried again."""
    runtime: dict[str, Any] = Field(default_factory=dict)
    """Ray's runtime environment of the workers, such as {env_vars: {HF_HUB_OFFLINE: "1"}}."""
    fallback: Literal["none", "local"] = "none"
    """What happens while the cluster cannot be reached: pictures wait (none), or are worked on this machine
    after a minute (local)."""

    @field_validator("address")
    @classmethod
    def _host_and_port(cls, value: str | None) -> str | None:
        port = re.fullmatch(r"(?:[\w.-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})", value or "x:1", re.ASCII)
        if port is None or not 0 < int(port[1]) <= 65535:
            raise ValueError(
                f"cluster.address: got {value!r}, expected host and port of the cluster's head, such as "
                "'10.0.0.1:6379'; `ray start --head` prints it"
            )
        return value

    @model_validator(mode="after")
    def _takes_something(self) -> Cluster:
        if not (self.num_gpus or self.num_cpus or self.resources):
            raise ValueError(
                "cluster: num_gpus and num_cpus are 0 and resources names none, so that any number of "
                "workers would fit on a node; let a worker reserve something"
            )
        if isinstance(self.actors, int) and self.min_actors > self.actors:
            raise ValueError(
                f"cluster.min_actors: got {self.min_actors}, expected at most cluster.actors, {self.actors}"
            )
        return self

    @property
    def needs(self) -> dict[str, float]:
        """What a worker reserves, by the names that Ray has for it."""
        every = {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.resources}
        return {name: amount for name, amount in every.items() if amount}
