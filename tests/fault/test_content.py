"""Faults 16, 22-24, 27, 30, 31: hostile content and names, too little memory, bad settings, clock jumps."""

from __future__ import annotations

import json
import os
import signal
import struct
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from backfire import config, inpaint
from backfire.detectors import Sidecar, Source
from backfire.errors import Code, ModelError
from backfire.inpaint import hardware
from backfire.inpaint.base import Editor
from backfire.pipeline.protect import protect
from tests.support.house import House
from tests.support.jobs import PASS, assert_published, picture, reasons, states, trouble, wait_until_idle
from tests.support.pictures import encoded, mask_picture
from tests.support.sandbox import LENIENT, Sandbox, wait_for


def test_fault_16_mask_of_wrong_size_or_empty_or_broken_is_a_named_error(sandbox: Sandbox) -> None:
    sandbox.configure(**PASS)
    masks = {
        "size": encoded(mask_picture((32, 24), (4, 4, 9, 9))),
        "empty": encoded(mask_picture((64, 48), (0, 0, 0, 0))),
        "unreadable": b"no mask",
    }
    for name, mask in masks.items():
        sandbox.drop(picture(), f"{name}.png")
        sandbox.drop(mask, f"{name}.mask.png")
    assert sandbox.backfire("once").returncode == 3
    assert sandbox.files("outbox") == set(), "never 'protected nothing'"
    assert {name: sandbox.error(f"{name}.png")["code"] for name in masks} == {
        name: f"mask_{name}" for name in masks
    }


