"""The parts of methods: transforms, clean edits, the budget by contrast masking."""

from __future__ import annotations

import gc
import io
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from backfire import inpaint
from backfire.attack_paths import cropping
from backfire.attack_paths.handed import MOST_CALLS, Handed
from backfire.attack_paths.tensors import to_picture
from backfire.config import Protect
from backfire.errors import Code, ModelError
from backfire.evaluate.metrics import masked_ssim
from backfire.inpaint.base import Editor
from backfire.perturb import bounds, contrast_masking
from backfire.perturb.edit_masks import Edits, relative_error, repainted, triggers
from backfire.perturb.methods.base import EditorInput, Proposal, Task, in_fixed_order
from backfire.perturb.methods.baseline import Baseline
from backfire.perturb.methods.encoder import Encoder
from backfire.perturb.methods.implant import Implant
from backfire.perturb.methods.iterative import MOMENTUM, IterativeMethod, Search, budget_step, neediest
from backfire.perturb.optimiser import Optimiser
from backfire.perturb.paths import Paths
from backfire.perturb.transforms import Transform, chained, jpeg, transforms
from backfire.types import Box, Budget, Mask, Region, Rgb
from benchmarks import battery
from tests.support.pictures import photo


class Counting:
    """An editor that fills with the mean of its input, and counts its edits."""

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
def test_the_jpeg_transform_computes_what_the_codec_does(quality: int) -> None:
    """Compared with Pillow at a size that is no multiple of 16; upsampling of chroma may differ a little."""
    rgb: Rgb = np.asarray(photo((121, 203)))
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=quality, subsampling=2)
    want = as_tensor(np.array(Image.open(file)))
    got = jpeg(as_tensor(rgb), quality)
    assert float((got - want).abs().mean()) * 255 < 1.0
    assert float((got - want).abs().mean()) < float((as_tensor(rgb) - want).abs().mean())


def test_the_gradient_passes_the_jpeg_transform() -> None:
    image = as_tensor(np.asarray(photo((48, 64)))).requires_grad_(True)
    (gradient,) = torch.autograd.grad(jpeg(image, 75).sum(), image)
    assert torch.isfinite(gradient).all()
    assert float(gradient.abs().mean()) > 0.5


def test_the_chain_computes_what_two_sites_do_and_passes_the_gradient() -> None:
    """JPEG 75, Pillow's Lanczos to half the size, JPEG 75; compared with the real codec and filter."""
    rgb: Rgb = np.asarray(photo((121, 203)))
    got = chained(as_tensor(rgb))
    once, _ = battery.chained(rgb, np.zeros(rgb.shape[:2], np.bool_))
    want = as_tensor(once)
    assert got.shape == want.shape == (1, 3, 102, 60)
    assert float((got - want).abs().mean()) * 255 < 1.5
    variable = as_tensor(rgb).requires_grad_(True)
    (gradient,) = torch.autograd.grad(chained(variable).sum(), variable)
    assert torch.isfinite(gradient).all()
    assert float(gradient.abs().mean()) > 0.1


def test_the_first_transform_changes_nothing_and_the_others_are_those_asked_for() -> None:
    assert transforms(()) == transforms(("paths", "resize")) == [Transform()]
    many = transforms(("jpeg", "blur"))
    assert many[0] == Transform()
    assert {transform.quality for transform in many} == {75, 50, 25, None}
    assert any(transform.blur for transform in many)
    assert any(transform.noise for transform in many)


def test_a_transform_does_what_it_says_and_passes_the_gradient() -> None:
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


def test_where_all_is_masked_a_blind_editor_is_asked_for_halves() -> None:
    """Under a full mask it sees nothing, so that no perturbation changes its edit."""
    image, whole = task().image, np.ones((128, 128), np.bool_)
    editor = Counting()
    for editor.blind in (True, False):
        edits = Edits(EditorInput(image, whole, whole), [editor], np.random.default_rng(0))
        drawn = [edits.drawn() for _ in range(40)]
        full = {edit.kind for edit in drawn if edit.mask.all()}
        assert full == (set() if editor.blind else {"full", "dilated", "incomplete"})
        assert {"full", "incomplete"} <= {edit.kind for edit in drawn}


