"""How long a picture takes, as `backfire check` says: what is timed, and what it is taken for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from backfire import attack_paths, inpaint
from backfire.admin import check, pace
from backfire.attack_paths import cropping
from backfire.config import Settings, parse
from backfire.evaluate.edits import Editors
from backfire.evaluate.replay import replay
from backfire.types import Box, Region

FOUR = ["iopaint", "comfyui-stitch-512", "forge-whole", "forge-masked"]


class Clock:
    """A clock that only editors move on."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


class Counting:
    """An editor that takes a second for each pixel of an iteration or of an edit, and lists them."""

    multiple, blind = 1, False

    def __init__(self, name: str, clock: Clock) -> None:
        self.name, self.weights_sha256, self.clock = name, f"weights of {name}", clock
        self.iterations: list[int] = []
        self.edits: list[int] = []

    def to(self, device: torch.device | str) -> None:
        pass

    def inpaint(
        self, image: torch.Tensor, mask: torch.Tensor, *, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        pixels = image.shape[0] * image.shape[2] * image.shape[3]
        if torch.is_inference_mode_enabled():
            self.edits.append(pixels)
            self.clock.now += pixels
        elif image.requires_grad:
            self.iterations.append(pixels)
            self.clock.now += pixels
        return torch.where(mask > 0.5, 1 - image, image)


class Bench:
    """Editors that count under the names of built-in ones, and the clock of the estimate."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, base: Path) -> None:
        self.clock, self.base = Clock(), base
        self.editors = {name: Counting(name, self.clock) for name in inpaint.NAMES}
        monkeypatch.setattr(inpaint, "get", lambda name, *_, **__: self.editors[name])
        monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=self.clock.monotonic))

    def settings(self, paths: Sequence[str], held_out: Sequence[str] = (), **sections: object) -> Settings:
        data = {
            "folders": {"inbox": "inbox"},
            "protect": {"surrogates": ["flux2-mini"], "device": "cpu", "iterations": 10},
            "verify": {"paths": [*paths], "held_out": [*held_out]},
            **sections,
        }
        return parse(data, base=self.base)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bench:
    return Bench(monkeypatch, tmp_path)


def test_two_iterations_on_each_path_and_one_edit_of_each_editor_are_timed(bench: Bench) -> None:
    found = pace.estimate(bench.settings(FOUR, ["flux2-micro"]))
    surrogate, held_out = bench.editors["flux2-mini"], bench.editors["flux2-micro"]
    on_path = surrogate.iterations[::2]
    assert surrogate.iterations[1::2] == on_path, "the second one is timed, after one that warms up"
    assert len(on_path) == len(FOUR)
    assert len(set(on_path)) > 1, "tools hand over different sizes"
    assert found.optimising == pytest.approx(10 * (on_path[0] + np.mean(on_path[1:])) / 2)
    assert (len(surrogate.edits), len(held_out.edits), held_out.iterations) == (1, 1, [])


def test_an_iteration_is_timed_with_the_surrogates_that_are_judged_on_its_path(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Editors, "paths_of", lambda _, editor: FOUR if editor.name == "flux2-mini" else FOUR[2:3]
    )
    protect = {"surrogates": ["flux2-mini", "flux2-micro"], "device": "cpu"}
    pace.estimate(bench.settings(FOUR, protect=protect))
    mini, micro = (bench.editors[name].iterations for name in ("flux2-mini", "flux2-micro"))
    assert len(mini) == 2 * len(FOUR)
    assert micro == mini[4:6], "in Forge with the whole picture alone"


def test_where_only_the_crop_is_optimised_only_its_iterations_are_timed(bench: Bench) -> None:
    one_path = {"paths": "first", "robust_to": ["resize", "chain"], "iterations": 10}
    protect = {"surrogates": ["flux2-mini"], "device": "cpu", **one_path}
    found = pace.estimate(bench.settings(FOUR, protect=protect))
    height, width = pace.PROBE
    assert bench.editors["flux2-mini"].iterations == [height * width] * 2
    assert found.optimising == 10 * height * width


def test_the_edits_of_one_region_are_counted(bench: Bench) -> None:
    """Five kinds on the first path, of original and copy, and a control; on others the trigger alone.

    Of a held-out editor it is the trigger alone, and the original twice.
    """
    height, width = pace.PROBE
    one = pace.estimate(bench.settings(["iopaint"]))
    assert one.judging == (5 * 2 + 1) * height * width
    judged = pace.estimate(bench.settings(["iopaint"], ["flux2-micro"]))
    assert judged.judging - one.judging == 3 * height * width
    assert judged.optimising == one.optimising


def test_the_estimate_is_what_the_replay_of_a_region_takes(bench: Bench) -> None:
    settings = bench.settings(FOUR, ["flux2-micro"])
    expected = pace.estimate(settings).judging
    rng, (height, width) = np.random.default_rng(0), pace.PROBE
    rgb = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    box = Box(width // 3, height // 3, 2 * width // 3, 2 * height // 3)
    crops = cropping.plan([Region(box, "mask", 1.0, "test")], height, width, margin=128, work=800, whole=800)
    surrogate, held_out = bench.editors["flux2-mini"], bench.editors["flux2-micro"]
    editors = Editors(torch.device("cpu"), [surrogate], [held_out], attack_paths.of_editors(settings))
    began = bench.clock.now
    replay(rgb, rgb, crops, editors, target="away", rng=rng)
    assert bench.clock.now - began == pytest.approx(expected)


def test_check_tells_both_parts_of_the_time(bench: Bench) -> None:
    settings = bench.settings(["iopaint"], ["flux2-micro"])
    lines = {line.subject: line for line in check.check(settings)}
    height, width = pace.PROBE
    assert lines["time for a picture"].found == (
        f"about {(10 + 11 + 3) * height * width:,} s for one region of a picture of 512x384 px on cpu: "
        f"{10 * height * width:,} s to optimise with flux2-mini, {14 * height * width:,} s to judge with "
        "flux2-mini, flux2-micro; larger crops take more, up to protect.work_px"
    )


def test_a_single_iteration_takes_its_time_too(bench: Bench) -> None:
    height, width = pace.PROBE
    protect = {"surrogates": ["flux2-mini"], "device": "cpu", "iterations": 1}
    assert pace.estimate(bench.settings(["iopaint"], protect=protect)).optimising == height * width


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"robust_to": ["jpeg", "chain", "resize"]}, ", without robust_to resize, chain,"),
        ({"escalate": ["balanced"]}, ", without the further rounds of escalate,"),
        (
            {"robust_to": ["resize"], "escalate": ["balanced"]},
            ", without robust_to resize and the further rounds of escalate,",
        ),
        ({"robust_to": ["jpeg"]}, ","),
    ],
)
def test_what_is_not_in_the_estimate_is_named(bench: Bench, more: dict[str, object], says: str) -> None:
    protect = {"surrogates": ["flux2-mini"], "device": "cpu", "iterations": 2, **more}
    told = pace.estimate(bench.settings(["iopaint"], protect=protect)).sentence
    assert f"s to optimise with flux2-mini{says} " in told


def test_a_rule_that_changes_only_who_judges_has_a_line_of_its_own(bench: Bench) -> None:
    ruled = bench.settings(["iopaint"], rules=[{"match": "a/*", "held_out": ["flux2-micro"]}])
    told = {line.subject: line for line in check.check(ruled) if "time for a picture" in line.subject}
    assert [line.ok for line in told.values()] == [True, True]
    assert "to judge with flux2-mini;" in told["time for a picture"].found
    assert "to judge with flux2-mini, flux2-micro;" in told["rules.0 (a/*): time for a picture"].found
