"""Stored starts for the editors that a configuration declares: made, found, and refused for other weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from backfire import config, inpaint
from backfire.attack_paths import cropping
from backfire.config import Protect, Settings
from backfire.errors import ModelError
from backfire.inpaint.base import Editor
from backfire.perturb import starts
from backfire.perturb.methods.base import Task
from backfire.perturb.methods.iterative import IterativeMethod
from backfire.perturb.optimiser import Optimiser
from backfire.pipeline.memory import Frugal
from backfire.types import Box, Region, Rgb
from tests.support.pictures import photo
from tests.unit.inpaint.test_encoders import pair
from training import start
from training.__main__ import main


class Still(IterativeMethod):
    """Looks at the edit and never takes a step."""

    stepper = staticmethod(lambda task, iterations: lambda gradient, iteration: torch.zeros_like(gradient))

    def respond(self, surrogate: Editor, image: Tensor, mask: Tensor, draw: int) -> Tensor:
        return surrogate.inpaint(image, mask)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny editor, a configuration of it, and tiles of two steps for it in `tiles`."""
    folder = tmp_path_factory.mktemp("start")
    (folder / "photos").mkdir()
    for seed in range(2):
        photo((96, 128), seed=seed).save(folder / "photos" / f"{seed}.png")
    pair(folder / "pair")
    trained(folder, "--out", str(folder / "tiles"))
    return folder


def declared(base: Path, **keys: Any) -> Path:
    """A configuration of the tiny editor; an even budget, so that a start is not cut to the picture."""
    data = {
        "folders": {"inbox": "in"},
        "models": {"folder": "models"},
        "editors": {"toy": {"kind": "latent", "weights": "pair", **keys}},
        "protect": {"surrogates": ["toy"], "colour_share": 1, "flat_luma_share": 1, "iterations": 1},
        "verify": {"paths": ["iopaint"], "held_out": []},
    }
    file = base / "config.yaml"
    file.write_text(yaml.safe_dump(data))
    return file


def trained(base: Path, *more: str, **keys: Any) -> None:
    photos, runs, file = base / "photos", base / "runs", declared(base, **keys)
    given = f"start --data {photos} --runs {runs} --editors toy --config {file} --steps 2 --count 2".split()
    main([*given, *more])


def settings(base: Path, **keys: Any) -> Settings:
    return config.load(declared(base, **keys))


def tiles_of(base: Path, **keys: Any) -> Tensor | None:
    return starts.stored([inpaint.get("toy", settings=settings(base, **keys))])


def test_the_optimisation_begins_with_the_tiles_of_a_declared_editor(base: Path) -> None:
    """Nothing but the choice among the tiles is left to the optimiser, which takes no step here."""
    said = settings(base, start="tiles/toy.safetensors")
    editor = inpaint.get("toy", settings=said)
    tiles = load_file(base / "tiles" / "toy.safetensors")["tiles"].float()
    assert tiles.shape == (2, 3, 64, 64)
    assert not torch.equal(tiles[0], tiles[1])
    grey: Rgb = np.full((96, 96, 3), 128, np.uint8)
    region = Region(Box(32, 32, 64, 64), "mask", 1.0, "test")
    crops = cropping.plan([region], 96, 96, margin=128, work=800, whole=800)

    def change(*surrogates: Editor) -> np.ndarray[Any, Any]:
        made = Optimiser(said.protect, surrogates, torch.device("cpu"), Still(), [("iopaint",)]).optimise(
            grey, crops, grey=False, rng=np.random.default_rng(0), progress=lambda *_: None
        )
        return made.rgb[32:64, 32:64].astype(int) - 128

    wanted = [
        np.rint(12 * tile[:, 32:64, 32:64].permute(1, 2, 0).numpy().clip(-1, 1)).astype(int) for tile in tiles
    ]
    begun = change(editor)
    assert min(np.abs(begun - one).max() for one in wanted) <= 1
    assert np.array_equal(change(Frugal(editor)), begun), "an editor that saves memory begins with them, too"
    plain = inpaint.get("toy", settings=settings(base))
    assert min(np.abs(change(plain) - one).max() for one in wanted) > 6, "noise"


