"""Settings: YAML in, frozen typed models out. The only YAML door.

Unknown keys are errors that name the nearest valid one; relative paths are relative to the
file that holds them; all folders but `inbox` default to siblings of it. Longer than 300 lines
so that every setting stands in one place.
"""

from __future__ import annotations

import difflib
import hashlib
import ipaddress
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic import ValidationInfo as Info

from backfire.errors import ConfigError
from backfire.types import composed

IGNORE = (
    ".*", "~*", "*.part", "*.filepart", "*.tmp", "*.crdownload",
    "@eaDir", ".stfolder", "Thumbs.db", "desktop.ini",
)  # fmt: skip
"""File and folder names (fnmatch patterns) that producers use for what is not a picture yet."""

Positive = Annotated[float, Field(gt=0)]
Seconds = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


def _beside_file(path: Path, info: Info) -> Path:
    """A path as the file's folder sees it."""
    return (info.context["base"] / path.expanduser()).resolve() if info.context else path


FromFile = Annotated[Path, AfterValidator(_beside_file)]
"""A path that, relative, is meant from the configuration file's folder."""


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

    @field_validator("priorities")
    @classmethod
    def _composed(cls, value: dict[str, int]) -> dict[str, int]:
        return {composed(folder): rank for folder, rank in value.items()}

    @property
    def proof_ending(self) -> bytes:
        """How the names of proof files end; empty where none are used."""
        return b"" if self.proof == "none" else f".{self.proof}".encode()


class Sidecars(_Section):
    """How mask files are read: `threshold` in levels of 255, from which a soft mask's pixel counts."""

    protected: Literal["white", "black"] = "white"
    threshold: Annotated[int, Field(ge=1, le=255)] = 128


class FixedBox(_Section):
    """A box that is protected in every picture: left, top, right, bottom, in pixels or parts of its sides."""

    box: tuple[float, float, float, float]
    unit: Literal["relative", "pixels"] = "relative"
    label: str = "fixed"

    @model_validator(mode="after")
    def _sound(self) -> FixedBox:
        left, top, right, bottom = self.box
        most = 1.0 if self.unit == "relative" else math.inf
        if not (0 <= left < right <= most and 0 <= top < bottom <= most):
            raise ValueError(
                f"regions.fixed: got the {self.unit} box {list(self.box)}, expected left < right and "
                f"top < bottom{' within 0..1' if most == 1 else ', none below 0'}; "
                "write [left, top, right, bottom], and unit: pixels where pixels are meant"
            )
        return self


class Faces(_Section):
    """The detector `faces`: sides of the smallest face in pixels, and the score it needs."""

    min_px: Annotated[int, Field(ge=12, le=512)] = 16
    score_min: Share = 0.9


class Text(_Section):
    """The detectors `text` and `signatures`: the score a line needs, and how large, by its long side in
    pixels, `text` looks at a picture."""

    score_min: Share = 0.76
    long_px: Annotated[int, Field(ge=1536, le=12_288)] = 1536


class Logos(_Section):
    """The detector `logos`: folders of the logo files, and of the half-transparent watermarks."""

    folder: FromFile | None = None
    watermarks: FromFile | None = None


class Command(_Section):
    """The detector `command`: a program, never a shell; what it prints is in docs/regions.md."""

    argv: tuple[str, ...] = ()
    timeout_s: Positive = 60
    max_bytes: Annotated[int, Field(ge=2)] = 1_000_000


class Onnx(_Section):
    """The detector `onnx`: a network that gives boxes; its contract is in docs/regions.md."""

    model: FromFile | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    size_px: Annotated[int, Field(ge=32, le=4096, multiple_of=32)] = 640
    labels: tuple[str, ...] = ()
    score_min: Share = 0.4


class TorchScript(Onnx):
    """The detector `torchscript`: the same in a file that is code, so that it takes trust and a digest."""

    trust: bool = False


