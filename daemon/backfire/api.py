"""The Python API: protect, verify and detect, without a daemon, a database or a folder of its own.

    import backfire

    result = backfire.protect("me.jpg", mask="me.mask.png")
    if result.verdict == "protected":
        Path("out.jpg").write_bytes(result.data)

The commands `backfire protect`, `verify` and `detect` and the daemon's worker call these functions, too.
Importing this module loads no torch; the functions that need it load it when they are called. They are not
meant for several threads of one process at a time: torch's and Pillow's settings belong to the process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backfire import config, imaging
from backfire.config import Folders, Settings
from backfire.detectors import Sidecar, Source
from backfire.errors import ConfigError, NoRegionError
from backfire.files import inbox, safe_paths
from backfire.imaging import drawing
from backfire.pipeline.result import PhaseProgress, Result, no_progress
from backfire.types import Region, Rgb

__all__ = ["Detection", "Result", "detect", "protect", "settings_for", "verify"]

PathLike = str | os.PathLike[str]
PictureLike = bytes | PathLike
"""A picture: the bytes of its file, or the file's path."""
MaskLike = bytes | PathLike | NDArray[np.bool_] | Sidecar
"""A mask or an annotation of the regions: the bytes of its file, the file's path, or an array H,W of the
upright picture's size, True = protected. Paths that end in `.json` are annotations. `regions.sidecar` says
which paint of a file is protected; an array means the same under all settings."""
SettingsLike = Settings | PathLike | Mapping[str, Any]
"""Settings: checked already, the path of a configuration file, or its sections as a mapping. Of a file or a
mapping the rules for the picture's path are followed; its folders are not used."""


@dataclass(frozen=True, eq=False)
class Detection:
    """What would be protected in a picture.

    Attributes:
        name: the picture's name, as messages have it.
        image: uint8 H,W,3 RGB, upright: what boxes and masks refer to.
        regions: in the order in which the detectors found them, padded and merged as the settings say.
        skipped: detector to error, of those that failed under `regions.on_error: skip`.
        rule: the pattern of the rule whose settings were used; None without.
    """

    name: str
    image: Rgb
    regions: list[Region]
    skipped: dict[str, str] = field(default_factory=dict)
    rule: str | None = None


@dataclass(frozen=True)
class Attempt:
    """What the daemon knows of an attempt at a picture beyond its settings.

    Attributes:
        rung: how many rungs of the memory ladder to skip, because they are known to need too much memory.
        device: `cpu` or `cuda:0`, in place of `protect.device` where that is `auto`.
        reviewed: whether the caller holds pictures without a region until a person decides; otherwise
            `regions.none_found: review`, the default, is an error like `fail`.
    """

    rung: int = 0
    device: str | None = None
    reviewed: bool = False


def protect(
    picture: PictureLike,
    *,
    mask: MaskLike | Sequence[MaskLike] | None = None,
    settings: SettingsLike | None = None,
    name: str | None = None,
    progress: PhaseProgress = no_progress,
    attempt: Attempt | None = None,
) -> Result:
    """Protect a picture: find its regions, add the perturbation, and judge the result from its own bytes.

    Takes seconds to minutes, by picture and settings. The same picture, mask and settings give the same bytes
    on the same machine and versions, but for a signature (`provenance`).

    Args:
        picture: JPEG, PNG, TIFF, WebP, HEIC, AVIF, JPEG 2000, BMP or GIF, as a path or as bytes.
        mask: what is to be protected, see `MaskLike`; a sequence where there are several. None: the masks and
            annotations that lie beside the picture, if it is a path, as the daemon would find them. The
            configured detectors are asked in any case.
        settings: None for the defaults.
        name: the picture's name for messages, receipt and rules, where `picture` is bytes.
        progress: called as progress(phase, done, total); may raise, which stops the work.
        attempt: what the daemon adds; other callers leave it out.

    Returns:
        The bytes to publish, receipt, verdict and sheet. A verdict of `weak` or `failed` is no exception:
        look at it before you publish.

    Raises:
        ConfigError: unusable settings, or a file that cannot be read.
        InputError: the picture or a mask cannot be used, or, as a NoRegionError, no region was found.
        ModelError: a detector or an editor failed, or memory is too small even at the lowest rung.
        BudgetExceeded: the output format would change the picture by more than the budget.
        SigningError: certificate, key, signer or timestamp authority failed, where `provenance` is set.
    """
    from backfire.pipeline import protect as pipeline

    data, source, used, _ = _opened(picture, mask, name, settings)
    if attempt is not None:  # its masks lie beside the picture; nobody named them
        return pipeline.protect(data, source, used, progress=progress, **vars(attempt))
    _require_read(mask, source, used)
    with _asking_for_mask():
        return pipeline.protect(data, source, used, progress=progress, **vars(Attempt()))


