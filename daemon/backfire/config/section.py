"""What all sections of the configuration share, and the kinds of values they hold."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from pydantic import ValidationInfo as Info
from pydantic_core import PydanticCustomError

Positive = Annotated[float, Field(gt=0)]
Seconds = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


def _from_file(path: Path, info: Info) -> Path:
    """A path as it is meant in the configuration file, absolute where the file is known."""
    return (info.context["base"] / _at_home(path)).resolve() if info.context else path


def _at_home(path: Path) -> Path:
    """A path with `~` replaced.

    Raises:
        ValueError: there is no such user. It names the path alone, as arguments of a program may be secret.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        message = f"path {str(path)!r}: got a user without a home folder; write the whole path"
        raise ValueError(message) from None


def _not_empty(value: object) -> object:
    """Refuses an empty path, which would stand for the folder of the configuration file."""
    if isinstance(value, str) and not value.strip():
        raise PydanticCustomError("empty", "a path is expected, which must not be empty; null means none")
    return value


FromFile = Annotated[Path, BeforeValidator(_not_empty), AfterValidator(_from_file)]
"""A path that is relative to the folder of the configuration file unless it is absolute."""


def _program(words: tuple[str, ...], info: Info) -> tuple[str, ...]:
    """A program that is named by a path as it is meant in the configuration file.

    Links stay, as some programs do what the name says under which they are called.
    """
    if not info.context or not words or "/" not in words[0] or os.path.isabs(words[0]):
        return words
    return str(info.context["base"].resolve() / _at_home(Path(words[0]))), *words[1:]


Program = Annotated[tuple[str, ...], AfterValidator(_program)]
"""A program and its arguments; its path is as `FromFile`, and one without a slash is looked for in PATH."""


class Section(BaseModel):
    """A section of the configuration: frozen, and without keys that it does not know.

    The docstring below each field describes the setting; `backfire.config.describe` reads it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, value: Any) -> Any:
        """Reads a key whose entries are all commented out, which is null in YAML, as if it were absent."""
        if not isinstance(value, Mapping):
            return value  # pydantic words the error
        given = dict(value)
        for key, field in cls.model_fields.items():
            if given.get(key, "absent") is None:
                if section_in(field.annotation):
                    given[key] = {}
                elif field.get_default(call_default_factory=True) in ((), {}):
                    del given[key]
        return given

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value: Any, info: Info) -> Any:
        """Refuses `yes` and `no` where a number is expected: Python would take them for 1 and 0."""
        kinds = plain_types(cls.model_fields[info.field_name or ""].annotation)
        if bool not in kinds and kinds & {int, float} and _holds_a_switch(value):
            raise PydanticCustomError("switch", "a number is expected, which yes, no, on and off are not")
        return value


def section_in(annotation: Any) -> type[Section] | None:
    """The section that a field holds by itself, if it holds one."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def sections_below(annotation: Any) -> type[Section] | None:
    """The section that a field holds by itself or as the items of a list or mapping."""
    found = (sections_below(part) for part in get_args(annotation))
    return section_in(annotation) or next((one for one in found if one), None)


def plain_types(annotation: Any) -> set[Any]:
    """The types that a field's value or its items may have, without those of sections within."""
    parts = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return plain_types(parts[0])
    return {annotation} if not parts else {kind for part in parts for kind in plain_types(part)}


def _holds_a_switch(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_a_switch, value.values()))
    return any(map(_holds_a_switch, value)) if isinstance(value, list | tuple) else isinstance(value, bool)
