"""Transformers on flow schedules: held to diffusers' own pipelines, on tiny random ones of every class."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import backfire
from backfire.attack_paths.tools import krita
from backfire.errors import Code, ConfigError, ModelError
from backfire.inpaint import attention, streaming
from backfire.inpaint.families import BY_CLASS, FAMILIES, Sees
from backfire.inpaint.flow import FlowEditor
from backfire.inpaint.options import FlowOptions
from tests.support import flows, pipelines
from tests.support.pictures import mask_picture, photo
from tests.support.sandbox import LENIENT, QUICK

TEXT, OPPOSITE = "abc", "xy"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("flows")
    return {kind: flows.save(home / kind, kind) for kind in flows.KINDS}


@pytest.fixture(params=list(flows.KINDS))
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


@pytest.fixture
def copied(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A pipeline to damage."""
    return shutil.copytree(folders["flux2-klein"], tmp_path / "copied")


def load(folder: Path, **options: Any) -> FlowEditor:
    return FlowEditor.load("flow", folder, FlowOptions(**{"dtype": "float32", **options}))


def inputs(height: int = 64, width: int = 96) -> tuple[Tensor, Tensor]:
    small = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    image = F.interpolate(small, size=(height, width), mode="bilinear")
    mask = torch.zeros(1, 1, height, width)
    mask[..., height // 4 : height // 2 + 3, width // 4 : width // 2] = 1
    return (image * 255).round() / 255, mask


class Pipeline:
    """The pipeline of an editor, called as people call it: with pixels, and embedded prompts."""

    def __init__(self, editor: FlowEditor, monkeypatch: pytest.MonkeyPatch) -> None:
        self.editor, self.pipe, self.kind = editor, editor.pipe, type(editor.pipe).__name__
        self._monkeypatch = monkeypatch

    def edit(self, image: Tensor, mask: Tensor, noise: Tensor, output: str = "pt") -> Tensor:
        """The pipeline's edit from that noise N,C,h,w, in patches."""
        module = sys.modules[type(self.pipe).__module__]
        latents = noise if "Flux2" in self.kind else F.pixel_shuffle(noise, 2)
        self._monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: latents.reshape(shape))
        given: Any = {"image": image, "mask_image": mask}
        if self.kind.startswith("QwenImageEdit"):  # it takes only files, and makes a megapixel of them
            size = *reversed(image.shape[2:]), None
            self._monkeypatch.setattr(module, "calculate_dimensions", lambda *_: size)
            given = {key: _picture(value[0]) for key, value in given.items()}
        sampling = self.editor._sampling
        result: Tensor = self.pipe(
            **given,
            **self._prompts(),
            height=image.shape[2],
            width=image.shape[3],
            num_inference_steps=sampling.steps,
            strength=sampling.strength,
            generator=torch.Generator().manual_seed(0),
            output_type=output,
            **({"_auto_resize": False} if "Kontext" in self.kind else {}),
        ).images
        return result

    def _prompts(self) -> dict[str, Any]:
        prompt = self.editor.prompts[0]
        embeds: dict[str, Any] = dict(prompt.embeds)
        scale = "true_cfg_scale" if self.kind.startswith("Qwen") else "guidance_scale"
        if self.kind.startswith("ZImage"):
            embeds = {key: list(value) for key, value in embeds.items()}
        return {**embeds, scale: prompt.guidance}


def _picture(planes: Tensor) -> Image.Image:
    """A picture of c,H,W in [0,1]."""
    levels = (planes * 255).round().to(torch.uint8).permute(1, 2, 0).squeeze(2)
    return Image.fromarray(levels.numpy())


