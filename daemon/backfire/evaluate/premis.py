"""What happened to a picture, as PREMIS events in its receipt.

Semantic units have the names of the PREMIS Data Dictionary 3.0 (Library of Congress, 2015), without
containers that would hold a single unit. Event types come from the vocabulary
id.loc.gov/vocabulary/preservation/eventType. An event's identifier is derived from the job's key and the
event's type, so that a step that is done again replaces its event.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

from backfire import __version__

NAMESPACE = uuid.UUID("5f0a7f0e-3a4c-5d0b-9c53-6d1c2b6f7a10")

DIGEST = "message digest calculation"
CREATION = "creation"
REPLICATION = "replication"
VALIDATION = "validation"
FIXITY = "fixity check"


def event(
    kind: str,
    *,
    key: str,
    at: float,
    outcome: str,
    detail: str,
    source: str | None = None,
    result: str | None = None,
) -> dict[str, Any]:
    """One event.

    Args:
        kind: the event type.
        key: the job's key.
        at: when it ended, Unix seconds.
        outcome: `success`, `fail` or, for a validation, the verdict.
        detail: what was done, in words.
        source, result: SHA-256 of the objects it began with and ended with.
    """
    objects = [("source", source), ("outcome", result)]
    return {
        "eventIdentifier": {
            "eventIdentifierType": "UUID",
            "eventIdentifierValue": str(uuid.uuid5(NAMESPACE, f"{key}:{kind}")),
        },
        "eventType": kind,
        "eventDateTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at)),
        "eventDetail": detail,
        "eventOutcome": outcome,
        "linkingAgentIdentifier": {
            "linkingAgentIdentifierType": "software",
            "linkingAgentIdentifierValue": f"backfire {__version__}",
        },
        "linkingObjectIdentifier": [
            {
                "linkingObjectIdentifierType": "SHA-256",
                "linkingObjectIdentifierValue": digest,
                "linkingObjectRole": role,
            }
            for role, digest in objects
            if digest
        ],
    }


def of_job(receipt: dict[str, Any], *, at: float) -> list[dict[str, Any]]:
    """The events that led to a receipt, made from its other fields; `at` is now, Unix seconds.

    A receipt without `written_as` belongs to a file that was verified, for which nothing new was made.
    """
    key, source, result = receipt["key"], receipt["input_sha256"], receipt["output_sha256"]
    verdict, written_as = receipt["verdict"], receipt.get("written_as")
    found = verdict != "unprotected"
    judged = "decoded again, edits replayed on it" if found else "nothing was found to protect"
    detail = "; ".join((judged, *receipt["reasons"]))
    validation = event(VALIDATION, key=key, at=at, outcome=verdict, detail=detail, source=result)
    if written_as is None:
        return [validation]
    began = at - receipt["elapsed_s"]
    kind = REPLICATION if source == result else CREATION
    making = f"{'protected copy' if found else 'copy without protection'}, written as {written_as}"
    return [
        event(DIGEST, key=key, at=began, outcome="success", detail="SHA-256 of the original", source=source),
        event(kind, key=key, at=at, outcome="success", detail=making, source=source, result=result),
        validation,
    ]


def archived(*, key: str, at: float, sha256: str, where: str) -> dict[str, Any]:
    """The fixity check: the original was read back from the archive after the move, and is unchanged."""
    detail = f"SHA-256 read back from the archive after the move: {where}"
    return event(FIXITY, key=key, at=at, outcome="success", detail=detail, source=sha256)


def added(receipt: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The receipt with an event, which replaces one of the same identifier."""
    kept = [old for old in receipt.get("events", ()) if old["eventIdentifier"] != new["eventIdentifier"]]
    return {**receipt, "events": [*kept, new]}
