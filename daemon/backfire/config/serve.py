"""The section `serve`: what is served over HTTP, to this machine or to a proxy on it."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Self

from pydantic import field_validator, model_validator

from backfire.config.section import Section

_SOCKET = "unix:"


class Serve(Section):
    """What is served over HTTP, to this machine or to a proxy on it."""

    metrics: str | None = None
    """The address of this machine, such as 127.0.0.1:9477, that serves /metrics (Prometheus) and /healthz."""
    page: str | None = None
    """The address of this machine, such as 127.0.0.1:9480 or unix:/run/backfire/page.sock, at which
    `backfire page` serves the status page."""
    allowed_hosts: tuple[str, ...] = ()
    """The host names, such as metrics.example.org, under which a reverse proxy may ask."""

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port of `metrics`."""
        return None if self.metrics is None else _host_and_port(self.metrics)

    @property
    def page_address(self) -> tuple[str, int] | Path | None:
        """Host and port of `page`, or the path of its socket."""
        if self.page is None:
            return None
        if self.page.startswith(_SOCKET):
            return Path(self.page.removeprefix(_SOCKET))
        return _host_and_port(self.page)

    @field_validator("metrics")
    @classmethod
    def _metrics_inside(cls, value: str | None) -> str | None:
        return value if value is None else _loopback("metrics", value, "'127.0.0.1:9477'")

    @field_validator("page")
    @classmethod
    def _page_inside(cls, value: str | None) -> str | None:
        if value is None or re.fullmatch(r"unix:/[^\0]+", value):
            return value
        return _loopback("page", value, "'127.0.0.1:9480' or 'unix:/run/backfire/page.sock'")

    @field_validator("allowed_hosts")
    @classmethod
    def _host_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            if not re.fullmatch(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|\[[0-9A-Fa-f:.]+\]", host):
                raise ValueError(
                    f"serve.allowed_hosts: got {host!r}, expected a host name without scheme and port, "
                    "such as 'metrics.example.org' or '*.example.org'; name the one that the proxy sends"
                )
        return value

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.address is not None and self.address == self.page_address and self.address[1]:
            raise ValueError(
                f"serve.page: got {self.page!r}, which is the address of serve.metrics, too, expected "
                "another one; give each a port of its own"
            )
        return self


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]").replace("localhost", "127.0.0.1"), int(port)


def _loopback(setting: str, value: str, example: str) -> str:
    """The address, which must be one of this machine alone.

    Raises:
        ValueError: it is none.
    """
    host, _, port = value.rpartition(":")
    try:
        inside = host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        inside = False
    if not inside or not port.isdecimal() or int(port) > 65535:
        raise ValueError(
            f"serve.{setting}: got {value!r}, expected an address of this machine such as "
            f"{example}; let a proxy with access control show it to others"
        )
    return value
