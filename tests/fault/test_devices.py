"""A worker for each of `limits.devices`: they work at the same time, and trouble of one spares the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from backfire import config
from backfire.detectors import Sidecar, Source
from backfire.errors import Code, ConfigError, DeviceError, ModelError
from backfire.pipeline import memory
from backfire.pipeline.protect import protect
from backfire.service.pool import Death, Worker
from backfire.service.worker.protocol import Finished, Order, Progress
from backfire.types import JobState
from benchmarks import passthrough
from tests.support.house import House
from tests.support.jobs import (
    assert_published,
    children_of,
    kill,
    picture,
    states,
    wait_until_idle,
)
from tests.support.pictures import encoded, mask_picture, photo
from tests.support.sandbox import LENIENT, Sandbox, wait_for

Make = Callable[..., House]
TWO: dict[str, Any] = {"devices": ["cpu", "cuda:0"], "free_mb": 0}


def settled(make: Make, *names: str, **sections: Any) -> House:
    """A house of two devices with pictures of these names, ready to be worked."""
    home = make(**{"watch": {"settle_s": 2, "rescan_s": 1}, "limits": TWO, **sections})
    home.drop(*names)
    home.turn(1, 2)
    home.clock += 1
    home.service.intake.step()
    return home


def killed(worker: Worker) -> Death:
    """End a worker's process; returns what the pool reports of that."""
    worker.end()
    return Death("killed")


def at_work(home: House) -> dict[str | None, list[str]]:
    workers = home.service.pool.workers
    return {one.device: [job.name for job in one.running.values()] for one in workers}


def test_each_gets_a_picture_and_gives_it_back_when_the_daemon_ends(house: Make) -> None:
    home = settled(house, "a.png", "b.png", "c.png")
    home.stuck = True
    home.service.dispatcher.step()
    assert at_work(home) == {"cpu": ["a.png"], "cuda:0": ["b.png"]}
    assert [job.name for job in home.service.pool.running] == ["a.png", "b.png"]
    home.service.dispatcher.drain()
    jobs = home.service.jobs.active.values()
    assert [(job.state, job.attempts) for job in jobs] == [(JobState.READY, 0)] * 3


def test_a_worker_that_dies_leaves_the_other_at_work(house: Make) -> None:
    home = settled(house, "a.png", "b.png")
    home.stuck = True
    dispatcher = home.service.dispatcher
    dispatcher.step()
    (job,) = home.worker.running.values()
    home.children[0].report_and_die([Progress(job.id, job.lease, "start", 0, 1)])
    dispatcher.listen(0)
    dispatcher.listen(0)
    assert at_work(home) == {"cpu": [], "cuda:0": ["b.png"]}
    assert {job.name: job.state for job in home.service.jobs.active.values()} == {
        "a.png": JobState.READY,
        "b.png": JobState.RUNNING,
    }


def test_a_picture_with_a_device_of_its_own_goes_there_and_one_without_anywhere(house: Make) -> None:
    rules = [
        {"match": "gpu/*", "protect": {"device": "cuda"}},
        {"match": "far/*", "protect": {"device": "cuda:7"}},
    ]
    home = settled(house, "gpu/1.png", "gpu/2.png", "far/1.png", "far/2.png", rules=rules)
    home.stuck = True
    home.service.dispatcher.step()
    assert at_work(home) == {"cpu": ["far/1.png"], "cuda:0": ["gpu/1.png"]}


def broken_gpu(order: Order, progress: Callable[[str, int, int], None]) -> Finished:
    if order.device == "cuda:0":
        raise ModelError(Code.MODEL, "no such device", retryable=False)
    return passthrough.process(order, progress)


def test_a_broken_device_pauses_alone(house: Make) -> None:
    names = [f"{number}.png" for number in range(12)]
    with capture_logs():
        home = settled(house, *names)
        home.process = broken_gpu
        home.turn(3, 10)
    assert home.states() == ["archived"] * len(names)
    assert {job.attempts for job in home.service.jobs.store.jobs()} == {1}
    pool = home.service.pool
    assert [one.pauses > 0 for one in pool.workers] == [False, True]
    assert pool.pauses == 0, "there is one that can work"


