"""The effect of the protection: a real photograph, fewer iterations than usual, edits of the decoded file."""

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
    """A cat's face under a mask, protected by `backfire protect` with four tenths of the iterations."""
    sandbox = Sandbox(tmp_path_factory.mktemp("effect"))
    with Image.open(SAMPLES / "chelsea.png") as cat:
        cat.crop((100, 50, 324, 258)).save(sandbox.base / "cat.png")
    mask = Image.new("L", SIZE, 0)
    mask.paste(255, REGION)
    mask.save(sandbox.base / "cat.mask.png")
    sandbox.configure(protect={"iterations": 40})
    result = sandbox.backfire(
        "protect", "cat.png", "-o", "out.png", "--json", "-c", "config.yaml", timeout=550
    )
    assert result.returncode == 0, result.stderr + result.stdout
    (receipt,) = json.loads(result.stdout)
    return sandbox, receipt


def verify(sandbox: Sandbox, name: str, *options: str) -> tuple[int, dict[str, Any]]:
    result = sandbox.backfire("verify", name, "--original", "cat.png", "--json", *options)
    receipt: dict[str, Any] = json.loads(result.stdout)
    return result.returncode, receipt


def rows(receipt: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["mask_kind"]: row for row in of_surrogate(receipt) if row["path"] == "iopaint"}


def of_surrogate(receipt: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in receipt["edits"] if not row["held_out"]]


def test_the_edit_breaks_and_benign_edits_do_not(protected: tuple[Sandbox, dict[str, Any]]) -> None:
    _, receipt = protected
    edits = rows(receipt)
    tools = {row["path"]: row for row in of_surrogate(receipt) if row["mask_kind"] == "trigger"}
    assert set(tools) == {"iopaint", "comfyui-stitch-512", "forge-whole", "forge-masked"}
    for row in tools.values():
        assert row["ssim"] < 0.85
        assert row["l1"] > 0.05
        assert row["visible"] > 0.5, "a person sees another edit over half of the region"
    assert edits["near"]["ssim"] > 0.85
    assert set(edits) == {"trigger", "dilated", "partial", "near", "far"}
    assert 1 - edits["trigger"]["ssim"] > 2 * (1 - edits["trigger"]["control_ssim"])
    assert edits["trigger"]["l1"] > 2 * edits["far"]["l1"]
    assert edits["far"]["ssim"] > 0.92
    assert receipt["max_change_levels"] <= 12
    assert receipt["psnr_db"] > 34
    assert receipt["iterations_made"] == receipt["iterations"]


def test_verify_needs_nothing_but_the_file_and_says_the_same(
    protected: tuple[Sandbox, dict[str, Any]],
) -> None:
    """The receipt beside it names the original and its mask; the same edits are replayed."""
    sandbox, receipt = protected
    result = sandbox.backfire("verify", "out.png")
    assert result.returncode == (0 if receipt["verdict"] == "protected" else 3), result.stderr
    lines = [
        line
        for line in result.stdout.splitlines()
        if line.endswith(("  met", "  missed", "  breaks", "  works"))
    ]
    found = [float(next(cell for cell in line.split() if "." in cell)) for line in lines]
    assert found == pytest.approx([row["ssim"] for row in receipt["edits"]], abs=2e-3)


@pytest.fixture(scope="module")
def in_one_tool(protected: tuple[Sandbox, dict[str, Any]]) -> str:
    """A configuration with one tool, for pictures that every tool edits nearly like the original."""
    one = {"folders": {"inbox": "inbox"}, "verify": {"paths": ["iopaint"], "held_out": []}}
    (protected[0].base / "one.yaml").write_text(json.dumps(one))
    return "one.yaml"


def test_the_picture_without_the_perturbation_is_failed(
    protected: tuple[Sandbox, dict[str, Any]], in_one_tool: str
) -> None:
    sandbox, _ = protected
    (sandbox.base / "copy.png").write_bytes((sandbox.base / "cat.png").read_bytes())
    code, receipt = verify(sandbox, "copy.png", "-c", in_one_tool)
    assert (code, receipt["verdict"]) == (3, "failed")


def test_noise_of_the_same_size_is_failed(
    protected: tuple[Sandbox, dict[str, Any]], in_one_tool: str
) -> None:
    sandbox, _ = protected
    before = np.asarray(Image.open(sandbox.base / "cat.png").convert("RGB")).astype(int)
    after = np.asarray(Image.open(sandbox.base / "out.png").convert("RGB")).astype(int)
    rng = np.random.default_rng(0)
    noisy = before + np.abs(after - before) * rng.choice([-1, 1], size=before.shape)
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(sandbox.base / "noise.png")
    code, receipt = verify(sandbox, "noise.png", "-c", in_one_tool)
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
    assert result.returncode == 2
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
    told = [line for line in result.stderr.splitlines() if " after it was found." in line]
    assert len(told) == 3, "a line for people each, also through a pipe"
    assert "{" not in result.stderr
    if module == "backfire.cli":
        receipts = {path.name: json.loads(path.read_bytes()) for path in (top / "reports").rglob("*.json")}
        verdicts = {name: receipt["verdict"] for name, receipt in receipts.items()}
        assert len(verdicts) == 3
        assert set(verdicts.values()) <= {"protected", "weak"}
        assert verdicts["rocket.jpg.json"] == "protected", "the README shows this picture"
    assert sandbox.backfire("demo", "show").returncode == 2, "a second run overwrites nothing"
