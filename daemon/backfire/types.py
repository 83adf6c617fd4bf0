"""The types that all packages share: pictures, masks, regions, jobs. Imports nothing else of the package."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Rgb = NDArray[np.uint8]
    """H,W,3 uint8, RGB, upright (EXIF orientation applied)."""

    Mask = NDArray[np.bool_]
    """H,W bool, True = protected / repainted."""


def __getattr__(name: str) -> Any:
    # NumPy is loaded when a picture's type is first asked for: who only reads jobs need not hold it in
    # memory.
    if name in ("Rgb", "Mask"):
        import numpy as np
        from numpy.typing import NDArray

        return NDArray[np.uint8] if name == "Rgb" else NDArray[np.bool_]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


EXTENSIONS = {
    "jpeg": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "png": (".png",),
    "tiff": (".tif", ".tiff"),
    "webp": (".webp",),
    "heic": (".heic", ".heif", ".hif"),
    "avif": (".avif",),
    "jpeg2000": (".jp2", ".j2k", ".jpf", ".jpx"),
    "bmp": (".bmp",),
    "gif": (".gif",),
}
"""The extensions of each format by its name in `output.format`; files are written with the first one.
GIF is only read: such pictures are written as PNG."""


def shown(path: bytes) -> str:
    """A path as text for people, logs and JSON. Bytes that are not UTF-8 become backslash escapes."""
    return path.decode("utf-8", "backslashreplace")


def printable(text: str) -> str:
    """A text for a terminal: what could move its cursor or colour it becomes a backslash escape."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def duration(seconds: float) -> str:
    """A length of time in its largest fitting unit, rounded."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 1):.0f} s"


def composed(name: bytes | str) -> str:
    """A file name in Unicode's NFC, for comparison: macOS writes é as two characters, others as one."""
    return unicodedata.normalize("NFC", os.fsdecode(name))


