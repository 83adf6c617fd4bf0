"""Trigger edits replayed on other attack paths: with other margins, and in the picture scaled down."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from backfire.attack_paths import cropping, variants
from backfire.attack_paths.cropping import Crop
from backfire.config import Protect, Verify
from backfire.evaluate.judge import EditResult, judge
from backfire.evaluate.replay import Asked, Editors, Replayed, holds, replay
from backfire.perturb.optimiser import Optimiser
from backfire.types import Box, Budget, EditPath, MaskKind, Region, Rgb, Verdict
from tests.support.pictures import photo
from tests.unit.evaluate.test_judge import edits

CPU = torch.device("cpu")


class Averaging:
    """Fills with the mean of what it sees, and counts the pixels that it saw."""

    name, multiple, weights_sha256, blind = "averaging", 1, "0" * 64, False

    def __init__(self) -> None:
        self.pixels = 0
        self.sizes: list[tuple[int, int]] = []

    def to(self, device: torch.device | str) -> None:
        pass

    def inpaint(self, image: Tensor, mask: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        self.pixels += image[:, 0].numel()
        self.sizes.append((image.shape[2], image.shape[3]))
        return torch.where(mask > 0.5, image.mean(dim=(2, 3), keepdim=True), image)


def picture(width: int, height: int) -> Rgb:
    """A real photograph, repeated where it is too small."""
    tile = np.asarray(photo((400, 300)))
    rgb: Rgb = np.tile(tile, (height // 300 + 1, width // 400 + 1, 1))[:height, :width].copy()
    return rgb


def planned(width: int, height: int, box: Box, work: int = 768) -> list[Crop]:
    region = Region(box, "face", 1.0, "faces")
    return cropping.plan([region], height, width, margin=128, work=work)


def verified(original: Rgb, published: Rgb, crops: list[Crop], editor: Averaging, seed: int = 0) -> Replayed:
    rng = np.random.default_rng(seed)
    return replay(original, published, crops, Editors(CPU, [editor]), target="away", rng=rng)


def test_other_paths_are_drawn_within_their_margins() -> None:
    (crop,) = planned(1500, 1000, Box(600, 400, 760, 560))
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(40):
        found = variants.for_replay(crop.regions[0], crop, 1000, 1500, rng)
        box = found[EditPath.SHIFTED].box
        margins = (600 - box.left, 400 - box.top, box.right - 760, box.bottom - 560)
        assert all(64 <= margin <= 200 for margin in margins)
        seen.add(margins)
        assert found[EditPath.SHIFTED].size == (box.height, box.width)
        assert found[EditPath.RESIZED].size == (341, 512)
        assert found[EditPath.RESIZED].masks()[0].sum() == pytest.approx(
            160 * 160 * (512 / 1500) ** 2, rel=0.1
        )
    assert len(seen) > 30


def test_a_path_that_comes_to_the_same_is_left_out() -> None:
    """A picture so small that every crop takes all of it; and a region of which nothing would be left."""
    rng = np.random.default_rng(0)
    (crop,) = planned(180, 160, Box(60, 60, 100, 100))
    assert variants.for_replay(crop.regions[0], crop, 160, 180, rng) == {}
    (crop,) = planned(4000, 3000, Box(2000, 1500, 2100, 1600))
    assert set(variants.for_replay(crop.regions[0], crop, 3000, 4000, rng)) == {EditPath.SHIFTED}


def test_a_small_picture_of_which_a_part_was_worked_is_judged_whole_too() -> None:
    """The commonest tool hands it to the editor as it is."""
    (crop,) = cropping.plan([Region(Box(60, 60, 100, 100), "x", 1.0, "x")], 300, 400, margin=32, work=800)
    whole = variants.for_replay(crop.regions[0], crop, 300, 400, np.random.default_rng(0))[EditPath.RESIZED]
    assert (whole.box, whole.size) == (Box(0, 0, 400, 300), (300, 400))


def test_a_crop_worked_smaller_is_cut_at_its_scale() -> None:
    (crop,) = planned(3000, 2000, Box(400, 400, 1400, 1400), work=512)
    found = variants.for_replay(crop.regions[0], crop, 2000, 3000, np.random.default_rng(0))
    box, size = found[EditPath.SHIFTED].box, found[EditPath.SHIFTED].size
    assert size[0] / box.height == pytest.approx(512 / crop.box.height, rel=0.01)


def test_every_path_is_in_the_receipt_and_compares_the_edits_of_that_path() -> None:
    box = Box(500, 300, 660, 460)
    original = picture(1200, 800)
    crops = planned(1200, 800, box)
    published = original.copy()
    published[crops[0].box.slices] = np.clip(published[crops[0].box.slices].astype(int) + 6, 0, 255)
    editor = Averaging()
    result = verified(original, published, crops, editor)
    rows = {row.path: row for row in result.edits if row.mask_kind == MaskKind.TRIGGER}
    assert set(rows) == set(EditPath)
    assert all(row.row()["path"] == path for path, row in rows.items())
    # The mean moves by 6 levels in the crop, by less in a wider crop, by the crop's share in the whole.
    share = crops[0].box.width * crops[0].box.height / (1200 * 800)
    assert rows[EditPath.CROP].l1 == pytest.approx(6 / 255, rel=0.05)
    assert rows[EditPath.RESIZED].l1 == pytest.approx(6 / 255 * share, rel=0.1)
    assert rows[EditPath.CROP].l1 >= rows[EditPath.SHIFTED].l1 > rows[EditPath.RESIZED].l1
    assert {row.control_ssim for path, row in rows.items() if path != EditPath.CROP} == {None}
    assert (341, 512) in editor.sizes
    again = verified(original, published, crops, Averaging())
    assert [row.row() for row in again.edits] == [row.row() for row in result.edits]


def test_a_picture_that_cannot_be_written_to_is_judged_too() -> None:
    original = picture(700, 520)
    original.flags.writeable = False
    assert verified(original, original, planned(700, 520, Box(300, 200, 420, 320)), Averaging()).edits


class Noisy(Averaging):
    """Fills with noise, as a diffusion model would, and remembers what seeded it."""

    def __init__(self) -> None:
        super().__init__()
        self.seeds: set[int] = set()

    def inpaint(self, image: Tensor, mask: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        assert generator is not None
        self.seeds.add(generator.initial_seed())
        noise = torch.rand(image[:1].shape, generator=generator)
        return torch.where(mask > 0.5, noise, image)


def test_an_editors_noise_is_the_jobs_and_the_same_for_both_pictures() -> None:
    original = picture(700, 520)
    crops = planned(700, 520, Box(300, 200, 420, 320))
    first, again, other = Noisy(), Noisy(), Noisy()
    rows = verified(original, original, crops, first, seed=1).edits
    verified(original, original, crops, again, seed=1)
    verified(original, original, crops, other, seed=2)
    assert {row.l1 for row in rows if row.mask_kind == MaskKind.TRIGGER} == {0}
    assert first.seeds == again.seeds
    assert len(first.seeds | other.seeds) == 2


def test_the_other_paths_cost_less_than_a_tenth_of_a_job_on_a_512_crop() -> None:
    """In pixels that went forward through the editor; the way back, and half the iterations, not counted."""
    box = Box(500, 400, 756, 656)
    crops, original, editor = planned(1600, 1200, box), picture(1600, 1200), Averaging()
    assert crops[0].size == (512, 512)
    published = (
        Optimiser(Protect(iterations=30), [editor], CPU)
        .optimise(
            original, crops, grey=False, rng=np.random.default_rng(0), progress=lambda done, total: None
        )
        .rgb
    )
    optimising, editor.pixels = editor.pixels, 0
    rows = verified(original, published, crops, editor).edits
    paths = variants.for_replay(
        crops[0].regions[0], crops[0], 1200, 1600, np.random.default_rng(0).spawn(1)[0]
    )
    extra = 2 * sum(crop.size[0] * crop.size[1] for crop in paths.values())
    assert len(paths) == len([row for row in rows if row.path != EditPath.CROP]) == 2
    assert 0 < extra / (optimising + editor.pixels) < 0.1


class Flipping(Averaging):
    """Paints a pattern, and its negative where the picture's mean is above what it was."""

    def inpaint(self, image: Tensor, mask: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        super().inpaint(image, mask)
        pattern = torch.rand(image.shape[2:], generator=torch.Generator().manual_seed(0))
        changed = image.mean(dim=(1, 2, 3), keepdim=True) > 100.001 / 255
        return torch.where(mask > 0.5, torch.where(changed, 1 - pattern, pattern), image)


def test_work_may_end_early_only_where_every_edit_holds() -> None:
    """And the first miss is the last that is looked at."""
    original: Rgb = np.full((700, 900, 3), 100, dtype=np.uint8)
    (crop,) = planned(900, 700, Box(300, 250, 460, 400))
    published = original.copy()
    published[crop.box.slices] += 6

    def holding(rgb: Rgb, settings: Verify, **asked: Any) -> tuple[bool, int]:
        editor, rng = Flipping(), np.random.default_rng(0)
        editors, asked_for = Editors(CPU, [editor]), Asked(settings, **asked)
        answer = holds(original, rgb, crop, editors, asked=asked_for, rng=rng)
        return answer, len(editor.sizes)

    # This editor breaks everywhere: only with benign edits left out of account is that protection.
    anything = Verify().model_copy(update={"near_ssim_min": -1.0, "far_ssim_min": -1.0})
    assert holding(published, anything) == (True, 5 + 2)
    assert holding(original, anything) == (False, 1)
    assert holding(published, Verify()) == (False, 4)
    assert holding(published, Verify(), broken_only=True) == (True, 3 + 2)
    assert holding(published, Verify(), broken_only=True, resized=False) == (True, 3 + 1)
    beyond = anything.model_copy(update={"trigger_ssim_max": -1.0 + 0.02})
    assert holding(published, beyond)[0] is False, "met, but not with a margin"


@pytest.mark.parametrize(
    ("miss", "says"),
    [
        ({"ssim": 0.9}, "trigger edit of the resized picture by latent-mini keeps SSIM 0.90"),
        ({"l1": 0.02}, "moves by L1 0.020, at least 0.03 asked"),
        ({"ssim": 1.0, "l1": 0.0}, "at most 0.85 asked"),
    ],
)
def test_a_path_that_does_not_break_weakens_and_says_so(miss: dict[str, Any], says: str) -> None:
    row = EditResult("latent-mini", 0, MaskKind.TRIGGER, 0.8, 0.04, False, path=EditPath.RESIZED)
    budget = Budget(6.4)
    assert judge([*edits(), row], 6, budget, Verify()) == (Verdict.PROTECTED, [])
    verdict, reasons = judge([*edits(), dataclasses.replace(row, **miss)], 6, budget, Verify())
    assert verdict == Verdict.WEAK
    assert says in " ".join(reasons)
