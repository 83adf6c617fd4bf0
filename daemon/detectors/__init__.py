"""Detectors: a picture in, its sensitive regions out.

A new detector is one new file with a class of one method, one line in `_LOADERS`, and the
contract tests, which run over every name. Nothing heavy is imported before `get` asks for it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from daemon.domain import Region, Rgb
from daemon.errors import Code, ConfigError, ModelError


@dataclass(frozen=True)
class Sidecar:
    """A mask file that came with a picture: its name for messages, and its bytes."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Source:
    """What a detector may know of a picture besides its pixels."""

    name: str
    sidecars: tuple[Sidecar, ...] = ()


class Detector(Protocol):
    """Finds sensitive regions. Deterministic; keeps nothing of a picture."""

    def detect(self, image: Rgb, *, source: Source) -> list[Region]:
        """The regions of one picture, none if there are none.

        Args:
            image: H,W,3 uint8 RGB, upright; left unchanged.
            source: the picture's name and mask files.

        Returns:
            Regions whose boxes are not empty and lie within the picture, scores in [0,1].

        Raises:
            InputError: a mask file cannot be used.
            ModelError: `Code.DETECTOR`, the detector's model failed.
        """
        ...


def _sidecar() -> Detector:
    from daemon.detectors.sidecar import SidecarDetector

    return SidecarDetector()


def _faces() -> Detector:
    from daemon.detectors.faces import FaceDetector

    return FaceDetector()


_LOADERS: dict[str, Callable[[], Detector]] = {
    "sidecar": _sidecar,
    "faces": _faces,
}

NAMES = tuple(_LOADERS)
"""The names that `regions.detectors` may hold."""


def get(name: str) -> Detector:
    """Load a detector; each call returns a new one, so load once and keep it.

    Raises:
        ConfigError: no detector has this name.
        ModelError: `Code.DETECTOR`, a package or the model that it needs is missing or broken.
    """
    loader = _LOADERS.get(name)
    if loader is None:
        near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"valid names: {', '.join(NAMES)}"
        raise ConfigError(f"regions.detectors: got {name!r}, expected a detector's name; {hint}")
    try:
        return loader()
    except ImportError as error:
        raise ModelError(
            Code.DETECTOR,
            f"detector {name}: cannot be loaded ({error}); install Backfire again with all it requires, "
            f"or take {name!r} out of regions.detectors",
            retryable=False,
        ) from error
