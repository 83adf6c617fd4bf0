"""The attack paths by the names of the tools: how each hands the region of an edit to its model.

The numbers are facts from the tools' own sources, of the versions named; the code is ours. Every entry holds
the settings that its tool starts with. A path does not know what the model does with what it gets.

To add one: a function from the mask to what the tool hands over, an entry in `PATHS`, and rows of numbers
from the tool's own code in the tests. The contract tests take every entry by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

import numpy as np
from scipy import ndimage

from backfire.attack_paths.handed import Handed, MaskRule, Padding
from backfire.attack_paths.resampling import Beyond
from backfire.attack_paths.softening import (
    AtLeast,
    Doubled,
    Filled,
    Gaussian,
    Grown,
    Linear,
    Positive,
    Ramp,
    Shrunk,
    filled,
    softened,
)
from backfire.types import Box, Mask


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


@dataclass(frozen=True)
class Source:
    """Where the facts of a path were read.

    Attributes:
        repository: owner/name on GitHub.
        commit, date: of the version that was read.
        places: file and function.
    """

    repository: str
    commit: str
    date: str
    places: tuple[str, ...]


@dataclass(frozen=True)
class AttackPath:
    """How one tool hands a region to its model.

    Attributes:
        name: for the configuration and receipts.
        tool: for people.
        suits: the families of editors that people run in it.
        multiple: heights and widths that the model gets are multiples of it.
        resizes_back: whether the tool returns a picture of the original's size. Others return the model's
            size; `put_back` resizes their result, so that it can be compared.
        source: where the facts were read.
        note: what else a reader of a verdict should know.
    """

    name: str
    tool: str
    suits: frozenset[Family]
    multiple: int
    source: Source
    hands: Callable[[Mask], list[Handed]]
    resizes_back: bool = True
    note: str = ""

    def handed(self, mask: Mask) -> list[Handed]:
        """The calls of the model that the tool makes for one edit, in its order: later results lie on top.

        Args:
            mask: H,W bool of the whole picture, True = repainted.

        Raises:
            ValueError: the mask is no bool plane or has no pixel.
        """
        if mask.ndim != 2 or mask.dtype != np.bool_ or not mask.any():
            raise ValueError(
                f"mask: got {mask.dtype} of shape {mask.shape}, {np.count_nonzero(mask)} set, "
                "expected H,W bool with a pixel set"
            )
        return self.hands(mask)


def _moved_inside(start: int, length: int, size: int) -> tuple[int, int]:
    """A stretch moved into [0, size); all of it where the stretch is longer."""
    if length >= size:
        return 0, size
    start = min(max(start, 0), size - length)
    return start, start + length


def _up(value: int, multiple: int) -> int:
    """The next multiple that is not smaller."""
    return -(-value // multiple) * multiple


# IOPaint

CROPS_ABOVE = 800
"""Pictures with a longer side than this are cropped (`hd_strategy_crop_trigger_size`)."""
MARGIN = 128
"""Around the mask, on each side (`hd_strategy_crop_margin`)."""


def _contours(mask: Mask) -> list[Box]:
    """The boxes of the mask's outer contours, the lowest first, as OpenCV lists them.

    Pixels that touch at a corner belong together; what lies in a hole has no contour of its own.
    """
    at = Box.around(mask)
    labels, _ = ndimage.label(filled(mask[at.slices]), np.ones((3, 3)))
    boxes = [
        Box(at.left + columns.start, at.top + rows.start, at.left + columns.stop, at.top + rows.stop)
        for rows, columns in ndimage.find_objects(labels)
    ]
    return boxes[::-1]


def _around(box: Box, mask: Mask) -> Box:
    """The crop around a contour: what a border takes from one side is added to the other.

    The centre and half the width are rounded down, so that odd widths lose a pixel.
    """
    height, width = mask.shape
    across, down = (box.width + 2 * MARGIN) // 2, (box.height + 2 * MARGIN) // 2
    left, right = _moved_inside((box.left + box.right) // 2 - across, 2 * across, width)
    top, bottom = _moved_inside((box.top + box.bottom) // 2 - down, 2 * down, height)
    return Box(left, top, right, bottom)


def _padded(mask: Mask, box: Box, multiple: int, least: int, square: bool, rule: MaskRule) -> Handed:
    """A crop at its own scale, mirrored at the right and at the bottom up to what the model takes."""
    height, width = max(_up(box.height, multiple), least), max(_up(box.width, multiple), least)
    if square:
        height = width = max(height, width)
    padding = Padding(right=width - box.width, bottom=height - box.height)
    return Handed(mask, box, (box.height, box.width), padding=padding, rule=rule)


def _iopaint(mask: Mask, *, multiple: int = 8, least: int = 0, square: bool = False) -> list[Handed]:
    height, width = mask.shape
    whole = Box(0, 0, width, height)
    boxes = [_around(box, mask) for box in _contours(mask)] if max(mask.shape) > CROPS_ABOVE else [whole]
    return [_padded(mask, box, multiple, least, square, MaskRule()) for box in boxes]


def _iopaint_migan(mask: Mask, *, side: int = 512) -> list[Handed]:
    """Crops at every size of picture but one that fits exactly, and scales crops down to `side`."""
    if mask.shape == (side, side):
        return _iopaint(mask, multiple=side, least=side, square=True)
    handed = []
    for contour in _contours(mask):
        box = _around(contour, mask)
        ratio = min(side / max(box.height, box.width), 1)
        scaled = int(box.height * ratio + 0.5), int(box.width * ratio + 0.5)
        padding = Padding(right=side - scaled[1], bottom=side - scaled[0])
        handed.append(Handed(mask, box, scaled, "cv2-cubic", "cv2-cubic", "cv2-cubic", padding))
    return handed


def _iopaint_sd(mask: Mask) -> list[Handed]:
    """The whole picture at its own scale. The mask is blurred by 12 px for blending, not for the model."""
    whole = Box(0, 0, mask.shape[1], mask.shape[0])
    rule = MaskRule(blend=(Gaussian(sigma=0.3 * (12 - 1) + 0.8, radius=12),))
    return [_padded(mask, whole, 8, 512, False, rule)]


# ComfyUI Inpaint Crop and Stitch


def _stitch(mask: Mask, *, side: int) -> list[Handed]:
    """The box of the mask, filled, grown and blurred; a tenth larger on each side, then a square."""
    height, width = mask.shape
    blur = Gaussian(sigma=4, radius=16, beyond="constant")
    rule = MaskRule((Filled(), Grown(6), blur, AtLeast(0.1)), (blur,), blend_scaled=True, beyond=True)
    plane, at = softened(mask, rule.picture)
    box = Box.around(plane > 0)
    # Single precision, halves to even: the node computes the growth with torch.
    down, across = (int(np.rint(np.float32(x) * np.float32(0.2) / 2)) for x in (box.height, box.width))
    left, right = max(at.left + box.left - across, 0), min(at.left + box.right + across, width)
    top, bottom = max(at.top + box.top - down, 0), min(at.top + box.bottom + down, height)
    if right - left < bottom - top:
        left, right = _squared(left, right - left, bottom - top, width)
    else:
        top, bottom = _squared(top, bottom - top, right - left, height)
    box = Box(left, top, right, bottom)
    smaller, larger = "pil-bilinear", "pil-bicubic"
    given = larger if side > box.width or side > box.height else smaller
    back = larger if box.width > side or box.height > side else smaller
    return [Handed(mask, box, (side, side), given, back, given, rule=rule)]


def _squared(start: int, length: int, wanted: int, size: int) -> tuple[int, int]:
    """A stretch grown to `wanted`, moved into the picture; it exceeds both ends of one that is too small."""
    if wanted > size:
        start = -((wanted - size) // 2)
        return start, start + wanted
    return _moved_inside(start - (wanted - length) // 2, wanted, size)


# Forge and A1111

FORGE_BLUR = Gaussian(sigma=4, radius=10, eight_bit=True)
"""`Mask blur` 4: OpenCV's kernel of 21 pixels, columns after rows in 8 bits."""


