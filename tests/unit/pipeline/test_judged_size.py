"""What was optimised smaller for want of memory is judged at full size, and rungs leave nothing behind."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from backfire import attack_paths
from backfire.attack_paths import hand_over
from backfire.config import Folders, Protect, Settings
from backfire.errors import Code, ModelError
from backfire.evaluate.edits import Editors
from backfire.evaluate.judge import Judgement
from backfire.pipeline import memory, protect
from backfire.pipeline.run import Judged
from backfire.types import Budget, Verdict


class Tight:
    """A run that can judge edits of no more than so many pixels, and finds everything broken."""

    def __init__(self, folder: Path, most: int, work_px: int = 800) -> None:
        self.settings = Settings(folders=Folders(inbox=folder / "inbox"), protect=Protect(work_px=work_px))
        self.most, self.sizes = most, list[int]()

    def judge(self, _published: Any, _crops: Any, editors: Editors, _budget: Budget) -> Judged:
        self.sizes.append(editors.most_px)
        if editors.most_px > self.most:
            raise ModelError(Code.OUT_OF_MEMORY, "no more memory")
        return Judged(Judgement(Verdict.PROTECTED, [], 40.0, 5))


@pytest.mark.parametrize(
    ("rung", "most", "killed", "sizes", "verdict"),
    [
        ("full", 1600, False, [1600], Verdict.PROTECTED),
        ("smaller", 1600, False, [1600], Verdict.PROTECTED),
        ("smaller", 1000, False, [1600, 800], Verdict.WEAK),
        ("smaller", 1600, True, [800], Verdict.WEAK),
        ("full", 1600, True, [1600], Verdict.PROTECTED),
    ],
)
def test_a_smaller_optimisation_is_judged_in_full_or_is_weak_at_best(
    tmp_path: Path, rung: str, most: int, killed: bool, sizes: list[int], verdict: Verdict
) -> None:
    """Smaller edits are edits that nobody makes; a process that was killed does not try larger ones again."""
    run: Any = Tight(tmp_path, most)
    cpu, written = torch.device("cpu"), SimpleNamespace(published=None)
    on = next(one for one in memory.rungs(run.settings.protect, cpu) if one.name == rung)
    what: Any = run, written, [], Editors(cpu, []), Budget(5), on
    judged = protect._judged(*what, smaller_at_once=killed)
    assert run.sizes == sizes
    assert judged.judgement.verdict == verdict
    assert bool(judged.judgement.reasons) == (verdict == Verdict.WEAK)


@pytest.mark.parametrize(
    ("most", "killed", "sizes", "verdict"),
    [
        (1600, False, [1600], Verdict.PROTECTED),
        (600, False, [1600, 512], Verdict.WEAK),
        (1600, True, [512], Verdict.WEAK),
    ],
)
def test_where_no_smaller_working_size_is_left_only_the_edits_that_are_judged_shrink(
    tmp_path: Path, most: int, killed: bool, sizes: list[int], verdict: Verdict
) -> None:
    """A picture must not fail because its edits are judged larger than they were worked on."""
    run: Any = Tight(tmp_path, most, work_px=256)
    cpu, written = torch.device("cpu"), SimpleNamespace(published=None)
    lowest = memory.rungs(run.settings.protect, cpu)[-1]
    what: Any = run, written, [], Editors(cpu, []), Budget(5), lowest
    judged = protect._judged(*what, smaller_at_once=killed)
    assert (run.sizes, judged.judgement.verdict) == (sizes, verdict)


def test_where_memory_is_not_enough_for_an_optimisation_of_full_size_the_next_rung_is_tried(
    tmp_path: Path,
) -> None:
    run: Any = Tight(tmp_path, 1000)
    cpu, written = torch.device("cpu"), SimpleNamespace(published=None)
    full, *_ = memory.rungs(run.settings.protect, cpu)
    what: Any = run, written, [], Editors(cpu, []), Budget(5), full
    with pytest.raises(ModelError, match="no more memory"):
        protect._judged(*what, smaller_at_once=False)


def test_a_rung_that_runs_out_of_memory_leaves_no_matrices_to_the_next_one() -> None:
    """They lie on the device, where they take gigabytes."""
    (handed,) = attack_paths.get("forge-whole").calls(np.eye(64, dtype=np.bool_))

    def work(rung: memory.Rung) -> int:
        left = hand_over._mapping.cache_info().currsize
        hand_over.hand_over(torch.zeros(1, 3, 64, 64), handed)
        if rung.name == "full":
            raise ModelError(Code.OUT_OF_MEMORY, "no more memory")
        return left

    assert memory.try_rungs(memory.rungs(Protect(), torch.device("cpu")), work) == 0
