"""An inpainting net on a published autoencoder is trained, resumed and exported as an editor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backfire.inpaint.encoders import EncoderEditor, PairInpainter
from tests.support.pictures import photo
from tests.unit.inpaint.test_encoders import image, pair
from training import latent_pair
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
    pictures, file = [photo()], tmp_path / "latents.safetensors"
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
