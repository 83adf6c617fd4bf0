"""How an order travels to another machine: without its folder, and with no setting that no node needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from backfire.config import Settings
from backfire.service.worker.protocol import Order

ASIDE = {"folders", "watch", "serve", "hooks", "cluster", "rules"}
"""The sections of the settings that stay here, some with secrets; none decides what a result looks like."""


def packed(order: Order) -> dict[str, Any]:
    """An order as JSON can hold it."""
    return {
        "job": order.job,
        "lease": order.lease,
        "name": order.name,
        "masks": order.masks,
        "settings": settings(order.settings),
        "rung": order.rung,
    }


def settings(ordered: Settings) -> dict[str, Any]:
    """The settings that travel, as JSON can hold them."""
    return ordered.model_dump(mode="json", exclude=ASIDE)


def unpacked(order: dict[str, Any], folder: Path) -> Order:
    """The order that `packed` was given, with a folder of this machine."""
    ordered = Settings.model_validate({**order["settings"], "folders": {"inbox": folder}})
    masks = tuple((name, file) for name, file in order["masks"])
    return Order(order["job"], order["lease"], folder, order["name"], masks, ordered, order["rung"])
