"""Detectors: a picture in, its sensitive regions out.

A new detector is one new file with a class of one method, one line in `_LOADERS`, and the
contract tests, which run over every name. Nothing heavy is imported before `get` asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from backfire.config import Regions
from backfire.errors import Code, ConfigError, ModelError, require
from backfire.types import Region, Rgb


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


def _sidecar(settings: Regions) -> Detector:
    from backfire.detectors.sidecar import SidecarDetector

    return SidecarDetector(settings.sidecar)


def _metadata(settings: Regions) -> Detector:
    from backfire.detectors.metadata import MetadataDetector

    return MetadataDetector()


def _faces(settings: Regions) -> Detector:
    from backfire.detectors.faces import FaceDetector

    return FaceDetector(settings.faces)


def _text(settings: Regions) -> Detector:
    from backfire.detectors.text import TextDetector

    return TextDetector(settings.text)


def _signatures(settings: Regions) -> Detector:
    from backfire.detectors.signatures import SignatureDetector

    return SignatureDetector(settings.text)


def _logos(settings: Regions) -> Detector:
    from backfire.detectors.logos import LogoDetector

    return LogoDetector(settings.logos)


def _fixed(settings: Regions) -> Detector:
    from backfire.detectors.fixed import FixedDetector

    return FixedDetector(settings.fixed)


def _whole(settings: Regions) -> Detector:
    from backfire.detectors.fixed import WholeDetector

    return WholeDetector()


def _command(settings: Regions) -> Detector:
    from backfire.detectors.command import CommandDetector

    return CommandDetector(settings.command)


def _onnx(settings: Regions) -> Detector:
    from backfire.detectors.onnx import OnnxDetector

    return OnnxDetector(settings.onnx)


def _torchscript(settings: Regions) -> Detector:
    from backfire.detectors.torchscript import TorchScriptDetector

    return TorchScriptDetector(settings.torchscript)


_LOADERS: dict[str, Callable[[Regions], Detector]] = {
    "sidecar": _sidecar,
    "metadata": _metadata,
    "faces": _faces,
    "text": _text,
    "signatures": _signatures,
    "logos": _logos,
    "fixed": _fixed,
    "whole": _whole,
    "command": _command,
    "onnx": _onnx,
    "torchscript": _torchscript,
}

NAMES = tuple(_LOADERS)
"""The names that `regions.detectors` may hold."""

EXTRAS = {"text": "text", "signatures": "text", "logos": "logos"}
"""By detector: the extra of the package (`backfire[EXTRA]`) that it needs."""


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
        require(name, NAMES, "regions.detectors")
        if name in needs and not needs[name][1]:
            setting = needs[name][0]
            raise ConfigError(f"regions.detectors: {name} needs {setting}, got nothing there; set it")


def get(name: str, settings: Regions = Regions()) -> Detector:  # noqa: B008 (frozen)
    """Load a detector. Each call loads a new one, so keep it.

    Raises:
        ConfigError: no detector has this name, or it lacks a setting.
        ModelError: `Code.DETECTOR`, a package or a model that it needs is missing or broken.
    """
    check(settings.model_copy(update={"detectors": (name,)}))
    try:
        return _LOADERS[name](settings)
    except ImportError as error:
        remedy = (
            f"pip install 'backfire[{EXTRAS[name]}]'"
            if name in EXTRAS
            else "install Backfire again with all it requires"
        )
        raise ModelError(
            Code.DETECTOR,
            f"detector {name}: cannot be loaded ({error}); {remedy}, "
            f"or take {name!r} out of regions.detectors",
            retryable=False,
        ) from error
