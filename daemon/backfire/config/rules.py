"""The rules of a configuration, each merged with the general sections."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from backfire.config.messages import EXAMPLE, mistakes, unknown_key
from backfire.config.protect import resolved
from backfire.config.settings import RULED, Rule, Settings
from backfire.errors import ConfigError


def rules_of(rules: object, general: Mapping[str, Any], base: Path, source: str) -> tuple[Rule, ...]:
    """The rules of a configuration, each with its keys laid over the general ones and checked like those.

    Args:
        rules: the list as read from YAML.
        general: the other sections as read from YAML.
        base: the folder that relative paths are relative to.
        source: the configuration's name in messages.

    Raises:
        ConfigError: one or more rules are wrong; all mistakes are named at once.
    """
    if not isinstance(rules, list | tuple | None):
        raise ConfigError(f"{source}: 'rules': got {rules!r}, expected a list; {EXAMPLE}")
    checked: dict[int, Rule] = {}
    lines: list[str] = []
    for index, rule in enumerate(rules or ()):
        try:
            merged = {"match": rule["match"], **_overlaid(rule, general)}
            found = Rule.model_validate(merged, context={"base": base})
            first = next((place for place, earlier in checked.items() if earlier.covers(found)), None)
            if first is not None:
                raise ConfigError(
                    f"{found.match!r} can never count, because rules.{first} ({checked[first].match!r}) "
                    "comes first and fits the same paths; put it before that one, or take it out"
                )
            checked[index] = found
        except (KeyError, TypeError):
            lines.append(f"{source}: rules.{index}: got {rule!r}, expected a mapping with the key 'match'")
        except ConfigError as error:
            lines.append(f"{source}: rules.{index}: {error}")
        except ValidationError as error:
            lines += [f"{source}: rules.{index}: {mistake}" for mistake in mistakes(error)]
    if lines:
        raise ConfigError("\n".join(lines))
    return tuple(checked.values())


def _overlaid(rule: Mapping[str, Any], general: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The ruled sections with the rule's keys laid over the general ones.

    A key is a section, or a setting that only one section has. A rule's strength wins over the general
    settings, and the rule's own settings win over its strength.
    """
    sections: dict[str, dict[str, Any]] = {name: {} for name in RULED}
    fields = {name: Settings.model_fields[name].annotation for name in RULED}
    for key, value in rule.items():
        owners = [name for name, model in fields.items() if model and key in model.model_fields]
        if key in sections and (value is None or isinstance(value, Mapping)):
            value = value or {}  # a section whose entries are all commented out
            sections[key] = _joined(key, sections[key], value)
        elif key in sections:
            raise ConfigError(f"{key!r}: got {value!r}, expected its settings, such as {key}: {{…}}")
        elif len(owners) == 1:
            sections[owners[0]] = _joined(owners[0], sections[owners[0]], {key: value})
        elif owners:
            either = " or ".join(f"{name}: {{{key}: …}}" for name in owners)
            raise ConfigError(f"{key!r}: is a setting of {' and of '.join(owners)}; write {either}")
        elif key != "match":
            valid = [
                "match",
                *RULED,
                *(key for model in fields.values() if model for key in model.model_fields),
            ]
            raise ConfigError(unknown_key(str(key), valid))
    sections["protect"] = resolved(sections["protect"])
    return {name: _laid_over(dict(general.get(name) or {}), sections[name]) for name in RULED}


def _joined(
    section: str, some: Mapping[str, Any], more: Mapping[str, Any], below: str = ""
) -> dict[str, Any]:
    """What a rule sets of a section, in it and by keys that stand alone.

    Args:
        section: its name.
        some, more: what is set in either way.
        below: the key within the section of which they are the values, with a point at its end.

    Raises:
        ConfigError: a key stands in both ways, of which only one could count.
    """
    inner = {}
    for key in some.keys() & more.keys():
        one, other, name = some[key], more[key], f"{below}{key}"
        if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
            raise ConfigError(
                f"'{section}.{name}': is set in {section!r} and as {name!r} alone; leave one of them"
            )
        inner[key] = _joined(section, one, other, f"{name}.")
    return {**some, **more, **inner}


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two mappings as one, in which the upper's values win and mappings within are merged the same way."""
    both = {key: (below[key], above[key]) for key in above if key in below}
    inner = {
        key: _laid_over(low, high)
        for key, (low, high) in both.items()
        if isinstance(low, Mapping) and isinstance(high, Mapping)
    }
    return {**below, **above, **inner}
