"""The PREMIS events that a receipt holds."""

from __future__ import annotations

from typing import Any

import pytest

from backfire.evaluate import premis

RECEIPT: dict[str, Any] = {
    "key": "k" * 64,
    "input_sha256": "a" * 64,
    "output_sha256": "b" * 64,
    "verdict": "weak",
    "reasons": ["too alike"],
    "written_as": "PNG",
    "elapsed_s": 10.0,
}


def roles(event: dict[str, Any]) -> dict[str, str]:
    return {
        link["linkingObjectRole"]: link["linkingObjectIdentifierValue"]
        for link in event["linkingObjectIdentifier"]
    }


def test_a_job_has_events_for_digest_creation_and_validation() -> None:
    digest, creation, validation = premis.of_job(RECEIPT, at=110.0)
    assert (digest["eventType"], digest["eventDateTime"]) == (premis.DIGEST, "1970-01-01T00:01:40Z")
    assert roles(digest) == {"source": "a" * 64}
    assert (creation["eventType"], creation["eventDateTime"]) == (premis.CREATION, "1970-01-01T00:01:50Z")
    assert roles(creation) == {"source": "a" * 64, "outcome": "b" * 64}
    assert (validation["eventOutcome"], roles(validation)) == ("weak", {"source": "b" * 64})
    assert "too alike" in validation["eventDetail"]


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({"output_sha256": "a" * 64, "verdict": "unprotected"}, [premis.REPLICATION, premis.VALIDATION]),
        ({"verdict": "unprotected"}, [premis.CREATION, premis.VALIDATION]),
        ({"written_as": None}, [premis.VALIDATION]),
    ],
)
def test_events_of_copied_converted_and_verified_pictures(changes: dict[str, Any], kinds: list[str]) -> None:
    events = premis.of_job({**RECEIPT, **changes}, at=1.0)
    assert [event["eventType"] for event in events][-len(kinds) :] == kinds
    assert ("without protection" in str(events)) == (kinds[0] != premis.VALIDATION)


def test_a_repeated_event_replaces_the_former_one() -> None:
    receipt = {**RECEIPT, "events": premis.of_job(RECEIPT, at=1.0)}
    once = premis.added(receipt, premis.archived(key="k" * 64, at=2.0, sha256="a" * 64, where="p.png"))
    twice = premis.added(once, premis.archived(key="k" * 64, at=3.0, sha256="a" * 64, where="p.png"))
    assert len(receipt["events"]) == 3
    assert [event["eventType"] for event in twice["events"]].count(premis.FIXITY) == 1
    assert twice["events"][-1]["eventDateTime"] == "1970-01-01T00:00:03Z"
