"""The shift-map that fills holes with latents from elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from backfire.inpaint import shiftmap
from backfire.inpaint.shiftmap import BREADTHS, filled
from backfire.inpaint.texture import CELL, FEATURES, described

RINGS = torch.tensor([0.01, 7e-4, 1.2e-5])
FAINT = torch.tensor(1e-6)


def wall(height: int, width: int, channels: int = 4) -> Tensor:
    """1,c,h,w with a brick of its own in each channel, that comes again every four cells."""
    brick = torch.randn(channels, 4, 4, generator=torch.Generator().manual_seed(2))
    return brick.repeat(1, -(-height // 4), -(-width // 4))[None, :, :height, :width]


def opening(height: int, width: int, top: int, left: int, size: int) -> Tensor:
    hole = torch.zeros(1, 1, height, width, dtype=torch.bool)
    hole[..., top : top + size, left : left + size] = True
    return hole


def emptied(plane: Tensor, hole: Tensor) -> Tensor:
    return torch.where(hole, 0.0, plane)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (20, 13), (48, 32), (40, 64)])
def test_a_wall_is_closed_with_its_own_bricks(height: int, width: int) -> None:
    """By the known cells around alone; also where cells are compared several steps apart."""
    plane, hole = wall(height, width), opening(height, width, 5, 4, 6)
    empty = emptied(plane, hole)
    got = filled(empty, empty, empty, hole, RINGS, FAINT)
    assert (got - plane).abs().max() < 0.05
    assert torch.equal(got[~hole.expand_as(got)], plane[~hole.expand_as(plane)])


def test_what_is_wanted_decides_where_the_surroundings_do_not() -> None:
    """Red to the left, blue to the right, and a hole between that should be the one or the other."""
    plane = torch.zeros(1, 2, 16, 16)
    plane[:, 0, :, :8], plane[:, 1, :, 8:] = 1, 1
    hole = opening(16, 16, 4, 5, 6)
    empty = emptied(plane, hole)
    for colour in (0, 1):
        wanted = torch.eye(2)[colour][None, :, None, None]
        got = filled(empty, empty, torch.where(hole, wanted, plane), hole, RINGS, torch.tensor(1.0))
        assert got[0, colour, 5:9, 6:10].min() > 0.9  # where no neighbour says otherwise


def test_noise_does_not_decide_where_everything_would_do() -> None:
    generator = torch.Generator().manual_seed(0)
    grain = torch.randn(1, 4, 24, 24, generator=generator)
    alike = torch.zeros(1, 3, 24, 24)
    hole = opening(24, 24, 8, 8, 8)
    inside = hole.expand_as(grain)
    first = filled(grain, alike, alike, hole, RINGS, FAINT)[inside]
    assert first.std() > 0.7  # one shift was chosen, not a mean of all
    shaken = 0.01 * torch.randn(alike.shape, generator=generator)
    again = filled(grain, alike + shaken, alike + shaken, hole, RINGS, FAINT)[inside]
    assert (again - first).abs().mean() < 0.015


def test_without_a_hole_or_a_way_out_of_it_nothing_is_taken() -> None:
    plane = wall(16, 16)
    for hole in (torch.zeros(1, 1, 16, 16, dtype=torch.bool), torch.ones(1, 1, 16, 16, dtype=torch.bool)):
        variable = plane.clone().requires_grad_()
        got = filled(variable, variable, variable, hole, RINGS, FAINT)
        assert torch.equal(got, plane)
        (gradient,) = torch.autograd.grad(got.sum(), variable)
        assert torch.equal(gradient, torch.ones_like(plane))


def test_gradients_reach_what_is_taken_and_what_it_is_chosen_by() -> None:
    plane = torch.randn(1, 4, 20, 28, generator=torch.Generator().manual_seed(3))
    latents, have, want = (plane.clone().requires_grad_() for _ in range(3))
    got = filled(latents, have, want, opening(20, 28, 4, 6, 9), RINGS, torch.tensor(0.5))
    weight = torch.randn(got.shape, generator=torch.Generator().manual_seed(1))
    for gradient in torch.autograd.grad((got * weight).sum(), (latents, have, want)):
        assert torch.isfinite(gradient).all()
        assert gradient.abs().sum() > 0


def test_a_wide_hole_is_not_filled_with_one_cell() -> None:
    """Where many cells would do equally well, neighbours agree on a shift: the grain comes over as it is."""
    generator = torch.Generator().manual_seed(5)
    grain, hole = torch.randn(1, 1, 32, 32, generator=generator), opening(32, 32, 8, 8, 16)
    features = torch.where(hole, 0.0, 0.05 * torch.randn(1, 3, 32, 32, generator=generator))
    empty = emptied(grain, hole)
    got = filled(empty, features, emptied(features, hole), hole, RINGS, torch.tensor(1.0))
    assert got[..., 8:24, 8:24].std() > 0.6 * grain.std()  # a mixture of cells is bland


def test_planes_met_in_inference_serve_gradients_later() -> None:
    plane, hole = wall(10, 14), opening(10, 14, 3, 3, 4)
    with torch.inference_mode():
        filled(plane, plane, plane, hole, RINGS, FAINT)
    asked = plane.clone().requires_grad_(True)
    got = filled(asked, asked, asked, hole, RINGS, FAINT).square().sum()
    (gradient,) = torch.autograd.grad(got, asked)
    assert torch.isfinite(gradient).all()


def test_a_batch_equals_its_members_and_half_precision_does_not_blur_the_choice() -> None:
    planes = torch.randn(2, 4, 56, 56, generator=torch.Generator().manual_seed(3))
    holes = torch.cat([opening(56, 56, 3, 3, 5), opening(56, 56, 45, 42, 7)])
    empty = emptied(planes, holes)
    together = filled(empty, empty, empty, holes, RINGS, FAINT)
    for i in range(2):
        one = empty[i : i + 1]
        assert torch.allclose(filled(one, one, one, holes[i : i + 1], RINGS, FAINT), together[i : i + 1])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(filled(empty, empty, empty, holes, RINGS, FAINT), together)
    assert len(RINGS) == len(BREADTHS)


def test_gradients_of_much_are_those_of_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where activations are computed twice instead of held."""
    hole = opening(20, 24, 6, 7, 6)

    def slopes() -> list[Tensor]:
        asked = [plane.requires_grad_(True) for plane in (wall(20, 24), RINGS.clone(), torch.tensor(0.3))]
        plane, rings, trust = asked
        out = filled(plane, plane, emptied(plane, hole), hole, rings, trust).square().sum()
        return list(torch.autograd.grad(out, asked))

    held = slopes()
    monkeypatch.setattr(shiftmap, "FRUGAL", 0)
    for one, other in zip(held, slopes(), strict=True):
        assert one.abs().max() > 0
        assert torch.equal(one, other)


