"""Stable Diffusion editors: their edits equal those of diffusers' pipelines, and one step is differentiable.

The pipelines are tiny and random, but saved and loaded like real ones.
"""

from __future__ import annotations

import ast
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from backfire.errors import Code, ConfigError, ModelError
from backfire.inpaint import denoising, diffusion
from backfire.inpaint.diffusion import DiffusionEditor
from backfire.inpaint.options import DiffusionOptions
from backfire.perturb.methods.base import Method, Task
from backfire.perturb.methods.baseline import Baseline
from backfire.perturb.methods.encoder import Encoder
from backfire.perturb.methods.first_step import FirstStep
from backfire.perturb.methods.implant import Implant
from backfire.types import Budget
from tests.support import pipelines

FAMILIES = ("sd", "sdxl")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("pipelines")
    return {name: pipelines.save(home / name, xl=name == "sdxl") for name in FAMILIES}


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


@pytest.fixture
def copied(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of a pipeline, which a test may damage."""
    return shutil.copytree(folders["sd"], tmp_path / "copied")


def inputs(count: int = 1, size: int = 64) -> tuple[Tensor, Tensor]:
    image = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(count, 1, size, size)
    mask[..., 16:40, 16:40] = 1
    return image, mask


class Call(NamedTuple):
    seen: Tensor
    timestep: float
    prompt: Tensor
    predicted: Tensor


@contextmanager
def unet_calls(editor: DiffusionEditor) -> Iterator[list[Call]]:
    """For each call of the UNet, its inputs and its result."""
    calls: list[Call] = []

    def record(_: nn.Module, given: tuple[Tensor, Tensor], named: dict[str, Any], out: tuple[Tensor]) -> None:
        prompt = named["encoder_hidden_states"]
        calls.append(Call(given[0].detach(), float(given[1]), prompt.detach(), out[0].detach()))

    hook = editor.pipe.unet.register_forward_hook(record, with_kwargs=True)
    yield calls
    hook.remove()


def test_the_edit_is_the_one_that_diffusers_pipeline_makes(folder: Path) -> None:
    """A user gives the pipeline a prompt and pixels; the editor gives it embeddings and latents."""
    image, mask = inputs(size=72)
    prompt, negative = "abc", "xy"
    editor = load(folder, prompts=[prompt], negative=negative, steps=3, guidance=5.0)
    name = json.loads((folder / "model_index.json").read_text())["_class_name"]
    unused = {"safety_checker": None, "requires_safety_checker": False} if folder.name == "sd" else {}
    pipe = getattr(pipelines.library("diffusers"), name).from_pretrained(folder, **unused)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 9, 9, generator=torch.Generator().manual_seed(0))
    theirs = pipe(
        prompt=prompt,
        negative_prompt=negative,
        image=image,
        mask_image=mask,
        latents=noise,
        strength=1.0,
        height=72,
        width=72,
        num_inference_steps=3,
        guidance_scale=5.0,
        output_type="pt",
    ).images
    hole = (mask > 0).expand_as(image)
    assert torch.allclose(editor.inpaint(image, mask)[hole], theirs[hole], atol=1e-4)


ANCIENT_NUMPY = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
"""Some schedulers of diffusers pass tensors to numpy by a deprecated method."""


@ANCIENT_NUMPY
@pytest.mark.parametrize(
    ("family", "scheduler"),
    [
        ("sd", "DDIMScheduler"),
        ("sd", "PNDMScheduler"),
        ("sd", "EulerAncestralDiscreteScheduler"),
        ("sd", "DPMSolverMultistepScheduler"),
        ("sd", "UniPCMultistepScheduler"),
        ("sdxl", "EulerDiscreteScheduler"),
    ],
)
def test_the_first_step_is_the_pipelines_own(family: str, scheduler: str, folders: dict[str, Path]) -> None:
    image, mask = inputs(count=2)
    mask[1] = mask[1].roll(13, dims=-1)
    loaded = load(folders[family], guidance=1.0)
    pipe = loaded.pipe
    kind = getattr(pipelines.library("diffusers"), scheduler)
    pipe.scheduler = kind.from_config(pipe.scheduler.config, skip_prk_steps=True)  # PNDM as published
    editor = DiffusionEditor("sd", "0" * 64, pipe, loaded.prompts, steps=3, mask_blur=0)
    with unet_calls(editor) as calls:
        editor.inpaint(image, mask)
    theirs = calls[0]
    with unet_calls(editor) as calls, torch.no_grad():
        predicted = editor.first_step(image, mask)
    assert calls[0].timestep == theirs.timestep
    assert torch.allclose(calls[0].seen, theirs.seen, atol=1e-4)
    assert torch.allclose(predicted, theirs.predicted, atol=1e-4)


@ANCIENT_NUMPY
@pytest.mark.parametrize(
    ("scheduler", "predicts"),
    [
        ("DDIMScheduler", "epsilon"),
        ("DDIMScheduler", "v_prediction"),
        ("DDIMScheduler", "sample"),
        ("EulerDiscreteScheduler", "epsilon"),
        ("EulerDiscreteScheduler", "v_prediction"),
    ],
)
def test_one_step_equals_an_edit_of_one_step(tmp_path: Path, scheduler: str, predicts: str) -> None:
    folder = pipelines.save(tmp_path / "one", scheduler=scheduler, prediction_type=predicts)
    editor = load(folder, steps=1, guidance=1.0)
    image, mask = inputs()
    with torch.no_grad():
        assert torch.allclose(editor.one_step(image, mask), editor.inpaint(image, mask), atol=1e-3)


def sign_steps(
    editor: DiffusionEditor, image: Tensor, mask: Tensor, bound: float
) -> tuple[Tensor, list[float]]:
    """Push the one-step edit away from the clean one; the perturbed picture and the loss at each step."""
    clean = editor.one_step(image, mask).detach()
    change = (torch.rand(image.shape, generator=torch.Generator().manual_seed(5)) - 0.5) * bound
    losses = []
    for _ in range(8):
        variable = (image + change).clamp(0, 1).requires_grad_(True)
        loss = -(((editor.inpaint(variable, mask) - clean) * mask) ** 2).sum()
        losses.append(float(loss.detach()))
        change = change - bound / 4 * torch.autograd.grad(loss, variable)[0].sign()
        change = change.clamp(-bound, bound)
    return (image + change).clamp(0, 1), losses


def test_optimising_one_step_changes_the_full_edit_too(folder: Path) -> None:
    image, mask = inputs()
    editor = load(folder, steps=3)
    bound = 6 / 255
    protected, losses = sign_steps(editor, image, mask, bound)
    assert losses[-1] < 10 * losses[0] < 0, "the one-step edit moved away"
    with torch.no_grad():
        clean, broken = editor.inpaint(image, mask), editor.inpaint(protected, mask)
        signs = torch.randint(0, 2, image.shape, generator=torch.Generator().manual_seed(6)) * 2 - 1
        noisy = editor.inpaint((image + bound * signs).clamp(0, 1), mask)
    hole = (mask > 0).expand_as(image)
    moved, by_noise = ((other - clean)[hole].abs().mean() for other in (broken, noisy))
    assert moved > 5 * by_noise, "noise of the same size changes the pipeline's edit far less"


def test_the_encoder_can_be_optimised_through(folders: dict[str, Path]) -> None:
    editor = load(folders["sd"], steps=1)
    image, mask = inputs()
    variable = image.clone().requires_grad_(True)
    clean = editor.encode(image, mask)
    start = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    loss = ((editor.encode(variable, mask) - clean - start) ** 2).sum()
    (gradient,) = torch.autograd.grad(loss, variable)
    closer = ((editor.encode(image - 2 / 255 * gradient.sign(), mask) - clean - start) ** 2).sum()
    assert closer < loss


@pytest.mark.parametrize(
    "method",
    [Implant(), Encoder(), FirstStep(), Baseline()],
    ids=["implant", "encoder", "first-step", "baseline"],
)
def test_clean_edits_of_methods_are_of_one_step_like_those_of_gradients(
    method: Method, folders: dict[str, Path]
) -> None:
    """A clean edit of all steps would differ from the differentiable one, whatever the perturbation."""
    editor = load(folders["sd"], steps=2)
    image, mask = inputs()
    plane = mask[0, 0].bool().numpy()
    task = Task(image, [plane], plane, torch.ones(1, 1, 64, 64), Budget(6))
    with unet_calls(editor) as calls:
        change = method.run(
            task,
            [editor],
            iterations=2,
            target="away",
            rng=np.random.default_rng(0),
            progress=lambda done, total: None,
        ).perturbation
    steps = {call.timestep for call in calls}
    assert len(steps) == (not isinstance(method, Encoder)), "no later step was computed"
    assert 0 < float(change.abs().max()) <= Budget(6).unit + 1e-6


def test_gradients_flow_after_an_edit_under_inference_mode(folders: dict[str, Path]) -> None:
    """The verification of one picture runs before the optimisation of the next."""
    editor = load(folders["sd"], steps=2)
    image, mask = inputs()
    with torch.inference_mode():
        editor.inpaint(image, mask)
    variable = image.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(editor.inpaint(variable, mask).sum(), variable)
    assert torch.isfinite(gradient).all()


def test_gradients_are_checkpointed(folders: dict[str, Path]) -> None:
    editor = load(folders["sd"], steps=1)
    image, mask = inputs()

    def kept() -> int:
        total = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            editor.inpaint(image.clone().requires_grad_(True), mask)
        return total

    frugal = kept()
    editor.pipe.unet.disable_gradient_checkpointing()
    editor.pipe.vae.disable_gradient_checkpointing()
    assert frugal < kept() / 3


def test_prompts_are_embedded_once_and_the_text_encoders_freed(folder: Path) -> None:
    editor = load(folder, prompts=["abc", "xyz"], steps=2)
    assert not [part for part in editor.pipe.components if "text" in part and editor.pipe.components[part]]
    image, mask = inputs()
    first, again = editor.inpaint(image, mask), editor.inpaint(image, mask)
    assert torch.equal(first, again)
    other = load(folder, prompts="xyz", steps=2).inpaint(image, mask)
    assert not torch.allclose(first, other, atol=1e-5), "without a generator the first prompt counts"


def test_the_generator_picks_among_the_prompts(folders: dict[str, Path]) -> None:
    editor = load(folders["sd"], prompts=["abc", "xyz"], steps=1)
    with unet_calls(editor) as calls:
        for seed in range(8):
            editor.inpaint(*inputs(), generator=torch.Generator().manual_seed(seed))
    assert len({call.prompt.numpy().tobytes() for call in calls}) == 2


@pytest.mark.parametrize(("prompt", "guidance", "batch"), [("", 7.5, 1), ("abc", 1.0, 1), ("abc", 7.5, 2)])
def test_without_a_prompt_or_guidance_there_is_no_second_prediction(
    folders: dict[str, Path], prompt: str, guidance: float, batch: int
) -> None:
    editor = load(folders["sd"], prompts=[prompt], guidance=guidance, steps=1)
    with unet_calls(editor) as calls:
        editor.inpaint(*inputs())
    assert [len(call.seen) for call in calls] == [batch]


def test_a_blurred_mask_is_opencvs_gaussian_of_at_least_one_half(folders: dict[str, Path]) -> None:
    radius = 11
    _, mask = inputs()
    soft = denoising.blurred(mask, radius)
    sigma = 0.3 * (radius - 1) + 0.8  # OpenCV's rule for a kernel of 2 * radius + 1 pixels
    expected = gaussian_filter(mask[0, 0].numpy(), sigma, mode="nearest", radius=radius)
    assert np.allclose(soft[0, 0].numpy(), expected, atol=1e-5)

    image, _ = inputs()
    image.requires_grad_(True)
    editor = load(folders["sd"], steps=1, mask_blur=radius)
    (gradient,) = torch.autograd.grad(editor.first_step(image, mask).square().sum(), image)
    assert gradient[..., 16, 16].abs().sum() > 0, "the rounded corner is not masked, and so is an input"
    assert gradient[..., 24:32, 24:32].abs().sum() == 0, "the middle is masked"
    out = editor.inpaint(image.detach(), mask)
    known = (mask == 0).expand_as(image)
    assert torch.equal(out[known], image.detach()[known])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near_single(folder: Path, dtype: str) -> None:
    image, mask = inputs()
    single = load(folder, steps=2)
    half = load(folder, steps=2, dtype=dtype)
    assert half.pipe.unet.dtype == getattr(torch, dtype)
    # float16 overflows in these autoencoders; bfloat16 has the range of float32.
    assert (half.pipe.vae.dtype == torch.float32) == (dtype == "float16")
    difference = (single.inpaint(image, mask) - half.inpaint(image, mask)).abs().mean()
    assert 0 < difference < 0.02
    assert half.encode(image, mask).dtype == torch.float32


def test_the_digest_covers_the_files_that_are_loaded_and_no_others(copied: Path) -> None:
    def digest() -> str:
        return load(copied, steps=1).weights_sha256

    first = digest()
    (copied / "README.md").write_text("not loaded")
    (copied / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"another variant")
    assert digest() == first
    config = copied / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("0.012", "0.013"))
    assert digest() != first


def load(weights: Path | str, **options: Any) -> DiffusionEditor:
    return DiffusionEditor.load("sd", weights, DiffusionOptions(**options))


def refusal(weights: Path | str, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load(weights, **options)
    assert caught.value.code == Code.MODEL
    assert not caught.value.retryable
    assert caught.value.message.startswith("editor sd: ")
    return caught.value.message


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path / 'absent'} is no folder; name a folder" in refusal(tmp_path / "absent")
    assert "no readable model_index.json" in refusal(tmp_path)


def test_pickles_are_refused(copied: Path) -> None:
    weights = copied / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save({}, copied / "unet" / "diffusion_pytorch_model.bin")
    weights.unlink()
    assert "safetensors (no pickles)" in refusal(copied)


def test_pickled_text_encoders_are_refused(copied: Path) -> None:
    weights = copied / "text_encoder" / "model.safetensors"
    torch.save({}, copied / "text_encoder" / "pytorch_model.bin")
    weights.unlink()
    assert "safetensors (no pickles)" in refusal(copied)


@pytest.mark.parametrize(
    ("file", "tensor"),
    [
        ("unet/diffusion_pytorch_model.safetensors", "conv_out.weight"),
        ("vae/diffusion_pytorch_model.safetensors", "decoder.conv_in.weight"),
        ("text_encoder/model.safetensors", "encoder.layers.1.mlp.fc1.weight"),
    ],
)
def test_a_missing_tensor_is_named(copied: Path, file: str, tensor: str) -> None:
    """diffusers and transformers would go on with random numbers in its place."""
    pipelines.without_tensor(copied / file, tensor)
    assert f"the weights in {copied / Path(file).parent} lack {tensor}; fetch" in refusal(copied)


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder", "unet", "vae", "scheduler"])
def test_a_missing_component_is_named(copied: Path, part: str) -> None:
    shutil.rmtree(copied / part)
    assert f"{copied} lacks {part} (" in refusal(copied)


def test_a_tokenizer_without_its_configuration_is_named(copied: Path) -> None:
    (copied / "tokenizer" / "tokenizer_config.json").unlink()
    assert f"{copied} lacks tokenizer/tokenizer_config.json (CLIPTokenizer)" in refusal(copied)


@pytest.mark.parametrize("missing", ["vocab.json", "merges.txt"])
def test_a_tokenizer_without_its_vocabulary_is_named(
    folders: dict[str, Path], copied: Path, missing: str
) -> None:
    """transformers would load it silently, with a few special tokens for all words."""
    folder = copied / "tokenizer"
    (before,) = load(copied, prompts=["abc"], steps=1).prompts
    # The other way to write the same vocabulary.
    for file in folders["sd"].with_name("sd-vocabulary").iterdir():
        shutil.copy(file, folder)
    (folder / "tokenizer.json").unlink()
    (after,) = load(copied, prompts=["abc"], steps=1).prompts
    assert torch.equal(before.embeds["prompt_embeds"], after.embeds["prompt_embeds"])
    (folder / missing).unlink()
    lacking = f"lacks tokenizer/tokenizer.json, or in its place tokenizer/{missing} (CLIPTokenizer); fetch"
    assert lacking in refusal(copied)


def test_damaged_weights_are_named(copied: Path) -> None:
    weights = copied / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert f"{copied} cannot be loaded as a pipeline" in refusal(copied)


@pytest.mark.parametrize("kind", ["FluxFillPipeline", ["mine", "Pipeline"]])
def test_another_pipeline_is_refused_and_its_code_not_run(copied: Path, kind: object) -> None:
    index = json.loads((copied / "model_index.json").read_text())
    (copied / "model_index.json").write_text(json.dumps({**index, "_class_name": kind}))
    (copied / "mine.py").write_text("raise SystemExit('was run')")
    assert "expected one of StableDiffusionInpaintPipeline" in refusal(copied)


def test_another_scheduler_is_refused(copied: Path) -> None:
    config = copied / "scheduler" / "scheduler_config.json"
    index = json.loads((copied / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    (copied / "model_index.json").write_text(json.dumps(index))
    config.write_text(json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler"}))
    assert "use DDIM" in refusal(copied)


def test_a_scheduler_with_noise_of_its_own_is_refused(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two edits of one picture would differ, which a verdict would take for protection."""
    kind = pipelines.library("diffusers").EulerDiscreteScheduler
    config = copied / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": kind.__name__}))
    index = json.loads((copied / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", kind.__name__]
    (copied / "model_index.json").write_text(json.dumps(index))
    monkeypatch.setattr(kind, "noise_sampler", None, raising=False)  # as that of DPM-Solver++ SDE has one
    assert "adds noise that no generator draws" in refusal(copied)


def test_the_missing_extra_is_named(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install 'backfire[diffusion]'" in refusal(folders["sd"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": []}, "prompts: got []"),
        ({"prompts": [3]}, "prompts: got [3]"),
        ({"prompts": 3}, "prompts: got 3, expected a list of texts"),
        ({"steps": 0}, "steps: got 0, expected a whole number from 1"),
        ({"steps": "many"}, "steps: got 'many'"),
        ({"steps": 20.0}, "steps: got 20.0"),
        ({"steps": None}, "steps: got None"),
        ({"guidance": -1}, "guidance: got -1"),
        ({"mask_blur": -1}, "mask_blur: got -1"),
        ({"variant": 16}, "variant: got 16, expected a text"),
        ({"dtype": "bfloat"}, "dtype: got 'bfloat'; did you mean 'bfloat16'?"),
    ],
)
def test_impossible_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        DiffusionOptions(**options)
    assert str(caught.value).startswith(message)


