"""What the page's process is told of the configuration, so that it need not load what reads one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from backfire.types import composed

T = TypeVar("T")


def _first(ruled: Sequence[tuple[str, T]], path: bytes, otherwise: T) -> T:
    """What holds for a path relative to the inbox: that of the first regular expression which fits it."""
    name = composed(path)
    return next((found for pattern, found in ruled if re.fullmatch(pattern, name, re.DOTALL)), otherwise)


@dataclass(frozen=True)
class Options:
    """The settings that the page needs.

    Attributes:
        config: the configuration file, which is shown and which actions use.
        folders: all folders by the names of their settings.
        address: host and port, or the path of a socket.
        allowed_hosts: `serve.allowed_hosts`.
        priorities: `watch.priorities`.
        thresholds: the thresholds of `verify` by the regular expression of the paths that they hold for, in
            the order in which these are tried.
        masks: which paint of a mask is protected, `white` or `black`, as `thresholds`; empty where masks are
            not read.
        tools: by attack path, the name of the tool for people.
        mask_wait_s: `watch.mask_wait_s`.
    """

    config: Path
    folders: Mapping[str, Path]
    address: tuple[str, int] | Path
    allowed_hosts: tuple[str, ...] = ()
    priorities: Mapping[str, int] | None = None
    thresholds: tuple[tuple[str, Mapping[str, float]], ...] = ()
    masks: tuple[tuple[str, str], ...] = ()
    tools: Mapping[str, str] = field(default_factory=dict)
    mask_wait_s: float = 0.0

    def thresholds_of(self, path: bytes) -> Mapping[str, float]:
        """The thresholds of `verify` for a path relative to the inbox."""
        return _first(self.thresholds, path, {})

    def mask_paint_of(self, path: bytes) -> str:
        """Which paint of a picture's mask is protected, as `masks` says."""
        return _first(self.masks, path, "")

    @property
    def database(self) -> Path:
        """The file of the job database."""
        return self.folders["state"] / "backfire.sqlite"

    def to_json(self) -> str:
        """As text for the command line of the page's process, which every user of the machine can read."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Options:
        """What `to_json` wrote."""
        data = json.loads(text)
        address = data["address"]
        return cls(
            config=Path(data["config"]),
            folders={name: Path(folder) for name, folder in data["folders"].items()},
            address=Path(address) if isinstance(address, str) else (address[0], address[1]),
            allowed_hosts=tuple(data["allowed_hosts"]),
            priorities=data["priorities"],
            thresholds=tuple((pattern, found) for pattern, found in data["thresholds"]),
            masks=tuple((pattern, paint) for pattern, paint in data["masks"]),
            tools=data["tools"],
            mask_wait_s=data["mask_wait_s"],
        )
