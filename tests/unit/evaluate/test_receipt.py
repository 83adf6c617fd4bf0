"""Receipts are built, written, read back and amended by one module."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backfire.evaluate import premis, receipt
from backfire.evaluate.judge import EditResult, Judgement
from backfire.evaluate.receipt import EditorsUsed
from backfire.types import Box, Choice, MaskKind, Region, Verdict

FACTS: dict[str, Any] = {
    "file": "käse.png",
    "key": "k" * 64,
    "input_sha256": "a" * 64,
    "output_sha256": "b" * 64,
    "written_as": "PNG",
    "elapsed_s": 1.0,
}


class Named:
    name, weights_sha256 = "flux2-mini", "f" * 64


def document(psnr_db: float | None = 34.567) -> receipt.Receipt:
    edit = EditResult("flux2-mini", 0, MaskKind.TRIGGER, 0.123456, 0.2, False, 0.9)
    judgement = Judgement(Verdict.WEAK, ["too alike"], psnr_db, 6, [edit])
    used = EditorsUsed([Named()], (), [0.00123456])  # type: ignore[list-item]  # two of its attributes
    return receipt.build(judgement, [Region(Box(1, 2, 3, 4), "face", 0.98765, "faces")], used, FACTS)


def test_a_receipt_says_what_was_measured_in_rounded_figures() -> None:
    told = document()
    assert (told["verdict"], told["psnr_db"], told["max_change_levels"]) == ("weak", 34.57, 6)
    assert told["surrogates"] == [{"name": "flux2-mini", "weights_sha256": "f" * 64, "gradient": 0.00123}]
    assert told["edits"][0]["ssim"] == 0.1235
    assert told["regions"][0]["score"] == 0.9877
    assert [event["eventType"] for event in told["events"]] == [
        premis.DIGEST,
        premis.CREATION,
        premis.VALIDATION,
    ]
    assert document(psnr_db=None)["psnr_db"] is None


def test_what_is_not_finite_is_null_in_the_file_and_no_number_when_read() -> None:
    edit = EditResult("one", 0, MaskKind.TRIGGER, float("nan"), float("inf"), False)
    used = EditorsUsed([Named()], (), [float("nan")])  # type: ignore[list-item]  # two of its attributes
    judgement = Judgement(Verdict.FAILED, ["gave no finite picture"], None, 6, [edit])
    data = receipt.to_json(receipt.build(judgement, [Region(Box(1, 2, 3, 4), "x", 1.0, "x")], used, FACTS))
    assert b"NaN" not in data
    assert b"Infinity" not in data
    read = receipt.from_json(data)
    assert read["edits"][0]["ssim"] is None
    assert read["surrogates"][0]["gradient"] is None
    assert np.isnan([EditResult.of(read["edits"][0]).ssim, EditResult.of(read["edits"][0]).l1]).all()
    assert receipt.in_words(read)[0] == "failed: gave no finite picture"


def test_a_receipt_in_words() -> None:
    verdict, measured = receipt.in_words(document())
    assert verdict == "weak: too alike"
    assert measured == (
        "measured with flux2-mini by comparing the same edits of original and copy (SSIM, 1 = no effect): "
        "0.12 or less for edits of the region (1); "
        "no pixel changed by more than 6 of 255 levels (PSNR 34.6 dB)"
    )


def test_beside_a_weak_verdict_the_tools_are_those_of_exactly_the_region() -> None:
    tools = {"iopaint": True, "forge-whole": True}
    said, _ = receipt.in_words({**document(), "tools": tools})
    assert said == (
        "weak: too alike; edits of exactly the region are broken in IOPaint, Forge or A1111 (whole picture)"
    )
    good, _ = receipt.in_words({**document(), "tools": tools, "verdict": "protected", "reasons": []})
    assert good.endswith("come out broken; broken in IOPaint, Forge or A1111 (whole picture)")


def test_nothing_is_said_of_edits_elsewhere_where_none_was_made() -> None:
    """A grid over the whole picture leaves no space for one."""
    told = {**document(), "verdict": "protected", "reasons": []}
    assert receipt.in_words(told)[0] == "protected: edits of the region come out broken"
    beside = {**told["edits"][0], "mask_kind": "near", "ssim": 0.97}
    said, measured = receipt.in_words({**told, "edits": [*told["edits"], beside]})
    assert said == "protected: edits of the region come out broken, edits elsewhere come out as usual"
    assert "0.97 or more for edits elsewhere (1)" in measured


def test_a_mask_that_is_a_little_larger_is_told_of_and_not_counted_with_what_was_asked() -> None:
    told = document()
    (region,) = told["edits"]
    larger = [
        {**region, "mask_kind": "dilated", "path": path, "ssim": ssim}
        for path, ssim in ((region["path"], 0.5), ("forge-masked", 0.97))
    ]
    said, measured = receipt.in_words(
        {
            **told,
            "edits": [region, *larger],
            "tools": {"iopaint": True},
            "tools_dilated": {"iopaint": True, "forge-masked": False},
        }
    )
    assert said.endswith(
        "edits of the region and a little more: broken in IOPaint; not broken in Forge or A1111 (only masked)"
    )
    assert "0.50 or less for edits of the region (2)" in measured


def test_a_receipt_is_read_back_as_it_was_written() -> None:
    told = document()
    data = receipt.to_json(told)
    assert receipt.from_json(data) == json.loads(json.dumps(told))
    assert data.endswith(b"}\n")
    assert "käse".encode() in data, "names are written as UTF-8"
    assert b"?.png" in receipt.to_json({**told, "file": "\udcff.png"}), "half a surrogate pair"


@pytest.mark.parametrize("data", [b"", b'{"key": ', b"[]", b"\xff\xfe"])
def test_data_that_are_no_receipt_are_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        receipt.from_json(data)


def test_amending_a_receipt_does_not_mutate_it() -> None:
    told = document()
    before = json.dumps(told)
    archived = receipt.with_archived(told, at=2.0, sha256="a" * 64, where="2026/käse.png")
    assert [event["eventType"] for event in archived["events"]][-1] == premis.FIXITY
    taken = receipt.with_taken_over(told, file="b.png", worked_as="a.png")
    assert (taken["file"], taken["worked_as"]) == ("b.png", "a.png")
    assert receipt.by_hand(told, None)["output"] is None
    decided = receipt.with_decision(told, choice=Choice.WHOLE, by="anna", at=0)
    assert decided["decision"] == {"choice": "whole", "by": "anna", "at": "1970-01-01T00:00:00Z"}
    assert "decision" not in receipt.with_taken_over(decided, file="b.png", worked_as="a.png")
    assert json.dumps(told) == before


@pytest.mark.parametrize(
    ("given", "kept"),
    [("masks/a.png", "masks/a.png"), ("/home/me/a.png", "a.png"), ("../me/a.png", "a.png"), (None, None)],
)
def test_mask_and_result_are_remembered_and_no_path_that_leads_elsewhere(
    given: str | None, kept: str | None
) -> None:
    told = receipt.by_hand({}, given, None if given is None else Path(given))
    assert (told.get("mask"), told["output"]) == (kept, kept)


def test_verdict_receipt_and_sheet_need_no_torch() -> None:
    """The daemon's process, which must not import torch, uses them."""
    code = (
        "import sys; from backfire.evaluate import judge, premis, receipt, sheet; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
