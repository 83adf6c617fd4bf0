"""The exceptions of Backfire: what an error concerns decides who handles it.

    BackfireError
    ├── ConfigError            refuse to start; exit code 2
    │   └── UnavailableError       which time may mend: systemd tries again; exit code 75
    ├── StoreError             wait if it is transient, else stop; the service manager restarts the daemon
    └── JobError(code)         this job ends or is tried again, and the others go on
        ├── InputError             the picture or its mask is not usable: failed at once
        │   └── NoRegionError          nothing was found to protect
        ├── ModelError             a detector or an editor failed: tried again, then failed
        │   └── DeviceError            the GPU failed during the work: tried again in a new process
        ├── SigningError           certificate, key or signer failed, for every picture alike: waits
        ├── BudgetExceeded         pixels of the written file moved by more than they may: failed
        └── PublishError           the result could not be put in its place: tried again

Anything else that is raised inside a job becomes `internal`, with its traceback. A message says what it is
about, what was found, what was expected and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from enum import StrEnum


class Code(StrEnum):
    """Why a job ended; it is in the job database, in the error file and in the log."""

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
    SIGNING = "signing"
    PUBLISH = "publish"
    WORKER_DIED = "worker_died"
    INTERNAL = "internal"


class BackfireError(Exception):
    """Base of everything Backfire raises on purpose."""


class ConfigError(BackfireError):
    """The configuration cannot be used."""


class UnavailableError(ConfigError):
    """A folder cannot be used now, because it is not mounted yet, say, or because another process has it."""


class StoreError(BackfireError):
    """The job database cannot be used.

    Args:
        transient: whether it may work later by itself, as when it is locked or its disk is full.
    """

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class JobError(BackfireError):
    """One job cannot go on.

    Args:
        code: the reason, machine-readable.
        message: for a person: the subject, what was found, what was expected, what to do.
        retryable: whether the same job may succeed later by itself.
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


class NoRegionError(InputError):
    """Nothing was found to protect.

    Args:
        found: which picture it is and who looked.
        notes: what else there is to know, such as a detector that failed.
        remedy: what to do. What helps depends on who asked: see `with_remedy`.
    """

    def __init__(
        self,
        found: str,
        notes: Sequence[str] = (),
        remedy: str = "put a mask beside the picture or set regions.none_found",
    ) -> None:
        super().__init__(Code.NO_REGION, "; ".join([found, remedy, *notes]))
        self._found, self._notes = found, tuple(notes)

    def with_remedy(self, remedy: str) -> NoRegionError:
        """The same with what its caller can do about it."""
        return NoRegionError(self._found, self._notes, remedy)


class ModelError(JobError):
    """A detector or an editor failed."""

    retryable = True


class DeviceError(ModelError):
    """A GPU failed during the work, after which the process that used it cannot use it any more."""

    def __init__(self, message: str) -> None:
        super().__init__(Code.MODEL, message)


class SigningError(JobError):
    """What signs the published files cannot be used, which concerns every picture alike."""

    def __init__(self, message: str) -> None:
        super().__init__(Code.SIGNING, message)


class BudgetExceeded(JobError):
    """The decoded output differs from the original by more than the budget."""

    def __init__(self, message: str) -> None:
        super().__init__(Code.BUDGET, message)


class PublishError(JobError):
    """The result could not be put into its place.

    Attributes:
        lasting: whether trying again will not help, because the place does not take the name.
    """

    retryable = True

    def __init__(self, message: str, *, lasting: bool = False) -> None:
        super().__init__(Code.PUBLISH, message)
        self.lasting = lasting


def require(name: str, valid: Collection[str], setting: str) -> None:
    """Raise ConfigError, naming the nearest valid name, unless `name` is one."""
    if name not in valid:
        near = difflib.get_close_matches(name, valid, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"valid names: {', '.join(valid)}"
        raise ConfigError(f"{setting}: got {name!r}; {hint}")