def verify(
    protected: PictureLike,
    original: PictureLike,
    *,
    mask: MaskLike | Sequence[MaskLike] | None = None,
    settings: SettingsLike | None = None,
    name: str | None = None,
    as_published: bool = False,
    progress: PhaseProgress = no_progress,
) -> Result:
    """Judge a published file: replay on it the edits that decided its verdict when it was made.

    Args:
        protected: the file as it was published or, with `as_published`, a copy of it.
        original: the picture it was made from.
        mask: see `protect`; of the original. Mask and settings must be those with which the file was made, or
            other regions or thresholds are asked about.
        settings: see `protect`.
        name: the original's name, see `protect`.
        as_published: whether `protected` is a copy that a site has saved again, in another size or format:
            it must show all of the picture. Its edits are compared with those of the original saved likewise,
            and the receipt says in `as_published` how it lies on the picture.
        progress: see `protect`.

    Returns:
        Verdict, receipt and sheet; `data` is the protected file itself.

    Raises:
        ConfigError, InputError, ModelError: as `protect` does; an InputError, too, where the two pictures
            differ in size or, with `as_published`, do not show the same picture at the same place.
    """
    from backfire.pipeline import as_published as copies
    from backfire.pipeline import verify as pipeline

    data, source, used, _ = _opened(original, mask, name, settings)
    published = protected if isinstance(protected, bytes) else _read(Path(protected), used.limits.max_bytes)
    if as_published:
        called = "the copy" if isinstance(protected, bytes) else os.fspath(protected)
        return copies.verify_copy(data, published, source, used, name=called, progress=progress)
    return pipeline.verify(data, published, source, used, progress=progress)


def detect(
    picture: PictureLike,
    *,
    mask: MaskLike | Sequence[MaskLike] | None = None,
    settings: SettingsLike | None = None,
    name: str | None = None,
) -> Detection:
    """Find what would be protected, without protecting it. Loads no torch unless a detector needs it.

    Args:
        picture: see `protect`.
        mask: see `protect`.
        settings: see `protect`.
        name: see `protect`.

    Returns:
        The regions; none only under `regions.none_found: pass`.

    Raises:
        ConfigError, InputError, ModelError: as `protect` does.
    """
    from backfire.detectors.run import find

    data, source, used, rule = _opened(picture, mask, name, settings)
    _require_read(mask, source, used)
    decoded = imaging.decode(
        data, name=source.name, max_pixels=used.output.max_pixels, frames=used.output.frames
    )
    with _asking_for_mask():
        found = find(decoded, source, used.regions)
    return Detection(source.name, decoded.rgb, found.regions, found.skipped, rule)


@contextmanager
def _asking_for_mask() -> Iterator[None]:
    """Where nothing is found, name the argument that says what is to be protected."""
    try:
        yield
    except NoRegionError as error:
        remedy = "name what is to be protected as mask=, or set regions.none_found in settings="
        raise error.with_remedy(remedy) from None


