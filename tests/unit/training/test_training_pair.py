"""An inpainting net on a published autoencoder is trained, resumed and exported as an editor."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from backfire.inpaint.base import Latent
from backfire.inpaint.encoders import EncoderEditor, PairInpainter
from tests.support.pictures import photo
from tests.unit.inpaint.test_encoders import image, pair
from training import data, latent_pair
from training.run import Options


def test_it_trains_resumes_and_is_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for seed in range(2):
        photo(seed=seed).save(photos / f"{seed}.png")
    paths = pair(tmp_path / "pair")

    def train(steps: int) -> dict[str, torch.Tensor]:
        run = tmp_path / "run"
        latent_pair.inpainter(photos, paths, run, Options(steps, batch=2, size=64), crops=4)
        latent_pair.export(run, tmp_path / "net.safetensors")
        return torch.load(run / "last.pt", weights_only=True)["parts"]["ema"]  # type: ignore[no-any-return]

    first = train(1)
    kept = (tmp_path / "run" / "latents.safetensors").stat().st_mtime_ns
    second = train(2)
    assert "resumed at step 1" in capsys.readouterr().out
    assert (tmp_path / "run" / "latents.safetensors").stat().st_mtime_ns == kept, "the crops are encoded once"
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert (tmp_path / "run" / "sample-000002.jpg").exists()
    editor = PairInpainter.load("toy", [*paths, tmp_path / "net.safetensors"])
    picture, mask = image()
    assert not torch.equal(editor.inpaint(picture, mask), picture)


def test_other_options_encode_the_crops_again(tmp_path: Path) -> None:
    paths = pair(tmp_path / "pair")
    editor = EncoderEditor.load("pair", paths)
    pictures, file = data.Photographs([photo()]), tmp_path / "latents.safetensors"
    one = latent_pair.encoded(pictures, editor, file, 3, Options(1, seed=1, size=64))
    again = latent_pair.encoded(pictures, editor, file, 3, Options(1, seed=1, size=64))
    other = latent_pair.encoded(pictures, editor, file, 3, Options(1, seed=2, size=64))
    assert {name: tuple(t.shape) for name, t in one.items()} == {
        "whole": (3, 4, 8, 8),
        "known": (3, 4, 8, 8),
        "cells": (3, 1, 8, 8),
    }
    assert torch.equal(one["whole"], again["whole"])
    assert not torch.equal(one["whole"], other["whole"])


def test_the_colours_of_cells_are_predicted_from_latents() -> None:
    """Of an encoder whose latents are a linear map of the mean colours of cells, they are so exactly."""

    class Linear:
        def encode(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            cells = F.avg_pool2d(image, 8)
            return torch.cat([cells @ torch.eye(cells.shape[-1]), 3 - 2 * cells[:, :1]], dim=1)

    options = Options(1, seed=1, size=64)
    found = latent_pair.colours([photo(), photo(seed=1)], cast(Latent, Linear()), options)
    picture, _ = image()
    assert torch.allclose(found(Linear().encode(picture, picture)), F.avg_pool2d(picture, 8), atol=1e-3)


def test_small_holes_are_at_most_a_fifth_across_and_lie_anywhere() -> None:
    rng = np.random.default_rng(0)
    holes = [data.small_hole(100, rng) > 0 for _ in range(200)]
    sides = [(int(hole.any(axis=1).sum()), int(hole.any(axis=0).sum())) for hole in holes]
    assert all(1 <= min(side) <= 21 and max(side) <= 81 for side in sides)
    assert np.mean([across > down for down, across in sides]) > 0.6, "most are lines of text"
    assert np.any(holes, axis=0)[5:95, 5:95].all(), "no place is left out"
    assert any(hole[0].any() or hole[:, 0].any() for hole in holes), "some are cut by the edge"


def test_an_offset_costs_as_much_in_a_small_hole_as_in_a_large_one() -> None:
    """Also where the crop is no multiple of four cells; what lies outside the hole does not count."""
    offset = torch.full((1, 5, 10, 10), 0.5)
    large, small = torch.zeros(1, 1, 10, 10), torch.zeros(1, 1, 10, 10)
    large[..., 2:10, 1:9], small[..., 9, 3:5] = 1, 1
    assert float(latent_pair.coarse(offset, large)) == pytest.approx(0.5)
    assert float(latent_pair.coarse(offset, small)) == pytest.approx(0.5)
    assert float(latent_pair.coarse(offset * (1 - small), small)) == 0
    wave = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(5, 5)[None, None]
    assert float(latent_pair.coarse(wave, torch.ones(1, 1, 10, 10))) == pytest.approx(0, abs=1e-6)


def test_crops_with_other_holes_are_encoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = EncoderEditor.load("pair", pair(tmp_path / "pair"))
    file, options = tmp_path / "latents.safetensors", Options(1, seed=1, size=64)
    latent_pair.encoded(data.Photographs([photo()]), editor, file, 2, options)
    made = file.stat().st_mtime_ns
    latent_pair.encoded(data.Photographs([photo()]), editor, file, 2, options)
    assert file.stat().st_mtime_ns == made
    monkeypatch.setattr(latent_pair, "DRAWN", "large")
    latent_pair.encoded(data.Photographs([photo()]), editor, file, 2, options)
    assert file.stat().st_mtime_ns > made


def test_crops_of_other_photographs_are_encoded_again(tmp_path: Path) -> None:
    editor = EncoderEditor.load("pair", pair(tmp_path / "pair"))
    file, options = tmp_path / "latents.safetensors", Options(1, seed=1, size=64)
    one = latent_pair.encoded(data.Photographs([photo()]), editor, file, 2, options)
    other = latent_pair.encoded(data.Photographs([photo(seed=1)]), editor, file, 2, options)
    assert not torch.equal(one["whole"], other["whole"])
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [file.name]


def test_crops_with_portraits_are_encoded_again(tmp_path: Path) -> None:
    editor = EncoderEditor.load("pair", pair(tmp_path / "pair"))
    file, options = tmp_path / "latents.safetensors", Options(1, seed=1, size=64)
    one = latent_pair.encoded(data.Photographs([photo()]), editor, file, 5, options)
    other = latent_pair.encoded(data.Photographs([photo()], [photo(seed=1)]), editor, file, 5, options)
    assert len(other["whole"]) == 5
    assert not torch.equal(one["whole"], other["whole"])


@pytest.mark.parametrize("width", [40, 400])
def test_the_hole_in_a_portrait_is_mostly_over_the_face(width: int) -> None:
    """Portraits smaller and larger than the crop, with a red face where official ones have it."""
    picture = Image.new("RGB", (width, width * 4 // 3), (60, 60, 90))
    half, at = width * 0.15, (width * 0.5, width * 0.49)
    box = (at[0] - half, at[1] - half, at[0] + half, at[1] + half)
    ImageDraw.Draw(picture).ellipse(box, fill=(200, 90, 90))
    rng = np.random.default_rng(5)
    over, seen = 0, 0
    for _ in range(40):
        piece, mask = data.portrait(picture, 96, rng)
        assert piece.shape == (96, 96, 3)
        assert piece.dtype == np.uint8
        assert mask.shape == (96, 96)
        assert {*np.unique(mask)} <= {0.0, 1.0}
        assert mask.any()
        face = piece[..., 0].astype(int) > 130
        seen += bool(face.sum() > 30)
        over += bool((mask[face] > 0).mean() > 0.5) if face.any() else 0
    assert seen == 40, "the face is always in the crop"
    assert over > 24, "three holes of four are over it, of all sizes"


def test_two_crops_of_five_are_of_portraits() -> None:
    red, blue = Image.new("RGB", (90, 120), (250, 0, 0)), Image.new("RGB", (90, 120), (0, 0, 250))
    rng, cpu = np.random.default_rng(2), torch.device("cpu")
    image, mask, holed = latent_pair.draw(data.Photographs([blue], [red]), 10, 64, rng, cpu)
    assert image.shape == (10, 3, 64, 64)
    assert mask.shape == (10, 1, 64, 64)
    reddish = image[:, 0].mean(dim=(1, 2)) > image[:, 2].mean(dim=(1, 2)) + 0.3
    assert reddish[6:].all()
    assert (holed == 0.5).any(dim=(1, 2, 3)).all()


def test_other_lights_and_backdrops_are_pictures_of_the_same_size() -> None:
    rng = np.random.default_rng(3)
    piece = np.asarray(photo())[:64, :64]
    lights = [data.toned(piece, rng) for _ in range(8)]
    backdrops = [data.plain(64, rng) for _ in range(8)]
    for made in [*lights, *backdrops]:
        assert made.shape == (64, 64, 3)
        assert made.dtype == np.uint8
    assert len({light.tobytes() for light in lights}) == 8
    # What is light in one place and dark in another stays so; a backdrop has no edges.
    for light in lights:
        assert np.corrcoef(piece.mean(axis=2).ravel(), light.mean(axis=2).ravel())[0, 1] > 0.8
    for backdrop in backdrops:
        assert np.abs(np.diff(backdrop.astype(float).mean(axis=2), axis=1)).mean() < 5


def test_a_tint_counts_more_in_an_even_hole() -> None:
    hole = torch.ones(2, 1, 8, 8)
    shades = torch.full((2, 3, 8, 8), 0.5)
    shades[1, :, ::2] = 0.9
    even, busy = latent_pair.spread(shades, hole).flatten().tolist()
    assert even == pytest.approx(0, abs=1e-4)
    assert busy == pytest.approx(0.2, abs=1e-4)
    assert latent_pair.spread(shades, torch.zeros_like(hole)).isfinite().all()
