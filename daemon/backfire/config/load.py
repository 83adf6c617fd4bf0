"""From YAML to `Settings`: the only module that makes settings of YAML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from backfire.config.editors import NO_HOME
from backfire.config.folders import Folders
from backfire.config.messages import EXAMPLE, belongs, mistakes
from backfire.config.rules import rules_of
from backfire.config.settings import Settings
from backfire.errors import ConfigError

LONGEST = 4_000_000
"""The most characters of a configuration."""


def load(path: Path) -> Settings:
    """Read and check a configuration file.

    Raises:
        ConfigError: the file cannot be read, is no valid YAML or has a key twice, or settings are
            unknown or invalid, of which all are named at once.
    """
    text = _read(path)
    try:
        data = yaml.load(text, _Loader)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except yaml.MarkedYAMLError as error:  # its own text quotes the line, which may hold a password
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        hint = _misplaced(text, mark.line, mark.column) if mark else ""
        raise ConfigError(
            f"{path}: is not valid YAML: {where}{error.problem or error.context}{hint}"
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # no such date; brackets without end
        raise ConfigError(f"{path}: is not valid YAML: {error}") from None
    try:
        file = path.resolve()
        settings = parse(data, base=file.parent, source=str(path))
        _require_outside(settings.folders.inbox, path, file)
        return settings
    except (OSError, RuntimeError) as error:  # `~nobody`, links in a circle, a name that is too long
        raise ConfigError(f"{path}: a path in it cannot be used ({error}); name another one") from error


def _misplaced(text: str, line: int, column: int) -> str:
    """Where the setting belongs at whose colon YAML stopped, as one space too many is enough for that.

    It stops at a later colon of the line for a value that wants quotes.
    """
    found = re.match(r"\s*(\w+):", "".join(text.splitlines()[line : line + 1]))
    hint = belongs(found[1]) if found and found.end() - 1 == column else ""
    return f"; {hint}" if hint else ""


def _read(path: Path) -> str:
    """The text of a configuration.

    Raises:
        ConfigError: the file cannot be read, or is too long.
    """
    try:
        with path.open(encoding="utf-8") as opened:  # it may be a device without end
            text = opened.read(LONGEST + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: cannot be read ({reason}); name a readable file with -c") from error
    if len(text) > LONGEST:
        raise ConfigError(f"{path}: has more than {LONGEST} characters, which no configuration has; name one")
    return text


def state_of(path: Path) -> Path | None:
    """The state folder that a configuration names, also where the rest of it cannot be used.

    Where it is no YAML at all, the folder `state` beside it counts, if it is there. None if nobody can tell.
    """
    beside = path.absolute().parent / "state"
    try:
        data = yaml.safe_load(_read(path))
        folders = _with_folders({"folders": data["folders"]}, path.resolve().parent)["folders"]
        return Folders.model_validate(folders).state
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, yaml.YAMLError, ConfigError):
        return beside if beside.is_dir() else None


def parse(data: object, *, base: Path, source: str = "settings") -> Settings:
    """Check settings that are already a mapping; relative paths are relative to `base`.

    Raises:
        ConfigError: settings are unknown or invalid; all mistakes are named at once.
    """
    if data is None:
        raise ConfigError(f"{source}: is empty; it must name folders.inbox; {EXAMPLE}")
    if not isinstance(data, Mapping):
        raise ConfigError(f"{source}: got {type(data).__name__}, expected a mapping; {EXAMPLE}")
    general = {key: value for key, value in data.items() if key != "rules"}
    try:
        absolute = _with_weights(_with_folders(general, base), base)
        settings = Settings.model_validate(absolute, context={"base": base})
    except ValidationError as error:
        lines = [f"{source}: {mistake}" for mistake in mistakes(error)]
        raise ConfigError("\n".join(lines)) from None
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    complete = settings.model_copy(update={"rules": rules_of(data.get("rules"), general, base, source)})
    _require_ends(complete, source)
    return complete


def _require_ends(settings: Settings, source: str) -> None:
    """Refuse a program that may take as long as a worker may be silent, which is killed as hung then."""
    silence = settings.limits.silence_s
    for where, variant in settings.variants():
        most = variant.regions.command.timeout_s
        if "command" in variant.regions.detectors and most >= silence:
            raise ConfigError(
                f"{source}: {where}regions.command.timeout_s: got {most:g}, expected less than "
                f"limits.silence_s ({silence:g}), after which a worker that waits for the program is killed; "
                "lower it, or raise limits.silence_s"
            )


def _require_outside(inbox: Path, path: Path, file: Path) -> None:
    """Refuse a configuration that lies in its own inbox, where it would be taken for a picture.

    Args:
        inbox: the folder, absolute and without links.
        path, file: the configuration's file as it was named, and with links resolved.
    """
    named = path.parent.resolve() / path.name
    if any(inbox in place.parents for place in (named, file)):
        raise ConfigError(
            f"{path}: lies in its own inbox {inbox}, where it would be taken for a picture; "
            "name a folder of its own in folders.inbox, such as inbox"
        )


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which refuses a mapping that has a key twice.

    YAML itself forbids that, but PyYAML lets the second value win without a word: a second `regions:`
    once published pictures without the protection that the first one asked for.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                raise ConfigError(
                    f"the key {name!r} is in line {lines[name]} and again in line {line}, "
                    "and only one of them would count; merge the two"
                )
            lines[name] = line
        return node


def _with_folders(data: dict[str, Any], base: Path) -> dict[str, Any]:
    """The data with absolute folders; those that are not set lie beside the inbox."""
    folders = data.get("folders")
    if not isinstance(folders, Mapping) or not isinstance(folders.get("inbox"), str | Path):
        return data  # the models' check words the error
    inbox = _absolute("folders.inbox", folders["inbox"], base)
    absolute: dict[str, Any] = dict(folders)
    for name, field in Folders.model_fields.items():
        value = folders.get(name)
        if name == "inbox":
            absolute[name] = inbox
        elif value is None:
            absolute[name] = inbox.parent / field.default
        elif isinstance(value, str | Path):
            absolute[name] = _absolute(f"folders.{name}", value, base)
    return {**data, "folders": absolute}


def _with_weights(data: dict[str, Any], base: Path) -> dict[str, Any]:
    """The data with an absolute folder of models, and absolute starts and weights where these are a path.

    Weights are a path where they begin with `.`, `/` or `~`, or where such a file exists. Anything else is a
    name of the catalogue or of a hub, which only the kind of the editor can tell apart.
    """
    models, editors = data.get("models"), data.get("editors")
    if isinstance(models, Mapping) and isinstance(models.get("folder"), str | Path):
        data = {**data, "models": {**models, "folder": _absolute("models.folder", models["folder"], base)}}
    if not isinstance(editors, Mapping):
        return data  # the models' check words the error

    def place(where: str, weights: object) -> object:
        if isinstance(weights, list):
            return [place(where, one) for one in weights]
        if not isinstance(weights, str):
            return weights
        path = _absolute(where, weights, base)
        return str(path) if weights.startswith((".", "/", "~")) or path.exists() else weights

    def declared(name: str, editor: object) -> object:
        if not isinstance(editor, Mapping):
            return editor
        placed = dict(editor)
        if "weights" in placed:
            placed["weights"] = place(f"editors.{name}.weights", placed["weights"])
        if isinstance(placed.get("start"), str | Path):
            placed["start"] = _absolute(f"editors.{name}.start", placed["start"], base)
        return placed

    return {**data, "editors": {name: declared(name, one) for name, one in editors.items()}}


def _absolute(where: str, value: str | Path, base: Path) -> Path:
    """An absolute path with its links resolved, so that no folder hides inside another behind a link.

    Args:
        where: the setting that holds it.

    Raises:
        ConfigError: it is empty, which would stand for `base`, holds a NUL, or begins in no home folder.
    """
    if not str(value).strip():
        raise ConfigError(f"{where}: is empty, expected a path; name one")
    if "\0" in str(value):
        raise ConfigError(f"{where}: got {str(value)!r}, which holds a NUL character; name another path")
    try:
        return (base / Path(value).expanduser()).resolve()
    except RuntimeError:
        raise ConfigError(f"{where}: got {str(value)!r}, but {NO_HOME}; write the whole path") from None
