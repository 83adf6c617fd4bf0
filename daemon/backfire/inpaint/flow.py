"""Editing with transformers on flow schedules: Stable Diffusion 3, FLUX.1, FLUX.2, Qwen-Image, Z-Image.

The transformer, autoencoder and scheduler are those of diffusers' inpainting pipeline. The loop around them
is ours, because the pipelines' own loops resize and quantise the picture, and cannot be given its latents;
the tests hold it to them step by step. `families` says what differs between the pipelines.

With sigma the share of noise, the noisy latents of a picture k are (1 - sigma) k + sigma noise, and the
transformer predicts the velocity v, so that k is estimated by them minus sigma v. At sigma 1, where an edit
of full strength starts, a transformer that is given nothing else of the picture sees noise alone. Its first
step is then the same for all pictures, and `first_step` returns the second one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from backfire.errors import ConfigError
from backfire.inpaint import attention, autoencoders, pipelines, streaming
from backfire.inpaint.denoising import DenoisingEditor, Prompt
from backfire.inpaint.families import BY_CLASS, FlowFamily, Given, Sees
from backfire.inpaint.hardware import DTYPES
from backfire.inpaint.options import FlowOptions, listed


@dataclass(frozen=True)
class Sampling:
    """How an edit is painted.

    Attributes:
        steps: those of the whole schedule.
        strength: the share of them that is taken: below 1 an edit starts from the noisy picture.
        mask_blur: pixels by which the mask is blurred before it is thresholded at one half.
        offload: whether the transformer's blocks stay in the host's memory.
    """

    steps: int
    strength: float
    mask_blur: int = 0
    offload: bool = False


@dataclass(frozen=True, eq=False)
class _Edit:
    """An edit that is being painted.

    Attributes:
        known: N,C,h,w, the latents of the picture.
        mask: N,1,H,W in {0,1}, 1 = repainted.
        prompt: the embedded prompt.
        noise: N,C,h,w, unit noise.
        scheduler: set to the first step that is taken.
        times: the time of each step.
        sigmas: the share of noise at each step, and after the last.
    """

    known: Tensor
    mask: Tensor
    prompt: Prompt
    noise: Tensor
    scheduler: Any
    times: Tensor
    sigmas: Tensor

    def noisy(self, number: int) -> Tensor:
        """The noisy latents of the picture at the step of that number."""
        sigma = self.sigmas[number]
        return (1 - sigma) * self.known + sigma * self.noise


class FlowEditor(DenoisingEditor):
    """A diffusers inpainting pipeline on a flow schedule; satisfies `Attentive`.

    Attributes:
        pipe: the pipeline.
        family: what is particular to its class.
    """

    def __init__(
        self,
        name: str,
        weights_sha256: str,
        pipe: Any,
        family: FlowFamily,
        prompts: Sequence[Prompt],
        sampling: Sampling,
    ) -> None:
        super().__init__(weights_sha256, pipe.transformer, pipe.vae)
        self.name, self.pipe, self.family, self.prompts = name, pipe, family, list(prompts)
        self.blind = family.sees is Sees.MASKED
        self._sampling, self._blur = sampling, sampling.mask_blur
        space = autoencoders.SPACES[type(pipe.vae).__name__]
        self._folded = space.folded
        self.multiple = space.factor(pipe.vae) * (1 if space.folded else 2)
        # These act only while gradients are computed.
        pipe.transformer.enable_gradient_checkpointing()
        # The video autoencoder has no checkpoints. With those of the tiny one its encoder omits the scaling
        # of [-1,1] to [0,1] (diffusers 0.42), so the gradients would be those of another encoder.
        self._checkpointed = (
            pipe.vae._supports_gradient_checkpointing and "Tiny" not in type(pipe.vae).__name__
        )
        if self._checkpointed:
            pipe.vae.enable_gradient_checkpointing()
        if sampling.offload:
            streaming.stream(pipe.transformer)

    @classmethod
    def load(cls, name: str, path: Path | str, options: FlowOptions) -> Self:
        """Load a pipeline from a folder, or by its hub name from the hub's cache; it is fetched if it is not
        there.

        Args:
            name: the editor's name in the configuration and the receipt.
            path: a folder as `save_pretrained` writes it, or `owner/name` on the Hugging Face hub.
            options: how it paints.

        Raises:
            ConfigError: an option does not suit the pipeline.
            ModelError: there is no such folder or hub name, or it has no safetensors, is damaged or
                incomplete, or is another kind of pipeline.
        """
        unused = sorted({part for family in BY_CLASS.values() for part in family.unused})
        folder = pipelines.located(name, str(path), BY_CLASS, unused, options.variant)
        family = BY_CLASS[folder.kind]
        sampling = Sampling(
            options.steps or family.steps,
            options.strength or family.strength,
            mask_blur=options.mask_blur,
            offload=options.offload,
        )
        _require_fit(name, family, sampling)
        with pipelines.loading(folder):
            pipe = _fitting(name, folder.pipeline(family.pipeline, DTYPES[options.dtype]), family)
            embedded = [_embedded(pipe, family, prompt, options) for prompt in listed(options.prompts)]
            pipelines.release_text(pipe)
            return cls(name, folder.digest(), pipe, family, embedded, sampling)

    def to(self, device: torch.device | str) -> None:
        """See `Editor.to`."""
        streaming.place(self.pipe.transformer, device)
        self.pipe.vae.to(device)
        self.prompts = [prompt.to(device) for prompt in self.prompts]

    def attention_entropy(
        self, image: Tensor, mask: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """See `Attentive.attention_entropy`."""
        seen, edited = self._ready(image, mask)
        edit, number, noisy = self._entered(self._encoded(seen), edited, generator)
        net, size = self.pipe.transformer, noisy.shape[2:]
        # A forward pass that ends early leaves no checkpoint behind.
        checkpointing, net.gradient_checkpointing = net.gradient_checkpointing, False
        try:
            query, key, hidden = attention.intercepted(
                getattr(net, self.family.joint)[0], lambda: self._velocity(edit, number, noisy)
            )
        finally:
            net.gradient_checkpointing = checkpointing
        cells = size.numel()
        pictures = 2 if self.family.sees is Sees.REFERENCE else 1
        start = 0 if self.family.picture_first else query.shape[2] - pictures * cells
        entropy = attention.entropy(query[:, :, start : start + cells], key, hidden)
        return entropy.reshape(-1, 1, *size)

    def _encoded(self, seen: Tensor) -> Tensor:
        latents = self._recomputed(autoencoders.encoded, seen)
        return latents if self._folded else F.pixel_unshuffle(latents, 2)

    def _decoded(self, latents: Tensor) -> Tensor:
        return self._recomputed(
            autoencoders.decoded, latents if self._folded else F.pixel_shuffle(latents, 2)
        )

    def _recomputed(self, call: Callable[[Any, Tensor], Tensor], x: Tensor) -> Tensor:
        """What the autoencoder makes of `x`; under gradients its activations are computed again, not kept."""
        with _own_precision(x):
            if self._checkpointed or not (torch.is_grad_enabled() and x.requires_grad):
                return call(self.pipe.vae, x)
            out: Tensor = checkpoint(call, self.pipe.vae, x, use_reentrant=False)
            return out

    def _denoised(self, known: Tensor, mask: Tensor, prompt: Prompt, noise: Tensor, seed: int) -> Tensor:
        edit = self._edit(known, mask, prompt, noise)
        latents = edit.noisy(0)
        for number in range(len(edit.times)):
            latents = self._stepped(edit, number, latents)
        return latents

    def _predicted(
        self, known: Tensor, mask: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        edit, number, noisy = self._entered(known, mask, generator)
        return self._velocity(edit, number, noisy), noisy

    def _estimated(self, image: Tensor, mask: Tensor, generator: torch.Generator | None) -> Tensor:
        edit, number, noisy = self._entered(self._encoded(image), mask, generator)
        latents = noisy - edit.sigmas[number] * self._velocity(edit, number, noisy)
        return self._decoded(self._restored(edit, latents, edit.known))

    def _entered(
        self, known: Tensor, mask: Tensor, generator: torch.Generator | None
    ) -> tuple[_Edit, int, Tensor]:
        """An edit, the number of its first step that sees the picture, and the noisy latents of that."""
        prompt, noise, _ = self._drawn(known, generator)
        edit = self._edit(known, mask, prompt, noise)
        if self.family.sees is not Sees.NOTHING or float(edit.sigmas[0]) < 1:
            return edit, 0, edit.noisy(0)
        with torch.no_grad():  # from noise alone, which has no gradient of the picture
            painted = self._advanced(edit, 0, edit.noise)
        return edit, 1, self._restored(edit, painted, edit.noisy(1))

    def _edit(self, known: Tensor, mask: Tensor, prompt: Prompt, noise: Tensor) -> _Edit:
        scheduler = type(self.pipe.scheduler).from_config(self.pipe.scheduler.config)  # it keeps a state
        steps = self._sampling.steps
        mu = self.family.mu(scheduler.config, known.shape[2:].numel(), steps)
        if self.family.spaced:
            equal = np.linspace(1.0, 1 / steps, steps)
            scheduler.set_timesteps(sigmas=equal, mu=mu, device=known.device)
        else:
            scheduler.set_timesteps(steps, mu=mu, device=known.device)
        first = _first(self._sampling)
        scheduler.set_begin_index(first)
        times, sigmas = scheduler.timesteps[first:], scheduler.sigmas[first:]
        return _Edit(known, mask, prompt, noise, scheduler, times, sigmas)

    def _stepped(self, edit: _Edit, number: int, latents: Tensor) -> Tensor:
        """The latents after a step, which must be the scheduler's next."""
        return self._restored(edit, self._advanced(edit, number, latents), edit.noisy(number + 1))

    def _advanced(self, edit: _Edit, number: int, latents: Tensor) -> Tensor:
        velocity, scale = self._velocity(edit, number, latents), edit.prompt.guidance
        if self.family.combine is not None and scale > self.family.idle:
            opposite = self._velocity(edit, number, latents, negative=True)
            velocity = self.family.combine(velocity, opposite, scale)
        advanced: Tensor = edit.scheduler.step(velocity, edit.times[number], latents, return_dict=False)[0]
        return advanced

    def _restored(self, edit: _Edit, latents: Tensor, known: Tensor) -> Tensor:
        """The latents with `known` outside the mask; a transformer with mask channels needs none of that."""
        if self.family.sees is Sees.MASKED:
            return latents
        return known + self.family.cells(edit.mask, latents) * (latents - known)

    def _velocity(self, edit: _Edit, number: int, noisy: Tensor, *, negative: bool = False) -> Tensor:
        """The transformer's prediction, float32 N,C,h,w."""
        embeds, prefix = edit.prompt.batch(len(noisy)), "negative_" if negative else ""
        embeds = {key.removeprefix(prefix): embeds[key] for key in embeds if key.startswith(prefix)}
        given = Given(noisy, edit.known, edit.mask, edit.times[number], embeds, edit.prompt.guidance)
        with _own_precision(noisy):
            return self.family.velocity(self.pipe.transformer, given).float()


