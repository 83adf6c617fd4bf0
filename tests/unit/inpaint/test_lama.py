"""LaMa: its results, its files in every packing, and files that are refused.

The forward pass was compared with the original code once (docs/guides/editors.md). The numbers here hold it
to that result, since the original code is not at hand.
"""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from backfire.errors import ModelError
from backfire.inpaint.lama import BIG, MINI, Config, Generator, LamaEditor

PINNED = [  # three channels at each of three pixels
    [0.93047, 0.11919, 0.46098],
    [0.79388, 0.83465, 0.93491],
    [0.71513, 0.21998, 0.23423],
]
PINNED_MEAN, PINNED_STD = 0.5830, 0.2278
TINY = Config(base=8, blocks=2)


def seeded(config: Config = TINY) -> Generator:
    """A network whose parameters and statistics are all drawn, in the order of their names, from one seed."""
    net = Generator(config).eval()
    rng = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, value in sorted(net.state_dict().items()):
            if not value.is_floating_point():
                continue
            drawn = torch.rand(value.shape, generator=rng)
            if value.ndim == 4:
                drawn = (drawn - 0.5) * 4 / value[0].numel() ** 0.5
            elif name.endswith("running_var") or name.endswith("weight"):
                drawn = drawn + 0.5
            value.copy_(drawn)
    return net


def picture(height: int = 64, width: int = 88) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(8)
    image = torch.rand(1, 3, height, width, generator=rng)
    mask = torch.zeros(1, 1, height, width)
    mask[..., 16:40, 24:56] = 1
    return image, mask


def test_big_lama_has_the_published_size_and_names() -> None:
    with torch.device("meta"):
        net = Generator(BIG)
    assert sum(p.numel() for p in net.parameters()) == 50_975_875
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    assert len(shapes) == 989
    expected = {
        "model.1.ffc.convl2l.weight": (64, 4, 7, 7),
        "model.1.bn_l.running_var": (64,),
        "model.4.ffc.convl2g.weight": (384, 256, 3, 3),
        "model.5.conv1.ffc.convg2l.weight": (128, 384, 3, 3),
        "model.5.conv1.ffc.convg2g.conv1.0.weight": (192, 384, 1, 1),
        "model.5.conv1.ffc.convg2g.conv1.1.weight": (192,),
        "model.22.conv2.ffc.convg2g.fu.conv_layer.weight": (384, 384, 1, 1),
        "model.22.conv2.ffc.convg2g.fu.bn.bias": (384,),
        "model.22.conv2.ffc.convg2g.conv2.weight": (384, 192, 1, 1),
        "model.22.conv2.bn_g.num_batches_tracked": (),
        "model.24.weight": (512, 256, 3, 3),
        "model.31.running_mean": (64,),
        "model.34.weight": (3, 64, 7, 7),
    }
    assert expected.items() <= shapes.items()


@pytest.mark.parametrize("config", [BIG, MINI, TINY, Config(8, 2, 3, 0.5), Config(24, 4, 1, 0.7)])
def test_the_configuration_is_read_off_the_shapes(config: Config) -> None:
    with torch.device("meta"):
        state = Generator(config).state_dict()
        read = Config.of(state)
        assert read.deep == config.deep
        assert {k: v.shape for k, v in Generator(read).state_dict().items()} == {
            k: v.shape for k, v in state.items()
        }


def test_the_forward_pass_gives_the_recorded_numbers() -> None:
    image, mask = picture()
    with torch.inference_mode():
        out = seeded()(torch.cat([image * (1 - mask), mask], dim=1))
    probes = out[0, :, [5, 30, 60], [7, 40, 80]]
    assert torch.allclose(probes, torch.tensor(PINNED), atol=2e-4), probes.tolist()
    assert float(out.mean()) == pytest.approx(PINNED_MEAN, abs=2e-4)
    assert float(out.std()) == pytest.approx(PINNED_STD, abs=2e-4)


def test_bfloat16_stays_close_to_float32() -> None:
    image, mask = picture()
    image.requires_grad_(True)
    editor = LamaEditor("x", "", seeded())
    exact = editor.inpaint(image, mask)
    with torch.autocast("cpu", torch.bfloat16):
        quick = editor.inpaint(image, mask)
        (gradient,) = torch.autograd.grad((quick * mask).sum(), image)
    assert quick.dtype == torch.float32
    assert float((quick - exact).detach().abs().mean()) < 0.01
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0


def test_recomputed_blocks_give_the_same_gradient() -> None:
    image, mask = picture()
    editor = LamaEditor("x", "", seeded())

    def gradient() -> Tensor:
        leaf = image.clone().requires_grad_(True)
        return torch.autograd.grad(editor.inpaint(leaf, mask).square().sum(), leaf)[0]

    kept = gradient()
    editor.net.kept_max = 0
    assert torch.equal(gradient(), kept)


