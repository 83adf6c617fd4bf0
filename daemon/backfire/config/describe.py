"""Every setting with its description, values and default, read from the models.

config.example.yaml (`python -m backfire.config`), the configuration that `backfire init` writes and the
reference in the documentation are made from this, so that none of them can contradict the code.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from backfire.config.editors import Models
from backfire.config.protect import STRENGTHS, Protect
from backfire.config.section import Section, plain_types, section_in
from backfire.config.settings import Settings

_PLAIN = re.compile(r"[A-Za-z][\w./-]*")
_WORDS_OF_YAML = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}


@dataclass(frozen=True)
class Setting:
    """A setting, or a section where `keys` says so.

    Attributes:
        path: its keys from the top, such as `regions.faces.min_px`.
        text: what it is, one or two plain sentences.
        values: which values it takes, such as `from 1 to 64`; empty where the text says it.
        default: its default as YAML, `null` where another setting decides; empty for a section.
        section: whether it is a section, whose settings follow.
    """

    path: str
    text: str
    values: str = ""
    default: str = ""
    section: bool = False

    @property
    def name(self) -> str:
        """Its own key."""
        return self.path.rpartition(".")[2]

    @property
    def depth(self) -> int:
        """How many sections it lies in."""
        return self.path.count(".")


def settings(model: type[Section] = Settings, above: str = "") -> Iterator[Setting]:
    """All settings below a section in the order of the models, each section before its settings."""
    texts = attribute_docs(model)
    for name, field in model.model_fields.items():
        path, inner = above + name, section_in(field.annotation)
        if inner is not None:
            yield Setting(path, _summary(inner), section=True)
            yield from settings(inner, f"{path}.")
        else:
            yield Setting(path, _described(model, name, texts[name]), _values(field), _default(model, name))


@cache
def attribute_docs(model: type[Section]) -> dict[str, str]:
    """The docstring of each field of a section, each as one line."""
    found = {} if model.__base__ in (None, Section) else dict(attribute_docs(model.__base__))
    body = ast.parse(inspect.getsource(model)).body[0]
    assert isinstance(body, ast.ClassDef)
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            match text:
                case ast.Expr(value=ast.Constant(value=str(words))):
                    found[field.target.id] = " ".join(words.split())
    return found


def yaml_of(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(yaml_of, value))}]"
    if isinstance(value, float):
        return f"{value:g}"
    value = str(value) if isinstance(value, Path) else value
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS_OF_YAML:
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _summary(section: type[Section]) -> str:
    return " ".join((section.__doc__ or "").partition("\n\n")[0].split())


def _described(model: type[Section], name: str, text: str) -> str:
    if model is Protect and name in STRENGTHS["balanced"]:
        each = ", ".join(f"{word} {yaml_of(given[name])}" for word, given in STRENGTHS.items())
        return f"{text} Null takes that of the strength ({each})."
    return text


def _default(model: type[Section], name: str) -> str:
    if (model is Protect and name in STRENGTHS["balanced"]) or model is Models:
        return "null"
    field = model.model_fields[name]
    return yaml_of(name if field.is_required() else field.get_default(call_default_factory=True))


def _values(field: FieldInfo) -> str:
    """Which values a setting takes, in words, from its type and bounds."""
    kinds, choices = plain_types(field.annotation), _choices(field.annotation)
    if choices and get_origin(field.annotation) is tuple:
        return "any of " + ", ".join(choices)
    if choices:
        beside = "a number" if int in kinds else "a list of names" if str in kinds else ""
        return f"{', '.join(choices)}, or {beside}" if beside else "one of " + ", ".join(choices)
    if bool in kinds:
        return "true or false"
    bounds = {
        name: getattr(bound, name)
        for bound in _bounds(field)
        for name in ("ge", "gt", "le", "multiple_of")
        if getattr(bound, name, None) is not None
    }
    if not bounds:
        return ""
    most = f"{bounds['le']:,}" if "le" in bounds else ""
    if "ge" in bounds:
        span = f"from {bounds['ge']:,} to {most}" if most else f"{bounds['ge']:,} or more"
    else:
        span = f"more than {bounds['gt']:,}" + (f", at most {most}" if most else "")
    return span + (f", in steps of {bounds['multiple_of']}" if "multiple_of" in bounds else "")


def _choices(annotation: Any) -> list[str]:
    parts = get_args(annotation)
    if get_origin(annotation) is Literal:
        return [str(part) for part in parts]
    return [choice for part in parts for choice in _choices(part)]


def _bounds(field: FieldInfo) -> Iterator[Any]:
    """The constraints of a field, and those of a value that may also be null."""
    yield from field.metadata
    for part in get_args(field.annotation):
        for inner in getattr(part, "__metadata__", ()):
            yield from getattr(inner, "metadata", ())
