"""The command `detect`: what would be protected, without protecting it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table
from rich.text import Text

from backfire.cli.common import (
    NAME_A_MASK,
    SOME_FAILED,
    AsJson,
    Mask,
    OptionalConfig,
    app,
    bar,
    err,
    out,
    printable,
    require_sheet,
    write_as_user,
)
from backfire.config import Settings
from backfire.errors import ConfigError, JobError, NoRegionError

if TYPE_CHECKING:
    from backfire.types import Rgb

SHEETS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}
MOST_ON_SHEET = 50


@app.command()
def detect(
    pictures: Annotated[list[Path], typer.Argument(help="Pictures to look at.", show_default=False)],
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="Draw the regions onto this picture (.jpg, .png).")
    ] = None,
    mask: Mask = None,
    config_file: OptionalConfig = None,
    as_json: AsJson = False,
) -> None:
    """Show what would be protected, without protecting it: the way to tune a configuration."""
    from backfire import api  # here, as the daemon needs none of the imaging libraries it brings
    from backfire.imaging import drawing

    if sheet is not None and sheet.suffix.lower() not in SHEETS:
        raise ConfigError(f"--sheet {sheet}: got {sheet.suffix or 'no extension'}, expected .jpg or .png")
    if sheet is not None:
        require_sheet("--sheet", sheet)
    write_as_user()
    rows: list[dict[str, Any]] = []
    pages: list[tuple[str, Rgb]] = []
    with bar() as advance:
        for count, path in enumerate(pictures):
            advance(path.name, count, len(pictures))
            settings, rule = api.settings_for(path, config_file)
            row: dict[str, Any] = {"file": str(path), "rule": rule, "regions": [], "skipped_detectors": {}}
            rows.append(row)
            try:
                found = api.detect(path, mask=mask, settings=settings)
            except NoRegionError as error:
                row |= {"code": error.code.value, "error": error.with_remedy(NAME_A_MASK).message}
                if sheet is None:
                    continue
                # That is when somebody wants to look: the picture is shown as it is.
                found = api.detect(path, mask=(), settings=_asking_nobody(settings))
            except JobError as error:
                row |= {"code": error.code.value, "error": error.message}
                continue
            except ConfigError as error:  # it cannot be read; the others are shown all the same
                if len(pictures) == 1:
                    raise
                row |= {"code": "config", "error": str(error)}
                continue
            row |= {"width": found.image.shape[1], "height": found.image.shape[0]}
            row |= {"regions": [region.row() for region in found.regions]}
            row |= {"skipped_detectors": found.skipped}
            if sheet is not None and len(pages) < MOST_ON_SHEET:
                pages.append((_caption(row), drawing.drawn(found.image, found.regions)))
    if sheet is not None and not pages:
        err.print(Text(f"--sheet {sheet}: not written, as none of the pictures can be read", "red"))
    elif sheet is not None:
        _write(sheet, drawing.sheet(pages, kind=SHEETS[sheet.suffix.lower()]))
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        _print(rows)
    raise typer.Exit(SOME_FAILED if any("error" in row for row in rows) else 0)


def _asking_nobody(settings: Settings) -> Settings:
    """The settings under which a picture is decoded, and no detector is asked."""
    regions = settings.regions.model_copy(update={"detectors": (), "none_found": "pass"})
    return settings.model_copy(update={"regions": regions})


def _caption(row: dict[str, Any]) -> str:
    count = len(row["regions"])
    return f"{Path(row['file']).name}: {count or 'no'} region{'' if count == 1 else 's'}"


def _write(sheet: Path, data: bytes) -> None:
    try:
        sheet.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"--sheet {sheet}: cannot be written ({error.strerror})") from error


def _print(rows: list[dict[str, Any]]) -> None:
    whole = partial(Column, overflow="fold")  # what is cut off could not be searched for
    names = ("region", "detector", "score", "left", "top", "right", "bottom")
    for row in rows:
        if not row["regions"]:
            continue
        out.print(Text(printable(row["file"])), soft_wrap=True)
        table = Table(*map(whole, names))
        for region in row["regions"]:
            cells = (region["label"], region["detector"], f"{region['score']:.2f}", *map(str, region["box"]))
            table.add_row(*(Text(printable(cell)) for cell in cells))
        out.print(table)
    for row in rows:
        if "error" in row:
            out.print(Text(printable(row["error"]), "red"), soft_wrap=True)
        elif not row["regions"]:
            out.print(Text(printable(f"{row['file']}: no region found")), soft_wrap=True)
        for name, error in row["skipped_detectors"].items():
            said = f"{row['file']}: detector {name} failed and was skipped: {error}"
            out.print(Text(printable(said)), soft_wrap=True)
