"""The commands that need no daemon: `protect` and `verify`."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from backfire.admin.published import at_size_of, how_made, other_weights
from backfire.cli.common import (
    BAD_CONFIG,
    BY_HAND,
    NAME_A_MASK,
    SOME_FAILED,
    AsJson,
    Mask,
    OptionalConfig,
    app,
    bar,
    colour,
    err,
    named,
    out,
    print_error,
    print_receipt,
    printable,
    require_sheet,
    write_as_user,
)  # fmt: skip
from backfire.config import Settings
from backfire.errors import BackfireError, ConfigError, InputError, JobError, NoRegionError
from backfire.evaluate import left, receipt, words
from backfire.files import outbox, safe_paths
from backfire.types import EXTENSIONS

if TYPE_CHECKING:
    from backfire.pipeline.result import Result

FORMATS = {ending: name for name, endings in EXTENSIONS.items() if name != "gif" for ending in endings}
"""What `--output FILE` is written as, by its extension."""


@app.command()
def protect(
    pictures: Annotated[list[Path], typer.Argument(help="Pictures to protect.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="A file, or a folder for several pictures.")],
    mask: Mask = None,
    config_file: OptionalConfig = None,
    as_json: AsJson = False,
) -> None:
    """Protect pictures here and now, without daemon or database; receipt and sheet lie beside the result."""
    from backfire import api  # here, as the daemon needs none of the imaging libraries it brings

    write_as_user()
    several, wanted = _prepared(output, pictures, mask)
    receipts, failed = [], 0
    for picture in pictures:
        target = output / picture.name if several else output
        try:
            if target.exists():
                raise ConfigError(f"{target}: exists already; nothing is overwritten; name another --output")
            settings, _ = api.settings_for(picture, config_file)
            settings = settings if several else _writing_as(wanted, picture, settings)
            if (taken := _named_as(target, settings)).exists():
                raise ConfigError(f"{taken}: exists already; nothing is overwritten; name another --output")
            with bar() as advance:
                result = api.protect(
                    picture, mask=mask, settings=settings, progress=named(advance, picture.name)
                )
            with _explained(str(target)):
                document, placed, written = _write(target, result, settings, mask)
        except BackfireError as error:
            if len(pictures) == 1 and isinstance(error, ConfigError):
                raise
            if isinstance(error, NoRegionError):
                error = error.with_remedy(NAME_A_MASK)
            code = error.code.value if isinstance(error, JobError) else "config"
            document = {"file": str(picture), "verdict": "failed", "code": code, "reasons": [str(error)]}
            placed, written = None, []
        # Who asked is told the whole path; the receipt beside the result may be published.
        receipts.append({**document, "output": placed} if "output" in document else document)
        failed += placed is None
        if not as_json:
            _print(document, placed, written)
    if as_json:
        print(json.dumps(receipts, indent=2))
    raise typer.Exit(SOME_FAILED if failed else 0)


def _prepared(output: Path, pictures: Sequence[Path], mask: Path | None) -> tuple[bool, str]:
    """Make the output's folder if there is none, and try whether it can be written to.

    Returns:
        Whether the output is that folder, and the format that it names if it is a file.

    Raises:
        ConfigError: the results cannot be written there, which is said before pictures are optimised for it.
    """
    several = len(pictures) > 1 or output.is_dir()
    if len(pictures) > 1 and mask is not None:
        raise ConfigError(f"--mask {mask}: one mask cannot serve {len(pictures)} pictures; give one picture")
    if several and output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output}: is a file, expected a folder for {len(pictures)} pictures")
    if several and output.suffix.lower() in FORMATS and not output.exists():
        raise ConfigError(
            f"--output {output}: has the name of a picture, expected a folder for {len(pictures)} pictures"
        )
    folder, wanted = (output, "") if several else (output.parent, _format_named(output))
    with _explained(f"--output {output}"):
        folder.mkdir(parents=True, exist_ok=True)
        _require_writable(folder)
    return several, wanted


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turns an error of the system into a ConfigError that says what to do."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{what}: cannot be written ({error.strerror}); name a place where you may write"
        ) from error


def _require_writable(folder: Path) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def _format_named(output: Path) -> str:
    """The format that the output's extension names.

    Raises:
        ConfigError: it names none that is written.
    """
    wanted = FORMATS.get(output.suffix.lower())
    if wanted is None:
        raise ConfigError(
            f"--output {output}: got {output.suffix or 'no extension'}, expected {', '.join(FORMATS)}"
        )
    return wanted


def _writing_as(wanted: str, picture: Path, settings: Settings) -> Settings:
    """The settings with the format that the output's own extension names.

    They are returned as they are if that is the format which they would give the picture anyway: another
    value of `output.format` is another configuration, whose perturbation would not be the daemon's.
    """
    if settings.output.format == "same" and wanted == _format_of(picture, settings):
        return settings
    return settings.model_copy(update={"output": settings.output.model_copy(update={"format": wanted})})


def _named_as(target: Path, settings: Settings) -> Path:
    """The target with the extension of the format that the settings ask for."""
    from backfire.imaging import formats

    if settings.output.format == "same":
        return target
    extension = formats.extensions(formats.KINDS[settings.output.format])[0]
    return target.parent / os.fsdecode(outbox.renamed(target.parent, os.fsencode(target.name), extension))


def _format_of(picture: Path, settings: Settings) -> str | None:
    """The name of a picture's format in `output.format`; None if it has none, or the file cannot be read."""
    from backfire.imaging import formats

    try:
        kind = formats.sniff(safe_paths.read_regular(picture, settings.limits.max_bytes), picture.name)
    except (OSError, InputError):
        return None  # protecting it will say what is wrong with it
    return next((name for name, known in formats.KINDS.items() if known == kind), None)


