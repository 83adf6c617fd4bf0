"""`strength: single-path` stays what it is, so that the figures of former releases can be made anew.

What it stands for is pinned here key by key, and what it makes of a picture by that picture. A change of
either breaks a promise: it wants another strength, and not another number in this file. Only new weights of
the embedded editor, whose responses the perturbation rests on, make the stored picture anew.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backfire import inpaint
from backfire.attack_paths import cropping
from backfire.config import Protect
from backfire.inpaint import hardware
from backfire.perturb.optimiser import Optimiser
from backfire.types import Box, Region, Rgb
from tests.support.pictures import photo

PINNED = {
    "strength": "single-path",
    "method": "implant",
    "epsilon": 5,
    "iterations": 80,
    "colour_share": 1,
    "flat_luma_share": 1,
    "reach_px": 24,
    "reach_share": 0.16,
    "paths": "first",
    "grids": 1,
    "hide_weight": 8,
    "decay": 0,
    "coarse_colour_decay": 0,
    "stored_start": False,
    "surrogates": "auto",
    "whole_px": 800,
    "margin_px": 128,
    "grain_px": 1,
    "stop_early": False,
    "escalate": (),
    "keep_region_exact": False,
    "robust_to": (),
    "target": "away",
    "work_px": 800,
    "device": "auto",
    "cpu_fallback": True,
    "attempts": 3,
}
MADE = Path(__file__).with_name("single-path.png")
"""The perturbation of the picture below after eight iterations (weights of 2026-12-01), 128 for none."""
ITERATIONS = 8
TOLERATED = 0.25
"""The mean difference, in levels, that is still taken for rounding. Without oneDNN it came to 0.001. Another
seed makes 3.2, a hide weight of 1.5 makes 0.6, a momentum of 0.9 makes 0.5."""


def perturbation(monkeypatch: pytest.MonkeyPatch, **settings: float) -> np.ndarray:
    """What eight iterations add to a small photograph, in levels."""
    # In bfloat16, which some processors take, eight iterations end elsewhere.
    monkeypatch.setattr(hardware, "cpu_prefers_bfloat16", lambda: False)
    rgb: Rgb = np.asarray(photo((64, 64), seed=3))
    protect = Protect.model_validate({"strength": "single-path", "iterations": ITERATIONS, **settings})
    crops = cropping.plan(
        [Region(Box(24, 24, 40, 40), "mask", 1.0, "test")],
        *rgb.shape[:2],
        margin=protect.margin_px,
        work=protect.work_px,
        whole=protect.whole_px,
    )
    made = Optimiser(protect, [inpaint.get("flux2-mini")], torch.device("cpu")).optimise(
        rgb, crops, grey=False, rng=np.random.default_rng(0), progress=lambda *_: None
    )
    found: np.ndarray = made.rgb.astype(int) - rgb
    return found


def off(found: np.ndarray) -> float:
    """The mean difference from the stored perturbation, in levels."""
    return float(np.abs(np.asarray(Image.open(MADE)).astype(int) - 128 - found).mean())


def test_single_path_stands_for_the_same_settings() -> None:
    """All of them: what another strength or a new setting brings must not change this one."""
    assert Protect(strength="single-path").model_dump() == PINNED


def test_single_path_makes_the_same_perturbation(monkeypatch: pytest.MonkeyPatch) -> None:
    assert off(perturbation(monkeypatch)) <= TOLERATED


def test_a_small_drift_of_single_path_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert off(perturbation(monkeypatch, hide_weight=4)) > TOLERATED