def noise_for(editor: FlowEditor, image: Tensor, mask: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The noise that the editor draws from now on, in patches."""
    with torch.no_grad():
        shape = editor.encode(image, mask).shape
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    monkeypatch.setattr(editor, "_drawn", lambda *_: (editor.prompts[0], noise, 0))
    return noise


@contextmanager
def calls(net: nn.Module) -> Iterator[list[tuple[list[Tensor], Any]]]:
    """What the transformer is given and what it returns, call by call."""
    seen: list[tuple[list[Tensor], Any]] = []

    def record(_: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        given = [*args, *(kwargs[key] for key in sorted(kwargs))]
        flat = [one for each in given for one in (each if isinstance(each, list) else [each])]
        tensors = [one.detach().float().squeeze() for one in flat if isinstance(one, Tensor)]
        shapes = [torch.tensor(one).float() for one in kwargs.get("img_shapes", [])]
        seen.append(([*tensors, *shapes], out[0]))

    hook = net.register_forward_hook(record, with_kwargs=True)
    yield seen
    hook.remove()


def steps_of(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the pipeline passes to its scheduler as the velocity from now on, step by step."""
    seen: list[Tensor] = []
    step = pipe.scheduler.step

    def spy(velocity: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(velocity.detach().float())
        return step(velocity, *args, **kwargs)

    monkeypatch.setattr(pipe.scheduler, "step", spy)
    return seen


def test_the_edit_is_the_one_that_diffusers_pipeline_makes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All steps, with guidance, from pixels; ours goes by latents and by a loop of its own."""
    editor = load(folder, prompts=TEXT, negative=OPPOSITE, steps=4, guidance=3.0)
    pipeline = Pipeline(editor, monkeypatch)
    image, mask = inputs()
    noise = noise_for(editor, image, mask, monkeypatch)
    if folder.name == "sd3":  # diffusers 0.42 forgets the shift of the latents before it decodes them
        theirs = pipeline.edit(image, mask, noise, output="latent")
        with torch.no_grad():
            known = editor._encoded(image)
            ours = F.pixel_shuffle(editor._denoised(known, mask, editor.prompts[0], noise, 0), 2)
        assert torch.allclose(ours, theirs, atol=1e-4)
        return
    theirs = pipeline.edit(image, mask, noise)
    with torch.no_grad():
        ours = editor.inpaint(image, mask)
    hole = (mask > 0).expand_as(image)
    assert torch.allclose(ours[hole], theirs[hole], atol=1e-4)
    assert (ours - image)[hole].abs().mean() > 0.05


@pytest.mark.parametrize("strength", [None, 1.0])
def test_the_first_step_is_the_pipelines_own(
    folder: Path, strength: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first that sees the picture: at full strength some transformers see noise alone in the first."""
    guidance = 0.0 if folder.name == "z-image" else 1.0
    editor = load(folder, prompts=TEXT, steps=8, guidance=guidance, strength=strength)
    pipeline, net = Pipeline(editor, monkeypatch), editor.pipe.transformer
    image, mask = inputs()
    noise = noise_for(editor, image, mask, monkeypatch)
    steps = steps_of(editor.pipe, monkeypatch)
    with calls(net) as theirs:
        pipeline.edit(image, mask, noise, output="latent")
    with calls(net) as ours, torch.no_grad():
        predicted = editor.first_step(image, mask)
    blind = strength == 1 and editor.family.sees is Sees.NOTHING
    assert len(ours) == 1 + blind
    for (given, out), (expected, wanted) in zip(ours, theirs, strict=False):
        assert len(given) == len(expected)
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(given, expected, strict=True))
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(out, wanted, strict=True))
    velocity = steps[blind]
    plane = velocity.ndim == 4
    ours_as_theirs = F.pixel_shuffle(predicted, 2) if plane else predicted.flatten(2).transpose(1, 2)
    assert torch.allclose(ours_as_theirs, velocity, atol=1e-4)
    assert predicted.abs().mean() > 0.01


