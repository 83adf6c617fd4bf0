"""The memory ladder: out of memory means one edit at a time, then a smaller size, then the CPU.

A picture must not fail because its crop happens to be a little too large for the card. Nor may the remedy be
silent, since a smaller working size is a weaker protection: the receipt names the rung.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from backfire.attack_paths import hand_over
from backfire.config import Protect
from backfire.errors import Code, DeviceError, ModelError
from backfire.inpaint import hardware
from backfire.inpaint.base import Editor

LEAST_PX = 256
"""The smallest working size that the configuration allows, in pixels."""

CAPABILITIES = ("encode", "first_step", "one_step", "attention_entropy")
"""What only some editors offer besides `inpaint`."""

T = TypeVar("T")


@dataclass(frozen=True)
class Rung:
    """One way to work on a picture.

    Attributes:
        name: `full`, `one_at_a_time`, `smaller` or `cpu`; for the receipt.
        protect: the settings to work by.
        frugal: whether editors take one edit at a time and recompute activations instead of storing them.
    """

    name: str
    protect: Protect
    frugal: bool


def rungs(protect: Protect, device: torch.device) -> list[Rung]:
    """The ladder for a device; its first rung is the configuration as it stands."""
    ladder = [Rung("full", protect, False), Rung("one_at_a_time", protect, True)]
    half = max(protect.work_px // 16 * 8, LEAST_PX)
    if half < protect.work_px:
        ladder.append(Rung("smaller", protect.model_copy(update={"work_px": half}), True))
    if device.type == "cuda" and protect.cpu_fallback:
        ladder.append(Rung("cpu", protect.model_copy(update={"device": "cpu"}), True))
    return ladder


def try_rungs(ladder: list[Rung], work: Callable[[Rung], T], *, start: int = 0) -> T:
    """What `work` returns on the first rung on which it does not run out of memory.

    Args:
        start: how many rungs to skip, because the process was killed on them; the last is tried in any case.

    Raises:
        ModelError: OUT_OF_MEMORY, not retryable: no rung was low enough. Any other error of `work` passes.
    """
    tried = []
    for rung in ladder[min(start, len(ladder) - 1) :]:
        tried.append(rung.name)
        try:
            return work(rung)
        except ModelError as error:
            if error.code != Code.OUT_OF_MEMORY:
                raise
            message = error.message
        # Only here is the traceback gone, and with it the frames that hold the tensors.
        hand_over.forget()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    raise ModelError(Code.OUT_OF_MEMORY, f"{message} (tried: {', '.join(tried)})", retryable=False)


@contextmanager
def memory_errors(name: str) -> Iterator[None]:
    """Turn the bare RuntimeErrors that torch raises for memory and for devices into errors of ours.

    Args:
        name: the picture's, for the message.

    Raises:
        ModelError: OUT_OF_MEMORY.
        DeviceError: the GPU failed.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if broken := hardware.failure(error):
            remedy = "look into the kernel's log (dmesg), and whether this torch supports the card"
            raise DeviceError(f"{name}: the GPU failed at work ({broken}); {remedy}") from error
        if isinstance(error, RuntimeError) and not hardware.is_full(error):
            raise
        message = f"{name}: out of memory ({error}); lower protect.work_px or add memory"
    else:
        return
    raise ModelError(Code.OUT_OF_MEMORY, message)


class Frugal:
    """An editor that takes one edit at a time and stores none of its activations; see `Editor`.

    Up to rounding its edits and gradients are the same, for about one more forward pass.
    """

    def __init__(self, editor: Editor) -> None:
        self._editor = editor
        self.name, self.multiple = editor.name, editor.multiple
        self.weights_sha256, self.blind = editor.weights_sha256, editor.blind

    def __getattr__(self, name: str) -> Any:
        """What only some editors offer."""
        if name == "_editor":  # not yet there while being copied
            raise AttributeError(name)
        found = getattr(self._editor, name)
        return partial(self._each, found) if name in CAPABILITIES else found

    def to(self, device: torch.device | str) -> None:
        """Move the model to a device."""
        self._editor.to(device)

    def inpaint(self, image: Tensor, mask: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """See `Editor.inpaint`."""
        return self._each(self._editor.inpaint, image, mask, generator=generator)

    def _each(
        self, call: Callable[..., Tensor], image: Tensor, mask: Tensor, **drawn: torch.Generator | None
    ) -> Tensor:
        """Call one of the editor's capabilities edit by edit."""
        generator = drawn.get("generator")
        state = None if generator is None else generator.get_state()

        def one(image: Tensor, mask: Tensor) -> Tensor:
            if generator is not None and state is not None:
                # An editor draws one noise for a batch, and the second pass must draw what the first one
                # drew.
                generator.set_state(state)
            return call(image, mask, **drawn)

        needs_gradient = torch.is_grad_enabled() and image.requires_grad
        parts = [(image[index : index + 1], mask[index : index + 1]) for index in range(len(image))]
        return torch.cat(
            [checkpoint(one, *part, use_reentrant=False) if needs_gradient else one(*part) for part in parts]
        )
