"""Training: an interrupted and resumed run ends like an uninterrupted one, and its export is an editor."""

from __future__ import annotations

import ctypes
import functools
import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from backfire.inpaint.lama import Config, Generator, LamaEditor
from backfire.inpaint.ldm import LdmEditor
from tests.support.pictures import photo
from training import autoencoder, data, lama, ldm_mini
from training.__main__ import main
from training.run import Options, Run, save_half

TINY = Config(base=8, blocks=1)
STEPS = 3


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(3):
        photo(seed=seed).save(folder / f"{seed}.png")
    return folder


def train(photos: Path, folder: Path, kind: type[Run] = Run) -> None:
    """Train a tiny net; saves and logs at every step, where a real run does so now and then."""
    start = functools.partial(kind, save_s=-1.0, every=1)
    lama.train(photos, folder, Options(STEPS, seed=5, batch=2, size=32), TINY, start)


class Interrupted(Run):
    """A run that is interrupted, as by Ctrl-C, before its last step but one."""

    def loop(self, one: Callable[[int], dict[str, torch.Tensor]], sample: Callable[[], torch.Tensor]) -> None:
        def interrupted(step: int) -> dict[str, torch.Tensor]:
            if step == STEPS - 2:
                raise KeyboardInterrupt
            return one(step)

        super().loop(interrupted, sample)