class Box(NamedTuple):
    """Left, top, right and bottom in pixels of the upright picture; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def slices(self) -> tuple[slice, slice]:
        """The rows and columns as an index: `picture[box.slices]` is the part inside the box."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def grown(self, margin: int, width: int, height: int) -> Box:
        """The box with `margin` pixels around it, clipped to a picture of width x height."""
        return Box(
            max(self.left - margin, 0),
            max(self.top - margin, 0),
            min(self.right + margin, width),
            min(self.bottom + margin, height),
        )

    def union(self, other: Box) -> Box:
        return Box(
            min(self.left, other.left),
            min(self.top, other.top),
            max(self.right, other.right),
            max(self.bottom, other.bottom),
        )

    def overlaps(self, other: Box) -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )

    @classmethod
    def around(cls, mask: Mask) -> Box:
        """The bounding box of a mask that has at least one True pixel."""
        import numpy as np

        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        return cls(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


@dataclass(frozen=True, eq=False)
class Region:
    """A sensitive part of a picture, found by a detector.

    Attributes:
        box: its bounding box.
        label: what it is, e.g. `face`, `mask`.
        score: the detector's confidence in [0,1].
        detector: the detector's name in the configuration.
        mask: its exact shape as a plane of the box's size (box.height, box.width), or None
            where the box itself is the shape.
        joined: how many regions were joined to it because there were more than `regions.most`.
    """

    box: Box
    label: str
    score: float
    detector: str
    mask: Mask | None = None
    joined: int = 1

    def row(self) -> dict[str, Any]:
        """The region as receipts and `backfire detect --json` write it."""
        score = round(self.score, 4)
        return {"box": list(self.box), "label": self.label, "score": score, "detector": self.detector}

    def plane(self, height: int, width: int) -> Mask:
        """The region as a mask of the whole picture's size."""
        import numpy as np

        plane = np.zeros((height, width), dtype=np.bool_)
        plane[self.box.slices] = True if self.mask is None else self.mask
        return plane


@dataclass(frozen=True)
class Budget:
    """The largest perturbation of any one sample (L-infinity), in levels of 255."""

    epsilon: float

    @property
    def levels(self) -> int:
        """Epsilon rounded down, since files hold whole levels."""
        return int(self.epsilon)

    @property
    def unit(self) -> float:
        """The same bound for images in [0,1]."""
        return self.levels / 255


class Verdict(StrEnum):
    """What the judge concluded from edits of the decoded output."""

    PROTECTED = "protected"
    WEAK = "weak"
    FAILED = "failed"
    UNPROTECTED = "unprotected"
    """No region was found, and the picture was published unchanged: by a person, or by `none_found: pass`."""


class MaskKind(StrEnum):
    """The masks of the replayed edits: the first three are trigger edits, the last two benign ones."""

    TRIGGER = "trigger"
    DILATED = "dilated"
    PARTIAL = "partial"
    NEAR = "near"
    FAR = "far"


class Family(StrEnum):
    """Kinds of editors, by what a person would use them in."""

    LATENT = "latent"
    """Inpaints an autoencoder's latents in one step."""
    ERASE = "erase"
    """Fills from the surroundings in one step without a prompt: LaMa, MAT, MI-GAN."""
    DIFFUSION = "diffusion"
    """Stable Diffusion 1, 2 and XL with a mask."""
    FLOW = "flow"
    """Transformers trained by flow matching: FLUX, Stable Diffusion 3, Qwen-Image, Z-Image."""


class JobState(StrEnum):
    """The state of a job; those in `ACTIVE` still have work left."""

    SETTLING = "settling"
    WAITING_MASK = "waiting_mask"
    READY = "ready"
    RUNNING = "running"
    PUBLISHING = "publishing"
    SETTING_ASIDE = "setting_aside"
    HOLDING = "holding"
    """Its original is being moved to the review folder."""
    RELEASING = "releasing"
    """A person has decided what becomes of it, and its original is being moved back to the inbox."""
    PUBLISHED = "published"
    ARCHIVED = "archived"
    FAILED = "failed"
    QUARANTINED = "quarantined"
    REVIEW = "review"
    """It lies in the review folder until a person decides."""
    SKIPPED = "skipped"


class Choice(StrEnum):
    """What a person decided about a picture that was held for review."""

    RELEASE = "release"
    """Publish it as it is."""
    WHOLE = "whole"
    """Protect the whole of it."""
    AGAIN = "again"
    """Work it again, with the masks that lie beside it and under the settings of today."""


ACTIVE = frozenset(
    {
        JobState.SETTLING,
        JobState.WAITING_MASK,
        JobState.READY,
        JobState.RUNNING,
        JobState.PUBLISHING,
        JobState.SETTING_ASIDE,
        JobState.HOLDING,
        JobState.RELEASING,
        JobState.PUBLISHED,
    }
)
"""The states with work left; of a published picture the original is still to be archived."""


@dataclass(frozen=True)
class Job:
    """One row of the store: one picture's content under one mask and one configuration.

    Paths are bytes relative to their folder (inbox, outbox): file names need not be UTF-8.
    Digests are lower-case hex SHA-256, None until the content has been read. Times are Unix seconds.
    `lease` grows by one whenever an attempt starts; a worker's reports under an older lease are ignored.
    `choice` is what a person decided about this content after it was held for review.
    """

    id: int
    path: bytes
    state: JobState
    attempts: int = 0
    key: str | None = None
    input_sha256: str | None = None
    mask_sha256: str | None = None
    config_sha256: str | None = None
    output_path: bytes | None = None
    output_sha256: str | None = None
    verdict: Verdict | None = None
    code: str | None = None
    message: str | None = None
    not_before: float = 0.0
    created: float = 0.0
    updated: float = 0.0
    lease: int = 0
    choice: Choice | None = None

    @property
    def name(self) -> str:
        """The path as text for people."""
        return shown(self.path)

    @property
    def needs_acceptance(self) -> bool:
        """Whether it is published and weak, and nobody has accepted that yet.

        Who had a held picture protected after all has not seen its result, and so has not accepted it.
        """
        return (self.state, self.verdict) == (JobState.ARCHIVED, Verdict.WEAK) and not self.is_accepted

    @property
    def is_accepted(self) -> bool:
        """Whether a person had its weak result published, or left it published."""
        is_out = self.state in (JobState.PUBLISHED, JobState.ARCHIVED)
        return is_out and self.verdict == Verdict.WEAK and self.choice == Choice.RELEASE


@dataclass(frozen=True)
class Event:
    """One entry of a job's append-only history."""

    at: float
    state: JobState
    detail: dict[str, Any]


def mask_digest(digests: Sequence[str]) -> str | None:
    """One digest for all mask files of a picture, made from the SHA-256 of each; None if there are none."""
    if len(digests) < 2:
        return digests[0] if digests else None
    return hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in digests)).hexdigest()


def job_key(input_sha256: str, mask_sha256: str | None, config_sha256: str) -> str:
    """The key of a job, made from picture, mask and configuration; file names and seeds derive from it."""
    return hashlib.sha256(f"{input_sha256}:{mask_sha256 or '-'}:{config_sha256}".encode()).hexdigest()