def bomb() -> bytes:
    """A PNG of a few kilobytes whose header says 900 million pixels, with data that begin to decode."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1 << 22), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_fault_22_corrupt_bomb_eps_and_disguised_files_fail_with_a_reason(sandbox: Sandbox) -> None:
    sandbox.configure(**PASS, limits={"memory_mb": 4096})
    good = picture(kind="JPEG")
    corpus = {
        "bomb.png": (bomb(), "too_large"),
        "e.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n" * 9, "unsupported"),
        "page.png": (b"<!doctype html><html><body>" + b"x" * 500, "unsupported"),
        "program.tif": (b"\x7fELF" + bytes(range(256)) * 4, "unsupported"),
        "torn.png": (picture()[:60] + b"\xff" * 400 + picture()[460:], "unreadable"),
        "cut.jpg": (good[: len(good) // 2], "truncated"),
        "nothing.webp": (b"", "empty"),
    }
    for name, (data, _) in corpus.items():
        sandbox.drop(data, name)
    process = sandbox.start()
    wait_for(lambda: states(sandbox).count("failed") == len(corpus), because="all to fail")
    got = {name: sandbox.error(name)["code"] for name in corpus}
    assert got == {name: code for name, (_, code) in corpus.items()}
    for name, (data, _) in corpus.items():
        assert (sandbox.failed / name).read_bytes() == data
    assert "worker_died" not in sandbox.log()
    peak = Path(f"/proc/{process.pid}/status").read_text().partition("VmHWM:")[2].split()[0]
    assert int(peak) < 300 << 10, "kilobytes; the daemon itself decodes nothing"
    sandbox.drop(good, "good.jpg")
    wait_for(lambda: sandbox.files("outbox") == {"good.jpg"}, because="the next picture to be served")


def test_fault_22_a_file_of_terabytes_is_not_read(gated: Sandbox) -> None:
    with gated.drop(b"", "huge.jpg").open("wb") as file:
        os.truncate(file.fileno(), 10 << 40)
    inode = (gated.inbox / "huge.jpg").stat().st_ino
    original = picture()
    gated.drop(original, "p.png")
    assert gated.backfire("once").returncode == 3
    assert gated.error("huge.jpg")["code"] == "too_large"
    assert (gated.failed / "huge.jpg").stat().st_ino == inode
    assert (gated.outbox / "p.png").read_bytes() == original
    assert gated.files("inbox") == set()


def test_fault_23_links_pipes_and_replaced_folders_lead_nowhere_outside_the_inbox(gated: Sandbox) -> None:
    secrets = gated.base / "secrets"
    secrets.mkdir()
    secret = picture(9)
    (secrets / "s.png").write_bytes(secret)
    (gated.inbox / "link.png").symlink_to(secrets / "s.png")
    (gated.inbox / "folder").symlink_to(secrets)
    (gated.inbox / "up.png").symlink_to("../secrets/s.png")
    os.mkfifo(gated.inbox / "pipe.png")
    (gated.base / "gate").write_text("open")
    swapped = picture(1)
    gated.drop(swapped, "sub/s.png")
    gated.start()
    wait_for(lambda: states(gated) == ["running"], because="the one regular file to run")
    # Between check and use: the folder becomes a link to a file of the same name and the same content.
    (secrets / "s.png").write_bytes(swapped)
    (gated.inbox / "sub").rename(gated.base / "away")
    (gated.inbox / "sub").symlink_to(secrets)
    (gated.base / "gate").unlink()
    wait_for(lambda: "changed while it was worked" in reasons(gated), because="the daemon to notice the link")
    wait_for(lambda: states(gated) == ["skipped"], because="the file to be missed")
    assert (secrets / "s.png").read_bytes() == swapped, "outside the roots nothing is touched"
    assert gated.files("outbox") == gated.files("failed") == gated.files("archive") == set()
    assert (gated.inbox / "link.png").is_symlink()


def test_fault_24_names_with_any_bytes(gated: Sandbox) -> None:
    accented = "caf\N{LATIN SMALL LETTER E WITH ACUTE}.png"
    names = [
        b"latin-\xe9.png", b"new\nline.png", b"  spaces .png", "日本.png".encode(), b"n" * 251 + b".png",
        unicodedata.normalize("NFC", accented).encode(), unicodedata.normalize("NFD", accented).encode(),
        b"Case.png", b"case.png", b"-rf.png", b"$(reboot).png", b"a.mask.jpg",
    ]  # fmt: skip
    originals = {}
    for seed, name in enumerate(names):
        originals[os.fsdecode(name)] = picture(seed)
        gated.drop(originals[os.fsdecode(name)], os.fsdecode(name))
    result = gated.backfire("once")
    assert result.returncode == 0, result.stderr
    assert_published(gated, originals)
    assert gated.backfire("jobs").returncode == 0
    assert gated.backfire("explain", os.fsdecode(names[0])).returncode == 0


class Greedy:
    """An editor that runs out of memory with more edits at once, or with gradients of more pixels a side.

    It paints the mean of what it is shown, under the name of another.
    """

    def __init__(self, editor: Editor, *, batch: int, side: int) -> None:
        self._batch, self._side = batch, side
        self.name, self.multiple = editor.name, editor.multiple
        self.weights_sha256, self.blind = editor.weights_sha256, editor.blind

    def to(self, device: torch.device | str) -> None:
        pass

    def inpaint(self, image: Tensor, mask: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        if len(image) > self._batch or (image.requires_grad and max(image.shape[-2:]) > self._side):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return torch.where(mask > 0.5, image.mean(dim=(2, 3), keepdim=True), image)


def protected(monkeypatch: pytest.MonkeyPatch, *, batch: int, side: int, rung: int = 0) -> dict[str, Any]:
    """The receipt of a 280 px picture protected whole, with an editor of so much memory."""
    real = inpaint.get("flux2-mini", "cpu")
    monkeypatch.setattr(inpaint, "get", lambda name, *_: Greedy(real, batch=batch, side=side))
    settings = config.parse(
        {
            "folders": {"inbox": "inbox"},
            "protect": {"iterations": 1, "margin_px": 64, "whole_px": 0, "work_px": 512},
            "verify": LENIENT,
        },
        base=Path("/nowhere"),
    )
    mask = encoded(mask_picture((280, 200), (80, 60, 200, 150)))
    source = Source("p.png", (Sidecar("p.mask.png", mask),))
    return protect(picture(size=(280, 200)), source, settings, rung=rung).receipt


@pytest.mark.parametrize(
    ("batch", "side", "rung"), [(9, 999, "full"), (1, 999, "one_at_a_time"), (1, 256, "smaller")]
)
def test_fault_27_out_of_memory_goes_down_the_ladder_and_the_receipt_says_how_far(
    monkeypatch: pytest.MonkeyPatch, batch: int, side: int, rung: str
) -> None:
    assert protected(monkeypatch, batch=batch, side=side)["memory_rung"] == rung


def test_fault_27_below_the_last_rung_the_job_fails_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="tried: full, one_at_a_time, smaller") as caught:
        protected(monkeypatch, batch=1, side=64)
    assert (caught.value.code, caught.value.retryable) == (Code.OUT_OF_MEMORY, False)


@pytest.mark.parametrize(("skipped", "rung"), [(1, "one_at_a_time"), (9, "smaller")])
def test_fault_27_after_a_worker_was_killed_the_next_attempt_skips_the_first_rungs(
    monkeypatch: pytest.MonkeyPatch, skipped: int, rung: str
) -> None:
    assert protected(monkeypatch, batch=9, side=999, rung=skipped)["memory_rung"] == rung


def test_fault_27_the_cpu_is_the_last_rung_of_a_gpu_where_that_is_allowed() -> None:
    from backfire.pipeline import memory

    gpu = torch.device("cuda:0")
    settings = config.Protect()
    assert [rung.name for rung in memory.rungs(settings, gpu)][-1] == "cpu"
    without = settings.model_copy(update={"cpu_fallback": False})
    assert [rung.name for rung in memory.rungs(without, gpu)] == ["full", "one_at_a_time", "smaller"]
    assert hardware.pick_device(memory.rungs(settings, gpu)[-1].protect.device).type == "cpu"


def test_fault_27_edits_and_gradients_on_the_one_at_a_time_rung_are_the_same() -> None:
    from backfire.pipeline.memory import Frugal

    editor = inpaint.get("flux2-mini")
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(2, 3, 64, 64, generator=generator)
    mask = torch.zeros(2, 1, 64, 64)
    mask[:, :, 16:48, 16:48] = 1
    gradients = []

    def alone(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.cat([editor.inpaint(image[i : i + 1], mask[i : i + 1]) for i in range(len(image))])

    for edit in (alone, Frugal(editor).inpaint):
        variable = image.clone().requires_grad_(True)
        edited = edit(variable, mask)
        (edited * torch.linspace(0, 1, 64)).sum().backward()  # type: ignore[no-untyped-call]
        gradients.append((edited.detach(), variable.grad))
    for whole, frugal in zip(*gradients, strict=True):
        assert whole is not None
        assert frugal is not None
        torch.testing.assert_close(whole, frugal, rtol=1e-5, atol=1e-6)


def test_fault_27_a_real_worker_that_runs_out_of_host_memory_fails_the_job_and_goes_on(
    sandbox: Sandbox,
) -> None:
    """9000 x 9000 pixels of a flat colour take more than the limit; the small picture after it does not."""
    from PIL import Image

    sandbox.configure(**PASS, limits={"memory_mb": 900}, protect={"attempts": 1})
    sandbox.drop(encoded(Image.new("RGB", (9000, 9000), (90, 120, 60))), "huge.png")
    process = sandbox.start()
    wait_for(lambda: states(sandbox) == ["failed"], because="the huge one to fail")
    assert sandbox.error("huge.png")["code"] == "out_of_memory"
    sandbox.drop(picture(), "small.png")
    wait_for(lambda: sandbox.files("outbox") == {"small.png"}, because="the small one to be served")
    assert process.poll() is None


def test_fault_30_reload_with_a_bad_configuration_keeps_the_old_one_and_says_so(gated: Sandbox) -> None:
    process = gated.start()
    path = gated.configure(watch={"rescan_s": 2})
    path.write_text(path.read_text() + "regoins: {}\n")
    process.send_signal(signal.SIGHUP)
    wait_for(lambda: '"configuration_refused"' in gated.log(), because="the refusal")
    wait_for(lambda: "did you mean 'regions'" in trouble(gated), because="the daemon to tell of it")
    first = picture(1)
    gated.drop(first, "a.png")
    wait_until_idle(gated)
    moved = gated.configure(folders={"inbox": "inbox", "outbox": "elsewhere"})
    process.send_signal(signal.SIGHUP)
    wait_for(lambda: "cannot change while the daemon runs" in gated.log(), because="another refusal")
    moved.unlink()
    gated.configure(output={"metadata": "strip-gps"})
    process.send_signal(signal.SIGHUP)
    wait_for(lambda: '"configuration_reloaded"' in gated.log(), because="the good one to be used")
    wait_for(lambda: trouble(gated) == "", because="the trouble to be over")
    second = picture(2)
    gated.drop(second, "b.png")
    wait_until_idle(gated, count=2)
    assert_published(gated, {"a.png": first, "b.png": second})
    documents = json.loads(gated.backfire("jobs", "--json").stdout)
    assert len({document["config_sha256"] for document in documents}) == 2
    assert process.poll() is None


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
def test_fault_31_clock_jumps_do_not_change_how_long_a_file_settles(
    house: Callable[..., House], jump: float
) -> None:
    home = house(watch={"settle_s": 10, "mask_wait_s": 0})
    (home.base / "inbox" / "p.png").write_bytes(picture())
    home.turn(times=5)
    home.wall += jump
    home.turn(times=4)
    assert home.states() == ["settling"], "not before its time"
    home.turn(times=8)
    assert home.states() == ["archived"], "and not after it"


def test_fault_31_a_clock_set_back_does_not_delay_a_retry_by_an_hour(house: Callable[..., House]) -> None:
    home = house(watch={"settle_s": 0})
    (home.base / "inbox" / "p.png").write_bytes(picture())
    jobs = home.service.jobs
    home.turn()
    (job,) = jobs.add([b"q.png"])
    job = jobs.update(job, job.state, not_before=home.wall + 20)
    assert not jobs.due(job)
    home.wall -= 3600
    assert jobs.due(job)
