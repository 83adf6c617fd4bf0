"""Rows of a protection benchmark by set, method and judge.

Effect is 1 - SSIM of an edit to the clean edit. What a changed edit or a treatment keeps of it is the
mean effect after it over the mean effect of the plain edit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.rows import Row

FIGURES = ("ssim", "l1")
"""What a row has of an edit, in this order."""
LEAST = 0.05
"""Effects below this are no base for a share: of such a picture nothing is there to be kept."""


@dataclass(frozen=True, eq=False)
class Group:
    """The rows of one set, protected in one way against some editors and judged by one."""

    of: str
    how: str
    against: str
    judge: str
    rows: Sequence[Row]

    @property
    def label(self) -> str:
        """For a plot's legend."""
        return f"{self.of}: {self.how} {edited(self.against, self.judge)}"

    @property
    def pictures(self) -> frozenset[str]:
        """Their names."""
        return frozenset(row["picture"] for row in self.rows)

    def values(self, edit: str, what: str = "ssim") -> list[float]:
        """That figure (`ssim`, `l1`) of that edit, one a region; empty where it was not measured."""
        return [figures[FIGURES.index(what)] for figures in self._figures(edit).values()]

    def effects(self, edit: str) -> dict[tuple[str, int], float]:
        """1 - SSIM by (picture, region)."""
        return {key: 1.0 - figures[0] for key, figures in self._figures(edit).items()}

    def of_full(self, what: str) -> list[Any]:
        """What else was measured of the full regions (`lpips`, `clip`), one a region."""
        return [one for row in self.rows for one in row[what].get(self.judge, ())]

    def edits(self, prefix: str = "") -> list[str]:
        """The names of the edits that begin so, in the order they were made."""
        names = dict.fromkeys(name for row in self.rows for name in row["edits"][self.judge])
        return [name for name in names if name.startswith(prefix)]

    def _figures(self, edit: str) -> dict[tuple[str, int], list[float]]:
        return {
            (row["picture"], region): figures
            for row in self.rows
            for region, figures in enumerate(row["edits"][self.judge].get(edit, ()))
            if figures is not None
        }

    def worst(self) -> list[float]:
        """Each region's SSIM after the treatment that leaves its edit least broken."""
        after = [self.effects(name) for name in self.edits("after ")]
        return [
            1.0 - min(one[key] for one in after if key in one)
            for key in (self.effects("full") if after else ())
        ]


def edited(against: str, judge: str) -> str:
    """Optimised against whom, and judged by whom if by another."""
    return f"on {against}" + ("" if against == judge else f" → {judge}")


def grouped(rows: Iterable[Row]) -> list[Group]:
    """The rows by set, way to protect and judge; of a picture's rows the last, which the newest code made."""
    found: dict[tuple[str, str, str, str], dict[str, Row]] = {}
    for row in rows:
        against = "+".join(name.partition("@")[0] for name in row["surrogates"])
        for name in row["judges"]:
            group = found.setdefault((row["set"], row["how"], against, name.partition("@")[0]), {})
            group[row["picture"]] = row
    return [Group(*key, list(of.values())) for key, of in found.items()]


def kept(group: Group, edit: str) -> tuple[float, float] | None:
    """What an edit keeps of the plain one's effect: the mean's share and the worst picture's."""
    plain, got = group.effects("full"), group.effects(edit)
    pairs = [(plain[key], effect) for key, effect in got.items()]
    if not pairs or np.mean([base for base, _ in pairs]) < LEAST:
        return None
    each = [effect / base for base, effect in pairs if base >= LEAST]
    total = float(np.sum([effect for _, effect in pairs]) / np.sum([base for base, _ in pairs]))
    return total, min(each)