def _forge_whole(mask: Mask, *, side: int = 512) -> list[Handed]:
    """The whole picture is resized to the working size whatever its aspect (`Just resize`)."""
    whole = Box(0, 0, mask.shape[1], mask.shape[0])
    rule = MaskRule(picture=(FORGE_BLUR,), blend=(Doubled(),), blend_scaled=True)
    return [Handed(mask, whole, (side, side), rule=rule)]


def _forge_masked(mask: Mask, *, side: int = 512, margin: int = 32) -> list[Handed]:
    """The box of the blurred mask and `margin` px around it, grown to a square, moved into the picture."""
    height, width = mask.shape
    plane, at = softened(mask, (FORGE_BLUR,))
    box = Box.around(plane > 0)
    box = Box(at.left + box.left, at.top + box.top, at.left + box.right, at.top + box.bottom)
    box = box.grown(margin, width, height)
    longer = max(box.width, box.height)
    if box.width > box.height:
        top, bottom = _moved_inside(box.top - (longer - box.height) // 2, longer, height)
        box = box._replace(top=top, bottom=bottom)
    else:
        left, right = _moved_inside(box.left - (longer - box.width) // 2, longer, width)
        box = box._replace(left=left, right=right)
    # A picture that is too small for a square is fitted into one; its border fills the rest.
    across = max(min(box.width * side // box.height, side), 1)
    down = max(min(box.height * side // box.width, side), 1)
    left, top = side // 2 - across // 2, side // 2 - down // 2
    padding = Padding(left, top, side - left - across, side - top - down, Beyond.EXTRAPOLATED)
    rule = MaskRule(picture=(FORGE_BLUR,), blend=(FORGE_BLUR,))
    return [Handed(mask, box, (down, across), padding=padding, rule=rule)]


# Fooocus

FIELD = 0.618
"""`Inpaint Respective Field`: the share of the picture's height and of its width that a crop has at least."""


def _fooocus(mask: Mask, *, side: int = 1024) -> list[Handed]:
    """A square around the mask, grown until it covers 61.8 % of either side, at about 1024 squared pixels."""
    height, width = mask.shape
    found = Box.around(mask)
    down, across = found.height - 1, found.width - 1
    reach = int(max(down // 2, across // 2) * 1.15)
    row, column = (2 * found.top + down) // 2, (2 * found.left + across) // 2
    top, bottom = max(row - reach, 0), min(row + reach + 1, height)
    left, right = max(column - reach, 0), min(column + reach + 1, width)
    while bottom - top < height * FIELD or right - left < width * FIELD:
        flat = bottom - top < right - left
        grows_down, grows_across = flat, not flat
        grows_across |= bottom - top == height
        grows_down |= right - left == width
        if grows_down:
            top, bottom = max(top - 1, 0), min(bottom + 1, height)
        if grows_across:
            left, right = max(left - 1, 0), min(right + 1, width)
    box = Box(left, top, right, bottom)
    return [Handed(mask, box, _fooocus_size(box.height, box.width, side), rule=MaskRule(blend=(Ramp(),)))]


def _fooocus_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Multiples of 64 with about the area of a square of `side`; of 8 where the crop has that area already.

    The tool cuts up to 7 pixels off the latter, we resize.
    """

    def rounded(down: int, across: int) -> int:
        return math.ceil(math.sqrt(down * across) / 64) * 64

    if rounded(height, width) < side:
        height, width = 4 * height, 4 * width  # a network enlarges it first
    for _ in range(256):
        factor = side / rounded(height, width)
        if factor == 1:
            break
        height = max(round(height * factor / 64), 1) * 64
        width = max(round(width * factor / 64), 1) * 64
    return max(height // 8, 1) * 8, max(width // 8, 1) * 8


# Krita AI Diffusion


@dataclass(frozen=True)
class _Checkpoint:
    """Sizes that Krita gives models of an architecture, when it inpaints: sides, then areas in pixels."""

    least: int
    most: int
    least_area: int
    most_area: int


SD15 = _Checkpoint(512, 768, 512**2, 512 * 768)
SDXL = _Checkpoint(640, 1280, 800**2, 1024**2)
FLUX = _Checkpoint(640, 1280, 512**2, 1024**2)


def _krita(mask: Mask, *, checkpoint: _Checkpoint) -> list[Handed]:
    """The selection with its feather, then context around it: at least 512 px, squarer than the selection."""
    height, width = mask.shape
    found = Box.around(mask)
    diagonal = math.sqrt(found.width**2 + found.height**2)
    feather = min(max(int(0.10 * diagonal), 32), 499)
    around = _krita_padded(found, mask, feather + 4 + int(0.06 * diagonal), least=256, multiple=16)
    context = max(max(height, width) // 16, (around.width + around.height) // 2 // 2)
    box = _krita_padded(around, mask, context, least=512, multiple=8, square=True)
    soft = Grown(4 + feather // 2), Linear(feather // 2)
    last = Gaussian(sigma=0.3 * (25 - 1) + 0.8, radius=12)
    rule = MaskRule(picture=soft, blend=(*soft, Positive(), Shrunk(12), last))
    size = _krita_size(box.height, box.width, checkpoint)
    given = "area" if size[0] * size[1] < box.height * box.width else "pil-lanczos"
    return [Handed(mask, box, size, given, mask_by="torch-bilinear", rule=rule)]


def _krita_padded(
    box: Box, mask: Mask, margin: int, *, least: int, multiple: int, square: bool = False
) -> Box:
    """A box with a margin, at least so large and of a multiple, moved into the picture."""
    height, width = mask.shape
    across = down = margin
    if square and box.width > box.height:
        across = max(margin // 2, margin - (box.width - box.height) // 2)
    elif square:
        down = max(margin // 2, margin - (box.height - box.width) // 2)
    wide = _up(max(box.width + 2 * across, least), multiple)
    high = _up(max(box.height + 2 * down, least), multiple)
    left, right = _moved_inside(box.left - (wide - box.width) // 2, wide, width)
    top, bottom = _moved_inside(box.top - (high - box.height) // 2, high, height)
    return Box(left, top, right, bottom)


def _krita_size(height: int, width: int, checkpoint: _Checkpoint) -> tuple[int, int]:
    """The size of the first pass; one above it only refines what the first pass made."""
    most = 6e6
    if height * width > int(most * 1.05):
        shrunk = math.sqrt(most / (height * width))
        height, width = round(height * shrunk), round(width * shrunk)
    larger = math.sqrt(checkpoint.least_area / (height * width))
    smaller = math.sqrt(checkpoint.most_area / (height * width))
    factor = 1.0
    if smaller < 0.9 and max(height, width) > checkpoint.most:
        factor = smaller
    elif larger > 1 and max(height, width) < checkpoint.least:
        factor = larger
    return _up(round(height * factor), 16), _up(round(width * factor), 16)


# Editors that take an instruction instead of a mask

KONTEXT = (
    (672, 1568),
    (688, 1504),
    (720, 1456),
    (752, 1392),
    (800, 1328),
    (832, 1248),
    (880, 1184),
    (944, 1104),
    (1024, 1024),
)
"""The sizes (short, long) that FLUX Kontext was trained on."""


def _kontext(mask: Mask) -> list[Handed]:
    """The middle of the picture with the aspect of the nearest size, resized to it."""
    height, width = mask.shape
    sizes = [*KONTEXT, *(size[::-1] for size in KONTEXT[:-1])]
    _, across, down = min((abs(width / height - w / h), w, h) for w, h in sizes)
    have, want = width / height, across / down
    column = round((width - width * (want / have)) / 2) if have > want else 0
    row = round((height - height * (have / want)) / 2) if have < want else 0
    box = Box(column, row, width - column, height - row)
    return [Handed(mask, box, (down, across), rule=MaskRule(everything=True))]


def _qwen_edit(mask: Mask) -> list[Handed]:
    """The whole picture resized to a million pixels, sides of multiples of 8."""
    height, width = mask.shape
    scale = math.sqrt(1024 * 1024 / (height * width))
    size = max(round(height * scale / 8), 1) * 8, max(round(width * scale / 8), 1) * 8
    whole = Box(0, 0, width, height)
    return [Handed(mask, whole, size, "torch-area", rule=MaskRule(everything=True))]


def _read(repository: str, commit: str, date: str) -> Callable[..., Source]:
    return lambda *places: Source(repository, commit, date, places)


_IOPAINT = _read("Sanster/IOPaint", "61a759fb3f332bacdce8b2813f4837495c9b86e0", "2025-04-29")
_CROP_AND_STITCH = _read(
    "lquesada/ComfyUI-Inpaint-CropAndStitch", "3a57816a11eb084f860e3e43e423aa798fbaad65", "2026-03-08"
)
_FORGE = _read(
    "lllyasviel/stable-diffusion-webui-forge", "dfdcbab685e57677014f05a3309b48cc87383167", "2025-06-26"
)
_FOOOCUS = _read("lllyasviel/Fooocus", "59f183ab9b8e4a4bbf0fb8bc43886e19e8dfdfae", "2025-01-24")
_KRITA = _read("Acly/krita-ai-diffusion", "0217cd2197fcadbd70d7e63af25e29cc21cb7c8b", "2026-08-22")
_COMFYUI = "comfyanonymous/ComfyUI"

_NO_MASK = "The model gets an instruction and no mask: all of the picture is made anew, not the region alone."
_RETURNS_SMALL = "The tool returns the working size; the result is resized here to compare it."
_REFINES = "A larger result is refined by the model once more from what it made here, not from the picture."

_ERASE_IN_IOPAINT = (
    "iopaint/model/base.py: InpaintModel.__call__, _crop_box, _pad_forward",
    "iopaint/helper.py: boxes_from_mask, pad_img_to_modulo",
)
_MASKED = frozenset({Family.LATENT, Family.DIFFUSION})


def _table(paths: Sequence[AttackPath]) -> dict[str, AttackPath]:
    return {path.name: path for path in paths}


PATHS = _table(
    [
        AttackPath(
            "iopaint",
            "IOPaint with LaMa or LDM",
            frozenset({Family.LATENT, Family.ERASE}),
            8,
            _IOPAINT(*_ERASE_IN_IOPAINT),
            _iopaint,
        ),
        AttackPath(
            "iopaint-mat",
            "IOPaint with MAT",
            frozenset({Family.ERASE}),
            512,
            _IOPAINT(*_ERASE_IN_IOPAINT, "iopaint/model/mat.py: MAT"),
            partial(_iopaint, multiple=512, least=512, square=True),
        ),
        AttackPath(
            "iopaint-migan",
            "IOPaint with MI-GAN or FcF",
            frozenset({Family.ERASE}),
            512,
            _IOPAINT(*_ERASE_IN_IOPAINT, "iopaint/model/mi_gan.py: MIGAN.__call__"),
            _iopaint_migan,
        ),
        AttackPath(
            "iopaint-sd",
            "IOPaint with Stable Diffusion",
            _MASKED,
            8,
            _IOPAINT(
                "iopaint/model/base.py: DiffusionInpaintModel",
                "iopaint/model/sd.py: SD.forward",
                "web_app/src/lib/states.ts: defaultValues",
            ),
            _iopaint_sd,
        ),
        AttackPath(
            "comfyui-stitch-512",
            "ComfyUI with Inpaint Crop and Stitch at 512 px",
            _MASKED,
            32,
            _CROP_AND_STITCH("inpaint_cropandstitch.py: InpaintCropImproved, GPUProcessorLogic"),
            partial(_stitch, side=512),
        ),
        AttackPath(
            "comfyui-stitch-1024",
            "ComfyUI with Inpaint Crop and Stitch at 1024 px",
            frozenset({Family.DIFFUSION, Family.FLOW}),
            32,
            _CROP_AND_STITCH("inpaint_cropandstitch.py: InpaintCropImproved, GPUProcessorLogic"),
            partial(_stitch, side=1024),
        ),
        AttackPath(
            "forge-whole",
            "Forge or A1111, inpaint area: whole picture",
            _MASKED,
            512,
            _FORGE(
                "modules/processing.py: StableDiffusionProcessingImg2Img.init",
                "modules/images.py: resize_image",
                "modules/ui.py: img2img",
            ),
            _forge_whole,
            resizes_back=False,
            note=_RETURNS_SMALL,
        ),
        AttackPath(
            "forge-masked",
            "Forge or A1111, inpaint area: only masked",
            _MASKED,
            512,
            _FORGE(
                "modules/processing.py: StableDiffusionProcessingImg2Img.init, apply_overlay",
                "modules/masking.py: get_crop_region_v2, expand_crop_region",
                "modules/images.py: resize_image",
            ),
            _forge_masked,
        ),
        AttackPath(
            "fooocus",
            "Fooocus, inpaint",
            _MASKED,
            8,
            _FOOOCUS(
                "modules/inpaint_worker.py: InpaintWorker, compute_initial_abcd, solve_abcd",
                "modules/util.py: set_image_shape_ceil",
            ),
            _fooocus,
            note="The tool enlarges crops of less than 1024 x 1024 pixels by a network; here a filter does.",
        ),
        AttackPath(
            "krita-sd15",
            "Krita AI Diffusion with Stable Diffusion 1.5",
            _MASKED,
            16,
            _KRITA(
                "ai_diffusion/document.py: create_mask_from_selection",
                "ai_diffusion/backend/resolution.py: compute_bounds, prepare_diffusion_input",
                "ai_diffusion/model/model.py: calc_selection_pre_process",
            ),
            partial(_krita, checkpoint=SD15),
            note=_REFINES,
        ),
        AttackPath(
            "krita-sdxl",
            "Krita AI Diffusion with Stable Diffusion XL",
            _MASKED,
            16,
            _KRITA("ai_diffusion/backend/resolution.py: CheckpointResolution.compute"),
            partial(_krita, checkpoint=SDXL),
            note=_REFINES,
        ),
        AttackPath(
            "krita-flux",
            "Krita AI Diffusion with FLUX or Z-Image",
            frozenset({Family.FLOW}),
            16,
            _KRITA("ai_diffusion/backend/resolution.py: CheckpointResolution.compute"),
            partial(_krita, checkpoint=FLUX),
            note=_REFINES,
        ),
        AttackPath(
            "megapixel-kontext",
            "ComfyUI with FLUX Kontext",
            frozenset({Family.FLOW}),
            16,
            Source(
                _COMFYUI,
                "145de46334674056f0e1d5c358e392a262a1c65e",
                "",
                ("comfy_extras/nodes_flux.py: FluxKontextImageScale", "comfy/utils.py: common_upscale"),
            ),
            _kontext,
            resizes_back=False,
            note=_NO_MASK,
        ),
        AttackPath(
            "megapixel-qwen",
            "ComfyUI with Qwen-Image-Edit",
            frozenset({Family.FLOW}),
            8,
            Source(
                _COMFYUI,
                "01ec967e232438d936fcb292cc852e872411f2fb",
                "",
                ("comfy_extras/nodes_qwen.py: TextEncodeQwenImageEditPlus",),
            ),
            _qwen_edit,
            resizes_back=False,
            note=_NO_MASK,
        ),
    ]
)
"""Every attack path by its name."""