def _write(
    target: Path, result: Result, settings: Settings, mask: Path | None
) -> tuple[dict[str, Any], str | None, list[str]]:
    """Write the result, unless it failed, and receipt and sheet in any case.

    Args:
        mask: what was named as the picture's mask, which the receipt remembers for `verify`.

    Returns:
        The receipt, the path of the result, None where none was written, and the receipt's and the sheet's
        paths.
    """
    folder, output, name = target.parent, None, os.fsencode(target.name)
    weak = result.verdict == "weak" and settings.verify.on_weak == "fail"
    if result.verdict != "failed" and not weak:
        name = outbox.renamed(folder, name, result.extension)
        name = outbox.place(result.data, folder, name, key=result.receipt["key"], mode=BY_HAND)
        output = str(folder / os.fsdecode(name))
    document, written = receipt.by_hand(result.receipt, output, mask), []
    for suffix, data in ((b".receipt.json", receipt.to_json(document)), (b".sheet.jpg", result.sheet)):
        if data is not None:
            report = outbox.beside(folder, name, suffix, result.receipt["key"])
            outbox.replace(data, folder, report, mode=BY_HAND)
            written.append(str(folder / os.fsdecode(report)))
    return document, output, written


def _print(document: dict[str, Any], output: str | None, written: list[str]) -> None:
    """At most three lines: the verdict, what was measured, where receipt and sheet are."""
    said, *measured = receipt.in_words(document)
    verdict, _, rest = said.partition(":")
    place = f"{document['file']} -> {output}" if output else document["file"]
    line = Text.assemble(
        f"{printable(place)}: ", (verdict, colour(document["verdict"])), f":{rest}" if rest else ""
    )
    out.print(line, soft_wrap=True)
    for text in measured:
        out.print(Text(f"  {text}"), soft_wrap=True)
    if written:
        names = ("receipt", "before/after sheet")
        out.print(Text("  " + ", ".join(map(": ".join, zip(names, written, strict=False)))), soft_wrap=True)


