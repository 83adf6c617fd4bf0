"""The pieces methods are made of: transforms, clean edits, the budget by contrast masking."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from backfire import inpaint
from backfire.attack_paths.tensors import to_picture
from backfire.errors import Code, ModelError
from backfire.evaluate.metrics import masked_ssim
from backfire.perturb import contrast_masking
from backfire.perturb.edit_masks import Edits, relative_error
from backfire.perturb.methods.base import EditorInput, Task, in_fixed_order
from backfire.perturb.transforms import Transform, jpeg, transforms
from backfire.types import Budget, Rgb
from tests.support.pictures import photo


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


def test_views_start_with_the_plain_one_and_name_what_to_be_robust_to() -> None:
    assert transforms(()) == transforms(("paths", "resize")) == [Transform()]
    many = transforms(("jpeg", "blur"))
    assert many[0] == Transform()
    assert {transform.quality for transform in many} == {75, 50, 25, None}
    assert any(transform.blur for transform in many)
    assert any(transform.noise for transform in many)


def test_a_view_changes_what_it_says_and_lets_the_gradient_through() -> None:
    image = as_tensor(np.asarray(photo((96, 128))))
    assert torch.equal(Transform()(image, np.random.default_rng(0)), image)
    soft = Transform(blur=1.0)(image, np.random.default_rng(0))
    assert soft.shape == image.shape
    assert float(soft.diff(dim=3).abs().mean()) < 0.9 * float(image.diff(dim=3).abs().mean())
    assert float(soft.mean()) == pytest.approx(float(image.mean()), abs=1e-3)
    middle = torch.full((1, 3, 64, 64), 0.5)
    noisy = Transform(noise=2.0)(middle, np.random.default_rng(0))
    assert float((noisy - middle).std()) * 255 == pytest.approx(2.0, rel=0.05)
    assert torch.equal(noisy, Transform(noise=2.0)(middle, np.random.default_rng(0)))
    for transform in (Transform(blur=0.7), Transform(noise=2.0)):
        variable = image.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(transform(variable, np.random.default_rng(0)).sum(), variable)
        assert float(gradient.mean()) == pytest.approx(1, abs=0.02)


def task() -> Task:
    mask = np.zeros((128, 128), dtype=np.bool_)
    mask[48:80, 48:80] = True
    image = as_tensor(np.asarray(photo((128, 128))))
    return Task(image, [mask], mask, torch.ones(1, 1, 128, 128), Budget(6.4))


def crop(work: Task) -> EditorInput:
    return work.inputs(0)[0][0]


def test_a_clean_edit_is_computed_once_and_only_if_wanted() -> None:
    editor = Counting()
    edits = Edits(crop(task()), [editor], np.random.default_rng(0))
    assert editor.edits == 0
    assert edits.take("full") is not None
    assert edits.take("full") is not None
    assert editor.edits == 1
    breaks = [edits.drawn().breaks for _ in range(600)]
    assert breaks == [True, False, True] * 200, "the region, one to keep, the region painted otherwise"
    # full, dilated and ring, twelve incomplete triggers, eight far squares
    assert editor.edits == 3 + 12 + 8


def test_edits_to_keep_that_are_off_are_looked_at_more_often() -> None:
    edits = Edits(crop(task()), [Counting(), Counting()], np.random.default_rng(0))

    def kinds(count: int) -> list[str]:
        return [edits.drawn().kind for _ in range(count)]

    ring = edits.take("ring")
    assert ring is not None
    assert kinds(6) == ["full", "far", "dilated", "full", "ring", "incomplete"]
    edits.note_error(ring, 0, 0.01)
    edits.note_error(ring, 1, 0.3)  # by one of the two editors
    assert kinds(8) == ["ring", "full", "far", "dilated", "ring", "full", "ring", "incomplete"]
    edits.note_error(ring, 1, 0.01)
    assert kinds(4) == ["full", "far", "dilated", "full"]


def test_what_an_edit_is_off_by_is_near_one_less_its_ssim() -> None:
    work = task()
    generator = torch.Generator().manual_seed(0)
    mask = torch.from_numpy(work.protected)[None, None].float()
    assert relative_error(work.image, work.image, mask) == 0
    for strength in (0.01, 0.02, 0.03):
        noise = torch.nn.functional.interpolate(
            torch.randn(1, 3, 32, 32, generator=generator), scale_factor=4
        )
        got = (work.image + strength * noise).clamp(0, 1)
        share = float(relative_error(got, work.image, mask))
        ssim = masked_ssim(to_picture(work.image[0]), to_picture(got[0]), work.protected)
        assert 0.5 < share / (1 - ssim) < 2, (strength, share, ssim)


def test_fewer_shapes_cost_fewer_clean_edits() -> None:
    editor = Counting()
    edits = Edits(crop(task()), [editor], np.random.default_rng(0), incomplete=2, far=1)
    for _ in range(150):
        edits.drawn()
    assert editor.edits == 3 + 2 + 1


def test_incomplete_triggers_touch_the_region_and_benign_ones_do_not() -> None:
    work = task()
    edits = Edits(crop(work), [Counting()], np.random.default_rng(0))
    region = torch.from_numpy(work.regions[0])
    for kind, touches in [
        ("full", True),
        ("dilated", True),
        ("incomplete", True),
        ("ring", False),
        ("far", False),
    ]:
        for _ in range(12):
            edit = edits.take(kind)
            assert edit is not None
            assert bool((edit.mask[0, 0] > 0)[region].any()) == touches, kind


def test_a_crop_without_room_has_no_far_edit() -> None:
    mask = np.ones((64, 64), dtype=np.bool_)
    work = Task(torch.rand(1, 3, 64, 64), [mask], mask, torch.ones(1, 1, 64, 64), Budget(6.4))
    edits = Edits(crop(work), [Counting()], np.random.default_rng(0))
    assert edits.take("far") is None
    assert edits.take("ring") is None
    assert all(edits.drawn().breaks for _ in range(6))


def test_flat_areas_get_less_of_the_budget_and_an_edge_does_not_lend_it() -> None:
    rgb = np.full((64, 128, 3), 128, dtype=np.uint8)
    rgb[:, 64:] = np.random.default_rng(0).integers(0, 256, (64, 64, 3))
    share = contrast_masking.budget_share(rgb, 0.4)
    assert share.shape == (64, 128)
    assert share.min() == pytest.approx(0.4)
    assert share[:, 80:].min() > 0.95
    assert share[:, :60].max() < 0.5
    assert (contrast_masking.budget_share(rgb, 1.0) == 1).all()


def test_clean_edits_are_held_only_where_they_are_looked_at() -> None:
    """Two dozen lines of text in one crop would otherwise hold gigabytes."""
    mask = np.zeros((120, 160), dtype=np.bool_)
    mask[40:60, 70:100] = True
    image = torch.rand(1, 3, 120, 160, generator=torch.Generator().manual_seed(0))
    editor = inpaint.get("latent-mini")
    found = Edits(EditorInput(image, mask, mask), [editor], np.random.default_rng(0))
    edit = found.take("full")
    assert edit is not None
    want = editor.inpaint(image, edit.mask)[0, :, mask]
    assert edit.clean[0].shape == image.shape
    assert torch.allclose(edit.clean[0][0, :, mask], want, atol=0.05), "but for the precision of autocast"
    assert (edit.clean[0][0, :, ~mask] == 0).all()
    again = found.take("full")
    assert again is not None
    assert torch.equal(again.clean[0], edit.clean[0])
    held = sum(part.part.untyped_storage().nbytes() for parts in found._known.values() for part in parts)
    assert held == mask.sum() * 3 * 4


@pytest.fixture
def asked_for_order() -> Iterator[None]:
    """As `protect.pick_device` leaves torch for a GPU."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("asked_for_order")
def test_sums_have_their_order_where_operators_can_and_draws_are_the_same_where_they_cannot() -> None:
    missing = "padding does not have a deterministic implementation"
    wrapped = ModelError(Code.MODEL, f"editor mine: failed ({missing})", retryable=False)

    def asked(able: bool, refusal: Exception = wrapped) -> list[bool]:
        """Whether order was asked for strictly, try by try, of three gradients."""
        strict, editor = [], Counting()
        rng, alike = np.random.default_rng(1), np.random.default_rng(1)

        def work() -> float:
            strict.append(not torch.is_deterministic_algorithms_warn_only_enabled())
            drawn = rng.random()
            if strict[-1] and not able:
                raise refusal
            return drawn

        for _ in range(3):
            assert in_fixed_order(editor, rng, work) == alike.random()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        return strict

    assert asked(able=True) == [True] * 3
    assert asked(able=False) == asked(False, RuntimeError(missing)) == [True, False, False, False]


@pytest.mark.usefixtures("asked_for_order")
def test_other_errors_are_not_tried_again() -> None:
    tries = []

    def work() -> None:
        tries.append(1)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        in_fixed_order(Counting(), np.random.default_rng(1), work)
    assert tries == [1]
