"""The questions of the page to the job database: what its lists hold, in which order, and how they end."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backfire.admin.outcomes import outcomes
from backfire.errors import StoreError
from backfire.service.store.listing import Filters, Listing
from backfire.service.store.store import Store
from backfire.types import Choice, JobState, Verdict
from backfire.web.today import HOURS, Day, Hour, day, plot


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "jobs.sqlite") as opened:
        yield opened


def fill(store: Store, *rows: tuple[str, JobState, Verdict | None]) -> None:
    for at, (name, state, verdict) in enumerate(rows):
        (job,) = store.add([name.encode()], at=at)
        store.update(job.id, state, at=at, verdict=verdict)


def of_day(store: Store, now: float) -> Day:
    listing, since = Listing(store.path), now - HOURS * 3600
    return day(listing.since(since), listing.reviews(since), now)


def names(listing: Listing, section: str, most: int = 100, skip: int = 0) -> list[str]:
    return [job.name for job in listing.jobs(section, most=most, skip=skip)]


def test_what_needs_a_person_is_the_failed_the_held_and_the_weak_in_this_order(store: Store) -> None:
    fill(
        store,
        ("f1", JobState.FAILED, None),
        ("w1", JobState.ARCHIVED, Verdict.WEAK),
        ("h1", JobState.REVIEW, None),
        ("ok", JobState.ARCHIVED, Verdict.PROTECTED),
        ("q1", JobState.QUARANTINED, None),
        ("w2", JobState.PUBLISHED, Verdict.WEAK),
        ("again", JobState.FAILED, None),
        ("again", JobState.ARCHIVED, Verdict.PROTECTED),
        ("accepted", JobState.ARCHIVED, Verdict.WEAK),
    )
    (accepted,) = store.by_path(b"accepted")
    store.update(accepted.id, accepted.state, at=9, choice=Choice.RELEASE)
    listing = Listing(store.path)
    assert names(listing, "done") == ["accepted", "again", "ok"], "what needs a person is not done"
    wanted = ["q1", "f1", "h1", "w2", "w1"]
    assert names(listing, "needs") == wanted
    assert listing.count("needs") == 5
    for most in (1, 2, 3):
        pages = [names(listing, "needs", most=most, skip=skip) for skip in range(0, 5, most)]
        assert [name for page in pages for name in page] == wanted


def test_the_first_page_shows_some_of_each_kind_that_needs_a_person(store: Store) -> None:
    fill(
        store,
        *((f"f{number}", JobState.FAILED, None) for number in range(9)),
        ("h0", JobState.REVIEW, None),
        *((f"w{number}", JobState.ARCHIVED, Verdict.WEAK) for number in range(9)),
    )
    found = [job.name for job in Listing(store.path).of_each_kind("needs", most=7)]
    assert found == ["f8", "f7", "f6", "h0", "w8", "w7", "w6"]
    assert len(Listing(store.path).of_each_kind("needs", most=100)) == 19


def test_lists_of_work_are_in_the_order_of_time_and_others_newest_first(store: Store) -> None:
    fill(
        store,
        ("settling", JobState.SETTLING, None),
        ("first", JobState.READY, None),
        ("second", JobState.READY, None),
        ("at work", JobState.RUNNING, None),
        ("old", JobState.ARCHIVED, None),
        ("new", JobState.ARCHIVED, None),
    )
    listing = Listing(store.path)
    assert names(listing, "waiting") == ["first", "second", "settling"]
    assert names(listing, "working") == ["at work"]
    assert names(listing, "done") == ["new", "old"]


def test_the_page_and_the_commands_count_and_list_the_same(store: Store) -> None:
    fill(
        store,
        ("old", JobState.FAILED, None),
        ("cut", JobState.FAILED, None),
        ("cut", JobState.QUARANTINED, None),  # retried, and failed again
        ("back", JobState.FAILED, None),
        ("back", JobState.READY, None),  # retried, and not worked yet
        ("held", JobState.REVIEW, None),
        ("weak", JobState.ARCHIVED, Verdict.WEAK),
        ("anew", JobState.ARCHIVED, Verdict.WEAK),
        ("anew", JobState.ARCHIVED, Verdict.PROTECTED),  # its original was dropped again
        ("whole", JobState.ARCHIVED, Verdict.WEAK),
    )
    (whole,) = store.by_path(b"whole")
    store.update(whole.id, whole.state, at=9, choice=Choice.WHOLE)  # nobody has seen that it came out weak
    listing = Listing(store.path)
    assert outcomes(listing.tally(1)) == outcomes(store.tally(1))
    assert outcomes(listing.tally(1)) == {"failed": 1, "held": 1, "weak": 3, "protected": 1, "waiting": 1}
    needed = [job for kind in ("failed", "held", "weak") for job in store.needing(kind, 100)]
    assert sorted(job.name for job in needed) == sorted(names(listing, "needs"))
    assert sorted(names(listing, "needs")) == ["cut", "held", "old", "weak", "whole"]
    assert not {"weak", "whole"} & set(names(listing, "done"))
    assert len(store.needing("failed", 1)) == 1


def test_a_held_picture_waits_for_its_decision_whatever_comes_after_it(store: Store) -> None:
    fill(
        store,
        ("a", JobState.REVIEW, None),
        ("a", JobState.ARCHIVED, Verdict.PROTECTED),  # another picture of its name
        ("b", JobState.REVIEW, None),
        ("b", JobState.FAILED, None),
    )
    listing = Listing(store.path)
    assert names(listing, "needs") == ["b", "b", "a"]
    assert [job.name for job in store.needing("held", 9)] == ["b", "a"]


def test_a_file_that_was_taken_away_again_takes_no_place(store: Store) -> None:
    fill(
        store,
        ("cut", JobState.FAILED, None),
        ("cut", JobState.SKIPPED, None),
        ("weak", JobState.ARCHIVED, Verdict.WEAK),
        ("weak", JobState.SKIPPED, None),
    )
    listing = Listing(store.path)
    assert names(listing, "needs") == ["cut", "weak"]
    assert outcomes(listing.tally(0)) == {"weak": 1, "failed": 1, "skipped": 2}
    assert [job.name for job in store.latest(states=(JobState.FAILED,))] == ["cut"], "retry --failed asks so"


def steps_of(listing: Listing, ask: Callable[[], object]) -> int:
    """How many steps of a hundred instructions SQLite takes for an answer, however busy the machine is."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    with listing._reading() as connection:
        connection.set_progress_handler(count, 100)
    ask()
    return steps


