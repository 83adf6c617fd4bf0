"""The receipts that lie beside a picture or among the reports of its job.

A receipt may have come with its picture from anywhere, so all that is used of it is checked as it is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    field_validator,
    model_validator,
)

from backfire.config import Settings
from backfire.errors import ConfigError, PublishError
from backfire.evaluate.receipt import Receipt, from_json
from backfire.files import outbox, safe_paths
from backfire.service import report_files
from backfire.service.store.reader import Reader
from backfire.types import Job

Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{1,64}$")]
MOST_BYTES = 64 << 20
"""The largest receipt that is read; it has some 9 KB for each region."""


class _Lenient(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Editor(_Lenient):
    name: str


class _Edit(_Lenient):
    """An edit, of which only those count here that say how much of it is seen."""

    mask_kind: str
    held_out: bool
    path: str | None = None
    ssim: FiniteFloat | None = None
    visible: FiniteFloat | None = None

    @model_validator(mode="after")
    def _whole(self) -> _Edit:
        if self.visible is not None and (self.path is None or self.ssim is None):
            raise ValueError("has `visible` without path and ssim")
        return self


class _Fields(_Lenient):
    """What is used of a receipt, which may have come with the picture from anywhere."""

    file: str
    key: Hex | None = None
    input_sha256: Hex | None = None
    output_sha256: Hex | None = None
    mask_sha256: Hex | None = None
    mask: str | None = None
    method: str | None = None
    epsilon: Annotated[FiniteFloat, Field(gt=0, le=64)] | None = None
    width: Annotated[int, Field(gt=0)] | None = None
    height: Annotated[int, Field(gt=0)] | None = None
    scaled_from: list[int] | None = None
    surrogates: list[_Editor] = []
    held_out: list[_Editor] = []
    edits: list[_Edit] | None = None

    @field_validator("file")
    @classmethod
    def _plain(cls, value: str) -> str:
        if "\0" in value:
            raise ValueError("holds a NUL character")
        try:
            safe_paths.parts(os.fsencode(value))
        except OSError as error:
            raise ValueError(f"is {error.strerror}") from None
        return value

    @model_validator(mode="after")
    def _sized(self) -> _Fields:
        if self.scaled_from and (self.width is None or self.height is None):
            raise ValueError("has `scaled_from` without width and height")
        return self


@dataclass(frozen=True)
class Known:
    """A receipt, its file, and the job that it is of, if the job database knows it."""

    receipt: Receipt
    file: Path
    job: Job | None = None


def beside(published: Path) -> Iterator[Known]:
    """What `backfire protect` wrote beside its result."""
    name = outbox.beside(published.parent, os.fsencode(published.name), b".receipt.json", "")
    yield from _read(published.parent / os.fsdecode(name))


def by_job(published: Path, sha256: str, settings: Settings) -> Iterator[Known]:
    """Receipts of the jobs with this result, then of those whose result was put in its place."""
    folders = settings.folders
    place = None
    if folders.outbox in published.parents:
        place = os.fsencode(published.relative_to(folders.outbox))
    if not folders.database.exists():
        if place is not None:
            yield from _read(
                folders.reports / os.fsdecode(outbox.beside(folders.reports, place, b".json", ""))
            )
        return
    with Reader(folders.database) as store:
        jobs = store.of_result(sha256, place)
    for job in jobs:
        try:
            files = report_files.find(folders.reports, job)
        except (OSError, PublishError):
            continue
        for one in _read(files[0]) if files else ():
            # A result that somebody put in place was not made with the settings and masks of the job.
            yield replace(one, job=job if one.receipt.get("key") == job.key else None)


def _read(file: Path) -> Iterator[Known]:
    """The receipt in a file, if there is one.

    Raises:
        ConfigError: it cannot be read, or what is used of it is not what a receipt holds.
    """
    remedy = "name the picture with --original"
    try:
        receipt = from_json(safe_paths.read_regular(file, MOST_BYTES))
        _Fields.model_validate(receipt)
    except FileNotFoundError:
        return
    except ValidationError as error:  # a ValueError, too, but its text has many lines and quotes the value
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise ConfigError(f"receipt {file}: {where}: {first['msg']}; {remedy}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"receipt {file}: cannot be read ({error}); {remedy}") from error
    yield Known(receipt, file)
