"""Edits replayed as tools hand them to their models, and a verdict for each tool."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from backfire import attack_paths
from backfire.attack_paths import cropping
from backfire.attack_paths.cropping import Crop
from backfire.attack_paths.hand_over import mask_of, put_back
from backfire.attack_paths.handed import Handed
from backfire.attack_paths.tensors import given_pictures, to_picture, to_tensor
from backfire.config import Verify
from backfire.detectors.shapes import joined_to
from backfire.errors import ConfigError
from backfire.evaluate.edits import CONTEXT, Editors, Replayer, judged_px
from backfire.evaluate.judge import EditResult, in_tools, judge, tools, worst
from backfire.evaluate.panels import panels
from backfire.evaluate.replay import Asked, Replayed, _masks_by_kind, holds, replay
from backfire.evaluate.sheet import caption
from backfire.imaging import masks
from backfire.inpaint.denoising import DenoisingEditor, Prompt
from backfire.pipeline.memory import Frugal
from backfire.types import Box, Budget, Family, Mask, MaskKind, Region, Rgb, Verdict
from tests.support.pictures import photo
from tests.unit.evaluate.test_judge import edits

CPU = torch.device("cpu")
USUAL = attack_paths.chosen(None, Family.LATENT, "averaging")


class Averaging:
    """Fills with the mean of its input, and counts the pixels of all inputs."""

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
    """A real photograph, tiled to the size."""
    tile = np.asarray(photo((400, 300)))
    rgb: Rgb = np.tile(tile, (height // 300 + 1, width // 400 + 1, 1))[:height, :width].copy()
    return rgb


def planned(width: int, height: int, box: Box, work: int = 768) -> list[Crop]:
    region = Region(box, "face", 1.0, "faces")
    return cropping.plan([region], height, width, margin=128, work=work)


def verified(original: Rgb, published: Rgb, crops: list[Crop], editor: Averaging, seed: int = 0) -> Replayed:
    rng = np.random.default_rng(seed)
    editors = Editors(CPU, [editor], paths={editor.name: USUAL})
    return replay(original, published, crops, editors, target="away", rng=rng)


def test_what_a_person_would_use_is_replayed_unless_paths_are_named() -> None:
    assert USUAL == ("iopaint", "comfyui-stitch-512", "forge-whole", "forge-masked")
    assert all(name in attack_paths.suiting(Family.LATENT) for name in USUAL)
    for family in Family:
        assert set(attack_paths.chosen(None, family, "x")) <= set(attack_paths.suiting(family))
    named = ("megapixel-qwen", "forge-whole", "iopaint")
    assert attack_paths.chosen(named, Family.LATENT, "x") == ("forge-whole", "iopaint")
    with pytest.raises(ConfigError, match=r"none of which suits lama; add one of iopaint"):
        attack_paths.chosen(("forge-whole",), Family.ERASE, "lama")
    with pytest.raises(ConfigError, match=r"verify\.paths.*forge-whole"):
        attack_paths.chosen(("forge-hole",), Family.LATENT, "x")


def test_the_editor_gets_what_each_tool_hands_over() -> None:
    """Sizes as the tools have them; and of a picture above 800 px a crop of the mask's box and 128 px."""
    editor = Averaging()
    original = picture(1200, 900)
    rows = verified(original, original, planned(1200, 900, Box(500, 300, 660, 460)), editor).edits
    assert [row.path for row in rows if row.mask_kind == MaskKind.TRIGGER] == [*USUAL]
    assert [row.path for row in rows if row.mask_kind == MaskKind.DILATED] == [*USUAL]
    others = (MaskKind.PARTIAL, MaskKind.NEAR, MaskKind.FAR)
    assert {row.path for row in rows if row.mask_kind in others} == {"iopaint"}
    assert editor.sizes[0] == (416, 416)
    assert editor.sizes[-6:] == [(512, 512)] * 6
    assert [row.ssim for row in rows] == pytest.approx([1] * len(rows), abs=1e-6)
    assert {row.l1 for row in rows} == {0}


def test_at_the_border_of_the_picture_the_crop_is_moved_inwards() -> None:
    editor = Averaging()
    original = picture(1200, 900)
    verified(original, original, planned(1200, 900, Box(20, 30, 120, 130)), editor)
    assert editor.sizes[0] == (360, 360), "356 x 356 px, up to a multiple of 8"