def test_a_broken_device_that_is_always_free_does_not_keep_pictures_from_the_other(house: Make) -> None:
    """Other pictures are worked meanwhile, but by the other device, so that this one must pause."""
    tried: list[str] = []

    def process(order: Order, progress: Callable[[str, int, int], None]) -> Finished:
        if order.device == "cuda:0":
            tried.append(order.name)
        return broken_gpu(order, progress)

    with capture_logs():
        # The broken one is named first, so that each picture is offered to it first.
        home = settled(house, limits={"devices": ["cuda:0", "cpu"], "free_mb": 0})
        home.process, home.seconds = process, 1.0
        for wave in range(4):
            home.drop(*(f"{wave}-{number}.png" for number in range(6)))
            home.turn(1, 10)
    assert home.states() == ["archived"] * 24
    assert len(tried) <= 10, "once after each pause, in some 40 seconds"


@pytest.mark.parametrize(
    ("said", "code", "spent"),
    [
        ("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might", Code.MODEL, True),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", Code.MODEL, True),
        ("CUDA driver error: device-side assert triggered", Code.MODEL, True),
        ("CUDA error: out of memory", Code.OUT_OF_MEMORY, False),
        (
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            Code.OUT_OF_MEMORY,
            False,
        ),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", Code.OUT_OF_MEMORY, False),
        ("DefaultCPUAllocator: can't allocate memory", Code.OUT_OF_MEMORY, False),
        ("mat1 and mat2 shapes cannot be multiplied", None, False),
    ],
)
def test_torchs_error_for_a_failed_device_is_told_apart_from_that_for_too_little_memory(
    said: str, code: Code | None, spent: bool
) -> None:
    with pytest.raises((ModelError, RuntimeError)) as caught, memory.memory_errors("a.png"):
        raise RuntimeError(said)
    assert getattr(caught.value, "code", None) == code
    assert isinstance(caught.value, DeviceError) is spent


def test_a_gpu_that_fails_at_work_gets_a_new_process_and_the_picture_loses_no_attempt(house: Make) -> None:
    """One picture makes it fail each time: new processes work the others, and at last it is set aside."""
    failures: list[str] = []

    def process(order: Order, progress: Callable[[str, int, int], None]) -> Finished:
        if order.name == "bad.png" or not failures:
            failures.append(order.name)
            raise DeviceError(f"{order.name}: the GPU failed at work (CUDA error: unspecified)")
        return passthrough.process(order, progress)

    with capture_logs():
        home = settled(house, "a.png", "b.png", "bad.png", limits={"free_mb": 0})
        home.process = process
        home.turn(60, 10)
    jobs = {job.name: job for job in home.service.jobs.store.jobs()}
    assert (jobs["a.png"].state, jobs["b.png"].state) == (JobState.ARCHIVED, JobState.ARCHIVED)
    assert (jobs["a.png"].attempts, jobs["b.png"].attempts) == (1, 1)
    assert len(home.children) - len(failures) in (0, 1), "each failure ends one process"
    assert failures.count("bad.png") > 1
    for number in range(8):
        home.drop(f"{number}.png")
        with capture_logs():
            home.turn(12, 10)
    bad = next(job for job in home.service.jobs.store.jobs() if job.name == "bad.png")
    assert (bad.state, bad.code) == (JobState.FAILED, "model")
    assert "others were worked while this one was refused" in str(bad.message)


