"""The pieces methods are made of: views, clean edits, the eye's budget."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from daemon import perception
from daemon.domain import Budget, Rgb
from daemon.methods.base import Task
from daemon.methods.edits import Edits
from daemon.methods.views import View, jpeg, views
from tests.conftest import photo


class Counting:
    """An editor that fills with the mean of what it sees, and counts its edits."""

    name, multiple, weights_sha256, blind = "counting", 1, "0" * 64, False

    def __init__(self) -> None:
        self.edits = 0

    def to(self, device: torch.device | str) -> None:
        pass

    def inpaint(self, image: Tensor, mask: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        self.edits += len(image)
        return torch.where(mask > 0.5, image.mean(dim=(2, 3), keepdim=True), image)


def as_tensor(rgb: Rgb) -> Tensor:
    return torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("quality", [25, 50, 75, 95])
def test_our_jpeg_is_the_codecs(quality: int) -> None:
    """Against Pillow's, at a size that is no multiple of 16; upsampling of chroma may differ a little."""
    rgb: Rgb = np.asarray(photo((121, 203)))
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=quality, subsampling=2)
    want = as_tensor(np.array(Image.open(file)))
    got = jpeg(as_tensor(rgb), quality)
    assert float((got - want).abs().mean()) * 255 < 1.0
    assert float((got - want).abs().mean()) < float((as_tensor(rgb) - want).abs().mean())


def test_the_gradient_passes_the_codec() -> None:
    image = as_tensor(np.asarray(photo((48, 64)))).requires_grad_(True)
    (gradient,) = torch.autograd.grad(jpeg(image, 75).sum(), image)
    assert torch.isfinite(gradient).all()
    assert float(gradient.abs().mean()) > 0.5


def test_views_start_with_the_plain_one_and_name_what_to_withstand() -> None:
    assert views((96, 128), ()) == [View((96, 128))]
    many = views((96, 128), ("jpeg", "resize"))
    assert many[0] == View((96, 128))
    assert {view.quality for view in many[1:]} == {75, 50, None}
    assert any(view.size < (96, 128) for view in many)
    image = as_tensor(np.asarray(photo((96, 128))))
    for view in many:
        assert view(image).shape[-2:] == view.size


def task() -> Task:
    mask = np.zeros((128, 128), dtype=np.bool_)
    mask[48:80, 48:80] = True
    image = as_tensor(np.asarray(photo((128, 128))))
    return Task(image, [mask], mask, torch.ones(1, 1, 128, 128), Budget(6.4))


def test_a_clean_edit_is_computed_once_and_only_if_wanted() -> None:
    editor = Counting()
    edits = Edits(task(), 0, [editor], np.random.default_rng(0))
    assert editor.edits == 0
    first = edits.take("full", (128, 128))
    assert edits.take("full", (128, 128)) is first
    assert editor.edits == 1
    smaller = edits.take("full", (64, 64))
    assert smaller is not None
    assert smaller.mask.shape[-2:] == (64, 64)
    assert editor.edits == 2


def test_incomplete_triggers_touch_the_region_and_benign_ones_do_not() -> None:
    work = task()
    edits = Edits(work, 0, [Counting()], np.random.default_rng(0))
    region = torch.from_numpy(work.regions[0])
    for kind, touches in [
        ("full", True),
        ("dilated", True),
        ("incomplete", True),
        ("ring", False),
        ("far", False),
    ]:
        for _ in range(12):
            edit = edits.take(kind, (128, 128))
            assert edit is not None
            assert bool((edit.mask[0, 0] > 0)[region].any()) == touches, kind


def test_a_crop_without_room_has_no_far_edit() -> None:
    mask = np.ones((64, 64), dtype=np.bool_)
    work = Task(torch.rand(1, 3, 64, 64), [mask], mask, torch.ones(1, 1, 64, 64), Budget(6.4))
    edits = Edits(work, 0, [Counting()], np.random.default_rng(0))
    assert edits.take("far", (64, 64)) is None
    assert edits.take("ring", (64, 64)) is None


def test_flat_areas_get_less_of_the_budget_and_an_edge_does_not_lend_it() -> None:
    rgb = np.full((64, 128, 3), 128, dtype=np.uint8)
    rgb[:, 64:] = np.random.default_rng(0).integers(0, 256, (64, 64, 3))
    share = perception.share(rgb, 0.4)
    assert share.shape == (64, 128)
    assert share.min() == pytest.approx(0.4)
    assert share[:, 80:].min() > 0.95
    assert share[:, :60].max() < 0.5
    assert (perception.share(rgb, 1.0) == 1).all()
