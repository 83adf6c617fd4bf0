"""The questions of the page to the job database: what its lists hold, in which order, and how they end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backfire.errors import StoreError
from backfire.service.store.listing import Filters, Listing
from backfire.service.store.store import Store
from backfire.types import Choice, JobState, Verdict


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "jobs.sqlite") as opened:
        yield opened


def fill(store: Store, *rows: tuple[str, JobState, Verdict | None]) -> None:
    for at, (name, state, verdict) in enumerate(rows):
        (job,) = store.add([name.encode()], at=at)
        store.update(job.id, state, at=at, verdict=verdict)


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
