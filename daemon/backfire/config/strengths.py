"""What the words of `protect.strength` stand for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STRENGTHS: dict[str, dict[str, Any]] = {
    "subtle": {"method": "implant", "epsilon": 4, "flat_share": 0.6, "reach_px": 24, "iterations": 80},
    "balanced": {"method": "implant", "epsilon": 5, "flat_share": 1.0, "reach_px": 24, "iterations": 80},
    "strong": {"method": "implant", "epsilon": 8, "flat_share": 1.0, "reach_px": 40, "iterations": 120},
    "paper": {"method": "baseline", "epsilon": 6.4, "flat_share": 1.0, "reach_px": 4096, "iterations": 20},
}
"""The settings of `protect` that each strength stands for; keys that stand beside it win."""

GROWING = "epsilon", "flat_share", "reach_px"
"""The settings that a further round of `protect.escalate` may raise, beside its iterations."""


def resolved(protect: Any) -> Any:
    """The section `protect` as read from YAML, with its strength's values where a key is absent or null."""
    if not isinstance(protect, Mapping):
        return protect  # pydantic words the error
    strength = protect.get("strength")
    stands_for = STRENGTHS[strength] if strength in [*STRENGTHS] else {}
    given = {key: v for key, v in protect.items() if v is not None or key not in STRENGTHS["balanced"]}
    return {**stands_for, **given}