def test_every_path_is_in_the_receipt_and_compares_the_edits_of_that_path() -> None:
    box = Box(500, 300, 660, 460)
    original = picture(1200, 800)
    crops = planned(1200, 800, box)
    published = original.copy()
    published[crops[0].box.slices] = np.clip(published[crops[0].box.slices].astype(int) + 6, 0, 255)
    editor = Averaging()
    result = verified(original, published, crops, editor)
    rows = {row.path: row for row in result.edits if row.mask_kind == MaskKind.TRIGGER}
    assert set(rows) == set(USUAL)
    assert all(row.row()["path"] == path for path, row in rows.items())
    # The mean moves by 6 levels in the crops, by the perturbed area's share in the whole picture.
    share = crops[0].box.width * crops[0].box.height / (1200 * 800)
    assert rows["iopaint"].l1 == pytest.approx(6 / 255, rel=0.05)
    assert rows["forge-masked"].l1 == pytest.approx(6 / 255, rel=0.1)
    assert rows["forge-whole"].l1 == pytest.approx(6 / 255 * share, rel=0.1)
    assert {path for path, row in rows.items() if row.control_ssim is not None} == set(USUAL)
    again = verified(original, published, crops, Averaging())
    assert [row.row() for row in again.edits] == [row.row() for row in result.edits]


def test_a_held_out_editor_makes_the_trigger_edits_alone_and_the_sheet_names_it() -> None:
    original = picture(1200, 800)
    crops = planned(1200, 800, Box(500, 300, 660, 460))
    judge, other = Averaging(), Averaging()
    other.name = "other"
    editors = Editors(CPU, [judge], [other], paths={judge.name: USUAL, other.name: USUAL})
    found = replay(original, original, crops, editors, target="away", rng=np.random.default_rng(0))
    rows = [row for row in found.edits if row.held_out]
    assert [(row.editor, row.mask_kind, row.path) for row in rows] == [
        ("other", MaskKind.TRIGGER, path) for path in USUAL
    ]
    assert {row.control_ssim for row in rows} == {None}
    assert len(found.edits) - len(rows) > len(USUAL), "the surrogate makes the other edits too"
    assert [pair.edit for pair in found.panels[0].pairs] == found.edits, "every edit is kept as pictures"
    told = [" ".join(caption(pair.edit, 10**6)) for pair in found.panels[0].pairs if pair.edit.held_out]
    assert told == [
        f"{attack_paths.get(path).tool} by other (only judged): SSIM 1.00, seen over 0%" for path in USUAL
    ]


def test_the_sheet_tells_the_figures_of_the_edit_that_it_shows_large() -> None:
    crop = planned(1200, 800, Box(500, 300, 660, 460))[0]
    original = picture(1200, 800)
    mask = np.zeros(original.shape[:2], dtype=np.bool_)
    trigger = MaskKind.TRIGGER
    rows = [
        EditResult("one", 0, trigger, 0.314, 0.2, False, visible=0.87),
        EditResult("one", 0, MaskKind.FAR, 0.98, 0.01, False),
        EditResult("one", 0, trigger, 0.4, 0.2, False, path="forge-whole", visible=0.5),
        EditResult("two", 0, trigger, 0.6, 0.2, False, visible=0.9),
        EditResult("three", 0, trigger, 0.5, 0.2, True, visible=0.9),
    ]
    shown = panels(crop, 0, (original, original), {trigger: mask}, {}, rows)
    assert shown.summary == [
        "edit of the region in IOPaint by one: plainly another over 87% of it, SSIM 0.31 (1 = no effect)"
    ]


def test_a_region_that_vanishes_in_a_tool_is_not_measured_there() -> None:
    """Forge edits nothing of a dot in a picture of 4000 px."""
    original = picture(4000, 3000)
    found = verified(original, original, planned(4000, 3000, Box(2000, 1500, 2003, 1503)), Averaging())
    assert "region 0: forge-whole leaves nothing of it to edit" in found.not_measured
    edits = {(row.path, row.mask_kind) for row in found.edits}
    assert ("forge-whole", MaskKind.TRIGGER) not in edits
    assert ("forge-whole", MaskKind.DILATED) in edits, "with 8 px around it there is something to edit"