# Qwen-Image-Edit's pipeline shows its language model the picture, too, and here that is left out.
@pytest.mark.parametrize("kind", [kind for kind in flows.KINDS if kind != "qwen-image-edit"])
def test_prompts_are_embedded_as_by_the_pipeline_itself(
    folders: dict[str, Path], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the text, through the pipeline's own call, to what the transformer is given."""
    folder, guidance = folders[kind], 0.0 if kind == "z-image" else 1.0
    editor = load(folder, prompts=TEXT, steps=4, guidance=guidance)
    pipeline = Pipeline(editor, monkeypatch)
    embeds, prompts = editor.prompts[0].embeds, pipeline._prompts()
    texts = {key: value for key, value in prompts.items() if key not in embeds}
    pipeline.pipe = type(editor.pipe).from_pretrained(folder)
    pipeline.pipe.set_progress_bar_config(disable=True)
    monkeypatch.setattr(pipeline, "_prompts", lambda: {"prompt": TEXT, **texts})
    image, mask = inputs()
    noise = noise_for(editor, image, mask, monkeypatch)
    seen: list[dict[str, Any]] = []

    def record(_: nn.Module, args: Any, kwargs: Any) -> None:
        names = {"prompt_embeds": "encoder_hidden_states", "pooled_prompt_embeds": "pooled_projections"}
        given = {name: kwargs.get(theirs) for name, theirs in names.items()}
        if kind == "z-image":  # by position, a list of one prompt for each picture
            given["prompt_embeds"] = args[2][0][None]
        seen.append({name: value for name, value in given.items() if value is not None})

    pipeline.pipe.transformer.register_forward_pre_hook(record, with_kwargs=True)
    with torch.no_grad():
        pipeline.edit(image, mask, noise, output="latent")
    assert seen[0].keys() == embeds.keys()
    for name, value in seen[0].items():
        assert value.shape == embeds[name].shape
        assert torch.allclose(value, embeds[name], atol=1e-4)
    other = load(folder, prompts=OPPOSITE, steps=4, guidance=guidance).prompts[0].embeds["prompt_embeds"]
    ours = embeds["prompt_embeds"]
    assert other.shape != ours.shape or not torch.allclose(other, ours, atol=1e-3), "the text counts"


def test_one_step_is_the_whole_edit_where_the_edit_is_one_step(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = load(folder, steps=2, strength=None if folder.name == "flux-fill" else 0.5, guidance=0.0)
    image, mask = inputs()
    if folder.name == "flux-fill":
        editor = load(folder, steps=1, guidance=0.0)
    with torch.no_grad():
        assert torch.allclose(editor.one_step(image, mask), editor.inpaint(image, mask), atol=1e-4)


def test_the_entropy_is_that_of_the_first_blocks_own_attention(folder: Path) -> None:
    """Against the plain formula, on what the fused operation is given in an ordinary forward pass."""
    editor = load(folder, steps=2)
    image, mask = inputs()
    given: list[tuple[Tensor, Tensor]] = []
    fused = F.scaled_dot_product_attention
    block = getattr(editor.pipe.transformer, editor.family.joint)[0]
    inside = [False]

    def spy(query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if inside[0]:
            given.append((query, key))
        return fused(query, key, *args, **kwargs)

    before = block.register_forward_pre_hook(lambda *_: inside.__setitem__(0, True))
    after = block.register_forward_hook(lambda *_: inside.__setitem__(0, False))
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(F, "scaled_dot_product_attention", spy)
        editor.first_step(image, mask)
    before.remove()
    after.remove()
    query, key = given[-1]  # where the first step sees noise alone, the second one counts
    weights = (query @ key.transpose(2, 3) / query.shape[3] ** 0.5).softmax(dim=3)
    every = -(weights * weights.log()).sum(dim=3).mean(dim=1) / np.log(key.shape[2])
    with torch.no_grad():
        entropy = editor.attention_entropy(image, mask).flatten()
    count, pictures = len(entropy), 2 if editor.family.sees is Sees.REFERENCE else 1
    start = 0 if editor.family.picture_first else every.shape[1] - pictures * count
    assert torch.allclose(entropy, every[0, start : start + count], atol=1e-5)


def test_entropy_of_known_attention() -> None:
    """Two of four keys allowed and alike: half of the largest; all alike: the largest; one key: none."""
    query, key = torch.zeros(1, 2, 3, 4), torch.randn(1, 2, 4, 4)
    allowed = torch.tensor([True, True, False, False]).view(1, 1, 1, 4)
    assert torch.allclose(attention.entropy(query, key, allowed), torch.full((1, 3), 0.5))
    assert torch.allclose(attention.entropy(query, key), torch.ones(1, 3))
    one = torch.tensor([True, False, False, False]).view(1, 1, 1, 4)
    assert torch.allclose(attention.entropy(query, key, one), torch.zeros(1, 3))


def test_entropy_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = torch.randn(2, 2, 7, 4).requires_grad_(), torch.randn(2, 2, 9, 4)
    whole = attention.entropy(query, key)
    (gradient,) = torch.autograd.grad(whole.square().sum(), query)
    monkeypatch.setattr(attention, "NUMBERS", 80)
    parts = attention.entropy(query, key)
    (in_parts,) = torch.autograd.grad(parts.square().sum(), query)
    assert torch.allclose(whole, parts)
    assert torch.allclose(gradient, in_parts, atol=1e-6)


def test_text_encoders_are_freed_and_prompts_count(folder: Path) -> None:
    image, mask = inputs()
    editor = load(folder, prompts=[TEXT, OPPOSITE], steps=2)
    assert not [part for part in editor.pipe.components if "text" in part and editor.pipe.components[part]]
    first = editor.inpaint(image, mask)
    assert torch.equal(first, editor.inpaint(image, mask))
    assert not torch.equal(first, load(folder, prompts=OPPOSITE, steps=2).inpaint(image, mask))


def test_bfloat16_is_near_single(folder: Path) -> None:
    image, mask = inputs()
    single, half = load(folder, steps=2), load(folder, steps=2, dtype="bfloat16")
    assert half.pipe.transformer.dtype == half.pipe.vae.dtype == torch.bfloat16
    difference = (single.inpaint(image, mask) - half.inpaint(image, mask)).abs().mean()
    assert 0 < difference < 0.02
    assert half.encode(image, mask).dtype == torch.float32


def test_gradients_are_checkpointed(folder: Path) -> None:
    editor = load(folder, steps=2)
    image, mask = inputs()

    def kept() -> int:
        sizes: list[int] = []

        def count(tensor: Tensor) -> Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            editor.one_step(image.clone().requires_grad_(True), mask)
        return sum(sizes)

    frugal = kept()
    editor.pipe.transformer.disable_gradient_checkpointing()
    if editor._checkpointed:
        editor.pipe.vae.disable_gradient_checkpointing()
    editor._checkpointed = True
    assert frugal < kept() / 2


def gradient_of(editor: FlowEditor, name: str) -> Tensor:
    image, mask = inputs()
    image.requires_grad_(True)
    (gradient,) = torch.autograd.grad(getattr(editor, name)(image, mask).square().sum(), image)
    return gradient


@pytest.mark.parametrize("name", ["first_step", "attention_entropy"])
def test_offloaded_blocks_give_the_same_gradients(folder: Path, name: str) -> None:
    plain, offloaded = load(folder, steps=2), load(folder, steps=2, offload=True)
    offloaded.to("cpu")
    streamed = [m for m in offloaded.pipe.transformer.modules() if isinstance(m, streaming.Streamed)]
    assert streamed
    assert torch.equal(gradient_of(plain, name), gradient_of(offloaded, name))


def test_streamed_weights_stay_and_their_copies_are_not_kept() -> None:
    """A device of other numbers stands for a GPU: what arrives there is what `to` was asked for."""
    net = nn.Sequential(nn.Linear(2, 2))
    net.blocks = nn.ModuleList([nn.Linear(2, 2) for _ in range(2)])
    streaming.stream(net)
    streaming.place(net, "meta")
    assert net[0].weight.device.type == "meta"
    assert all(block.block.weight.device.type == "cpu" for block in net.blocks)  # type: ignore[union-attr]
    assert net.blocks[0](torch.zeros(1, 2, device="meta")).device.type == "meta"
    assert all(not p.requires_grad for p in net[0].parameters())


def refusal(folder: Path | str, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load(Path(folder), **options)
    assert caught.value.code == Code.MODEL
    assert not caught.value.retryable
    return caught.value.message


@pytest.mark.parametrize(
    ("file", "tensor"),
    [
        ("transformer/diffusion_pytorch_model.safetensors", "proj_out.weight"),
        ("vae/diffusion_pytorch_model.safetensors", "decoder.conv_in.weight"),
        ("text_encoder/model.safetensors", "model.layers.3.mlp.up_proj.weight"),
    ],
)
def test_a_missing_tensor_is_named(copied: Path, file: str, tensor: str) -> None:
    pipelines.without_tensor(copied / file, tensor)
    assert f"the weights in {copied / Path(file).parent} lack {tensor}; fetch" in refusal(copied)


@pytest.mark.parametrize("part", ["tokenizer", "vae", "transformer", "text_encoder", "scheduler"])
def test_a_missing_component_is_named(copied: Path, part: str) -> None:
    shutil.rmtree(copied / part)
    assert f"{copied} lacks {part}" in refusal(copied)


def test_a_tokenizer_without_its_configuration_is_named(copied: Path) -> None:
    (copied / "tokenizer" / "tokenizer_config.json").unlink()
    assert f"{copied} lacks tokenizer/tokenizer_config.json" in refusal(copied)


@pytest.mark.parametrize(
    ("kind", "part", "others"),
    [
        ("flux2-klein", "tokenizer", "tokenizer/vocab.json and tokenizer/merges.txt (Qwen2Tokenizer)"),
        ("flux", "tokenizer_2", "tokenizer_2/spiece.model (T5Tokenizer)"),
    ],
)
def test_a_tokenizer_without_its_vocabulary_is_named(
    folders: dict[str, Path], tmp_path: Path, kind: str, part: str, others: str
) -> None:
    """transformers would load it silently, with a few special tokens for all words."""
    path = shutil.copytree(folders[kind], tmp_path / kind)
    (path / part / "tokenizer.json").unlink()
    assert f"{path} lacks {part}/tokenizer.json, or in its place {others}; fetch" in refusal(path)


@pytest.mark.parametrize("library", ["diffusers", "transformers"])
def test_a_missing_library_is_named(copied: Path, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    assert f"pipelines need {library}; pip install 'backfire[diffusion]'" in refusal(copied)


def test_hub_names_come_from_the_cache_or_are_refused_offline(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_cache = pipelines.cached(folders["flux2-klein"], "somebody/tiny", tmp_path, monkeypatch)
    assert load(Path(in_cache)).weights_sha256 == load(folders["flux2-klein"]).weights_sha256
    message = refusal("nobody/nothing")
    assert "nobody/nothing is no folder, not in the hub's cache, and cannot be fetched" in message


def test_another_pipeline_is_refused(copied: Path) -> None:
    index = json.loads((copied / "model_index.json").read_text())
    (copied / "model_index.json").write_text(json.dumps({**index, "_class_name": "FluxControlPipeline"}))
    assert "holds a FluxControlPipeline, expected one of StableDiffusion3" in refusal(copied)


def test_weights_of_another_family_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    path = shutil.copytree(folders["flux"], tmp_path / "flux")
    index = json.loads((path / "model_index.json").read_text())
    (path / "model_index.json").write_text(json.dumps({**index, "_class_name": "FluxFillPipeline"}))
    assert "its transformer takes 64 channels, expected 384; name a pipeline of FluxFill" in refusal(path)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("flux", {"strength": 0}, "strength: got 0, expected a number above 0, up to 1"),
        ("flux", {"steps": 0}, "steps: got 0, expected a whole number from 1"),
        ("flux", {"offload": "yes"}, "offload: got 'yes', expected true or false"),
        ("flux", {"dtype": "float16"}, "dtype: got 'float16'"),
        ("flux", {"steps": 1}, "steps: got 1, which leaves none that sees the picture"),
        ("flux-fill", {"strength": 0.5}, "FluxFillPipeline is made to paint from noise"),
    ],
)
def test_impossible_options_are_named(
    folders: dict[str, Path], kind: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(folders[kind], **options)
    assert message in str(caught.value)


def test_every_family_has_a_tiny_pipeline() -> None:
    made = {pipeline for pipeline, *_ in flows.KINDS.values()}
    assert made == {family.pipeline for family in FAMILIES}
    assert all(hasattr(pipelines.library("diffusers"), name) for name in BY_CLASS)


METHODS = ("implant", "encoder", "first-step", "attention")


@pytest.mark.parametrize(
    ("kind", "method"), [(kind, METHODS[i % len(METHODS)]) for i, kind in enumerate(flows.KINDS)]
)
def test_a_picture_is_protected_with_it_as_surrogate(
    folders: dict[str, Path], kind: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of a protection; each method has two kinds of pipelines here, and each kind one method.

    Edits by random weights are no better broken than by noise, so that the verdict may be `failed`.
    """
    if kind != next(iter(flows.KINDS)):
        # Krita makes 464x576 of the picture, which takes each kind seconds and tells no more than the first.
        small = replace(krita.CHECKPOINTS["flux"], least=64, least_area=64**2)
        monkeypatch.setitem(krita.CHECKPOINTS, "flux", small)
    photo((80, 64)).save(tmp_path / "a.png")
    mask_picture((80, 64), (24, 20, 56, 44)).save(tmp_path / "m.png")
    protect = {"method": method, "surrogates": ["tiny"], "iterations": 1, "paths": "first"}
    result = backfire.protect(
        tmp_path / "a.png",
        mask=tmp_path / "m.png",
        settings={
            "protect": {**QUICK["protect"], **protect},
            "verify": {**LENIENT, "held_out": [], "paths": ["krita-flux"]},
            "editors": {
                "tiny": {"kind": "flow", "weights": str(folders[kind]), "steps": 2, "dtype": "float32"}
            },
        },
    )
    receipt = result.receipt
    assert [one["name"] for one in receipt["surrogates"]] == ["tiny"]
    assert receipt["iterations_made"] == 1
    assert receipt["method"] == method
    assert 0 < receipt["max_change_levels"] <= 12
    assert {edit["path"] for edit in receipt["edits"]} == {"krita-flux"}
    assert all(np.isfinite([edit["ssim"], edit["l1"]]).all() for edit in receipt["edits"])
