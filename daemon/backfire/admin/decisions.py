"""What a person decided about a picture, in the words of the commands, for `explain` and the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from backfire.types import Choice, Event, JobState

ACCEPTED = "accepted"
OF_CHOICE = {
    Choice.RELEASE.value: "released as it is",
    Choice.WHOLE.value: "released to be protected whole",
    Choice.AGAIN.value: "released to be worked again",
}


def with_mask(name: str) -> str:
    """A decision that gave a picture a mask, in words."""
    return f"released with the mask {name}"


def in_words(event: Event) -> str:
    """What was decided by an event, without by whom; empty where nothing was.

    `how` is what the command wrote down. Events of earlier versions have the choice alone.
    """
    choice = event.detail.get("decided")
    if choice is None:
        return ""
    if how := event.detail.get("how"):
        return str(how)
    if choice == Choice.RELEASE.value and event.state == JobState.ARCHIVED:  # nothing was released any more
        return ACCEPTED
    return OF_CHOICE.get(choice, str(choice))


def last(events: Iterable[Event]) -> str:
    """The last decision of a history and who made it; empty where there is none."""
    decided = [event for event in events if in_words(event)]
    if not decided:
        return ""
    by = decided[-1].detail.get("by")
    return in_words(decided[-1]) + (f" by {by}" if by else "")


def details(event: Event) -> Mapping[str, Any]:
    """The details of an event as people read them: what has no value left out, and decisions in words."""
    told = {key: value for key, value in event.detail.items() if value is not None and key != "how"}
    if "decided" in told:
        told["decided"] = in_words(event)
    return told
