"""The commands `release` and `accept`: decisions about pictures that are held, or weak."""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.text import Text

from backfire import advice, config
from backfire.admin import review
from backfire.admin.named import is_number, numbers_of
from backfire.cli.common import (
    DEFAULT,
    SOME_FAILED,
    AsJson,
    Config,
    app,
    few,
    of_pictures,
    out,
    printable,
)
from backfire.config import Settings
from backfire.errors import ConfigError, InputError
from backfire.files import safe_paths
from backfire.service.store.reader import Reader
from backfire.types import Job, JobState

By = Annotated[
    str | None,
    typer.Option(help="Who decides, for history and receipt; otherwise the user who runs this."),
]
HEADING = f"{'job':>6}  picture: why"
WAYS = (
    "backfire release ID --mask FILE protects a part of one: what is white in a PNG of the picture's size, "
    "or what annotations (.json) mark; --whole protects all of it; "
    "backfire release ID alone publishes it as it is"
)


@app.command()
def release(
    pictures: Annotated[list[str] | None, of_pictures("; none lists what is held")] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Protect the whole of the picture.")] = False,
    mask: Annotated[
        Path | None,
        typer.Option("--mask", "-m", help="Protect what this mask (.png) or annotation (.json) marks."),
    ] = None,
    again: Annotated[
        bool,
        typer.Option(
            "--again",
            help="Work it again, with the masks beside it in the review folder and today's settings.",
        ),
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="All that is held.")] = False,
    by: By = None,
    config_file: Config = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """List the pictures that are held for review; publish them as they are, or protect them after all."""
    settings = config.load(config_file)
    _require_either(pictures, every)
    if sum((whole, again, mask is not None)) > 1:
        raise typer.BadParameter("got several of --whole, --mask and --again, expected one of them")
    if not pictures and not every:
        if whole or again or mask:
            raise typer.BadParameter("got no job; name pictures that `backfire release` lists, or give --all")
        _list(settings, as_json)
        return

    numbers = _numbers(pictures, review.held_jobs, settings)
    if mask is not None and len(numbers) > 1:
        raise typer.BadParameter(f"got a mask for {len(numbers)} pictures, expected one picture")
    who = by or _user()

    def decide(number: int) -> Job:
        return _decide(settings, number, who, whole=whole, mask=mask, again=again)

    what = "to be protected" if whole or again or mask else "to be published"
    _each(numbers, decide, lambda decided: f"{len(decided)} {what}", as_json)


@app.command()
def accept(
    pictures: Annotated[list[str] | None, of_pictures("; none lists what is weak")] = None,
    every: Annotated[bool, typer.Option("--all", help="All that is weak.")] = False,
    by: By = None,
    config_file: Config = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """List the pictures whose protection is weak; accept them as they are, so that they need nobody any more.

    A picture that is held for its weak result is published; of one that is published already no file changes.
    """
    settings = config.load(config_file)
    _require_either(pictures, every)
    if not pictures and not every:
        _list_weak(settings, as_json)
        return
    numbers = _numbers(pictures, review.weak, settings)
    who = by or _user()

    def told(decided: list[Job]) -> str:
        held = sum(job.state == JobState.RELEASING for job in decided)
        return f"{len(decided)} accepted" + (f", of them {held} to be published" if held else "")

    _each(numbers, lambda number: review.accept(settings, number, by=who), told, as_json)


def _require_either(pictures: list[str] | None, every: bool) -> None:
    if pictures and every:
        raise typer.BadParameter("got pictures and --all, expected one of them")


def _numbers(
    pictures: list[str] | None, those: Callable[[Settings], list[Job]], settings: Settings
) -> list[int]:
    """The numbers of the jobs that are named, or else of all those that can be decided about."""
    if not pictures:
        return [job.id for job in those(settings)]
    if all(map(is_number, pictures)):  # what is wrong with them is told by the decision itself
        return list(dict.fromkeys(map(int, pictures)))
    with Reader(settings.folders.database) as store:
        return numbers_of(pictures, lambda: those(settings), settings, store)


def _each(
    numbers: Iterable[int], decide: Callable[[int], Job], told: Callable[[list[Job]], str], as_json: bool
) -> NoReturn:
    """Decide about some jobs and say what came of it; exits with an error where one was refused."""
    decided: list[Job] = []
    refused: dict[int, str] = {}
    for number in numbers:
        try:
            decided.append(decide(number))
        except (review.DecisionRefused, InputError) as error:
            refused[number] = str(error)
    if as_json:
        files = {job.id: job.name for job in decided}
        print(json.dumps({"decided": [*files], "files": files, "refused": refused}))
    else:
        if decided or not refused:
            which = f": {few([job.name for job in decided])}" if decided else ""
            out.print(Text(told(decided) + which), soft_wrap=True)
        for why in refused.values():
            out.print(Text(printable(why)), soft_wrap=True)
    raise typer.Exit(SOME_FAILED if refused else 0)


def _user() -> str:
    """The name of the user who runs this process, or its number where it has no name, as in containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def _decide(settings: Settings, number: int, by: str, *, whole: bool, mask: Path | None, again: bool) -> Job:
    if mask is not None:
        try:
            data = safe_paths.read_regular(mask, settings.limits.max_bytes)
        except OSError as error:
            raise ConfigError(f"{mask}: cannot be read ({error.strerror}); name a mask file") from error
        return review.add_mask(settings, number, mask.name, data, by=by)
    decision = review.protect_whole if whole else review.work_again if again else review.release
    return decision(settings, number, by=by)


def _list(settings: Settings, as_json: bool) -> None:
    found = review.held(settings)
    if as_json:
        rows = [
            {
                "job": one.job.id,
                "file": one.job.name,
                "code": one.job.code,
                "message": one.job.message,
                "picture": str(one.picture) if one.picture else None,
                "masks": [str(mask) for mask in one.masks],
            }
            for one in found
        ]
        print(json.dumps(rows, indent=2))
        return
    out.print(f"{len(found)} held in {settings.folders.review}", markup=False, soft_wrap=True)
    if found:
        out.print(HEADING)
    for one in found:
        said = advice.of(one.job)
        why = said.sentence if said else one.job.message or ""
        if one.picture is None:
            why += " Its original was taken out of the review folder."
        out.print(Text(printable(f"{one.job.id:6d}  {one.job.name}: {why}")), soft_wrap=True)
    if found:
        out.print(WAYS, soft_wrap=True)


def _list_weak(settings: Settings, as_json: bool) -> None:
    found = review.weak(settings)
    if as_json:
        print(
            json.dumps([{"job": job.id, "file": job.name, "message": job.message} for job in found], indent=2)
        )
        return
    out.print(f"{len(found)} weak", markup=False)
    if found:
        out.print(HEADING)
    for job in found:
        said = advice.of(job)
        why = f"{said.sentence} {said.mend}" if said else job.message or ""
        out.print(Text(printable(f"{job.id:6d}  {job.name}: {why}")), soft_wrap=True)
    if found:
        out.print("backfire accept ID accepts one as it is, --all all of them", soft_wrap=True)
