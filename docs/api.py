"""The Python API as Markdown, from its signatures and docstrings, so that it is read wherever Markdown is."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from itertools import pairwise

import backfire
from backfire import api, errors
from backfire.types import Box, Region

_TABLES = {"Args": "argument", "Attributes": "attribute", "Raises": "exception"}
"""The sections of a docstring that list names, with what heads their tables."""


def functions() -> str:
    """The functions, what they return and what their arguments may be."""
    lines = [line for one in (api.protect, api.verify, api.detect) for line in _function(one)]
    for shown in (backfire.Result, backfire.Detection, Region, Box):
        lines += [f"## {shown.__name__}", "", *_docstring(shown)]
    return "\n".join([*lines, "## Types of arguments", "", *_aliases()])


def exceptions() -> str:
    """The tree of exceptions, and what each holds."""
    tree = re.search(r"\n\n(    BackfireError\n.*?)\n\n", inspect.getsource(errors), re.DOTALL)
    assert tree, "expected the tree of exceptions in the module's docstring"
    lines = ["```text", textwrap.dedent(tree[1]), "```", ""]
    for one in vars(errors).values():
        if inspect.isclass(one) and issubclass(one, errors.BackfireError):
            lines += [f"### {one.__name__}", "", *_docstring(one)]
    return "\n".join(lines).rstrip()


def _function(function: Callable[..., object]) -> Iterator[str]:
    signature = inspect.signature(function)
    parameters, starred = [], False
    for one in signature.parameters.values():
        if one.kind is one.KEYWORD_ONLY and not starred:
            parameters.append("*")
            starred = True
        parameters.append(f"{one.name}: {one.annotation}{_default(one)}")
    yield from (f"## {function.__name__}", "", "```python", f"def {function.__name__}(")
    yield from (f"    {one}," for one in parameters)
    yield from (f") -> {signature.return_annotation}: ...", "```", "", *_docstring(function))


def _default(parameter: inspect.Parameter) -> str:
    if parameter.default is parameter.empty:
        return ""
    return f" = {getattr(parameter.default, '__name__', repr(parameter.default))}"


def _docstring(documented: object) -> Iterator[str]:
    """A docstring with its sections as tables and paragraphs, and an empty line after each."""
    for block in (inspect.getdoc(documented) or "").split("\n\n"):
        head, _, body = block.partition(":\n")
        if head in _TABLES:
            yield from (f"| {_TABLES[head]} | meaning |", "|---|---|")
            for entry in re.split(r"\n(?! )", textwrap.dedent(body)):
                names, _, meaning = entry.partition(": ")
                shown = ", ".join(f"`{name}`" for name in names.split(", "))
                yield f"| {shown} | {_line(meaning)} |"
        elif head == "Returns":
            yield f"**Returns:** {_line(body)}"
        else:
            yield _line(block)
        yield ""


def _aliases() -> Iterator[str]:
    """The names that stand for several types, with the text below each."""
    body = ast.parse(inspect.getsource(api)).body
    for alias, text in pairwise(body):
        match alias, text:
            case ast.Assign(targets=[ast.Name(name)]), ast.Expr(ast.Constant(str(said))):
                yield f"- `{name}` = `{ast.unparse(alias.value)}`: {_line(said)}"


def _line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
