"""A picture with something transparent is judged on white, too, wherever a tool hands that over."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from backfire.attack_paths import cropping
from backfire.evaluate.edits import Editors
from backfire.pipeline import run
from backfire.types import Box, Region


@pytest.mark.parametrize(
    ("path", "at", "differs"),
    [
        ("forge-whole", (890, 1190), True),
        ("iopaint-sd", (0, 0), True),
        ("iopaint", (890, 1190), False),
        ("iopaint", (320, 520), True),
        ("fooocus", (320, 250), True),
        ("comfyui-stitch-512", (320, 250), False),
    ],
)
@pytest.mark.parametrize("held_out", [False, True])
def test_what_differs_on_white_counts_wherever_a_tool_hands_it_over(
    path: str, at: tuple[int, int], differs: bool, held_out: bool
) -> None:
    """Around a region of 80 px at 500,300 the crop has 128 px; Fooocus takes 168,0 to 911,741."""
    stored = np.full((900, 1200, 3), 90, np.uint8)
    seen = stored.copy()
    seen[at] = 255
    region = Region(Box(500, 300, 580, 380), "face", 1.0, "faces")
    crops = cropping.plan([region], 900, 1200, margin=128, work=800)
    one: Any = SimpleNamespace(name="one")
    surrogates, others = ([], [one]) if held_out else ([one], [])
    editors = Editors(torch.device("cpu"), surrogates, others, paths={"one": (path,)})
    assert run._differs(seen, stored, crops, editors) is differs
    assert not run._differs(stored, stored, crops, editors)
