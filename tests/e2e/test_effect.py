"""The effect itself, on a real photograph with the default settings, from decoded files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.pictures import SAMPLES
from tests.support.sandbox import Sandbox

REGION = (70, 60, 160, 140)
SIZE = (224, 208)


@pytest.fixture(scope="module")
def protected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sandbox, dict[str, Any]]:
    """A cat's face under a mask, protected by `backfire protect` with all defaults."""
    sandbox = Sandbox(tmp_path_factory.mktemp("effect"))
    with Image.open(SAMPLES / "chelsea.png") as cat:
        cat.crop((100, 50, 324, 258)).save(sandbox.base / "cat.png")
    mask = Image.new("L", SIZE, 0)
    mask.paste(255, REGION)
    mask.save(sandbox.base / "cat.mask.png")
    result = sandbox.backfire("protect", "cat.png", "-o", "out.png", "--json", timeout=550)
    assert result.returncode == 0, result.stderr + result.stdout
    (receipt,) = json.loads(result.stdout)
    return sandbox, receipt


def verify(sandbox: Sandbox, name: str) -> tuple[int, dict[str, Any]]:
    result = sandbox.backfire("verify", name, "--original", "cat.png", "--json")
    receipt: dict[str, Any] = json.loads(result.stdout)
    return result.returncode, receipt


def rows(receipt: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["mask_kind"]: row for row in receipt["edits"] if row["path"] == "crop"}


def test_the_edit_breaks_and_benign_edits_do_not(protected: tuple[Sandbox, dict[str, Any]]) -> None:
    _, receipt = protected
    assert (receipt["verdict"], receipt["reasons"]) == ("protected", [])
    edits = rows(receipt)
    assert set(edits) == {"trigger", "dilated", "partial", "near", "far"}
    assert 1 - edits["trigger"]["ssim"] > 2 * (1 - edits["trigger"]["control_ssim"])
    assert edits["trigger"]["l1"] > 2 * edits["far"]["l1"]
    assert edits["far"]["ssim"] > 0.92
    assert receipt["max_change_levels"] <= 6
    assert receipt["psnr_db"] > 35
    assert receipt["iterations_made"] == receipt["iterations"]


def test_verify_says_the_same_of_the_file(protected: tuple[Sandbox, dict[str, Any]]) -> None:
    sandbox, receipt = protected
    code, again = verify(sandbox, "out.png")
    assert again["verdict"] == receipt["verdict"]
    assert (code == 0) == (receipt["verdict"] == "protected")
    assert [(row["mask_kind"], row["path"]) for row in again["edits"]] == [
        (row["mask_kind"], row["path"]) for row in receipt["edits"]
    ]
    for one, other in zip(again["edits"], receipt["edits"], strict=True):
        assert one["ssim"] == pytest.approx(other["ssim"], abs=1e-3), "the same edits"


def test_without_the_perturbation_it_is_failed(protected: tuple[Sandbox, dict[str, Any]]) -> None:
    sandbox, _ = protected
    (sandbox.base / "copy.png").write_bytes((sandbox.base / "cat.png").read_bytes())
    code, receipt = verify(sandbox, "copy.png")
    assert (code, receipt["verdict"]) == (3, "failed")


def test_noise_of_the_same_size_is_failed(protected: tuple[Sandbox, dict[str, Any]]) -> None:
    sandbox, _ = protected
    before = np.asarray(Image.open(sandbox.base / "cat.png").convert("RGB")).astype(int)
    after = np.asarray(Image.open(sandbox.base / "out.png").convert("RGB")).astype(int)
    rng = np.random.default_rng(0)
    noisy = before + np.abs(after - before) * rng.choice([-1, 1], size=before.shape)
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(sandbox.base / "noise.png")
    code, receipt = verify(sandbox, "noise.png")
    assert (code, receipt["verdict"]) == (3, "failed")


def test_nothing_is_overwritten(protected: tuple[Sandbox, dict[str, Any]]) -> None:
    sandbox, _ = protected
    again = sandbox.backfire("protect", "cat.png", "-o", "out.png")
    assert again.returncode == 2
    assert "exists already" in again.stderr


def test_sheet_and_receipt_lie_beside_the_result(protected: tuple[Sandbox, dict[str, Any]]) -> None:
    sandbox, receipt = protected
    assert json.loads((sandbox.base / "out.png.receipt.json").read_text()) == receipt
    with Image.open(sandbox.base / "out.png.sheet.jpg") as sheet:
        assert sheet.size[0] > 1000


def test_a_resized_copy_cannot_be_verified_and_says_why(protected: tuple[Sandbox, dict[str, Any]]) -> None:
    sandbox, _ = protected
    with Image.open(sandbox.base / "out.png") as picture:
        picture.resize((112, 104)).save(sandbox.base / "small.png")
    result = sandbox.backfire("verify", "small.png", "--original", "cat.png")
    assert result.returncode == 3
    assert "112x104" in result.stderr


def test_check_names_each_thing_that_is_ready(sandbox: Sandbox) -> None:
    result = sandbox.backfire("check", "--json")
    found = {row["subject"]: row for row in json.loads(result.stdout)}
    assert {"folder inbox", "device", "detector faces", "editor flux2-mini", "inotify queue"} <= set(found)
    assert found["editor flux2-mini"]["ok"]


@pytest.mark.parametrize(
    "module", ["tests.support.hasty", pytest.param("backfire.cli", marks=pytest.mark.slow)]
)
def test_demo_runs_the_daemon_over_samples(module: str, tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path, module)
    result = sandbox.backfire("demo", "show", timeout=550)
    assert result.returncode == 0, result.stderr + result.stdout
    top = tmp_path / "show"
    assert {p.name for p in (top / "outbox").rglob("[!.]*") if p.is_file()} == {
        "astronaut.png",
        "cat.png",
        "rocket.jpg",
    }
    assert "reports" in result.stdout
    if module == "backfire.cli":
        receipts = [json.loads(path.read_bytes()) for path in (top / "reports").rglob("*.json")]
        verdicts = [receipt["verdict"] for receipt in receipts]
        assert len(verdicts) == 3
        assert set(verdicts) <= {"protected", "weak"}
        assert "protected" in verdicts
    assert sandbox.backfire("demo", "show").returncode == 2, "a second run overwrites nothing"
