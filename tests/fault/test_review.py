"""Pictures that are held for a person: at no step is an original lost, or anything published by itself."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backfire import config
from backfire.admin import review
from backfire.admin.review import DecisionRefused
from backfire.errors import InputError
from backfire.files import durable, outbox
from backfire.service.worker.protocol import Finished, Order
from backfire.types import Choice, Job, JobState, Verdict
from benchmarks import passthrough
from tests.support import nothing_found
from tests.support.house import House
from tests.support.jobs import events, picture, states, wait_until_idle
from tests.support.pictures import encoded, mask_picture
from tests.support.sandbox import Sandbox, wait_for
from tests.support.system import full

NOTHING = "tests.support.nothing_found"
SIDECARS: dict[str, Any] = {"detectors": ["sidecar"]}
SOON = {"settle_s": 0, "rescan_s": 1, "mask_wait_s": 0, "incomplete_wait_s": 0}
MASK, OTHER_MASK, THIRD_MASK = (
    encoded(mask_picture((64, 48), box)) for box in ((20, 12, 44, 36), (2, 2, 18, 18), (30, 30, 60, 46))
)

HOLD = [
    "replace", "after replace", "put", "after put", "remove", "after remove", "unlink", "after unlink",
    "record review", "after record review",
]  # fmt: skip
RELEASE = [
    "move", "after move", "unlink", "after unlink", "record publishing", "after record publishing", "place",
    "after place", "append", "record published", "after record published", "remove", "after remove",
    "record archived", "after record archived",
]  # fmt: skip


@pytest.fixture(scope="module")
def to_be_released(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """The daemon has held the picture p.png, and a person has released it; tests work on copies."""
    sandbox = Sandbox(tmp_path_factory.mktemp("held"), NOTHING)
    sandbox.configure(regions=SIDECARS, watch=SOON)
    sandbox.drop(original := picture(), "p.png")
    done = sandbox.backfire("once")
    assert done.returncode == 0, done.stderr
    assert "1 held for review" in done.stderr
    assert_held(sandbox, original)
    assert sandbox.backfire("release", "1").returncode == 0
    return sandbox


def assert_held(sandbox: Sandbox, original: bytes) -> None:
    assert states(sandbox) == ["review"]
    assert sandbox.files("inbox") == sandbox.files("outbox") == sandbox.files("archive") == set()
    assert sandbox.files("review") == {"p.png", "p.png.review.json"}
    assert (sandbox.review / "p.png").read_bytes() == original
    assert list(sandbox.base.rglob(".backfire-*")) == []


def assert_released(sandbox: Sandbox, original: bytes) -> None:
    assert states(sandbox) == ["archived"]
    assert sandbox.files("inbox") == sandbox.files("review") == sandbox.files("failed") == set()
    assert sandbox.files("outbox") == sandbox.files("archive") == {"p.png"}
    assert (sandbox.outbox / "p.png").read_bytes() == original
    assert (sandbox.archive / "p.png").read_bytes() == original
    assert list(sandbox.base.rglob(".backfire-*")) == []
    assert list((sandbox.state / "spool").iterdir()) == []


@pytest.mark.parametrize("step", HOLD)
def test_killed_while_it_is_held(sandbox: Sandbox, step: str) -> None:
    sandbox.configure(regions=SIDECARS, watch=SOON)
    sandbox.drop(original := picture(), "p.png")
    killed = sandbox.killed_once(step, NOTHING)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    sandbox.module = NOTHING
    assert sandbox.backfire("once").returncode == 0
    assert_held(sandbox, original)
    assert events(sandbox).count("running") == 1
    assert sandbox.backfire("release", "1").returncode == 0
    assert sandbox.backfire("once").returncode == 0
    assert_released(sandbox, original)


@pytest.mark.parametrize("step", RELEASE)
def test_killed_while_it_is_released(to_be_released: Sandbox, tmp_path: Path, step: str) -> None:
    base = shutil.copytree(to_be_released.base, tmp_path / "copy", symlinks=True)
    sandbox, original = Sandbox(base, NOTHING), picture()
    killed = sandbox.killed_once(step, NOTHING)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert sandbox.backfire("once").returncode == 0
    assert_released(sandbox, original)
    assert events(sandbox).count("running") == 1, "what is released was worked before"


def test_a_person_decides_while_the_daemon_runs(sandbox: Sandbox) -> None:
    told = sandbox.base / "told"
    sandbox.module = NOTHING
    hooks = {"command": ["sh", "-c", "cat >> told && echo >> told"]}
    sandbox.configure(regions=SIDECARS, hooks=hooks)
    originals = {name: picture(seed) for seed, name in enumerate(("a.png", "b.png", "d/c.png"))}
    for name, data in originals.items():
        sandbox.drop(data, name)
    sandbox.start()
    wait_for(lambda: states(sandbox) == ["review"] * 3, because="all to be held")
    listed = json.loads(sandbox.backfire("release", "--json").stdout)
    assert {row["file"]: row["code"] for row in listed} == dict.fromkeys(originals, "no_region")
    number = {row["file"]: str(row["job"]) for row in listed}
    mask = sandbox.base / "painted.png"
    mask.write_bytes(MASK)
    assert sandbox.backfire("release", number["a.png"]).returncode == 0
    assert sandbox.backfire("release", number["b.png"], "--mask", str(mask)).returncode == 0
    assert sandbox.backfire("release", number["d/c.png"], "--whole").returncode == 0
    wait_for(lambda: set(states(sandbox)) == {"archived"}, because="all to be published")
    wait_until_idle(sandbox)
    assert sandbox.files("outbox") == set(originals)
    assert sandbox.files("archive") == {*originals, "b.mask.png"}
    assert sandbox.files("review") == set()
    late = sandbox.backfire("release", number["a.png"])
    assert late.returncode == 3
    assert "is not held any more, it is archived since" in late.stdout
    wait_for(lambda: len(told.read_text().splitlines()) == 6, because="every hook")
    payloads = [json.loads(line) for line in told.read_text().splitlines()]
    assert [payload["event"] for payload in payloads].count("review") == 3
    first = next(payload for payload in payloads if payload["event"] == "review")
    assert first["folder"] == str(sandbox.review)


# In this process


def weak(order: Order, progress: Callable[[str, int, int], None]) -> Finished:
    outcome = passthrough.process(order, progress)
    return replace(outcome, verdict=Verdict.WEAK, reasons=("the near edit changes",))


@pytest.fixture
def home(house: Callable[..., House]) -> House:
    """A house that holds p.png, in which nothing was found."""
    home = house(watch=SOON, regions=SIDECARS)
    home.process = nothing_found.process
    (home.base / "inbox" / "p.png").write_bytes(picture())
    home.turn(times=6)
    assert home.states() == ["review"]
    return home


def job(home: House, number: int = 1) -> Job:
    found = home.service.jobs.store.get(number)
    assert found is not None
    return found


def test_what_is_held_says_why_and_keeps_only_its_result(home: House) -> None:
    one = job(home)
    assert (one.code, one.verdict, one.choice) == ("no_region", None, None)
    assert "backfire release 1" in (one.message or "")
    note = json.loads(home.files("review")["p.png.review.json"])
    assert (note["job"], note["code"]) == (1, "no_region")
    assert set(home.files("state/spool/1")) == {"output", "receipt.json", "result.json", "taken.json"}
    assert home.files("reports") == {}, "a receipt would say that it was published"
    home.crash()
    home.again()
    assert "output" in home.files("state/spool/1"), "a restart keeps it"


def test_the_first_decision_counts(home: House) -> None:
    released = review.release(home.settings, 1, by="anna")
    assert (released.state, released.choice) == (JobState.RELEASING, Choice.RELEASE)
    with pytest.raises(DecisionRefused, match=r"job 1 \(p.png\): is not held any more, it is releasing"):
        review.protect_whole(home.settings, 1, by="ben")
    home.turn(times=4)
    assert home.states() == ["archived"]
    assert job(home).verdict == Verdict.UNPROTECTED
    assert "'by': 'anna'" in home.reasons()
    receipt = json.loads(home.files("reports")["p.png.json"])
    assert (receipt["decision"]["choice"], receipt["decision"]["by"]) == ("release", "anna")
    with pytest.raises(DecisionRefused, match="job 7: is not known"):
        review.release(home.settings, 7, by="ben")


def test_the_whole_is_protected_under_settings_of_its_own(home: House) -> None:
    before = job(home)
    review.protect_whole(home.settings, 1, by="anna")
    home.turn(times=6)
    after = job(home)
    assert (after.state, after.verdict) == (JobState.ARCHIVED, Verdict.PROTECTED)
    assert after.config_sha256 != before.config_sha256
    assert after.key != before.key


def test_a_folder_that_a_release_makes_in_the_inbox_stays_the_desks(house: Callable[..., House]) -> None:
    home = house(watch=SOON, regions=SIDECARS)
    home.process = nothing_found.process
    inbox = home.base / "inbox"
    inbox.chmod(0o2770)
    (inbox / "desk").mkdir()
    (inbox / "desk" / "p.png").write_bytes(picture())
    home.turn(times=6)
    assert home.states() == ["review"]
    (inbox / "desk").rmdir()
    review.release(home.settings, 1, by="anna")
    before = os.umask(0o027)
    try:
        home.turn(times=4)
    finally:
        os.umask(before)
    assert home.states() == ["archived"]
    assert stat.S_IMODE((inbox / "desk").stat().st_mode) == 0o2770


def test_a_mask_that_does_not_fit_is_refused_before_anything_moves(home: House) -> None:
    small, blank = (
        encoded(mask_picture((32, 24), (8, 8, 16, 16))),
        encoded(mask_picture((64, 48), (0, 0, 0, 0))),
    )
    for data, why in ((small, "32x24"), (blank, "marks nothing"), (b"no picture", "mask")):
        with pytest.raises(InputError, match=why):
            review.add_mask(home.settings, 1, "m.png", data, by="anna")
    with pytest.raises(DecisionRefused, match=r"expected a mask \.png or a \.json"):
        review.add_mask(home.settings, 1, "m.gif", small, by="anna")
    assert set(home.files("review")) == {"p.png", "p.png.review.json"}
    assert home.states() == ["review"]


def test_a_mask_that_somebody_put_there_is_not_passed_over(home: House) -> None:
    (home.base / "review" / "p.mask.png").write_bytes(MASK)
    with pytest.raises(DecisionRefused, match=r"the mask p\.mask\.png lies beside it; use --again"):
        review.release(home.settings, 1, by="anna")
    review.work_again(home.settings, 1, by="anna")
    home.turn(times=6)
    assert home.states() == ["archived"]
    assert job(home).verdict == Verdict.PROTECTED
    assert set(home.files("archive")) == {"p.png", "p.mask.png"}


def test_another_picture_of_its_name_comes_first(home: House) -> None:
    (home.base / "inbox" / "p.png").write_bytes(newer := picture(1))
    home.turn()
    with pytest.raises(DecisionRefused, match="another file of its name is being worked as job 2"):
        review.release(home.settings, 1, by="anna")
    home.turn(times=6)
    assert home.states() == ["review", "review"]
    review.release(home.settings, 2, by="anna")
    home.turn(times=4)
    review.release(home.settings, 1, by="anna")
    home.turn(times=4)
    assert home.states() == ["archived", "archived"]
    assert sorted(home.files("archive").values()) == sorted([picture(), newer])
    assert len(home.files("outbox")) == 2


def test_a_name_that_was_just_taken_leaves_it_held(home: House) -> None:
    review.release(home.settings, 1, by="anna")
    (home.base / "inbox" / "p.png").write_bytes(newer := picture(1))
    home.turn(times=1)
    assert home.states() == ["review"]
    assert home.files("review")["p.png"] == picture()
    assert "decide again when that is done" in home.reasons()
    home.turn(times=6)
    assert home.states() == ["review", "review"]
    assert {picture(), newer} <= set(home.files("review").values())


def test_the_same_picture_again_is_held_once(home: House) -> None:
    (home.base / "inbox" / "p.png").write_bytes(picture())
    home.turn(times=6)
    assert home.states() == ["skipped", "review"]
    assert set(home.files("review")) == {"p.png", "p.png.review.json"}
    assert os.listdir(home.base / "state" / "spool") == ["2"], "what was held before leaves nothing"


def test_an_original_that_was_taken_away_is_said(home: House) -> None:
    review.release(home.settings, 1, by="anna")
    (home.base / "review" / "p.png").unlink()
    home.turn(times=2)
    assert home.states() == ["skipped"]
    assert "taken out of the review folder" in home.reasons()


def test_a_review_folder_that_is_away_for_a_moment_costs_nothing(home: House) -> None:
    review.release(home.settings, 1, by="anna")
    (home.base / "review").rename(home.base / "away")
    (home.base / "review").mkdir()  # the mount point of a share
    home.turn()
    (home.base / "review").rmdir()
    (home.base / "away").rename(home.base / "review")
    home.turn(times=2)
    assert home.states() == ["review"]
    assert "decide when they are" in home.reasons()
    review.release(home.settings, 1, by="anna")
    home.turn(times=4)
    assert home.states() == ["archived"]


@pytest.mark.parametrize("folder", ["review", "inbox"])
def test_a_file_that_cannot_be_read_for_a_moment_costs_no_decision(
    home: House, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    real = durable.file_sha256
    top = os.fsencode(home.base / folder)

    def failing(path: bytes | Path, **how: bool) -> str:
        if os.fsencode(path).startswith(top):
            raise OSError(5, "Input/output error")
        return real(path, **how)

    review.release(home.settings, 1, by="anna")
    with monkeypatch.context() as patch:
        patch.setattr(durable, "file_sha256", failing)
        home.live(120, times=15)  # more rounds than the daemon may fail in a row
        assert home.states() == ["releasing"]
    home.turn(120, times=4)
    assert home.states() == ["archived"]


def test_an_error_of_the_system_costs_only_the_job_that_it_met(
    home: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: Any, one: Job) -> None:
        raise OSError(5, "Input/output error")

    review.release(home.settings, 1, by="anna")
    with monkeypatch.context() as patch:
        patch.setattr(type(home.service.publisher._review), "release", failing)
        home.live(20, times=40)  # it fails more often than the daemon may fail in a row
        (home.base / "inbox" / "q.png").write_bytes(picture(1))
        home.live(times=6)
        assert home.states() == ["releasing", "review"]
    home.turn(120, times=4)
    assert home.states() == ["archived", "review"]


def test_without_its_original_nothing_can_be_decided(home: House) -> None:
    (home.base / "review" / "p.png").unlink()
    with pytest.raises(DecisionRefused, match="its original is not in"):
        review.release(home.settings, 1, by="anna")
    assert home.states() == ["review"]


def test_a_result_that_is_gone_is_made_again_and_published(home: House) -> None:
    (home.base / "state" / "spool" / "1" / "output").write_bytes(b"damaged")
    review.release(home.settings, 1, by="anna")
    home.turn(times=8)
    assert home.states() == ["archived"]
    assert home.files("outbox")["p.png"] == picture()


@pytest.mark.parametrize("lost", ["before it is released", "before it is published"])
def test_a_result_that_is_made_again_is_not_published_by_a_decision_about_another(
    house: Callable[..., House], lost: str
) -> None:
    home = house(watch=SOON, regions={"none_found": "review"}, verify={"on_weak": "review"})
    home.process = weak
    home.drop("p.png")
    home.turn(times=6)
    assert review.accept(home.settings, 1, by="anna").state == JobState.RELEASING
    home.service.jobs.take_up_decided()
    if lost == "before it is published":
        home.service.publisher._review.release(job(home))
        assert job(home).state == JobState.PUBLISHING
    shutil.rmtree(home.base / "state" / "spool")
    home.process = nothing_found.process
    home.turn(times=8)
    assert (job(home).state, job(home).code, job(home).choice) == (JobState.REVIEW, "no_region", None)
    assert home.files("outbox") == {}


def test_a_weak_result_that_is_made_again_is_not_accepted_by_the_release_of_an_unprotected_one(
    home: House,
) -> None:
    (home.base / "state" / "spool" / "1" / "output").write_bytes(b"damaged")
    review.release(home.settings, 1, by="anna")
    home.process = weak
    home.turn(times=8)
    assert (job(home).state, job(home).verdict) == (JobState.ARCHIVED, Verdict.WEAK)
    assert job(home).needs_acceptance


def test_a_decision_is_about_this_content_alone(home: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture that replaces the released one in the inbox is held again."""
    review.release(home.settings, 1, by="anna")
    real = outbox.move

    def replaced(root: Path, source: bytes, folder: Path, path: bytes, **how: Any) -> bytes:
        placed = real(root, source, folder, path, **how)
        (folder / os.fsdecode(path)).unlink()
        (folder / os.fsdecode(path)).write_bytes(picture(5))
        return placed

    monkeypatch.setattr(outbox, "move", replaced)
    home.turn(times=8)
    assert home.states() == ["review"]
    assert home.files("outbox") == {}
    assert home.files("review")["p.png"] == picture(5)