def test_hub_names_come_from_the_cache_or_are_refused_offline(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = pipelines.cached(folders["sd"], "somebody/tiny", tmp_path, monkeypatch)
    assert load(name, steps=1).weights_sha256 == load(folders["sd"], steps=1).weights_sha256
    message = refusal(Path("nobody/nothing"))
    assert "nobody/nothing is no folder, not in the hub's cache, and cannot be fetched" in message
    assert "go online once" in message


def test_loading_prints_nothing(folders: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    """Progress bars and advice of these libraries would stand between the JSON lines of the daemon's log."""
    for name in ("diffusers", "transformers"):
        noisy = pipelines.library(name).utils.logging
        noisy.enable_progress_bar()
        noisy.set_verbosity_info()
    load(folders["sd"], steps=1).inpaint(*inputs())
    assert capfd.readouterr() == ("", "")


def test_the_module_imports_neither_library_before_it_loads() -> None:
    """Importing them takes seconds, which other editors do not need."""
    for module in (diffusion, denoising):
        tree = ast.parse(Path(str(module.__file__)).read_text())
        imported = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not [line for line in imported if "diffusers" in line or "transformers" in line]


def test_a_scheduler_moves_to_another_device_with_its_editor(tmp_path: Path) -> None:
    """On a GPU, diffusers' `add_noise` left the scheduler's table on the device of the latents."""
    editor = load(pipelines.save(tmp_path / "sd", channels=4), steps=2)
    image, mask = torch.rand(1, 3, 64, 64), torch.ones(1, 1, 64, 64)
    editor.pipe.scheduler.alphas_cumprod = editor.pipe.scheduler.alphas_cumprod.to("meta")
    editor.to("cpu")
    assert torch.isfinite(editor.inpaint(image, mask)).all()
