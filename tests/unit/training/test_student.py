"""A student of a published autoencoder is trained, resumed, widened and exported as an editor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from backfire.inpaint.encoders import EncoderEditor, PairInpainter
from backfire.inpaint.latent import InpaintNet
from tests.support.pictures import photo
from tests.unit.inpaint.test_encoders import image, pair
from training import latent_pair, student
from training.__main__ import main
from training.run import Options, below_names, weights_of


def test_it_trains_resumes_is_exported_and_goes_on_from_that(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, run = tmp_path / "photos", tmp_path / "student"
    photos.mkdir()
    for seed in range(2):
        photo(seed=seed).save(photos / f"{seed}.png")
    teacher = pair(tmp_path / "pair")
    for steps in (2, 4):  # the second run goes on until each kind of perturbation has come
        student.train_encoder(photos, teacher, run, Options(steps, batch=2, size=64), 16, None)
    assert "resumed at step 2" in capsys.readouterr().out
    student.train_decoder(photos, teacher, run, Options(1, batch=2, size=64), 16, None)
    latent_pair.inpainter(photos, teacher, tmp_path / "net", Options(1, batch=2, size=64), crops=2)
    student.export(run, tmp_path / "net", tmp_path / "mini.safetensors")
    editor = PairInpainter.from_file("mini", tmp_path / "mini.safetensors")
    picture, mask = image()
    edited = editor.inpaint(picture, mask)
    assert torch.equal(edited[mask.expand_as(edited) == 0], picture[mask.expand_as(picture) == 0])
    assert not torch.equal(edited, picture)
    # Another run that begins with the exported file is no further from it than one small step.
    exported, again = load_file(tmp_path / "mini.safetensors"), tmp_path / "again"
    more, start = Options(1, seed=2, batch=2, size=64), tmp_path / "mini.safetensors"
    student.train_encoder(photos, teacher, again, more, 16, start)
    student.train_decoder(photos, teacher, again, more, 16, start)
    latent_pair.inpainter(photos, teacher, tmp_path / "net again", more, crops=2, start=start)
    student.export(again, tmp_path / "net again", tmp_path / "again.safetensors")
    for name, weight in load_file(tmp_path / "again.safetensors").items():
        assert torch.allclose(weight.float(), exported[name].float(), atol=2e-3), name


def test_a_net_may_be_narrower_and_that_of_an_editor_is_kept_where_none_was_trained(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    photo().save(photos / "0.png")
    teacher, run = pair(tmp_path / "pair", latent=32), tmp_path / "student"
    options = Options(1, batch=2, size=64)
    student.train_encoder(photos, teacher, run, options, 16, None)
    student.train_decoder(photos, teacher, run, options, 16, None)
    latent_pair.inpainter(photos, teacher, tmp_path / "net", options, crops=2, width=(16, 32))
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    student.export(run, tmp_path / "net", one)
    assert load_file(one)["net.down.weight"].shape[:2] == (32, 16)
    PairInpainter.from_file("one", one)
    student.export(run, tmp_path / "no net", other, one)
    kept, given = load_file(other), load_file(one)
    assert kept.keys() == given.keys()
    assert all(torch.equal(kept[name], given[name]) for name in kept)
    with pytest.raises(SystemExit, match=r"got a run with width \[16, 32\] \(now \[96, 144\]\)"):
        latent_pair.inpainter(photos, teacher, tmp_path / "net", options, crops=2)


def test_a_decoder_is_not_trained_on_an_encoder_that_has_learnt_nothing(tmp_path: Path) -> None:
    teacher = pair(tmp_path / "pair")
    with pytest.raises(SystemExit, match=r"encoder/last\.pt: no such file.*run first: python -m"):
        student.train_decoder(tmp_path, teacher, tmp_path / "student", Options(1), 16, None)


def test_a_start_without_what_is_trained_is_refused(tmp_path: Path) -> None:
    save_file({"net.conv_in.weight": torch.zeros(1)}, tmp_path / "net.safetensors")
    assert set(weights_of(tmp_path / "net.safetensors", "net")) == {"conv_in.weight"}
    with pytest.raises(SystemExit, match=r"got a file with net, expected an editor's with encoder"):
        weights_of(tmp_path / "net.safetensors", "encoder")
    (tmp_path / "old.pt").write_bytes(b"PK")
    with pytest.raises(SystemExit, match=r"old\.pt: cannot be read"):
        weights_of(tmp_path / "old.pt", "encoder")


@pytest.mark.parametrize(
    ("command", "part", "says"),
    [
        (
            "student",
            "encoder",
            r"whose encoder does not fit, expected .* with 16 channels at most; give --ch",
        ),
        ("student-decoder", "decoder", r"whose decoder does not fit, expected .* with 16 channels at most;"),
        ("inpainter", "net", r"whose net does not fit, expected one of 96 and 144 channels, on the"),
    ],
)
def test_a_start_of_another_width_or_architecture_is_refused(
    command: str, part: str, says: str, tmp_path: Path
) -> None:
    photo().save(tmp_path / "0.png")
    files = pair(tmp_path / "pair")
    teacher = EncoderEditor.load("teacher", files)
    # The encoder fits where the decoder is to be refused.
    widths = {"encoder": 24 if part == "encoder" else 16, "decoder": 24}
    modules: dict[str, torch.nn.Module] = {
        "encoder": student.student_of(teacher, widths["encoder"])[0],
        "decoder": student.student_of(teacher, widths["decoder"])[1],
        "net": InpaintNet(4, (32, 48)),
    }
    state = below_names(**{name: module.state_dict() for name, module in modules.items()})
    save_file(state, tmp_path / "mini.safetensors")
    given = f"{command} --data {tmp_path} --latents {files[0]},{files[1]} --channels 16"
    with pytest.raises(SystemExit, match=says):
        main([*given.split(), "--start", str(tmp_path / "mini.safetensors")])


def test_a_start_of_other_latents_is_refused(tmp_path: Path) -> None:
    photo().save(tmp_path / "0.png")
    files, other = pair(tmp_path / "pair"), pair(tmp_path / "other", latent=2)
    encoder = student.student_of(EncoderEditor.load("other", other), 16)[0]
    save_file(below_names(encoder=encoder.state_dict()), tmp_path / "mini.safetensors")
    given = f"student --data {tmp_path} --latents {files[0]},{files[1]} --channels 16"
    with pytest.raises(SystemExit, match=r"whose encoder does not fit, expected .* and latents with"):
        main([*given.split(), "--start", str(tmp_path / "mini.safetensors")])


def test_a_wider_student_begins_as_the_narrower_one_ended(tmp_path: Path) -> None:
    """Up to the pooled blocks it differs by rounding alone. Their norms include the new channels, so that
    after them it is only near the narrower one.
    """
    teacher = EncoderEditor.load("teacher", pair(tmp_path / "pair"))
    torch.manual_seed(1)
    narrow, wide = (student.student_of(teacher, channels)[0] for channels in (16, 24))
    pooled = next(i for i, layer in enumerate(narrow.layers) if getattr(layer, "pool", None) is not None)
    picture, _ = image()
    with torch.no_grad():
        wanted, before = narrow(picture), wide(picture)
        student.widened(wide, narrow.state_dict())
        assert torch.allclose(
            narrow.layers[:pooled](picture), wide.layers[:pooled](picture)[:, :16], atol=1e-5
        )
        after = wide(picture)
    assert (after - wanted).abs().mean() < 0.25 * (before - wanted).abs().mean()


def test_perturbations_keep_their_size_and_area() -> None:
    picture = torch.full((2, 3, 32, 32), 0.5)
    free = torch.zeros(2, 1, 32, 32)
    free[:, :, :16] = 1
    moved = student.perturbed(picture, free, None, torch.zeros(1), np.random.default_rng(0))
    change = (moved - picture).abs()
    assert change[:, :, 16:].max() == 0
    assert student.LEVELS[0] / 255 <= change.max() <= student.LEVELS[1] / 255


def test_what_was_perturbed_before_is_perturbed_further_and_no_more(tmp_path: Path) -> None:
    teacher = EncoderEditor.load("teacher", pair(tmp_path / "pair"))
    picture, _ = image()
    free = torch.ones_like(picture[:, :1])
    with torch.no_grad():
        latent = teacher.encoder(picture)
    rng = np.random.default_rng(0)
    once = student.perturbed(picture, free, teacher.encoder, latent, rng)
    more = student.perturbed(picture, free, teacher.encoder, latent, rng, once)
    assert not torch.equal(once, more)
    assert (more - picture).abs().max() <= (once - picture).abs().max() + 1e-6


def test_a_decoder_keeps_the_encoder_that_it_began_with(tmp_path: Path) -> None:
    """Both may be trained at once, so that the encoder has changed when the decoder's run is resumed."""
    photos = tmp_path / "photos"
    photos.mkdir()
    photo().save(photos / "0.png")
    teacher, run = pair(tmp_path / "pair"), tmp_path / "student"

    def options(steps: int) -> Options:
        return Options(steps, batch=2, size=64)

    student.train_encoder(photos, teacher, run, options(1), 16, None)
    student.train_decoder(photos, teacher, run, options(1), 16, None)
    kept = torch.load(run / "decoder" / "last.pt", weights_only=True)["parts"]["encoder"]
    student.train_encoder(photos, teacher, run, options(3), 16, None)
    student.train_decoder(photos, teacher, run, options(2), 16, None)
    after = torch.load(run / "decoder" / "last.pt", weights_only=True)["parts"]["encoder"]
    assert all(torch.equal(kept[name], after[name]) for name in kept)
    student.export(run, tmp_path / "no net", tmp_path / "mini.safetensors")
    exported = load_file(tmp_path / "mini.safetensors")
    assert all(torch.equal(exported[f"encoder.{name}"], kept[name].half()) for name in kept)


def test_a_net_of_another_autoencoder_is_not_joined(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    photo().save(photos / "0.png")
    one, other = pair(tmp_path / "one"), pair(tmp_path / "other", pooled=False)
    options = Options(1, batch=2, size=64)
    student.train_encoder(photos, one, tmp_path / "student", options, 16, None)
    student.train_decoder(photos, one, tmp_path / "student", options, 16, None)
    latent_pair.inpainter(photos, other, tmp_path / "net", options, crops=2)
    with pytest.raises(SystemExit, match=r"net: got a run on the autoencoder \w+, expected \w+, which"):
        student.export(tmp_path / "student", tmp_path / "net", tmp_path / "mini.safetensors")
