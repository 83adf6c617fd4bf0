"""The resumable training loop that all trainings share, with its log, checkpoints and sample sheets."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from backfire.inpaint import hardware
from backfire.inpaint.encoders import below


def machine() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    torch.backends.cudnn.benchmark = True  # pays off, since a training uses only two or three input shapes
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def prepared(module: nn.Module) -> Any:
    """The module on the machine's device in channels-last, which CPU and GPU convolutions prefer."""
    return module.to(machine(), memory_format=torch.channels_last)  # type: ignore[call-overload]


def noise(like: Tensor, seed: int, step: int) -> Tensor:
    """Standard normal noise of that shape and device; depends on the seed, the step and the device alone."""
    generator = torch.Generator(like.device).manual_seed((seed << 32) + step)
    return torch.randn(like.shape, generator=generator, device=like.device)


def adam(parts: list[nn.Module]) -> torch.optim.Adam:
    parameters = [p for m in parts for p in m.parameters()]
    return torch.optim.Adam(parameters, lr=1e-4, betas=(0.5, 0.99), fused=True)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def recorded(folder: Path) -> dict[str, Any]:
    """The options and digests from which a run was made; empty for one of a version that kept none.

    Raises:
        SystemExit: see `_saved`.
    """
    found: dict[str, Any] = _saved(folder).get("made_from", {})
    return found


def averages(folder: Path, part: str = "ema") -> dict[str, Tensor]:
    """The weights of a part of a run, on the CPU; by default the averaged ones of what was trained.

    Raises:
        SystemExit: see `_saved`.
    """
    found: dict[str, Tensor] = _saved(folder)["parts"][part]
    return found


def _saved(folder: Path) -> dict[str, Any]:
    """What a run saved last, on the CPU.

    Raises:
        SystemExit: there is no such run.
    """
    path = folder / "last.pt"
    if not path.exists():
        raise SystemExit(
            f"{path}: no such file, expected a run that has been trained; train it first, or name the folder "
            "of its runs with --runs"
        )
    found: dict[str, Any] = torch.load(path, "cpu", weights_only=True)
    return found


def averaged(folder: Path, module: nn.Module) -> Any:
    """The module with the averaged weights of a run."""
    module.load_state_dict(averages(folder))
    return prepared(module)


