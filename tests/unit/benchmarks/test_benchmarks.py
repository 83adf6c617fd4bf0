"""The benchmarks: their sets, treatments, rows, tables, and one small run of each command."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from PIL import Image

from backfire import inpaint
from backfire.attack_paths.cropping import Crop
from backfire.config import Protect
from backfire.evaluate.replay import Replayed
from backfire.perturb.methods.iterative import summed
from backfire.types import Box, Rgb
from benchmarks import (
    battery,
    detect,
    ensembles,
    measure,
    memory,
    paths,
    perceptual,
    plots,
    protection,
    sets,
    speed,
    summary,
)
from benchmarks.groups import Group, grouped, kept
from benchmarks.measure import Trial
from benchmarks.rows import CODE, ROOT, Journal, Row, read
from benchmarks.sets import Case
from tests.support.pictures import SAMPLES
from tests.unit.evaluate.test_judge import edits as judged


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sets, of two photographs that ship with scikit-image."""
    folder = tmp_path_factory.mktemp("sets")
    for name in sets.FOLDERS.values():
        (folder / name).mkdir(parents=True)
    photo = Image.open(SAMPLES / "astronaut.png").convert("RGB")
    photo.save(folder / "photos/dev/astronaut.png")
    photo.resize((300, 300)).save(folder / "faces/astronaut.png")
    photo.resize((128, 128)).save(folder / "pairs/astronaut.png")
    mask = np.zeros((128, 128), dtype=np.uint8)
    mask[16:56, 40:80] = 255
    Image.fromarray(mask).save(folder / "pairs/astronaut.mask.png")
    return folder


@pytest.fixture(scope="module")
def case(data: Path) -> Case:
    (found,) = sets.cases("pairs", count=1, side=80, folder=data)
    return found


def test_masks_follow_their_pictures(data: Path) -> None:
    (pair,) = sets.cases("pairs", count=9, side=64, folder=data)
    assert pair.rgb.shape == (64, 64, 3)
    assert np.argwhere(pair.masks[0]).min(axis=0).tolist() == [8, 20]
    (dev,) = sets.cases("dev", count=9, side=100, folder=data)
    (again,) = sets.cases("dev", count=9, side=100, folder=data)
    assert (dev.masks[0] == again.masks[0]).all()
    assert 0 < dev.masks[0].mean() < 1 / 9
    (half,) = sets.cases("dev@0.5", count=9, side=100, folder=data)
    assert half.of == "dev@0.5"
    across = np.ptp(np.argwhere(half.masks[0]), axis=0).tolist()
    assert across == pytest.approx([min(half.rgb.shape[:2]) / 2] * 2, abs=1)
    (face,) = sets.cases("faces", count=9, side=75, folder=data)
    rows, columns = np.nonzero(face.masks[0])
    assert face.rgb.shape == (75, 75, 3)
    assert (rows.mean(), columns.mean()) == pytest.approx((17, 33), abs=5)


def test_gradients_that_contradict_each_other_are_turned_until_they_do_not() -> None:
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])
    apart = ensembles.pcgrad([first, second])
    assert torch.allclose(apart, torch.tensor([0.5, 0.5]) + torch.tensor([0.0, 1.0]))
    assert torch.equal(ensembles.pcgrad([first, -second]), summed([first, -second]))


def test_what_an_ensemble_keeps_is_counted_from_each_editor_alone() -> None:
    def row(way: str, **effects: float) -> Row:
        return {"set": "dev", "picture": "a", "way": way, "effects": effects, "psnr": 40.0, "cpu_s": 1.0}

    rows = [row("alone", x=0.8), row("alone", y=0.4), row("sum", x=0.6, y=0.3), row("pcgrad", x=0.4, y=0.4)]
    faces = [row("alone", x=0.2), row("alone", y=0.2), row("sum", x=0.1, y=0.2)]
    rows += [one | {"set": "faces"} for one in faces]
    cells = [line.strip("| ").split(" | ") for line in ensembles.table(rows).splitlines()[2:]]
    assert [[of, way, editor, n, kept] for of, _, way, editor, n, _, _, kept, *_ in cells] == [
        ["dev", "sum", "x", "1", "75%"],
        ["dev", "sum", "y", "1", "75%"],
        ["dev", "pcgrad", "x", "1", "50%"],
        ["dev", "pcgrad", "y", "1", "100%"],
        ["faces", "sum", "x", "1", "50%"],
        ["faces", "sum", "y", "1", "100%"],
    ]


