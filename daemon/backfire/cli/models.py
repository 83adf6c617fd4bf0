"""The commands `models list`, `models fetch` and `models verify` for published weights."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from backfire import config, inpaint, weights
from backfire.cli.common import DEFAULT, SOME_FAILED, AsJson, app, err, out, writing_as_user
from backfire.errors import ConfigError, require
from backfire.weights.download import FileProgress
from backfire.weights.download import fetch as bring
from backfire.weights.pipelines import Pipeline, pipelines

commands = typer.Typer(help="Published weights: list, fetch, verify.", no_args_is_help=True)
app.add_typer(commands, name="models")

ModelsConfig = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="Only models.folder is used; by default config.yaml, if it exists."),
]


def _folder(config_file: Path | None) -> Path:
    if config_file is None and not DEFAULT.exists():
        return config.Models().folder
    return config.load(config_file or DEFAULT).models.folder


@commands.command("list")
def list_models(config_file: ModelsConfig = None, as_json: AsJson = False) -> None:
    """List the models that can be fetched, their licences, and which of them are here."""
    folder = _folder(config_file)
    rows = [_built_in(name) for name in inpaint.NAMES]
    rows += [_row(model, folder) for model in weights.catalogue().values()]
    if as_json:
        others = [_pipeline(one, folder) for one in pipelines()]
        print(json.dumps({"folder": str(folder), "models": rows, "pipelines": others}, indent=2))
        return
    whole = partial(Column, no_wrap=True)  # names are shown in full, since users type them
    table = Table(*map(whole, ("name", "kind", "size", "here", "edit")), "what", box=None, pad_edge=False)
    for row in rows:
        size = f"{row['known_size'] / 1e6:,.0f} MB" if row["known_size"] else "unknown"
        known = f"SHA-256 {row['sha256_published']} of {row['files']}"
        what = f"{row['family']}, {row['parameters']}\n{row['licence']}; {known}"
        table.add_row(row["name"], row["kind"], size, row["here"], f"{row['edit_cpu_s']:g} s", what)
    out.print(table)
    for row in rows:
        if row["note"]:
            out.print(Text(f"{row['name']}: {row['note']}"))
    out.print("edit: the seconds that an edit of 512x512 pixels takes on one CPU core in float32")
    out.print("SHA-256: files whose digest is published; for the others that of the first copy is recorded")
    out.print(Text(f"folder: {folder}"), soft_wrap=True)
    _print_pipelines(folder)


def _print_pipelines(folder: Path) -> None:
    """The pipelines that are named by their hub name, for people."""
    whole = partial(Column, no_wrap=True)
    head = "weights of an editor of kind flow", "here", "gradient"
    table = Table(*map(whole, head), "what", box=None, pad_edge=False)
    for row in (_pipeline(one, folder) for one in pipelines()):
        gated = ", gated" if row["gated"] else ""
        what = f"{row['pipeline']}\n{row['licence']}{gated}"
        table.add_row(row["weights"], row["here"], f"{row['gradient_gb']:.0f} GB", what)
    out.print()
    out.print(table)
    out.print("gradient: memory of a GPU for one gradient at 1 megapixel in bfloat16, reckoned, not measured")
    out.print("Such weights are not pinned: the Hugging Face hub is asked when they are first used.")
    for one in pipelines():
        if one.catalogue:
            out.print(Text(f"{one.hub}: models fetch {one.catalogue} fetches it pinned"))


def _pipeline(one: Pipeline, folder: Path) -> dict[str, Any]:
    there = weights.is_cached(one.hub) or (one.catalogue and weights.is_there(one.catalogue, folder))
    return {
        "weights": one.hub,
        "kind": "flow",
        "pipeline": one.pipeline,
        "parameters": one.parameters,
        "licence": one.licence,
        "licence_read_in": one.source,
        "gated": one.gated,
        "gradient_gb": round(one.gradient_gb, 1),
        "pinned_as": one.catalogue,
        "here": "yes" if there else "no",
    }


def _built_in(name: str) -> dict[str, Any]:
    model = inpaint.BUILT_IN[name]
    there = model.file.is_file()
    return {
        "name": name,
        "kind": "built in",
        "family": model.family,
        "parameters": model.parameters,
        "edit_cpu_s": model.edit_cpu_s,
        "licence": "Apache-2.0",
        "home": None,
        "files": 1,
        "known_size": model.file.stat().st_size if there else 0,
        "sha256_published": int(model.file.name in weights.inside()),
        "here": "yes" if there else "no",
        "note": None,
    }


def _row(model: weights.Model, folder: Path) -> dict[str, Any]:
    there = [(folder / model.name / file.path).is_file() for file in model.files]
    return {
        "name": model.name,
        "kind": model.kind,
        "family": model.family,
        "parameters": model.parameters,
        "edit_cpu_s": model.edit_cpu_s,
        "licence": model.licence,
        "home": model.home,
        "files": len(model.files),
        "known_size": model.known_size,
        "sha256_published": model.published,
        "here": "yes" if all(there) else "in part" if any(there) else "no",
        "note": model.note,
    }


@commands.command()
def fetch(
    name: Annotated[
        str | None, typer.Argument(help="A name that `models list` shows.", show_default=False)
    ] = None,
    group: Annotated[
        str | None,
        typer.Option("--set", help="light, recommended, gpu or all: what attackers of today use, by size."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before a set is fetched.")] = False,
    source: Annotated[
        str | None,
        typer.Option("--from", help="A file, a folder or an http(s) URL to fetch from instead."),
    ] = None,
    config_file: ModelsConfig = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a model's files, or those of a set. An interrupted fetch is resumed.

    Sizes and licences are said first. With `protect.surrogates: auto`, what is here takes part from then on.
    """
    folder = _folder(config_file)
    if (name is None) == (group is None) or (group is not None and source is not None):
        raise ConfigError("models fetch: expected a name (with --from, if you like) or --set, not both")
    if name is not None:
        require(name, weights.catalogue(), "model")
        models = [weights.catalogue()[name]]
    else:
        require(str(group), weights.SETS, "--set")
        models = weights.members(str(group))
    rows = fetch_all(models, folder, source=source, ask=group is not None and not yes)
    if as_json:
        print(json.dumps([{"file": str(path), "sha256": digest} for path, digest, _ in rows], indent=2))
        return
    for path, digest, published in rows:
        word = "as published" if published else "recorded, because none is published"
        out.print(Text(f"{path}  SHA-256 {digest} ({word})"), soft_wrap=True)


