"""One-file models are loaded only if they are trusted and unchanged, and their results are checked."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backfire.errors import ConfigError, ModelError
from backfire.inpaint.options import ScriptedOptions
from backfire.inpaint.scripted import ScriptedEditor
from tests.support import scripts


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return scripts.save(tmp_path_factory.mktemp("scripts") / "tiny")


@pytest.fixture
def unloadable(tmp_path: Path) -> Path:
    """A file that is no model, of which loading it would be the first error."""
    path = tmp_path / "unloadable.pt"
    path.write_bytes(b"not a model")
    return path


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        ScriptedEditor.load("mine", path, ScriptedOptions(**options))
    assert not caught.value.retryable
    return caught.value.message


def inputs() -> tuple[Tensor, Tensor]:
    mask = torch.zeros(1, 1, 32, 40)
    mask[..., 8:16, 8:16] = 1
    return torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(1)), mask


@pytest.mark.parametrize("trusted", [{}, {"trust": True}, {"sha256": "0" * 64}, {"trust": "yes"}])
def test_without_trust_and_digest_nothing_is_loaded(unloadable: Path, trusted: dict[str, Any]) -> None:
    message = refusal(unloadable, **trusted)
    assert "such a file is code" in message
    assert "set trust: true and sha256" in message


def test_another_digest_is_refused_before_loading(unloadable: Path) -> None:
    message = refusal(unloadable, sha256="0" * 64, trust=True)
    digest = hashlib.sha256(unloadable.read_bytes()).hexdigest()
    assert f"has SHA-256 {digest}, expected {'0' * 64}" in message


def test_the_digest_may_be_written_in_capitals(script: tuple[Path, str]) -> None:
    path, sha256 = script
    assert (
        ScriptedEditor.load("mine", path, ScriptedOptions(sha256=sha256.upper(), trust=True)).weights_sha256
        == sha256
    )


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path / "absent.pt", sha256="0" * 64, trust=True)


@pytest.mark.parametrize("content", ["text", "truncated", "pickle"])
def test_other_files_are_refused(script: tuple[Path, str], tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.pt"
    if content == "pickle":
        torch.save(nn.Linear(2, 2).state_dict(), path)
    else:
        path.write_bytes(b"not a model" if content == "text" else script[0].read_bytes()[:-100])
    message = refusal(path, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), trust=True)
    assert "neither TorchScript nor an exported program" in message


def test_the_fill_is_the_models_and_its_weights_are_frozen(script: tuple[Path, str]) -> None:
    path, sha256 = script
    editor = ScriptedEditor.load("mine", path, ScriptedOptions(sha256=sha256, trust=True))
    torch.manual_seed(0)
    image, mask = inputs()
    expected = scripts.Tiny()(image * (1 - mask), mask)
    hole = (mask > 0).expand_as(image)
    out = editor.inpaint(image, mask)
    assert not out.requires_grad
    assert torch.allclose(out[hole], expected[hole], atol=1e-6)


class Fixed(nn.Module):
    """Takes pictures of one size only, like many models with a reshape."""

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        return image.reshape(1, 3, 64, 64)


class Doubled(nn.Module):
    """Returns a picture of twice the size."""

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        return image.repeat(1, 1, 2, 2)


class Pair(nn.Module):
    """Returns more than the picture."""

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return image, mask


@pytest.mark.parametrize("said", ["CUDA error: unspecified launch failure", "CUDA out of memory. Tried"])
def test_a_failure_of_the_device_is_not_taken_for_one_of_the_model(said: str) -> None:
    def failing(*_: Tensor) -> Tensor:
        raise RuntimeError(said)

    editor = ScriptedEditor("mine", "0" * 64, lambda device: failing, 8)
    with pytest.raises(RuntimeError, match=said):
        editor.inpaint(*inputs())


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Fixed(), "failed on an image of (1, 3, 32, 40)"),
        (Doubled(), "returned (1, 3, 64, 80), expected a picture of (1, 3, 32, 40)"),
        (Pair(), "returned tuple, expected a picture"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_result_of_the_wrong_kind_is_an_error_that_names_the_model(
    tmp_path: Path, module: nn.Module, message: str
) -> None:
    path, sha256 = scripts.save(tmp_path / "model", module=module)
    editor = ScriptedEditor.load("mine", path, ScriptedOptions(sha256=sha256, trust=True))
    with pytest.raises(ModelError) as caught:
        editor.inpaint(*inputs())
    assert caught.value.message.startswith("editor mine: ")
    assert message in caught.value.message
    assert caught.value.retryable is isinstance(module, Fixed), "another size may do"


def test_an_impossible_multiple_is_named(script: tuple[Path, str]) -> None:
    path, sha256 = script
    with pytest.raises(ConfigError, match="multiple: got 0, expected whole pixels from 1"):
        ScriptedEditor.load("mine", path, ScriptedOptions(sha256=sha256, trust=True, multiple=0))