@pytest.mark.parametrize(
    ("on_weak", "state"), [("review", "review"), ("publish", "archived"), ("fail", "failed")]
)
def test_a_weak_picture_may_be_held_too(house: Callable[..., House], on_weak: str, state: str) -> None:
    home = house(watch=SOON, verify={"on_weak": on_weak})
    home.process = weak
    (home.base / "inbox" / "p.png").write_bytes(picture())
    home.turn(times=6)
    assert home.states() == [state]
    if state == "review":
        assert (job(home).code, job(home).verdict) == ("weak", Verdict.WEAK)
        assert set(home.files("reports")) == {"p.png.json"}, "it helps to decide"
        review.release(home.settings, 1, by="anna")
        home.turn(times=4)
        assert (job(home).state, job(home).verdict) == (JobState.ARCHIVED, Verdict.WEAK)
        assert job(home).message == "the near edit changes"
        (receipt,) = map(json.loads, home.files("reports").values())
        assert (receipt["decision"]["choice"], receipt["decision"]["by"]) == ("release", "anna")


def test_a_weak_picture_is_accepted_whether_it_is_held_or_published(house: Callable[..., House]) -> None:
    home = house(watch=SOON, rules=[{"match": "held.png", "verify": {"on_weak": "review"}}])
    home.process = weak
    home.drop("held.png", "published.png")
    home.turn(times=6)
    numbers = {one.name: one.id for one in review.weak(home.settings)}
    assert set(numbers) == {"held.png", "published.png"}
    before = home.files("outbox")
    with pytest.raises(
        DecisionRefused, match=f"is published already; backfire accept {numbers['published.png']}"
    ):
        review.release(home.settings, numbers["published.png"], by="anna")
    assert review.accept(home.settings, numbers["published.png"], by="anna").state == JobState.ARCHIVED
    assert home.files("outbox") == before
    assert review.accept(home.settings, numbers["held.png"], by="anna").state == JobState.RELEASING
    home.turn(times=4)
    assert set(home.files("outbox")) == {"held.png", "published.png"}
    assert review.weak(home.settings) == []
    for number in numbers.values():
        with pytest.raises(DecisionRefused, match="was accepted already; nothing was changed"):
            review.accept(home.settings, number, by="ben")