def test_a_crop_larger_than_editors_are_given_is_scaled_down() -> None:
    editor, original = Averaging(), picture(450, 400)
    editors = Editors(CPU, [editor], most_px=128)
    crops = planned(450, 400, Box(50, 50, 400, 350))
    rng = np.random.default_rng(0)
    found = replay(original, original, crops, editors, target="away", rng=rng)
    assert max(max(size) for size in editor.sizes) <= 128
    assert all(row.l1 == 0 for row in found.edits)
    told = [said for said in found.not_measured if "judged at" in said]
    assert told == ["region 0: iopaint hands over 456x400, judged at 128x112"], "width first, and once"
    editors = dataclasses.replace(editors, most_px=456)
    found = replay(original, original, crops, editors, target="away", rng=rng)
    assert not [said for said in found.not_measured if "judged at" in said]


def test_a_lower_working_size_makes_no_edit_smaller_that_is_judged() -> None:
    """Our own message advises to lower it where memory is out, and judging needs much less of that."""
    assert [judged_px(work_px) for work_px in (256, 800, 1024)] == [1600, 1600, 2048]


class Painting(Averaging):
    """Paints one colour."""

    def __init__(self, colour: tuple[float, float, float]) -> None:
        super().__init__()
        self.colour = torch.tensor(colour)[None, :, None, None]

    def inpaint(self, image: Tensor, mask: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        return torch.where(mask > 0.5, self.colour, image)


def test_the_distance_to_the_target_is_that_to_the_colour_that_was_optimised_for() -> None:
    """The crop is red, so that blue was; the picture, which Forge hands over, is green and blue."""
    original: Rgb = np.full((900, 1200, 3), (0, 100, 255), dtype=np.uint8)
    crops = planned(1200, 900, Box(500, 300, 660, 460))
    original[crops[0].box.slices] = (255, 100, 0)
    editor = Painting((0, 0, 1))
    editors = Editors(CPU, [editor], paths={editor.name: ("iopaint", "forge-whole")})
    rng = np.random.default_rng(0)
    rows = replay(original, original, crops, editors, target="flat", rng=rng).edits
    distances = {row.path: row.target_distance for row in rows if row.mask_kind == MaskKind.TRIGGER}
    assert distances == pytest.approx({"iopaint": 0, "forge-whole": 0}, abs=0.02)
    rows = replay(original, original, crops, editors, target="inverted", rng=rng).edits
    (distance,) = (row.target_distance for row in rows if (row.path, row.mask_kind) == ("iopaint", "trigger"))
    assert distance == pytest.approx((155 / 255) / 3, abs=1e-3), "the negative is (0, 155, 255)"
    rows = replay(original, original, crops, editors, target="away", rng=rng).edits
    assert {row.target_distance for row in rows} == {None}


@pytest.mark.parametrize("path", [*attack_paths.PATHS])
def test_of_an_edit_that_touches_all_of_a_picture_only_its_surroundings_are_kept(path: str) -> None:
    """Of a picture of 24 megapixels the figures took gigabytes in tools that know no mask."""
    box = Box(250, 150, 280, 170)
    original = picture(600, 450)
    mask = np.zeros(original.shape[:2], np.bool_)
    mask[box.slices] = True
    replayer = Replayer(Averaging(), None, 0, Editors(CPU, []))
    (edit,) = replayer.edits([original, 255 - original], mask, path, MaskKind.TRIGGER)
    assert edit.frame == box.grown(CONTEXT, 600, 450)
    assert np.array_equal(edit.mask, mask[edit.frame.slices])
    (handed,) = replayer.calls(mask, path)
    for rgb, shown in zip((original, 255 - original), edit.pictures, strict=True):
        given = given_pictures([rgb], handed, CPU)
        made = Averaging().inpaint(given, mask_of(handed, given))
        whole = put_back(made, to_tensor(rgb, (450, 600), CPU), handed)[0]
        np.testing.assert_allclose(shown, to_picture(whole)[edit.frame.slices], atol=1e-6)


def test_a_picture_that_cannot_be_written_to_is_judged_too() -> None:
    original = picture(700, 520)
    original.flags.writeable = False
    assert verified(original, original, planned(700, 520, Box(300, 200, 420, 320)), Averaging()).edits


class Noisy(Averaging):
    """Fills with noise, as a diffusion model does, and records the seeds that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seeds: set[int] = set()

    def inpaint(self, image: Tensor, mask: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        assert generator is not None
        self.seeds.add(generator.initial_seed())
        noise = torch.rand(image[:1].shape, generator=generator)
        return torch.where(mask > 0.5, noise, image)


def test_the_noise_of_edits_depends_on_the_job_and_is_the_same_for_both_pictures() -> None:
    original = picture(700, 520)
    crops = planned(700, 520, Box(300, 200, 420, 320))
    first, again, other = Noisy(), Noisy(), Noisy()
    rows = verified(original, original, crops, first, seed=1).edits
    verified(original, original, crops, again, seed=1)
    verified(original, original, crops, other, seed=2)
    assert {row.l1 for row in rows if row.mask_kind == MaskKind.TRIGGER} == {0}
    assert first.seeds == again.seeds
    assert len(first.seeds | other.seeds) == 2


@pytest.mark.parametrize("frugal", [False, True])
def test_the_edits_of_a_picture_draw_from_all_prompts_of_an_editor(frugal: bool) -> None:
    """An editor picks its prompt by the seed, so that one seed for all of them tried a single prompt."""
    original, mask = picture(96, 80), np.zeros((80, 96), np.bool_)
    mask[30:50, 40:60] = True
    made = [*((USUAL[0], kind) for kind in MaskKind), (USUAL[1], MaskKind.TRIGGER)]
    asked = []
    for prompts in (["a", "b", "c"], ["a", "b", "c"], ["a"]):
        editor: Any = Noisy()
        editor.prompts = prompts
        replayer = Replayer(Frugal(editor) if frugal else editor, None, 1, Editors(CPU, []))
        for path, kind in made:
            (edit,) = replayer.edits([original, original], mask, path, kind)
            one, other = edit.pictures
            assert np.array_equal(one, other), "what is compared is made under one prompt"
        asked.append(editor.seeds)
    assert asked[0] == asked[1]
    assert len(asked[0]) == len(made)
    assert len(asked[2]) == 1, "as it was when older receipts were made"
    drawn = {DenoisingEditor._drawn(*drawing(seed))[0].guidance for seed in asked[0]}
    assert drawn == {0, 1, 2}


def drawing(seed: int) -> tuple[Any, Tensor, torch.Generator]:
    """An editor of three prompts, latents, and the generator of an edit."""
    editor = SimpleNamespace(prompts=[Prompt({}, guidance) for guidance in range(3)])
    return editor, torch.zeros(1, 4, 8, 8), torch.Generator().manual_seed(seed)


class Unsteady(Averaging):
    """Fills with noise of its own, which no generator draws; in some tools only, where these are named."""

    name = "unsteady"

    def inpaint(self, image: Tensor, mask: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        return torch.where(mask > 0.5, torch.rand(image.shape), image)


def test_a_held_out_editor_with_noise_of_its_own_cannot_judge() -> None:
    """Whatever it is given, its edits differ, which looked like the best protection there is."""
    original = picture(700, 520)
    crops = planned(700, 520, Box(300, 200, 420, 320))
    editors = Editors(CPU, [Averaging()], [Unsteady(), Noisy()], paths={"averaging": USUAL})
    found = replay(original, original, crops, editors, target="away", rng=np.random.default_rng(0))
    why = (
        "region 0: the held-out editor unsteady cannot judge, as its edits of one and the same picture differ"
    )
    assert found.cannot_judge == [why]
    assert "unsteady" not in {row.editor for row in found.edits}
    assert {row.editor for row in found.edits if row.held_out} == {"averaging"}
    assert judge(edits(), 6, Budget(6.4), Verify(), cannot_judge=found.cannot_judge) == (Verdict.WEAK, [why])


class Overflowing(Averaging):
    """Gives no finite picture of some that it is given at once."""

    name = "overflowing"

    def __init__(self, which: slice) -> None:
        super().__init__()
        self._which = which

    def inpaint(self, image: Tensor, mask: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        edit = super().inpaint(image, mask, generator=generator)
        edit[self._which] = torch.nan
        return edit


@pytest.mark.parametrize("which", [slice(None), slice(1, 2)], ids=["every picture", "the published one"])
def test_a_held_out_editor_that_gives_no_finite_picture_cannot_judge(which: slice) -> None:
    """Its numbers are no measurement of the picture, so that a judge that overflows fails none."""
    original = picture(700, 520)
    crops = planned(700, 520, Box(300, 200, 420, 320))
    paths = {"averaging": ("iopaint",), "overflowing": ("iopaint",)}
    editors = Editors(CPU, [Averaging()], [Overflowing(which)], paths=paths)
    found = replay(original, original, crops, editors, target="away", rng=np.random.default_rng(0))
    assert found.cannot_judge == [
        "region 0: the held-out editor overflowing cannot judge, as it gave no finite picture"
    ]
    assert "overflowing" not in {row.editor for row in found.edits}


@pytest.mark.parametrize("which", [slice(None), slice(1, 2)], ids=["every picture", "the published one"])
def test_a_surrogate_that_gives_no_finite_picture_fails_without_a_warning(which: slice) -> None:
    """It is said in the verdict's reasons, and its picture on the sheet is black, as the tools save it."""
    original = picture(700, 520)
    crops = planned(700, 520, Box(300, 200, 420, 320))
    editors = Editors(CPU, [Overflowing(which)], paths={"overflowing": ("iopaint",)})
    found = replay(original, original, crops, editors, target="away", rng=np.random.default_rng(0))
    verdict, reasons = judge(found.edits, 6, Budget(6.4), Verify(), cannot_judge=found.cannot_judge)
    assert verdict == Verdict.FAILED
    assert any("gave no finite picture" in reason for reason in reasons)
    pair = found.panels[0].pairs[0]
    assert not pair.protected[pair.mask].any(axis=1).all()


def test_a_held_out_editor_whose_tools_edit_nothing_cannot_judge() -> None:
    original = picture(4000, 3000)
    crops = planned(4000, 3000, Box(2000, 1500, 2003, 1503))
    other = Averaging()
    other.name = "other"
    editors = Editors(CPU, [Averaging()], [other], paths={"other": ("forge-whole",)})
    found = replay(original, original, crops, editors, target="away", rng=np.random.default_rng(0))
    why = "region 0: the held-out editor other cannot judge, as its tools leave nothing of the region to edit"
    assert found.cannot_judge == [why]


def test_the_first_tool_that_edits_a_region_decides_about_it() -> None:
    """Forge edits nothing of a dot in a picture of 4000 px, but something of a little more than it."""
    original = picture(4000, 3000)
    crops = planned(4000, 3000, Box(2000, 1500, 2003, 1503))
    paths = {"averaging": ("forge-whole", "iopaint")}
    editors = Editors(CPU, [Averaging()], paths=paths)
    found = replay(original, original, crops, editors, target="away", rng=np.random.default_rng(0))
    assert (found.edits[0].path, found.edits[0].mask_kind) == ("iopaint", MaskKind.TRIGGER)
    assert {row.path for row in found.edits if row.mask_kind == MaskKind.PARTIAL} == {"iopaint"}


@pytest.mark.parametrize(
    ("size", "box"), [((1200, 300), Box(10, 100, 60, 150)), ((1920, 1080), Box(1700, 1072, 1910, 1078))]
)
def test_what_a_tool_crops_off_is_not_measured_there(size: tuple[int, int], box: Box) -> None:
    """FLUX Kontext gets the middle of the picture: of a region beside it there is no edit and no figure."""
    width, height = size
    original = picture(width, height)
    editors = Editors(CPU, [Averaging()], paths={"averaging": ("megapixel-kontext", "megapixel-qwen")})
    crops = planned(width, height, box)
    found = replay(original, original, crops, editors, target="away", rng=np.random.default_rng(0))
    assert "region 0: megapixel-kontext leaves nothing of it to edit" in found.not_measured
    assert found.edits[0].path == "megapixel-qwen"
    assert np.isfinite([row.ssim for row in found.edits]).all()


def test_a_region_that_is_the_whole_picture_is_judged_by_halves_alone() -> None:
    """An edit of every pixel has nothing of the picture to go by, so that it never breaks."""
    original = picture(96, 80)
    crops = planned(96, 80, Box(0, 0, 96, 80))
    found = verified(original, original, crops, Averaging())
    kinds = {row.mask_kind for row in found.edits}
    assert kinds == {MaskKind.TRIGGER, MaskKind.PARTIAL}
    assert "region 0: a little more than it is all of the picture" in found.not_measured
    assert "region 0: no space in its crop for an edit beside it" in found.not_measured


def test_where_a_blind_editor_gets_masked_pixels_alone_nothing_is_judged() -> None:
    """Forge blurs the mask of a region that nearly fills the picture until nothing is left beside it."""
    original = picture(96, 80)
    editor = Averaging()
    editor.blind = True
    found = verified(original, original, planned(96, 80, Box(1, 1, 95, 79)), editor)
    paths = {row.path for row in found.edits if row.mask_kind == MaskKind.TRIGGER}
    assert "iopaint" in paths
    assert "forge-whole" not in paths
    told = "region 0: forge-whole hands over nothing but what is repainted"
    assert any(said.startswith(told) for said in found.not_measured)


def spotted(sizes: list[int]) -> tuple[Rgb, Region]:
    """A picture with a region of squares in a row, each of which IOPaint edits by itself."""
    original = picture(1600, 900)
    mask = np.zeros((40, 200 * len(sizes)), np.bool_)
    for at, side in enumerate(sizes):
        mask[:side, 200 * at : 200 * at + side] = True
    return original, Region(Box(100, 300, 100 + mask.shape[1], 340), "spots", 1.0, "sidecar", mask)


class Averse(Averaging):
    """Breaks on what has changed, unless it repaints few pixels."""

    def inpaint(self, image: Tensor, mask: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        pattern = torch.rand(image.shape[2:], generator=torch.Generator().manual_seed(0))
        changed = image.mean(dim=(1, 2, 3), keepdim=True) > image[:1].mean()
        breaks = changed & (mask.sum(dim=(1, 2, 3), keepdim=True) > 200)
        return torch.where(mask > 0.5, torch.where(breaks, 1 - pattern, pattern), image)


def test_of_an_edit_in_parts_the_one_that_breaks_least_counts() -> None:
    original, region = spotted([40, 8])
    crops = cropping.plan([region], 900, 1600, margin=128, work=768)
    published = np.clip(original.astype(int) + 4, 0, 255).astype(np.uint8)
    editors = Editors(CPU, [Averse()], paths={"averaging": ("iopaint",)})
    found = replay(original, published, crops, editors, target="away", rng=np.random.default_rng(0))
    row = found.edits[0]
    assert row.ssim > 0.9, "nearly all of the area is broken, but not the small part"
    assert row.visible is not None
    assert row.visible < 0.1


class Startled(Averaging):
    """Breaks on what has grown brighter; where it repaints few pixels, on anything that has changed."""

    def inpaint(self, image: Tensor, mask: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        pattern = torch.rand(image.shape[2:], generator=torch.Generator().manual_seed(0))
        changed = (image != image[:1]).flatten(1).any(dim=1)[:, None, None, None]
        brighter = image.mean(dim=(1, 2, 3), keepdim=True) > image[:1].mean() + 2 / 255
        few = mask.sum(dim=(1, 2, 3), keepdim=True) <= 500
        broken = torch.where(few, 1 - pattern, 0.1 * pattern + 0.9 * (1 - pattern))
        return torch.where(mask > 0.5, torch.where(brighter | (few & changed), broken, pattern), image)


def test_of_an_edit_in_parts_one_that_noise_breaks_as_much_is_no_protection() -> None:
    """Although in another part more is left, which noise does not break."""
    original, region = spotted([40, 20])
    crops = cropping.plan([region], 900, 1600, margin=128, work=768)
    published = np.clip(original.astype(int) + 4, 0, 255).astype(np.uint8)
    editors = Editors(CPU, [Startled()], paths={"averaging": ("iopaint",)})
    found = replay(original, published, crops, editors, target="away", rng=np.random.default_rng(0))
    row = found.edits[0]
    assert row.ssim == pytest.approx(row.control_ssim, abs=0.01), "of the part that noise breaks as much"
    verdict, reasons = judge(found.edits, 4, Budget(4), Verify())
    assert verdict == Verdict.FAILED
    assert "plain noise by" in reasons[0]


def test_a_held_out_editor_is_to_be_steady_in_each_part_of_an_edit() -> None:
    class Unsteady(Averaging):
        name = "unsteady"

        def inpaint(self, image: Tensor, mask: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
            fill = torch.rand(image.shape[2:], generator=torch.Generator().manual_seed(0)).expand_as(image)
            if mask[0].sum() > 500:  # edits of one picture differ, and that of the published one most
                fill = fill + torch.tensor([0.0, 1.0, 0.3])[:, None, None, None] * torch.rand(image.shape)
            return torch.where(mask > 0.5, fill.clamp(0, 1), image)

    original, region = spotted([40, 20])
    crops = cropping.plan([region], 900, 1600, margin=128, work=768)
    paths = {"averaging": ("iopaint",), "unsteady": ("iopaint",)}
    editors = Editors(CPU, [Averaging()], [Unsteady()], paths=paths)
    found = replay(original, original, crops, editors, target="away", rng=np.random.default_rng(0))
    assert [why for why in found.cannot_judge if "differ" in why]


@pytest.mark.parametrize(
    ("calls", "counts"),
    [
        ([{"ssim": 0.6}, {"ssim": 0.5}], 0),
        ([{"ssim": 0.6}, {"ssim": 0.3, "control_ssim": 0.55}], 1),
        ([{"ssim": 0.9}, {"ssim": 0.3, "control_ssim": 0.55}], 1),
        ([{"ssim": 0.9}, {"ssim": float("nan")}], 1),
        ([{"ssim": 0.9}, {"control_ssim": float("nan")}], 1),
    ],
    ids=["more is left", "noise", "what fails before what is weak", "not finite", "control not finite"],
)
def test_the_call_counts_that_misses_most(calls: list[dict[str, Any]], counts: int) -> None:
    usual = edits()[0]
    made = [dataclasses.replace(usual, **call) for call in calls]
    assert worst(made, Verify()) is made[counts]


def test_parts_of_an_edit_that_are_not_followed_are_told_and_not_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, region = spotted([6, 8, 6, 10, 9, 7, 6])
    looked, mask = set[int](), Handed.__dict__["mask"].func

    def look(call: Handed) -> Mask:
        looked.add(call.edited_pixels)
        found: Mask = mask(call)
        return found

    monkeypatch.setattr(Handed, "mask", property(look))
    editors = Editors(CPU, [Averaging()], paths={"averaging": ("iopaint",)})
    replayer = Replayer(editors.surrogates[0], None, 0, editors)
    plane = region.plane(900, 1600)
    assert [call.edited_pixels for call in replayer.calls(plane, "iopaint")] == [100, 81, 64, 49]
    assert looked == {100, 81, 64, 49}
    told = "iopaint edits it in 7 parts, of which the 4 largest are replayed"
    assert replayer.not_followed(plane, "iopaint") == told


@pytest.mark.parametrize("joined", [True, False])
def test_joined_regions_of_which_some_are_not_looked_at_cannot_be_better_than_weak(joined: bool) -> None:
    """Strokes of a painted mask are one thing, and joined faces are several."""
    original, painted = spotted([40] * 5)
    faces = [Region(Box(x, 300, x + 40, 340), "face", 1.0, "faces") for x in range(100, 1100, 200)]
    (region,) = joined_to(faces, 1) if joined else [painted]
    crops = cropping.plan([region], 900, 1600, margin=128, work=768)
    editors = Editors(CPU, [Averaging()], paths={"averaging": ("iopaint",)})
    found = replay(original, original, crops, editors, target="away", rng=np.random.default_rng(0))
    told = "region 0: iopaint edits it in 5 parts, of which the 4 largest are replayed"
    assert told in found.not_measured
    assert found.cannot_judge == ([f"{told}, and it stands for 5 regions"] if joined else [])


class Flipping(Averaging):
    """Paints a pattern, or its negative if the picture's mean has grown."""

    def inpaint(self, image: Tensor, mask: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        super().inpaint(image, mask)
        pattern = torch.rand(image.shape[2:], generator=torch.Generator().manual_seed(0))
        changed = image.mean(dim=(1, 2, 3), keepdim=True) > 100.001 / 255
        return torch.where(mask > 0.5, torch.where(changed, 1 - pattern, pattern), image)


def test_work_may_end_early_only_where_every_edit_holds() -> None:
    """No further edit is replayed after the first that does not."""
    original: Rgb = np.full((700, 900, 3), 100, dtype=np.uint8)
    (crop,) = planned(900, 700, Box(300, 250, 460, 400))
    published = original.copy()
    published[crop.box.slices] += 6

    def holding(rgb: Rgb, settings: Verify, **asked: Any) -> tuple[bool, int]:
        editor, rng = Flipping(), np.random.default_rng(0)
        editors = Editors(CPU, [editor], paths={editor.name: USUAL[:3]})
        asked_for = Asked(settings, **asked)
        answer = holds(original, rgb, crop, editors, asked=asked_for, rng=rng)
        return answer, len(editor.sizes)

    # All edits of this editor break, which counts as protection only if benign edits are disregarded.
    anything = Verify().model_copy(update={"near_ssim_min": -1.0, "far_ssim_min": -1.0})
    assert holding(published, anything) == (True, 5 + 2)
    assert holding(original, anything) == (False, 1)
    assert holding(published, Verify()) == (False, 4)
    assert holding(published, Verify(), broken_only=True) == (True, 3 + 2)
    assert holding(published, Verify(), broken_only=True, everywhere=False) == (True, 3)
    beyond = anything.model_copy(update={"trigger_ssim_max": -1.0 + 0.02})
    assert holding(published, beyond)[0] is False, "the threshold is met, but without the margin"


@pytest.mark.parametrize(
    ("miss", "says"),
    [
        ({"ssim": 0.9}, "trigger edit in forge-whole by flux2-mini keeps SSIM 0.90"),
        ({"l1": 0.02}, "moves by L1 0.020, at least 0.03 asked"),
        ({"ssim": 1.0, "l1": 0.0}, "at most 0.85 asked"),
    ],
)
def test_a_path_that_does_not_break_weakens_and_the_tools_are_named(miss: dict[str, Any], says: str) -> None:
    row = EditResult("flux2-mini", 0, MaskKind.TRIGGER, 0.8, 0.04, False, path="forge-whole")
    budget = Budget(6.4)
    assert judge([*edits(), row], 6, budget, Verify()) == (Verdict.PROTECTED, [])
    assert in_tools(tools([*edits(), row], Verify())) == ("broken in IOPaint, Forge or A1111 (whole picture)")
    missed = [*edits(), dataclasses.replace(row, **miss)]
    verdict, reasons = judge(missed, 6, budget, Verify())
    assert verdict == Verdict.WEAK
    assert reasons[0] == "broken in IOPaint; not broken in Forge or A1111 (whole picture)"
    assert says in " ".join(reasons)


@pytest.mark.parametrize("work", [1024, 300])
def test_distances_of_edits_count_in_the_pictures_pixels_however_small_a_crop_is_worked(work: int) -> None:
    box = Box(300, 250, 800, 700)
    (crop,) = cropping.plan([Region(box, "face", 1.0, "test")], 1000, 1200, margin=128, work=work)
    assert crop.scaled is (work == 300)
    found = _masks_by_kind(crop, 0, (1000, 1200), np.random.default_rng(3))
    trigger = found[MaskKind.TRIGGER]
    assert Box.around(trigger) == box
    assert np.array_equal(found[MaskKind.DILATED], masks.dilated(trigger))
    assert np.array_equal(found[MaskKind.NEAR], masks.ring(trigger))
    assert not (found[MaskKind.FAR] & masks.dilated(trigger, 2 * masks.FAR + 1)).any()
    assert 0.45 < found[MaskKind.PARTIAL].sum() / trigger.sum() < 0.55


def test_the_masks_of_a_crop_that_is_not_worked_smaller_are_those_at_its_size() -> None:
    regions = [
        Region(Box(40, 50, 90, 100), "face", 1.0, "test"),
        Region(Box(100, 60, 130, 99), "a", 1.0, "test"),
    ]
    (crop,) = cropping.plan(regions, 240, 320, margin=128, work=800, whole=800)
    found = _masks_by_kind(crop, 1, (240, 320), np.random.default_rng(3))
    rng, mask, protected = np.random.default_rng(3), crop.masks()[1], crop.protected()
    expected = {
        MaskKind.TRIGGER: mask,
        MaskKind.DILATED: masks.dilated(mask),
        MaskKind.PARTIAL: masks.half(mask, float(rng.uniform(0, 2 * np.pi))),
        MaskKind.NEAR: masks.ring(mask) & ~protected,
    }
    far = masks.far(protected, rng)
    assert far is not None
    expected[MaskKind.FAR] = far
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[kind], plane) for kind, plane in expected.items())
