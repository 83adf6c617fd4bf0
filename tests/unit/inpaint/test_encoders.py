"""Published autoencoders: which forms of their files are read, and what is refused."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from backfire import inpaint, weights
from backfire.errors import Code, ModelError
from backfire.inpaint import encoders
from backfire.inpaint.base import mirror
from backfire.inpaint.encoders import EncoderEditor, PairInpainter
from backfire.inpaint.latent import Decoder, Encoder, InpaintNet
from tests.support import flows
from tests.support.pictures import SAMPLES


def pair(folder: Path, *, latent: int = 4, pooled: bool = True) -> list[Path]:
    """Encoder and decoder files with random weights, named and numbered as TAESD's are."""
    torch.manual_seed(0)
    encoder = Encoder(16, (1, 2, 1, 1), latent, pooled=pooled)
    decoder = Decoder(16, (1, 1, 2, 1), latent, pooled=pooled)
    folder.mkdir(exist_ok=True)
    paths = [folder / "toy_encoder.pth", folder / "toy_decoder.pth"]
    for module, path, first in ((encoder, paths[0], 0), (decoder, paths[1], 1)):
        state = {}
        for key, value in module.state_dict().items():
            _, index, rest = key.split(".", 2)
            state[f"{int(index) + first}.{rest}"] = value.half()
        torch.save(state, path)
    return paths