def test_the_last_attempt_is_made_alone(house: Make) -> None:
    """If another picture ended the daemon meanwhile, the one on its last attempt would be set aside."""
    home = settled(house, "a.png", "b.png", "c.png", protect={"attempts": 2})
    home.stuck = True
    home.service.dispatcher.step()
    home.crash()
    home.again()
    dispatcher, jobs = home.service.dispatcher, home.service.jobs
    assert [job.attempts for job in jobs.active.values()] == [1, 1, 0]
    dispatcher.step()
    assert at_work(home) == {"cpu": ["a.png"], "cuda:0": []}
    with capture_logs():
        home.worker.current = next(iter(home.worker.running))
        dispatcher._died(home.worker, killed(home.worker))
    dispatcher.step()
    assert at_work(home) == {"cpu": ["b.png"], "cuda:0": []}
    assert [job.code for job in jobs.of(JobState.SETTING_ASIDE)] == ["worker_died"]


def test_a_reload_takes_a_device_away_once_its_picture_is_done(house: Make) -> None:
    home = settled(house, "a.png", "b.png")
    home.stuck = True
    dispatcher, pool, one = home.service.dispatcher, home.service.pool, home.settings
    dispatcher.step()
    for devices in (["cpu"], ["cpu", "cuda:1"]):
        limits = one.limits.model_copy(update={"devices": tuple(devices)})
        pool.configure(one.model_copy(update={"limits": limits}))
    assert [(name, bool(jobs)) for name, jobs in at_work(home).items()] == [
        ("cpu", True),
        ("cuda:1", False),
        ("cuda:0", True),
    ]
    retired = pool.workers[-1]
    dispatcher._died(retired, killed(retired))
    dispatcher.step()
    assert at_work(home) == {"cpu": ["a.png"], "cuda:1": ["b.png"]}


def test_a_reload_without_devices_goes_on_with_one_worker(house: Make) -> None:
    home = settled(house, "a.png", "b.png", limits={"free_mb": 0})
    home.stuck = True
    dispatcher = home.service.dispatcher
    dispatcher.step()
    assert at_work(home) == {None: ["a.png"]}
    home.service.pool.configure(home.settings)
    assert at_work(home) == {None: ["a.png"]}


def test_two_real_workers_work_at_once_and_one_may_be_killed(gated: Sandbox) -> None:
    gated.configure(limits=TWO)
    (gated.base / "gate").write_text("open")
    daemon = gated.start()
    originals = {"a.png": picture(1), "b.png": picture(2)}
    for name, data in originals.items():
        gated.drop(data, name)
    wait_for(lambda: states(gated) == ["running"] * 2, because="both to be at work")
    first, second = children_of(daemon.pid)
    # A worker that dies before it has begun a picture costs no attempt.
    wait_for(lambda: (gated.base / "begun").exists(), because="a worker to have begun")
    kill(first)
    wait_for(lambda: len({first, *children_of(daemon.pid)}) == 3, because="a new process in its place")
    assert second in children_of(daemon.pid), "the other goes on"
    (gated.base / "gate").unlink()
    wait_until_idle(gated)
    assert_published(gated, originals)


def test_a_missing_device_is_named_in_the_error_and_a_device_in_the_settings_wins(tmp_path: Path) -> None:
    section = {"iterations": 1, "margin_px": 16}
    document: dict[str, Any] = {"folders": {"inbox": "inbox"}, "protect": section, "verify": LENIENT}
    data = encoded(photo((96, 96)))
    source = Source("p.png", (Sidecar("p.mask.png", encoded(mask_picture((96, 96), (30, 30, 60, 60)))),))
    with pytest.raises(ModelError, match="cuda:77"):
        protect(data, source, config.parse(document, base=tmp_path), device="cuda:77")
    settings = config.parse({**document, "protect": {**section, "device": "cpu"}}, base=tmp_path)
    assert protect(data, source, settings, device="cuda:77").receipt["device"] == "cpu"


@pytest.mark.parametrize(
    ("devices", "told"),
    [
        (["cuda:0", "cuda:0"], r"limits\.devices.*once"),
        (["auto"], r"limits\.devices\.0.*'auto'"),
        (["cuda"], r"limits\.devices\.0.*'cuda'"),
    ],
)
def test_devices_that_cannot_each_have_a_worker_are_refused(
    tmp_path: Path, devices: list[str], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        config.parse({"folders": {"inbox": "inbox"}, "limits": {"devices": devices}}, base=tmp_path)
