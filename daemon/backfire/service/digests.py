"""The configuration digests of pictures, kept by rule: computing one costs as much as copying a picture."""

from __future__ import annotations

from backfire.config import Settings


class Digests:
    """`Settings.sha256` of the settings of each picture under one configuration."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._by_rule: dict[int | None, str] = {}

    def of(self, path: bytes) -> str:
        """The digest for a path relative to the inbox."""
        rule = self._settings.rule_of(path)
        if rule not in self._by_rule:
            self._by_rule[rule] = self._settings.for_path(path).sha256
        return self._by_rule[rule]
