"""A CUDA device must give the edits of a CPU, the same bytes each time, and a fallback if it lacks memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from backfire import config, inpaint
from backfire.detectors import Sidecar, Source
from backfire.inpaint.base import Editor
from backfire.perturb.methods.base import mixed_precision
from backfire.pipeline.protect import protect
from backfire.pipeline.result import Result
from tests.contract.test_editors import RANDOM, inputs, random_editor
from tests.support.pictures import encoded, mask_picture, photo
from tests.support.sandbox import LENIENT

__all__ = ["random_editor"]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

GPU = torch.device("cuda:0")


@pytest.fixture(scope="module", params=[*inpaint.NAMES, *RANDOM])
def editor(request: pytest.FixtureRequest, random_editor: Callable[[str], Editor]) -> Iterator[Editor]:
    name = request.param
    shared = random_editor(name) if name in RANDOM else inpaint.get(name)
    yield shared
    shared.to("cpu")  # where other tests expect it


@pytest.fixture
def exact() -> Iterator[None]:
    """Convolutions in full float32, where cuDNN would round to TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def filled(editor: Editor, device: torch.device) -> torch.Tensor:
    image, mask = inputs(128, 96)
    editor.to(device)
    with torch.inference_mode():
        out = editor.inpaint(image.to(device), mask.to(device), generator=torch.Generator().manual_seed(3))
    assert out.device.type == device.type
    return out.cpu()


@pytest.mark.usefixtures("exact")
def test_an_edit_is_the_one_of_the_cpu(editor: Editor) -> None:
    there, here = filled(editor, GPU), filled(editor, torch.device("cpu"))
    assert float((there - here).abs().max()) < 0.01


def test_mixed_precision_changes_an_edit_little(editor: Editor) -> None:
    with mixed_precision(GPU):
        there = filled(editor, GPU)
    assert torch.isfinite(there).all()
    assert float((there - filled(editor, torch.device("cpu"))).abs().mean()) < 0.02


def test_gradients_are_finite_and_reach_the_known_pixels(editor: Editor) -> None:
    image, mask = (plane.to(GPU) for plane in inputs(128, 96))
    editor.to(GPU)
    image.requires_grad_(True)
    differentiable = getattr(editor, "one_step", editor.inpaint)
    with mixed_precision(GPU):
        out = differentiable(image, mask)
    (gradient,) = torch.autograd.grad((out * mask).float().sum(), image)
    assert torch.isfinite(gradient).all()
    assert (gradient * (1 - mask)).abs().max() > 0


def protected(side: tuple[int, int] = (320, 240), **changed: Any) -> Result:
    """The result for a photograph of that size with a region of half its width and height."""
    settings = config.parse(
        {
            "folders": {"inbox": "inbox"},
            "protect": {"iterations": 4, "margin_px": 64, "device": "cuda:0", **changed},
            "verify": LENIENT,
        },
        base=Path("/nowhere"),
    )
    width, height = side
    mask = encoded(mask_picture(side, (width // 4, height // 4, width * 3 // 4, height * 3 // 4)))
    source = Source("p.png", (Sidecar("p.mask.png", mask),))
    return protect(encoded(photo().resize(side)), source, settings)


def test_the_receipt_names_the_card_and_its_memory() -> None:
    receipt = protected().receipt
    assert receipt["device"] == torch.cuda.get_device_name(GPU)
    assert 0 < receipt["peak_memory_mb"] < 20_000
    assert receipt["memory_rung"] == "full"


@pytest.mark.filterwarnings("default:.*deterministic")
@pytest.mark.parametrize("method", ["implant", "baseline"])
def test_the_same_bytes_twice(method: str) -> None:
    first, second = (protected(iterations=40, method=method) for _ in range(2))
    assert first.data == second.data


@pytest.fixture
def cramped() -> Iterator[None]:
    """A card of which torch may have half a gigabyte."""
    gc.collect()
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(GPU).total_memory
    torch.cuda.set_per_process_memory_fraction(2**29 / whole, GPU)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0, GPU)


@pytest.mark.usefixtures("cramped")
def test_on_a_card_too_small_for_the_crop_a_frugal_rung_is_used() -> None:
    receipt = protected((1400, 1200), iterations=1, work_px=1400, margin_px=300).receipt
    assert receipt["memory_rung"] in ("one_at_a_time", "smaller", "cpu")


@pytest.mark.usefixtures("cramped")
def test_with_a_card_too_small_for_anything_the_cpu_is_used() -> None:
    torch.cuda.set_per_process_memory_fraction(1e-4, GPU)
    receipt = protected(iterations=1).receipt
    assert receipt["memory_rung"] == "cpu"
    assert receipt["device"] == "cpu"
