"""Settings: YAML in, frozen typed models out. The only YAML door.

Unknown keys are errors that name the nearest valid one; relative paths are relative to the
file that holds them; all folders but `inbox` default to siblings of it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from daemon.errors import ConfigError

IGNORE = (
    ".*", "~*", "*.part", "*.filepart", "*.tmp", "*.crdownload",
    "@eaDir", ".stfolder", "Thumbs.db", "desktop.ini",
)  # fmt: skip
"""File and folder names (fnmatch patterns) that producers use for what is not a picture yet."""

Positive = Annotated[float, Field(gt=0)]
Seconds = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class Folders(_Section):
    """Where files come from and go to. `state` holds the database and the spool."""

    inbox: Path
    outbox: Path = Path("outbox")
    archive: Path = Path("archive")
    failed: Path = Path("failed")
    reports: Path = Path("reports")
    state: Path = Path("state")

    def named(self) -> dict[str, Path]:
        return {name: getattr(self, name) for name in type(self).model_fields}

    @model_validator(mode="after")
    def _apart(self) -> Folders:
        folders = list(self.named().items())
        for i, (name, path) in enumerate(folders):
            for other_name, other in folders[i + 1 :]:
                if path == other or path in other.parents or other in path.parents:
                    raise ValueError(
                        f"{name} {path} and {other_name} {other} lie inside each other or are the "
                        f"same; results would be taken in again; move {other_name} elsewhere"
                    )
        return self


class Watch(_Section):
    """How the inbox is watched. Times in seconds."""

    mode: Literal["auto", "inotify", "polling"] = "auto"
    settle_s: Seconds = 5
    rescan_s: Positive = 30
    mask_wait_s: Seconds = 10
    incomplete_wait_s: Seconds = 60
    proof: Literal["none", "done", "sha256"] = "none"
    priorities: dict[str, int] = Field(default_factory=dict)
    ignore: tuple[str, ...] = IGNORE

    @property
    def proof_ending(self) -> bytes:
        """How the names of proof files end; empty where none are used."""
        return b"" if self.proof == "none" else f".{self.proof}".encode()


class Regions(_Section):
    """What is protected, and what happens when nothing is found."""

    detectors: tuple[str, ...] = Field(default=("sidecar", "faces"), min_length=1)
    none_found: Literal["fail", "pass", "whole"] = "fail"


class Protect(_Section):
    """How the perturbation is optimised. `epsilon` in levels of 255, L-infinity."""

    method: str = "implant"
    surrogates: tuple[str, ...] = Field(default=("latent-mini",), min_length=1)
    epsilon: Annotated[float, Field(ge=1, le=64)] = 6.4
    iterations: Annotated[int, Field(ge=1, le=10_000)] = 20
    margin_px: Annotated[int, Field(ge=16, le=1024)] = 128
    target: Literal["away", "flat"] = "away"
    work_px: Annotated[int, Field(ge=256, le=2048, multiple_of=8)] = 768
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    cpu_fallback: bool = True
    attempts: Annotated[int, Field(ge=1, le=20)] = 3


class Verify(_Section):
    """Which edits decide the verdict. SSIM and L1 are taken under the mask of each edit."""

    held_out: tuple[str, ...] = ()
    on_weak: Literal["publish", "fail"] = "publish"
    trigger_ssim_max: Share = 0.75
    trigger_l1_min: Share = 0.05
    incomplete_ssim_max: Share = 0.85
    incomplete_l1_min: Share = 0.03
    near_ssim_min: Share = 0.90
    far_ssim_min: Share = 0.92
    control_factor: Annotated[float, Field(ge=0)] = 2.0


class Output(_Section):
    """What the published file is like."""

    format: Literal["same", "png", "jpeg", "tiff", "webp"] = "same"
    metadata: Literal["keep", "strip-gps", "strip-all"] = "keep"
    max_pixels: Annotated[int, Field(ge=1)] = 120_000_000


class Limits(_Section):
    """Where the daemon pauses, gives up or forgets; none of it changes what a result looks like."""

    free_mb: Annotated[int, Field(ge=0)] = 500
    silence_s: Positive = 900
    memory_mb: Annotated[int, Field(ge=0)] = 0
    history_days: Annotated[float, Field(ge=0)] = 365


class Settings(_Section):
    """The whole configuration."""

    folders: Folders
    watch: Watch = Watch()
    regions: Regions = Regions()
    protect: Protect = Protect()
    verify: Verify = Verify()
    output: Output = Output()
    limits: Limits = Limits()

    @property
    def sha256(self) -> str:
        """Digest of everything that decides what a result looks like (folders, watch, limits do not)."""
        deciding = self.model_dump(mode="json", exclude={"folders", "watch", "limits"})
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def load(path: Path) -> Settings:
    """Read and check a configuration file.

    Raises:
        ConfigError: unreadable file, bad YAML, unknown or invalid settings; all named at once.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); name a readable file with -c") from error
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not valid YAML: {error}") from error
    return parse(data, base=path.resolve().parent, source=str(path))


def parse(data: object, *, base: Path, source: str = "settings") -> Settings:
    """Check settings that are already a mapping; relative folders are taken from `base`."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{source}: got {type(data).__name__}, expected a mapping; see config.example.yaml")
    try:
        return Settings.model_validate(_with_folders(dict(data), base))
    except ValidationError as error:
        lines = [f"{source}: {_explain(problem)}" for problem in error.errors()]
        raise ConfigError("\n".join(lines)) from None


def _with_folders(data: dict[str, Any], base: Path) -> dict[str, Any]:
    """Absolute folders: explicit ones from `base`, defaults as siblings of the inbox."""
    folders = data.get("folders")
    if not isinstance(folders, Mapping) or not isinstance(folders.get("inbox"), str | Path):
        return data  # pydantic words the error
    inbox = _absolute(Path(folders["inbox"]), base)
    absolute: dict[str, Any] = dict(folders)
    for name, field in Folders.model_fields.items():
        value = folders.get(name)
        if name == "inbox":
            absolute[name] = inbox
        elif value is None:
            absolute[name] = inbox.parent / field.default
        elif isinstance(value, str | Path):
            absolute[name] = _absolute(Path(value), base)
    return {**data, "folders": absolute}


def _absolute(path: Path, base: Path) -> Path:
    """Absolute and free of links where it exists, so that nesting cannot hide behind one."""
    if "\0" in str(path):
        raise ConfigError(f"folder {str(path)!r}: holds a NUL character; name another folder")
    return (base / path.expanduser()).resolve()


def _explain(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        valid = _valid_keys(problem["loc"][:-1])
        near = difflib.get_close_matches(str(problem["loc"][-1]), valid, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(valid)}"
        return f"unknown key {where!r}; {hint}"
    if problem["type"] == "missing":
        return f"{where!r} is missing; see config.example.yaml"
    message = re.sub(r"^Value error, ", "", problem["msg"])
    if problem["type"] == "value_error":
        return message
    return f"{where!r}: got {problem['input']!r}; {message[0].lower()}{message[1:]}"


def _valid_keys(location: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Settings
    for part in location:
        annotation = model.model_fields[str(part)].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return list(model.model_fields)
