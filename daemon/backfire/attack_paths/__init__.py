"""How real tools hand a region to their model: which crop, at which size, with which padding and mask.

`get(NAME).calls(mask)` says what a tool hands over for an edit; `hand_over.hand_over` does it to tensors,
and `hand_over.put_back` puts the result back.

The numbers are facts from the tools' own sources, of the versions named; the code is ours. Every entry holds
the settings that its tool starts with. docs/develop/extending.md says how to add one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from backfire import inpaint
from backfire.attack_paths.handed import Handed
from backfire.config import Settings
from backfire.errors import ConfigError
from backfire.registry import Entry, Registry
from backfire.types import Family, Mask


@dataclass(frozen=True)
class Source:
    """Where the facts of a path were read.

    Attributes:
        repository: owner/name on GitHub.
        commit: of the version that was read.
        places: file and function.
    """

    repository: str
    commit: str
    places: tuple[str, ...]

    @property
    def name(self) -> str:
        """For people."""
        return self.repository

    @property
    def link(self) -> str:
        """The version that was read."""
        return f"https://github.com/{self.repository}/tree/{self.commit}"


@dataclass(frozen=True)
class Page:
    """Where the facts of a path were read, for a tool whose source is closed: its manual, or a measurement.

    Attributes:
        link: the page.
        read: the day on which it was read, as such a page changes.
        places: sections of the page.
    """

    link: str
    read: date
    places: tuple[str, ...]

    @property
    def name(self) -> str:
        """For people."""
        return f"{urlsplit(self.link).hostname}, read on {self.read}"


@dataclass(frozen=True, kw_only=True)
class AttackPath(Entry):
    """How one tool hands a region to its model; `target` is a function from the mask to a list of `Handed`.

    Attributes:
        tool: for people.
        hands: what the tool hands over, for people.
        suits: the families of editors that people run in it.
        multiple: divides the height and the width of all that the tool hands over, padding included. It only
            says so, for the tests: the function is what rounds.
        source: where the facts were read.
        options: arguments of the function besides the mask.
        resizes_back: whether the tool returns a picture of the original's size. Others return the model's
            size; `put_back` resizes their result, so that it can be compared.
        squeezes: whether the tool resizes crops without regard to their aspect.
        scales_to_mask: whether the scale at which a part of the picture reaches the model follows from the
            mask, so that an edit of a little more than a region reaches it at another one.
        note: what else a reader of a verdict should know.
    """

    tool: str
    hands: str
    suits: frozenset[Family]
    multiple: int
    source: Source | Page
    options: Mapping[str, Any] = field(default_factory=dict)
    resizes_back: bool = True
    squeezes: bool = False
    scales_to_mask: bool = False
    note: str = ""

    def calls(self, mask: Mask) -> list[Handed]:
        """The calls of the model that the tool makes for one edit, in its order: later results lie on top.

        Args:
            mask: H,W bool of the whole picture, True = repainted.

        Raises:
            ValueError: the mask is no bool plane or has no pixel.
        """
        if mask.ndim != 2 or mask.dtype != np.bool_ or not mask.any():
            got = f"{mask.dtype} of shape {mask.shape} with {np.count_nonzero(mask)} pixels set"
            raise ValueError(f"mask: got {got}, expected H,W bool with a pixel set")
        calls: list[Handed] = self.resolve()(mask, **self.options)
        return calls


_IN = "backfire.attack_paths.tools"
_NO_MASK = "The model gets an instruction and no mask: it makes all of the picture anew."
_REFINES = "Above that the model refines once more what it made, at the region's own size."

_MASKED = frozenset({Family.LATENT, Family.DIFFUSION})
_ERASE = frozenset({Family.ERASE})
_FLOW = frozenset({Family.FLOW})


def _iopaint(*places: str) -> Source:
    base = "iopaint/model/base.py: InpaintModel._crop_box, _pad_forward", "iopaint/helper.py: boxes_from_mask"
    return Source("Sanster/IOPaint", "61a759fb3f332bacdce8b2813f4837495c9b86e0", (*base, *places))


_STITCH = Source(
    "lquesada/ComfyUI-Inpaint-CropAndStitch",
    "3a57816a11eb084f860e3e43e423aa798fbaad65",
    ("inpaint_cropandstitch.py: InpaintCropImproved, GPUProcessorLogic",),
)
_FORGE = Source(
    "lllyasviel/stable-diffusion-webui-forge",
    "dfdcbab685e57677014f05a3309b48cc87383167",
    (
        "modules/processing.py: StableDiffusionProcessingImg2Img.init",
        "modules/masking.py: get_crop_region_v2, expand_crop_region",
        "modules/images.py: resize_image",
    ),
)
_KRITA = Source(
    "Acly/krita-ai-diffusion",
    "0217cd2197fcadbd70d7e63af25e29cc21cb7c8b",
    (
        "ai_diffusion/document.py: create_mask_from_selection",
        "ai_diffusion/backend/resolution.py: compute_bounds, prepare_diffusion_input",
        "ai_diffusion/model/model.py: calc_selection_pre_process",
    ),
)


def _stitch(side: int, suits: frozenset[Family]) -> AttackPath:
    return AttackPath(
        target=f"{_IN}.comfyui:stitch",
        tool=f"ComfyUI with Inpaint Crop and Stitch ({side} px)",
        hands=f"the box of the grown and blurred mask, a tenth larger on each side and square, at {side} px",
        suits=suits,
        multiple=32,
        source=_STITCH,
        options={"side": side},
        scales_to_mask=True,
    )


def _krita(architecture: str, model: str, size: str, suits: frozenset[Family]) -> AttackPath:
    return AttackPath(
        target=f"{_IN}.krita:context",
        tool=f"Krita AI Diffusion with {model}",
        hands=f"the selection with its feather and half its size around it, 512 px at least, at {size}",
        suits=suits,
        multiple=16,
        source=_KRITA,
        options={"architecture": architecture},
        scales_to_mask=True,
        note=_REFINES,
    )


PATHS = Registry(
    "attack path",
    {
        "iopaint": AttackPath(
            target=f"{_IN}.iopaint:crops",
            tool="IOPaint",
            hands="for LaMa, LDM and others, at its own scale: above 800 px a crop for each contour with "
            "128 px around it, else all",
            suits=_ERASE | {Family.LATENT},
            multiple=8,
            source=_iopaint("iopaint/model/lama.py: LaMa"),
        ),
        "iopaint-mat": AttackPath(
            target=f"{_IN}.iopaint:crops",
            tool="IOPaint with MAT",
            hands="the same, mirrored up to a square of a multiple of 512 px",
            suits=_ERASE,
            multiple=512,
            source=_iopaint("iopaint/model/mat.py: MAT"),
            options={"multiple": 512, "least": 512, "square": True},
        ),
        "iopaint-migan": AttackPath(
            target=f"{_IN}.iopaint:migan",
            tool="IOPaint with MI-GAN or FcF",
            hands="the same crops of pictures of any size, at most 512 px, mirrored up to 512 x 512",
            suits=_ERASE,
            multiple=512,
            source=_iopaint("iopaint/model/mi_gan.py: MIGAN.__call__"),
            scales_to_mask=True,
        ),
        "iopaint-sd": AttackPath(
            target=f"{_IN}.iopaint:diffusion",
            tool="IOPaint with Stable Diffusion",
            hands="the whole picture at its own scale, mirrored up to 512 px",
            suits=_MASKED,
            multiple=8,
            source=_iopaint(
                "iopaint/model/base.py: DiffusionInpaintModel", "web_app/src/lib/states.ts: defaultValues"
            ),
        ),
        "comfyui-stitch-512": _stitch(512, _MASKED),
        "comfyui-stitch-1024": _stitch(1024, frozenset({Family.DIFFUSION, Family.FLOW})),
        "forge-whole": AttackPath(
            target=f"{_IN}.forge:whole",
            tool="Forge or A1111 (whole picture)",
            hands="the whole picture squeezed into 512 x 512",
            suits=_MASKED,
            multiple=512,
            source=_FORGE,
            resizes_back=False,
            squeezes=True,
        ),
        "forge-masked": AttackPath(
            target=f"{_IN}.forge:masked",
            tool="Forge or A1111 (only masked)",
            hands="the box of the blurred mask with 32 px around it, made a square, at 512 px",
            suits=_MASKED,
            multiple=512,
            source=_FORGE,
            scales_to_mask=True,
        ),
        "fooocus": AttackPath(
            target=f"{_IN}.fooocus:respective_field",
            tool="Fooocus",
            hands="a square around the mask, grown to 61.8 % of each side of the picture; a million pixels",
            suits=_MASKED,
            multiple=8,
            source=Source(
                "lllyasviel/Fooocus",
                "59f183ab9b8e4a4bbf0fb8bc43886e19e8dfdfae",
                (
                    "modules/inpaint_worker.py: InpaintWorker, compute_initial_abcd, solve_abcd",
                    "modules/util.py: set_image_shape_ceil",
                ),
            ),
            scales_to_mask=True,
            note="The tool enlarges crops of less than 1024 x 1024 pixels by a network; here a filter does.",
        ),
        "krita-sd15": _krita("sd15", "Stable Diffusion 1.5", "512² to 512 x 768 pixels", _MASKED),
        "krita-sdxl": _krita("sdxl", "Stable Diffusion XL", "800² to 1024² pixels", _MASKED),
        "krita-flux": _krita("flux", "FLUX or Z-Image", "512² to 1024² pixels", _FLOW),
        "megapixel-kontext": AttackPath(
            target=f"{_IN}.comfyui:kontext",
            tool="ComfyUI with FLUX Kontext",
            hands="the middle of the picture, at the nearest of 17 sizes of a million pixels",
            suits=_FLOW,
            multiple=16,
            source=Source(
                "comfyanonymous/ComfyUI",
                "145de46334674056f0e1d5c358e392a262a1c65e",
                ("comfy_extras/nodes_flux.py: FluxKontextImageScale", "comfy/utils.py: common_upscale"),
            ),
            resizes_back=False,
            note=_NO_MASK,
        ),
        "megapixel-qwen": AttackPath(
            target=f"{_IN}.comfyui:qwen_edit",
            tool="ComfyUI with Qwen-Image-Edit",
            hands="the whole picture, at a million pixels",
            suits=_FLOW,
            multiple=8,
            source=Source(
                "comfyanonymous/ComfyUI",
                "01ec967e232438d936fcb292cc852e872411f2fb",
                ("comfy_extras/nodes_qwen.py: TextEncodeQwenImageEditPlus",),
            ),
            resizes_back=False,
            note=_NO_MASK,
        ),
    },
)
"""Every attack path by its name."""


def get(name: str, setting: str | None = None) -> AttackPath:
    """The attack path of that name.

    Args:
        setting: the setting that holds the name, for the message.

    Raises:
        ConfigError: there is none; the message names the nearest one.
    """
    return PATHS.require(name, setting)


def suiting(family: Family) -> list[str]:
    """The names of the tools in which people run editors of that family, in the order of the table."""
    return [name for name, path in PATHS.items() if family in path.suits]


USUAL = {
    Family.LATENT: ("iopaint", "comfyui-stitch-512", "forge-whole", "forge-masked"),
    Family.ERASE: ("iopaint",),
    Family.DIFFUSION: ("forge-masked", "forge-whole", "comfyui-stitch-512"),
    Family.FLOW: ("comfyui-stitch-1024",),
}
"""By family, the tools in which a person with such an editor edits by default, the most used one first."""


def of_editors(settings: Settings) -> dict[str, tuple[str, ...]]:
    """By name of each surrogate and held-out editor, the attack paths on which it is judged, see `chosen`.

    Raises:
        ConfigError: as `chosen` does.
    """
    named = None if settings.verify.paths == "auto" else settings.verify.paths
    editors = *settings.protect.surrogates, *settings.verify.held_out
    return {editor: chosen(named, inpaint.family(editor, settings), editor) for editor in editors}


def chosen(paths: Sequence[str] | None, family: Family, editor: str) -> tuple[str, ...]:
    """The attack paths on which an editor is judged, the most important one first.

    Args:
        paths: the names in `verify.paths`; None stands for `auto`.
        family: the editor's.
        editor: its name, for the message.

    Raises:
        ConfigError: there is no path of such a name, or none of them suits the editor.
    """
    if paths is None:
        return USUAL[family]
    found = tuple(name for name in paths if family in get(name, "verify.paths").suits)
    if not found:
        remedy = f"add one of {', '.join(suiting(family))}, or say auto"
        raise ConfigError(f"verify.paths: got {', '.join(paths)}, none of which suits {editor}; {remedy}")
    return found