def stripes(period: int, phase: int, down: bool, contrast: float = 0.3) -> Tensor:
    wave = 0.5 + contrast * torch.sin(2 * torch.pi * (torch.arange(64) + phase) / period)
    plane = wave[:, None].expand(64, 64) if down else wave.expand(64, 64)
    return plane.expand(1, 3, 64, 64)


def test_a_texture_is_the_same_wherever_it_begins_and_another_if_it_runs_or_looks_otherwise() -> None:
    def apart(other: Tensor) -> float:
        inner = slice(1, -1)
        difference = described(other) - described(stripes(4, 0, True))
        return float(difference[..., inner, inner].abs().mean())

    assert described(stripes(4, 0, True)).shape == (1, FEATURES, 64 // CELL, 64 // CELL)
    assert apart(stripes(4, 1, True)) < 0.03
    assert apart(stripes(4, 0, False)) > 0.3
    assert apart(stripes(8, 0, True)) > 0.1
    assert apart(stripes(4, 0, True, contrast=0.03)) > 0.3
    assert apart(stripes(4, 0, True) * torch.tensor([1.0, 0.5, 0.5])[:, None, None]) > 0.3


def test_a_few_levels_hardly_change_a_texture_and_half_precision_does_not_either() -> None:
    grain = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(7))
    noise = 6 / 255 * (torch.rand(grain.shape, generator=torch.Generator().manual_seed(8)) - 0.5).sign()
    assert (described(grain + noise) - described(grain)).abs().max() < 0.2
    half = described(grain.bfloat16())
    assert half.dtype == torch.float32
    assert (half - described(grain)).abs().max() < 0.05
