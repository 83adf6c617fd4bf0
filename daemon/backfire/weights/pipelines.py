"""Published pipelines that are named by their hub name, and what a gradient through each takes.

Unlike the models of the catalogue they are not pinned. Importing this module loads no torch.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_INSIDE_A_BLOCK = 40
"""What one block of a transformer keeps for its backward pass, in multiples of its input, some of it in
float32: normalised input, queries, keys and values, attention, and the wider layer between."""


@dataclass(frozen=True)
class Pipeline:
    """A published pipeline on a flow schedule.

    Attributes:
        hub: its name on the Hugging Face hub, which `weights` of an editor of kind `flow` takes.
        pipeline: diffusers' class that paints with it.
        licence: that of the weights.
        source: the page on which the licence was read.
        gated: whether it is served only to accounts that accepted the licence.
        parameters, autoencoder: parameters of the transformer and of the autoencoder.
        tokens, width, blocks: of the transformer, at 1024x1024 pixels.
        encoder_gb: what the backward pass through the encoder keeps at a time, at 1024x1024 pixels.
        catalogue: the model of the catalogue that has the same weights, pinned; None if there is none.
    """

    hub: str
    pipeline: str
    licence: str
    source: str
    gated: bool
    parameters: int
    autoencoder: int
    tokens: int
    width: int
    blocks: int
    encoder_gb: float
    catalogue: str | None = None

    @property
    def gradient_gb(self) -> float:
        """The memory in GB that one gradient at 1024x1024 pixels takes in bfloat16: reckoned, not measured.

        The weights at two bytes each, without the text encoder, which is freed; and the larger of what the
        backward passes through the two networks keep, which come one after the other: through the transformer
        the input of each block (checkpointing) and the insides of one, or through the encoder.
        """
        weights = 2 * (self.parameters + self.autoencoder)
        block = 2 * self.tokens * self.width
        return (weights + max((self.blocks + _INSIDE_A_BLOCK) * block, self.encoder_gb * 1e9)) / 1e9


@cache
def pipelines() -> tuple[Pipeline, ...]:
    """All that `pipelines.toml` lists, in its order."""
    text = (Path(__file__).parent / "pipelines.toml").read_text(encoding="utf-8")
    return tuple(Pipeline(hub, **entry) for hub, entry in tomllib.loads(text).items())
