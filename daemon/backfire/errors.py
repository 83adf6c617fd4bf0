"""The exceptions of Backfire; the scope of an error decides who handles it.

    BackfireError
    ├── ConfigError            refuse to start; exit code 2
    ├── StoreError             wait where it is transient, else stop; the service manager restarts us
    └── JobError(code)         this one job ends or is tried again; the others go on
        ├── InputError             the picture or its mask is not usable: failed at once
        ├── ModelError             detector or editor trouble: tried again, then failed
        │   └── DeviceError            the GPU failed at work: a new process, another try
        ├── BudgetExceeded         the written file changed more than it may: failed
        └── PublishError           the outbox would not take the result: tried again

Anything else raised inside a job becomes `internal`, with its traceback. Messages state
subject, got, expected, remedy.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from enum import StrEnum


class Code(StrEnum):
    """Why a job ended; stored with the job, the error file and the log line."""

    UNREADABLE = "unreadable"
    UNSUPPORTED = "unsupported"
    EMPTY = "empty"
    TRUNCATED = "truncated"
    TOO_LARGE = "too_large"
    CHANGED = "changed"
    CHECKSUM = "checksum"
    MASK_UNREADABLE = "mask_unreadable"
    MASK_SIZE = "mask_size"
    MASK_EMPTY = "mask_empty"
    NO_REGION = "no_region"
    DETECTOR = "detector"
    MODEL = "model"
    OUT_OF_MEMORY = "out_of_memory"
    BUDGET = "budget"
    NOT_PROTECTED = "not_protected"
    WEAK = "weak"
    PUBLISH = "publish"
    WORKER_DIED = "worker_died"
    INTERNAL = "internal"


class BackfireError(Exception):
    """Base of everything Backfire raises on purpose."""


class ConfigError(BackfireError):
    """The configuration cannot be used."""


class StoreError(BackfireError):
    """The job database cannot be used.

    Args:
        transient: it may work later without a change by somebody: locked, or its disk is full.
    """

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class JobError(BackfireError):
    """One job cannot go on.

    Args:
        code: the reason, machine-readable.
        message: subject, got, expected, remedy, for a person.
        retryable: whether the same job may succeed later without a change by somebody.
    """

    retryable = False

    def __init__(self, code: Code, message: str, *, retryable: bool | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        if retryable is not None:
            self.retryable = retryable


class InputError(JobError):
    """The picture or its mask cannot be used as it is."""


class ModelError(JobError):
    """A detector or an editor failed."""

    retryable = True


class DeviceError(ModelError):
    """A GPU failed in the middle of the work. After that the process that used it can do no more on it."""

    def __init__(self, message: str) -> None:
        super().__init__(Code.MODEL, message)


class BudgetExceeded(JobError):
    """The decoded output differs from the original by more than the budget."""

    def __init__(self, message: str) -> None:
        super().__init__(Code.BUDGET, message)


class PublishError(JobError):
    """The result could not be put into its place."""

    retryable = True

    def __init__(self, message: str) -> None:
        super().__init__(Code.PUBLISH, message)


def require(name: str, valid: Collection[str], setting: str) -> None:
    """Raise ConfigError, naming the nearest valid name, unless `name` is one."""
    if name not in valid:
        near = difflib.get_close_matches(name, valid, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"valid names: {', '.join(valid)}"
        raise ConfigError(f"{setting}: got {name!r}; {hint}")
