"""Weights: the catalogue of published models, where their files lie, and whether these are unchanged.

Our own weights ship inside the package beside `SHA256SUMS`, which holds their digests. A published model lies
in a folder of its name below `models.folder`. The expected SHA-256 of its files comes from the catalogue if
it is publicly known, and otherwise from `pins.json`, in which `fetch` records the digest of the first copy.
Importing this package loads no torch and opens no connection.
"""

from __future__ import annotations

import fcntl
import json
import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urljoin

from backfire.errors import Code, ConfigError, ModelError
from backfire.files import durable

PINS = "pins.json"
INSIDE = Path(__file__).parents[1] / "inpaint" / "weights"
"""The weights that ship inside the package."""
SUMS = "SHA256SUMS"
"""The file with their digests, in the format of `sha256sum`."""


SETS = ("light", "recommended", "gpu", "all")
"""Sets of models that are fetched together; each has those of the one before. `light` are the autoencoders of
the latest editors, which cost little time; `recommended` also has an editor that a CPU runs in seconds; `gpu`
one of the latest editors, for a card of 24 GB; `all` is all that can be fetched."""


@dataclass(frozen=True)
class File:
    """One file of a model.

    Attributes:
        path: its path relative to the model's folder.
        url: where it is fetched from; None if nobody serves it in the form that is needed.
        size: its size in bytes; None if not publicly known.
        sha256: its SHA-256 in lower-case hex; None if not publicly known.
    """

    path: str
    url: str | None = None
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Model:
    """An entry of the catalogue.

    Attributes:
        kind: the kind of editor that loads it.
        edit_cpu_s: the seconds that an edit of 512x512 pixels takes in float32 on one core of an Intel Xeon,
            for large models reckoned from a step or from the operations of one.
        sets: the sets of `SETS` that it belongs to.
        note: what a user must know or do before it can be fetched; empty if nothing.
    """

    name: str
    kind: str
    family: str
    parameters: str
    edit_cpu_s: float
    licence: str
    home: str
    files: tuple[File, ...]
    note: str = ""
    sets: tuple[str, ...] = ()

    @property
    def known_size(self) -> int:
        """The bytes of all files whose size is publicly known."""
        return sum(file.size or 0 for file in self.files)

    @property
    def published(self) -> int:
        """The number of files whose SHA-256 is publicly known."""
        return sum(file.sha256 is not None for file in self.files)


@cache
def catalogue() -> dict[str, Model]:
    """All published models by name, in the order of `catalogue.toml`."""
    text = (Path(__file__).parent / "catalogue.toml").read_text(encoding="utf-8")
    return {name: _model(name, entry) for name, entry in tomllib.loads(text).items()}


def _model(name: str, entry: dict[str, Any]) -> Model:
    base = entry.pop("base", None)
    files = []
    for file in entry.pop("files"):
        url = file.pop("url", file["path"] if base else None)
        files.append(File(**file, url=urljoin(base, url) if base else url))
    sets = SETS[SETS.index(entry.pop("set")) :] if "set" in entry else ()
    return Model(name, files=tuple(files), sets=sets, **entry)


def members(name: str) -> list[Model]:
    """The models of a set, in the order of the catalogue."""
    return [model for model in catalogue().values() if name in model.sets]


def inside() -> dict[str, str]:
    """The SHA-256 of each file that ships inside the package, by file name.

    Raises:
        ModelError: the list of digests is missing or damaged.
    """
    path = INSIDE / SUMS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return {name: digest for digest, name in (line.split() for line in lines)}
    except (OSError, ValueError) as error:
        message = f"{path}: cannot be read ({error}); install backfire again"
        raise ModelError(Code.MODEL, message, retryable=False) from error


def located(name: str, folder: Path) -> Path:
    """The path that an editor loads of a fetched model, checked: its only file, or its folder if it has
    several.

    Args:
        name: a name of the catalogue.
        folder: `models.folder`.

    Raises:
        ModelError: the model was not fetched, or only in part, or a file has changed since or may not be
            read.
    """
    try:
        return _located(catalogue()[name], folder)
    except PermissionError as error:
        message = f"model {name}: {denied(error)}"
        raise ModelError(Code.MODEL, message, retryable=False) from error