def test_a_thin_stroke_does_not_vanish_where_a_picture_is_worked_smaller() -> None:
    rgb: Rgb = np.asarray(photo((520, 180)).resize((2600, 900)))
    region = Region(Box(300, 450, 2301, 451), "line", 1.0, "sidecar", np.ones((1, 2001), np.bool_))
    (crop,) = cropping.plan([region], 900, 2600, margin=128, work=800)
    paths = Paths(rgb, [crop], (), [("iopaint", "forge-whole")], torch.device("cpu"))
    ((found,),) = paths.of(region, crop, np.random.default_rng(0))
    assert found.mask.sum() == found.mask.any(axis=0).sum() > 600, "Forge itself loses it"
    assert all(mask.any() for mask in triggers(found.mask, np.random.default_rng(0)))


def test_of_thousands_of_contours_few_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    rgb: Rgb = np.zeros((1000, 1000, 3), np.uint8)
    specks = np.zeros((700, 700), np.bool_)
    specks[::50, ::50] = True
    specks[:2, :2] = True
    region = Region(Box(100, 100, 800, 800), "dust", 1.0, "sidecar", specks)
    (crop,) = cropping.plan([region], 1000, 1000, margin=128, work=1000)
    looked, mask = list[Handed](), Handed.__dict__["mask"].func

    def look(call: Handed) -> Mask:
        looked.append(call)
        found: Mask = mask(call)
        return found

    monkeypatch.setattr(Handed, "mask", property(look))
    paths = Paths(rgb, [crop], (), [("iopaint",)], torch.device("cpu"))
    (found,) = paths.of(region, crop, np.random.default_rng(0))
    assert len(found) == MOST_CALLS
    assert all(one.mask.any() for one in found)
    assert len({id(call) for call in looked}) < 10, "of nearly two hundred"


def test_of_a_region_with_several_contours_each_call_that_the_verdict_follows_is_looked_at() -> None:
    """The verdict takes the call that breaks least, of the largest. One contour has one input."""
    rgb: Rgb = np.asarray(photo((450, 300)).resize((1200, 900)))
    mask = np.zeros((500, 700), np.bool_)
    mask[:80, :90] = mask[400:, 620:] = mask[200, 400:440] = mask[250, :2] = mask[400, 300] = True
    for shape, largest, smaller in ((mask, 8000, [7200, 40, 2]), (mask[:80, :90], 7200, [])):
        box = Box(250, 200, 250 + shape.shape[1], 200 + shape.shape[0])
        region = Region(box, "x", 1.0, "sidecar", shape)
        (crop,) = cropping.plan([region], 900, 1200, margin=128, work=1000)
        paths = Paths(rgb, [crop], (), [("iopaint", "forge-whole")], torch.device("cpu"))
        ((one, whole, *others),) = paths.of(region, crop, np.random.default_rng(0))
        assert (whole.image.shape[-2:], whole.first) == ((512, 512), False), "Forge makes one call"
        assert (one.mask.sum(), [given.mask.sum() for given in others]) == (largest, smaller)
        assert all(given.first for given in (one, *others))


def test_no_path_keeps_a_plane_of_the_whole_picture_and_what_all_regions_share_is_made_once() -> None:
    """Eight regions of a photograph of 24 million pixels would otherwise take half a gigabyte."""
    rgb: Rgb = np.zeros((3000, 4000, 3), np.uint8)
    regions = [Region(Box(at, 400, at + 60, 460), "x", 1.0, "x") for at in (300, 900, 1500)]
    crops = cropping.plan(regions, 3000, 4000, margin=128, work=800)
    paths = Paths(rgb, crops, (), [("iopaint", "forge-whole", "forge-masked")], torch.device("cpu"))
    paths.of(regions[0], crops[0], np.random.default_rng(0))  # and what is made once
    tracemalloc.start()
    found = [paths.of(crop.regions[0], crop, np.random.default_rng(0)) for crop in crops]
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == 3
    assert kept < 3000 * 4000, "of nine inputs less than one such plane"
    wholes = {id(given.image) for ((_, given, _),) in found}
    assert len(wholes) == 1


def test_benign_edits_that_have_changed_are_drawn_more_often() -> None:
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