def image(size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.zeros(1, 1, size, size)
    mask[..., 16:40, 16:40] = 1
    return torch.rand(1, 3, size, size, generator=generator), mask


@pytest.mark.parametrize("pooled", [False, True])
def test_a_pair_is_read_in_either_order_or_from_its_folder(tmp_path: Path, pooled: bool) -> None:
    encoder, decoder = pair(tmp_path / "toy", pooled=pooled)
    found = [
        EncoderEditor.load("toy", path) for path in ([encoder, decoder], [decoder, encoder], tmp_path / "toy")
    ]
    picture, mask = image()
    out = [editor.inpaint(picture, mask) for editor in found]
    assert torch.equal(out[0], out[1])
    assert torch.equal(out[0], out[2])
    assert found[0].encode(picture, mask).shape == (1, 4, 8, 8)
    assert found[0].weights_sha256 == found[2].weights_sha256
    assert (found[0].multiple, found[0].blind) == (8, False)


def test_the_digest_is_that_of_both_files(tmp_path: Path) -> None:
    paths = pair(tmp_path)
    before = EncoderEditor.load("toy", paths).weights_sha256
    state = torch.load(paths[1], weights_only=True)
    torch.save({**state, "1.bias": state["1.bias"] + 1}, paths[1])
    assert EncoderEditor.load("toy", paths).weights_sha256 != before


def test_a_folder_of_diffusers_tiny(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(16,) * 4,
        decoder_block_out_channels=(16,) * 4,
        num_encoder_blocks=(1, 2, 1, 1),
        num_decoder_blocks=(1, 1, 2, 1),
        latent_channels=4,
    ).eval()
    theirs.save_pretrained(tmp_path)
    ours = EncoderEditor.load("toy", tmp_path)
    picture, mask = image()
    with torch.no_grad():
        latents = theirs.encode(picture * 2 - 1).latents
        want = (theirs.decode(latents).sample / 2 + 0.5).clamp(0, 1)
        assert torch.allclose(ours.encode(picture, mask), latents, atol=1e-5)
        assert torch.allclose(ours.inpaint(picture, torch.ones_like(mask)), want, atol=1e-5)


def test_a_folder_of_diffusers_kl(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
    ).eval()
    theirs.save_pretrained(tmp_path)
    ours = EncoderEditor.load("toy", tmp_path)
    picture, mask = image()
    with torch.no_grad():
        latents = theirs.encode(picture * 2 - 1).latent_dist.mode()
        want = (theirs.decode(latents).sample / 2 + 0.5).clamp(0, 1)
        assert torch.allclose(ours.inpaint(picture, torch.ones_like(mask)), want, atol=1e-5)
    assert ours.multiple == 2
    picture.requires_grad_(True)
    (gradient,) = torch.autograd.grad(ours.encode(picture, mask).square().sum(), picture)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0


def published(kind: str) -> Any:
    """An autoencoder of the class and shape that a published pipeline has, tiny, on random weights."""
    torch.manual_seed(0)
    make = {
        "flux1, sd3, z-image": flows.vae,
        "flux2": flows.flux2_vae,
        "qwen-image": flows.qwen_vae,
    }[kind]
    return make().eval()


@pytest.mark.parametrize(
    ("kind", "channels", "multiple"),
    [("flux1, sd3, z-image", 16, 8), ("flux2", 128, 16), ("qwen-image", 16, 8)],
)
def test_autoencoders_of_the_latest_pipelines(
    tmp_path: Path, kind: str, channels: int, multiple: int
) -> None:
    theirs = published(kind)
    theirs.save_pretrained(tmp_path)
    ours = EncoderEditor.load("toy", tmp_path)
    ours.to("cpu")
    picture = torch.rand(2, 3, 61, 83, generator=torch.Generator().manual_seed(2))
    mask = torch.zeros(2, 1, 61, 83)
    mask[..., 8:30, 8:30] = 1
    cells = -(-61 // multiple), -(-83 // multiple)
    latents = ours.encode(picture, mask)
    assert latents.shape == (2, channels, *cells)
    with torch.no_grad():
        padded = mirror(picture, cells[0] * multiple, cells[1] * multiple) * 2 - 1
        padded = padded[:, :, None] if kind == "qwen-image" else padded
        decoded = theirs.decode(theirs.encode(padded).latent_dist.mode()).sample
        decoded = (decoded[:, :, 0] if kind == "qwen-image" else decoded) / 2 + 0.5
        want = torch.where(mask > 0, decoded[..., :61, :83].clamp(0, 1), picture)
        # Processors add up in different orders; a level of 255 is 4e-3.
        assert torch.allclose(ours.inpaint(picture, mask), want, atol=1e-4)
    variable = picture.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(ours.encode(variable, mask).square().sum(), variable)
    step = 0.01 / float(gradient.norm()) * gradient
    with torch.no_grad():
        up, down = (ours.encode(picture + sign * step, mask).double().square().sum() for sign in (1, -1))
    assert float(up - down) / 0.02 == pytest.approx(float(gradient.norm()), rel=0.05)


def test_latents_are_normalised_as_the_pipelines_do(tmp_path: Path) -> None:
    theirs = published("flux1, sd3, z-image")
    theirs.save_pretrained(tmp_path)
    picture, mask = image()
    with torch.no_grad():
        raw = theirs.encode(picture * 2 - 1).latent_dist.mode()
        got = EncoderEditor.load("toy", tmp_path).encode(picture, mask)
    assert torch.allclose(got, (raw - 0.1) * 1.7, atol=1e-5)


def test_an_autoencoder_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    published("flux2").save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    del state["bn.running_mean"]
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack bn\.running_mean; fetch"):
        EncoderEditor.load("toy", tmp_path)


def test_students_and_declared_pairs_are_filled_by_the_net_of_the_default_editor(tmp_path: Path) -> None:
    mini, micro = (inpaint.get(name) for name in ("flux2-mini", "flux2-micro"))
    declared = PairInpainter.load("toy", pair(tmp_path, latent=32))
    assert isinstance(mini, PairInpainter)
    assert isinstance(micro, PairInpainter)
    for other in (micro, declared):
        for got, want in zip(other.net.parameters(), mini.net.parameters(), strict=True):
            assert torch.equal(got, want)
    assert sum(each.numel() for each in micro.encoder.parameters()) < 0.6 * sum(
        each.numel() for each in mini.encoder.parameters()
    )
    inside = weights.inside()
    both = inside["flux2-micro.safetensors"] + inside["flux2-mini.safetensors"]
    assert micro.weights_sha256 == hashlib.sha256(both.encode()).hexdigest()


def test_recomputing_activations_changes_no_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = EncoderEditor.load("toy", pair(tmp_path))
    picture, mask = image()
    picture.requires_grad_(True)
    gradients: list[torch.Tensor] = []
    for pixels in (1, 1 << 40):
        monkeypatch.setattr(encoders, "FRUGAL_PIXELS", pixels)
        with torch.autocast("cpu", torch.bfloat16):
            out = editor.inpaint(picture, mask)
        gradients += torch.autograd.grad((out * mask).square().sum(), picture)
    assert torch.equal(gradients[0], gradients[1])


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_that_is_code_is_refused_and_not_run(tmp_path: Path) -> None:
    paths = pair(tmp_path)
    paths[0].write_bytes(pickle.dumps({"layers.0.weight": Bomb(tmp_path / "exploded")}))
    with pytest.raises(ModelError, match="save its state dict as safetensors"):
        EncoderEditor.load("toy", paths)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda paths: paths[0].unlink(), "No such file"),
        (lambda paths: paths[0].write_bytes(b"PK\x03\x04 not weights"), "cannot be loaded"),
        (lambda paths: paths[0].write_bytes(paths[0].read_bytes()[:2000]), "cannot be loaded"),
        (lambda paths: torch.save([1, 2], paths[0]), "cannot be loaded"),
        (lambda paths: torch.save({"model.0.weight": torch.zeros(3)}, paths[0]), "is no part of"),
        (lambda paths: paths[0].write_bytes(paths[1].read_bytes()), "of one latent space"),
    ],
)
def test_missing_damaged_and_foreign_files_are_named(tmp_path: Path, spoil: object, says: str) -> None:
    paths = pair(tmp_path)
    spoil(paths)  # type: ignore[operator]
    with pytest.raises(ModelError, match=says) as caught:
        EncoderEditor.load("toy", paths)
    assert caught.value.code is Code.MODEL
    assert not caught.value.retryable
    assert "editor toy" in caught.value.message


