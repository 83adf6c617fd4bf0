"""How mistakes in a configuration are told: where they are, what was found, and what to write instead."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from backfire.config.renamed import GONE, SETTINGS
from backfire.config.section import Section, section_in, sections_below
from backfire.config.settings import Settings

EXPECTED = {
    **dict.fromkeys(("tuple_type", "list_type", "set_type"), "a list, such as [a, b], also of a single one"),
    **dict.fromkeys(("dict_type", "model_type", "mapping_type"), "settings below it, each as `key: value`"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    "greater_than_equal": "a number of {ge:g} or more",
    "path_type": "a path",
    "string_type": "text; put it in quotes if it is a number, a date, or yes or no",
}
"""What is expected, by the type of mistake, where pydantic's own words speak of Python's types."""
EXAMPLE = "`backfire init` writes an example"
"""The remedy where a configuration lacks what it needs."""

Location = tuple[int | str, ...]


def mistakes(error: ValidationError) -> list[str]:
    """What pydantic found: a sentence for each wrong value, with subject, got, expected and remedy."""
    found: dict[Location, list[Any]] = {}
    for problem in error.errors():
        found.setdefault(_place(problem["loc"])[0], []).append(problem)
    # Of a value that may be of several types pydantic tells what each of them lacks. Where one of them has
    # a mistake within the value, that one is meant.
    above = {location[:depth] for location in found for depth in range(len(location))}
    return [_explain(problems) for location, problems in found.items() if location not in above]


def _explain(problems: list[Any]) -> str:
    """What is wrong with one value; there are several problems if it may be of several types."""
    problem = problems[0]
    location, section, field = _place(problem["loc"])
    where = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        return unknown_key(where, list(section.model_fields), belongs(str(location[-1])))
    if problem["type"] == "missing":
        return f"{where!r} is missing; {EXAMPLE}"
    message = re.sub(r"^Value error, ", "", problem["msg"])
    if problem["type"] == "value_error":
        return message  # our own validators name their subject
    got = "a value" if where == "hooks" else repr(problem["input"])  # it may be an address with a password
    if len(problems) == 1 and problem["type"] not in EXPECTED:
        return f"{where!r}: got {got}; {message[0].lower()}{message[1:]}"
    expected = " or ".join(
        EXPECTED[one["type"]].format(**one.get("ctx", {}))
        if one["type"] in EXPECTED
        else one["msg"].removeprefix("Input should be ")
        for one in problems
    )
    if problem["type"] == "path_type" and field is not None and not field.is_required():
        expected += "; leave the line out for the default"
    return f"{where!r}: got {got}, expected {expected}"


def _place(location: Location) -> tuple[Location, type[Section], FieldInfo | None]:
    """A location without the types that pydantic puts into it, its section, and the field that it names."""
    model: type[Section] = Settings
    field, plain, parts = None, list[int | str](), iter(location)
    for part in parts:
        plain.append(part)
        field = model.model_fields.get(part) if isinstance(part, str) else None
        if field is not None:
            model = sections_below(field.annotation) or model
            types = set(get_args(field.annotation)) - {type(None)}
            if get_origin(field.annotation) in (Union, UnionType) and len(types) > 1:
                next(parts, None)
    return tuple(plain), model, field


def unknown_key(where: str, valid: Collection[str], hint: str = "") -> str:
    """A key that is none, with its present name, the nearest valid one, or all of them.

    Args:
        where: its path from the top, or from the rule that holds it.
        valid: the keys that it may be.
        hint: what to say in place of one of these, such as where it belongs.
    """
    section, _, key = where.rpartition(".")
    # A rule may hold the key without its section.
    old = next((old for old in (*SETTINGS, *GONE) if where in (old, old.rpartition(".")[2])), None)
    if old in SETTINGS:
        new = SETTINGS[old]
        return f"{where!r} is now called {new if section else new.rpartition('.')[2]!r}; write that"
    if old in GONE:
        return f"{where!r} is no setting any more: {GONE[old]}; take it out"
    if not hint:
        near = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(valid)}"
    return f"unknown key {where!r}; {hint}"


def belongs(key: str) -> str:
    """In which sections a key is a setting, and how it is written there; empty where it is one in none.

    Such a key lost its place: its section's heading is a comment, or it has too many or too few spaces.
    """
    places = [*_places(key, Settings)]
    if not places:
        return ""
    owners = [".".join(place[:-1]) or "no section" for place in places]
    first = f", for that of {owners[0]}," if len(places) > 1 else ""
    lines = " and below it ".join(f"`{'  ' * depth}{part}:`" for depth, part in enumerate(places[0]))
    return f"{key} belongs to {' or '.join(owners)}; write{first} {lines}, with as many spaces before it"


def _places(key: str, model: type[Section], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        if name == key:
            yield *above, name
        if (inner := section_in(field.annotation)) is not None:
            yield from _places(key, inner, (*above, name))