def test_the_relative_error_is_near_one_minus_ssim() -> None:
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


def test_masks_that_are_painted_otherwise_are_drawn_in_every_tool_on_request() -> None:
    work, surrogate = task(), Counting()
    here = crop(work)
    for asked, kinds in (((), {"full"}), (("masks",), {"full", "dilated", "incomplete"})):
        elsewhere = replace(here, first=False)
        given = replace(work, paths=[[[here], [elsewhere]]], robust_to=asked)
        search = Search(Implant(), given, [surrogate], "away", np.random.default_rng(0))
        *_, last = (path for group in search._regions[0] for path in group)
        drawn = [last.drawn() for _ in range(40)]
        assert {edit.kind for edit in drawn if edit.breaks} == kinds
    shapes = {edit.mask.numpy().tobytes() for edit in drawn if edit.kind == "incomplete"}
    assert len(shapes) > 3, "not one shape alone"


def test_shapes_painted_otherwise_begin_with_the_usual_ones_and_touch_the_region() -> None:
    mask = task().regions[0]
    usual = triggers(mask, np.random.default_rng(3))
    more = repainted(mask, np.random.default_rng(3))
    assert all(np.array_equal(one, other) for one, other in zip(usual, more, strict=False))
    assert len(more) > 2 * len(usual)
    assert all((plane & mask).any() for plane in more)


def test_a_crop_without_room_has_no_far_edit() -> None:
    mask = np.ones((64, 64), dtype=np.bool_)
    work = Task(torch.rand(1, 3, 64, 64), [mask], mask, torch.ones(1, 1, 64, 64), Budget(6.4))
    edits = Edits(crop(work), [Counting()], np.random.default_rng(0))
    assert edits.take("far") is None
    assert edits.take("ring") is None
    assert all(edits.drawn().breaks for _ in range(6))


def test_what_no_iteration_renews_fades_but_not_what_another_crop_made() -> None:
    mask = np.ones((8, 8), dtype=np.bool_)
    there = torch.full((1, 3, 8, 8), 0.01)
    work = Task(torch.full((1, 3, 8, 8), 0.5), [mask], mask, torch.ones(1, 1, 8, 8), Budget(6.4), decay=0.1)
    perturbation = torch.full((1, 3, 8, 8), 0.02)
    assert torch.allclose(work.decayed(perturbation), torch.full((1, 3, 8, 8), 0.018))
    assert torch.allclose(replace(work, there=there).decayed(perturbation), torch.full((1, 3, 8, 8), 0.019))
    assert torch.equal(replace(work, there=there).decayed(there), there)
    assert torch.equal(replace(work, decay=0.0).decayed(perturbation), perturbation)


def test_the_baseline_adds_to_what_another_crop_made() -> None:
    mask = np.zeros((32, 32), dtype=np.bool_)
    mask[8:24, 8:24] = True
    work = Task(torch.full((1, 3, 32, 32), 0.5), [mask], mask, torch.ones(1, 1, 32, 32), Budget(6.4))
    there = torch.zeros(1, 3, 32, 32)
    there[..., 16:] = work.budget.unit * torch.tensor([1.0, -1.0]).repeat(8)

    def made(work: Task) -> Tensor:
        return (
            Baseline()
            .run(
                work,
                [Counting()],
                iterations=2,
                target="away",
                rng=np.random.default_rng(0),
                progress=lambda done, total: None,
            )
            .perturbation
        )

    found = made(replace(work, start=there, there=there))
    assert torch.allclose(found[..., 16:], there[..., 16:], atol=1e-6)
    assert torch.equal(found[..., :16], made(work)[..., :16])
    assert found[..., :16].any()


def test_coarse_colour_fades_and_fine_grain_and_brightness_stay() -> None:
    mask = np.ones((48, 48), dtype=np.bool_)
    work = Task(torch.full((1, 3, 48, 48), 0.5), [mask], mask, torch.ones(1, 1, 48, 48), Budget(6.4))
    work = replace(work, coarse_colour_decay=0.6)
    red = bounds.to_rgb(torch.tensor([0.0, 0.0, 0.02])[None, :, None, None].expand(1, 3, 48, 48))
    checks = torch.tensor([1.0, -1.0]).repeat(24) * torch.tensor([1.0, -1.0]).repeat(24)[:, None]
    inside = (..., slice(8, 40), slice(8, 40))
    for change, left in ((red, 0.4), (red * checks, 1.0), (torch.full_like(red, 0.02), 1.0)):
        assert torch.allclose(work.decayed(change)[inside], left * change[inside], rtol=0.02, atol=1e-6)
    assert torch.equal(replace(work, there=red).decayed(red), red)


