"""The pages that are made from the code: `python -m docs.generate` writes them, a test compares them.

Some are written as a whole; of the others only what stands between `<!-- generated: NAME -->` and
`<!-- end -->`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import typer

from backfire.attack_paths import PATHS
from backfire.cli.commands import app
from backfire.config import Verify, describe
from backfire.imaging import masks
from backfire.types import Family
from backfire.weights.pipelines import pipelines
from docs import api, figures, packages

DOCS = Path(__file__).parent

COPIES = {
    "images/broken-by-tool.png": figures.BENCHMARKS / "paths" / "dev" / "tools.png",
}
"""Plots of the benchmarks that pages show; a site holds only what lies in its own folder."""


_COMMANDS = """\
# Commands

Commands read `config.yaml` in the current folder, or the file that `-c` names. `protect` and
`detect` use the defaults without `-c`. On a terminal long work shows a progress bar; off one, standard error
gets JSON lines.

Every command ends with 0 where all is well, with 2 for a bad configuration or bad arguments, and, if it needs
the job database, with 4 where that cannot be used. [Exit codes](errors.md#exit-codes) names those that a
command has beside these.
"""

_SETTINGS = """\
# Settings

The configuration is a YAML file. Only `folders.inbox` must be set. Unknown keys are errors that name the
nearest valid key; a renamed setting is an error that names the new one. Relative paths are relative to the
file. `config.example.yaml` in the checkout shows all of this as YAML, and `backfire check` says whether a
configuration will work. In the code each section has a module of its own, such as `config/regions.py`.
"""


@cache
def generated() -> Mapping[Path, bytes]:
    """Every generated file with what it must hold."""
    pages = {
        "reference/cli.md": commands(),
        "reference/settings.md": settings(),
        "images/packages.svg": packages.drawing(),
    }
    parts = {
        "../README.md": {"summary": figures.summary()},
        "concepts/attack-paths.md": {"paths": attack_paths()},
        "concepts/verdicts.md": {"thresholds": thresholds()},
        "evaluation.md": {
            "in-tools": figures.in_tools(),
            "kept-edits": figures.kept_edits(),
            "a-little-more": figures.a_little_more(),
            "verdicts": figures.verdicts(),
            "other-edits": figures.treated("Other edits of the region"),
            "treatments": figures.treated("After treatments"),
            "ldm-mini": figures.against("diffusion", "ldm-mini"),
            "fills": figures.fills(),
            "ensembles": figures.ensembles(),
            "regions": figures.regions(),
            "everywhere": figures.everywhere(),
            "further": figures.further(),
            "carried": figures.carried(),
        },
        "develop/decisions.md": {"starts": figures.starts()},
        "guides/strength.md": {"strengths": figures.strengths(), "quick": figures.quick()},
        "guides/editors.md": {"pipelines": flow_pipelines()},
        "reference/python.md": {"functions": api.functions(), "exceptions": api.exceptions()},
        "reference/receipt.md": {"fields": receipt()},
    }
    pages |= {name: _filled((DOCS / name).read_text(), bodies) for name, bodies in parts.items()}
    copies = {DOCS / name: source.read_bytes() for name, source in COPIES.items()}
    return {(DOCS / name).resolve(): text.encode() for name, text in pages.items()} | copies


def commands() -> str:
    """Every command of the program with its arguments and options."""
    lines = [_COMMANDS]
    for path, command in sorted(_commands(typer.main.get_command(app), "backfire")):
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [p for p in command.params if p.param_type_name == "option"]
        needed = [f"{o.opts[0]} {o.name.upper()}" for o in options if o.required]
        usage = [path, *map(_shown_argument, arguments), *needed, "[OPTIONS]"]
        lines += [f"## {path}", "", command.help or "", "", "```", " ".join(usage), "```", ""]
        lines += ["| argument or option | meaning |", "|---|---|"]
        lines += [f"| `{_shown_argument(p)}` | {_cell(p.help or '')} |" for p in arguments]
        lines += [f"| {_names(p)} | {_cell(p.help or '')}{_default_of(p)} |" for p in options]
        lines += ["| `--help` | Show this message. |", ""]
    return _page("\n".join(lines))


def _commands(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{path} {name}")
        elif not command.hidden:
            yield f"{path} {name}", command


def _shown_argument(argument: Any) -> str:
    name = argument.name.upper() + ("..." if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _names(option: Any) -> str:
    return ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])


def _default_of(option: Any) -> str:
    if option.required:
        return " Required."
    told = option.default is not None and not option.is_flag and not callable(option.default)
    return f" Default: `{option.default}`." if told and option.default != [] else ""


def settings() -> str:
    """Every setting with its values and default."""
    lines = [_SETTINGS]
    table = False
    for setting in describe.settings():
        if setting.section or setting.depth == 0:
            lines += ["", f"{'#' * (setting.depth + 2)} {setting.path}", "", setting.text, ""]
            table = False
            if not setting.section and setting.default:
                lines += [f"Default: `{setting.default}`", ""]
            continue
        if not table:
            lines += ["| setting | default | meaning |", "|---|---|---|"]
            table = True
        values = f" Values: {setting.values}." if setting.values else ""
        lines.append(f"| `{setting.path}` | {_code(setting.default)} | {_cell(setting.text + values)} |")
    return _page("\n".join(lines))


def receipt() -> str:
    """The fields of a receipt from its JSON schema."""
    schema = json.loads((DOCS / "reference" / "receipt.schema.json").read_text())
    lines = ["| field | type | meaning |", "|---|---|---|"]
    for path, field, required in _fields(schema):
        when = "" if required else " *Not always there.*"
        lines.append(f"| `{path}` | {_type(field)} | {_cell(field.get('description', ''))}{when} |")
    return "\n".join(lines)


def thresholds() -> str:
    """The table of replayed edits with what is asked of each by default."""

    def asked(setting: str) -> str:
        return f"**{getattr(Verify(), setting):g}** (`{setting}`)"

    broken = "break: SSIM at most {}, L1 at least {}, a visible share of at least {}"
    kept = "keep working: SSIM at least {}"
    width = f"{masks.DILATION // 2} px"
    whole = broken.format(asked("trigger_ssim_max"), asked("trigger_l1_min"), asked("trigger_visible_min"))
    part = broken.format(
        asked("incomplete_ssim_max"), asked("incomplete_l1_min"), asked("incomplete_visible_min")
    )
    rows = {
        "`trigger`": f"the region | {whole}, and at least {asked('control_factor')} times as much as noise",
        "`dilated`": f"the region and {width} around it | {part}",
        "`partial`": f"half of the region, on one side of a line that is drawn at random | {part}",
        "`near`": f"a ring of {width} around the region | {kept.format(asked('near_ssim_min'))}",
        "`far`": f"a square {masks.FAR} px or more away | {kept.format(asked('far_ssim_min'))}",
    }
    lines = ["| edit (`mask_kind`) | what is repainted | by default it must |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {kind} | {text} |" for kind, text in rows.items())])


def attack_paths() -> str:
    """The table of attack paths."""
    lines = ["| path | tool | what its model gets | editors | read in |", "|---|---|---|---|---|"]
    for name, path in PATHS.items():
        families = ", ".join(family for family in Family if family in path.suits)
        source = f"[{path.source.name}]({path.source.link})"
        hands = f"{path.hands}. {path.note}" if path.note else path.hands
        lines.append(f"| `{name}` | {path.tool} | {_cell(hands)} | {families} | {source} |")
    return "\n".join(lines)


def flow_pipelines() -> str:
    """The table of published pipelines on flow schedules."""
    from backfire.inpaint.families import BY_CLASS, Sees  # brings torch

    given = {
        Sees.MASKED: "the masked picture, and the mask",
        Sees.REFERENCE: "the whole picture, as a reference",
        Sees.NOTHING: "noisy latents alone",
    }
    head = (
        "weights",
        "pipeline",
        "what it is given of the picture",
        "licence of the weights, and where it was",
    )
    lines = [f"| {' | '.join(head)} read | a gradient at 1 MP | how to get |", "|---|---|---|---|---|---|"]
    for one in pipelines():
        sees = given[BY_CLASS[one.pipeline].sees]
        licence = f"[{one.licence}]({one.source})"
        get = f"`models fetch {one.catalogue}`: pinned" if one.catalogue else "the hub name"
        get += ", after `hf auth login`" if one.gated else ""
        memory = f"{one.gradient_gb:.0f} GB"
        lines.append(f"| `{one.hub}` | `{one.pipeline}` | {sees} | {licence} | {memory} | {get} |")
    return "\n".join(lines)


def _fields(schema: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Mapping[str, Any], bool]]:
    for name, field in schema.get("properties", {}).items():
        yield above + name, field, name in schema.get("required", ())
        inner = field.get("items", field)
        if not field.get("x-elsewhere"):
            yield from _fields(inner, f"{above}{name}{'[]' if 'items' in field else ''}.")


def _type(field: Mapping[str, Any]) -> str:
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"] if value is not None)
    kinds = field.get("type", "")
    return " or ".join(kinds) if isinstance(kinds, list) else kinds


def _filled(page: str, bodies: Mapping[str, str]) -> str:
    """A page with its generated parts put anew between their marks."""
    for name, body in bodies.items():
        before, mark, rest = page.partition(f"<!-- generated: {name} -->\n")
        assert mark, f"expected the mark <!-- generated: {name} -->"
        page = f"{before}{mark}{body}\n{rest[rest.index('<!-- end -->') :]}"
    return page


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _code(text: str) -> str:
    return f"`{_cell(text)}`" if text else ""


def _page(text: str) -> str:
    note = "<!-- Made by python -m docs.generate; do not edit. -->"
    return re.sub(r"\n{3,}", "\n\n", f"{text.rstrip()}\n\n{note}\n")


def main() -> None:
    """Write what is missing or stale."""
    for path, data in generated().items():
        if not path.exists() or path.read_bytes() != data:
            path.write_bytes(data)
            print(f"{path.relative_to(DOCS.parent)}: written")


if __name__ == "__main__":
    main()
