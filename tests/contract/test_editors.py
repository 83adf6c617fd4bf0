"""What every editor must do, tested on each registered editor and on each kind with random weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

from backfire import inpaint
from backfire.errors import ConfigError
from backfire.inpaint import lama, mat
from backfire.inpaint.base import Attentive, Denoiser, Editor, Latent
from backfire.inpaint.diffusion import DiffusionEditor
from backfire.inpaint.encoders import EncoderEditor, PairInpainter
from backfire.inpaint.flow import FlowEditor
from backfire.inpaint.latent import Decoder, Encoder, InpaintNet, LatentEditor
from backfire.inpaint.options import DiffusionOptions, FlowOptions, ScriptedOptions
from backfire.inpaint.scripted import ScriptedEditor
from tests.support import flows, pipelines, scripts


def random_latent(folder: Path) -> Editor:
    torch.manual_seed(0)
    return LatentEditor("random", "0" * 64, Encoder(), InpaintNet(), Decoder())


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
    return DiffusionEditor.load("random", pipelines.save(folder / "sd", **options), DiffusionOptions(steps=2))


def random_flow(folder: Path, kind: str, **options: Any) -> Editor:
    path = flows.save(folder / kind, kind)
    return FlowEditor.load("random", path, FlowOptions(steps=2, dtype="float32", **options))


def random_script(folder: Path, exported: bool) -> Editor:
    path, sha256 = scripts.save(folder / "model", exported=exported)
    return ScriptedEditor.load("random", path, ScriptedOptions(sha256=sha256, trust=True))


RANDOM: dict[str, Callable[[Path], Editor]] = {
    "random-latent": random_latent,
    "random-encoder": random_encoder,
    "random-pair": random_pair,
    "random-lama": random_lama,
    "random-mat": random_mat,
    "random-sd": random_diffusion,
    "random-sd-plain": partial(random_diffusion, channels=4),
    "random-sd-tiny": partial(random_diffusion, tiny=True),
    "random-sdxl": partial(random_diffusion, xl=True),
    **{f"random-{kind}": partial(random_flow, kind=kind) for kind in flows.KINDS},
    "random-flux-from-noise": partial(random_flow, kind="flux", strength=1.0),
    "random-torchscript": partial(random_script, exported=False),
    "random-exported": partial(random_script, exported=True),
}
"""Make editors of random weights; those of a kind that is loaded from files are saved in the folder first."""


@pytest.fixture(scope="session")
def random_editor(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Editor]:
    """Gives the editors of `RANDOM` by name, each of which is made once in a session."""
    return cache(lambda name: RANDOM[name](tmp_path_factory.mktemp(name)))


@pytest.fixture(scope="module", params=[*inpaint.NAMES, *RANDOM])
def editor(request: pytest.FixtureRequest, random_editor: Callable[[str], Editor]) -> Editor:
    return random_editor(request.param) if request.param in RANDOM else inpaint.get(request.param)


def test_every_kind_has_an_editor_here(random_editor: Callable[[str], Editor]) -> None:
    made = {type(random_editor(name)) for name in RANDOM}
    for name, kind in inpaint.KINDS.items():
        assert kind.resolve() in made, f"kind {name}: add an editor of it to RANDOM"


@pytest.mark.parametrize("size", [(128, 128), (800, 800), (136, 800)])
def test_the_default_editor_takes_pictures_of_all_sizes_that_are_worked_whole(size: tuple[int, int]) -> None:
    image, mask = inputs(*size)
    default = inpaint.get("flux2-mini")  # others get gradients from it: not to be loaded in inference mode
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
    assert torch.equal(out[known], image[known]), "known pixels are returned unchanged"


def test_the_mask_is_one_where_the_picture_is_repainted(editor: Editor) -> None:
    image, mask = inputs()
    assert not torch.equal(editor.inpaint(image, mask)[:, :, 16:32, 16:32], image[:, :, 16:32, 16:32])
    assert torch.equal(editor.inpaint(image, torch.zeros_like(mask)), image)


def test_only_editors_that_say_so_look_at_pixels_under_the_mask(editor: Editor) -> None:
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
    """By name, each function of the picture that methods take gradients of, always with the same noise."""

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    answers: dict[str, Answer] = {}
    if isinstance(editor, Denoiser):
        answers["one_step"] = lambda image: editor.one_step(image, mask, generator=seeded())
        answers["first_step"] = lambda image: editor.first_step(image, mask, generator=seeded())
    else:
        answers["inpaint"] = lambda image: editor.inpaint(image, mask, generator=seeded())
    if isinstance(editor, Attentive):
        answers["attention_entropy"] = lambda image: editor.attention_entropy(image, mask, generator=seeded())
    if isinstance(editor, Latent):
        answers["encode"] = lambda image: editor.encode(image, mask)
    return answers


def test_answers_are_the_same_with_gradients_and_without(editor: Editor) -> None:
    """An encoder of diffusers computes something else where gradients are on and it is checkpointed."""
    image, mask = inputs()
    for name, answer in differentiated(editor, mask).items():
        with torch.no_grad():
            plain = answer(image)
        assert torch.allclose(answer(image.clone().requires_grad_(True)), plain, atol=1e-4), name


def test_gradients_agree_with_finite_differences(editor: Editor) -> None:
    """In float32, for a step of norm 0.02 along the gradient; of an edit only the painted pixels count."""
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


def test_under_mixed_precision_edits_are_float32_and_gradients_finite(editor: Editor) -> None:
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


def test_the_entropy_of_attention_is_a_share_of_the_largest(editor: Editor) -> None:
    if not isinstance(editor, Attentive):
        pytest.skip("is no transformer")
    image, mask = inputs(61, 83, count=2)
    entropy = editor.attention_entropy(image, mask)
    assert entropy.shape == (2, 1, *editor.encode(image, mask).shape[2:])
    assert entropy.dtype == torch.float32
    assert 0 < float(entropy.min()) < float(entropy.max()) <= 1


@pytest.mark.parametrize("shape", [(1, 1, 64, 64), (3, 64, 64)])
def test_wrong_shapes_are_named(editor: Editor, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected N,3,H,W"):
        editor.inpaint(torch.zeros(shape), torch.zeros(1, 1, 64, 64))


def test_a_mask_of_another_size_is_named(editor: Editor) -> None:
    with pytest.raises(ValueError, match="mask: got shape"):
        editor.inpaint(torch.zeros(1, 3, 64, 64), torch.zeros(1, 1, 32, 64))


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'flux2-mini'"):
        inpaint.get("flux2-mni")


def test_our_autoencoder_is_diffusers_tiny_one() -> None:
    """Weights of either class can be loaded into the other, which then computes the same."""
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


@pytest.mark.parametrize("hole", [(48, 64, 112, 120), (0, 0, 40, 32), (136, 200, 160, 208), (0, 0, 160, 208)])
def test_what_is_decoded_under_a_mask_is_what_the_whole_decoder_makes_there(
    hole: tuple[int, int, int, int],
) -> None:
    torch.manual_seed(0)
    decoder = Decoder(8, (1, 2, 1, 0), 4, pooled=True).requires_grad_(False)
    latents = torch.randn(2, 4, 20, 26, requires_grad=True)
    top, left, bottom, right = hole
    mask = torch.zeros(2, 1, 160, 208)
    mask[1, :, top:bottom, left:right] = 1
    whole, part = decoder(latents) * mask, decoder.under(latents, mask) * mask
    torch.testing.assert_close(part, whole, rtol=1e-5, atol=1e-5)
    of_whole, of_part = (torch.autograd.grad(one.square().sum(), latents)[0] for one in (whole, part))
    torch.testing.assert_close(of_part, of_whole, rtol=1e-4, atol=1e-6)
    assert part.abs().max() > 0.01


def test_nothing_is_asked_of_a_decoder_under_an_empty_mask() -> None:
    decoder = Decoder(8, latent=4)
    assert decoder.under(torch.zeros(1, 4, 8, 8), torch.zeros(1, 1, 64, 64)).shape == (1, 3, 64, 64)
