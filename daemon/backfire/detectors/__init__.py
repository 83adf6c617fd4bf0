"""Detectors: a picture in, its sensitive regions out.

A new detector is a new file with a class of one method, and one line in `DETECTORS`; the contract tests
run over every name there. Nothing heavy is imported before `get` asks for it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from backfire.config import Regions
from backfire.errors import Code, ConfigError, ModelError
from backfire.files.durable import file_sha256
from backfire.registry import Entry, Registry
from backfire.types import Region, Rgb

LOGO_KINDS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"})


@dataclass(frozen=True)
class Sidecar:
    """A mask or annotation file that came with a picture: its name for messages, and its bytes."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Source:
    """What a detector may know of a picture besides its pixels.

    Attributes:
        name: the picture's name, for messages.
        sidecars: the mask and annotation files.
        packets: the XMP packet and its extensions.
        orientation: the EXIF orientation, 1..8, of the stored pixels, to which metadata may refer.
    """

    name: str
    sidecars: tuple[Sidecar, ...] = ()
    packets: tuple[bytes, ...] = ()
    orientation: int = 1


class Detector(Protocol):
    """Finds sensitive regions. Deterministic; keeps nothing of a picture."""

    def detect(self, image: Rgb, *, source: Source) -> list[Region]:
        """The regions of one picture, perhaps none.

        Args:
            image: H,W,3 uint8 RGB, upright; it is not modified.
            source: what is known of the picture besides its pixels.

        Returns:
            Regions with boxes that are not empty and lie within the picture, and scores in [0,1].

        Raises:
            InputError: a sidecar cannot be used.
            ModelError: `Code.DETECTOR`, the detector's model or program failed.
        """
        ...


@dataclass(frozen=True)
class Known(Entry):
    """A detector, as the registry knows it.

    Attributes:
        section: the section of `regions` that it is made from; empty for one without settings.
        extra: the optional dependencies that it needs, as in `pip install 'backfire[EXTRA]'`.
    """

    section: str = ""
    extra: str = ""

    def load(self, settings: Regions) -> Detector:
        """A new detector; raises as `Entry.resolve` and the class itself do."""
        made: Detector = self.resolve()(*([getattr(settings, self.section)] if self.section else ()))
        return made


DETECTORS = Registry(
    "regions.detectors",
    {
        "sidecar": Known("backfire.detectors.sidecar:SidecarDetector", "sidecar"),
        "metadata": Known("backfire.detectors.metadata:MetadataDetector"),
        "faces": Known("backfire.detectors.faces:FaceDetector", "faces"),
        "text": Known("backfire.detectors.text:TextDetector", "text", extra="text"),
        "signatures": Known("backfire.detectors.signatures:SignatureDetector", "text", extra="text"),
        "logos": Known("backfire.detectors.logos:LogoDetector", "logos", extra="logos"),
        "fixed": Known("backfire.detectors.fixed:FixedDetector", "fixed"),
        "whole": Known("backfire.detectors.fixed:WholeDetector"),
        "command": Known("backfire.detectors.command:CommandDetector", "command"),
        "onnx": Known("backfire.detectors.onnx:OnnxDetector", "onnx"),
        "torchscript": Known("backfire.detectors.torchscript:TorchScriptDetector", "torchscript"),
    },
)
NAMES = tuple(DETECTORS)
"""The names that `regions.detectors` may hold."""


def check(settings: Regions) -> None:
    """Check that every configured detector exists and has the settings that it needs.

    Nothing is loaded, so the daemon can check this at start.

    Raises:
        ConfigError: naming the setting and its remedy.
    """
    needs = {
        "logos": ("regions.logos.folder or watermarks", settings.logos.folder or settings.logos.watermarks),
        "fixed": ("regions.fixed", settings.fixed),
        "command": ("regions.command.argv", settings.command.argv),
        "onnx": ("regions.onnx.model", settings.onnx.model),
        "torchscript": (
            "regions.torchscript.model, sha256 and trust: true (such a file is code)",
            settings.torchscript.model and settings.torchscript.sha256 and settings.torchscript.trust,
        ),
    }
    for name in settings.detectors:
        DETECTORS.require(name)
        if name in needs and not needs[name][1]:
            setting = needs[name][0]
            raise ConfigError(f"regions.detectors: {name} needs {setting}, got nothing there; set it")


def logo_files(folder: Path) -> list[Path]:
    """The files of a folder of logos, in the order of their names; hidden ones are left alone.

    macOS puts `._logo.png`, which is no picture, beside what it copies to a share.

    Raises:
        OSError: the folder cannot be read.
    """
    visible = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return [path for path in visible if path.suffix.lower() in LOGO_KINDS and path.is_file()]


def digest(name: str, settings: Regions) -> str:
    """The SHA-256 of the files of your own that a detector works with; empty for one that has none.

    Those are logos, networks, and a program that is a script with those of its arguments that are files: a
    binary, such as Python's, may differ from machine to machine. Nothing is loaded.

    Raises:
        OSError: one of them cannot be read.
    """
    given: tuple[Path | str | None, ...] = ()
    match name:
        case "logos":
            given = settings.logos.folder, settings.logos.watermarks
        case "onnx" | "torchscript":
            given = (getattr(settings, name).model,)
        case "command" if settings.command.argv:
            program, *arguments = settings.command.argv
            found_as = shutil.which(program) or program
            given = (*filter(_is_script, [found_as]), *filter(os.path.isfile, arguments))
    found = hashlib.sha256()
    paths = [Path(one) for one in given if one]
    for path in paths:
        for file in logo_files(path) if path.is_dir() else [path]:
            found.update(os.fsencode(file.name) + file_sha256(file).encode())
    return found.hexdigest() if paths else ""


def _is_script(program: str) -> bool:
    with open(program, "rb") as file:
        return file.read(2) == b"#!"


def get(name: str, settings: Regions = Regions()) -> Detector:  # noqa: B008 (frozen)
    """Load a detector. Each call loads a new one, so keep it.

    Raises:
        ConfigError: no detector has this name, or it lacks a setting.
        ModelError: `Code.DETECTOR`, a package or a model that it needs is missing or broken.
    """
    check(settings.model_copy(update={"detectors": (name,)}))
    try:
        return DETECTORS[name].load(settings)
    except ImportError as error:
        extra = DETECTORS[name].extra
        package = f"pip install 'backfire[{extra}]'"
        remedy = package if extra else "install Backfire again with all it requires"
        raise ModelError(
            Code.DETECTOR,
            f"detector {name}: cannot be loaded ({error}); {remedy}, "
            f"or take {name!r} out of regions.detectors",
            retryable=False,
        ) from error