class Regions(_Section):
    """What is protected, and what happens when nothing is found or a detector fails."""

    detectors: tuple[str, ...] = Field(default=("sidecar", "faces"), min_length=1)
    none_found: Literal["fail", "pass", "whole"] = "fail"
    on_error: Literal["fail", "skip"] = "fail"
    pad_px: Annotated[int, Field(ge=0, le=512)] = 0
    merge_px: Annotated[int, Field(ge=0, le=4096)] | None = None
    most: Annotated[int, Field(ge=1, le=256)] = 24
    sidecar: Sidecars = Sidecars()
    faces: Faces = Faces()
    text: Text = Text()
    fixed: tuple[FixedBox, ...] = ()
    logos: Logos = Logos()
    command: Command = Command()
    onnx: Onnx = Onnx()
    torchscript: TorchScript = TorchScript()


STRENGTHS: dict[str, dict[str, Any]] = {
    "subtle": {"method": "implant", "epsilon": 4, "flat_share": 0.6, "reach_px": 24, "iterations": 80},
    "balanced": {"method": "implant", "epsilon": 6.4, "flat_share": 1.0, "reach_px": 24, "iterations": 80},
    "strong": {"method": "implant", "epsilon": 10, "flat_share": 1.0, "reach_px": 40, "iterations": 120},
    "paper": {"method": "baseline", "epsilon": 6.4, "flat_share": 1.0, "reach_px": 4096, "iterations": 20},
}
"""What each `protect.strength` stands for; keys that stand beside it win."""


GROWING = "epsilon", "flat_share", "reach_px"
"""What a further round may have more of."""


def _strengthened(protect: Any) -> Any:
    """The protect section as read from YAML, with what its strength stands for where a key says nothing."""
    if not isinstance(protect, Mapping):
        return protect  # pydantic words the error
    strength = protect.get("strength")
    stands_for = STRENGTHS[strength] if strength in [*STRENGTHS] else {}
    said = {key: v for key, v in protect.items() if v is not None or key not in STRENGTHS["balanced"]}
    return {**stands_for, **said}


class Protect(_Section):
    """How the perturbation is optimised. `epsilon` in levels of 255, L-infinity.

    `strength` is a word for several of the other settings (`STRENGTHS`), resolved before they are
    checked; the defaults are those of `balanced`.
    """

    strength: Literal["subtle", "balanced", "strong", "paper"] = "balanced"
    method: str = "implant"
    surrogates: tuple[str, ...] = Field(default=("latent-mini",), min_length=1)
    epsilon: Annotated[float, Field(ge=1, le=64)] = 6.4
    iterations: Annotated[int, Field(ge=1, le=10_000)] = 80
    margin_px: Annotated[int, Field(ge=16, le=1024)] = 128
    flat_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    luma_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    grain_px: Annotated[int, Field(ge=1, le=8)] = 1
    stop_early: bool = False
    escalate: tuple[Literal["subtle", "balanced", "strong"], ...] = ()
    keep_region_exact: bool = False
    robust_to: tuple[Literal["paths", "resize", "jpeg", "blur"], ...] = ()
    target: Literal["away", "flat", "inverted"] = "away"
    reach_px: Annotated[int, Field(ge=16, le=4096)] = 24
    reach_share: Share = 0.16
    whole_px: Annotated[int, Field(ge=0, le=2048)] = 800
    work_px: Annotated[int, Field(ge=256, le=2048, multiple_of=8)] = 800
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    cpu_fallback: bool = True
    attempts: Annotated[int, Field(ge=1, le=20)] = 3

    _by_strength = model_validator(mode="before")(_strengthened)

    @model_validator(mode="after")
    def _published(self) -> Protect:
        if self.method == "baseline" and self.escalate:
            raise ValueError(
                "protect.escalate: got method baseline, which always begins anew, expected another one; "
                "set protect.method: implant, or escalate: [] beside it"
            )
        return self

    def rounds(self) -> list[Protect]:
        """These settings, then those of each further round: the budget of a strength that `escalate` names,
        or of the round before where that is more, and its iterations."""
        found = [self]
        for strength in self.escalate:
            last, named = found[-1], STRENGTHS[strength]
            more = {name: max(getattr(last, name), named[name]) for name in GROWING}
            found.append(self.model_copy(update={**more, "iterations": named["iterations"]}))
        return found


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
    """What the published file is like. `jpeg`: whether a JPEG shall keep the effect or its size."""

    format: Literal["same", "png", "jpeg", "tiff", "webp", "heic", "avif", "jpeg2000", "bmp"] = "same"
    jpeg: Literal["strong", "small"] = "strong"
    frames: Literal["refuse", "first"] = "refuse"
    metadata: Literal["keep", "strip-gps", "strip-all"] = "keep"
    max_pixels: Annotated[int, Field(ge=1)] = 120_000_000


