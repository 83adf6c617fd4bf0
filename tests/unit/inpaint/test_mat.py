"""MAT: its published shapes, the definitions of its layers, its files, and files that are refused."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from backfire.errors import ModelError
from backfire.inpaint.base import ModelEditor, mirror
from backfire.inpaint.mat import Config, MatEditor, MatNet, layers, network

TINY = Config(64, channels=12, heads=2, grid=16, windows=(4,) * 5, latent=16, budget=512, most=16)
NOISY = replace(TINY, noise=True)


def tiny(config: Config = TINY) -> MatNet:
    """A network with weights drawn by numpy, since torch may draw others in another version."""
    rng = np.random.default_rng(0)
    net = MatNet(config)
    state = net.state_dict()
    for name in sorted(state):
        if not name.endswith(("resample_filter", "attn_mask", "w_avg")):
            # The pictures stay within their range, because clamping would hide differences.
            scale = 0.1 if "toRGB" in name else 1.0
            state[name] = torch.from_numpy(np.asarray(scale * rng.standard_normal(state[name].shape))).float()
    net.load_state_dict(state)
    return net.eval().requires_grad_(False)


def published(net: MatNet) -> dict[str, Tensor]:
    """The network's state as files hold it: modulated weights have a leading axis of one."""
    modulated = {
        f"{name}.weight" for name, module in net.named_modules() if isinstance(module, layers.ModulatedConv)
    }
    return {name: value[None] if name in modulated else value for name, value in net.state_dict().items()}


@cache
def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in published(MatNet(config)).items()}


def inputs(side: int = 64, count: int = 1) -> tuple[Tensor, Tensor]:
    rows = torch.arange(side)
    image = torch.stack([torch.outer(rows, rows) % m / m for m in (7, 11, 13)])[None].float()
    mask = torch.zeros(1, 1, side, side)
    mask[..., side // 4 : side // 2, side // 4 : side // 2] = 1
    return image.expand(count, -1, -1, -1), mask.expand(count, -1, -1, -1)


@pytest.mark.parametrize(
    ("resolution", "noise", "parameters", "digest"),
    [
        (512, False, 61_562_507, "c2a11a106921815f06abd72bd55770d5ef518762ae69cdf719c5b4f0c40205fb"),
        (512, True, 61_562_518, "c0362558daff6e655315c72d3fc66dd40d55c5b21dbcdf97567ac570f5565898"),
        (256, True, 59_779_834, "3acf156c7eccd23b7b8830faf4c9786d8200849e4dc60afdf6607da347242666"),
    ],
)
def test_names_and_shapes_are_the_published_ones(
    resolution: int, noise: bool, parameters: int, digest: str
) -> None:
    """The digests and counts were taken from the authors' own network."""
    held = shapes(Config(resolution, noise=noise))
    listing = json.dumps(sorted((name, list(shape)) for name, shape in held.items()))
    assert hashlib.sha256(listing.encode()).hexdigest() == digest
    buffers = ("resample_filter", "attn_mask", "noise_const", "w_avg")
    assert sum(math.prod(shape) for name, shape in held.items() if not name.endswith(buffers)) == parameters


def test_the_forward_pass_gives_the_recorded_numbers() -> None:
    """They come from code whose full network equalled the authors' to 1e-6 of its range on random weights."""
    editor = MatEditor("tiny", "0" * 64, tiny())
    image, mask = inputs()
    keep = torch.outer(torch.arange(12), torch.arange(16)).reshape(1, 12, 4, 4) % 3 > 0
    second = torch.outer(torch.arange(16), torch.arange(256)).reshape(1, 16, 16, 16) % 3 > 0
    out = editor.net(image * 2 - 1, 1 - mask, network.Draw(editor.latent, keep, second))
    got = torch.stack([out[0, :, y, x] for y, x in ((16, 16), (20, 27), (31, 31))])
    assert torch.allclose(got, torch.tensor(PINNED), atol=1e-4), got


PINNED = [[-0.4090, -0.0896, -0.1678], [-0.4943, -0.4430, 0.2247], [-0.4565, -0.3516, 0.1801]]


def test_the_latent_is_that_of_iopaint() -> None:
    """IOPaint draws it by numpy.random.seed(240); numpy.random.randn(1, 512)."""
    latent = MatEditor("tiny", "0" * 64, tiny()).latent
    assert latent[0, :3].tolist() == pytest.approx([-0.58232733, -1.72710963, -0.69454013], abs=1e-6)


# -- definitions


def zero_inserted(x: Tensor) -> Tensor:
    out = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    out[..., ::2, ::2] = x
    return out


def filtered(x: Tensor, before: int, after: int) -> Tensor:
    """The low-pass filter by its definition, for each channel, with zeros around the picture."""
    kernel = layers.low_pass().to(x)[None, None]
    planes = F.conv2d(F.pad(x.flatten(0, 1)[:, None], (before, after) * 2), kernel)
    return planes.reshape(*x.shape[:2], *planes.shape[2:])


def test_enlarging_is_inserting_zeros_and_filtering() -> None:
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = 4 * filtered(zero_inserted(x), 2, 1)
    assert torch.allclose(layers.enlarge(x, layers.low_pass().double()), wanted)


def test_convolving_up_is_convolving_the_zero_inserted_picture() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 6, 8, dtype=torch.float64, generator=generator)
    weight = torch.randn(5, 3, 3, 3, dtype=torch.float64, generator=generator)
    wanted = 4 * filtered(F.conv2d(F.pad(zero_inserted(x), (2, 1, 2, 1)), weight), 1, 1)
    got = layers.convolve_up(x, weight, layers.low_pass().double())
    assert got.shape == (2, 5, 12, 16)
    assert torch.allclose(got, wanted)


