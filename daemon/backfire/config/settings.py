"""`Settings`, the whole configuration, and the rules in it, each for some of the pictures."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

from pydantic import Field, field_validator, model_validator

from backfire.config.cluster import Cluster
from backfire.config.editors import DeclaredEditor, Models
from backfire.config.folders import Folders
from backfire.config.hooks import Hooks
from backfire.config.limits import Limits
from backfire.config.output import Output
from backfire.config.protect import Protect
from backfire.config.provenance import Provenance
from backfire.config.regions import Regions
from backfire.config.section import Section
from backfire.config.serve import Serve
from backfire.config.verify import Verify
from backfire.config.watch import Watch
from backfire.types import composed


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
        return re.fullmatch(self.pattern, composed(path), re.DOTALL) is not None

    @property
    def pattern(self) -> str:
        """`match` as a regular expression for `composed` paths."""
        return _glob(composed(self.match))


class Settings(Section):
    """The whole configuration."""

    folders: Folders
    watch: Watch = Watch()
    regions: Regions = Regions()
    protect: Protect = Protect()
    verify: Verify = Verify()
    output: Output = Output()
    provenance: Provenance = Provenance()
    editors: dict[str, DeclaredEditor] = Field(default_factory=dict)
    """Editors beside the built-in ones, under names of your own, for `surrogates` and `held_out`: each has a
    kind, weights (files, folders, or names that `backfire models list` shows) and options of its kind, such
    as {lama: {kind: lama, weights: big-lama, dtype: bfloat16}}; see docs/guides/editors.md."""
    models: Models = Field(default_factory=Models)
    serve: Serve = Serve()
    hooks: Hooks = Hooks()
    limits: Limits = Limits()
    cluster: Cluster = Field(default_factory=Cluster)
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
        """The digest of `deciding`."""
        return hashlib.sha256(json.dumps(self.deciding, sort_keys=True).encode()).hexdigest()

    @property
    def deciding(self) -> dict[str, Any]:
        """Everything that decides what a result looks like.

        Rules are left out: what they change is in that of the settings that `for_path` returns.
        """
        aside = {"folders", "watch", "provenance", "models", "serve", "hooks", "limits", "cluster", "rules"}
        deciding: dict[str, Any] = self.model_dump(mode="json", exclude=aside)
        del deciding["protect"]["strength"]  # the settings that it stands for are what decides
        # What came later and is not used is left out: the digest stays, and nothing is done again.
        if not self.editors:
            del deciding["editors"]
        for editor in deciding.get("editors", {}).values():
            if editor["start"] is None:
                del editor["start"]
        if self.output.long_px is None:
            del deciding["output"]["long_px"]
        if self.output.data_mining == "keep":
            del deciding["output"]["data_mining"]
        if self.provenance.on:
            deciding["provenance"] = self.provenance.deciding
        return deciding

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
