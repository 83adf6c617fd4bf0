"""The real daemon as a subprocess on real files."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import subprocess
import sys

import pytest
from PIL import Image

from tests.support.pictures import SAMPLES, differences, encoded, mask_picture, photo
from tests.support.receipts import require_documented
from tests.support.sandbox import LENIENT, QUICK, Sandbox, environment, wait_for

SIZE, REGION = (64, 48), (16, 16, 40, 40)
"""Of most pictures here and of their masks: what the daemon does with them is the same at any size."""


def small(seed: int = 0, kind: str = "PNG", **options: object) -> bytes:
    return encoded(photo(SIZE, seed=seed), kind, **options)


MASK = encoded(mask_picture(SIZE, REGION))


def test_pictures_and_masks_in_any_order_and_depth(sandbox: Sandbox) -> None:
    sandbox.configure(**QUICK, watch={"settle_s": 0.3, "rescan_s": 1, "mask_wait_s": 30})
    early = small(1)
    sandbox.drop(early, "early.png")
    sandbox.drop(MASK, "early.mask.png")
    sandbox.start()
    pictures = {"early.png": early}
    difficult = [b"caf\xe9.png", b"new\nline.png", b"n" * 240 + b".png", b"  spaces .png"]
    for name in map(os.fsdecode, difficult):
        pictures[name] = small(len(name))
        sandbox.drop(MASK, f"masks/{name}")
        sandbox.drop(pictures[name], name)
    for name, kind, mask, mask_first in [
        ("first.png", "PNG", "first.mask.png", False),
        ("second.jpg", "JPEG", "second.jpg.mask.png", True),
        ("desk/third.webp", "WEBP", "desk/masks/third.png", False),
        ("desk/a.b.tif", "TIFF", "desk/a.b.mask.png", True),
    ]:
        pictures[name] = small(len(name), kind)
        parts = [(pictures[name], name), (MASK, mask)]
        for data, place in reversed(parts) if mask_first else parts:
            sandbox.drop(data, place)
    wait_for(lambda: sandbox.files("inbox") == set(), seconds=400, because=sandbox.log)  # type: ignore[arg-type]
    assert sandbox.files("outbox") == set(pictures)
    assert sandbox.files("failed") == set()
    for name, data in pictures.items():
        assert (sandbox.archive / name).read_bytes() == data, "originals stay byte-identical"
        published = (sandbox.outbox / name).read_bytes()
        receipt = sandbox.receipt(name)
        require_documented(receipt)
        with Image.open(io.BytesIO(data)) as before, Image.open(io.BytesIO(published)) as after:
            assert (after.size, after.mode, after.format) == (before.size, before.mode, before.format)
        assert 1 <= differences(data, published).max() <= 12
        assert receipt["max_change_levels"] == differences(data, published).max()
        assert receipt["input_sha256"] == hashlib.sha256(data).hexdigest()
        assert receipt["output_sha256"] == hashlib.sha256(published).hexdigest()
        assert receipt["regions"][0]["detector"] == "sidecar"
        with Image.open(sandbox.reports / f"{name}.sheet.jpg") as sheet:
            assert sheet.width > 1000
    masks = {"early.mask.png", "first.mask.png", "second.jpg.mask.png"}
    masks |= {
        "desk/masks/third.png",
        "desk/a.b.mask.png",
        *(f"masks/{os.fsdecode(name)}" for name in difficult),
    }
    assert sandbox.files("archive") == set(pictures) | masks
    assert sandbox.backfire("jobs").returncode == 0
    for path in map(os.fsdecode, difficult):
        assert "is done" in sandbox.backfire("explain", path).stdout


def test_nobody_but_owner_and_group_reads_originals_and_jobs(sandbox: Sandbox) -> None:
    """Whatever the umask that the daemon was started with, such as a shell's."""
    sandbox.configure(**QUICK)
    sandbox.drop(small(), "p.png").chmod(0o644)
    sandbox.drop(MASK, "p.mask.png")
    command = [sys.executable, "-m", "backfire.cli", "once"]
    subprocess.run(command, cwd=sandbox.base, env=environment(), umask=0o022, check=True)
    for path in (sandbox.archive / "p.png", sandbox.state / "backfire.sqlite"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o007, path


def test_bad_files_fail_and_others_are_published(sandbox: Sandbox) -> None:
    sandbox.configure(**QUICK)
    good = small()
    sandbox.drop(b"", "empty.png")
    sandbox.drop(b"just some words\n" * 40, "text.jpg")
    sandbox.drop(small(kind="JPEG")[:-600], "cut.jpg")
    sandbox.drop(good, "small.png")
    sandbox.drop(encoded(mask_picture((80, 64), (10, 10, 30, 30))), "small.mask.png")
    sandbox.drop(good, "blank.png")
    sandbox.drop(encoded(mask_picture(SIZE, (0, 0, 0, 0))), "blank.mask.png")
    sandbox.drop(good, "nothing.png")
    sandbox.drop(good, "z-good.png")
    sandbox.drop(MASK, "z-good.mask.png")
    result = sandbox.backfire("once", "--json")
    assert result.returncode == 3, result.stderr
    assert json.loads(result.stdout) == {
        "published": 1,
        "held": 1,
        "failed": 5,
        "left": 0,
        "unreadable": 0,
        "trouble": "",
    }
    assert sandbox.files("inbox") == set()
    assert sandbox.files("outbox") == {"z-good.png"}
    codes = {
        "empty.png": ("empty", "empty.png"),
        "text.jpg": ("unsupported", "text"),
        "cut.jpg": ("truncated", "cut.jpg"),
        "small.png": ("mask_size", "80x64"),
        "blank.png": ("mask_empty", "white"),
    }
    for name, (code, word) in codes.items():
        error = sandbox.error(name)
        assert error["code"] == code
        assert word in error["message"]
        assert (sandbox.failed / name).is_file()
    assert sandbox.files("review") == {"nothing.png", "nothing.png.review.json"}
    status = json.loads(sandbox.backfire("status", "--json").stdout)
    assert status["jobs"] == {"archived": 1, "failed": 5, "review": 1}


def test_a_held_picture_is_published_as_it_is_or_protected_whole(sandbox: Sandbox) -> None:
    sandbox.configure(**QUICK)
    data = small(kind="JPEG", quality=90)
    sandbox.drop(data, "desk/a.jpg")
    sandbox.drop(small(1), "b.png")
    sandbox.start()
    held = {f"{name}{end}" for name in ("desk/a.jpg", "b.png") for end in ("", ".review.json")}
    wait_for(lambda: sandbox.files("review") == held, because="both to be held")
    listed = {
        row["file"]: str(row["job"]) for row in json.loads(sandbox.backfire("release", "--json").stdout)
    }
    assert sandbox.backfire("release", listed["desk/a.jpg"]).returncode == 0
    assert sandbox.backfire("release", listed["b.png"], "--whole").returncode == 0
    wait_for(lambda: sandbox.files("archive") == {"desk/a.jpg", "b.png"}, because="both to be published")
    for folder in (sandbox.outbox, sandbox.archive):
        assert (folder / "desk/a.jpg").read_bytes() == data
    for name, verdict in (("desk/a.jpg", "unprotected"), ("b.png", "protected")):
        receipt = sandbox.receipt(name)
        require_documented(receipt)
        assert receipt["verdict"] == verdict
    assert sandbox.receipt("b.png")["regions"][0]["detector"] == "whole"
    assert sandbox.files("review") == set()


def test_a_command_cannot_ask_so_that_a_picture_without_regions_is_an_error(sandbox: Sandbox) -> None:
    sandbox.configure(**QUICK)
    sandbox.drop(small(), "p.png")
    done = sandbox.backfire("protect", "inbox/p.png", "-c", "config.yaml", "-o", "o.png")
    assert done.returncode == 3
    assert "no region found by sidecar, faces" in done.stdout + done.stderr
    assert not (sandbox.base / "o.png").exists()


IMPOSSIBLE = {"control_factor": 1000}
WEAK = {"far_ssim_min": 1.0, "near_ssim_min": 1.0}


@pytest.fixture(scope="module")
def ruled(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """One run over pictures of which each has a rule of its own; those in `masked` have masks."""
    sandbox = Sandbox(tmp_path_factory.mktemp("ruled"))
    rules = [{"match": f"{policy}.png", "regions": {"none_found": policy}} for policy in NONE_FOUND]
    rules += [
        {"match": f"masked/{on_weak}.png", "verify": {**WEAK, "on_weak": on_weak}} for on_weak in ON_WEAK
    ]
    rules += [{"match": "masked/impossible.png", "verify": IMPOSSIBLE}]
    sandbox.configure(**QUICK, rules=rules)
    for rule in rules:
        sandbox.drop(small(), str(rule["match"]))
    for name in (*ON_WEAK, "impossible"):
        sandbox.drop(MASK, f"masked/{name}.mask.png")
    result = sandbox.backfire("once", "--json")
    assert result.returncode == 3, result.stderr
    told = {"published": 3, "held": 1, "failed": 3, "left": 0, "unreadable": 0, "trouble": ""}
    assert json.loads(result.stdout) == told
    return sandbox


NONE_FOUND = ("pass", "whole", "fail")
ON_WEAK = ("publish", "review", "fail")


def test_the_setting_decides_what_becomes_of_a_picture_without_regions(ruled: Sandbox) -> None:
    assert ruled.files("outbox") == {"pass.png", "whole.png", "masked/publish.png"}
    original = small()
    assert ruled.error("fail.png")["code"] == "no_region"
    assert (ruled.outbox / "pass.png").read_bytes() == original
    assert ruled.receipt("pass.png")["verdict"] == "unprotected"
    assert (ruled.outbox / "whole.png").read_bytes() != original
    assert ruled.receipt("whole.png")["regions"][0]["detector"] == "whole"


def test_a_picture_that_was_not_protected_is_not_published(ruled: Sandbox) -> None:
    """The thresholds cannot be met."""
    name = "masked/impossible.png"
    assert not (ruled.outbox / name).exists()
    assert ruled.error(name)["code"] == "not_protected"
    assert ruled.receipt(name)["verdict"] == "failed"
    assert (ruled.reports / f"{name}.sheet.jpg").is_file()
    assert {name, "masked/impossible.mask.png", f"{name}.error.json"} <= ruled.files("failed")


def test_the_setting_decides_whether_a_weak_result_is_published(ruled: Sandbox) -> None:
    for on_weak in ON_WEAK:
        assert ruled.receipt(f"masked/{on_weak}.png")["verdict"] == "weak"
    assert (ruled.outbox / "masked/publish.png").is_file()
    assert ruled.error("masked/fail.png")["code"] == "weak"
    assert "masked/review.png" in ruled.files("review")


def test_protect_repeats_what_the_daemon_did(sandbox: Sandbox) -> None:
    """Another process makes the same bytes of the same job; the output's name is no part of its settings."""
    sandbox.configure(**QUICK, rules=[{"match": "desk/*", "protect": {"iterations": 3}}])
    sandbox.drop(small(kind="JPEG"), "desk/p.jpg")
    sandbox.drop(MASK, "desk/p.mask.png")
    assert sandbox.backfire("once").returncode == 0
    for name in ("x.jpg", "x.png"):
        told = sandbox.backfire("protect", "archive/desk/p.jpg", "-c", "config.yaml", "-o", name, "--json")
        (receipt,) = json.loads(told.stdout)
        assert (receipt["key"] == sandbox.receipt("desk/p.jpg")["key"]) == (name == "x.jpg")
    assert (sandbox.base / "x.jpg").read_bytes() == (sandbox.outbox / "desk" / "p.jpg").read_bytes()


def test_results_of_another_file_are_never_overwritten(sandbox: Sandbox) -> None:
    sandbox.configure(**QUICK)
    sandbox.start()
    for seed in (1, 2):
        sandbox.drop(small(seed), "p.png")
        sandbox.drop(MASK, "p.mask.png")
        wait_for(lambda: sandbox.files("inbox") == set(), because="the picture to be archived")
    assert len(sandbox.files("outbox")) == 2
    assert len({f for f in sandbox.files("archive") if "mask" not in f}) == 2
    assert len({f for f in sandbox.files("reports") if f.endswith(".json")}) == 2


def test_a_bad_configuration_refuses_to_start(sandbox: Sandbox) -> None:
    path = sandbox.configure()
    path.write_text(path.read_text() + "regoins: {}\n")
    result = sandbox.backfire("run", timeout=60)
    assert result.returncode == 2
    assert "did you mean 'regions'" in result.stderr
    path.write_text("folders: {inbox: inbox}\nprotect: {surrogates: [flux2-mni]}\n")
    result = sandbox.backfire("once", timeout=60)
    assert result.returncode == 2
    assert "did you mean 'flux2-mini'" in result.stderr


def test_faces_are_found_without_masks(sandbox: Sandbox) -> None:
    sandbox.configure(verify=LENIENT, protect={"iterations": 1, "margin_px": 32, "whole_px": 0})
    with Image.open(SAMPLES / "astronaut.png") as astronaut:
        sandbox.drop(encoded(astronaut.crop((100, 0, 356, 256))), "astronaut.png")
    result = sandbox.backfire("once")
    assert result.returncode == 0, result.stderr
    (region,) = sandbox.receipt("astronaut.png")["regions"]
    assert region["label"] == "face"
    left, top, right, bottom = region["box"]
    assert left < 125 < right
    assert top < 110 < bottom


def test_retry_puts_original_and_mask_back(sandbox: Sandbox) -> None:
    sandbox.configure(protect=QUICK["protect"], verify={**LENIENT, "control_factor": 1000})
    sandbox.drop(small(), "sub/p.png")
    sandbox.drop(MASK, "sub/p.mask.png")
    assert sandbox.backfire("once").returncode == 3
    assert "failed" in sandbox.backfire("explain", "sub/p.png").stdout
    assert sandbox.backfire("retry").returncode == 2, "no job was named"
    assert sandbox.backfire("retry", "--failed").returncode == 0
    assert sandbox.files("inbox") == {"sub/p.png", "sub/p.mask.png"}
    assert sandbox.files("failed") == set()
    sandbox.configure(**QUICK)
    assert sandbox.backfire("once").returncode == 0
    assert sandbox.files("outbox") == {"sub/p.png"}
    told = sandbox.backfire("explain", str(sandbox.inbox / "sub" / "p.png")).stdout
    assert "is done" in told
