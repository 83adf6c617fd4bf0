"""Settings: YAML in, frozen typed models out. The only YAML door.

Unknown keys are errors that name the nearest valid one; relative paths are relative to the
file that holds them; all folders but `inbox` default to siblings of it.
"""

from __future__ import annotations

import difflib
import hashlib
import ipaddress
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

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
    ignore: tuple[str, ...] = IGNORE


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
    flat_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    withstand: tuple[Literal["jpeg", "resize"], ...] = ()
    target: Literal["away", "flat"] = "away"
    work_px: Annotated[int, Field(ge=256, le=2048, multiple_of=8)] = 768
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
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

    format: Literal["same", "png", "jpeg", "tiff", "webp", "heic", "avif", "jpeg2000", "bmp"] = "same"
    frames: Literal["refuse", "first"] = "refuse"
    metadata: Literal["keep", "strip-gps", "strip-all"] = "keep"
    max_pixels: Annotated[int, Field(ge=1)] = 120_000_000


class DeclaredEditor(_Section):
    """An editor beside the built-in ones; keys other than these two are options of its kind.

    Attributes:
        kind: which class loads it, one of `daemon.editors.KINDS`.
        weights: files or folders (absolute by now), names of the catalogue, or what else the
            kind understands (a hub name).
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: str
    weights: Annotated[tuple[str, ...], Field(min_length=1)]

    @property
    def options(self) -> dict[str, Any]:
        """The keys that are handed to the kind's loader."""
        return dict(self.model_extra or {})

    @field_validator("weights", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


def _models_home() -> Path:
    """Where the XDG base directory specification has data of an application's own."""
    home = os.environ.get("XDG_DATA_HOME", "")
    return (Path(home) if home.startswith("/") else Path("~/.local/share").expanduser()) / "backfire/models"


class Models(_Section):
    """Where fetched weights lie; None stands for the user's data folder."""

    folder: Path = Field(default_factory=_models_home)

    @field_validator("folder", mode="before")
    @classmethod
    def _default(cls, value: object) -> object:
        return _models_home() if value is None else value


class Serve(_Section):
    """What the daemon tells a monitoring system over HTTP; only to this machine."""

    metrics: str | None = None

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port of `metrics`."""
        if self.metrics is None:
            return None
        host, _, port = self.metrics.rpartition(":")
        return host.strip("[]").replace("localhost", "127.0.0.1"), int(port)

    @field_validator("metrics")
    @classmethod
    def _loopback(cls, value: str | None) -> str | None:
        if value is None:
            return None
        host, _, port = value.rpartition(":")
        try:
            inside = host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
        except ValueError:
            inside = False
        if not inside or not port.isdecimal() or int(port) > 65535:
            raise ValueError(
                f"serve.metrics: got {value!r}, expected an address of this machine such as "
                "'127.0.0.1:9477'; let a proxy with access control show it to others"
            )
        return value


class Hooks(_Section):
    """Whom to tell when a picture is published or has failed. Times in seconds."""

    events: tuple[Literal["published", "failed"], ...] = ("published", "failed")
    webhook: SecretStr | None = None
    command: tuple[str, ...] = ()
    timeout_s: Annotated[float, Field(gt=0, le=600)] = 10
    attempts: Annotated[int, Field(ge=1, le=1000)] = 12

    @field_validator("webhook", mode="before")
    @classmethod
    def _url(cls, value: Any) -> Any:
        """Refuses what is no address without repeating it: it may hold a password."""
        if value is None:
            return None
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        try:
            parts = urlsplit(text) if isinstance(text, str) else None
            sound = parts is not None and parts.scheme in ("http", "https") and parts.hostname is not None
            _ = parts and parts.port
        except ValueError:
            sound = False
        if not sound or not re.fullmatch(r"[!-~]+", text):
            raise ValueError("hooks.webhook: is no address such as 'https://host/path', in plain ASCII")
        return value


class Settings(_Section):
    """The whole configuration."""

    folders: Folders
    watch: Watch = Watch()
    regions: Regions = Regions()
    protect: Protect = Protect()
    verify: Verify = Verify()
    output: Output = Output()
    editors: dict[str, DeclaredEditor] = {}
    models: Models = Field(default_factory=Models)
    serve: Serve = Serve()
    hooks: Hooks = Hooks()

    @model_validator(mode="after")
    def _models_apart(self) -> Settings:
        models = self.models.folder
        for name, folder in self.folders.named().items():
            # `state` is nobody's to look into; weights may lie there.
            if name != "state" and (models == folder or folder in models.parents or models in folder.parents):
                raise ValueError(
                    f"models.folder {models} and {name} {folder} lie inside each other or are the same; "
                    "weights are no pictures; move models.folder elsewhere"
                )
        return self

    @property
    def sha256(self) -> str:
        """Digest of everything that decides what a result looks like."""
        aside = {"folders", "watch", "models", "serve", "hooks"}
        deciding = self.model_dump(mode="json", exclude=aside)
        if not self.editors:
            del deciding["editors"]  # as before this section existed: nobody's pictures are done again
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
        return Settings.model_validate(_with_weights(_with_folders(dict(data), base), base))
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


def _with_weights(data: dict[str, Any], base: Path) -> dict[str, Any]:
    """Absolute models folder, and absolute weights where a path is meant: `./`, `/`, `~`, or it exists.

    Anything else is a name of the catalogue or of a hub, which only its editor can tell apart.
    """
    models, editors = data.get("models"), data.get("editors")
    if isinstance(models, Mapping) and isinstance(models.get("folder"), str | Path):
        data = {**data, "models": {**models, "folder": _absolute(Path(models["folder"]), base)}}
    if not isinstance(editors, Mapping):
        return data  # pydantic words the error

    def place(weights: object) -> object:
        if isinstance(weights, list):
            return [place(one) for one in weights]
        if not isinstance(weights, str):
            return weights
        path = _absolute(Path(weights), base)
        return str(path) if weights.startswith((".", "/", "~")) or path.exists() else weights

    placed = {
        name: {**one, "weights": place(one["weights"])}
        if isinstance(one, Mapping) and "weights" in one
        else one
        for name, one in editors.items()
    }
    return {**data, "editors": placed}


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
        field = model.model_fields.get(str(part))
        annotation = field.annotation if field else None
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return list(model.model_fields)