def test_modulation_equals_a_kernel_for_each_picture() -> None:
    torch.manual_seed(0)
    conv = layers.ModulatedConv(4, 6, 3, 5).eval()
    x, style = torch.randn(3, 4, 8, 8), torch.randn(3, 5)
    out, factor = conv(x, style)
    assert factor is not None
    for i, scale in enumerate(conv.affine(style)):
        kernel = conv.weight * conv.gain * scale[:, None, None]
        kernel = kernel / (kernel.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        assert torch.allclose((out * factor)[i], F.conv2d(x[i], kernel, padding=1), atol=1e-5)


def test_partial_convolution_makes_up_for_the_unknown() -> None:
    torch.manual_seed(0)
    conv = layers.PartialConv(1, 1)
    torch.nn.init.ones_(conv.conv.weight)
    known = torch.ones(1, 1, 9, 9)
    known[..., :6] = 0
    out, seen = conv(torch.ones(1, 1, 9, 9) * known, known)
    assert torch.equal(seen[0, 0, 4], torch.tensor([0.0] * 5 + [1.0] * 4))
    assert torch.allclose(out[0, 0, 4, 5:8], out[0, 0, 4, 7].expand(3)), "a flat area stays flat to its edge"
    assert (out[0, 0, 4, :5] == 0).all()


def test_windows_are_split_and_joined() -> None:
    x = torch.arange(2 * 8 * 12 * 3).reshape(2, 8, 12, 3)
    cut = layers.to_windows(x, 4)
    assert cut.shape == (12, 16, 3)
    assert torch.equal(cut[1].reshape(4, 4, 3), x[0, :4, 4:8])
    assert torch.equal(layers.from_windows(cut, 4, 8, 12), x)


def test_there_is_no_attention_across_the_border_that_a_shift_moved_inside() -> None:
    bias = layers.seams(8, 8, 4, 2)
    assert bias.shape == (4, 16, 16)
    assert (bias[0] == 0).all(), "a window away from the border is whole"
    left, right = 0, 2  # columns 4 and 6 of the shifted grid; the latter was at the other border
    assert bias[1, left, right] == layers.BLOCKED
    assert bias[1, left, 1] == 0


def test_unknown_tokens_are_not_attended_to_until_known() -> None:
    torch.manual_seed(0)
    block = layers.TransformerBlock(12, 2, 8, 4, 0).eval().requires_grad_(False)
    x, known = torch.randn(1, 8, 8, 12), torch.zeros(1, 8, 8, 1)
    known[:, 0, 0] = 1
    other = x.clone()
    other[:, 1, 1] += 1
    out, seen = block(x, known)
    assert torch.equal(seen[0, :, :, 0], F.pad(torch.ones(4, 4), (0, 4, 0, 4)))
    changed = (block(other, known)[0] != out).any(dim=3)[0].nonzero()
    assert changed.tolist() == [[1, 1]], "an unknown token affects itself only, by its shortcut"
    assert not torch.equal(block(other, None)[0][0, 0, 0], block(x, None)[0][0, 0, 0])


# -- as an editor


@pytest.mark.parametrize(("size", "side"), [((64, 64), 64), ((100, 20), 128), ((3, 130), 192)])
def test_pictures_are_mirrored_out_to_a_square(size: tuple[int, int], side: int) -> None:
    class Recorder(ModelEditor):
        name, multiple, square = "recorder", 64, True

        def _fill(self, image: Tensor, mask: Tensor, generator: torch.Generator | None) -> Tensor:
            assert image.shape[2:] == mask.shape[2:] == (side, side)
            self.seen = image
            return image

    editor = Recorder("0" * 64)
    image = torch.rand(1, 3, *size)
    editor.inpaint(image, torch.zeros(1, 1, *size))
    wanted = np.pad(image[0, 0].numpy(), [(0, side - length) for length in size], mode="symmetric")
    assert np.array_equal(editor.seen[0, 0].numpy(), wanted)
    assert torch.equal(mirror(image, side, side), editor.seen)


def test_a_generator_draws_what_is_dropped() -> None:
    editor = MatEditor("tiny", "0" * 64, tiny())
    image, mask = inputs()
    first, second = (
        editor.inpaint(image, mask, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)
    )
    assert not torch.equal(first, second)
    assert torch.equal(editor.inpaint(image, mask), editor.inpaint(image, mask)), "constant without one"


def test_stored_noise_is_tiled_over_larger_pictures() -> None:
    image, mask = inputs(128)
    noisy, quiet = (MatEditor("tiny", "0" * 64, tiny(config)) for config in (NOISY, TINY))
    out = noisy.inpaint(image, mask)
    assert torch.equal(out, noisy.inpaint(image, mask))
    quiet.net.load_state_dict({k: v for k, v in noisy.net.state_dict().items() if "noise_" not in k})
    assert not torch.equal(out, quiet.inpaint(image, mask))


def _gradient(editor: MatEditor) -> tuple[Tensor, int]:
    """The gradient by the picture, and the bytes that the forward pass kept for it."""
    image, mask = inputs()
    image = image.clone().requires_grad_(True)
    kept = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = (editor.inpaint(image, mask) * mask).sum()
    (gradient,) = torch.autograd.grad(loss, image)
    return gradient, kept


def test_recomputing_blocks_saves_memory_and_changes_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    editor = MatEditor("tiny", "0" * 64, tiny())
    frugal, less = _gradient(editor)
    monkeypatch.setattr(network, "frugal", lambda block, *inputs: block(*inputs))
    plain, more = _gradient(editor)
    assert plain.abs().sum() > 0
    assert torch.allclose(frugal, plain, atol=1e-6)
    assert 3 * less < more


def test_mixed_precision_changes_an_edit_little_and_has_gradients() -> None:
    editor = MatEditor("tiny", "0" * 64, tiny())
    image, mask = inputs()
    wanted = editor.inpaint(image, mask)
    variable = image.clone().requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        got = editor.inpaint(variable, mask)
    assert got.dtype == torch.float32
    assert torch.allclose(got, wanted, atol=0.1)
    (gradient,) = torch.autograd.grad((got * mask).sum(), variable)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0


# -- files


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_state_dict_is_loaded(tmp_path: Path, suffix: str) -> None:
    net = tiny(NOISY)
    state = {name: value.contiguous() for name, value in published(net).items()}
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    editor = MatEditor.load("mine", path, config=NOISY)
    assert editor.name == "mine"
    assert editor.multiple == 64
    assert editor.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    editor.to("cpu")
    image, mask = inputs()
    wanted = MatEditor("", "", net).inpaint(image, mask)
    assert torch.allclose(editor.inpaint(image, mask), wanted, atol=1e-5)


def published_file(path: Path, config: Config, **changes: Tensor | None) -> Path:
    """A file with a network's names and shapes, small because all values of a tensor share one number."""
    state: dict[str, Any] = {name: torch.zeros(()).expand(shape) for name, shape in shapes(config).items()}
    state |= changes
    torch.save({name: value for name, value in state.items() if value is not None}, path)
    return path


@pytest.mark.parametrize(("resolution", "noise"), [(512, False), (512, True), (256, True)])
def test_resolution_and_noise_are_read_from_the_file(tmp_path: Path, resolution: int, noise: bool) -> None:
    config = Config(resolution, noise=noise)
    editor = MatEditor.load("mat", published_file(tmp_path / "w.pth", config))
    assert editor.net.config == config
    assert editor.multiple == resolution


class Trap:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return Path.touch, (Path("sprung"),)  # type: ignore[return-value]


def _pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"G_ema": Trap()}))


