"""How real tools hand a region to their model: which crop, at which size, with which padding.

`get(NAME).handed(mask)` says what a tool hands over for an edit; `hand_over.hand_over` does it to tensors,
and `hand_over.put_back` puts the result back. `tools.PATHS` is the table.
"""

from __future__ import annotations

from backfire.attack_paths.tools import PATHS, AttackPath, Family
from backfire.errors import require

__all__ = ["PATHS", "AttackPath", "Family", "get", "suiting"]


def get(name: str) -> AttackPath:
    """The attack path of that name.

    Raises:
        ConfigError: there is none; the nearest name is given.
    """
    require(name, PATHS, "attack path")
    return PATHS[name]


def suiting(family: Family) -> list[AttackPath]:
    """The attack paths of the tools in which people run editors of that family, in the table's order."""
    return [path for path in PATHS.values() if family in path.suits]
