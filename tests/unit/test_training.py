"""Training: an interrupted run ends where an unbroken one does, and its export is an editor."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from daemon.editors.lama import Config, Generator, LamaEditor
from daemon.editors.ldm import LdmEditor
from tests.conftest import photo
from training import data, lama, ldm_mini
from training.run import Run, save_half

TINY = Config(base=8, blocks=1)
STEPS = 3


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(3):
        photo(seed=seed).save(folder / f"{seed}.png")
    return folder


Train = Callable[[Path], None]


@pytest.fixture
def train(photos: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    # Saved and logged at every step, where a real run does so now and then.
    monkeypatch.setattr(lama, "Run", functools.partial(Run, save_s=-1.0, every=1))

    def start(folder: Path) -> None:
        lama.train(photos, folder, steps=STEPS, seed=5, batch=2, size=32, config=TINY)

    return start


def parts(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(folder / "last.pt", weights_only=True)["parts"]
    return loaded


def test_an_interrupted_run_goes_on_and_its_export_fills(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    train(unbroken)

    drawn = 0
    draw = data.draw

    def interrupted(*arguments: Any) -> Any:
        nonlocal drawn
        drawn += 1
        if drawn == STEPS - 1:
            raise KeyboardInterrupt
        return draw(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(data, "draw", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(broken)
    assert torch.load(broken / "last.pt", weights_only=True)["step"] == STEPS - 2
    train(broken)

    rows = [json.loads(line) for line in (broken / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for name in ("net", "critics", "ema"):
        for key, value in parts(unbroken)[name].items():
            assert torch.equal(value, parts(broken)[name][key]), f"{name}: {key}"
    assert (unbroken / f"sample-{STEPS:06d}.jpg").exists()

    lama.export(unbroken, tmp_path / "lama-mini.safetensors", TINY)
    editor = LamaEditor.load("lama-mini", tmp_path / "lama-mini.safetensors")
    assert editor.net.config == TINY
    averaged = parts(unbroken)["ema"]["model.1.bn_l.running_var"]
    assert torch.equal(editor.net.state_dict()["model.1.bn_l.running_var"], averaged)
    assert not torch.equal(averaged, torch.ones_like(averaged)), "statistics are learnt, not the start's"


def test_judge_takes_an_editor_by_name_or_by_file(tmp_path: Path, photos: Path) -> None:
    pytest.importorskip("cv2")
    from training import judge

    torch.manual_seed(0)
    path = tmp_path / "mine.safetensors"
    save_half(Generator(TINY), path)
    editor = judge.editor("unused", path, "lama")
    assert editor.name == "mine"
    judge.judge(photos, editor, tmp_path / "judged", count=2, seed=1)
    figures = json.loads((tmp_path / "judged" / "judge.json").read_text())
    assert set(figures) == {"mine", "telea", "navier-stokes"}
    assert all(np.isfinite(list(row.values())).all() for row in figures.values())
    assert (tmp_path / "judged" / "fills.jpg").exists()
    assert judge.editor("latent-mini", None, "latent").name == "latent-mini"
    with pytest.raises(SystemExit, match="did you mean 'latent-mini'"):
        judge.editor("latent-mni", None, "latent")
    with pytest.raises(SystemExit, match="cannot be loaded"):
        judge.editor("unused", tmp_path / "absent", "lama")


def test_ldm_mini_trains_resumes_and_exports_an_editor(photos: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    short = {"seed": 1, "batch": 2, "size": 32}
    for steps in (1, 2):  # the second goes on from the first
        ldm_mini.unet(photos, runs / "ldm-unet", steps=steps, crops=4, **short)
        ldm_mini.decoder(photos, runs / "ldm-decoder", steps=steps, **short)

    ldm_mini.export(runs, tmp_path / "mine.safetensors")
    editor = LdmEditor.from_file("mine", tmp_path / "mine.safetensors")
    image, mask = data.draw(data.load(photos), 1, 64, np.random.default_rng(0))
    with torch.inference_mode():
        latents = editor.encode(image, torch.zeros_like(mask))
        assert editor.inpaint(image, mask).shape == image.shape
    assert 0.5 < float(latents.std()) < 2, "the denoising network works on latents of unit variance"