def _own_precision(x: Tensor) -> torch.autocast:
    """A context in which `dtype` alone sets the arithmetic, as in the pipelines, whatever the caller asks."""
    return torch.autocast(x.device.type, torch.bfloat16, enabled=False)


def _first(sampling: Sampling) -> int:
    """The number of the first step that is taken of the whole schedule."""
    return int(max(sampling.steps - sampling.steps * sampling.strength, 0))


def _require_fit(name: str, family: FlowFamily, sampling: Sampling) -> None:
    """Check that a pipeline can paint so."""
    if family.sees is Sees.MASKED and sampling.strength < 1:
        wrong = f"strength: got {sampling.strength}, expected 1"
        raise ConfigError(f"editor {name}: {wrong}; {family.pipeline} is made to paint from noise")
    first = _first(sampling)
    if first + (first == 0 and family.sees is Sees.NOTHING) >= sampling.steps:
        got = f"got {sampling.steps}, which leaves none that sees the picture"
        raise ConfigError(f"editor {name}: steps: {got}; take 2 or more")


def _fitting(name: str, pipe: Any, family: FlowFamily) -> Any:
    """The pipeline itself, if its parts are of the sorts that the family knows."""
    vae, kind = pipe.vae, type(pipe.vae).__name__
    if kind not in autoencoders.SPACES:
        expected = ", ".join(autoencoders.SPACES)
        raise pipelines.error(name, f"its autoencoder is a {kind}, expected one of {expected}", "use another")
    channels, got = vae.config.get("latent_channels") or vae.config.z_dim, pipe.transformer.config.in_channels
    if got != family.channels(channels):
        reason = f"its transformer takes {got} channels, expected {family.channels(channels)}"
        raise pipelines.error(name, reason, f"name a pipeline of {family.pipeline}")
    scheduler = type(pipe.scheduler).__name__
    if not (hasattr(pipe.scheduler, "set_begin_index") and hasattr(pipe.scheduler, "scale_noise")):
        reason = f"its scheduler {scheduler} is not one for such transformers"
        raise pipelines.error(name, reason, "use FlowMatchEulerDiscreteScheduler")
    return pipe


@torch.no_grad()
def _embedded(pipe: Any, family: FlowFamily, prompt: str, options: FlowOptions) -> Prompt:
    negative = options.negative
    guidance = family.guidance if options.guidance is None else options.guidance
    embeds = family.embed(pipe, prompt)
    if family.combine is None:
        return Prompt(embeds, guidance)
    if guidance <= family.idle or prompt == negative or getattr(pipe.config, "is_distilled", False):
        return Prompt(embeds, family.idle)
    opposite = family.embed(pipe, negative)
    return Prompt({**embeds, **{f"negative_{key}": value for key, value in opposite.items()}}, guidance)