def test_an_encoder_and_a_decoder_of_different_latent_spaces_are_refused(tmp_path: Path) -> None:
    encoder, _ = pair(tmp_path / "a")
    _, decoder = pair(tmp_path / "b", latent=8)
    with pytest.raises(ModelError, match="one latent space"):
        EncoderEditor.load("toy", [encoder, decoder])


def test_a_folder_without_a_pair_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("hello")
    with pytest.raises(ModelError, match=r"got readme\.txt, expected one"):
        EncoderEditor.load("toy", tmp_path)


def test_an_inpainting_net_on_a_pair(tmp_path: Path) -> None:
    net = InpaintNet(4, (32, 32))
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    editor = PairInpainter.load("toy", [*pair(tmp_path / "pair"), tmp_path / "net.safetensors"])
    picture, mask = image()
    assert editor.blind
    assert not torch.equal(editor.inpaint(picture, mask), picture)
    with pytest.raises(ModelError, match="fills 4 channels at 1/8, the autoencoder has 8"):
        PairInpainter.load("toy", [*pair(tmp_path / "other", latent=8), tmp_path / "net.safetensors"])
    with pytest.raises(ModelError, match="is no inpainting net"):
        PairInpainter.load("toy", [*pair(tmp_path / "pair"), tmp_path / "pair" / "toy_encoder.pth"])


def test_without_an_inpainting_net_the_one_of_the_package_is_used(tmp_path: Path) -> None:
    files = pair(tmp_path / "pair", latent=32)
    found = [PairInpainter.load("toy", paths) for paths in ([tmp_path / "pair"], files)]
    picture, mask = image()
    first, second = (editor.inpaint(picture, mask) for editor in found)
    assert torch.equal(first, second)
    assert not torch.equal(first, picture)
    with pytest.raises(ModelError, match="fills 32 channels at 1/8, the autoencoder has 4"):
        PairInpainter.load("toy", pair(tmp_path / "other"))
    with pytest.raises(ModelError, match="is one file, expected an autoencoder"):
        PairInpainter.load("toy", files[:1])
    with pytest.raises(ModelError, match="absent: is not there, expected an autoencoder"):
        PairInpainter.load("toy", [tmp_path / "absent"])
    with pytest.raises(ModelError, match="has 2 files beside it, expected the net alone"):
        PairInpainter.load("toy", [tmp_path / "pair", *files])


@pytest.mark.shared
def test_taef2_renders_a_photograph(shared: Path) -> None:
    editor = EncoderEditor.load("taef2", shared / "weights")
    with Image.open(SAMPLES / "chelsea.png") as cat:
        pixels = np.asarray(cat.convert("RGB").crop((100, 50, 228, 178)))
    picture = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        got = editor.inpaint(picture, torch.ones(1, 1, 128, 128))
        latents = editor.encode(picture, torch.ones(1, 1, 128, 128))
    assert latents.shape == (1, 32, 16, 16)
    assert -10 * torch.log10(((got - picture) ** 2).mean()) > 28