def _saved_trap(path: Path) -> None:
    torch.save({"weight": Trap()}, path)


def _truncated(path: Path) -> None:
    torch.save({"weight": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("snapshot.pkl", _pickled, "pickled snapshot.*load_network_pkl"),
        ("snapshot.pth", _pickled, "more than tensors.*load_network_pkl"),
        ("trap.pth", _saved_trap, "more than tensors.*load_network_pkl"),
        ("cut.pth", _truncated, "no whole file"),
        ("empty.pth", Path.touch, "no whole file"),
        ("noise.pth", lambda path: path.write_bytes(b"\x00\x01" * 999), "get it again"),
        ("noise.safetensors", lambda path: path.write_bytes(b"\x00\x01" * 999), "no whole safetensors"),
        ("empty.safetensors", Path.touch, "no whole safetensors"),
        ("list.pth", lambda path: torch.save([torch.zeros(1)], path), "got list"),
        ("numbers.pth", lambda path: torch.save({"lr": 1}, path), "other things than tensors"),
        (
            "bomb.pth",
            lambda path: torch.save({"x": torch.zeros(()).half().expand(1 << 40)}, path),
            "not MAT's",
        ),
        ("folder.pth", Path.mkdir, "cannot be read.*correct the path"),
        ("missing.pth", lambda path: None, "cannot be read.*correct the path"),
    ],
)
def test_other_files_are_refused_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, write: Callable[[Path], Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    write(path)
    with pytest.raises(ModelError, match=message) as caught:
        MatEditor.load("mine", path)
    assert f"editor mine: weights {path}" in caught.value.message
    assert not caught.value.retryable
    assert not Path("sprung").exists(), "nothing in the file ran"


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("mapping.w_avg", None, r"mapping\.w_avg: got nothing, expected \(16,\)"),
        ("mapping.w_avg", torch.zeros(3), r"mapping\.w_avg: got \(3,\), expected \(16,\)"),
        ("a.weight", torch.zeros(2), r"a\.weight: got \(2,\), expected nothing"),
    ],
)
def test_the_first_tensor_that_does_not_fit_is_named(
    tmp_path: Path, key: str, value: Tensor | None, told: str
) -> None:
    path = published_file(tmp_path / "w.pth", TINY, **{key: value})
    with pytest.raises(ModelError, match=f"1 names or shapes differ, the first at {told}"):
        MatEditor.load("mat", path, config=TINY)


def test_another_resolution_is_named(tmp_path: Path) -> None:
    torch.save({"synthesis.enc.EncConv_Block_1024x1024.conv0.bias": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match="got a network for 1024 pixels, expected one for 256 or 512"):
        MatEditor.load("mat", tmp_path / "w.pth")