@pytest.mark.parametrize(("method", "decay"), [(Implant, 0.05), (Encoder, 0.0)])
def test_any_method_takes_coarse_colour_back_and_implant_alone_all_of_it(
    monkeypatch: pytest.MonkeyPatch, method: type[IterativeMethod], decay: float
) -> None:
    asked: list[tuple[float, float]] = []

    def decayed(self: Task, perturbation: torch.Tensor) -> torch.Tensor:
        asked.append((self.decay, self.coarse_colour_decay))
        return perturbation

    monkeypatch.setattr(Task, "decayed", decayed)
    work = replace(task(), decay=0.05, coarse_colour_decay=0.6)
    method().run(
        work,
        [inpaint.get("flux2-mini")],
        iterations=1,
        target="away",
        rng=np.random.default_rng(0),
        progress=lambda done, total: None,
    )
    assert asked == [(decay, 0.6)]


def test_texture_hides_and_flat_areas_do_not_also_beside_it() -> None:
    rgb = np.full((64, 128, 3), 128, dtype=np.uint8)
    rgb[:, 64:] = np.random.default_rng(0).integers(0, 256, (64, 64, 3))
    rgb[20:44, 30:33] = 30  # a thin dark line on the flat side is no texture
    hidden = contrast_masking.texture(rgb)
    assert hidden.shape == (64, 128)
    assert hidden[:, 80:].min() > 0.95
    assert hidden[:, :60].max() < 0.4
    assert hidden[:, :20].max() < 0.01


def tensor_bytes() -> int:
    """The bytes of all tensors that are in use and have memory: fake ones of other tests have none."""
    gc.collect()
    # By type, since isinstance would wake proxies of libraries, some of which warn.
    tensors = [one for one in gc.get_objects() if type(one) in (Tensor, torch.nn.Parameter)]
    storages = [one.untyped_storage() for one in tensors if one.device.type == "cpu"]
    return sum({one.data_ptr(): one.nbytes() for one in storages}.values())


def test_of_clean_edits_only_the_pixels_that_count_are_kept_in_memory() -> None:
    """The clean edits of two dozen lines of text in one crop would otherwise take gigabytes."""
    mask = np.zeros((120, 160), dtype=np.bool_)
    mask[40:60, 70:100] = True
    image = torch.rand(1, 3, 120, 160, generator=torch.Generator().manual_seed(0))
    editor = inpaint.get("flux2-mini")
    want = editor.inpaint(image, torch.from_numpy(mask)[None, None].float())[0, :, mask].detach()
    found = Edits(EditorInput(image, mask, mask), [editor], np.random.default_rng(0))
    before = tensor_bytes()
    edit = found.take("full")
    assert edit is not None
    clean = edit.clean[0]
    del edit
    assert tensor_bytes() - before - clean.untyped_storage().nbytes() == mask.sum() * 3 * 4
    assert clean.shape == image.shape
    assert torch.allclose(clean[0, :, mask], want, atol=0.05), "up to the precision of autocast"
    assert (clean[0, :, ~mask] == 0).all()
    again = found.take("full")
    assert again is not None
    assert torch.equal(again.clean[0], clean)


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Torch in the state in which `protect.pick_device` leaves it for a GPU."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
def test_operators_are_deterministic_if_they_can_be_and_a_retry_without_that_draws_the_same() -> None:
    missing = "padding does not have a deterministic implementation"
    wrapped = ModelError(Code.MODEL, f"editor mine: failed ({missing})", retryable=False)

    def asked(able: bool, refusal: Exception = wrapped) -> list[bool]:
        """For each try at three gradients, whether torch had to refuse indeterministic operators."""
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


