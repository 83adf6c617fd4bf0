"""What every method must do, tested on a small editor of random weights that has every capability."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from backfire import attack_paths, inpaint
from backfire.attack_paths import cropping
from backfire.attack_paths.hand_over import mask_of
from backfire.attack_paths.tensors import given_pictures, to_tensor
from backfire.config import Protect
from backfire.errors import ConfigError
from backfire.imaging import masks
from backfire.inpaint.base import Editor
from backfire.inpaint.latent import DOWNSCALE, Decoder, Encoder, InpaintNet, LatentEditor
from backfire.inpaint.targets import target_picture
from backfire.perturb import bounds, methods
from backfire.perturb.contrast_masking import LUMA
from backfire.perturb.edit_masks import mask_at, masked_mse
from backfire.perturb.methods import iterative
from backfire.perturb.methods.base import Proposal, Task
from backfire.perturb.methods.iterative import IterativeMethod
from backfire.perturb.optimiser import Optimiser
from backfire.pipeline.memory import Frugal
from backfire.types import Box, Budget, Region, Rgb
from tests.support.pictures import photo

CPU = torch.device("cpu")


class Noisy(LatentEditor):
    """A one-step denoiser: its net gets the known latents, and noise where it paints."""

    def first_step(
        self, image: torch.Tensor, mask: torch.Tensor, *, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        known, cells = self.encode(image, mask), F.avg_pool2d(self._padded(mask), DOWNSCALE)
        generator = generator or torch.Generator().manual_seed(0)
        noise = torch.randn(known.shape[1:], generator=generator)
        predicted: torch.Tensor = self.net(known + 0.1 * noise * cells, cells)
        return predicted

    def attention_entropy(
        self, image: torch.Tensor, mask: torch.Tensor, *, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        weights = self.first_step(image, mask, generator=generator).softmax(dim=1)
        entropy = -(weights * weights.log()).sum(dim=1, keepdim=True)
        return entropy / float(np.log(weights.shape[1]))

    def one_step(
        self, image: torch.Tensor, mask: torch.Tensor, *, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        return self.inpaint(image, mask, generator=generator)


@pytest.fixture(scope="module")
def surrogate() -> Editor:
    torch.manual_seed(0)
    return Noisy("random", "0" * 64, Encoder(16), InpaintNet(width=(32, 32)), Decoder(16))


def picture() -> Rgb:
    rgb: Rgb = np.asarray(photo((96, 96)))
    return rgb


def task(*, grey: bool = False) -> Task:
    mask = np.zeros((96, 96), dtype=np.bool_)
    mask[32:64, 32:64] = True
    image = to_tensor(picture(), (96, 96), CPU)
    if grey:
        image = image.mean(dim=1, keepdim=True).expand(1, 3, 96, 96).contiguous()
    apart = torch.tensor([1.0, 0, 0])[:, None, None].expand(1, 3, 96, 96) if grey else None
    return Task(image, [mask], mask, torch.ones(1, 1, 96, 96), Budget(6.4), apart=apart)


@pytest.fixture(scope="module", params=methods.NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def run(
    name: str, surrogate: Editor, work: Task, *, seed: int = 0, iterations: int = 6, target: str = "away"
) -> torch.Tensor:
    proposal = methods.get(name, [surrogate]).run(
        work,
        [surrogate],
        iterations=iterations,
        target=target,
        rng=np.random.default_rng(seed),
        progress=lambda done, total: None,
    )
    return proposal.perturbation


def broken(surrogate: Editor, work: Task, change: torch.Tensor) -> float:
    mask = torch.from_numpy(work.regions[0])[None, None].float()
    with torch.no_grad():
        clean, got = surrogate.inpaint(work.image, mask), surrogate.inpaint(work.image + change, mask)
    return float((((got - clean) ** 2) * mask).sum())


@pytest.fixture(scope="module")
def plain() -> Editor:
    """An editor that can inpaint and has no further capability."""

    class Plain:
        name, multiple, weights_sha256, blind = "plain", 1, "0" * 64, True

        def to(self, device: torch.device | str) -> None:
            pass

        def inpaint(
            self, image: torch.Tensor, mask: torch.Tensor, *, generator: torch.Generator | None = None
        ) -> torch.Tensor:
            return torch.where(mask > 0.5, image.mean(), image)

    return Plain()


def test_an_editor_without_the_capability_is_refused_by_name(name: str, plain: Editor) -> None:
    if methods.METHODS[name].needs == "inpaint":
        assert methods.get(name, [plain])
        return
    with pytest.raises(ConfigError, match=f"protect.method {name}: needs .*; plain does not; name editors"):
        methods.get(name, [plain])


def test_a_surrogate_of_larger_gradients_has_them_in_the_proposal(name: str, surrogate: Editor) -> None:
    """The responses of the second surrogate are three times those of the first."""

    class Loud:
        name, multiple, weights_sha256, blind = "loud", surrogate.multiple, "0" * 64, True

        def to(self, device: torch.device | str) -> None:
            pass

        def __getattr__(self, capability: str) -> Any:
            return lambda image, mask, **kwargs: 3 * getattr(surrogate, capability)(image, mask, **kwargs)

    work = task()
    pair: list[Any] = [surrogate, Loud()]
    both, alone = (
        methods.get(name, used).run(
            work,
            used,
            iterations=2,
            target="away",
            rng=np.random.default_rng(0),
            progress=lambda done, total: None,
        )
        for used in (pair, pair[:1])
    )
    assert len(both.gradients) == 2
    assert len(alone.gradients) == 1
    assert all(0 < pull < np.inf for pull in both.gradients)
    assert both.gradients[1] > 3 * both.gradients[0]
    assert {tuple(plane.shape) for plane in both.saliency} == {work.image.shape[2:]}
    # Of the pixels near the region, some have larger gradients than others.
    assert all(float(plane.std()) > 0.1 * float(plane.mean()) for plane in both.saliency)


def test_a_frugal_surrogate_gives_the_same_responses(name: str, surrogate: Editor, plain: Editor) -> None:
    """It works edit by edit, but draws one noise for all of them, as in a batch."""
    method = methods.get(name)
    if not isinstance(method, IterativeMethod):
        pytest.skip("has no response of its own")
    frugal = Frugal(surrogate)
    assert methods.get(name, [frugal])
    work = task()
    mask = torch.from_numpy(np.stack([work.regions[0], ~work.regions[0]]))[:, None].float()
    responses = []
    for one in (surrogate, frugal):
        image = work.image.repeat(2, 1, 1, 1).requires_grad_(True)
        response = method.respond(one, image, mask, 3)
        (gradient,) = torch.autograd.grad(response.square().sum(), image)
        responses.append((response.detach(), gradient))
    for whole, single in zip(*responses, strict=True):
        torch.testing.assert_close(whole, single, rtol=1e-3, atol=1e-4)
    assert not hasattr(Frugal(plain), "encode")


def test_the_perturbation_is_within_budget_and_area(name: str, surrogate: Editor) -> None:
    work = task()
    change = run(name, surrogate, work)
    assert change.shape == work.image.shape
    assert torch.allclose(work.project(change), change, atol=1e-6)


def test_deterministic_in_the_seed(name: str, surrogate: Editor) -> None:
    one, again, other = (run(name, surrogate, task(), seed=seed, iterations=3) for seed in (5, 5, 6))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


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


def test_attention_of_the_repainted_cells_is_flattened(surrogate: Noisy) -> None:
    work = task()
    mask = torch.from_numpy(work.regions[0])[None, None].float()
    change = run("attention", surrogate, work, iterations=12)

    def entropy(image: torch.Tensor) -> float:
        with torch.no_grad():
            found = surrogate.attention_entropy(image, mask, generator=torch.Generator().manual_seed(0))
        return float((found * mask_at(mask, found, DOWNSCALE)).sum())

    assert entropy(work.image + change) > entropy(work.image)


def test_grey_pictures_get_grey_perturbations(name: str, surrogate: Editor) -> None:
    change = run(name, surrogate, task(grey=True))
    assert torch.allclose(change[:, 0], change[:, 1], atol=1e-6)
    assert torch.allclose(change[:, 0], change[:, 2], atol=1e-6)
    assert float(change.abs().max()) > 0.99 * task().budget.unit, "luma alone has all of the budget"


def test_progress_is_reported_at_each_iteration_and_may_stop_it(name: str, surrogate: Editor) -> None:
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


@pytest.mark.parametrize(("answer", "made", "asked"), [(True, 4, 1), (False, 8, 4)])
def test_a_method_ends_early_where_it_may(surrogate: Editor, answer: bool, made: int, asked: int) -> None:
    """It asks from half of the iterations on. When it ends early, it reports that all are done."""
    heard: list[torch.Tensor] = []
    seen: list[tuple[int, int]] = []

    def enough(change: torch.Tensor) -> bool:
        heard.append(change)
        return answer

    proposal = methods.get("encoder").run(
        replace(task(), early_stop=enough),
        [surrogate],
        iterations=8,
        target="away",
        rng=np.random.default_rng(0),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert (proposal.iterations, len(heard)) == (made, asked)
    assert len(seen) == made
    assert seen[-1] == (8, 8)


@pytest.mark.parametrize("grain", [2, 3])
def test_the_pixels_of_a_grain_change_alike(surrogate: Editor, grain: int) -> None:
    """Initial noise and steps are averaged over grains, also where the size is no multiple of theirs."""
    flat = replace(task(), image=torch.full((1, 3, 96, 96), 0.5), grain=grain)
    change = run("encoder", surrogate, flat)
    assert torch.allclose(flat.grained(change), change, atol=1e-6)
    assert float(change.abs().mean()) > 0.2 * flat.budget.unit
    rng = np.random.default_rng(0)
    plane = torch.from_numpy(rng.random((1, 3, 13, 17)).astype(np.float32))
    squares = replace(flat, grain=4).grained(plane)
    assert squares.shape == plane.shape
    assert float(squares[0, 0, 0, 0]) == pytest.approx(float(plane[0, 0, :4, :4].mean()))
    assert float(squares[0, 2, 12, 16]) == pytest.approx(float(plane[0, 2, 12, 16]))


def test_luma_and_colour_each_change_by_their_share_of_the_budget(surrogate: Editor) -> None:
    shares = torch.tensor([0.5, 0.3, 0.1])[:, None, None].expand(1, 3, 96, 96)
    work = replace(task(), image=torch.full((1, 3, 96, 96), 0.5), apart=shares)
    change = run("encoder", surrogate, work) / work.budget.unit
    found = bounds.to_ycbcr(change).abs().amax(dim=(0, 2, 3))
    assert found.tolist() == pytest.approx([0.5, 0.3, 0.1], abs=1e-3)
    green = torch.tensor([0.2, 1.0, 0.2])[:, None, None].expand(1, 3, 96, 96)
    bright = replace(work, image=green)
    noise = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    change = bright.project(noise)
    assert float((green + change).max()) <= 1
    excess = bounds.to_ycbcr(change).abs() / bright.budget.unit - shares
    assert float(excess.max()) < 1e-3, "what is clipped at white moves the others, too"
    nearly = torch.tensor([250 / 255, 0.5, 0.2])[:, None, None].expand_as(green)
    change = replace(task(grey=True), image=nearly).project(noise.abs() + 1)
    assert float(np.ptp(change[0].numpy(), axis=0).max()) < 1e-6, "grey"
    assert float(change[0, 0, 0, 0]) * 255 == pytest.approx(5, abs=0.01), "as far as red can go"


def test_a_step_goes_down_in_luma_and_colour_alike(surrogate: Editor) -> None:
    """Where luma may hardly move, signs of red, green and blue that agree would make no step at all."""
    flat = torch.tensor([0.0, 0.5, 0.5])[:, None, None].expand(1, 3, 96, 96)
    gradient = torch.tensor([1.0, 2.0, -2.0])[:, None, None].repeat(1, 1, 96, 96)
    gradient[..., 48:] /= 100
    gradient[..., 95] = float("nan")
    step = iterative.budget_step(replace(task(), apart=flat), 1)(gradient, 0) / task().budget.unit
    luma, blue, red = bounds.to_ycbcr(step)[0, :, 0, 0].tolist()
    assert luma == pytest.approx(0, abs=1e-6)
    assert blue == pytest.approx(-0.25, abs=1e-4), "half of half of the budget"
    assert -0.1 < red < -0.001, "it gains less by this"
    assert float(step[..., 95].abs().max()) == 0, "a slope that is no number costs its own pixels alone"
    assert float(step[..., 48:].abs().max()) < 0.1 * float(step.abs().max()), (
        "and little where slopes are low"
    )


def test_in_flat_areas_colour_changes_and_luma_hardly(surrogate: Editor) -> None:
    """Half of the picture is flat and half is texture; the method asks for more than it may have anywhere."""

    class Speckle:
        def run(self, task: Task, *_: Any, iterations: int, **__: Any) -> Proposal:
            drawn = np.random.default_rng(1).choice([-1.0, 1.0], tuple(task.image.shape)).astype(np.float32)
            return Proposal(torch.from_numpy(drawn), (task.image[0, 0],), iterations)

    rgb: Rgb = np.full((200, 200, 3), 120, np.uint8)
    rgb[:, 100:] = np.random.default_rng(0).integers(60, 180, (200, 100, 3))
    crops = cropping.plan([Region(Box(80, 80, 120, 120), "x", 1.0, "x")], 200, 200, margin=32, work=256)

    def changed(grey: bool, **settings: Any) -> NDArray[np.float64]:
        made = Optimiser(Protect(**settings), [surrogate], CPU, Speckle()).optimise(
            rgb, crops, grey=grey, rng=np.random.default_rng(0), progress=lambda done, total: None
        )
        return made.rgb.astype(float) - rgb

    flat, texture = np.s_[85:115, 82:92], np.s_[85:115, 108:118]
    colour = changed(grey=False)
    assert np.abs(colour[flat]).max() == 6, "1.772 times 3.4 levels of Cb, and 0.4 of luma"
    assert np.abs(colour[flat] @ LUMA).max() < 0.9, "0.4 of a level, and what rounding the channels adds"
    assert np.abs(colour[texture] @ LUMA).max() > 6
    grey = changed(grey=True)
    assert np.abs(grey[flat]).max() == 2, "12 times a fifth, rounded"
    assert np.abs(grey[texture]).max() == 12
    even = changed(grey=True, colour_share=0.2, flat_luma_share=1)
    assert np.abs(even[flat]).max() == 12, "not less than luma may move beside colour"
    bare = changed(grey=False, keep_region_exact=True)
    assert np.abs(bare[82:118, 82:118]).max() == 0 < np.abs(bare).max()
    crops = [replace(crops[0], size=(crops[0].box.height // 2, crops[0].box.width // 2))]
    assert crops[0].scaled
    assert np.abs(changed(grey=False)[flat] @ LUMA).max() < 0.9, "where the crop is worked at a smaller size"
    rgb[:, :100] = [255, 180, 60]
    assert np.abs(changed(grey=False)[flat] @ LUMA).max() < 0.9, "and where red can only go down"
    rgb[:] = rgb[:, :, :1]
    assert np.ptp(changed(grey=True), axis=2).max() == 0 < np.abs(changed(grey=True)).max()


@pytest.mark.parametrize(("answer", "rounds"), [(True, 1), (False, 3)])
def test_while_edits_do_not_break_a_further_round_starts_from_the_perturbation(
    surrogate: Editor, answer: bool, rounds: int
) -> None:
    """Each round has the budget and iterations of its strength; skipped iterations are reported as done."""
    works: list[Task] = []
    asked: list[tuple[int, float]] = []
    seen: list[tuple[int, int]] = []

    class Whole:
        def run(self, task: Task, *_: Any, iterations: int, **__: Any) -> Proposal:
            works.append(task)
            change = torch.full_like(task.image, 1 / 255 * len(works))
            return Proposal(change, (torch.zeros(task.image.shape[2:]),), iterations)

    def enough(so_far: Rgb, _: object, after: Budget | None) -> bool:
        assert after is not None
        asked.append((int(so_far.max()), after.epsilon))
        return answer

    rgb: Rgb = np.full((300, 300, 3), 100, dtype=np.uint8)
    crops = cropping.plan([Region(Box(100, 100, 150, 150), "x", 1.0, "x")], 300, 300, margin=32, work=768)
    made = Optimiser(
        Protect(escalate=("balanced", "strong"), flat_luma_share=0.5), [surrogate], CPU, Whole()
    ).optimise(
        rgb,
        crops,
        grey=False,
        rng=np.random.default_rng(0),
        progress=lambda *at: seen.append(at),
        early_stop=enough,
    )
    assert made.rounds == (rounds,)
    assert made.iterations == (100, 100 + 100, 100 + 100 + 160)[rounds - 1]
    assert made.budget.epsilon == (12, 12, 16)[rounds - 1]
    assert asked == [(101, 12), (102, 12)][: 1 if answer else 2], "it does not ask after the last round"
    assert [work.warm for work in works] == [False, True, True][:rounds]
    assert [None if work.start is None else round(float(work.start.max()) * 255) for work in works] == [
        None,
        1,
        2,
    ][:rounds]
    assert [work.budget.epsilon for work in works] == [12, 12, 16][:rounds]
    assert seen == ([(360, 360)] if answer else [])


def test_an_earlier_crop_keeps_its_luma_where_another_overlaps(surrogate: Editor) -> None:
    """The perturbation is grey, so that the smaller share of luma in the overlap would reduce it."""
    start = torch.full((1, 3, 96, 96), 3 / 255)
    share = torch.full((1, 1, 96, 96), 0.5)
    apart = share.expand(1, 3, 96, 96)
    work = replace(task(), image=torch.full((1, 3, 96, 96), 0.5), area=share, apart=apart, start=start)
    assert torch.allclose(work.project(start), start, atol=1e-6)
    regions = [Region(Box(100, 40, 180, 240), "x", 1.0, "x"), Region(Box(260, 40, 340, 240), "x", 1.0, "x")]
    crops = cropping.plan(regions, 280, 440, margin=64, work=256)
    assert len(crops) == 2
    assert crops[0].box.overlaps(crops[1].box)

    works: list[Task] = []

    class Grey:
        def run(self, task: Task, *_: Any, iterations: int, **__: Any) -> Proposal:
            works.append(task)
            return Proposal(torch.full_like(task.image, 1.0), (task.image[0, 0],), iterations)

    made = Optimiser(
        Protect(margin_px=64, flat_luma_share=0.5, reach_px=40, epsilon=6.4),
        [surrogate],
        CPU,
        Grey(),
    ).optimise(
        np.full((280, 440, 3), 100, np.uint8),
        crops,
        grey=False,
        rng=np.random.default_rng(0),
        progress=lambda done, total: None,
    )
    assert int(made.rgb.max()) == 103, "half of six levels"
    first, second = (None if work.apart is None else work.apart[:, :1] for work in works)
    assert first is not None
    assert second is not None
    assert float(first.max()) == pytest.approx(0.5, abs=0.01) == float(second.max())
    inner = crops[1].box.left - crops[0].box.left, crops[0].box.width
    assert float(first[0, 0, 100, -1]) < 0.1, "it fades towards the edge of the crop"
    assert (made.rgb[100, crops[0].box.left + inner[0] + 30 : crops[0].box.right - 16, 0] == 103).all()


def test_a_crop_that_ended_early_is_not_asked_again(surrogate: Editor) -> None:
    asked: list[Budget | None] = []

    def enough(so_far: Rgb, _: object, after: Budget | None) -> bool:
        asked.append(after)
        return after is None

    rgb: Rgb = np.full((96, 96, 3), 100, dtype=np.uint8)
    crops = cropping.plan([Region(Box(32, 32, 64, 64), "x", 1.0, "x")], 96, 96, margin=32, work=768)
    made = Optimiser(
        Protect(method="encoder", iterations=4, stop_early=True, escalate=("strong",)), [surrogate], CPU
    ).optimise(
        rgb,
        crops,
        grey=False,
        rng=np.random.default_rng(0),
        progress=lambda done, total: None,
        early_stop=enough,
    )
    assert (made.rounds, made.iterations, asked) == ((1,), 2, [None])


def test_a_warm_start_is_the_perturbation_itself(surrogate: Editor) -> None:
    """No noise is added to it, so that a step of zero leaves it as it was."""

    class Still(IterativeMethod):
        stepper = staticmethod(
            lambda task, iterations: lambda gradient, iteration: torch.zeros_like(gradient)
        )

        def respond(
            self, surrogate: Editor, image: torch.Tensor, mask: torch.Tensor, draw: int
        ) -> torch.Tensor:
            return surrogate.inpaint(image, mask)

    start = task().project(torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0)))
    for warm in (True, False):
        proposal = Still().run(
            replace(task(), start=start, warm=warm),
            [surrogate],
            iterations=1,
            target="away",
            rng=np.random.default_rng(0),
            progress=lambda done, total: None,
        )
        assert torch.allclose(proposal.perturbation, start, atol=1e-6) is warm


@pytest.mark.parametrize("target", ["flat", "inverted"])
def test_a_target_is_approached(name: str, surrogate: Editor, target: str) -> None:
    """Either the edit comes nearer to the target picture, or its response does to the response to that."""
    work, method = task(), methods.get(name)
    if name == "baseline" and target == "inverted":
        pytest.skip("it has the flat target only")
    towards = target_picture(target, work.image)
    assert towards is not None
    picture = towards(work.image)
    mask = torch.from_numpy(work.regions[0])[None, None].float()

    def distance(change: torch.Tensor) -> float:
        with torch.no_grad():
            if isinstance(method, IterativeMethod):
                got = method.respond(surrogate, work.image + change, mask, 0)
                goal = method.goal(surrogate, picture, mask, 0)
            else:
                got, goal = surrogate.inpaint(work.image + change, mask), picture
        return float(masked_mse(got, goal, mask_at(mask, got, surrogate.multiple)))

    assert distance(run(name, surrogate, work, iterations=8, target=target)) < distance(
        torch.zeros_like(work.image)
    )


def test_optimising_over_attack_paths_breaks_the_edit_of_the_resized_picture_more() -> None:
    """On the embedded editor, with the same iterations and seed with and without the paths."""
    editor = inpaint.get("flux2-mini")
    rgb: Rgb = np.asarray(photo((400, 200)).resize((640, 320)))
    region = Region(Box(250, 120, 330, 200), "x", 1.0, "x")
    (crop,) = cropping.plan([region], 320, 640, margin=48, work=768)
    (whole,) = attack_paths.get("forge-whole").calls(region.plane(320, 640))

    def edited(picture: Rgb) -> torch.Tensor:
        given = given_pictures([picture], whole, CPU)
        with torch.inference_mode():
            return editor.inpaint(given, mask_of(whole, given))

    unchanged = edited(rgb)

    def effect(paths: Literal["all", "first"]) -> float:
        settings = Protect(iterations=2, margin_px=48, epsilon=6.4, paths=paths, stored_start=False)
        changed = (
            Optimiser(settings, [editor], CPU, through=[("iopaint", "forge-whole")])
            .optimise(
                rgb, [crop], grey=False, rng=np.random.default_rng(0), progress=lambda done, total: None
            )
            .rgb
        )
        mask = torch.from_numpy(whole.mask).float()
        return float((((edited(changed) - unchanged) ** 2) * mask).sum() / mask.sum())

    assert effect("all") > 1.5 * effect("first") > 0


@pytest.mark.parametrize("work_px", [768, 256])
def test_the_caller_keeps_budget_and_area_after_rounding(name: str, surrogate: Editor, work_px: int) -> None:
    """The perturbation of `optimise` is in whole levels, at the picture's own size and at a smaller one."""
    rgb: Rgb = np.asarray(photo((400, 300)))
    regions = [Region(Box(150, 100, 250, 180), "face", 1.0, "faces")]
    crops = cropping.plan(regions, 300, 400, margin=96, work=work_px)
    settings = Protect(method=name, iterations=2, margin_px=96, epsilon=6.4)
    before = rgb.copy()
    changed = (
        Optimiser(settings, [surrogate], CPU)
        .optimise(rgb, crops, grey=False, rng=np.random.default_rng(0), progress=lambda d, t: None)
        .rgb
    )
    assert np.array_equal(rgb, before)
    difference = np.abs(changed.astype(int) - rgb)
    assert 1 <= difference.max() <= 6
    outside = np.ones(rgb.shape[:2], dtype=bool)
    outside[crops[0].box.slices] = False
    assert outside.any()
    assert difference[outside].max() == 0


