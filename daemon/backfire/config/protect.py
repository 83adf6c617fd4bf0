"""The section `protect`, and the settings that each of its strengths stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from backfire.config.renamed import METHODS
from backfire.config.section import Section, Share

_ALL_PATHS = {
    "method": "implant",
    "paths": "all",
    "grids": 2,
    "hide_weight": 1.5,
    "decay": 0.05,
    "coarse_colour_decay": 0.0,
    "stored_start": True,
}
_ONE_PATH = {
    "method": "implant",
    "paths": "first",
    "grids": 1,
    "hide_weight": 8,
    "decay": 0.0,
    "coarse_colour_decay": 0.0,
    "stored_start": False,
}
_BALANCED = _ALL_PATHS | {"epsilon": 12, "colour_share": 0.28, "flat_luma_share": 0.03, "reach_px": 40}
STRENGTHS: dict[str, dict[str, Any]] = {
    "subtle": _ALL_PATHS
    | {"epsilon": 8, "colour_share": 0.5, "flat_luma_share": 0.05, "reach_px": 32, "iterations": 80}
    | {"coarse_colour_decay": 0.6},
    "quick": _BALANCED | {"iterations": 20},
    "balanced": _BALANCED | {"iterations": 100},
    "strong": _ALL_PATHS
    | {"epsilon": 16, "colour_share": 0.32, "flat_luma_share": 0.1, "reach_px": 56, "iterations": 160}
    | {"hide_weight": 2.5, "decay": 0.04},
    "single-path": _ONE_PATH
    | {"epsilon": 5, "colour_share": 1.0, "flat_luma_share": 1.0, "reach_px": 24, "iterations": 80},
    "paper": _ONE_PATH
    | {
        "method": "baseline",
        "epsilon": 6.4,
        "colour_share": 1.0,
        "flat_luma_share": 1.0,
        "reach_px": 4096,
        "iterations": 20,
    },
}
"""The settings of `protect` that each strength stands for; keys that stand beside it win."""

GROWING = "epsilon", "colour_share", "flat_luma_share", "reach_px"
"""The settings that a further round of `protect.escalate` may raise, beside its iterations."""


def resolved(protect: Any) -> Any:
    """The section `protect` as read from YAML, with its strength's values where a key is absent or null."""
    if not isinstance(protect, Mapping):
        return protect  # pydantic words the error
    strength = protect.get("strength")
    stands_for = STRENGTHS[strength] if strength in [*STRENGTHS] else {}
    given = {key: v for key, v in protect.items() if v is not None or key not in STRENGTHS["balanced"]}
    return {**stands_for, **given}