@pytest.mark.usefixtures("deterministic")
def test_work_that_fails_for_another_reason_is_not_repeated() -> None:
    tries = []

    def work() -> None:
        tries.append(1)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        in_fixed_order(Counting(), np.random.default_rng(1), work)
    assert tries == [1]


@pytest.mark.parametrize(("grids", "kept"), [(1, 0.1), (3, 0.45)])
def test_coarse_grids_survive_where_a_tool_shrinks_the_picture(grids: int, kept: float) -> None:
    """Of a step along random gradients; and it is no larger than the step of a single grid."""
    image = torch.full((1, 3, 64, 64), 0.5)
    whole = np.ones((64, 64), np.bool_)
    work = Task(image, [whole], whole, torch.ones(1, 1, 64, 64), Budget(6), grids=grids)
    gradient = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    step = budget_step(work, 1)(gradient, 0)
    assert float(step.abs().max()) <= 0.5 * work.budget.unit + 1e-6
    small = torch.nn.functional.avg_pool2d(step, 4)
    share = float(small.square().mean() / step.square().mean())
    assert share > kept if grids > 1 else share < kept


def test_half_of_the_looks_are_at_the_first_path_and_most_others_where_edits_break_least() -> None:
    image, mask = torch.rand(1, 3, 16, 16), np.ones((16, 16), np.bool_)
    rng = np.random.default_rng(0)
    first, broken, whole = (
        Edits(EditorInput(image, mask, mask, first=first), [Counting()], rng)
        for first in (True, False, False)
    )
    edit = broken.take("full")
    assert edit is not None
    broken.note_error(edit, 0, 0.9)
    drawn = [neediest([[first, broken], [whole]], rng) for _ in range(400)]
    assert 170 <= sum(one is first for one in drawn) <= 230
    assert 10 <= sum(one is broken for one in drawn) <= 40, "a tenth of the others"
    assert neediest([[first]], rng) is first


class Still(IterativeMethod):
    """Looks at the edit and never takes a step."""

    stepper = staticmethod(lambda task, iterations: lambda gradient, iteration: torch.zeros_like(gradient))

    def respond(self, surrogate: Editor, image: Tensor, mask: Tensor, draw: int) -> Tensor:
        return surrogate.inpaint(image, mask)


def test_a_run_begins_with_the_stored_start_that_breaks_most() -> None:
    """Of three tiles the editor answers to the last one alone; they are repeated over the crop."""
    image, whole = torch.full((1, 3, 40, 24), 0.5), np.ones((40, 24), np.bool_)
    stored = torch.stack([torch.full((3, 16, 16), share) for share in (0.1, -0.2, 1.0)])
    work = Task(image, [whole], whole, torch.ones(1, 1, 40, 24), Budget(6), starts=stored)
    made = Still().run(
        work,
        [Counting()],
        iterations=1,
        target="away",
        rng=np.random.default_rng(0),
        progress=lambda *_: None,
    )
    assert torch.allclose(made.perturbation, torch.full_like(image, 6 / 255))


def test_the_gradient_of_each_path_is_remembered_while_others_are_looked_at() -> None:
    """Two paths see one half of the crop each: a look at one of them alone says nothing of the other half."""
    image, whole = torch.full((1, 3, 16, 16), 0.5), np.ones((16, 16), np.bool_)

    def half(left: bool) -> EditorInput:
        kept = torch.zeros(1, 1, 16, 16)
        kept[..., :8] = float(left)
        kept[..., 8:] = float(not left)
        return EditorInput(image, whole, whole, lambda perturbation: perturbation * kept)

    work = Task(
        image, [whole], whole, torch.ones(1, 1, 16, 16), Budget(6), paths=[[[half(True), half(False)]]]
    )
    search = Search(Still(), replace(work, by_need=True), [Counting()], "away", np.random.default_rng(0))
    start = torch.rand(image.shape, generator=torch.Generator().manual_seed(0)) / 50
    for gradient in [search.gradient(start) for _ in range(12)][6:]:
        assert float(gradient[..., :8].abs().min()) > 0
        assert float(gradient[..., 8:].abs().min()) > 0