Row = tuple[Path, str | None, bool]
"""A file that was fetched, its SHA-256, and whether that is the published one."""


def fetch_all(
    models: Sequence[weights.Model], folder: Path, *, source: str | None = None, ask: bool
) -> list[Row]:
    """Say sizes and licences of all models, then fetch them with a progress bar.

    Args:
        folder: `models.folder`.
        source: see `weights.download.fetch`.
        ask: whether to ask first, where somebody can answer.

    Raises:
        typer.Abort: the answer is no.
        ModelError: see `weights.download.fetch`.
    """
    for model in models:
        line = f"{model.name}: {_size(model.files)}, licence {model.licence}; {model.home}"
        err.print(Text(line), soft_wrap=True)
    if len(models) > 1:
        err.print(Text(f"in all: {_size([file for model in models for file in model.files])}"))
    if ask and sys.stdin.isatty():
        typer.confirm(f"fetch these into {folder}?", abort=True, err=True)
    with writing_as_user():  # root may fetch what the daemon's user is to read
        return [row for model in models for row in _fetched(model, folder, source)]


def _fetched(model: weights.Model, folder: Path, source: str | None) -> Iterator[Row]:
    with _bar() as advance:
        files = bring(model, folder, source=source, progress=advance)
    for path, found, file in zip(files, weights.verify(folder, model.name), model.files, strict=True):
        yield path, found.got, file.sha256 is not None


def _size(files: Sequence[weights.File]) -> str:
    """What is known of how much is to be fetched."""
    known, unknown = sum(file.size or 0 for file in files), sum(file.size is None for file in files)
    rest = f"{unknown} {'file' if unknown == 1 else 'files'} of unknown size"
    if not unknown:
        return f"{known / 1e6:,.0f} MB"
    return f"at least {known / 1e6:,.0f} MB, {rest}" if known else rest


@commands.command()
def verify(config_file: ModelsConfig = None, as_json: AsJson = False) -> None:
    """Hash all weights again. Exit status 0: all as expected; 3: a file has changed or is missing."""
    folder = _folder(config_file)
    inside, fetched = list(weights.verify_inside()), list(weights.verify(folder))
    found = inside + fetched
    if as_json:
        print(json.dumps([vars(file) for file in found], indent=2))
    elif not fetched:
        out.print(Text(f"no models in {folder}"), soft_wrap=True)
    for file in found if not as_json else ():
        good = file.state == "ok"
        line = Text("ok  ", "green") if good else Text("BAD ", "red")
        line.append(f"{file.model}/{file.path}: {file.state}")
        if file.state == "changed":
            line.append(f", SHA-256 is {file.got}, expected {file.expected}")
        if not good:
            fetch_it = f"run: backfire models fetch {file.model}"
            line.append(f"; {'install backfire again' if file in inside else fetch_it}")
        out.print(line, soft_wrap=True)
    raise typer.Exit(0 if all(file.state == "ok" for file in found) else SOME_FAILED)


@contextmanager
def _bar() -> Iterator[FileProgress]:
    """A progress bar with bytes and the remaining time on a terminal, and nothing elsewhere."""
    if not err.is_terminal:
        yield lambda path, done, total: None
        return
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=err, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def advance(path: str, done: int, total: int | None) -> None:
            if path not in tasks:
                tasks[path] = bars.add_task(path, total=total)
            bars.update(tasks[path], completed=done, total=total)

        yield advance
