"""Training: an interrupted run ends where an unbroken one does, and its export is an editor."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from backfire.inpaint.lama import Config, Generator, LamaEditor
from backfire.inpaint.latent import ShiftMapEditor
from backfire.inpaint.ldm import LdmEditor
from tests.support.pictures import photo
from training import data, lama, latent_mini, ldm_mini
from training.run import Options, Run, save_half

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
        lama.train(photos, folder, Options(STEPS, seed=5, batch=2, size=32), TINY)

    return start


class Interrupted(Run):
    """Ctrl-C comes before the last step but one."""

    def loop(self, one: Callable[[int], dict[str, torch.Tensor]], sample: Callable[[], torch.Tensor]) -> None:
        def interrupted(step: int) -> dict[str, torch.Tensor]:
            if step == STEPS - 2:
                raise KeyboardInterrupt
            return one(step)

        super().loop(interrupted, sample)


def parts(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(folder / "last.pt", weights_only=True)["parts"]
    return loaded


def test_an_interrupted_run_goes_on_and_its_export_fills(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    train(unbroken)

    with monkeypatch.context() as patch:
        patch.setattr(lama, "Run", functools.partial(Interrupted, save_s=-1.0, every=1))
        with pytest.raises(KeyboardInterrupt):
            train(broken)
    assert torch.load(broken / "last.pt", weights_only=True)["step"] == STEPS - 2
    train(broken)

    rows = [json.loads(line) for line in (broken / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    whole, resumed = parts(unbroken), parts(broken)
    for name in ("net", "critics", "ema"):
        for key, value in whole[name].items():
            assert torch.equal(value, resumed[name][key]), f"{name}: {key}"
    assert (unbroken / f"sample-{STEPS:06d}.jpg").exists()

    lama.export(unbroken, tmp_path / "lama-mini.safetensors", TINY)
    editor = LamaEditor.load("lama-mini", tmp_path / "lama-mini.safetensors")
    assert editor.net.config == TINY
    averaged = whole["ema"]["model.1.bn_l.running_var"]
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


def test_a_run_of_minutes_ends_in_time_and_can_be_exported(photos: Path, tmp_path: Path) -> None:
    lama.train(photos, tmp_path / "run", Options(steps=10**9, minutes=1e-6, batch=2, size=32), TINY)
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["step"] == 1
    lama.export(tmp_path / "run", tmp_path / "mine.safetensors", TINY)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # Python 3.12 and newer, of a fork
def test_worker_processes_draw_the_same_crops(photos: Path) -> None:
    pictures = data.load(photos)

    def drawn(workers: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        crops = data.stream(pictures, lambda step: (1 + step % 2, 32), Options(9, workers=workers), 3)
        return list(itertools.islice(crops, 3))

    for alone, helped in zip(drawn(0), drawn(2), strict=True):
        assert torch.equal(alone[0], helped[0])
        assert torch.equal(alone[1], helped[1])


def test_latent_mini_trains_and_exports_an_editor(photos: Path, tmp_path: Path) -> None:
    for steps in (1, 2):  # the second goes on from the first, and sees wider crops
        options = Options(steps, batch=4, size=32)
        latent_mini.autoencoder(photos, tmp_path / "autoencoder", options)
        latent_mini.inpainter(photos, tmp_path / "autoencoder", tmp_path / "inpainter", options)
    latent_mini.export(tmp_path / "inpainter", tmp_path / "mine.safetensors")
    editor = ShiftMapEditor.from_file("mine", tmp_path / "mine.safetensors")
    image, mask = data.draw(data.load(photos), 1, 64, np.random.default_rng(0), torch.device("cpu"))
    with torch.inference_mode():
        assert editor.inpaint(image, mask).shape == image.shape

    # And on from what was exported: by turns the decoder and the net, after the critics alone.
    before = load_file(tmp_path / "mine.safetensors")
    latent_mini.inpainter(
        photos, tmp_path / "mine.safetensors", tmp_path / "on", Options(7, batch=4, size=32)
    )
    latent_mini.export(tmp_path / "on", tmp_path / "on.safetensors")
    after = load_file(tmp_path / "on.safetensors")
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"net", "decoder"}
    assert not torch.equal(before["net.conv_out.weight"], after["net.conv_out.weight"])  # by critics alone


def test_ldm_mini_trains_resumes_and_exports_an_editor(photos: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for steps in (1, 2):  # the second goes on from the first
        ldm_mini.unet(photos, runs / "ldm-unet", Options(steps, batch=2, size=32), crops=4)
        ldm_mini.decoder(photos, runs / "ldm-decoder", Options(steps, batch=2, size=32))

    ldm_mini.export(runs, tmp_path / "mine.safetensors")
    editor = LdmEditor.from_file("mine", tmp_path / "mine.safetensors")
    image, mask = data.draw(data.load(photos), 1, 64, np.random.default_rng(0), torch.device("cpu"))
    with torch.inference_mode():
        latents = editor.encode(image, torch.zeros_like(mask))
        assert editor.inpaint(image, mask).shape == image.shape
    assert 0.5 < float(latents.std()) < 2, "the denoising network works on latents of unit variance"
