"""What a manifest says: plain data in the terms of C2PA 2.x, without the library.

It states what was done and claims no effect. The perturbation is `c2pa.enhanced` with the source type
`algorithmicallyEnhanced` of IPTC's vocabulary: no model makes any of the picture's content.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from backfire import __version__
from backfire.provenance.original import Redaction
from backfire.types import Box

ENHANCED = "http://cv.iptc.org/newscodes/digitalsourcetype/algorithmicallyEnhanced"
ACTIONS, TRAINING = "c2pa.actions.v2", "cawg.training-mining"
AGENT = {"name": "Backfire", "version": __version__}

MINING = {
    "DMI-PROHIBITED-GENAIMLTRAINING": ("ai_generative_training",),
    "DMI-PROHIBITED-AIMLTRAINING": ("ai_generative_training", "ai_training"),
    "DMI-PROHIBITED-EXCEPTSEARCHENGINEINDEXING": ("ai_generative_training", "ai_training", "data_mining"),
    "DMI-PROHIBITED": ("ai_generative_training", "ai_training", "data_mining"),
}
"""By term of XMP: the entries of `cawg.training-mining` that are not allowed. Inference is left out, because
PLUS's terms do not speak of it."""


@dataclass(frozen=True)
class Area:
    """A part of the picture in which pixels were changed, and what was to be protected there.

    Attributes:
        box: in pixels of the upright picture.
        labels: such as `face`.
    """

    box: Box
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Work:
    """How a perturbation was made.

    Attributes:
        areas: where.
        epsilon: the most that a pixel may differ from the original, in levels of 255.
        method, iterations: as the receipt has them.
    """

    areas: Sequence[Area]
    epsilon: float
    method: str
    iterations: int


@dataclass(frozen=True)
class Statement:
    """What the manifest of one file says.

    Attributes:
        title: the file's name; None leaves it out.
        work: None where the picture was only written anew, without a perturbation.
        data_mining: the term of XMP to be repeated as `cawg.training-mining`; None repeats none.
        scaled_from: height and width of the original if it was scaled down first.
    """

    title: str | None
    work: Work | None
    data_mining: str | None = None
    scaled_from: tuple[int, int] | None = None

    def definition(self, parent: str, redactions: Sequence[Redaction] = ()) -> dict[str, Any]:
        """The manifest without its ingredient, as the library takes it.

        Args:
            parent: the ingredient's `instance_id`.
            redactions: what is taken out of the original's manifests.
        """
        opened = {"action": "c2pa.opened", "parameters": {"ingredientIds": [parent]}}
        redacted = [
            {"action": "c2pa.redacted", "reason": one.reason, "parameters": {"redacted": one.uri}}
            for one in redactions
        ]
        actions = [opened, *redacted, *self._scaling(), self._action()]
        assertions = [{"label": ACTIONS, "data": {"actions": actions}}]
        if self.data_mining in MINING:
            entries = {f"cawg.{name}": {"use": "notAllowed"} for name in MINING[self.data_mining]}
            assertions.append({"label": TRAINING, "data": {"entries": entries}})
        named = {} if self.title is None else {"title": self.title}
        return {
            "claim_generator_info": [AGENT],
            **named,
            "assertions": assertions,
            "redactions": [one.uri for one in redactions],
        }

    def _scaling(self) -> list[dict[str, Any]]:
        if self.scaled_from is None:
            return []
        height, width = self.scaled_from
        said = f"Scaled down from {width}x{height} pixels before anything else was done."
        return [{"action": "c2pa.resized", "softwareAgent": AGENT, "description": said}]

    def _action(self) -> dict[str, Any]:
        if self.work is None:
            said = "The file was written anew. No perturbation was added."
            return {"action": "c2pa.transcoded", "softwareAgent": AGENT, "description": said}
        return {
            "action": "c2pa.enhanced",
            "digitalSourceType": ENHANCED,
            "softwareAgent": AGENT,
            "description": (
                "A faint perturbation was added in the areas listed as changes; it moves no pixel by more "
                f"than {self.work.epsilon:g} of 255 levels. It is meant to disturb edits of the regions in "
                "these areas by inpainting models. How far it does depends on the model."
            ),
            "changes": [_change(area) for area in self.work.areas],
            "parameters": {
                "org.backfire": {
                    "method": self.work.method,
                    "epsilon_levels": self.work.epsilon,
                    "iterations": self.work.iterations,
                }
            },
        }


def _change(area: Area) -> dict[str, Any]:
    box = area.box
    shape = {
        "type": "rectangle",
        "unit": "pixel",
        "origin": {"x": box.left, "y": box.top},
        "width": box.width,
        "height": box.height,
    }
    said = f"Pixels of the upright picture around: {', '.join(area.labels)}"
    return {"region": [{"type": "spatial", "shape": shape}], "description": said}