def parts(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(folder / "last.pt", weights_only=True)["parts"]
    return loaded


def test_an_interrupted_run_is_resumed_and_its_export_is_an_editor(photos: Path, tmp_path: Path) -> None:
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    train(photos, unbroken)
    with pytest.raises(KeyboardInterrupt):
        train(photos, broken, Interrupted)
    assert torch.load(broken / "last.pt", weights_only=True)["step"] == STEPS - 2
    train(photos, broken)

    rows = [json.loads(line) for line in (broken / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    whole, resumed = parts(unbroken), parts(broken)
    for name in ("net", "critics", "ema"):
        for key, value in whole[name].items():
            assert torch.equal(value, resumed[name][key]), f"{name}: {key}"
    assert (unbroken / f"sample-{STEPS:06d}.jpg").exists()

    lama.export(unbroken, tmp_path / "lama-mini.safetensors")
    editor = LamaEditor.load("lama-mini", tmp_path / "lama-mini.safetensors")
    assert editor.net.config == TINY
    averaged = whole["ema"]["model.1.bn_l.running_var"]
    assert torch.equal(editor.net.state_dict()["model.1.bn_l.running_var"], averaged)
    assert not torch.equal(averaged, torch.ones_like(averaged)), "the statistics were learnt"


def test_judge_takes_an_editor_by_name_or_by_file(tmp_path: Path, photos: Path) -> None:
    pytest.importorskip("cv2")
    from training import judge

    torch.manual_seed(0)
    path = tmp_path / "mine.safetensors"
    save_half(Generator(TINY).state_dict(), path)
    (editor,) = judge.editors("unused", path, "lama")
    assert editor.name == "mine"
    judge.judge(photos, [editor], tmp_path / "judged", count=5, seed=1)
    found = json.loads((tmp_path / "judged" / "judge.json").read_text())
    assert set(found["fills"]) == {"mine", "telea", "navier-stokes"}
    assert all(np.isfinite(list(row.values())).all() for row in found["fills"].values())
    assert found["run"]["weights_sha256"] == {"mine": editor.weights_sha256}
    assert (found["run"]["photographs"], found["autoencoders"]) == (3, {}), "of five that were asked for"
    assert (tmp_path / "judged" / "fills-mine.jpg").exists()
    with pytest.raises(SystemExit, match="did you mean 'flux2-mini'"):
        judge.editors("flux2-mni", None, "latent")
    with pytest.raises(SystemExit, match="cannot be loaded"):
        judge.editors("unused", tmp_path / "absent", "lama")


def test_judge_shows_every_editor_the_same_holes(tmp_path: Path, photos: Path) -> None:
    pytest.importorskip("cv2")
    from training import judge

    def judged(names: str, folder: str) -> Any:
        judge.judge(photos, judge.editors(names, None, "latent"), tmp_path / folder, count=2, seed=1)
        return json.loads((tmp_path / folder / "judge.json").read_text())

    both, alone = judged("flux2-mini,flux2-micro", "both"), judged("flux2-micro", "alone")
    assert set(both["fills"]) == {"flux2-mini", "flux2-micro", "telea", "navier-stokes"}
    for name in ("flux2-micro", "telea"):
        assert both["fills"][name] == alone["fills"][name]
    assert both["fills"]["flux2-mini"] != both["fills"]["flux2-micro"]
    assert set(both["autoencoders"]) == {"flux2-mini", "flux2-micro"}


def test_a_picture_that_cannot_be_read_is_named_and_left_out(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    photo().save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    assert len(data.load(tmp_path)) == 1
    assert capsys.readouterr().err.startswith(f"{tmp_path / 'truncated.jpg'}: cannot be read (")
    (tmp_path / "whole.jpg").unlink()
    photo().save(tmp_path / "bomb.png")
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(SystemExit, match="no pictures found; name a folder"):
            data.load(tmp_path)
    assert f"{tmp_path / 'bomb.png'}: cannot be read (Image size" in capsys.readouterr().err


def test_a_seed_picks_among_all_photographs_and_no_others_are_read(photos: Path) -> None:
    every = [data.digest([picture]) for picture in data.load(photos)]
    picked = [[data.digest([one]) for one in data.load(photos, 2, seed)] for seed in range(9)]
    assert all(len({*some}) == 2 for some in picked)
    assert {one for some in picked for one in some} == {*every}
    assert [data.digest([one]) for one in data.load(photos, 2, 0)] == picked[0]


def test_the_losses_in_the_log_are_means_after_a_resume_too(tmp_path: Path) -> None:
    run = Run(tmp_path, Options(steps=8), {}, every=4, step=3)
    run.loop(lambda step: {"loss": torch.tensor(1.0)}, lambda: torch.zeros(1, 1, 3, 8, 8))
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in logged] == [(4, 1.0), (8, 1.0)]


def test_what_was_logged_after_the_last_save_is_not_logged_twice(tmp_path: Path) -> None:
    def run(steps: int) -> Run:
        return Run(tmp_path, Options(steps), {}, every=2)

    def one(step: int) -> dict[str, torch.Tensor]:
        return {"loss": torch.tensor(1.0)}

    first, again = run(4), run(8)
    first.loop(one, lambda: torch.zeros(1, 1, 3, 8, 8))
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 6, "seconds": 0, "loss": 3.0}\n{"step": 8, "sec')
    again.resume()
    again.loop(one, lambda: torch.zeros(1, 1, 3, 8, 8))
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in logged] == [(2, 1.0), (4, 1.0), (6, 1.0), (8, 1.0)]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone is told to")
def test_memory_that_a_step_frees_stays_for_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    libc = SimpleNamespace(
        mallopt=lambda *_: called.append("kept"), malloc_trim=lambda _: called.append("given back")
    )
    monkeypatch.setattr(ctypes, "CDLL", lambda name: libc)

    def one(step: int) -> dict[str, torch.Tensor]:
        assert set(called) == {"kept"}
        return {}

    Run(tmp_path, Options(steps=2), {}).loop(one, lambda: torch.zeros(1, 1, 3, 8, 8))
    assert called[-1] == "given back"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("--size 100", "--size: got '100', expected a whole number, 8 or more and a multiple of 8"),
        ("--batch 0", "--batch: got '0', expected a whole number, 1 or more;"),
        ("--steps -1", "--steps: got '-1', expected"),
        ("--steps many", "--steps: got 'many', expected"),
        ("--minutes 0", "--minutes: got '0', expected a number above 0"),
        ("--minutes soon", "--minutes: got 'soon', expected a number above 0"),
        ("--channels 20", "--channels: got '20', expected"),
        ("--crops 0", "--crops: got '0', expected"),
        ("--critics-weight -1", "--critics-weight: got '-1', expected a number above 0"),
        ("--width 96", "--width: got '96', expected two numbers with a comma; give such as 96,144"),
        ("--width 96,100", "expected a whole number, 16 or more and a multiple of 16"),
    ],
)
def test_numbers_that_nothing_can_be_made_of_are_refused(
    given: str, says: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["autoencoder", "--data", str(photos), *given.split()])
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("editor", ["lama-mini", "ldm-mini", "flux2-mini"])
def test_an_export_of_what_was_not_trained_says_so(editor: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"last\.pt: no such file, .*train it first, or name .* --runs"):
        main(["export", "--editor", editor, "--runs", str(tmp_path), "--weights", str(tmp_path / "out")])


