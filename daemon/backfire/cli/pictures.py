"""The commands that need no daemon: `protect` and `verify`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backfire import config
from backfire.cli.common import SOME_FAILED, AsJson, OptionalConfig, app, bar, named, print_receipt
from backfire.config import Folders, Settings
from backfire.errors import BackfireError, ConfigError, JobError
from backfire.evaluate import receipt
from backfire.files import inbox, outbox
from backfire.service.publisher import renamed

if TYPE_CHECKING:
    from backfire.detectors import Source
    from backfire.pipeline.run import Result


@app.command()
def protect(
    pictures: Annotated[list[Path], typer.Argument(help="Pictures to protect.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="A file, or a folder for several pictures.")],
    mask: Annotated[Path | None, typer.Option("--mask", "-m", help="White = protected.")] = None,
    config_file: OptionalConfig = None,
    as_json: AsJson = False,
) -> None:
    """Protect pictures here and now, without daemon or database; receipt and sheet lie beside the result."""
    from backfire.pipeline.protect import protect as process

    several = len(pictures) > 1 or output.is_dir()
    if len(pictures) > 1 and mask is not None:
        raise ConfigError(f"--mask {mask}: one mask cannot serve {len(pictures)} pictures; give one picture")
    if several and output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output}: is a file, expected a folder for {len(pictures)} pictures")
    receipts, failed = [], 0
    for picture in pictures:
        target = output / picture.name if several else output
        try:
            if target.exists():
                raise ConfigError(f"{target}: exists already; nothing is overwritten; name another --output")
            settings, _ = settings_for(picture, config_file)
            settings = settings if several else _writing_as(output, settings)
            data, source = read(picture), source_of(picture, mask)
            with bar() as advance:
                result = process(data, source, settings, progress=named(advance, picture.name))
            receipts.append(_write(target, result, settings))
        except BackfireError as error:
            if len(pictures) == 1 and isinstance(error, ConfigError):
                raise
            code = error.code.value if isinstance(error, JobError) else "config"
            reasons = [str(error)]
            receipts.append({"file": str(picture), "verdict": "failed", "code": code, "reasons": reasons})
        failed += not receipts[-1].get("output")
        if not as_json:
            print_receipt(receipts[-1])
    if as_json:
        print(json.dumps(receipts, indent=2))
    raise typer.Exit(SOME_FAILED if failed else 0)


def _writing_as(output: Path, settings: Settings) -> Settings:
    """The settings with the format that the output's own extension names."""
    named = {
        ".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".tif": "tiff", ".tiff": "tiff", ".webp": "webp",
        ".heic": "heic", ".heif": "heic", ".avif": "avif", ".jp2": "jpeg2000", ".bmp": "bmp",
    }  # fmt: skip
    wanted = named.get(output.suffix.lower())
    if wanted is None:
        raise ConfigError(
            f"--output {output}: got {output.suffix or 'no extension'}, expected {', '.join(named)}"
        )
    return settings.model_copy(update={"output": settings.output.model_copy(update={"format": wanted})})


def settings_for(picture: Path, config_file: Path | None) -> tuple[Settings, str | None]:
    """A picture's settings and its rule's pattern; rules see the path as below the inbox, or as given."""
    settings = config.load(config_file) if config_file else Settings(folders=Folders(inbox=Path("inbox")))
    path = picture.absolute()
    inside = settings.folders.inbox in path.parents
    relative = os.fsencode(path.relative_to(settings.folders.inbox) if inside else picture)
    index = settings.rule_of(relative)
    return settings.for_path(relative), None if index is None else settings.rules[index].match


def read(path: Path) -> bytes:
    """A file's bytes; ConfigError where there are none to read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name a readable file") from error


def source_of(picture: Path, mask: Path | None) -> Source:
    """The picture's name with the given mask or annotations, or with the sidecars that lie beside it."""
    from backfire.detectors import Sidecar, Source

    if mask is not None:
        return Source(picture.name, (Sidecar(mask.name, read(mask)),))
    beside = [picture.parent / os.fsdecode(name) for name in inbox.mask_names(os.fsencode(picture.name))]
    return Source(picture.name, tuple(Sidecar(path.name, read(path)) for path in beside if path.is_file()))


def _write(target: Path, result: Result, settings: Settings) -> dict[str, Any]:
    """The result, unless it failed, and receipt and sheet in any case."""
    output = None
    folder = target.parent
    folder.mkdir(parents=True, exist_ok=True)
    weak = result.verdict == "weak" and settings.verify.on_weak == "fail"
    if result.verdict != "failed" and not weak:
        name = renamed(os.fsencode(target.name), result.extension)
        placed = outbox.place(result.data, folder, name, key=result.receipt["key"])
        output = str(folder / os.fsdecode(placed))
    document = receipt.with_output(result.receipt, output)
    outbox.replace(receipt.to_json(document), folder, os.fsencode(target.name) + b".receipt.json")
    if result.sheet is not None:
        outbox.replace(result.sheet, folder, os.fsencode(target.name) + b".sheet.jpg")
    return document


@app.command()
def verify(
    protected: Annotated[
        Path, typer.Argument(help="The protected picture, as published.", show_default=False)
    ],
    original: Annotated[Path, typer.Option("--original", help="The picture it was made of.")],
    mask: Annotated[Path | None, typer.Option("--mask", "-m", help="White = protected.")] = None,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="Write the picture sheet here (JPEG).")
    ] = None,
    config_file: OptionalConfig = None,
    as_json: AsJson = False,
) -> None:
    """Replay the edits on a protected picture: exit 0 protected, 3 weak or failed."""
    from backfire.pipeline.verify import verify as replay

    with bar() as advance:
        result = replay(
            read(original),
            read(protected),
            source_of(original, mask),
            settings_for(original, config_file)[0],
            progress=lambda phase, done, total: advance(phase, done, total),
        )
    if sheet is not None and result.sheet is not None:
        sheet.write_bytes(result.sheet)
    if as_json:
        print(json.dumps(result.receipt, indent=2))
    else:
        print_receipt(result.receipt)
    raise typer.Exit(0 if result.verdict == "protected" else SOME_FAILED)
