"""The detectors that run what a user brings: `command`, `onnx` and `torchscript`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from backfire import detectors
from backfire.config import Command, Logos, Onnx, Regions, TorchScript
from backfire.detectors import Source
from backfire.detectors.command import CommandDetector
from backfire.detectors.onnx import OnnxDetector
from backfire.detectors.torchscript import TorchScriptDetector
from backfire.errors import Code, ConfigError, ModelError
from backfire.types import Box, Region, Rgb
from tests.support import scripts
from tests.support.regions import network, program
from tests.support.sandbox import wait_for

PICTURE: Rgb = np.random.default_rng(5).integers(0, 256, (60, 90, 3), dtype=np.uint8)


def run(
    folder: Path, code: str, *arguments: str, timeout_s: float = 20, max_bytes: int = 10_000
) -> list[Region]:
    argv = (*program(folder, code), *arguments)
    settings = Command(argv=argv, timeout_s=timeout_s, max_bytes=max_bytes)
    return CommandDetector(settings).detect(PICTURE, source=Source("cat.jpg"))


# command


def test_a_program_gets_the_pixels_and_returns_regions(tmp_path: Path) -> None:
    """It finds the brightest pixel; `;` and `$HOME` in an argument are passed on unchanged."""
    code = """
import sys, json
assert sys.argv[1] == "; $HOME", sys.argv
magic, size, most, pixels = open(sys.argv[2], "rb").read().split(b"\\n", 3)
width, height = map(int, size.split())
at = max(range(width * height), key=lambda i: sum(pixels[3 * i : 3 * i + 3]))
x, y = at % width, at // width
print(json.dumps({"regions": [{"label": "spark", "score": 0.5, "box": [x, y, x + 1, y + 1]}]}))
"""
    (region,) = run(tmp_path, code, "; $HOME", "{picture}")
    y, x = np.unravel_index(int(PICTURE.sum(axis=2, dtype=int).argmax()), PICTURE.shape[:2])
    assert region.box == Box(int(x), int(y), int(x) + 1, int(y) + 1)
    assert (region.label, region.score, region.detector) == ("spark", 0.5, "command")


def test_a_program_may_find_nothing(tmp_path: Path) -> None:
    assert run(tmp_path, "print('{\"regions\": []}')") == []


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("raise SystemExit('no licence')", r"ended with code 1 \(no licence\)"),
        ("print('nothing')", "printed something else than regions"),
        ("print('{\"regions\": [{}]}')", "both or neither"),
        ("import sys; sys.stdout.write('x' * 100_000)", "printed more than 10000 bytes"),
        ("while True: print('x' * 1000)", "printed more than 10000 bytes"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended with code -11"),
    ],
)
def test_a_program_that_fails_is_an_error_that_says_how(tmp_path: Path, code: str, says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        run(tmp_path, code)
    assert "program.py" not in caught.value.message.split(" on cat.jpg ")[0]
    assert caught.value.code is Code.DETECTOR
    assert caught.value.retryable


def test_a_program_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    script = 'sleep 300 & echo $! > "$0"; wait'
    argv = ("sh", "-c", script, str(tmp_path / "pid"))
    detector = CommandDetector(Command(argv=argv, timeout_s=2))
    start = time.monotonic()
    with pytest.raises(ModelError, match=r"took longer than 2 s.*timeout_s"):
        detector.detect(PICTURE, source=Source("cat.jpg"))
    assert time.monotonic() - start < 29
    pid = int((tmp_path / "pid").read_text())
    wait_for(lambda: not alive(pid), seconds=10, because="the child to be gone")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_a_child_that_a_program_leaves_behind_does_not_block_the_job(tmp_path: Path) -> None:
    """The child keeps the streams open after its parent has ended well, until the timeout."""
    code = "import os, time\nprint('{\"regions\": []}', flush=True)\nif os.fork() == 0: time.sleep(300)"
    with pytest.raises(ModelError, match="took longer"):
        run(tmp_path, code, timeout_s=1)


def test_a_missing_program_is_an_error_with_its_remedy() -> None:
    detector = CommandDetector(Command(argv=("/no/such/program",)))
    with pytest.raises(ModelError, match=r"/no/such/program on cat\.jpg cannot be started") as caught:
        detector.detect(PICTURE, source=Source("cat.jpg"))
    assert not caught.value.retryable


# the files of a detector


def test_the_digest_of_a_detector_is_that_of_the_files_it_works_with(tmp_path: Path) -> None:
    (tmp_path / "logos").mkdir()
    (tmp_path / "find").write_text("#!/bin/sh\n")
    argv = (str(tmp_path / "find"), "--with", str(tmp_path / "model"))
    settings = Regions(
        logos=Logos(folder=tmp_path / "logos"),
        onnx=Onnx(model=tmp_path / "n.onnx"),
        command=Command(argv=argv),
    )
    seen = {name: {detectors.digest(name, settings)} for name in ("logos", "command")}
    for file, name in (("logos/a.png", "logos"), ("find", "command"), ("model", "command")):
        (tmp_path / file).write_bytes(b"#!another")
        found = detectors.digest(name, settings)
        assert found not in seen[name], file
        seen[name].add(found)
    (tmp_path / "logos" / "a.png").rename(tmp_path / "logos" / "b.png")
    assert detectors.digest("logos", settings) not in seen["logos"], "regions are labelled by the name"
    seen["logos"].add(detectors.digest("logos", settings))
    (tmp_path / "logos" / ".DS_Store").write_bytes(b"no logo")
    (tmp_path / "logos" / os.fsdecode(b"\xff.txt")).write_bytes(b"no logo")
    assert detectors.digest("logos", settings) in seen["logos"]
    (tmp_path / "logos" / os.fsdecode(b"\xff.png")).write_bytes(b"one of a name that is no UTF-8")
    assert detectors.digest("logos", settings) not in seen["logos"]
    binary = settings.model_copy(update={"command": Command(argv=(sys.executable,))})
    assert detectors.digest("command", binary) == detectors.digest(
        "command", Regions(command=Command(argv=("sh",)))
    )
    assert detectors.digest("faces", settings) == ""
    with pytest.raises(FileNotFoundError):
        detectors.digest("onnx", settings)


# onnx


def detected(folder: Path, rows: object, **settings: object) -> list[Region]:
    path = network(folder / "n.onnx", np.array(rows, dtype=np.float32))
    detector = OnnxDetector(Onnx.model_validate({"model": path, "size_px": 64, **settings}))
    return detector.detect(PICTURE, source=Source("cat.jpg"))


def test_boxes_are_scaled_back_and_labelled(tmp_path: Path) -> None:
    rows = [
        [[0, 0, 32, 21.3, 0.6, 1], [8, 8, 16, 16, 0.9, 5], [0, 0, 9, 9, 0.1, 0], [60, 60, 64, 64, 0.8, 0]]
    ]
    regions = detected(tmp_path, rows, labels=("cat", "dog"))
    assert [(region.label, round(region.score, 2)) for region in regions] == [("class 5", 0.9), ("dog", 0.6)]
    assert regions[1].box == Box(0, 0, 45, 30)  # the last row lies in the grey below the picture


def test_the_network_gets_the_picture_at_the_top_left_of_a_grey_square() -> None:
    from backfire.detectors.boxes import GREY, fitted

    white = np.full((60, 90, 3), 255, dtype=np.uint8)
    white[..., 2] = 0
    seen = fitted(white, 96, 96 / 90)
    assert seen.shape == (1, 3, 96, 96)
    assert seen.dtype == np.float32
    np.testing.assert_allclose(
        seen[0, :, :64], np.broadcast_to([[[1]], [[1]], [[0]]], (3, 64, 96)), atol=1e-6
    )
    np.testing.assert_allclose(seen[0, :, 64:], GREY, atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "one_picture"),
    [
        ([[1, 2, 3, 4, 0.9]], False),
        ([[[[0, 0, 9, 9, 0.9, 0]]]], False),
        ([[0, 0, 9, 9, 90, 0]], True),
        ([[0.25, 0.25, 0.5, 0.75, 0.9, 0], [0.1, 0, 1, 1, 0.9, 1]], True),
        ([[np.nan, 0, 9, 9, 0.9, 0]], True),
        ([[np.nan] * 6], True),
    ],
)
def test_a_result_of_the_wrong_form_is_an_error_that_says_what_is_expected(
    tmp_path: Path, rows: object, one_picture: bool
) -> None:
    """What one picture is to blame for counts as its attempt, and holds up no other."""
    with pytest.raises(ModelError, match=r"n\.onnx gives .*expected 1,N,6") as caught:
        detected(tmp_path, rows)
    assert caught.value.retryable is one_picture
    assert ("cat.jpg" in caught.value.message) is one_picture


def test_a_score_that_is_rounded_to_a_little_more_than_one_is_one(tmp_path: Path) -> None:
    (region,) = detected(tmp_path, [[0, 0, 9, 9, 1.0001, 0]])
    assert region.score == 1


def test_another_network_than_configured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has SHA-256"):
        detected(tmp_path, [[0, 0, 9, 9, 0.9, 0]], sha256="0" * 64)


@pytest.mark.parametrize("content", [None, b"", b"no network"])
def test_a_network_that_does_not_load_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "n.onnx").write_bytes(content)
    settings = Regions(onnx=Onnx(model=tmp_path / "n.onnx"))
    with pytest.raises(ModelError, match=r"regions\.onnx\.model") as caught:
        detectors.get("onnx", settings)
    assert not caught.value.retryable


def test_a_network_that_fails_on_a_picture_is_a_retryable_error(tmp_path: Path) -> None:
    """The network takes pictures of 64 pixels a side, and the settings say 96."""
    path = network(tmp_path / "n.onnx", np.zeros((1, 6), dtype=np.float32))
    detector = OnnxDetector(Onnx(model=path, size_px=96))
    with pytest.raises(ModelError, match=r"n\.onnx failed on cat\.jpg of 90x60") as caught:
        detector.detect(PICTURE, source=Source("cat.jpg"))
    assert caught.value.retryable


# torchscript


def scripted(folder: Path, rows: object, *, exported: bool = False, **settings: object) -> TorchScript:
    module = scripts.Boxes(np.array(rows, dtype=np.float32))
    example = (torch.zeros(1, 3, 64, 64),)
    path, sha256 = scripts.save(folder / "n", exported=exported, module=module, example=example)
    said = {"model": path, "sha256": sha256, "trust": True, "size_px": 64, **settings}
    return TorchScript.model_validate(said)


@pytest.mark.parametrize("exported", [False, True])
def test_a_scripted_network_finds_what_the_same_onnx_file_does(tmp_path: Path, exported: bool) -> None:
    rows = [[[0, 0, 32, 21.3, 0.6, 1], [8, 8, 16, 16, 0.9, 5], [0, 0, 9, 9, 0.1, 0]]]
    settings = scripted(tmp_path, rows, exported=exported, labels=("cat", "dog"))
    found = detectors.get("torchscript", Regions(torchscript=settings)).detect(PICTURE, source=Source("p"))
    same = detected(tmp_path, rows, labels=("cat", "dog"))
    assert [region.detector for region in found] == ["torchscript"] * 2
    assert [(r.box, r.label, r.score) for r in found] == [(r.box, r.label, r.score) for r in same]


@pytest.mark.parametrize("missing", ["model", "sha256", "trust"])
def test_a_scripted_network_without_trust_is_refused_at_start(tmp_path: Path, missing: str) -> None:
    settings = scripted(tmp_path, [[0, 0, 9, 9, 0.9, 0]])
    default = getattr(TorchScript(), missing)
    regions = Regions(detectors=("torchscript",), torchscript=settings.model_copy(update={missing: default}))
    with pytest.raises(ConfigError, match=r"sha256 and trust: true \(such a file is code\)"):
        detectors.get("torchscript", regions)


def test_another_script_than_configured_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    settings = scripted(tmp_path, [[0, 0, 9, 9, 0.9, 0]], sha256="0" * 64)
    assert settings.model is not None
    settings.model.write_bytes(b"no network")  # loading it would be another error
    with pytest.raises(ModelError, match=r"detector torchscript: .* has SHA-256") as caught:
        detectors.get("torchscript", Regions(torchscript=settings))
    assert (caught.value.code, caught.value.retryable) == (Code.DETECTOR, False)


def test_a_scripted_network_with_a_result_of_the_wrong_form_is_named(tmp_path: Path) -> None:
    detector = TorchScriptDetector(scripted(tmp_path, [[1, 2, 3, 4, 0.9]]))
    with pytest.raises(ModelError, match=r"detector torchscript: .*n\.pt gives .*expected 1,N,6"):
        detector.detect(PICTURE, source=Source("cat.jpg"))


def test_a_scripted_network_that_fails_is_named_in_one_line(tmp_path: Path) -> None:
    """The network takes pictures of 64 pixels a side, and gets 96."""
    detector = TorchScriptDetector(scripted(tmp_path, [[0, 0, 9, 9, 0.9, 0]], size_px=96))
    with pytest.raises(
        ModelError, match=r"detector torchscript: n\.pt failed on cat\.jpg of 90x60"
    ) as caught:
        detector.detect(PICTURE, source=Source("cat.jpg"))
    assert "\n" not in caught.value.message
    assert "Traceback" not in caught.value.message
    assert caught.value.retryable
