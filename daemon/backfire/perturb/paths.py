"""What editors are given of each region while a picture is optimised: the attack paths, as inputs.

The tools themselves are described in `attack_paths`; here what they hand over becomes something that a
perturbation of a crop is placed in, differentiably.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from backfire import attack_paths
from backfire.attack_paths import variants
from backfire.attack_paths.cropping import Crop
from backfire.attack_paths.hand_over import handing_over
from backfire.attack_paths.handed import MOST_CALLS, Handed
from backfire.attack_paths.tensors import crop_tensor, given_pictures, to_tensor
from backfire.perturb.methods.base import EditorInput
from backfire.perturb.transforms import chained, half_of
from backfire.types import Box, Mask, Region, Rgb

CROPPED_AS = "iopaint"
"""The tool as which crops are planned: with `protect.paths: first` a crop stands for what it hands over."""


@dataclass(eq=False)
class Paths:
    """The attack paths on which the regions of a picture may reach an editor.

    Those are the tools' own, or the crops themselves, and sizes to be robust to, see `variants`.

    Attributes:
        rgb: uint8 H,W,3, the picture.
        crops: all crops of it.
        robust_to: `protect.robust_to`.
        through: the names of the attack paths by surrogate, its first one before others; the crop itself
            takes their place where there are none. Each surrogate is
            looked at on its own paths alone, as the verdict does. On those that are not its first and scale
            to the mask only the edit of the region is looked at: others would reach the model at other
            scales, and looked at in the region's own crop they hold up its edit.
        work_px: the long side, in pixels, at which what tools hand over at its own scale is worked at most.
        first_alone: whether the first path of each surrogate is the only one. Where that is `CROPPED_AS`, it
            is the crop itself, in which all regions of a crop are seen alike.
    """

    rgb: Rgb
    crops: Sequence[Crop]
    robust_to: Sequence[str]
    through: Sequence[Sequence[str]]
    device: torch.device
    work_px: int = 800
    first_alone: bool = False
    _whole: Tensor | None = field(default=None, init=False)
    _pictures: dict[Hashable, Tensor] = field(default_factory=dict, init=False)

    def of(self, region: Region, crop: Crop, rng: np.random.Generator) -> list[list[EditorInput]]:
        height, width = self.rgb.shape[:2]
        everything = [one for other in self.crops for one in other.regions]
        resized = variants.for_optimiser(region, crop, everything, height, width, self.robust_to, rng)
        tools = self._tools(region, crop) or [
            replace(_cropped(self.rgb, crop, region, self.device), first=True)
        ]
        others = [self._input(crop, one) for one in resized]
        if "chain" in self.robust_to:
            others.append(self._chained(region, crop, everything))
        groups = [tools, others]
        return [group for group in groups if group]

    def _tools(self, region: Region, crop: Crop) -> list[EditorInput]:
        """What each tool hands over, once for the surrogates of which it is the first and once for others."""
        inputs: dict[str, list[EditorInput]] = {}

        def edits(name: str) -> bool:
            if name not in inputs:
                inputs[name] = self._inputs(name, region, crop)
            return bool(inputs[name])

        users: dict[tuple[str, bool], list[int]] = {}
        for index, paths in enumerate(self.through):
            # As the verdict does, which asks most of the first tool that edits anything of the region.
            own = filter(edits, paths)
            for number, name in enumerate(islice(own, 1) if self.first_alone else own):
                users.setdefault((name, number == 0), []).append(index)
        found, further = list[EditorInput](), list[EditorInput]()
        for (name, first), surrogates in users.items():
            alone = attack_paths.get(name).scales_to_mask and not first
            one, *others = (
                replace(given, first=first, alone=alone, surrogates=tuple(surrogates))
                for given in inputs[name]
            )
            found.append(one)
            further += others
        # Last, since regions share what is remembered of their paths by place, and few have several contours.
        return found + further

    def _input(self, crop: Crop, variant: Crop) -> EditorInput:
        rows, columns = (torch.from_numpy(axis).to(self.device) for axis in variants.placement(crop, variant))

        def place(perturbation: Tensor) -> Tensor:
            return rows @ perturbation @ columns.T

        return EditorInput(self._tensor(variant), variant.masks()[0], variant.protected(), place)

    def _chained(self, region: Region, crop: Crop, everything: Sequence[Region]) -> EditorInput:
        """The surroundings of a region after `transforms.chained`, which halves them."""
        height, width = self.rgb.shape[:2]
        whole = variants.surroundings(region, crop, everything, height, width)
        given = self._input(crop, whole)
        half = replace(whole, size=(half_of(whole.size[0]), half_of(whole.size[1])))
        return EditorInput(
            chained(given.image),
            half.masks()[0],
            half.protected(),
            given.place,
            before=chained,
            untouched=given.image,
        )

    @cached_property
    def _protected(self) -> Mask:
        """H,W bool: every region of the picture."""
        height, width = self.rgb.shape[:2]
        together = np.zeros((height, width), np.bool_)
        for crop in self.crops:
            for one in crop.regions:
                together |= one.plane(height, width)
        return together

    def _inputs(self, name: str, region: Region, crop: Crop) -> list[EditorInput]:
        """What a tool hands over for an edit of the region: an input for each call that the verdict follows.

        The worst of them counts there. A mask may have thousands of contours, and what the model gets of each
        takes time and memory.
        """
        if self.first_alone and name == CROPPED_AS:
            return [_cropped(self.rgb, crop, region, self.device)]
        calls = attack_paths.get(name).calls(region.plane(*self.rgb.shape[:2]))
        ranked = sorted(calls, key=lambda one: -one.edited_pixels)
        found = (self._called(one, region, crop) for one in ranked)
        return [*islice((one for one in found if one is not None), MOST_CALLS)]

    def _called(self, handed: Handed, region: Region, crop: Crop) -> EditorInput | None:
        """What the model gets in one call; None where that repaints nothing."""
        if handed.box == crop.box and handed.filters is None:
            return _cropped(self.rgb, crop, region, self.device)
        handed = handed.at_most(self.work_px)
        if not handed.repaints:
            return None
        protected = replace(handed, edited=self._protected).mask | handed.mask
        return EditorInput(
            self._picture(handed), handed.mask, protected, handing_over(handed, crop.box, crop.size)
        )

    def _picture(self, handed: Handed) -> Tensor:
        """What the model gets; of the whole picture it is the same for all regions, and kept."""
        if handed.inside != Box(0, 0, self.rgb.shape[1], self.rgb.shape[0]):
            return given_pictures([self.rgb], handed, self.device)
        key = handed.box, handed.scaled, handed.filters, handed.padding, handed.outside
        if key not in self._pictures:
            self._pictures[key] = given_pictures([self.rgb], handed, self.device)
        return self._pictures[key]

    def _tensor(self, variant: Crop) -> Tensor:
        """The whole picture is scaled once for all regions, as it may be a hundred megapixels."""
        if (variant.box.height, variant.box.width) != self.rgb.shape[:2]:
            return crop_tensor(self.rgb, variant, self.device)
        if self._whole is None or self._whole.shape[-2:] != variant.size:
            self._whole = crop_tensor(self.rgb, variant, self.device)
        return self._whole


def _cropped(rgb: Rgb, crop: Crop, region: Region, device: torch.device) -> EditorInput:
    """The crop itself, as editors are given it for an edit of one of its regions."""
    (mask,) = Crop(crop.box, (region,), crop.size).masks()
    return EditorInput(to_tensor(rgb[crop.box.slices], crop.size, device), mask, crop.protected())