def test_the_crop_is_looked_at_as_the_tools_hand_it_over() -> None:
    """Near the border IOPaint moves its crop inwards: what is optimised is that crop, not ours."""
    rgb: Rgb = np.asarray(photo((450, 300)).resize((900, 700)))
    inputs = {}
    for name, box in (("inside", Box(400, 300, 460, 360)), ("border", Box(20, 300, 80, 360))):
        region = Region(box, "x", 1.0, "x")
        (crop,) = cropping.plan([region], 700, 900, margin=128, work=800)
        paths = Paths(rgb, [crop], (), [("iopaint",)], torch.device("cpu"))
        (((found,),)) = paths.of(region, crop, np.random.default_rng(0))
        inputs[name] = found, crop
    found, crop = inputs["inside"]
    assert found.place is None
    assert found.image.shape[-2:] == crop.size == (316, 316)
    found, crop = inputs["border"]
    assert crop.size == (316, 208)
    assert found.image.shape[-2:] == (320, 320), "316 x 316 px, up to a multiple of 8"
    assert found.mask.sum() == 60 * 60


def test_a_tool_that_scales_to_the_mask_is_asked_for_the_edit_of_the_region_alone() -> None:
    """Other edits would reach its model at other scales. A surrogate's first tool is asked for all."""
    rgb: Rgb = np.asarray(photo((450, 300)))
    region = Region(Box(200, 100, 260, 160), "x", 1.0, "x")
    (crop,) = cropping.plan([region], 300, 450, margin=128, work=800)
    tools = "iopaint", "comfyui-stitch-512", "forge-whole", "forge-masked"
    paths = Paths(rgb, [crop], (), [tools], torch.device("cpu"))
    found = paths.of(region, crop, np.random.default_rng(0))
    work = replace(task(), paths=[found], by_need=True)
    search = Search(Implant(), work, [Counting()], "away", np.random.default_rng(0))
    kinds = {
        name: {edits.drawn().kind for _ in range(40)} - {"far"}
        for name, edits in zip(tools, search._regions[0][0], strict=True)
    }
    assert kinds["iopaint"] == {"full", "dilated", "incomplete", "ring"}
    assert kinds["comfyui-stitch-512"] == kinds["forge-masked"] == {"full"}
    assert kinds["forge-whole"] == {"full", "ring"}


def test_a_surrogate_is_looked_at_in_its_own_tools_alone_and_in_its_first_one_most() -> None:
    """A tool that is the first of one surrogate and a further one of another is a path of each."""
    rgb: Rgb = np.asarray(photo((450, 300)))
    region = Region(Box(200, 100, 260, 160), "x", 1.0, "x")
    (crop,) = cropping.plan([region], 300, 450, margin=128, work=800)
    through = [("iopaint", "forge-masked"), ("iopaint",), ("forge-masked", "iopaint")]
    paths = Paths(rgb, [crop], (), through, torch.device("cpu"))
    found = paths.of(region, crop, np.random.default_rng(0))
    masked, whole = (512, 512), (304, 456)
    looks = {(given.mask.shape, given.first, given.alone): given.surrogates for given in found[0]}
    assert looks == {
        (whole, True, False): (0, 1),
        (masked, False, True): (0,),
        (masked, True, False): (2,),
        (whole, False, False): (2,),
    }
    editors = [Counting() for _ in through]
    work = replace(task(), paths=[found], by_need=True)
    search = Search(Implant(), work, editors, "away", np.random.default_rng(0))
    for path, surrogates in zip(search._regions[0][0], looks.values(), strict=True):
        before = [one.edits for one in editors]
        assert path.take("full") is not None
        assert [one.edits > seen for one, seen in zip(editors, before, strict=True)] == [
            index in (surrogates or ()) for index in range(3)
        ]