def test_done_is_counted_by_indexes_and_the_few_rows_of_weak_jobs(store: Store) -> None:
    weak = [(f"w{number}", JobState.ARCHIVED, Verdict.WEAK) for number in range(3)]
    fill(store, *weak, *((f"p{number}", JobState.ARCHIVED, Verdict.PROTECTED) for number in range(9)))
    listing, asked = Listing(store.path), list[str]()
    with listing._reading() as connection:
        connection.set_trace_callback(asked.append)
    assert listing.count("done") == 9
    assert listing.count("done", Filters(text="p1")) == 1
    with listing._reading() as connection:
        connection.set_trace_callback(None)
    plans = [row[3] for query in asked[:2] for row in listing._rows(f"EXPLAIN QUERY PLAN {query}", [])]
    reads = [plan for plan in plans if re.match("(SCAN|SEARCH) j ", plan)]
    assert len(reads) == 2
    assert all(re.search("COVERING INDEX|jobs_weak", plan) for plan in reads), reads


def test_the_tally_of_a_day_does_not_read_the_jobs_of_a_year(store: Store) -> None:
    with store.together():
        fill(store, *((f"p{number}", JobState.ARCHIVED, Verdict.PROTECTED) for number in range(1000)))
    listing = Listing(store.path)
    assert listing.tally(990) == {(JobState.ARCHIVED, Verdict.PROTECTED): 10}
    assert steps_of(listing, lambda: listing.tally(990)) < 10


def test_the_last_published_picture_may_still_need_a_person(store: Store) -> None:
    fill(store, ("w1", JobState.ARCHIVED, Verdict.WEAK), ("w2", JobState.PUBLISHED, Verdict.WEAK))
    fill(store, ("failed", JobState.FAILED, None))
    latest = Listing(store.path).latest_out()
    assert latest is not None
    assert latest.name == "w2"


def test_a_failure_that_was_tried_again_is_finished_once_in_the_plot(store: Store) -> None:
    now = 1_000_000.0
    for state in (JobState.FAILED, JobState.FAILED, JobState.SKIPPED, JobState.SETTLING):
        path = b"gone" if state == JobState.SKIPPED else b"cut"
        (job,) = store.add([path], at=now)
        store.update(job.id, state, at=now)
    found = of_day(store, now)
    assert (found.finished, found.hours[-1].waiting) == (0, 1), "it waits again, and one was taken away"
    (job,) = (job for job in store.by_path(b"cut") if job.state == JobState.SETTLING)
    store.update(job.id, JobState.FAILED, at=now)
    found = of_day(store, now)
    assert (found.finished, found.hours[-1].waiting) == (1, 0)