class Protect(Section):
    """How the perturbation is optimised."""

    strength: Literal["subtle", "quick", "balanced", "strong", "single-path", "paper"] = "balanced"
    """A word that gives the settings from `method` to `stored_start` their values where they are null;
    quick is balanced with a fifth of the iterations; single-path, the default before 2026-11-29, optimises
    for one tool alone, and paper is the published baseline."""
    method: str = "implant"
    """The method: implant, encoder, first-step, attention, or baseline, which is the published one."""
    epsilon: Annotated[float, Field(ge=1, le=64)] = 12
    """The budget: how far a pixel may move, in levels of 255; files hold whole levels, so that 6.4 moves
    no pixel by more than 6."""
    iterations: Annotated[int, Field(ge=1, le=10_000)] = 100
    """The iterations for each region."""
    colour_share: Annotated[float, Field(ge=0, le=1)] = 0.28
    """The share of epsilon by which colour (each of Cb and Cr) may move; luma may use all of epsilon except
    in flat areas. 1 in this and `flat_luma_share` is an even budget."""
    flat_luma_share: Annotated[float, Field(gt=0, le=1)] = 0.03
    """The share of epsilon by which luma may move in flat areas, where the eye sees most; at least a fifth
    where luma alone can change, as in grey pictures."""
    reach_px: Annotated[int, Field(ge=16, le=4096)] = 40
    """The pixels around a region that may be changed at least; more breaks more, and shows more."""
    paths: Literal["all", "first"] = "all"
    """Which of the attack paths of `verify.paths` the perturbation is optimised through; first breaks more in
    the first tool and next to nothing in the others, and takes less time."""
    grids: Annotated[int, Field(ge=1, le=4)] = 2
    """How many grids the perturbation is a sum of, each twice as coarse as the one before; coarse ones
    survive scaling, and show more."""
    hide_weight: Annotated[float, Field(ge=0, le=100)] = 1.5
    """How much edits beside the region and further away count in the optimisation, against edits of it."""
    decay: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    """The share of the perturbation that each iteration of implant takes back, so that only those changes
    stay which edits ask for again and again; with more, less is seen, and edits of half of the region break
    less."""
    coarse_colour_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The share of coarse blotches of colour that each iteration takes back beside that, since
    these show on even greys and skies, and fine grain in colour does not; with more, less is seen, and JPEG
    leaves less."""
    stored_start: bool = True
    """Whether to begin with a perturbation that was optimised for the editor once, which saves iterations."""
    reach_share: Share = 0.16
    """How far around a region pixels may be changed at least, as a share of its shorter side; of this and
    `reach_px` the larger counts, up to margin_px."""
    surrogates: Literal["auto"] | tuple[str, ...] = "auto"
    """The editors that the perturbation is optimised against; auto is flux2-mini and every declared or
    published editor whose weights are there and that the method can use, without those of `verify.held_out`.
    Each takes time: `backfire check` says how much."""
    whole_px: Annotated[int, Field(ge=0, le=2048)] = 800
    """The long side, in pixels, up to which a picture is optimised whole, as editors take it; 0 never does,
    which is faster."""
    margin_px: Annotated[int, Field(ge=16, le=1024)] = 128
    """The pixels of context around a region in larger pictures, which is what editors crop."""
    grain_px: Annotated[int, Field(ge=1, le=8)] = 1
    """The side of the squares of pixels that are changed as one; 2 survives scaling better and shows more."""
    stop_early: bool = False
    """Whether to stop as soon as every threshold of `verify` is met with a margin, which is faster and
    leaves less in reserve. The margin is 0.03 of SSIM, 0.01 for edits beside the region, and a tenth of L1
    and of the visible shares."""
    escalate: tuple[Literal["subtle", "balanced", "strong"], ...] = ()
    """The strengths at which to go on, one after the other, where edits of a region do not break with the
    margin of `stop_early`; for example [balanced] after quick, or [balanced, strong]."""
    keep_region_exact: bool = False
    """Whether protected pixels stay as they are, so that only those around them are changed."""
    robust_to: tuple[Literal["masks", "resize", "jpeg", "blur", "chain"], ...] = ()
    """What to optimise through as well, so that the effect survives it: masks that are painted otherwise than
    the region, in tools to whose scale they make no difference; other sizes; JPEG; blur with noise; and a
    chain of JPEG, half size and JPEG. Each costs some of the plain effect."""
    target: Literal["away", "flat", "inverted"] = "away"
    """What edits are driven to: away from the clean edit, a pure colour as published, or the negative."""
    work_px: Annotated[int, Field(ge=256, le=2048, multiple_of=8)] = 800
    """The long side, in pixels, to which larger crops are scaled down for the optimisation."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    """The device: auto, cpu, cuda, or cuda:N for one of several."""
    cpu_fallback: bool = True
    """Whether a picture that is too large for the memory of the GPU is worked on the CPU."""
    attempts: Annotated[int, Field(ge=1, le=20)] = 3
    """The attempts at a picture that kills the worker, before it is set aside."""

    _by_strength = model_validator(mode="before")(resolved)

    @field_validator("surrogates", mode="before")
    @classmethod
    def _some_surrogate(cls, value: Any) -> Any:
        names = isinstance(value, list | tuple) and value and all(isinstance(one, str) for one in value)
        if value != "auto" and not names:
            expected = "expected auto or a list of editors, such as [flux2-mini]"
            raise ValueError(f"protect.surrogates: got {value!r}, {expected}")
        return value

    @field_validator("method")
    @classmethod
    def _present_name(cls, value: str) -> str:
        if value in METHODS:
            raise ValueError(
                f"protect.method: got {value!r}, which is now called {METHODS[value]!r}; write that"
            )
        return value

    @field_validator("robust_to", mode="before")
    @classmethod
    def _paths_apart(cls, value: Any) -> Any:
        if isinstance(value, list | tuple) and "paths" in value:
            raise ValueError("protect.robust_to: got paths, which is now protect.paths: all; write that")
        return value

    @model_validator(mode="after")
    def _published(self) -> Protect:
        if self.method == "baseline" and self.escalate:
            raise ValueError(
                "protect.escalate: got method baseline, which always begins anew, expected another one; "
                "set protect.method: implant, or escalate: [] beside it"
            )
        return self

    def rounds(self) -> list[Protect]:
        """These settings, then those of each further round that `escalate` names.

        A further round has the iterations of its strength, and its budget or that of the round before,
        whichever is more.
        """
        found = [self]
        for strength in self.escalate:
            last, named = found[-1], STRENGTHS[strength]
            more = {name: max(getattr(last, name), named[name]) for name in GROWING}
            # As fine as where so much colour comes from.
            has_more = named["colour_share"] > last.colour_share
            more["coarse_colour_decay"] = (
                named["coarse_colour_decay"] if has_more else last.coarse_colour_decay
            )
            found.append(self.model_copy(update={**more, "iterations": named["iterations"]}))
        return found