def test_tiles_are_found_only_where_the_editor_names_them(base: Path) -> None:
    assert tiles_of(base) is None
    found = tiles_of(base, start="tiles/toy.safetensors")
    assert found is not None
    builtin = inpaint.get("flux2-mini")
    toy = inpaint.get("toy", settings=settings(base, start="tiles/toy.safetensors"))
    shipped = load_file(Path(starts.__file__).parent / "flux2-mini.safetensors")["tiles"].float()
    both = starts.stored([builtin, toy])
    assert both is not None
    assert torch.equal(both, torch.cat([shipped, found]))


def test_without_out_they_lie_in_the_models_folder_and_are_made_anew_for_other_weights(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(base)
    said = "models/starts/toy.safetensors"
    assert f"{base / said}: made; set editors.toy.start to it" in capsys.readouterr().out
    assert tiles_of(base, start=said) is not None
    other = base / "other"
    pair(other)
    state = torch.load(other / "toy_encoder.pth", weights_only=True)
    torch.save({name: value * 1.01 for name, value in state.items()}, other / "toy_encoder.pth")
    with pytest.raises(ModelError, match=r"editor toy: start .*: was made for .*, expected the editor's we"):
        tiles_of(base, start=said, weights="other")
    trained(base, start=said, weights="other")
    assert tiles_of(base, start=said, weights="other") is not None


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (None, "cannot be read"),
        (
            {"tiles": torch.zeros(2, 3, 32, 32)},
            r"got tiles of shape \(2, 3, 32, 32\), expected some of 3 x 64",
        ),
        ({"tile": torch.zeros(2, 3, 64, 64)}, r"got tiles of shape \(0,\)"),
        ({"tiles": torch.zeros(2, 3, 64, 64)}, "was made for no weights that it names"),
    ],
)
def test_a_file_of_something_else_is_refused(
    base: Path, tensors: dict[str, Tensor] | None, says: str
) -> None:
    file = base / "wrong.safetensors"
    file.unlink(missing_ok=True)
    if tensors is not None:
        save_file(tensors, file)
    with pytest.raises(ModelError, match=f"editor toy: start {file}: .*{says}.*make it anew with python -m"):
        tiles_of(base, start="wrong.safetensors")


def test_a_start_is_part_of_the_configuration_and_its_absence_is_not(base: Path) -> None:
    """Without one the digest stays what it was, and pictures that are done are not done again."""
    without, with_it = settings(base), settings(base, start="tiles/toy.safetensors")
    assert without.deciding["editors"]["toy"] == {"kind": "latent", "weights": [str(base / "pair")]}
    assert with_it.deciding["editors"]["toy"]["start"] == str(base / "tiles" / "toy.safetensors")


def test_a_photograph_larger_than_what_is_worked_whole_is_cropped(base: Path) -> None:
    (base / "large").mkdir()
    photo((400, 300)).resize((1200, 900)).save(base / "large" / "0.png")
    folders = f"--data {base / 'large'} --runs {base / 'large-runs'} --out {base / 'large-tiles'}"
    file = declared(base)
    main(f"start {folders} --editors toy --steps 1 --count 1 --config {file}".split())
    assert (base / "large-tiles" / "toy.safetensors").exists()


def test_tiles_are_made_as_the_configuration_optimises(base: Path) -> None:
    """What a run says that it was made from is what it was made from."""
    editor = inpaint.get("toy", settings=settings(base))
    rgb: Rgb = np.asarray(photo((128, 96)))

    def made(**keys: Any) -> Task:
        protect = Protect(stored_start=False, **keys)
        work, _ = start._search(rgb, editor, protect, ("iopaint", "forge-whole"), np.random.default_rng(0))
        return work

    work = made(hide_weight=7, grain_px=2, robust_to=("jpeg",), paths="first")
    assert (work.hide_weight, work.grain, work.robust_to) == (7, 2, ("jpeg",))
    assert not work.by_need
    assert len(work.inputs(0)[0]) == 1, "the first of both paths"
    assert made().by_need
    assert len(made().inputs(0)[0]) == 2


def test_a_method_that_begins_with_no_stored_start_is_refused(base: Path) -> None:
    file = declared(base)
    data = yaml.safe_load(file.read_text())
    data["protect"] = {"surrogates": ["toy"], "strength": "paper"}
    file.write_text(yaml.safe_dump(data))
    with pytest.raises(SystemExit, match=r"protect\.method: got baseline, which begins with no stored start"):
        main(["start", "--data", str(base / "photos"), "--editors", "toy", "--config", str(file)])
