"""The section `regions`: what is protected, with a section for each detector that has settings."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from backfire.config.section import FromFile, Positive, Program, Section, Share


class Sidecars(Section):
    """How the mask files beside a picture are read."""

    protected: Literal["white", "black"] = "white"
    """Which paint of a mask file marks what is protected: bright or dark."""
    threshold: Annotated[int, Field(ge=1, le=255)] = 128
    """The level, of 255, from which a pixel of a mask counts as white; below it, it counts as black."""


class FixedBox(Section):
    """A box that is protected in every picture."""

    box: tuple[float, float, float, float]
    """Left, top, right and bottom of the box, measured from the picture's upper left corner."""
    unit: Literal["relative", "pixels"] = "relative"
    """Whether the box is given in shares of the picture's width and height or in pixels."""
    label: str = "fixed"
    """The name of the region in receipts."""

    @model_validator(mode="after")
    def _sound(self) -> FixedBox:
        left, top, right, bottom = self.box
        most = 1.0 if self.unit == "relative" else math.inf
        if not (0 <= left < right <= most and 0 <= top < bottom <= most):
            raise ValueError(
                f"regions.fixed: got the {self.unit} box {list(self.box)}, expected left < right and "
                f"top < bottom{' within 0..1' if most == 1 else ', none below 0'}; "
                "write [left, top, right, bottom], and unit: pixels where pixels are meant"
            )
        return self


class Faces(Section):
    """The detector `faces`."""

    min_px: Annotated[int, Field(ge=12, le=512)] = 16
    """The side, in pixels, of the smallest face that is looked for; a smaller one takes longer. In
    large pictures none is looked for below 15 px in 6 megapixels, 21 in 12, 29 in 24 and 60 in 100."""
    score_min: Share = 0.9
    """The least score of a face; a lower one finds more faces, and more of what is none."""


class Text(Section):
    """The detectors `text` and `signatures`."""

    score_min: Share = 0.76
    """The least score of a line, which says how surely it was found and how well it can be read."""
    long_px: Annotated[int, Field(ge=1536, le=12_288)] = 1536
    """The long side, in pixels, at which `text` looks at a picture; 3072 finds smaller letters, slowly."""


class Logos(Section):
    """The detector `logos`, which looks for your own logo files."""

    folder: FromFile | None = None
    """The folder of the logo files: PNG (with transparency), JPEG, WebP or TIFF."""
    watermarks: FromFile | None = None
    """The folder of the half-transparent overlays that are looked for too."""


class Command(Section):
    """The detector `command`, a program of your own, run without a shell; see docs/guides/regions.md."""

    argv: Program = ()
    """The program and its arguments; `{picture}` stands for the picture's path."""
    timeout_s: Positive = 60
    """The seconds after which the program is killed with all that it started; fewer than
    `limits.silence_s`."""
    max_bytes: Annotated[int, Field(ge=2)] = 1_000_000
    """The most bytes that the program may print."""


class Onnx(Section):
    """The detector `onnx`, a network of your own that gives boxes; see docs/guides/regions.md."""

    model: FromFile | None = None
    """The network's file."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """The SHA-256 of the file in lower-case hex, if no other file may be used."""
    size_px: Annotated[int, Field(ge=32, le=4096, multiple_of=32)] = 640
    """The side, in pixels, of the network's square input."""
    labels: tuple[str, ...] = ()
    """The names of the network's classes in their order."""
    score_min: Share = 0.4
    """The least score of a box."""


class TorchScript(Onnx):
    """The detector `torchscript`, like `onnx` but for a file that is code; it needs `trust` and `sha256`."""

    trust: bool = False
    """Whether the file's author is trusted: the file may do whatever this process may."""


class Regions(Section):
    """What is protected, and what happens when nothing is found or a detector fails."""

    detectors: tuple[str, ...] = Field(default=("sidecar", "faces"), min_length=1)
    """The detectors that are asked; those that exist are sidecar, metadata, faces, text, signatures, logos,
    fixed, whole, command, onnx and torchscript."""
    none_found: Literal["review", "fail", "pass", "whole"] = "review"
    """What becomes of a picture without a region: it is held in the review folder until a person decides, it
    fails, it is published unchanged and its receipt says so, or the whole of it is protected."""
    on_error: Literal["fail", "skip"] = "fail"
    """What becomes of a picture when a detector fails: it fails, or it goes on without that detector and its
    receipt says so."""
    pad_px: Annotated[int, Field(ge=0, le=512)] = 0
    """The pixels by which every region grows on all sides."""
    merge_px: Annotated[int, Field(ge=0, le=4096)] | None = None
    """The distance, in pixels, below which two regions become one; null keeps all apart."""
    most: Annotated[int, Field(ge=1, le=256)] = 24
    """The most regions of a picture; where more are found, neighbours are joined."""
    fixed: tuple[FixedBox, ...] = ()
    """Boxes for the detector `fixed`, such as {box: [0.8, 0.9, 1, 1], label: bug}: left, top, right and
    bottom in shares of the picture, or in pixels with `unit: pixels`."""
    sidecar: Sidecars = Sidecars()
    faces: Faces = Faces()
    text: Text = Text()
    logos: Logos = Logos()
    command: Command = Command()
    onnx: Onnx = Onnx()
    torchscript: TorchScript = TorchScript()
