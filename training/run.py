"""What every training shares: the resumable loop, its log, its checkpoints and sample sheets."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn


def prepared(module: nn.Module) -> Any:
    """The module in channels-last, which CPU and GPU convolutions prefer."""
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def adam(parts: list[nn.Module]) -> torch.optim.Adam:
    return torch.optim.Adam([p for m in parts for p in m.parameters()], lr=1e-4, betas=(0.5, 0.99))


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def averaged(folder: Path, module: nn.Module) -> Any:
    """The module with the averaged weights of a run that has a part named `ema`."""
    module.load_state_dict(torch.load(folder / "last.pt", weights_only=True)["parts"]["ema"])
    return prepared(module)


def save_half(module: nn.Module, target: Path) -> None:
    """One safetensors file in half precision, for `daemon/editors/weights`."""
    # Not the statistics of batch norm: variances of a spectrum pass what half precision holds.
    halved = {name for name, _ in module.named_parameters()}
    state = {
        name: (value.half() if name in halved else value).contiguous()
        for name, value in module.state_dict().items()
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, target)


@dataclass
class Run:
    """One training run's folder: `last.pt`, `log.jsonl`, `sample-STEP.jpg`. Interrupt and rerun at will."""

    folder: Path
    steps: int
    parts: dict[str, Any]  # name -> module or optimiser, all with state_dict()
    every: int = 100
    save_s: float = 180.0
    step: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)

    def resume(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "last.pt"
        if path.exists():
            state = torch.load(path, weights_only=True)
            self.step, self.seconds = state["step"], state["seconds"]
            for name, part in self.parts.items():
                part.load_state_dict(state["parts"][name])
            print(f"resumed at step {self.step} of {self.steps}", flush=True)

    def save(self) -> None:
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
        }
        temporary = self.folder / "last.pt.part"
        torch.save(state, temporary)
        os.replace(temporary, self.folder / "last.pt")

    @property
    def progress(self) -> float:
        return min(self.step / self.steps, 1.0)

    def rate(self, base: float, warm: int = 200) -> float:
        """Cosine learning rate with a warm start."""
        return (
            base
            * min(1.0, (self.step + 1) / warm)
            * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.progress)))
        )

    def loop(self, one: Callable[[int], dict[str, float]], sample: Callable[[], Tensor]) -> None:
        """Runs `one(step)` until `steps`, logging its losses; `sample()` gives rows of pictures N,3,H,W."""
        last_save = time.monotonic()
        while self.step < self.steps:
            began = time.monotonic()
            for name, value in one(self.step).items():
                self.sums[name] = self.sums.get(name, 0.0) + value
            self.step += 1
            self.seconds += time.monotonic() - began
            if self.step % self.every == 0:
                self._log()
            if self.step % (10 * self.every) == 0 or self.step == self.steps:
                sheet(sample()).save(self.folder / f"sample-{self.step:06d}.jpg", quality=92)
            if time.monotonic() - last_save > self.save_s or self.step == self.steps:
                self.save()
                last_save = time.monotonic()

    def _log(self) -> None:
        means = {k: round(v / self.every, 4) for k, v in self.sums.items()}
        self.sums.clear()
        row = {"step": self.step, "seconds": round(self.seconds), **means}
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(row) + "\n")
        left = self.seconds / self.step * (self.steps - self.step) / 60
        bar = "#" * round(30 * self.progress)
        end = "\r" if sys.stdout.isatty() else "\n"
        print(f"[{bar:<30}] {self.step}/{self.steps} {left:.0f} min left {means}", end=end, flush=True)


def sheet(rows: Tensor) -> Image.Image:
    """A grid from R,C,3,H,W in [0,1]."""
    r, c, _, h, w = rows.shape
    grid = rows.clamp(0, 1).permute(0, 3, 1, 4, 2).reshape(r * h, c * w, 3)
    return Image.fromarray(np.asarray((grid * 255).round().to(torch.uint8)))