def test_what_is_not_weak_cannot_be_accepted(home: House) -> None:
    with pytest.raises(DecisionRefused, match=r"job 1 \(p.png\): is not weak; nothing was changed"):
        review.accept(home.settings, 1, by="anna")
    with pytest.raises(DecisionRefused, match="job 9: is not known"):
        review.accept(home.settings, 9, by="anna")


@pytest.mark.parametrize("step", ["look_beside", "copy", "remove", "update"])
def test_a_step_that_fails_is_done_again(
    house: Callable[..., House], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    home = house(watch=SOON, regions=SIDECARS)
    home.process = nothing_found.process
    owner = {
        "look_beside": type(home.service.inbox),
        "copy": type(home.service.publisher._originals),
        "remove": type(home.service.publisher._originals),
        "update": type(home.service.jobs.store),
    }[step]
    real, failed = getattr(owner, step), list[str]()

    def once(self: Any, *arguments: Any, **options: Any) -> Any:
        holding = any(one.state == JobState.HOLDING for one in home.service.jobs.active.values())
        if holding and not failed:
            failed.append(step)
            raise OSError(5, "Input/output error")
        return real(self, *arguments, **options)

    monkeypatch.setattr(owner, step, once)
    (home.base / "inbox" / "p.png").write_bytes(picture())
    home.live(5, times=12)
    assert failed == [step]
    assert home.states() == ["review"]
    assert home.files("review")["p.png"] == picture()
    assert home.files("inbox") == {}


@pytest.mark.parametrize("moment", ["before it is held", "later"])
def test_a_mask_in_the_inbox_is_a_decision(
    house: Callable[..., House], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    home = house(watch=SOON, regions=SIDECARS)
    mask = home.base / "inbox" / "p.mask.png"

    home.process = nothing_found.process
    if moment.startswith("before"):
        real = type(home.service.jobs).end

        def end(self: Any, one: Job, state: JobState, **told: Any) -> None:
            if state == JobState.REVIEW:
                mask.write_bytes(MASK)
            real(self, one, state, **told)

        monkeypatch.setattr(type(home.service.jobs), "end", end)
    (home.base / "inbox" / "p.png").write_bytes(picture())
    home.turn(times=6)
    if moment == "later":
        assert home.states() == ["review"]
        mask.write_bytes(MASK)
    home.turn(10, times=16)
    assert home.states() == ["archived"]
    assert job(home).verdict == Verdict.PROTECTED
    assert set(home.files("archive")) == {"p.png", "p.mask.png"}
    assert "the mask p.mask.png" in home.reasons()


def test_the_mask_of_the_next_picture_of_the_name_moves_no_held_original(home: House) -> None:
    (home.base / "inbox/p.mask.png").write_bytes(MASK)
    home.turn(5, times=8)  # a slow upload: the masks first, then the pictures
    assert home.states() == ["review"]
    assert home.files("review")["p.png"] == picture()
    (home.base / "inbox/p.png").write_bytes(picture(1))
    home.turn(5, times=6)
    assert home.states() == ["review", "archived"]
    assert home.files("review")["p.png"] == picture()


def test_a_mask_of_a_picture_on_its_way_back_is_no_picture_itself(home: House) -> None:
    (home.base / "inbox/masks").mkdir()
    (home.base / "inbox/masks/p.png").write_bytes(MASK)
    with full(home.base / "inbox"):
        home.turn(20, times=12)
        assert home.states() == ["releasing"]
    home.turn(60, times=8)
    assert home.states() == ["archived"]
    assert set(home.files("archive")) == {"p.png", "masks/p.png"}


def test_a_mask_of_another_picture_decides_nothing(home: House) -> None:
    (home.base / "inbox" / "other.mask.png").write_bytes(MASK)
    home.turn(10, times=16)
    assert home.states() == ["review"]


# Masks and proofs of held pictures


@pytest.fixture
def two(house: Callable[..., House]) -> House:
    """A house that holds two weak pictures of one name, p.png, each with a mask of its own."""
    home = house(watch=SOON, regions=SIDECARS, verify={"on_weak": "review"})
    home.process = weak
    for seed, mask in enumerate((MASK, OTHER_MASK)):
        drop(home, "p.png", picture(seed), mask)
    assert home.states() == ["review", "review"]
    return home


def drop(home: House, name: str, data: bytes, mask: bytes | None = None) -> None:
    """Put a picture and its mask into the inbox, and have them worked."""
    if mask is not None:
        (home.base / "inbox" / "p.mask.png").write_bytes(mask)
    (home.base / "inbox" / name).write_bytes(data)
    home.turn(times=6)


def masks_worked(home: House) -> list[tuple[int, bytes]]:
    """From now on, which job was worked with which mask; filled as the house works."""
    worked: list[tuple[int, bytes]] = []
    process = home.process

    def noting(order: Order, progress: Callable[[str, int, int], None]) -> Any:
        worked.append((order.job, b"".join((order.folder / file).read_bytes() for _, file in order.masks)))
        return process(order, progress)

    home.process = noting
    return worked


@pytest.mark.parametrize("first", [1, 2])
def test_each_of_two_held_pictures_of_a_name_keeps_its_own_mask(two: House, first: int) -> None:
    worked = masks_worked(two)
    for number in (first, 3 - first):
        review.accept(two.settings, number, by="anna")
        two.turn(times=6)
        assert job(two, number).state == JobState.ARCHIVED
    assert worked == [], "both results are those that were accepted"
    assert two.files("review") == two.files("inbox") == {}
    assert sorted(two.files("archive").values()) == sorted([picture(0), picture(1), MASK, OTHER_MASK])


@pytest.mark.parametrize("number", [1, 2])
def test_a_mask_for_one_of_two_held_pictures_is_not_given_to_the_other(two: House, number: int) -> None:
    worked = masks_worked(two)
    own = {1: MASK, 2: OTHER_MASK}[number]
    review.add_mask(two.settings, number, "m.png", THIRD_MASK, by="anna")
    two.turn(times=6)
    assert worked == [(number, own + THIRD_MASK)]
    review.accept(two.settings, 3 - number, by="anna")
    two.turn(times=6)
    assert job(two, 3 - number).state == JobState.ARCHIVED
    assert len(worked) == 1


def test_the_mask_of_one_held_picture_is_no_decision_about_another_without_one(
    house: Callable[..., House],
) -> None:
    home = house(watch=SOON, regions=SIDECARS, verify={"on_weak": "review"})
    home.process = weak
    drop(home, "p.png", picture(), MASK)
    home.process = nothing_found.process
    drop(home, "p.png", picture(1))
    worked = masks_worked(home)
    review.work_again(home.settings, 2, by="anna")
    home.turn(times=6)
    assert worked == [(2, b"")]
    assert job(home, 2).state == JobState.REVIEW
    review.release(home.settings, 2, by="anna")
    home.turn(times=4)
    assert (job(home, 1).state, job(home, 2).state) == (JobState.REVIEW, JobState.ARCHIVED)
    assert home.files("review")["p.mask.png"] == MASK


def test_a_mask_that_two_held_pictures_share_goes_back_with_each(house: Callable[..., House]) -> None:
    home = house(watch=SOON, regions=SIDECARS, verify={"on_weak": "review"})
    home.process = weak
    (home.base / "inbox" / "p.jpg").write_bytes(picture(1))
    drop(home, "p.png", picture(), MASK)
    worked = masks_worked(home)
    for number in (1, 2):
        review.accept(home.settings, number, by="anna")
        home.turn(times=6)
    assert home.states() == ["archived", "archived"]
    assert worked == []
    assert home.files("review") == home.files("inbox") == {}


def test_a_mask_that_was_changed_beside_a_held_picture_is_not_published_unseen(
    house: Callable[..., House],
) -> None:
    home = house(watch=SOON, regions=SIDECARS, verify={"on_weak": "review"})
    home.process = weak
    drop(home, "p.png", picture(), MASK)
    worked = masks_worked(home)
    (home.base / "review" / "p.mask.png").write_bytes(OTHER_MASK)
    review.accept(home.settings, 1, by="anna")
    home.turn(times=8)
    assert worked == [(1, OTHER_MASK)]
    assert (job(home).state, job(home).choice) == (JobState.REVIEW, None)
    assert home.files("outbox") == {}
    assert "not those of the result that was released" in home.reasons()


def test_a_mask_that_changes_while_a_release_is_worked_again_is_not_published_unseen(
    house: Callable[..., House],
) -> None:
    home = house(watch=SOON, regions=SIDECARS, verify={"on_weak": "review"})
    home.process = weak
    drop(home, "p.png", picture(), MASK)
    (home.base / "state" / "spool" / "1" / "output").write_bytes(b"damaged")
    review.accept(home.settings, 1, by="anna")
    home.service.jobs.take_up_decided()
    home.service.publisher.step()
    assert (job(home).state, job(home).choice) == (JobState.SETTLING, Choice.RELEASE)
    (home.base / "inbox" / "p.mask.png").write_bytes(OTHER_MASK)
    home.turn(times=8)
    assert (job(home).state, job(home).choice) == (JobState.REVIEW, None)


@pytest.mark.parametrize("proof", ["p.png.done", "P.PNG.done"])
@pytest.mark.parametrize("again", [False, True])
def test_mask_and_proof_of_a_released_picture_do_not_wait_for_the_next_of_its_name(
    house: Callable[..., House], proof: str, again: bool
) -> None:
    home = house(watch={**SOON, "proof": "done"}, regions=SIDECARS, verify={"on_weak": "review"})
    home.process = weak
    (home.base / "inbox" / proof).touch()
    drop(home, "p.png", picture(), MASK)
    if again:
        review.work_again(home.settings, 1, by="anna")
        home.turn(times=8)
    review.accept(home.settings, 1, by="anna")
    home.turn(times=4)
    assert home.states() == ["archived"]
    assert home.files("inbox") == home.files("review") == {}
    assert set(home.files("archive")) == {"p.png", "p.mask.png", proof}


def test_a_further_mask_beside_a_weak_picture_is_not_passed_over(house: Callable[..., House]) -> None:
    home = house(watch=SOON, regions=SIDECARS, verify={"on_weak": "review"})
    home.process = weak
    drop(home, "p.png", picture(), MASK)
    (home.base / "review" / "p.png.mask.png").write_bytes(OTHER_MASK)
    with pytest.raises(DecisionRefused, match=r"the mask p\.png\.mask\.png lies beside it; use --again"):
        review.accept(home.settings, 1, by="anna")
    worked = masks_worked(home)
    review.work_again(home.settings, 1, by="anna")
    home.turn(times=8)
    assert worked == [(1, MASK + OTHER_MASK)]


def test_a_mask_decides_about_the_newest_of_two_held_pictures_of_a_name(home: House) -> None:
    drop(home, "p.png", picture(1))
    assert home.states() == ["review", "review"]
    (home.base / "inbox" / "p.mask.png").write_bytes(MASK)
    home.turn(10, times=16)
    assert home.states() == ["review", "archived"]
    assert job(home, 2).verdict == Verdict.PROTECTED


def test_a_person_may_decide_just_before_a_mask_does(home: House, monkeypatch: pytest.MonkeyPatch) -> None:
    drop(home, "p.png", picture(1))
    (home.base / "inbox" / "p.mask.png").write_bytes(MASK)
    store, real = type(home.service.jobs.store), type(home.service.jobs.store).all_in

    def decided(self: Any, state: JobState) -> list[Job]:
        found = real(self, state)
        if state == JobState.REVIEW and len(found) == 2:
            self.decide(1, Choice.WHOLE, by="anna", at=home.wall)
        return found

    monkeypatch.setattr(store, "all_in", decided)
    home.turn(40, times=3)
    assert job(home, 1).choice == Choice.WHOLE
    assert job(home, 2).state == JobState.REVIEW


def test_a_proof_that_is_asked_for_since_a_reload_goes_back_with_its_picture(
    house: Callable[..., House],
) -> None:
    home = house(watch=SOON, regions=SIDECARS)
    home.process = nothing_found.process
    folders = {"inbox": "inbox"}
    new = {
        "folders": folders, "limits": {"free_mb": 0}, "regions": SIDECARS, "watch": {**SOON, "proof": "done"}
    }  # fmt: skip
    home.service.load = lambda: config.parse(new, base=home.base)
    home.service.reload()
    home.turn()
    (home.base / "inbox" / "p.png.done").touch()
    drop(home, "p.png", picture())
    review.work_again(home.settings, 1, by="anna")
    home.turn()
    assert set(home.files("inbox")) == {"p.png", "p.png.done"}


def test_a_released_original_is_not_put_back_through_a_link(home: House) -> None:
    home.drop("d/q.png", content=picture(2))
    home.turn(times=4)
    assert home.states() == ["review", "review"]
    shutil.rmtree(home.base / "inbox/d")
    (home.base / "inbox/d").symlink_to("../outbox")
    review.release(home.settings, 2, by="anna")
    home.turn(times=4)
    assert home.files("outbox") == {}
    assert {"d/q.png", "d/q.png.review.json"} < set(home.files("review"))
    assert "replace the link by a folder" in home.reasons()
    (home.base / "inbox/d").unlink()
    home.turn(60, times=4)
    assert home.states() == ["review", "archived"]


def test_a_decision_while_the_jobs_are_read_costs_no_result(
    home: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = type(home.service.jobs.store)
    decided = False

    def deciding(real: Callable[..., list[Job]]) -> Callable[..., list[Job]]:
        def read(self: Any, *given: Any) -> list[Job]:
            nonlocal decided
            found = real(self, *given)
            if not decided:
                decided = True
                self.decide(1, Choice.RELEASE, by="anna", at=home.wall)
            return found

        return read

    for name in ("active", "all_in"):
        monkeypatch.setattr(store, name, deciding(getattr(store, name)))
    home.crash()
    home.again()
    assert (home.base / "state/spool/1/output").exists()
    worked = len(home.sent)
    home.turn(times=4)
    assert home.states() == ["archived"]
    assert len(home.sent) == worked, "it was published as it was"


def reloaded(home: House, **sections: Any) -> None:
    new = {"folders": {"inbox": "inbox"}, "limits": {"free_mb": 0}, "regions": SIDECARS, "watch": SOON}
    home.service.load = lambda: config.parse({**new, **sections}, base=home.base)
    home.service.reload()
    home.turn()


def test_the_same_picture_under_other_settings_is_held_once(home: House) -> None:
    reloaded(home, protect={"strength": "subtle"})
    drop(home, "p.png", picture())
    assert home.states() == ["skipped", "review"]
    assert job(home, 1).key != job(home, 2).key
    review.release(home.settings, 2, by="anna")
    home.turn(times=4)
    assert home.states() == ["skipped", "archived"]


def test_of_two_masks_of_a_held_picture_the_other_does_not_stay_for_ever(house: Callable[..., House]) -> None:
    home = house(watch=SOON, regions=SIDECARS, verify={"on_weak": "review"})
    home.process = weak
    for mask in (MASK, OTHER_MASK):
        drop(home, "p.png", picture(), mask)
    assert home.states() == ["review", "review"]
    review.release(home.settings, 2, by="anna")
    home.turn(times=4)
    assert home.states() == ["skipped", "archived"]
    assert "it is the same picture as job 2, which was decided about" in home.reasons()