@app.command()
def verify(
    protected: Annotated[
        Path | None, typer.Argument(help="The protected picture, as published.", show_default=False)
    ] = None,
    original: Annotated[
        Path | None,
        typer.Option(
            "--original",
            help="The picture it was made of; without it, the one that its receipt names, with its masks.",
        ),
    ] = None,
    mask: Mask = None,
    as_published: Annotated[
        Path | None,
        typer.Option(
            "--as-published",
            help="Judge this copy, which a site saved again in another size or format: what is left?",
        ),
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="Write the before/after sheet here (JPEG).")
    ] = None,
    config_file: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            help="The configuration that it was made with; without it, the config.yaml here or above the "
            "picture. Its reports and archive hold the receipt and the original. With --original the "
            "defaults hold without it.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Replay the edits on a protected picture: exit 0 protected, 3 weak or failed, 2 if it cannot be judged.

    The receipt is looked for beside the picture and among the reports of its job. To judge a
    copy that a site saved, give --as-published COPY together with the protected picture, or with --original
    if you no longer have that.
    """
    from backfire import api

    write_as_user()
    if sheet is not None:
        with _explained(f"--sheet {sheet}"):  # before the edits are replayed for it
            _require_writable(sheet.parent)
        require_sheet("--sheet", sheet)
    masks: Path | list[Path] | None = mask
    known: dict[str, Any] | None = None
    if protected is None and (original is None or as_published is None):
        raise ConfigError("verify: got no picture; name the protected one, or --as-published with --original")
    if original is None and protected is not None:
        made = how_made(protected, config_file, mask)
        known, original, name = made.receipt, made.original, str(made.receipt["file"])
        masks = [*made.masks]
        settings = made.settings or at_size_of(made.receipt, api.settings_for(original, None)[0])
        for why in made.unusable:
            err.print(Text(printable(f"{protected}: {why}"), "yellow"), soft_wrap=True)
        if made.changed:
            told = "the settings have changed since it was made; its thresholds are today's"
            err.print(Text(f"{protected}: {told}", "yellow"), soft_wrap=True)
    else:
        assert original is not None
        settings, _ = api.settings_for(original, config_file)
        name = original.name
    judged = as_published or protected
    assert judged is not None
    try:
        with bar() as advance:
            result = api.verify(
                judged,
                original,
                mask=masks,
                settings=settings,
                name=name,
                as_published=as_published is not None,
                progress=advance,
            )
    except JobError as error:  # a status of its own: nobody is to take it for a verdict
        if isinstance(error, NoRegionError):
            error = error.with_remedy(NAME_A_MASK)
        print_error(str(error))
        raise typer.Exit(BAD_CONFIG) from error
    if known is not None and (others := other_weights(known, result.receipt)):
        told = "other weights than when it was made, so that its edits are others than those of its receipt"
        err.print(Text(printable(f"{protected}: {', '.join(others)}: {told}"), "yellow"), soft_wrap=True)
    if sheet is not None and result.sheet is not None:
        with _explained(f"--sheet {sheet}"):
            sheet.write_bytes(result.sheet)
    if as_json:
        print(json.dumps(result.receipt, indent=2))
    elif as_published is not None:
        _print_copy(as_published, name, result, known)
    else:
        print_receipt(result.receipt, settings.verify)
    raise typer.Exit(0 if result.verdict == "protected" else SOME_FAILED)


def _print_copy(copy: Path, name: str, result: Result, known: dict[str, Any] | None) -> None:
    """Print the verdict on a copy that a site saved again, and what is left; `known` is the receipt."""
    said = Text.assemble((result.verdict, colour(result.verdict)), printable(f"  {copy}, a copy of {name}"))
    if result.verdict == "failed":
        said.append(f": {words.reason(result.receipt['reasons'][0])}")
    out.print(said, soft_wrap=True)
    for line in left.in_words(result.receipt, known):
        out.print(Text(f"  {line}"), soft_wrap=True)
