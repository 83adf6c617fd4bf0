"""The sections of the configuration and `Settings`, which holds them all."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, SecretStr, field_validator, model_validator

from backfire.config.regions import Regions
from backfire.config.renamed import METHODS
from backfire.config.section import Positive, Seconds, Section, Share
from backfire.config.strengths import GROWING, STRENGTHS, resolved
from backfire.types import composed

IGNORE = (
    ".*", "~*", "*.tmp", "*.part", "*.partial", "*.filepart", "*.crdownload", "*.opdownload", "*.download",
    "*.aria2", "*.!qB", "*.!ut", "*.!bt",
    "#recycle", "@Recycle", "$RECYCLE.BIN", "RECYCLER", "lost+found", "found.[0-9][0-9][0-9]",
    "Network Trash Folder", "Temporary Items", "#snapshot", "@snapshot", "@Recently-Snapshot", "@GMT-*",
    "System Volume Information", "@eaDir", "@__thumb", "@tmp", "__MACOSX", "Thumbs.db", "ehthumbs.db",
    "desktop.ini",
)  # fmt: skip
"""Patterns (fnmatch) of the names of files and folders that hold no picture, or none yet: what is still being
written or loaded, and waste baskets, snapshots and thumbnails of file servers. Hidden ones, such as .zfs,
.snapshot, .Trash-1000 and .stfolder, are among those that begin with a dot."""


DATABASE = "backfire.sqlite"
"""The name of the job database in the state folder."""


class Folders(Section):
    """Where pictures come from and go to; all folders but the inbox lie beside it unless set."""

    inbox: Path
    """The folder that pictures and their masks are dropped into."""
    outbox: Path = Path("outbox")
    """The folder of the protected copies."""
    archive: Path = Path("archive")
    """The folder of the untouched originals of what was published."""
    failed: Path = Path("failed")
    """The folder of the originals that could not be protected, each with NAME.EXT.error.json."""
    reports: Path = Path("reports")
    """The folder of the receipts (NAME.EXT.json) and picture sheets (NAME.EXT.sheet.jpg)."""
    state: Path = Path("state")
    """The folder of the job database and of private copies, which must be on a local disk."""

    @property
    def database(self) -> Path:
        """The file of the job database."""
        return self.state / DATABASE

    def named(self) -> dict[str, Path]:
        """All folders by the names of their settings."""
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


class Watch(Section):
    """How the inbox is watched."""

    mode: Literal["auto", "inotify", "polling"] = "auto"
    """How new files are noticed early; auto polls on file systems that report no events."""
    settle_s: Seconds = 5
    """The seconds for which a file must not change before it counts as complete."""
    rescan_s: Positive = 30
    """The seconds between two scans of the inbox, which find everything; file events only come sooner."""
    mask_wait_s: Seconds = 10
    """The seconds that a complete picture waits for its masks."""
    incomplete_wait_s: Seconds = 60
    """The further seconds that a file whose data end too early may stay unchanged, since copies stall."""
    proof: Literal["none", "done", "sha256"] = "none"
    """What a picture waits for: nothing, a file NAME.EXT.done, or a file NAME.EXT.sha256 that fits it."""
    priorities: dict[str, int] = Field(default_factory=dict)
    """Folders of the inbox that are served earlier or later than the others, which have 0; for example
    {urgent: 10, archive/2019: -5}."""
    ignore: tuple[str, ...] = IGNORE
    """Patterns of the names of files and folders that hold no picture, or none yet, in upper or lower case; a
    list of your own takes the place of this one."""

    @field_validator("priorities")
    @classmethod
    def _plain_folders(cls, value: dict[str, int]) -> dict[str, int]:
        """The folders as pictures' paths have them: `./urgent/` is `urgent`, and `.` is the inbox itself."""
        found: dict[str, int] = {}
        for folder, rank in value.items():
            plain = posixpath.normpath(composed(folder)) if folder else ""
            if not plain or plain.startswith("/") or ".." in plain.split("/"):
                raise ValueError(
                    f"watch.priorities: got {folder!r}, expected a folder below the inbox, such as 'urgent'; "
                    "write its path from the inbox on"
                )
            if found.setdefault(plain, rank) != rank:
                raise ValueError(
                    f"watch.priorities: {plain!r} is named twice, with {found[plain]} and {rank}; keep one"
                )
        return found

    @property
    def proof_ending(self) -> bytes:
        """How the names of proof files end; empty where none are used."""
        return b"" if self.proof == "none" else f".{self.proof}".encode()