def _located(model: Model, folder: Path) -> Path:
    name = model.name
    missing = [file.path for file in model.files if not (folder / name / file.path).is_file()]
    if missing:
        message = (
            f"model {name}: {', '.join(missing)} not in {folder / name}; run: backfire models fetch {name}"
        )
        raise ModelError(Code.MODEL, message, retryable=False)
    for found in verify(folder, name):
        if found.state == "changed":
            message = (
                f"model {name}: {folder / name / found.path} has changed, SHA-256 is {found.got}, expected "
                f"{found.expected}; run: backfire models fetch {name}"
            )
            raise ModelError(Code.MODEL, message, retryable=False)
    return folder / name / model.files[0].path if len(model.files) == 1 else folder / name


def is_there(name: str, folder: Path) -> bool:
    """Whether all files of a model of the catalogue are there; their digests are not looked at.

    Raises:
        ConfigError: the folder may not be looked into. Its models must not count as missing, because
            `protect.surrogates: auto` would go on without them.
    """
    try:
        return all((folder / name / file.path).is_file() for file in catalogue()[name].files)
    except PermissionError as error:
        raise ConfigError(f"models.folder {folder}: {denied(error)}") from error


def denied(error: PermissionError) -> str:
    """What the system refuses, and the remedy."""
    who = f"uid {os.geteuid()}"
    path = error.filename
    return f"{path} cannot be read as {who} ({error.strerror}); give {who} access to it and the folders above"


def is_cached(hub_name: str) -> bool:
    """Whether the cache of the Hugging Face hub holds a copy of a repository, `owner/name`."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return False
    cache = Path(constants.HF_HUB_CACHE) / f"models--{hub_name.replace('/', '--')}" / "snapshots"
    return cache.is_dir() and any(cache.iterdir())


def expected(model: Model, file: File, folder: Path) -> str | None:
    """The SHA-256 that a file must have: the published one, or the recorded one, or None if there is
    neither.
    """
    return file.sha256 or pins(folder).get(f"{model.name}/{file.path}")


def pins(folder: Path) -> dict[str, str]:
    """The digests that were recorded at the first fetch, by `NAME/PATH`.

    Raises:
        ModelError: the record is damaged. Ignoring it would accept any file.
    """
    path = folder / PINS
    try:
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError("it holds no mapping")
        return {str(name): str(digest) for name, digest in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        message = (
            f"{path}: cannot be read ({error}); restore it, or delete it to trust the next copies fetched"
        )
        raise ModelError(Code.MODEL, message, retryable=False) from error


def pin(model: Model, file: File, digest: str, folder: Path) -> None:
    """Record the digest of a file whose SHA-256 is not publicly known."""
    # The lock keeps two fetches from overwriting each other's entry.
    with (folder / f".{PINS}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = {**pins(folder), f"{model.name}/{file.path}": digest}
        temporary = folder / f".{PINS}.part"
        with temporary.open("w", encoding="utf-8") as out:
            out.write(json.dumps(found, indent=2, sort_keys=True) + "\n")
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(folder / PINS)


State = Literal["ok", "absent", "changed", "unpinned"]


@dataclass(frozen=True)
class VerifiedFile:
    """One file and its state: `unpinned` means that its digest is neither published nor recorded."""

    model: str
    path: str
    state: State
    expected: str | None = None
    got: str | None = None


def verify(folder: Path, name: str | None = None) -> Iterator[VerifiedFile]:
    """Hash all files of every model, or of one, of which at least the folder is there."""
    for model in catalogue().values():
        if name not in (None, model.name) or not (folder / model.name).is_dir():
            continue
        for file in model.files:
            yield _verified(model.name, folder / model.name, file.path, expected(model, file, folder))


def verify_inside() -> Iterator[VerifiedFile]:
    """Hash the weights that ship inside the package; files that do not belong to it are `unpinned`."""
    known = inside()
    for path in sorted({*known, *(file.name for file in INSIDE.glob("*.safetensors"))}):
        yield _verified(path.removesuffix(".safetensors"), INSIDE, path, known.get(path))


def _verified(model: str, folder: Path, path: str, want: str | None) -> VerifiedFile:
    if not (folder / path).is_file():
        return VerifiedFile(model, path, "absent", want)
    got = durable.file_sha256(folder / path)
    state: State = "unpinned" if want is None else "ok" if got == want else "changed"
    return VerifiedFile(model, path, state, want, got)