@pytest.mark.parametrize("box", [Box(400, 300, 460, 360), Box(20, 300, 80, 360)])
def test_with_first_alone_each_surrogate_is_looked_at_in_its_first_tool(box: Box) -> None:
    """The crop stands for IOPaint's, also near the border; another tool hands over what it does."""
    rgb: Rgb = np.asarray(photo((450, 300)).resize((900, 700)))
    region = Region(box, "x", 1.0, "x")
    (crop,) = cropping.plan([region], 700, 900, margin=128, work=800)
    iopaint, stitch = ("iopaint", "forge-whole"), ("comfyui-stitch-1024", "iopaint")
    tasks = []

    class Noting(Implant):
        """Notes what it is given, and finds nothing."""

        def run(self, task: Task, surrogates: Sequence[Editor], **_: object) -> Proposal:
            tasks.append(task)
            still = torch.zeros_like(task.image)
            return Proposal(still, tuple(still[0, 0] for _ in surrogates), 1)

    for through in ([iopaint], [stitch], [stitch, iopaint], ()):
        Optimiser(
            Protect(strength="single-path"),
            [Counting() for _ in through],
            torch.device("cpu"),
            Noting(),
            through,
        ).optimise(rgb, [crop], grey=False, rng=np.random.default_rng(0), progress=lambda *_: None)
    assert not any(work.by_need for work in tasks)
    looks = [
        [[(one.image.shape[-2:], one.surrogates) for one in group] for group in work.inputs(0)]
        for work in tasks
    ]
    assert looks == [
        [[(crop.size, (0,))]],
        [[((1024, 1024), (0,))]],
        [[((1024, 1024), (0,)), (crop.size, (1,))]],
        [[(crop.size, None)]],
    ]
    assert all(one.first and not one.alone for work in tasks for one in work.inputs(0)[0])
    assert torch.equal(tasks[0].inputs(0)[0][0].image, tasks[0].image)


def test_the_saliency_of_a_surrogate_is_the_mean_over_the_iterations_that_looked_at_it() -> None:
    image, whole = torch.rand((1, 3, 16, 16)), np.ones((16, 16), np.bool_)
    inputs = [
        EditorInput(image, whole, whole, lambda perturbation: perturbation, first=first, surrogates=numbers)
        for first, numbers in ((True, (0, 1)), (False, (0,)))
    ]
    work = Task(image, [whole], whole, torch.ones(1, 1, 16, 16), Budget(6), paths=[[inputs]], by_need=True)
    made = Still().run(
        work,
        [Counting(), Counting()],
        iterations=30,
        target="away",
        rng=np.random.default_rng(0),
        progress=lambda *_: None,
    )
    assert made.gradients[0] == pytest.approx(made.gradients[1])


@pytest.mark.parametrize(("by_need", "ratio"), [(True, 2), (False, 1)])
def test_edits_to_break_weigh_more_on_the_first_path_where_paths_are_drawn_by_need(
    by_need: bool, ratio: float
) -> None:
    """The gradient of every look has the same magnitude; the region is all there is to edit."""
    image, whole = torch.rand((1, 3, 16, 16)), np.ones((16, 16), np.bool_)
    first, other = (
        EditorInput(image, whole, whole, lambda perturbation: perturbation, first=first)
        for first in (True, False)
    )
    work = Task(image, [whole], whole, torch.ones(1, 1, 16, 16), Budget(6), paths=[[[first, other]]])
    search = Search(Still(), replace(work, by_need=by_need), [Counting()], "away", np.random.default_rng(0))
    start = torch.rand(image.shape) / 50
    for _ in range(40):
        search.gradient(start)
    sizes = {slot: float(plane.abs().mean()) for slot, plane in search._averages.items()}
    limit = 1 / (1 - MOMENTUM)
    assert sizes[0, True] == pytest.approx(ratio * limit, rel=0.1)
    assert sizes[1, True] == pytest.approx(limit, rel=0.1)


@pytest.mark.parametrize(("error", "weight"), [(0.01, 1), (0.3, 3)])
def test_an_edit_to_keep_weighs_more_on_the_first_path_while_it_is_off(error: float, weight: float) -> None:
    work = task()
    given = replace(work, paths=[[[crop(work), replace(crop(work), first=False)]]], by_need=True)
    search = Search(Still(), given, [Counting()], "away", np.random.default_rng(0))
    first, other = search._regions[0][0]
    ring = first.take("ring")
    assert ring is not None
    for path in (first, other):
        path.note_error(ring, 0, error)
    assert (search._weight(first, ring), search._weight(other, ring)) == (weight, 1)