def test_photographs_whose_names_begin_alike_get_regions_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "photos/dev").mkdir(parents=True)
    for name in ("100075", "100080"):
        Image.new("RGB", (90, 60)).save(tmp_path / f"photos/dev/{name}.png")
    one, other = sets.cases("dev", count=2, side=90, folder=tmp_path)
    assert (one.masks[0] != other.masks[0]).any()
    assert one.pixels != other.pixels, "which have the regions in them, too"


def test_the_parts_of_the_sets_are_all_of_them(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def names(*given: str) -> list[str]:
        parser = argparse.ArgumentParser()
        sets.add_options(parser, side=64)
        options = ["--set", "dev,pairs,dev", "--data", str(data), *given]
        return [case.of for case in sets.chosen(parser.parse_args(options))]

    assert names() == ["dev", "pairs", "dev"]
    assert [names("--part", part) for part in ("1/2", "2/2")] == [["dev", "dev"], ["pairs"]]
    with pytest.raises(SystemExit):
        names("--part", "3/2")
    assert "--part" in capsys.readouterr().err


def test_the_names_of_detectors_and_the_folder_of_photographs_are_checked(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for given, told in (
        (["face", "--data", str(data)], "got face, expected some of faces, text, signatures, logos"),
        (["faces", "--data", "/nowhere"], "/nowhere/photos/dev: no such folder; give --data"),
    ):
        with pytest.raises(SystemExit):
            detect.main(given)
        assert told in capsys.readouterr().err


def test_an_unknown_set_is_refused_by_name(data: Path) -> None:
    with pytest.raises(SystemExit, match="portraits"):
        list(sets.cases("portraits", count=1, side=64, folder=data))
    for wrong in ("dev@", "dev@0.6", "dev@0.01", "dev@half", "faces@0.2"):
        with pytest.raises(SystemExit, match=r"or such as dev@0\.5"):
            list(sets.cases(wrong, count=1, side=64, folder=data))


def test_the_error_for_a_missing_set_names_its_folder(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"faces: no such folder.*--data"):
        list(sets.cases("faces", count=1, side=64, folder=tmp_path))


@pytest.mark.parametrize("name", [*battery.BATTERY, "autoencoder flux2-mini"])
def test_a_treatment_changes_the_mask_like_the_picture(name: str, case: Case) -> None:
    rgb = np.zeros((*case.masks[0].shape, 3), np.uint8)
    rgb[case.masks[0]] = 255
    if name == "1080 px":
        assert battery.long_edge(rgb, case.masks[0]) is None
        treated = battery.long_edge(rgb, case.masks[0], most=60)
    else:
        treated = battery.treatments([inpaint.get("flux2-mini")])[name](rgb, case.masks[0])
    assert treated is not None
    after, mask = treated
    assert after.dtype == np.uint8
    assert after.shape == (*mask.shape, 3)
    # The picture is white where the mask is, apart from its soft edge.
    assert ((after.mean(axis=2) > 127) == mask).mean() > 0.97


def test_the_frechet_distance_is_that_of_gaussians() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, (4000, 3)), rng.normal(0, 3, (4000, 3)) + np.array([2.0, 0, 0])
    assert perceptual.frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert perceptual.frechet(a, b) == pytest.approx(4 + 3 * (1 - 3) ** 2, rel=0.1)
    covariances = np.cov(a.T), np.cov(b.T)
    values = np.linalg.eigvals(covariances[0] @ covariances[1])
    means = ((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum()
    direct = means + np.trace(sum(covariances)) - 2 * np.sqrt(values.real).sum()
    assert perceptual.frechet(a, b) == pytest.approx(direct)


def test_without_weights_nothing_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert perceptual.lpips() is None
    assert perceptual.clip(None) is None


@pytest.mark.slow
def test_clip_where_its_weights_are_at_hand(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")  # takes ten seconds to import
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape = transformers.CLIPVisionConfig(**small, image_size=32, patch_size=8, projection_dim=5)
    transformers.CLIPVisionModelWithProjection(shape).save_pretrained(tmp_path)
    features = perceptual.clip(tmp_path)
    black, white = np.zeros((40, 50, 3), np.float32), np.ones((40, 50, 3), np.float32)
    assert features is not None
    assert len(features(black)) == 5
    assert features(black) != features(white)
    with pytest.raises(SystemExit, match=r"--clip .*holds no CLIP vision model"):
        perceptual.clip(tmp_path / "nowhere")


def test_lpips_where_its_weights_are_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    black, white = np.zeros((40, 50, 3), np.float32), np.ones((40, 50, 3), np.float32)
    package = ModuleType("lpips")
    package.__spec__ = ModuleSpec("lpips", None)

    class Lpips(torch.nn.Module):
        def __init__(self, net: str, verbose: bool) -> None:
            super().__init__()

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return (a - b).abs().mean()

    package.LPIPS = Lpips  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", package)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / perceptual.BACKBONE).touch()
    distance = perceptual.lpips()
    assert distance is not None
    assert distance(black, white) == 2, "LPIPS gets values in [-1,1]"


def test_a_row_is_measured_once_and_an_incomplete_one_again(tmp_path: Path) -> None:
    log, calls = tmp_path / "out" / "rows.jsonl", list[int]()

    def one() -> Row:
        calls.append(1)
        return {"value": 7}

    Journal(log).row({"a": 1}, one)
    assert Journal(log).row({"a": 1}, one)["value"] == 7
    Journal(log).row({"a": 2}, one)
    assert len(calls) == 2
    log.write_text(log.read_text()[:-9])  # killed while writing the second
    journal = Journal(log)
    journal.row({"a": 1}, one)
    assert len(calls) == 2
    journal.row({"a": 2}, one)
    assert len(calls) == 3
    assert [row["a"] for row in read(log)] == [1, 2]
    Journal(log, "other code").row({"a": 1}, one)
    assert len(calls) == 4, "a row of other code is not reused"


def test_the_peak_of_memory_is_that_of_the_work_alone() -> None:
    with memory.peak() as first:
        bytearray(200 << 20)
    with memory.peak() as second:
        bytearray(20 << 20)
    assert 195 <= first.mb <= 260
    assert 15 <= second.mb <= 60


@pytest.mark.parametrize(
    ("name", "method", "epsilon", "iterations"),
    [
        ("implant", "implant", 6.4, 20),
        ("first-step@3", "first-step", 3, 20),
        ("implant@3.2x40", "implant", 3.2, 40),
        ("implant:flat@3", "implant", 3, 20),
        ("subtle", "implant", 8, None),
        ("baseline", "baseline", 6.4, 20),
    ],
)
def test_a_method_may_name_its_own_budget(
    name: str, method: str, epsilon: float, iterations: int | None
) -> None:
    found = protection.settings_of(
        name, epsilon=6.4, iterations=20, colour_share=0.5, flat_luma_share=0.2, robust_to=["jpeg"]
    )
    assert (found.method, found.epsilon) == (method, epsilon)
    assert iterations in (None, found.iterations)
    assert found.target == ("flat" if ":" in name else "away")
    if method == "baseline":
        assert (found.colour_share, found.flat_luma_share, found.robust_to) == (1, 1, ())
    else:
        assert found.robust_to == ("jpeg",), "what is asked for is not dropped without a word"


def test_an_unknown_method_names_the_known() -> None:
    with pytest.raises(SystemExit, match="got 'implnat', expected one of implant, encoder"):
        protection.settings_of("implnat")
    with pytest.raises(SystemExit, match="got 'implant:round'"):
        protection.settings_of("implant:round")
    with pytest.raises(SystemExit, match="has a target of its own"):
        protection.settings_of("baseline:inverted")


def test_a_sweep_has_every_point_of_each_target() -> None:
    given = protection.parser().parse_args(["--methods", "implant,implant:flat", "--epsilon", "4,8"])
    names = [plan.name for plan in protection.plans(given, [inpaint.get("flux2-mini")])]
    assert names == ["implant@4x100", "implant@8x100", "implant:flat@4x100", "implant:flat@8x100"]
    own = protection.parser().parse_args(["--methods", "implant@3", "--iterations", "15,80"])
    names = [plan.name for plan in protection.plans(own, [inpaint.get("flux2-mini")])]
    assert names == ["implant@3x15", "implant@3x80"]


def _row(picture: str, **edits: Any) -> Row:
    return {
        "set": "dev", "how": "implant", "picture": picture, "surrogates": ["a@1"], "judges": ["a@1"],
        "edits": {"a": edits}, "lpips": {}, "clip": {}, "psnr": 33.0, "ssim": 0.9, "max_change": 6,
        "iterations": 20, "cpu_s": 1.0, "peak_mb": 10, "load": 1.0, "verdicts": {},
        "settings": {"method": "implant", "epsilon": 6.4, "iterations": 20}, "size": [64, 48],
    }  # fmt: skip


def test_the_effect_that_is_kept_is_a_share_of_the_mean_effect_and_of_the_least_one() -> None:
    rows = [
        _row("one", full=[[0.5, 0.1]], **{"after blur": [[0.6, 0.1]], "after noise": [[0.9, 0.1]]}),
        _row("two", full=[[0.7, 0.1]], **{"after blur": [[0.8, 0.1]], "after noise": [None]}),
        _row("hardly", full=[[0.98, 0.1]], **{"after blur": [[0.999, 0.1]]}),
    ]
    (group,) = grouped(rows)
    share = kept(group, "after blur")
    assert share == pytest.approx(((0.4 + 0.2 + 0.001) / (0.5 + 0.3 + 0.02), 0.2 / 0.3))
    assert group.worst() == pytest.approx([0.9, 0.8, 0.999])
    assert kept(group, "after jpeg 75") is None
    assert "0.800 (1.00), 73% (67%)" in summary.robustness([group])


def test_columns_without_weights_say_so() -> None:
    text = summary.effect(grouped([_row("one", full=[[0.5, 0.1]])]))
    assert text.count("no weights") == 2
    row = _row("one", full=[[0.5, 0.1], [0.7, 0.3]]) | {
        "lpips": {"a": [0.2, 0.4]},
        "clip": {"a": [[[0.0, 1.0], [3.0, 1.0]], [[0.0, 2.0], [3.0, 2.0]]]},
    }
    text = summary.effect(grouped([row]))
    assert "| 0.300 (0.20) | 9.0 |" in text
    assert "| 2 | 0.600 (0.70) | 0.200 (0.10) |" in text
    one = _row("one", full=[[0.5, 0.1]]) | {"clip": {"a": [[[0.0, 1.0], [3.0, 1.0]]]}}
    assert "| no weights | needs two regions |" in summary.effect(grouped([one]))


def test_transfer_is_a_share_of_the_effect_on_the_surrogate() -> None:
    rows = []
    for surrogate, ssims in (("a", (0.5, 0.9)), ("b", (0.95, 0.6)), ("a+b", (0.6, 0.7))):
        row = _row("one")
        row["surrogates"] = [f"{name}@1" for name in surrogate.split("+")]
        row["judges"] = ["a@1", "b@1"]
        row["edits"] = {judge: {"full": [[ssim, 0.1]]} for judge, ssim in zip("ab", ssims, strict=True)}
        rows.append(row)
    text = summary.transfer(grouped(rows))
    assert "| dev | implant | a | 0.500 | 0.100, 25% |" in text
    assert "| dev | implant | a+b | 0.400, 80% | 0.300, 75% |" in text


def test_a_protection_changes_edits_and_an_unchanged_picture_does_not(case: Case) -> None:
    editor = inpaint.get("flux2-mini")
    trial = Trial(case, [editor])
    made = measure.protected(case, Protect(iterations=2), [editor])
    found: dict[str, list[list[float] | None]] = trial.edits(made.rgb)["edits"]["flux2-mini"]
    assert {"full", "near", "dilated", "cover 150%", "after jpeg 75", "after half size"} <= found.keys()
    assert all(one is None for one in found["after 1080 px"])
    assert "crop path" not in found, "the crop of so small a picture is all of it"
    (full,) = found["full"]
    assert full is not None
    assert full[0] < 0.99
    assert 1 - full[0] == pytest.approx(trial.effect(made.rgb))
    same = trial.edits(case.rgb)["edits"]["flux2-mini"]
    assert all(one in ([1.0, 0.0], None) for edit in same.values() for one in edit)
    paths = {editor.name: ("iopaint",)}
    edits, verdicts = measure.verdicts(case, made, Protect(), [editor], [], paths)
    assert (verdicts["unchanged"], verdicts["noise"]) == ("failed", "failed")
    assert {edit.path for edit in edits} == {*paths[editor.name]}
    quality = measure.quality(case.rgb, made)
    assert quality["max_change"] == np.abs(made.rgb.astype(int) - case.rgb).max() <= 12
    assert 30 < quality["psnr"] < 45
    assert 0.001 < quality["flip"] < quality["flip_p99"] < 0.5
    assert measure.quality(case.rgb, replace(made, rgb=case.rgb))["flip_p99"] == 0


def test_verdicts_are_those_of_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what a held-out editor cannot judge, and with every region, and noise as large at the ends."""
    white: Rgb = np.full((64, 64, 3), 255, np.uint8)
    mask = np.zeros((64, 64), np.bool_)
    mask[16:48, 16:48] = True
    case = Case("dev", "white", white, (mask,))
    crop = Crop(Box(0, 0, 64, 64), tuple(case.regions()), (64, 64))
    made = measure.Made(np.full_like(white, 250), [crop], 0.0, 0.0, 0)
    replayed, seen = Replayed(judged()), list[Rgb]()

    def replay(original: Rgb, published: Rgb, *_: Any, **__: Any) -> Replayed:
        seen.append(published)
        return replayed

    def verdict(made: measure.Made) -> str:
        return measure.verdicts(case, made, Protect(), [], [], {})[1]["published"]

    monkeypatch.setattr(measure, "replay", replay)
    assert verdict(made) == "protected"
    assert np.array_equal(seen[0], made.rgb), "noise that is cut off would be weaker"
    two = replace(made, crops=[replace(crop, regions=(*crop.regions, *crop.regions))])
    assert verdict(two) == "failed", "nothing was replayed of one of them"
    replayed.cannot_judge.append("region 0: the held-out editor cannot judge")
    assert verdict(made) == "weak"


def test_large_pictures_reach_the_editor_cropped() -> None:
    rgb = np.zeros((700, 900, 3), np.uint8)
    mask = np.zeros((700, 900), dtype=np.bool_)
    mask[300:320, 400:440] = True
    part, plane = measure.as_given(rgb, mask)
    assert part.shape == (276, 296, 3)
    assert plane.sum() == mask.sum()
    assert measure.as_given(rgb[:600, :800], mask[:600, :800])[0].shape == (600, 800, 3)


def test_a_run_measures_each_plan_on_each_set_once(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    arguments = ["--set", "dev,pairs", "--side", "56", "--data", str(data), "--out", str(tmp_path), "--plain"]
    arguments += ["--methods", "encoder,baseline", "--epsilon", "4", "--iterations", "1"]
    assert protection.main(arguments) == 0
    table = (tmp_path / "table.md").read_text()
    assert table.strip() in capsys.readouterr().out
    names = re.findall(r"^\| (\w+) \| (\S+) \|", table, re.MULTILINE)
    assert sorted(set(names)) == [
        (of, method) for of in ("dev", "pairs") for method in ("baseline", "encoder")
    ]
    with Image.open(tmp_path / "psnr.png") as plot:
        assert plot.width > 300
    before = (tmp_path / "rows.jsonl").read_text()
    assert protection.main(arguments) == 0
    assert (tmp_path / "rows.jsonl").read_text() == before, "nothing is measured again"


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["--set", "dev,nope"], "--set: got 'nope'"),
        (["--editors", "latent-minni"], "latent-minni"),
        (["--config", "/nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_bad_arguments_are_named(arguments: list[str], wrong: str) -> None:
    with pytest.raises(SystemExit, match=re.escape(wrong)):
        protection.main(arguments)


def test_every_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = []
    for iterations in (5, 20):
        row = _row("one", full=[[0.5, 0.1]], dilated=[[0.6, 0.1]], **{"after blur": [[0.6, 0.1]]})
        rows.append(
            row
            | {"how": f"implant@6.4x{iterations}", "settings": {**row["settings"], "iterations": iterations}}
        )
    plots.write(grouped(rows), tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {"incomplete.png", "robustness.png", "psnr.png", "sweep.png"}
    edits = {"b": {"full": [[0.9, 0.1]]}, **rows[0]["edits"]}
    (tmp_path / "two").mkdir()
    plots.write(grouped([rows[0] | {"judges": ["a@1", "b@1"], "edits": edits}]), tmp_path / "two")
    assert (tmp_path / "two" / "transfer.png").exists()


@pytest.mark.parametrize("reference", ["paper", "single-path"])
def test_ours_stops_where_it_reaches_the_reference(case: Case, reference: str) -> None:
    editor, steps = inpaint.get("flux2-mini"), speed.Steps(reference=1, ours=(1, 4))
    row = speed.equal(case, editor, "implant", most=1.0, few=1, reference=reference, steps=steps)
    assert not row["reference"]["scaled"]
    assert not row["short"]
    assert row["ours"]["effect"] >= row["reference"]["effect"] > 0
    assert row["ours"]["iterations"] in steps.ours
    assert row["ratio"] == pytest.approx(row["reference"]["cpu_s"] / row["ours"]["cpu_s"], rel=0.1)

    class Same(Trial):
        def effect(self, rgb: Rgb) -> float:
            return 0.1

    trial = Same(case, [editor], plain=True)
    assert speed.ours(trial, editor, "implant", 0.1, ladder=(1, 2))[0] == 1, "an equal effect is enough"
    run = {"kind": "equal", "size": [96, 96], "method": "implant", "reference_strength": reference, **row}
    assert f"| 96x96 | {reference} | implant | 1 of 1 |" in speed.table([run])


@pytest.mark.parametrize(("reference", "paths"), [("quick", {"all", "first"}), ("single-path", {"first"})])
def test_a_reference_is_optimised_through_the_tools_of_its_settings(
    reference: str, paths: set[str], case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    through: dict[str, bool] = {}
    height, width = case.rgb.shape[:2]
    crop = Crop(Box(0, 0, width, height), tuple(case.regions()), (height, width))

    def protected(case: Case, settings: Protect, *_: Any, **how: Any) -> measure.Made:
        through[settings.paths] = bool(how.get("through"))
        return measure.Made(case.rgb, [crop], 1.0, 1.0, 0)

    monkeypatch.setattr(measure, "protected", protected)
    monkeypatch.setattr(measure, "warm", lambda editors: None)
    monkeypatch.setattr(Trial, "effect", lambda self, rgb: 0.1)
    speed.equal(case, inpaint.get("flux2-mini"), "implant", most=1.0, few=1, reference=reference)
    assert through == {name: name == "all" for name in paths}


def test_means_are_over_the_pictures_in_which_the_effect_was_reached() -> None:
    def row(effect: float, *, short: bool) -> Row:
        own = {"effect": effect, "psnr": 40.0, "cpu_s": 1.0, "iterations": 4}
        return {
            "kind": "equal",
            "size": [96, 96],
            "method": "implant",
            "reference_strength": "paper",
            "reference": own | {"scaled": False},
            "ours": own,
            "short": short,
            "ratio": 1.0,
            "load": 0.0,
        }

    rows = [row(0.2, short=False), row(0.8, short=True)]
    assert "| 96x96 | paper | implant | 1 of 2 | 0.200 | 0.200 |" in speed.table(rows)
    assert "| 0 of 1 | - | - |" in speed.table(rows[1:])


def test_another_picture_of_a_name_is_another_row(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(speed, "equal", lambda *_, **__: {"short": True, "load": 0.0})
    monkeypatch.setattr(speed, "_apart", lambda what: {"cpu_s": 1.0, "peak_mb": 1, "load": 0.0})
    monkeypatch.setattr(speed, "table", lambda rows: "")
    other = tmp_path / "other"
    shutil.copytree(data / "pairs", other / "pairs")
    Image.open(SAMPLES / "coffee.png").resize((128, 128)).save(other / "pairs" / "astronaut.png")
    log = tmp_path / "out" / "rows.jsonl"
    for folder, lines in ((data, 2), (data, 2), (other, 4)):
        arguments = ["--equal", "96", "--sizes", "96", "--regions", "", "--most", "0", "--runs", "1"]
        assert speed.main([*arguments, "--data", str(folder), "--out", str(log.parent)]) == 0
        rows = read(log)
        assert len(rows) == lines
    assert {row["picture"] for row in rows} == {"astronaut.png"}
    assert len({row["pixels"] for row in rows}) == 2


def test_other_weights_in_a_folder_of_the_same_name_are_other_features(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    digests = set[str]()
    for weights in (b"one", b"other"):
        (folder / "model.safetensors").write_bytes(weights)
        digests.add(perceptual.clip_digest(folder))
    assert len(digests) == 2


def test_time_and_memory_by_size_are_measured_in_processes_of_their_own(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    arguments = ["--equal", "", "--sizes", "96x80", "--regions", "", "--few", "1", "--data", str(data)]
    assert speed.main([*arguments, "--most", "0", "--out", str(tmp_path)]) == 0
    (row,) = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert (row["size"], row["method"], row["regions"]) == ([96, 80], "implant", 1)
    assert row["cpu_s"] > 0
    assert row["peak_mb"] > 0
    assert "| implant | 96x80 | 1 | 1 |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "growth.png").exists()
    digest = inpaint.get("flux2-mini").weights_sha256[:8]
    assert row["editor"] == f"flux2-mini@{digest}", "other weights are another row"


def test_no_sizes_are_no_growth_and_an_unknown_editor_is_named(data: Path, tmp_path: Path) -> None:
    given = ["--equal", "", "--data", str(data), "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match="nothing to measure"):
        speed.main([*given, "--sizes", "", "--regions", "2"])
    with pytest.raises(SystemExit, match="did you mean 'flux2-mini'"):
        speed.main([*given, "--editor", "flux2-mni"])


def test_rows_of_older_code_are_not_part_of_a_mean() -> None:
    """A log keeps the rows of all code; a picture that is measured again must not count twice."""
    old, new = _row("one", full=[[0.9, 0.1]]), _row("one", full=[[0.5, 0.1]])
    (group,) = grouped([{**old, "psnr": 99.0}, new, _row("two", full=[[0.7, 0.1]])])
    assert [row["psnr"] for row in group.rows] == [33.0, 33.0]
    assert group.values("full") == [0.5, 0.7]


def test_all_code_of_the_package_and_of_the_benchmarks_is_part_of_a_rows_key() -> None:
    digested = {path for pattern in CODE for path in ROOT.glob(pattern)}
    assert {*(ROOT / "daemon").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")} <= digested


def test_rows_are_grouped_by_set_and_method() -> None:
    rows = [_row("one", full=[[0.5, 0.1]]), _row("two", full=[[0.5, 0.1]])]
    rows += [
        {**_row("one", full=[[0.5, 0.1]]), "set": "pairs"},
        {**_row("one", full=[[0.5, 0.1]]), "how": "baseline"},
    ]
    groups = grouped(rows)
    assert [(g.of, g.how, len(g.rows)) for g in groups] == [
        ("dev", "implant", 2),
        ("pairs", "implant", 1),
        ("dev", "baseline", 1),
    ]
    assert isinstance(groups[0], Group)


def test_a_table_of_paths_has_every_judge_and_the_controls(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--set", "dev", "--count", "1", "--side", "56", "--data", str(data), "--out", str(tmp_path)]
    arguments += [
        "--strengths",
        "single-path+iterations=2:1,balanced:0",
        "--editors",
        "flux2-mini",
        "--held-out",
        "flux2-micro",
    ]
    single, tools = "single-path+iterations=2", {"iopaint"}
    own = tmp_path / "config.yaml"
    own.write_text(json.dumps({"folders": {"inbox": "inbox"}, "verify": {"paths": sorted(tools)}}))
    arguments += ["--config", str(own)]
    assert paths.main(arguments) == 0
    table = (tmp_path / "table.md").read_text()
    assert table == capsys.readouterr().out[-len(table) :]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert {row[4] for row in rows if row[:2] == ["dev", single] and row[3:4] == ["trigger"]} == tools
    assert {row[2] for row in rows if row[3:4] == ["trigger"]} == {"flux2-mini", "flux2-micro"}
    assert [row[4] for row in rows if row[:3] == ["dev", single, "1"]] == ["2 failed"]
    assert not [row for row in rows if "balanced" in row], "of which no picture was wanted"


def test_sets_are_drawn_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bars: dict[str, list[float]] = {}

    def bar(at: Any, heights: list[float], wide: float, *, label: str) -> list[Any]:
        bars[label] = heights
        return [SimpleNamespace(get_height=lambda: 0.0) for _ in heights]

    @contextmanager
    def axes(*_: Any, **__: Any) -> Iterator[Any]:
        drawn = MagicMock()
        drawn.bar = bar
        yield drawn

    def row(of: str, strength: str, visible: float) -> Row:
        edit = {"mask_kind": "trigger", "path": "iopaint", "visible": visible}
        return {"set": of, "strength": strength, "edits": [{**edit, "editor": one} for one in ("a", "b")]}

    monkeypatch.setattr(plots, "axes", axes)
    rows = [row("dev", "quick", 0.2), row("dev", "balanced", 0.6), row("faces", "balanced", 0.4)]
    paths.plot(rows, tmp_path / "tools.png")
    assert bars == {
        "dev: strength quick, edits by a": [20.0],
        "dev: strength balanced, edits by a": [60.0],
        "dev: strength balanced, edits by b": [60.0],
        "faces: strength balanced, edits by a": [40.0],
        "faces: strength balanced, edits by b": [40.0],
    }


def test_paths_can_be_judged_on_further_paths_with_every_edit_and_without_controls(
    data: Path, tmp_path: Path
) -> None:
    arguments = ["--set", "dev", "--count", "1", "--side", "56", "--data", str(data), "--out", str(tmp_path)]
    own = tmp_path / "config.yaml"  # the fewest tools, since each edit is made at 512 px and larger
    own.write_text(json.dumps({"folders": {"inbox": "inbox"}, "verify": {"paths": ["iopaint"]}}))
    arguments += ["--strengths", "single-path+iterations=2", "--judged-on", "forge-whole"]
    assert paths.main([*arguments, "--everywhere", "--published-only", "--config", str(own)]) == 0
    (row,) = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert list(row["verdicts"]) == ["published"]
    by = {(edit["path"], edit["mask_kind"]): edit for edit in row["edits"]}
    assert {path for path, _ in by} == {"iopaint", "forge-whole"}
    assert {kind for path, kind in by if path == "forge-whole"} >= {"trigger", "near"}
    triggers = [edit for edit in by.values() if edit["mask_kind"] == "trigger"]
    assert all(edit["control_ssim"] is not None for edit in triggers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--strengths", "balanced+iterations=none"], "balanced\\+iterations=none"),
        (["--strengths", "balanced,quick+escalate=[balanced]"], "escalate judges while it optimises"),
        (["--judged-on", "photoshop"], "photoshop.*expected some of iopaint"),
        (["--held-out", "flux2-mini"], "flux2-mini.*is among --editors"),
    ],
)
def test_a_wrong_option_names_itself_before_anything_is_measured(
    data: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    arguments = ["--set", "dev", "--count", "1", "--data", str(data), "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match=message):
        paths.main([*arguments, *options])
    assert not list(tmp_path.iterdir())
