"""The section `limits`: where the daemon pauses, gives up or forgets."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from backfire.config.section import Positive, Section


class Limits(Section):
    """Where the daemon pauses, gives up or forgets, and how much it does at once."""

    free_mb: Annotated[int, Field(ge=0)] = 500
    """The mebibytes (MiB) below which work pauses when a disk of the outbox, archive, failed, review, reports
    or state folder has no more left."""
    max_bytes: Annotated[int, Field(ge=1)] = 2_000_000_000
    """The most bytes of a picture, mask or proof file; a larger one is set aside unread."""
    silence_s: Positive = 900
    """The seconds without a heartbeat after which a worker is killed and its picture tried again."""
    memory_mb: Annotated[int, Field(ge=0)] = 0
    """The mebibytes (MiB) of host memory that a worker may allocate; 0 sets no limit."""
    devices: tuple[Annotated[str, Field(pattern=r"^(cpu|cuda:\d+)$")], ...] = ()
    """The devices that get a worker each, all at work at once, such as [cuda:0, cuda:1]; with none named,
    one worker does all."""
    history_days: Annotated[float, Field(ge=0)] = 365
    """The days after which a finished job is forgotten, while its files stay; 0 forgets none."""

    @field_validator("devices")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"limits.devices: got {list(value)}, expected each device once")
        return value