class DeclaredEditor(_Section):
    """An editor beside the built-in ones; keys other than these two are options of its kind.

    Attributes:
        kind: which class loads it, one of `backfire.inpaint.KINDS`.
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


class Rule(_Section):
    """The settings of the pictures that `match` names, already merged with the file's own sections.

    `match` is a pattern of paths relative to the inbox: `*` and `?` stay within a folder,
    `**/` is any folders or none, a closing `**` everything below; upper and lower case differ,
    Unicode's two spellings of an accented letter do not.
    """

    match: str
    regions: Regions
    protect: Protect
    verify: Verify
    output: Output

    def matches(self, path: bytes) -> bool:
        """Whether the rule is for a path relative to the inbox."""
        return re.fullmatch(_glob(composed(self.match)), composed(path), re.DOTALL) is not None


class Limits(_Section):
    """Where the daemon pauses, gives up or forgets, and how much it does at once; none of it changes what a
    result looks like. `devices`: a worker for each; without any, one does all.
    """

    free_mb: Annotated[int, Field(ge=0)] = 500
    max_bytes: Annotated[int, Field(ge=1)] = 2_000_000_000
    silence_s: Positive = 900
    memory_mb: Annotated[int, Field(ge=0)] = 0
    devices: tuple[Annotated[str, Field(pattern=r"^(cpu|cuda:\d+)$")], ...] = ()
    history_days: Annotated[float, Field(ge=0)] = 365

    @field_validator("devices")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"limits.devices: got {list(value)}, expected each device once")
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
    limits: Limits = Limits()
    rules: tuple[Rule, ...] = ()

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
        """Digest of everything that decides what a result looks like.

        A rule's part is in the digest of the settings that `for_path` gives.
        """
        aside = {"folders", "watch", "models", "serve", "hooks", "limits", "rules"}
        deciding = self.model_dump(mode="json", exclude=aside)
        del deciding["protect"]["strength"]  # the settings that it stands for decide
        if not self.editors:
            del deciding["editors"]  # as before this section existed: nobody's pictures are done again
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()

    def rule_of(self, path: bytes) -> int | None:
        """The index of the first rule that matches a path relative to the inbox, None without one."""
        return next((i for i, rule in enumerate(self.rules) if rule.matches(path)), None)

    def for_path(self, path: bytes) -> Settings:
        """The settings of one picture: its rule's sections in place of the general ones."""
        if not self.rules:
            return self
        index = self.rule_of(path)
        rule = self if index is None else self.rules[index]
        sections = {name: getattr(rule, name) for name in RULED}
        return self.model_copy(update={**sections, "rules": ()})

    def variants(self) -> Iterator[tuple[str, Settings]]:
        """All settings a picture may get, with where they stand: the general ones, then each rule's."""
        yield "", self.model_copy(update={"rules": ()})
        for index, rule in enumerate(self.rules):
            sections = {name: getattr(rule, name) for name in RULED}
            yield f"rules.{index} ({rule.match}): ", self.model_copy(update={**sections, "rules": ()})


RULED = tuple(name for name in Rule.model_fields if name != "match")
"""The sections that a rule may change."""


def _glob(pattern: str) -> str:
    """A path pattern as a regular expression."""
    tokens = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    return "".join(tokens.get(part, re.escape(part)) for part in parts)


