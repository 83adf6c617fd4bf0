"""Weights: the catalogue of the published ones, where a model's files lie, whether they are what they were.

Our own ship inside the package, beside `SHA256SUMS`, which says what they must be. A published
model lies in a folder of its name below `models.folder`. What its files must be comes from the
catalogue where their SHA-256 is publicly known, else from `pins.json`, where `fetch` records the
digest of the first copy it saw. Importing this package loads no torch and opens no connection.
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

from backfire.errors import Code, ModelError
from backfire.files import durable

PINS = "pins.json"
INSIDE = Path(__file__).parents[1] / "inpaint" / "weights"
"""The weights that ship inside the package."""
SUMS = "SHA256SUMS"
"""Their digests, as `sha256sum` writes and checks them."""


@dataclass(frozen=True)
class File:
    """One file of a model.

    Attributes:
        path: relative to the model's folder.
        url: where it comes from; None where nobody serves it as it is needed.
        size: bytes, None where not publicly known.
        sha256: lower-case hex, None where not publicly known.
    """

    path: str
    url: str | None = None
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Model:
    """An entry of the catalogue.

    Attributes:
        kind: the editor kind that loads it.
        edit_cpu_s: processor seconds that an edit of 512x512 takes in float32 on a core of an Intel Xeon.
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

    @property
    def known_size(self) -> int:
        """Bytes of the files whose size is publicly known."""
        return sum(file.size or 0 for file in self.files)

    @property
    def published(self) -> int:
        """How many files' SHA-256 is publicly known."""
        return sum(file.sha256 is not None for file in self.files)


@cache
def catalogue() -> dict[str, Model]:
    """All models by name, in the order of `catalogue.toml`."""
    text = (Path(__file__).parent / "catalogue.toml").read_text(encoding="utf-8")
    return {name: _model(name, entry) for name, entry in tomllib.loads(text).items()}


def _model(name: str, entry: dict[str, Any]) -> Model:
    base = entry.pop("base", None)
    files = []
    for file in entry.pop("files"):
        url = file.pop("url", file["path"] if base else None)
        files.append(File(**file, url=urljoin(base, url) if base else url))
    return Model(name, files=tuple(files), **entry)


def inside() -> dict[str, str]:
    """SHA-256 of each file that ships inside the package, by file name.

    Raises:
        ModelError: the package is not whole.
    """
    path = INSIDE / SUMS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return {name: digest for digest, name in (line.split() for line in lines)}
    except (OSError, ValueError) as error:
        message = f"{path}: cannot be read ({error}); install backfire again"
        raise ModelError(Code.MODEL, message, retryable=False) from error


def located(name: str, folder: Path) -> Path:
    """What an editor loads of a fetched model: its only file, or its folder; its files are what was fetched.

    Args:
        name: a name of the catalogue.
        folder: `models.folder`.

    Raises:
        ModelError: not fetched, only in part, or changed since.
    """
    model = catalogue()[name]
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


def expected(model: Model, file: File, folder: Path) -> str | None:
    """The SHA-256 that a file must have: the published one, else the recorded one, else None."""
    return file.sha256 or pins(folder).get(f"{model.name}/{file.path}")


def pins(folder: Path) -> dict[str, str]:
    """Digests recorded at the first fetch, by `NAME/PATH`.

    Raises:
        ModelError: the record is damaged; guessing would accept anything.
    """
    path = folder / PINS
    try:
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError("no mapping")
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
    # One file serves all models: the lock keeps two fetches from losing each other's record.
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
class Finding:
    """One file as `verify` found it; `unpinned`: its digest is neither published nor recorded."""

    model: str
    path: str
    state: State
    expected: str | None = None
    got: str | None = None


def verify(folder: Path, name: str | None = None) -> Iterator[Finding]:
    """Hash every file of every model (or of one) that is there, at least in part, again."""
    for model in catalogue().values():
        if name not in (None, model.name) or not (folder / model.name).is_dir():
            continue
        for file in model.files:
            yield _verified(model.name, folder / model.name, file.path, expected(model, file, folder))


def verify_inside() -> Iterator[Finding]:
    """Hash the weights that ship inside the package again; what was put beside them is `unpinned`."""
    known = inside()
    for path in sorted({*known, *(file.name for file in INSIDE.glob("*.safetensors"))}):
        yield _verified(path.removesuffix(".safetensors"), INSIDE, path, known.get(path))


def _verified(model: str, folder: Path, path: str, want: str | None) -> Finding:
    if not (folder / path).is_file():
        return Finding(model, path, "absent", want)
    got = durable.file_sha256(folder / path)
    state: State = "unpinned" if want is None else "ok" if got == want else "changed"
    return Finding(model, path, state, want, got)