@pytest.mark.parametrize("work_px", [768, 256])
def test_a_region_kept_exact_is_untouched_at_its_own_pixels(surrogate: Editor, work_px: int) -> None:
    """A round region and one of another crop, at the picture's own size and at a smaller one."""
    rgb: Rgb = np.asarray(photo((400, 300)))
    rows, columns = np.ogrid[:80, :100]
    disc = ((rows - 40) / 40) ** 2 + ((columns - 50) / 50) ** 2 <= 1
    near = Region(Box(150, 100, 250, 180), "face", 1.0, "faces", disc)
    neighbour = Region(Box(310, 60, 380, 250), "logo", 1.0, "logos")
    crops = cropping.plan([near, neighbour], 300, 400, margin=96, work=work_px)
    changed = (
        Optimiser(
            Protect(method="encoder", iterations=1, margin_px=96, keep_region_exact=True), [surrogate], CPU
        )
        .optimise(rgb, crops, grey=False, rng=np.random.default_rng(0), progress=lambda d, t: None)
        .rgb
    )
    inside = near.plane(300, 400) | neighbour.plane(300, 400)
    difference = np.abs(changed.astype(int) - rgb).max(axis=2)
    assert difference[inside].max() == 0
    assert difference[masks.ring(inside)].mean() > 0.5


def test_a_cheating_method_cannot_exceed_the_budget(surrogate: Editor) -> None:
    class Cheat:
        def run(self, task: Task, *_: Any, **__: Any) -> Proposal:
            return Proposal(torch.ones_like(task.image), (torch.zeros(task.image.shape[2:]),), 1)

    rgb: Rgb = np.full((300, 300, 3), 100, dtype=np.uint8)
    crops = cropping.plan([Region(Box(100, 100, 150, 150), "x", 1.0, "x")], 300, 300, margin=32, work=768)
    changed = (
        Optimiser(Protect(epsilon=6.4, colour_share=1, flat_luma_share=1), [surrogate], CPU, Cheat())
        .optimise(rgb, crops, grey=False, rng=np.random.default_rng(0), progress=lambda d, t: None)
        .rgb
    )
    assert int(changed.max()) == 106
    assert (changed[:60] == 100).all()