def settings_for(picture: Path, settings: SettingsLike | None) -> tuple[Settings, str | None]:
    """The settings of one picture.

    Args:
        picture: its path; rules see it as it lies below the inbox, or as an original below the archive or the
            folders of failed and of held pictures, or else as it is given.
        settings: checked ones are returned as they stand.

    Returns:
        The settings, and the pattern of the rule that they follow, if there is one.

    Raises:
        ConfigError: they cannot be used.
    """
    if isinstance(settings, Settings):
        return settings, None
    if settings is None:
        checked = Settings(folders=Folders(inbox=Path("inbox")))
    elif isinstance(settings, Mapping):
        checked = config.parse({"folders": {"inbox": "inbox"}, **settings}, base=Path.cwd())
    else:
        checked = config.load(Path(settings))
    path = picture.parent.resolve() / picture.name  # as the folders are: without links and ..
    lie_in = checked.folders
    folders = (lie_in.inbox, lie_in.archive, lie_in.failed, lie_in.review)
    above = next((folder for folder in folders if folder in path.parents), None)
    relative = os.fsencode(picture if above is None else path.relative_to(above))
    index = checked.rule_of(relative)
    return checked.for_path(relative), None if index is None else checked.rules[index].match


def _opened(
    picture: PictureLike,
    mask: MaskLike | Sequence[MaskLike] | None,
    name: str | None,
    settings: SettingsLike | None,
) -> tuple[bytes, Source, Settings, str | None]:
    """The picture's bytes, its name with its masks and annotations, its settings, and its rule's pattern."""
    path = Path(name or "picture") if isinstance(picture, bytes) else Path(picture)
    used, rule = settings_for(path, settings)
    most = used.limits.max_bytes
    if isinstance(picture, bytes):
        data, beside, known_as = picture, [], name or "picture"
    else:
        data, known_as = _read(path, most), name or path.name
        own = os.fsencode(path.name)
        seen = inbox.scan_beside(path.parent, [own], used.watch.ignore)
        beside = [path.parent / os.fsdecode(one) for one in seen.masks_of(own)]
    masks: Sequence[MaskLike] = beside if mask is None else _listed(mask)
    return data, Source(known_as, tuple(_sidecar(one, used) for one in masks)), used, rule


def _require_read(mask: MaskLike | Sequence[MaskLike] | None, source: Source, settings: Settings) -> None:
    """Refuse a mask that somebody named and no detector would read: all else would be protected, but not it.

    Raises:
        ConfigError: why.
    """
    detectors = settings.regions.detectors
    if mask is not None and source.sidecars and "sidecar" not in detectors:
        named = ", ".join(one.name for one in source.sidecars)
        raise ConfigError(
            f"mask {named}: would not be read, as regions.detectors are {', '.join(detectors)}; expected "
            "sidecar among them: add it, or name no mask"
        )


def _listed(mask: MaskLike | Sequence[MaskLike]) -> Sequence[MaskLike]:
    if isinstance(mask, bytes | str | os.PathLike | np.ndarray | Sidecar):
        return [mask]
    return list(mask)


def _sidecar(mask: MaskLike, settings: Settings) -> Sidecar:
    if isinstance(mask, Sidecar):
        return mask
    if isinstance(mask, bytes):
        return Sidecar("mask", mask)
    if isinstance(mask, np.ndarray):
        if mask.dtype != np.bool_ or mask.ndim != 2 or not mask.size:
            got = f"{mask.dtype} of shape {mask.shape}"
            raise ConfigError(f"mask: got {got}, expected a bool array H,W of its picture; True is protected")
        # As a file that these settings read as the array.
        inverted = settings.regions.sidecar.protected == "black"
        return Sidecar("mask", drawing.mask_png(~mask if inverted else mask))
    return Sidecar(Path(mask).name, _read(Path(mask), settings.limits.max_bytes))


def _read(path: Path, most: int) -> bytes:
    """The content of a regular file of at most so many bytes."""
    try:
        return safe_paths.read_regular(path, most)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name a readable file") from error