@pytest.mark.parametrize("apart", [False, True])
def test_a_step_in_the_active_part_is_the_step_in_the_whole_crop(apart: bool) -> None:
    """Also where squares of the coarsest grid lie across the border of what may change."""
    work = task()
    area = torch.zeros(1, 1, 128, 128)
    area[..., 37:91, 51:125] = torch.rand((54, 74)) + 0.1
    work = replace(work, area=area, grids=3, apart=0.5 * area.expand(1, 3, 128, 128) if apart else None)
    work = replace(work, decay=0.1, coarse_colour_decay=0.6)
    work = replace(work, there=work.project(torch.randn(work.image.shape)))
    active = work.active()
    assert active == Box(48, 36, 128, 92)
    here, part = (..., *active.slices), work.part(active)
    gradient, before = torch.randn(work.image.shape), work.project(torch.randn(work.image.shape))
    want = work.project(work.decayed(before) - budget_step(work, 10)(gradient, 3))
    got = torch.zeros_like(want)
    got[here] = part.project(part.decayed(before[here]) - budget_step(part, 10)(gradient[here], 3))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    assert (want[here] != before[here]).any()


class Overflowing(Counting):
    """An editor whose edits are not finite at times."""

    name = "overflowing"

    def __init__(self, *fails: int) -> None:
        super().__init__()
        self._fails = fails

    def inpaint(self, image: Tensor, mask: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        edit = super().inpaint(image, mask)
        return edit * torch.nan if self.edits in self._fails else edit


def test_a_gradient_that_is_not_finite_ruins_no_other_and_several_in_a_row_name_the_editor() -> None:
    drawn = torch.Generator().manual_seed(3)  # which paths are drawn depends on the picture
    image, whole = torch.rand((1, 3, 16, 16), generator=drawn), np.ones((16, 16), np.bool_)
    first, other = (
        EditorInput(image, whole, whole, lambda perturbation: perturbation, first=first)
        for first in (True, False)
    )
    work = Task(
        image, [whole], whole, torch.ones(1, 1, 16, 16), Budget(6), paths=[[[first, other]]], by_need=True
    )

    def search(*fails: int) -> Search:
        return Search(Still(), work, [Overflowing(*fails), Counting()], "away", np.random.default_rng(0))

    start = torch.rand(image.shape, generator=drawn) / 50
    some = search(3, 6, 7, 8)
    for _ in range(30):
        assert some.gradient(start).isfinite().all()
    assert some.looks[0] < some.looks[1] == 30
    assert all(plane.isfinite().all() and plane.any() for plane in some.saliency)
    assert some.noted > 0
    assert np.isfinite(search(*range(100)).broken(start))
    always = search(*range(3, 100))
    with pytest.raises(ModelError, match="editor overflowing: its gradient was not finite in 5 ") as caught:
        any(always.gradient(start).isnan().any() for _ in range(30))
    assert caught.value.retryable, "what is not holds up all other pictures"


def test_with_the_chain_a_region_is_also_looked_at_after_two_sites() -> None:
    """The input is half as large; without a perturbation it is the clean picture after the same sites."""
    rgb: Rgb = np.asarray(photo((450, 300)).resize((900, 700)))
    region = Region(Box(400, 300, 460, 360), "x", 1.0, "x")
    (crop,) = cropping.plan([region], 700, 900, margin=128, work=800)
    paths = Paths(rgb, [crop], ("chain",), [("iopaint",)], torch.device("cpu"))
    (_, (found,)) = paths.of(region, crop, np.random.default_rng(0))
    still = torch.zeros((1, 3, *crop.size))
    box = region.box.grown(256, 900, 700)
    assert found.image.shape[-2:] == (box.height // 2, box.width // 2)
    assert found.mask.sum() == 30 * 30
    assert torch.equal(found.perturbed(still), found.image)
    clean = as_tensor(battery.chained(rgb[box.slices], np.zeros((box.height, box.width), np.bool_))[0])
    assert float((found.image - clean).abs().mean()) * 255 < 1.5
    moved = still.clone()
    moved[..., 128:188, 128:188] = 12 / 255
    change = (found.perturbed(moved) - found.image).mean(dim=1)[0] * 255
    inside = torch.from_numpy(found.mask)
    assert float(change[inside].mean()) == pytest.approx(12, abs=3)
    assert float(change[~inside].abs().mean()) < 1