def test_a_picture_that_is_held_for_a_person_does_not_wait_in_the_plot(store: Store) -> None:
    now = 999_999.0  # the last second but one of an hour
    hour = 3600.0
    for name, choice, last in (("a", Choice.AGAIN, JobState.READY), ("b", Choice.RELEASE, JobState.ARCHIVED)):
        (job,) = store.add([name.encode()], at=now - 9 * hour)
        store.update(job.id, JobState.HOLDING, at=now - 7 * hour)
        store.update(job.id, JobState.REVIEW, at=now - 7 * hour)
        store.update(job.id, JobState.RELEASING, at=now - 3 * hour, choice=choice)
        store.update(job.id, last, at=now - hour)
    (held,) = store.add([b"held"], at=now - 9 * hour)
    store.update(held.id, JobState.REVIEW, at=now - 7 * hour)
    waited = [one.waiting for one in of_day(store, now).hours[-10:]]
    assert waited == [3, 3, 0, 0, 0, 0, 2, 2, 1, 1]


@pytest.mark.parametrize(
    ("finished", "waiting", "levels"),
    [(0, 0, ["0", "1"]), (3, 1, ["0", "1", "2", "3"]), (9, 70, ["0", "20", "40", "60", "80"])],
)
def test_bars_and_line_of_the_plot_share_an_axis_of_whole_numbers(
    finished: int, waiting: int, levels: list[str]
) -> None:
    drawn = plot([Hour(0, finished, waiting)])
    assert [text for _, text in drawn.levels] == levels
    places = {int(text): y for y, text in drawn.levels}
    ((_, top, _, height),) = drawn.bars
    assert top + height == pytest.approx(places[0])
    if finished in places:
        assert top == pytest.approx(places[finished])


def test_a_search_takes_both_spellings_of_an_accented_letter_and_no_wildcards(store: Store) -> None:
    fill(store, ("caf\u00e9.jpg", JobState.ARCHIVED, None), ("cafe\u0301 2.jpg", JobState.ARCHIVED, None))
    listing = Listing(store.path)
    assert listing.count("done", Filters(text="CAF\u00e9")) == 2
    assert listing.count("done", Filters(text="caf%")) == 0
    assert listing.count("done", Filters(text="caf_")) == 0


def test_a_database_that_is_missing_or_damaged_is_told_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    listing = Listing(path)
    with pytest.raises(StoreError, match="start the daemon"):
        listing.count("all")
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match="start the daemon"):
        listing.count("all")
    path.unlink()
    with Store(path) as store:
        fill(store, ("a", JobState.READY, None))
        assert listing.count("all") == 1


def test_it_cannot_write(store: Store) -> None:
    fill(store, ("a", JobState.READY, None))
    listing = Listing(store.path)
    with pytest.raises(StoreError, match="readonly"):
        listing._rows("DELETE FROM jobs", [])


def test_the_time_that_a_picture_waited_for_a_person_is_no_work(store: Store) -> None:
    def worked(name: str, *steps: tuple[JobState, float]) -> None:
        (job,) = store.add([name.encode()], at=0)
        for state, at in steps:
            store.update(job.id, state, at=at, verdict=Verdict.WEAK)

    worked("plain", (JobState.RUNNING, 10), (JobState.PUBLISHING, 40), (JobState.ARCHIVED, 41))
    worked("retried", (JobState.RUNNING, 10), (JobState.READY, 15), (JobState.RUNNING, 20),
           (JobState.PUBLISHING, 55), (JobState.ARCHIVED, 56))  # fmt: skip
    worked("released", (JobState.RUNNING, 10), (JobState.HOLDING, 35), (JobState.REVIEW, 36),
           (JobState.RELEASING, 9000), (JobState.PUBLISHING, 9001), (JobState.ARCHIVED, 9002))  # fmt: skip
    worked("taken over", (JobState.READY, 10), (JobState.PUBLISHING, 9010), (JobState.ARCHIVED, 9020))
    assert store.seconds_each() == Listing(store.path).seconds_each() == [25, 35, 30]
    assert store.seconds_each(of_last=2) == [25]