def test_a_run_of_minutes_ends_in_time_and_can_be_exported(photos: Path, tmp_path: Path) -> None:
    lama.train(photos, tmp_path / "run", Options(steps=10**9, minutes=1e-6, batch=2, size=32), TINY)
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["step"] == 1
    lama.export(tmp_path / "run", tmp_path / "mine.safetensors")


def test_a_run_of_another_version_is_refused(photos: Path, tmp_path: Path) -> None:
    lama.train(photos, tmp_path / "run", Options(steps=1, batch=2, size=32), TINY)
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    state["parts"]["critic"] = state["parts"].pop("critics")
    torch.save(state, tmp_path / "run" / "last.pt")
    with pytest.raises(SystemExit, match=r"critic.*expected .*critics.*give --runs another folder"):
        lama.train(photos, tmp_path / "run", Options(steps=2, batch=2, size=32), TINY)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (Options(steps=2, batch=2, size=32, seed=2), r"got a run with seed 1 \(now 2\); give the same again"),
        (Options(steps=2, batch=3, size=64), r"got a run with batch 2 \(now 3\), size 32 \(now 64\);"),
    ],
)
def test_a_run_is_not_resumed_with_other_options(
    options: Options, told: str, photos: Path, tmp_path: Path
) -> None:
    lama.train(photos, tmp_path, Options(steps=1, batch=2, size=32), TINY)
    with pytest.raises(SystemExit, match=told):
        lama.train(photos, tmp_path, options, TINY)


def test_a_run_is_not_resumed_with_other_photographs_and_an_old_one_is_believed(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = Options(steps=1, batch=2, size=32), Options(steps=2, workers=1, batch=2, size=32)
    lama.train(photos, tmp_path / "run", one, TINY)
    (tmp_path / "other").mkdir()
    photo(seed=9).save(tmp_path / "other" / "9.png")
    with pytest.raises(SystemExit, match=r"got a run with photographs [0-9a-f]+ \(now [0-9a-f]+\);"):
        lama.train(tmp_path / "other", tmp_path / "run", two, TINY)
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    del state["made_from"]  # as of a version that kept none
    torch.save(state, tmp_path / "run" / "last.pt")
    lama.train(photos, tmp_path / "run", replace(two, workers=0), TINY)
    said = capsys.readouterr().out
    assert "does not say from what it was made" in said
    assert "resumed at step 1" in said


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # Python 3.12 and newer, of a fork
def test_worker_processes_draw_the_same_crops(photos: Path) -> None:
    pictures = data.load(photos)

    def drawn(workers: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        crops = data.stream(pictures, lambda step: (1 + step % 2, 32), Options(9, workers=workers), 3)
        return list(itertools.islice(crops, 3))

    for alone, helped in zip(drawn(0), drawn(2), strict=True):
        assert torch.equal(alone[0], helped[0])
        assert torch.equal(alone[1], helped[1])


def test_ldm_mini_trains_resumes_and_exports_an_editor(photos: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with pytest.raises(SystemExit, match="run first: python -m training autoencoder"):
        ldm_mini.decoder(photos, runs / "autoencoder", runs / "ldm-decoder", Options(1))
    for steps in (1, 2):
        autoencoder.train(photos, runs / "autoencoder", Options(steps, batch=4, size=32))
    for steps in (1, 2):  # the second goes on from the first
        options = Options(steps, batch=2, size=32)
        ldm_mini.unet(photos, runs / "autoencoder", runs / "ldm-unet", options, crops=4)
        ldm_mini.decoder(photos, runs / "autoencoder", runs / "ldm-decoder", options)

    ldm_mini.export(runs, tmp_path / "mine.safetensors")
    state = torch.load(runs / "ldm-unet" / "last.pt", weights_only=True)
    other = {**state, "made_from": {**state["made_from"], "autoencoder": "another"}}
    torch.save(other, runs / "ldm-unet" / "last.pt")
    with pytest.raises(SystemExit, match="got autoencoder another in ldm-unet and"):
        ldm_mini.export(runs, tmp_path / "mixed.safetensors")
    editor = LdmEditor.from_file("mine", tmp_path / "mine.safetensors")
    image, mask = data.draw(data.load(photos), 1, 64, np.random.default_rng(0), torch.device("cpu"))
    with torch.inference_mode():
        latents = editor.encode(image, torch.zeros_like(mask))
        assert editor.inpaint(image, mask).shape == image.shape
    assert 0.5 < float(latents.std()) < 2, "the denoising network works on latents of unit variance"
