"""What every editor promises, on every registered one and on random weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from backfire import inpaint
from backfire.errors import ConfigError
from backfire.inpaint import lama, mat
from backfire.inpaint.base import Denoiser, Editor, Latent
from backfire.inpaint.diffusion import DiffusionEditor
from backfire.inpaint.encoders import EncoderEditor, PairInpainter
from backfire.inpaint.latent import Decoder, Encoder, InpaintNet, LatentEditor, ShiftMapEditor, ShiftMapNet
from backfire.inpaint.scripted import ScriptedEditor
from tests.support import pipelines, scripts


def random_latent(folder: Path) -> Editor:
    torch.manual_seed(0)
    return LatentEditor("random", "0" * 64, Encoder(), InpaintNet(), Decoder())


def random_shift_map(folder: Path) -> Editor:
    torch.manual_seed(0)
    return ShiftMapEditor("random", "0" * 64, Encoder(), ShiftMapNet(), Decoder())


def random_encoder(folder: Path) -> Editor:
    torch.manual_seed(0)
    encoder = Encoder(16, (1, 1, 1, 1), 4, pooled=True)
    return EncoderEditor("random", "0" * 64, encoder, Decoder(16, (1, 1, 1, 1), 4, pooled=True))


def random_pair(folder: Path) -> Editor:
    torch.manual_seed(0)
    encoder, decoder = Encoder(16, latent=4, pooled=True), Decoder(16, latent=4, pooled=True)
    return PairInpainter("random", "0" * 64, encoder, InpaintNet(4, (32, 32)), decoder)


def random_lama(folder: Path) -> Editor:
    torch.manual_seed(0)
    return lama.LamaEditor("random-lama", "0" * 64, lama.Generator(lama.Config(base=8, blocks=2)))


def random_mat(folder: Path) -> Editor:
    torch.manual_seed(0)
    net = mat.MatNet(
        mat.Config(64, channels=12, heads=2, grid=16, windows=(4,) * 5, latent=16, budget=512, most=16)
    )
    for name, parameter in net.named_parameters():
        if name.endswith("toRGB.conv.weight"):  # random ones saturate
            parameter.data *= 0.1
    return mat.MatEditor("random-mat", "0" * 64, net)


def random_diffusion(folder: Path, **options: Any) -> Editor:
    return DiffusionEditor.load("random", pipelines.save(folder / "sd", **options), steps=2)


def random_script(folder: Path, exported: bool) -> Editor:
    path, sha256 = scripts.save(folder / "model", exported=exported)
    return ScriptedEditor.load("random", path, sha256=sha256, trust=True)


RANDOM: dict[str, Callable[[Path], Editor]] = {
    "random-latent": random_latent,
    "random-shift-map": random_shift_map,
    "random-encoder": random_encoder,
    "random-pair": random_pair,
    "random-lama": random_lama,
    "random-mat": random_mat,
    "random-sd": random_diffusion,
    "random-sd-plain": partial(random_diffusion, channels=4),
    "random-sd-tiny": partial(random_diffusion, tiny=True),
    "random-sdxl": partial(random_diffusion, xl=True),
    "random-torchscript": partial(random_script, exported=False),
    "random-exported": partial(random_script, exported=True),
}
"""Editors on random weights, written to the folder and loaded from it where they come from files."""


@pytest.fixture(scope="module", params=[*inpaint.NAMES, *RANDOM])
def editor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Editor:
    if request.param in RANDOM:
        return RANDOM[request.param](tmp_path_factory.mktemp(request.param))
    return inpaint.get(request.param)


def test_every_kind_has_an_editor_here(tmp_path: Path) -> None:
    made = set()
    for name, make in RANDOM.items():
        (folder := tmp_path / name).mkdir()
        made.add(type(make(folder)))
    for name, kind in inpaint.KINDS.items():
        assert kind.resolve() in made, f"kind {name}: add an editor of it to RANDOM"


@pytest.mark.parametrize("size", [(128, 128), (1024, 1024), (136, 1000)])
def test_the_default_takes_all_sizes_that_are_worked_whole(size: tuple[int, int]) -> None:
    image, mask = inputs(*size)
    default = inpaint.get("latent-mini")  # others get gradients from it: not to be loaded in inference mode
    with torch.inference_mode():
        out = default.inpaint(image, mask)
    hole = mask.expand_as(image) > 0
    assert torch.equal(out[~hole], image[~hole])
    assert bool(out[hole].isfinite().all())
    assert float((out - image)[hole].abs().mean()) > 0.01


@pytest.fixture
def latent(editor: Editor) -> Latent:
    if not isinstance(editor, Latent):
        pytest.skip("encodes nothing")
    return editor


@pytest.fixture
def denoiser(editor: Editor) -> Denoiser:
    if not isinstance(editor, Denoiser):
        pytest.skip("denoises nothing")
    return editor


def inputs(height: int = 64, width: int = 64, count: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(count, 3, height, width, generator=generator)
    mask = torch.zeros(count, 1, height, width)
    mask[..., height // 4 : height // 2, width // 4 : width // 2] = 1
    return image, mask


@pytest.mark.parametrize("size", [(64, 64), (61, 83), (8, 8), (128, 72)])
def test_shape_range_and_known_pixels(editor: Editor, size: tuple[int, int]) -> None:
    image, mask = inputs(*size)
    out = editor.inpaint(image, mask)
    assert out.shape == image.shape
    assert out.dtype == image.dtype
    assert 0 <= float(out.min()) <= float(out.max()) <= 1
    known = (mask == 0).expand_as(image)
    assert torch.equal(out[known], image[known]), "known pixels come back bit for bit"


def test_polarity_one_is_repainted(editor: Editor) -> None:
    image, mask = inputs()
    assert not torch.equal(editor.inpaint(image, mask)[:, :, 16:32, 16:32], image[:, :, 16:32, 16:32])
    assert torch.equal(editor.inpaint(image, torch.zeros_like(mask)), image)


def test_pixels_under_the_mask_are_seen_only_by_who_says_so(editor: Editor) -> None:
    image, mask = inputs()
    other = torch.where(mask > 0, 1 - image, image)
    assert torch.equal(editor.inpaint(image, mask), editor.inpaint(other, mask)) == editor.blind


def test_inputs_are_not_mutated(editor: Editor) -> None:
    image, mask = inputs()
    before = image.clone(), mask.clone()
    editor.inpaint(image, mask)
    assert torch.equal(image, before[0])
    assert torch.equal(mask, before[1])


def test_deterministic_under_a_generator(editor: Editor) -> None:
    image, mask = inputs()
    once = editor.inpaint(image, mask, generator=torch.Generator().manual_seed(3))
    assert torch.equal(once, editor.inpaint(image, mask, generator=torch.Generator().manual_seed(3)))


def test_a_batch_equals_its_members(editor: Editor) -> None:
    image, mask = inputs(count=3)
    mask[1] = mask[1].roll(9, dims=-1)
    together = editor.inpaint(image, mask)
    for i in range(3):
        alone = editor.inpaint(image[i : i + 1], mask[i : i + 1])
        assert torch.allclose(together[i : i + 1], alone, atol=1e-4)


def test_gradients_reach_what_the_editor_sees_and_only_it(editor: Editor) -> None:
    image, mask = inputs()
    image.requires_grad_(True)
    out = editor.inpaint(image, mask)
    (gradient,) = torch.autograd.grad((out * mask).sum(), image)
    assert_gradient_of_what_is_seen(gradient, mask, editor.blind)


def assert_gradient_of_what_is_seen(gradient: torch.Tensor, mask: torch.Tensor, blind: bool) -> None:
    assert torch.isfinite(gradient).all()
    hole = (mask > 0).expand_as(gradient)
    assert gradient[~hole].abs().sum() > 0
    assert (gradient[hole].abs().sum() == 0) == blind


Answer = Callable[[torch.Tensor], torch.Tensor]


def differentiated(editor: Editor, mask: torch.Tensor) -> dict[str, Answer]:
    """Everything of the editor that methods take gradients of, from the picture on, under one noise."""

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    answers: dict[str, Answer] = {}
    if isinstance(editor, Denoiser):
        answers["one_step"] = lambda image: editor.one_step(image, mask, generator=seeded())
        answers["first_step"] = lambda image: editor.first_step(image, mask, generator=seeded())
    else:
        answers["inpaint"] = lambda image: editor.inpaint(image, mask, generator=seeded())
    if isinstance(editor, Latent):
        answers["encode"] = lambda image: editor.encode(image, mask)
    return answers


def test_answers_are_the_same_with_gradients_and_without(editor: Editor) -> None:
    """Diffusers has an encoder that computes something else where gradients are on and it is checkpointed."""
    image, mask = inputs()
    for name, answer in differentiated(editor, mask).items():
        with torch.no_grad():
            plain = answer(image)
        assert torch.allclose(answer(image.clone().requires_grad_(True)), plain, atol=1e-4), name


def test_along_their_gradients_answers_rise_as_steeply_as_those_say(editor: Editor) -> None:
    """In float32, over a step of norm 0.02 in the picture; of pictures only what is painted counts."""
    image, mask = inputs()
    for name, answer in differentiated(editor, mask).items():
        variable = image.clone().requires_grad_(True)
        out = answer(variable)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(5))
        weight = weight * mask if out.shape == image.shape else weight
        (gradient,) = torch.autograd.grad((out * weight).sum(), variable)
        steepness = float(gradient.norm())
        assert steepness > 1e-4, name
        step = 0.01 / steepness * gradient
        with torch.no_grad():
            rise = ((answer(image + step) - answer(image - step)).double() * weight).sum() / 0.02
        assert float(rise) == pytest.approx(steepness, rel=0.1), name


def test_mixed_precision_as_the_methods_use_it(editor: Editor) -> None:
    image, mask = inputs()
    image.requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        out = editor.inpaint(image, mask)
    assert out.dtype == torch.float32
    (gradient,) = torch.autograd.grad((out * mask).sum(), image)
    assert_gradient_of_what_is_seen(gradient, mask, editor.blind)


def test_latents_have_the_promised_shape_and_do_not_see_the_hole(latent: Latent) -> None:
    image, mask = inputs(61, 83, count=2)
    latents = latent.encode(image, mask)
    assert latents.dtype == torch.float32
    assert latents.shape[0] == 2
    assert latents.shape[2:] == (-(-61 // latent.multiple), -(-83 // latent.multiple))
    other = latent.encode(torch.where(mask > 0, 1 - image, image), mask)
    assert torch.equal(latents, other) == latent.blind


def test_latents_depend_on_the_context_differentiably(latent: Latent) -> None:
    image, mask = inputs()
    image.requires_grad_(True)
    (gradient,) = torch.autograd.grad(latent.encode(image, mask).square().sum(), image)
    assert_gradient_of_what_is_seen(gradient, mask, latent.blind)


def test_the_first_step_depends_on_the_context_differentiably(denoiser: Denoiser) -> None:
    image, mask = inputs(61, 83)
    image.requires_grad_(True)
    prediction = denoiser.first_step(image, mask)
    assert prediction.shape == denoiser.encode(image, mask).shape
    assert prediction.dtype == torch.float32
    (gradient,) = torch.autograd.grad(prediction.square().sum(), image)
    assert_gradient_of_what_is_seen(gradient, mask, denoiser.blind)


def test_the_first_step_is_drawn_from_the_generator(denoiser: Denoiser) -> None:
    image, mask = inputs()
    first, again, other = (
        denoiser.first_step(image, mask, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_one_step_is_what_gradients_flow_through(denoiser: Denoiser) -> None:
    image, mask = inputs()
    foreseen = denoiser.one_step(image, mask)
    assert torch.allclose(denoiser.inpaint(image.clone().requires_grad_(True), mask), foreseen, atol=1e-5)
    assert torch.equal(foreseen[:, :, :16], image[:, :, :16])


@pytest.mark.parametrize("shape", [(1, 1, 64, 64), (3, 64, 64)])
def test_wrong_shapes_are_named(editor: Editor, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected N,3,H,W"):
        editor.inpaint(torch.zeros(shape), torch.zeros(1, 1, 64, 64))


def test_a_mask_of_another_size_is_named(editor: Editor) -> None:
    with pytest.raises(ValueError, match="mask: got shape"):
        editor.inpaint(torch.zeros(1, 3, 64, 64), torch.zeros(1, 1, 32, 64))


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'latent-mini'"):
        inpaint.get("latent-mni")


def test_our_autoencoder_is_diffusers_tiny_one() -> None:
    """Same names, same arithmetic: weights move between the two classes."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(48,) * 4,
        decoder_block_out_channels=(48,) * 4,
        num_encoder_blocks=(0, 1, 2, 3),
        num_decoder_blocks=(3, 2, 1, 0),
        latent_channels=16,
    ).eval()
    encoder, decoder = Encoder(), Decoder()
    encoder.load_state_dict(theirs.encoder.state_dict())
    decoder.load_state_dict(theirs.decoder.state_dict())
    image = torch.rand(1, 3, 64, 48)
    with torch.no_grad():
        latents = encoder(image)
        assert torch.allclose(latents, theirs.encode(image * 2 - 1).latents, atol=1e-5)
        assert torch.allclose(decoder(latents) * 2 - 1, theirs.decode(latents).sample, atol=1e-5)