def test_odd_sizes_are_mirrored_as_iopaint_does() -> None:
    image, mask = picture(61, 83)
    net = seeded()
    wide = torch.cat([image, image.flip(3)[..., :5]], dim=3)
    wide = torch.cat([wide, wide.flip(2)[:, :, :3]], dim=2)
    hole = torch.nn.functional.pad(mask, (0, 5, 0, 3))
    with torch.inference_mode():
        out = LamaEditor("x", "", net).inpaint(image, mask)
        direct = net(torch.cat([wide * (1 - hole), hole], dim=1))[:, :, :61, :83]
    assert torch.equal(out, torch.where(mask > 0.5, direct, image))


class Trainer(nn.Module):
    """Nests the generator like the original trainer and its export: `model.generator.model.1...`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.generator = net

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        filled = self.generator(torch.cat([image * (1 - mask), mask], dim=1))
        out: Tensor = mask * filled + (1 - mask) * image
        return out


class Export(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        out: Tensor = self.model(image, mask)
        return out


class Callback:
    """Stands for a class of a library that is not installed, as Lightning checkpoints hold them."""

    def __init__(self) -> None:
        self.best = 0.5


def lightning(net: Generator, path: Path) -> None:
    state = {f"generator.{k}": v for k, v in net.state_dict().items()}
    other = {f"discriminator.{k}": torch.zeros_like(v) for k, v in net.state_dict().items()}
    torch.save(
        {
            "epoch": 3,
            "state_dict": {**other, **state},
            "callbacks": {Callback: Callback()},
            "hyper_parameters": defaultdict(int, seed=3),
            "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
        },
        path,
    )


def torchscript(net: Generator, path: Path) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing is deprecated; the published file is a trace
        traced: Any = torch.jit.trace(  # type: ignore[no-untyped-call]
            Export(Trainer(net)), picture(), check_trace=False
        )
    traced.save(str(path))


def half(net: Generator, path: Path) -> None:
    save_file({k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}, path)


def bare(net: Generator, path: Path) -> None:
    torch.save(net.state_dict(), path)


def legacy(net: Generator, path: Path) -> None:
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("write", [lightning, torchscript, bare, legacy])
def test_every_packing_gives_the_same_editor(write: Any, tmp_path: Path) -> None:
    net = seeded()
    write(net, tmp_path / "weights")
    editor = LamaEditor.load("big", tmp_path / "weights")
    assert editor.name == "big"
    assert editor.net.config == TINY
    assert len(editor.weights_sha256) == 64
    image, mask = picture()
    expected = torch.where(mask > 0.5, net(torch.cat([image * (1 - mask), mask], dim=1)), image)
    assert torch.equal(editor.inpaint(image, mask), expected)


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    half(seeded(), tmp_path / "weights")
    net = LamaEditor.load("mini", tmp_path / "weights").net
    assert {p.dtype for p in net.parameters()} == {torch.float32}


class Bomb:
    """Pickles to a call of `open` that leaves a file behind if it is made."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def test_nothing_in_a_file_runs(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    path = tmp_path / "weights"
    state = {f"generator.{k}": v for k, v in seeded().state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": Bomb(trace)}, path)
    editor = LamaEditor.load("x", path)  # its tensors are good
    assert editor.net.config == TINY
    path.write_bytes(pickle.dumps({"state_dict": Bomb(trace)}))
    with pytest.raises(ModelError, match="cannot be loaded"):
        LamaEditor.load("x", path)
    assert not trace.exists()


def damaged(path: Path) -> None:
    bare(seeded(), path)
    path.write_bytes(path.read_bytes()[:-5000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def noise(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 40)


def nothing(path: Path) -> None:
    torch.save({"epoch": 3}, path)


def deflated(path: Path) -> None:
    data = io.BytesIO()
    torch.save({"x": torch.zeros(10)}, data)
    with zipfile.ZipFile(data) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for record in source.infolist():
            target.writestr(record.filename, source.read(record))


def without_a_layer(path: Path) -> None:
    state = seeded().state_dict()
    del state["model.6.conv2.ffc.convg2g.conv2.weight"]
    save_file(state, path)


def another_network(path: Path) -> None:
    save_file({"encoder.weight": torch.zeros(3)}, path)


def missing(path: Path) -> None:
    pass


def a_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (missing, "No such file"),
        (a_folder, "Is a directory"),
        (empty, "cannot be loaded"),
        (noise, "cannot be loaded"),
        (damaged, "cannot be loaded"),
        (deflated, "uncompressed"),
        (nothing, "no named tensors"),
        (without_a_layer, "are not LaMa's .*conv2.weight"),
        (another_network, "are not LaMa's .*big-lama.pt"),
    ],
)
def test_other_files_are_refused_for_good(write: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    write(path)
    with pytest.raises(ModelError, match=said) as caught:
        LamaEditor.load("mine", path)
    assert not caught.value.retryable
    assert str(path) in caught.value.message
    assert "mine" in caught.value.message
