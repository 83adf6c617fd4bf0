"""Groups the rows of a protection benchmark by set, method and judge.

The effect is 1 - SSIM between an edit and the same edit of the original (the clean edit). The share of it
that another mask, crop or treatment keeps is its mean effect over the mean effect of the plain edit, which
repaints the full region.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.rows import Row

FIGURES = ("ssim", "l1")
"""The figures of an edit in a row, in this order."""
LEAST = 0.05
"""Effects below this are too small to compute a share of them."""


@dataclass(frozen=True, eq=False)
class Group:
    """The rows of one set under one method, optimised against some editors and judged by one.

    Attributes:
        of: the set.
        how: the method's name.
        against: the editors that were optimised against, joined by `+`.
        judge: the editor whose edits were measured.
        rows: one for each picture.
    """

    of: str
    how: str
    against: str
    judge: str
    rows: Sequence[Row]

    @property
    def label(self) -> str:
        """The group's name in the legend of a plot."""
        return f"{self.of}: {self.how} {edited(self.against, self.judge)}"

    @property
    def pictures(self) -> frozenset[str]:
        """The names of the pictures."""
        return frozenset(row["picture"] for row in self.rows)

    def values(self, edit: str, what: str = "ssim") -> list[float]:
        """A figure (`ssim` or `l1`) of an edit for each region; empty if it was not measured."""
        return [figures[FIGURES.index(what)] for figures in self._figures(edit).values()]

    def effects(self, edit: str) -> dict[tuple[str, int], float]:
        """The effect (1 - SSIM) of an edit by (picture, region)."""
        return {key: 1.0 - figures[0] for key, figures in self._figures(edit).items()}

    def of_full(self, what: str) -> list[Any]:
        """Another figure of the edits of full regions (`lpips` or `clip`), for each region."""
        return [one for row in self.rows for one in row[what].get(self.judge, ())]

    def edits(self, prefix: str = "") -> list[str]:
        """The names of the edits that begin with a prefix, in the order in which they were made."""
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
        """Each region's SSIM after the treatment that weakens its protection the most."""
        after = [self.effects(name) for name in self.edits("after ")]
        return [
            1.0 - min(one[key] for one in after if key in one)
            for key in (self.effects("full") if after else ())
        ]


def edited(against: str, judge: str) -> str:
    """The editors that were optimised against, and the judge if it is another, as text."""
    return f"on {against}" + ("" if against == judge else f" → {judge}")


def grouped(rows: Iterable[Row]) -> list[Group]:
    """The rows by set, method and judge; if a picture has several rows, the last, made by the newest code."""
    found: dict[tuple[str, str, str, str], dict[str, Row]] = {}
    for row in rows:
        against = "+".join(name.partition("@")[0] for name in row["surrogates"])
        for name in row["judges"]:
            group = found.setdefault((row["set"], row["how"], against, name.partition("@")[0]), {})
            group[row["picture"]] = row
    return [Group(*key, list(of.values())) for key, of in found.items()]


def kept(group: Group, edit: str) -> tuple[float, float] | None:
    """The share of the plain edit's effect that an edit keeps: in the mean, and for the worst region.

    None if there is no such edit, or the plain effect is below `LEAST`.
    """
    plain, got = group.effects("full"), group.effects(edit)
    pairs = [(plain[key], effect) for key, effect in got.items()]
    if not pairs or np.mean([base for base, _ in pairs]) < LEAST:
        return None
    each = [effect / base for base, effect in pairs if base >= LEAST]
    total = float(np.sum([effect for _, effect in pairs]) / np.sum([base for base, _ in pairs]))
    return total, min(each)