def below_names(**states: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of several modules together, each below the name of its module."""
    return {f"{role}.{name}": value for role, state in states.items() for name, value in state.items()}


def save_half(state: dict[str, Tensor], target: Path) -> None:
    """One safetensors file in half precision, for `daemon/backfire/inpaint/weights`."""
    # Batch norm's statistics stay in full precision: variances of a spectrum overflow half precision.
    exact = ("running_mean", "running_var", "num_batches_tracked")
    halved = {
        name: (value if name.endswith(exact) else value.half()).contiguous() for name, value in state.items()
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(halved, target)


def weights_of(start: Path, part: str) -> dict[str, Tensor]:
    """The weights of a part of an editor, such as `encoder`, with which a training begins.

    Args:
        start: the safetensors file of an editor, or of that part alone.
        part: the prefix of the names, without its dot.

    Raises:
        SystemExit: the file cannot be read, or has no such part.
    """
    try:
        state = load_file(start)
    except (OSError, SafetensorError) as error:
        raise SystemExit(f"--start {start}: cannot be read as a safetensors file ({error})") from error
    found = below(state, f"{part}.") or (state if part == "net" and "conv_in.weight" in state else {})
    if not found:
        names = ", ".join(sorted({name.partition(".")[0] for name in state}))
        raise SystemExit(
            f"--start {start}: got a file with {names}, expected an editor's with {part}; give such as "
            "daemon/backfire/inpaint/weights/flux2-mini.safetensors"
        )
    return found


@dataclass(frozen=True)
class Options:
    """The options that all trainings take.

    Attributes:
        steps, minutes: the training ends after this many steps or minutes, whichever comes first.
        seed: of all random numbers.
        batch, size: crops per step, and their side in pixels.
        workers: processes that prepare crops; 0: the training process itself.
    """

    steps: int
    minutes: float = math.inf
    seed: int = 1
    batch: int = 12
    size: int = 128
    workers: int = 0


@dataclass
class Run:
    """One training run and its folder: `last.pt`, `log.jsonl`, `sample-STEP.jpg`.

    It can be interrupted at any time and resumed. Learning rates fall towards the end that `options` set.

    Attributes:
        parts: modules and optimisers by name, all with state_dict().
        made_from: what the training depends on beside the options, such as digests of its photographs and
            of other weights. It is kept in `last.pt`, and a run is not resumed with anything else.
    """

    folder: Path
    options: Options
    parts: dict[str, Any]
    made_from: dict[str, Any] = field(default_factory=dict)
    every: int = 100
    save_s: float = 180.0
    step: int = 0
    seconds: float = 0.0
    sums: dict[str, Tensor] = field(default_factory=dict)
    summed: int = 0

    def resume(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "last.pt"
        if path.exists():
            state = torch.load(path, machine(), weights_only=True)
            if state["parts"].keys() != self.parts.keys():
                raise SystemExit(
                    f"{path}: got a run with {', '.join(state['parts'])}, expected {', '.join(self.parts)}; "
                    "it was made by another version: give --runs another folder"
                )
            self._compare(state.get("made_from"))
            self.step, self.seconds = state["step"], state["seconds"]
            for name, part in self.parts.items():
                part.load_state_dict(state["parts"][name])
            print(f"resumed at step {self.step}", flush=True)
            if self.progress >= 1:
                print(f"{self.folder}: this run is done; to train on, give --runs another folder", flush=True)

        self._cut_log()

    def _compare(self, kept: dict[str, Any] | None) -> None:
        """Refuse to go on with other options or data, which would mix two trainings without a word."""
        path, given = self.folder / "last.pt", self._made_from()
        if kept is None:
            print(f"{path}: does not say from what it was made, which is taken to be the same as now")
            return
        apart = [name for name in {**kept, **given} if kept.get(name) != given.get(name)]
        if apart:
            told = ", ".join(f"{name} {kept.get(name)} (now {given.get(name)})" for name in apart)
            raise SystemExit(
                f"{path}: got a run with {told}; give the same again, or --runs another folder to begin anew"
            )

    def _made_from(self) -> dict[str, Any]:
        # How long it lasts, and how many processes help, may change.
        options = asdict(self.options)
        return {name: options[name] for name in ("seed", "batch", "size")} | self.made_from

    def save(self) -> None:
        state = {
            "made_from": self._made_from(),
            "step": self.step,
            "seconds": self.seconds,
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
        }
        temporary = self.folder / "last.pt.part"
        torch.save(state, temporary)
        os.replace(temporary, self.folder / "last.pt")

    @property
    def progress(self) -> float:
        """The share of the run that is done, in [0,1]."""
        return min(max(self.step / self.options.steps, self.seconds / 60 / self.options.minutes), 1.0)

    def rate(self, base: float, warm: int = 200) -> float:
        """Cosine learning rate with a warm start."""
        return (
            base
            * min(1.0, (self.step + 1) / warm)
            * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.progress)))
        )

    @hardware.memory_kept()
    def loop(self, one: Callable[[int], dict[str, Tensor]], sample: Callable[[], Tensor]) -> None:
        """Runs `one(step)` to the end, logging its losses; `sample()` gives rows of pictures N,3,H,W."""
        last_save = began = time.monotonic()
        before = self.seconds
        while self.progress < 1:
            for name, value in one(self.step).items():
                # Kept as a tensor: converting it to a float would wait for the GPU.
                self.sums[name] = self.sums.get(name, 0) + value.detach()
            self.summed += 1
            self.step += 1
            self.seconds = before + time.monotonic() - began
            if self.step % self.every == 0:
                self._log()
            if self.step % (10 * self.every) == 0 or self.progress >= 1:
                sheet(sample()).save(self.folder / f"sample-{self.step:06d}.jpg", quality=92)
            if time.monotonic() - last_save > self.save_s or self.progress >= 1:
                self.save()
                last_save = time.monotonic()

    def _cut_log(self) -> None:
        """Take out of the log what was logged after the last save, as those steps are made again."""
        log = self.folder / "log.jsonl"
        if log.exists():
            whole = [line for line in log.read_text().splitlines() if line.endswith("}")]
            part = log.with_name(f"{log.name}.part")
            part.write_text("".join(f"{line}\n" for line in whole if json.loads(line)["step"] <= self.step))
            os.replace(part, log)

    def _log(self) -> None:
        means = {k: round(float(v) / self.summed, 4) for k, v in self.sums.items()}
        self.sums.clear()
        self.summed = 0  # fewer than `every` after a run was resumed
        row = {"step": self.step, "seconds": round(self.seconds), **means}
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(row) + "\n")
        left = self.seconds / self.progress * (1 - self.progress) / 60
        bar = "#" * round(30 * self.progress)
        end = "\r" if sys.stdout.isatty() else "\n"
        print(f"[{bar:<30}] step {self.step}, {left:.0f} min left {means}", end=end, flush=True)


def sheet(rows: Tensor) -> Image.Image:
    """A grid from R,C,3,H,W in [0,1]."""
    r, c, _, h, w = rows.shape
    grid = rows.clamp(0, 1).cpu().permute(0, 3, 1, 4, 2).reshape(r * h, c * w, 3)
    return Image.fromarray(np.asarray((grid * 255).round().to(torch.uint8)))