class Protect(Section):
    """How the perturbation is optimised."""

    strength: Literal["subtle", "balanced", "strong", "paper"] = "balanced"
    """A word that decides the next settings where they are null; paper is the published baseline."""
    method: str = "implant"
    """The method: implant, encoder, first-step, or baseline, which is the published one."""
    epsilon: Annotated[float, Field(ge=1, le=64)] = 5
    """The budget: how far a pixel may move, in levels of 255; files hold whole levels, so that 6.4 moves
    no pixel by more than 6."""
    iterations: Annotated[int, Field(ge=1, le=10_000)] = 80
    """The iterations for each region."""
    flat_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The share of epsilon in flat areas, where the eye sees most."""
    reach_px: Annotated[int, Field(ge=16, le=4096)] = 24
    """The pixels around a region that may be changed at least; more breaks more, and shows more."""
    reach_share: Share = 0.16
    """The same as a share of the region's shorter side; the larger of the two counts, up to margin_px."""
    surrogates: tuple[str, ...] = Field(default=("flux2-mini",), min_length=1)
    """The editors that the perturbation is optimised against."""
    whole_px: Annotated[int, Field(ge=0, le=2048)] = 800
    """The long side, in pixels, up to which a picture is optimised whole, as editors take it; 0 never does,
    which is faster."""
    margin_px: Annotated[int, Field(ge=16, le=1024)] = 128
    """The pixels of context around a region in larger pictures, which is what editors crop."""
    luma_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The share of epsilon for luma; with less, colour carries the perturbation, which the eye sees less."""
    grain_px: Annotated[int, Field(ge=1, le=8)] = 1
    """The side of the squares of pixels that are changed as one; 2 survives scaling better and shows more."""
    stop_early: bool = False
    """Whether to stop as soon as every threshold of `verify` is met with a margin, which is faster and
    leaves less in reserve."""
    escalate: tuple[Literal["subtle", "balanced", "strong"], ...] = ()
    """The strengths at which to go on, one after the other, where edits of a region do not break with a
    margin; for example [balanced, strong]."""
    keep_region_exact: bool = False
    """Whether protected pixels stay as they are, so that only those around them are changed."""
    robust_to: tuple[Literal["paths", "resize", "jpeg", "blur"], ...] = ()
    """The transforms to optimise through, so that the effect survives them: other attack paths, other sizes,
    JPEG, blur with noise; each costs some of the plain effect."""
    target: Literal["away", "flat", "inverted"] = "away"
    """What edits are driven to: away from the clean edit, a pure colour as published, or the negative."""
    work_px: Annotated[int, Field(ge=256, le=2048, multiple_of=8)] = 800
    """The long side, in pixels, to which larger crops are scaled down for the optimisation."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    """The device: auto, cpu, cuda, or cuda:N for one of several."""
    cpu_fallback: bool = True
    """Whether a picture that is too large for the memory of the GPU is worked on the CPU."""
    attempts: Annotated[int, Field(ge=1, le=20)] = 3
    """The attempts at a picture that kills the worker, before it is set aside."""

    _by_strength = model_validator(mode="before")(resolved)

    @field_validator("method")
    @classmethod
    def _present_name(cls, value: str) -> str:
        if value in METHODS:
            raise ValueError(
                f"protect.method: got {value!r}, which is now called {METHODS[value]!r}; write that"
            )
        return value

    @model_validator(mode="after")
    def _published(self) -> Protect:
        if self.method == "baseline" and self.escalate:
            raise ValueError(
                "protect.escalate: got method baseline, which always begins anew, expected another one; "
                "set protect.method: implant, or escalate: [] beside it"
            )
        return self

    def rounds(self) -> list[Protect]:
        """These settings, then those of each further round that `escalate` names.

        A further round has the iterations of its strength, and its budget or that of the round before,
        whichever is more.
        """
        found = [self]
        for strength in self.escalate:
            last, named = found[-1], STRENGTHS[strength]
            more = {name: max(getattr(last, name), named[name]) for name in GROWING}
            found.append(self.model_copy(update={**more, "iterations": named["iterations"]}))
        return found


class Verify(Section):
    """Which edits decide the verdict; all figures (of 1) are taken under the mask of each edit."""

    held_out: tuple[str, ...] = ()
    """The held-out editors, which only judge."""
    on_weak: Literal["publish", "fail"] = "publish"
    """What becomes of a picture whose verdict is weak."""
    trigger_ssim_max: Share = 0.75
    """The most SSIM to the clean edit that an edit of the region may keep."""
    trigger_l1_min: Share = 0.05
    """The least L1 difference from the clean edit that an edit of the region must have."""
    trigger_visible_min: Share = 0.5
    """The least share of the region over which a person must see plainly that its edit is another."""
    incomplete_ssim_max: Share = 0.85
    """The most SSIM for an edit of half the region, or of a little more than the region."""
    incomplete_l1_min: Share = 0.03
    """The least L1 difference for such an edit."""
    incomplete_visible_min: Share = 0.25
    """The least share of its area over which a person must see plainly that such an edit is another."""
    near_ssim_min: Share = 0.90
    """The least SSIM to the clean edit that an edit beside the region must keep."""
    far_ssim_min: Share = 0.92
    """The least SSIM that an edit 32 px or more away from the region must keep."""
    control_factor: Annotated[float, Field(ge=0)] = 2.0
    """How many times as much as under plain noise of the same size an edit of the region must break."""


class Output(Section):
    """What the published file is like; see docs/guides/formats.md."""

    format: Literal["same", "png", "jpeg", "tiff", "webp", "heic", "avif", "jpeg2000", "bmp"] = "same"
    """The format of the published file."""
    jpeg: Literal["strong", "small"] = "strong"
    """Whether a JPEG keeps all of the effect or, with some of it lost, a smaller size."""
    frames: Literal["refuse", "first"] = "refuse"
    """What becomes of a file with several pages or frames; first publishes only the first of them."""
    metadata: Literal["keep", "strip-gps", "strip-all"] = "keep"
    """Which metadata the published file keeps."""
    opaque: Literal["drop", "keep"] = "drop"
    """Whether metadata of 2 kB or more that is of an unknown kind, such as most maker notes, is dropped,
    because nobody can tell whether it holds the unprotected picture; the receipt names what was dropped."""
    max_pixels: Annotated[int, Field(ge=1)] = 120_000_000
    """The most pixels of a picture; larger ones are refused."""


class DeclaredEditor(Section):
    """An editor beside the built-in ones; keys other than `kind` and `weights` are options of its kind."""

    model_config = ConfigDict(extra="allow")

    kind: str
    """Which class loads the editor: one of `backfire.inpaint.KINDS`."""
    weights: Annotated[tuple[str, ...], Field(min_length=1)]
    """Files or folders, names that `backfire models list` shows, or what else the kind understands,
    such as a hub name; paths are absolute once the file is loaded."""

    @property
    def options(self) -> dict[str, Any]:
        """The keys that are handed to the kind's loader."""
        return dict(self.model_extra or {})

    @field_validator("weights", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


def _models_home() -> Path:
    """The folder that the XDG base directory specification gives to an application's own data."""
    home = os.environ.get("XDG_DATA_HOME", "")
    return (Path(home) if home.startswith("/") else Path("~/.local/share").expanduser()) / "backfire/models"


class Models(Section):
    """Where fetched weights lie."""

    folder: Path = Field(default_factory=_models_home)
    """The folder of fetched weights; null is backfire/models in the user's data folder (~/.local/share)."""

    @field_validator("folder", mode="before")
    @classmethod
    def _default(cls, value: object) -> object:
        return _models_home() if value is None else value


class Limits(Section):
    """Where the daemon pauses, gives up or forgets, and how much it does at once."""

    free_mb: Annotated[int, Field(ge=0)] = 500
    """The megabytes below which work pauses when a disk of the outbox, archive, reports, failed or state
    folder has no more left."""
    max_bytes: Annotated[int, Field(ge=1)] = 2_000_000_000
    """The most bytes of a picture, mask or proof file; a larger one is set aside unread."""
    silence_s: Positive = 900
    """The seconds without a heartbeat after which a worker is killed and its picture tried again."""
    memory_mb: Annotated[int, Field(ge=0)] = 0
    """The megabytes of host memory that a worker may allocate; 0 sets no limit."""
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


class Serve(Section):
    """What the daemon tells a monitoring system over HTTP."""

    metrics: str | None = None
    """The address of this machine, such as 127.0.0.1:9477, that serves /metrics (Prometheus) and /healthz."""
    allowed_hosts: tuple[str, ...] = ()
    """The host names, such as metrics.example.org, under which a reverse proxy may ask."""

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

    @field_validator("allowed_hosts")
    @classmethod
    def _host_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            if not re.fullmatch(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|\[[0-9A-Fa-f:.]+\]", host):
                raise ValueError(
                    f"serve.allowed_hosts: got {host!r}, expected a host name without scheme and port, "
                    "such as 'metrics.example.org' or '*.example.org'; name the one that the proxy sends"
                )
        return value


class Hooks(Section):
    """Who is told, in JSON and at least once, when a picture is published or has failed."""

    events: tuple[Literal["published", "failed"], ...] = ("published", "failed")
    """The events that are told."""
    webhook: SecretStr | None = None
    """The address that gets a POST, such as https://user:password@host/path."""
    command: tuple[str, ...] = ()
    """The program that gets the JSON on its standard input, with arguments: [/usr/local/bin/tell, --desk]."""
    timeout_s: Annotated[float, Field(gt=0, le=600)] = 10
    """The seconds that one try may take."""
    attempts: Annotated[int, Field(ge=1, le=1000)] = 12
    """The tries, 5 s to 1 h apart, before an event is given up; twelve take some two and a half hours."""

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


class Rule(Section):
    """The settings of the pictures that `match` names, already merged with the file's own sections.

    `match` is a pattern of paths relative to the inbox: `*` and `?` stay within a folder, `**/` stands
    for any folders or none, and `**` at the end for everything below. Upper and lower case are
    different; the two Unicode spellings of an accented letter are the same.
    """

    match: str
    """The pattern of the paths, such as portraits/**."""
    regions: Regions
    protect: Protect
    verify: Verify
    output: Output

    @field_validator("match")
    @classmethod
    def _can_fit(cls, value: str) -> str:
        parts = value.split("/")
        if set(parts) & {"", ".", ".."}:
            plain = [part for part in parts if part not in ("", ".")]
            remedy = "write what follows the inbox, such as 'portraits/**'"
            if plain and parts[0] and ".." not in parts:
                remedy = f"write {'/'.join(plain if parts[-1] else [*plain, '**'])!r}"
            raise ValueError(
                f"match: got {value!r}, which fits no path, as paths begin below the inbox; {remedy}"
            )
        return value

    def covers(self, other: Rule) -> bool:
        """Whether this rule fits every path that the other one fits, as far as the patterns tell."""
        mine, theirs = composed(self.match), composed(other.match)
        if mine in (theirs, "**", "**/*"):
            return True
        folder, everything, _ = mine.partition("/**")
        return mine == folder + everything and not set("*?") & set(folder) and theirs.startswith(folder + "/")

    def matches(self, path: bytes) -> bool:
        """Whether the rule is for a path relative to the inbox."""
        return re.fullmatch(_glob(composed(self.match)), composed(path), re.DOTALL) is not None


class Settings(Section):
    """The whole configuration."""

    folders: Folders
    watch: Watch = Watch()
    regions: Regions = Regions()
    protect: Protect = Protect()
    verify: Verify = Verify()
    output: Output = Output()
    editors: dict[str, DeclaredEditor] = Field(default_factory=dict)
    """Editors beside the built-in ones, under names of your own, for `surrogates` and `held_out`: each has a
    kind, weights (files, folders, or names that `backfire models list` shows) and options of its kind, such
    as {lama: {kind: lama, weights: big-lama, dtype: bfloat16}}; see docs/guides/editors.md."""
    models: Models = Field(default_factory=Models)
    serve: Serve = Serve()
    hooks: Hooks = Hooks()
    limits: Limits = Limits()
    rules: tuple[Rule, ...] = ()
    """Other settings for some pictures: the first rule whose pattern fits the path below the inbox wins. It
    may set keys of regions, protect, verify and output, by section or by their own name, such as
    [{match: "portraits/**", detectors: [sidecar, faces], epsilon: 8, faces: {min_px: 12}}]."""

    @model_validator(mode="after")
    def _models_apart(self) -> Settings:
        models = self.models.folder
        for name, folder in self.folders.named().items():
            # Nothing is taken in from `state` and nothing published there, so that weights may lie in it.
            if name != "state" and (models == folder or folder in models.parents or models in folder.parents):
                raise ValueError(
                    f"models.folder {models} and {name} {folder} lie inside each other or are the same; "
                    "weights are no pictures; move models.folder elsewhere"
                )
        return self

    @property
    def sha256(self) -> str:
        """The digest of everything that decides what a result looks like.

        Rules are left out: what they change is in the digest of the settings that `for_path` returns.
        """
        aside = {"folders", "watch", "models", "serve", "hooks", "limits", "rules"}
        deciding = self.model_dump(mode="json", exclude=aside)
        del deciding["protect"]["strength"]  # the settings that it stands for are what decides
        if not self.editors:
            del deciding["editors"]  # the digest from before this section existed: nothing is done again
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()

    def rule_of(self, path: bytes) -> int | None:
        """The index of the first rule that matches a path relative to the inbox, None without one."""
        return next((i for i, rule in enumerate(self.rules) if rule.matches(path)), None)

    def for_path(self, path: bytes) -> Settings:
        """The settings of one picture: its rule's sections in place of the general ones."""
        if not self.rules:
            return self
        index = self.rule_of(path)
        return self._ruled(None if index is None else self.rules[index])

    def variants(self) -> Iterator[tuple[str, Settings]]:
        """All settings that a picture may get, each with a prefix for messages that names its rule."""
        yield "", self._ruled(None)
        for index, rule in enumerate(self.rules):
            yield f"rules.{index} ({rule.match}): ", self._ruled(rule)

    def _ruled(self, rule: Rule | None) -> Settings:
        sections = {} if rule is None else {name: getattr(rule, name) for name in RULED}
        return self.model_copy(update={**sections, "rules": ()})


RULED = tuple(name for name in Rule.model_fields if name != "match")
"""The sections that a rule may change."""


def _glob(pattern: str) -> str:
    """A path pattern as a regular expression."""
    tokens = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    return "".join(tokens.get(part, re.escape(part)) for part in parts)
