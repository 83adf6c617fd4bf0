"""What the configuration may say of an editor besides `kind`, `weights` and `dtype`, by kind.

Values in a YAML file may be anything, so each object checks its own, and one that exists is valid. Importing
this module loads no torch: a wrong option is refused at the start, where no weights are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from backfire.errors import ConfigError, require


def _texts(value: Any) -> bool:
    return isinstance(value, Sequence) and bool(value) and all(isinstance(text, str) for text in value)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


Check = tuple[Callable[[Any], bool], str]
_TEXT: Check = (lambda value: isinstance(value, str), "a text")

_CHECKS: dict[str, Check] = {
    "prompts": (_texts, "a list of texts"),
    "negative": _TEXT,
    "steps": (lambda value: type(value) is int and value >= 1, "a whole number from 1"),
    "guidance": (lambda value: _number(value) and value >= 0, "a number from 0"),
    "strength": (lambda value: _number(value) and 0 < value <= 1, "a number above 0, up to 1"),
    "mask_blur": (lambda value: type(value) is int and value >= 0, "whole pixels from 0"),
    "offload": (lambda value: isinstance(value, bool), "true or false"),
    "variant": _TEXT,
    "multiple": (lambda value: type(value) is int and value >= 1, "whole pixels from 1"),
}
"""By option: whether a value is one, and what is expected."""


@dataclass(frozen=True)
class Options:
    """The options of one kind; subclasses are frozen dataclasses with a default for each.

    Raises:
        ConfigError: at construction, if a value has a wrong type or is out of range. The message begins with
            the option's name.
    """

    dtypes: ClassVar[tuple[str, ...]] = ()
    """What `dtype` may be, if it is an option."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "dtype":
                require(str(value), self.dtypes, "dtype")
            elif field.name in _CHECKS and not (value is None and field.default is None):
                holds, expected = _CHECKS[field.name]
                if not holds(value):
                    raise ConfigError(f"{field.name}: got {value!r}, expected {expected}")


@dataclass(frozen=True)
class DiffusionOptions(Options):
    """How a Stable Diffusion pipeline paints.

    Attributes:
        prompts: the prompts, '' for none. They are embedded once, and the text encoders are then freed.
        negative: the negative prompt.
        steps: the denoising steps of an edit.
        guidance: the guidance scale. Up to 1, or if prompt and negative prompt have the same embedding, there
            is no guidance, which halves the work.
        dtype: the number format. Under float16 the autoencoder stays in float32 unless its configuration says
            that it does not overflow.
        mask_blur: the pixels by which the mask is blurred (a Gaussian kernel of 2 * mask_blur + 1) before it
            is thresholded at one half and given to the pipeline. Sharp corners and thin strokes of the mask
            are then neither repainted nor hidden. 0 gives the mask itself, as IOPaint does: its own blur
            only softens the seam where the edit is put back.
        variant: the variant of the files, such as `fp16`.
    """

    dtypes: ClassVar[tuple[str, ...]] = ("float32", "bfloat16", "float16")

    prompts: str | Sequence[str] = ("",)
    negative: str = ""
    steps: int = 20
    guidance: float = 7.5
    dtype: str = "float32"
    mask_blur: int = 0
    variant: str | None = None


@dataclass(frozen=True)
class FlowOptions(Options):
    """How a pipeline on a flow schedule paints. None: what suits the pipeline.

    Attributes:
        prompts, mask_blur, variant: as in `DiffusionOptions`.
        negative: the negative prompt, for pipelines that are guided by one.
        steps: the steps of the schedule.
        guidance: the guidance scale, which FLUX.1 takes as a number and others by a second pass.
        strength: the share of the steps that is taken.
        dtype: the number format.
        offload: keep the transformer's blocks in the host's memory and copy each to the device in use.
    """

    dtypes: ClassVar[tuple[str, ...]] = ("bfloat16", "float32")

    prompts: str | Sequence[str] = ("",)
    negative: str = ""
    steps: int | None = None
    guidance: float | None = None
    strength: float | None = None
    dtype: str = "bfloat16"
    mask_blur: int = 0
    offload: bool = False
    variant: str | None = None


@dataclass(frozen=True)
class ScriptedOptions(Options):
    """When a model in one file, which is code, is run, and how.

    Attributes:
        sha256, trust: the file's digest in hex, and true, because the file's author may do anything in this
            process. Whoever loads the file checks both.
        multiple: height and width are padded to a multiple of this.
    """

    sha256: object = None
    trust: object = False
    multiple: int = 8


def listed(prompts: str | Sequence[str]) -> list[str]:
    """The prompts as a list, where one alone may be a text."""
    return [prompts] if isinstance(prompts, str) else list(prompts)
