"""What every method promises, against a small random latent editor and the embedded one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from daemon import geometry, methods
from daemon.config import Protect
from daemon.domain import Box, Budget, Region, Rgb
from daemon.editors.base import Editor
from daemon.editors.latent import Decoder, Encoder, InpaintNet, LatentEditor
from daemon.methods.base import Task, furthest_colour
from daemon.protect import optimise, to_tensor
from tests.conftest import photo

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def surrogate() -> Editor:
    torch.manual_seed(0)
    return LatentEditor("random", "0" * 64, Encoder(16), InpaintNet(width=(32, 32)), Decoder(16))


def picture() -> Rgb:
    rgb: Rgb = np.asarray(photo((96, 96)))
    return rgb


def task(*, grey: bool = False) -> Task:
    mask = np.zeros((96, 96), dtype=np.bool_)
    mask[32:64, 32:64] = True
    image = to_tensor(picture(), (96, 96), CPU)
    if grey:
        image = image.mean(dim=1, keepdim=True).expand(1, 3, 96, 96).contiguous()
    return Task(image, [mask], mask, torch.ones(1, 1, 96, 96), Budget(6.4), grey)


@pytest.fixture(scope="module", params=methods.NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def run(
    name: str, surrogate: Editor, work: Task, *, seed: int = 0, iterations: int = 6, target: str = "away"
) -> torch.Tensor:
    return methods.get(name).run(
        work,
        [surrogate],
        iterations=iterations,
        target=target,
        rng=np.random.default_rng(seed),
        progress=lambda done, total: None,
    )


def broken(surrogate: Editor, work: Task, change: torch.Tensor) -> float:
    mask = torch.from_numpy(work.regions[0])[None, None].float()
    with torch.no_grad():
        clean, got = surrogate.inpaint(work.image, mask), surrogate.inpaint(work.image + change, mask)
    return float((((got - clean) ** 2) * mask).sum())


def test_the_change_is_allowed(name: str, surrogate: Editor) -> None:
    work = task()
    change = run(name, surrogate, work)
    assert change.shape == work.image.shape
    assert torch.allclose(work.project(change), change, atol=1e-6)


def test_deterministic_in_the_seed(name: str, surrogate: Editor) -> None:
    assert torch.equal(run(name, surrogate, task(), seed=5), run(name, surrogate, task(), seed=5))
    assert not torch.equal(run(name, surrogate, task(), seed=5), run(name, surrogate, task(), seed=6))


def test_inputs_are_not_mutated(name: str, surrogate: Editor) -> None:
    work = task()
    image, mask = work.image.clone(), work.regions[0].copy()
    run(name, surrogate, work)
    assert torch.equal(work.image, image)
    assert np.array_equal(work.regions[0], mask)


def test_it_beats_noise_of_the_same_size(name: str, surrogate: Editor) -> None:
    work = task()
    change = run(name, surrogate, work, iterations=15)
    signs = torch.from_numpy(np.random.default_rng(9).choice([-1.0, 1.0], tuple(change.shape))).float()
    noise = work.project(change.abs() * signs)
    assert broken(surrogate, work, change) > 3 * broken(surrogate, work, noise)


def test_grey_pictures_get_grey_changes(name: str, surrogate: Editor) -> None:
    change = run(name, surrogate, task(grey=True))
    assert torch.allclose(change[:, 0], change[:, 1], atol=1e-6)
    assert torch.allclose(change[:, 0], change[:, 2], atol=1e-6)


def test_progress_is_told_each_iteration_and_may_stop_it(name: str, surrogate: Editor) -> None:
    seen: list[tuple[int, int]] = []

    def stop_after_two(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        methods.get(name).run(
            task(),
            [surrogate],
            iterations=6,
            target="away",
            rng=np.random.default_rng(0),
            progress=stop_after_two,
        )
    assert seen == [(1, 6), (2, 6)]


def test_flat_target_moves_towards_it(name: str, surrogate: Editor) -> None:
    work = task()
    colour = furthest_colour(work.image)
    mask = torch.from_numpy(work.regions[0])[None, None].float()

    def distance(change: torch.Tensor) -> float:
        with torch.no_grad():
            return float((((surrogate.inpaint(work.image + change, mask) - colour) ** 2) * mask).sum())

    assert distance(run(name, surrogate, work, iterations=15, target="flat")) < distance(
        torch.zeros_like(work.image)
    )


@pytest.mark.parametrize("work_px", [768, 256])
def test_the_caller_keeps_budget_and_area_after_rounding(name: str, surrogate: Editor, work_px: int) -> None:
    """Through `optimise`, in whole levels, at both sizes, whatever the method proposed."""
    rgb: Rgb = np.asarray(photo((400, 300)))
    regions = [Region(Box(150, 100, 250, 180), "face", 1.0, "faces")]
    crops = geometry.plan(regions, 300, 400, margin=96, work=work_px)
    settings = Protect(method=name, iterations=2, margin_px=96, epsilon=6.4)
    before = rgb.copy()
    changed = optimise(
        rgb,
        False,
        crops,
        settings,
        [surrogate],
        device=CPU,
        rng=np.random.default_rng(0),
        progress=lambda d, t: None,
    )
    assert np.array_equal(rgb, before)
    difference = np.abs(changed.astype(int) - rgb)
    assert 1 <= difference.max() <= 6
    outside = np.ones(rgb.shape[:2], dtype=bool)
    outside[crops[0].box.slices] = False
    assert outside.any()
    assert difference[outside].max() == 0


def test_a_cheating_method_cannot_exceed_the_budget(
    surrogate: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cheat:
        def run(self, work: Task, *_: object, **__: object) -> torch.Tensor:
            return torch.ones_like(work.image)

    monkeypatch.setattr(methods, "get", lambda _: Cheat())
    rgb: Rgb = np.full((300, 300, 3), 100, dtype=np.uint8)
    crops = geometry.plan([Region(Box(100, 100, 150, 150), "x", 1.0, "x")], 300, 300, margin=32, work=768)
    changed = optimise(
        rgb,
        False,
        crops,
        Protect(),
        [surrogate],
        device=CPU,
        rng=np.random.default_rng(0),
        progress=lambda d, t: None,
    )
    assert int(changed.max()) == 106
    assert (changed[:60] == 100).all()
