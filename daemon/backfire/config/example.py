"""Commented configurations, made from the descriptions of the settings.

`everything` is config.example.yaml and `starter` what `backfire init` writes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from backfire.config.describe import Setting, settings

WIDTH = 106

_EVERYTHING = """\
Every setting of Backfire with its default. Only folders.inbox must be set; leave out what you do not change.
Unknown keys are errors. Relative paths are relative to this file. `backfire check` says whether it will work.
This file is made from the code: python -m backfire.config > config.example.yaml"""

_STARTER = """\
The configuration of Backfire. Only folders.inbox must be set. Relative paths are relative to this file.
`backfire check` says whether it will work. Every setting is explained in config.example.yaml and in the
documentation. A comment that is a setting shows its default: to change it, take away its # and the space
after that."""

ESSENTIAL = (
    "folders.inbox",
    "regions.detectors",
    "regions.none_found",
    "protect.strength",
    "verify.on_weak",
    "output.long_px",
)
"""The settings that a new configuration holds; all others are there as comments."""


def everything() -> str:
    """All settings with their defaults and descriptions, as YAML."""
    lines = [*_comment(_EVERYTHING, "")]
    for setting in settings():
        pad = "  " * setting.depth
        if setting.depth == 0:
            lines.append("")
        lines += _comment(_told(setting), pad)
        lines.append(f"{pad}{setting.name}:{'' if setting.section else ' ' + setting.default}")
    return "\n".join(lines) + "\n"


def starter(long_px: int | None = None) -> str:
    """The essential settings with their descriptions, and the names and defaults of all others, as YAML.

    Args:
        long_px: the value of `output.long_px`; all other settings have their defaults.
    """
    lines = [*_comment(_STARTER, "")]
    for setting in settings():
        pad = "  " * setting.depth
        if setting.depth == 0:
            lines += ["", *_comment(setting.text, "")]
        if setting.path in ESSENTIAL:
            lines += _comment(_told(setting), pad)
        # Headings are no comments, or a key that somebody takes the # from would end up in the section above.
        live = setting.path in ESSENTIAL or setting.section
        given = long_px is not None and setting.path == "output.long_px"
        value = "" if setting.section else f" {long_px if given else setting.default}"
        # The # stands where the key belongs, so that taking it away leaves a valid line.
        lines.append(f"{pad}{'' if live else '# '}{setting.name}:{value}")
    return "\n".join(lines) + "\n"


def _told(setting: Setting) -> str:
    values = f"Values: {setting.values}." if setting.values else ""
    apart = "\n" if len(setting.text) + len(values) > WIDTH else " "
    return f"{setting.text}{apart}{values}".rstrip()


def _comment(text: str, pad: str) -> Iterator[str]:
    for paragraph in text.splitlines():
        for line in textwrap.wrap(paragraph, WIDTH, break_long_words=False, break_on_hyphens=False):
            yield f"{pad}# {line}"
