"""The manual page, made from the definitions of the commands.

Older versions of Typer build on the package click, newer ones on classes of their own: commands and
parameters are told apart by attributes that both have, and not by their classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from backfire import __version__
from backfire.cli.common import (
    BAD_CONFIG,
    BAD_STORE,
    INTERRUPTED,
    NOT_ANSWERED,
    OUTPUT_LOST,
    SOME_FAILED,
    UNAVAILABLE,
    UNKNOWN_FILE,
)

EXIT_STATUS = {
    0: "All is well.",
    NOT_ANSWERED: "A question was not answered with yes, and nothing was done; with a traceback, a bug.",
    BAD_CONFIG: "The configuration or the arguments cannot be used, or `backfire verify` cannot judge it.",
    SOME_FAILED: "Some pictures failed, or something is missing, changed or cannot be fetched.",
    BAD_STORE: "The job database cannot be used.",
    UNKNOWN_FILE: "`backfire explain` knows no such file, or several.",
    OUTPUT_LOST: "Standard output cannot be written: it is full, or whoever reads it has ended.",
    UNAVAILABLE: "`backfire run`, `once` and `demo`: a folder cannot be used now; systemd tries again.",
    INTERRUPTED: "Interrupted by Ctrl-C.",
}

FILES = {
    "config.yaml": "The configuration, in the working folder unless -c names another. "
    "The commands protect and detect use the defaults without -c.",
}


def page(root: Any) -> str:
    """The manual page backfire(1) as roff.

    Args:
        root: the group of all commands.
    """
    summary = _plain(root.help or "").rstrip(".")
    lines = [
        f'.TH BACKFIRE 1 "" "backfire {__version__}" "User Commands"',
        ".SH NAME",
        f"backfire \\- {_escaped(summary[:1].lower() + summary[1:])}",
        ".SH SYNOPSIS",
        ".B backfire",
        "[\\fIOPTION\\fR] \\fICOMMAND\\fR [\\fIARGUMENT\\fR...]",
        ".SH OPTIONS",
        *_options(root),
        ".SH COMMANDS",
        *_commands(root, "backfire"),
        ".SH EXIT STATUS",
    ]
    for status, meaning in EXIT_STATUS.items():
        lines += [".TP", f"\\fB{status}\\fR", _escaped(meaning)]
    lines.append(".SH FILES")
    for file, meaning in FILES.items():
        lines += [".TP", f"\\fI{_escaped(file)}\\fR", _escaped(meaning)]
    return "\n".join(lines) + "\n"


def _commands(group: Any, above: str) -> Iterator[str]:
    for name, command in group.commands.items():
        full = f"{above} {name}"
        if hasattr(command, "commands"):
            yield from _commands(command, full)
            continue
        arguments = [one for one in command.params if one.param_type_name == "argument"]
        yield f".SS {_escaped(' '.join([full, *map(_argument, arguments)]))}"
        yield _escaped(_plain(command.help or ""))
        yield from _options(command)


def _options(command: Any) -> Iterator[str]:
    for parameter in command.params:
        told = _escaped(_plain(getattr(parameter, "help", None) or ""))
        if parameter.param_type_name == "argument":
            if told:
                yield from (".TP", f"\\fI{_escaped(_value(parameter))}\\fR", told)
        elif not parameter.hidden:
            names = ", ".join(f"\\fB{_escaped(name)}\\fR" for name in sorted(parameter.opts, key=len))
            value = "" if parameter.is_flag else f" \\fI{_escaped(_value(parameter))}\\fR"
            yield from (".TP", names + value, told)


def _value(parameter: Any) -> str:
    """What stands for a parameter's value: FOLDER for --folder, PICTURES for the argument pictures."""
    longest = max(parameter.opts, key=len)
    return str(parameter.metavar or longest.lstrip("-").upper().replace("-", "_"))


def _argument(argument: Any) -> str:
    name = _value(argument) + ("..." if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _escaped(text: str) -> str:
    """Text as roff takes it: no backslash or hyphen of its own, and no control line."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^([.'])", r"\\&\1", escaped)