def load(path: Path) -> Settings:
    """Read and check a configuration file.

    Raises:
        ConfigError: unreadable file, bad YAML, unknown or invalid settings; all named at once.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: cannot be read ({reason}); name a readable file with -c") from error
    try:
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:  # its own text quotes the line, which may hold a password
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"{path}: is not valid YAML: {where}{error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # no such date; brackets without end
        raise ConfigError(f"{path}: is not valid YAML: {error}") from None
    try:
        return parse(data, base=path.resolve().parent, source=str(path))
    except (OSError, RuntimeError) as error:  # `~nobody`, links in a circle, a name that is too long
        raise ConfigError(f"{path}: a path in it cannot be used ({error}); name another one") from error


def parse(data: object, *, base: Path, source: str = "settings") -> Settings:
    """Check settings that are already a mapping; relative folders are taken from `base`."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{source}: got {type(data).__name__}, expected a mapping; see config.example.yaml")
    general = {key: value for key, value in data.items() if key != "rules"}
    try:
        absolute = _with_weights(_with_folders(general, base), base)
        settings = Settings.model_validate(absolute, context={"base": base})
    except ValidationError as error:
        lines = [f"{source}: {_explain(problem)}" for problem in error.errors()]
        raise ConfigError("\n".join(lines)) from None
    return settings.model_copy(update={"rules": _rules(data.get("rules"), general, base, source)})


def _rules(rules: object, general: Mapping[str, Any], base: Path, source: str) -> tuple[Rule, ...]:
    """Each rule's keys laid over the general ones, and checked like these; all errors are told at once."""
    if not isinstance(rules, list | tuple | None):
        raise ConfigError(f"{source}: 'rules': got {rules!r}, expected a list; see config.example.yaml")
    checked: list[Rule] = []
    lines: list[str] = []
    for index, rule in enumerate(rules or ()):
        try:
            merged = {"match": rule["match"], **_overlaid(rule, general)}
            checked.append(Rule.model_validate(merged, context={"base": base}))
        except (KeyError, TypeError):
            lines.append(f"{source}: rules.{index}: got {rule!r}, expected a mapping with the key 'match'")
        except ConfigError as error:
            lines.append(f"{source}: rules.{index}: {error}")
        except ValidationError as error:
            lines += [f"{source}: rules.{index}: {_explain(problem)}" for problem in error.errors()]
    if lines:
        raise ConfigError("\n".join(lines))
    return tuple(checked)


def _overlaid(rule: Mapping[str, Any], general: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The ruled sections with the rule's keys laid over: whole sections, or keys that only one has.

    A rule's strength goes before the general keys, and its own keys before its strength.
    """
    sections: dict[str, dict[str, Any]] = {name: {} for name in RULED}
    fields = {name: Settings.model_fields[name].annotation for name in RULED}
    for key, value in rule.items():
        owners = [name for name, model in fields.items() if model and key in model.model_fields]
        if key in sections and isinstance(value, Mapping):
            sections[key] = _laid_over(sections[key], value)
        elif len(owners) == 1:
            sections[owners[0]] = _laid_over(sections[owners[0]], {key: value})
        elif key != "match":
            valid = [
                "match",
                *RULED,
                *(key for model in fields.values() if model for key in model.model_fields),
            ]
            near = difflib.get_close_matches(str(key), valid, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(valid)}"
            raise ConfigError(f"unknown key {key!r}; {hint}")
    sections["protect"] = _strengthened(sections["protect"])
    return {name: _laid_over(dict(general.get(name) or {}), sections[name]) for name in RULED}


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two mappings as one: the upper's values win, and mappings within are laid over in turn."""
    both = {key: (below[key], above[key]) for key in above if key in below}
    inner = {
        key: _laid_over(low, high)
        for key, (low, high) in both.items()
        if isinstance(low, Mapping) and isinstance(high, Mapping)
    }
    return {**below, **above, **inner}


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
    got = "a value" if where == "hooks" else repr(problem["input"])  # it may be the address itself
    return f"{where!r}: got {got}; {message[0].lower()}{message[1:]}"


def _valid_keys(location: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Settings
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            model = _section_in(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, by itself or as the items of a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part))), None)
