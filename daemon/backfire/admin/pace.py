"""How long a picture takes here, from a few iterations and edits of a picture of noise."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from backfire import attack_paths, inpaint
from backfire.attack_paths import cropping
from backfire.attack_paths.handed import MOST_CALLS
from backfire.config import Protect, Settings
from backfire.evaluate.edits import Editors, Replayer, judged_px
from backfire.evaluate.replay import wanted
from backfire.inpaint.base import Editor
from backfire.inpaint.hardware import pick_device
from backfire.perturb.optimiser import Optimiser
from backfire.types import Box, Mask, MaskKind, Region, Rgb

PROBE = 384, 512
"""Height and width of the picture on which iterations and edits are timed."""
TIMED = 1
"""How many iterations are timed on each attack path, after one that also warms up."""
FURTHER = "resize", "chain"
"""What `protect.robust_to` adds as paths of their own; the iterations of a tool's path are timed without."""


@dataclass(frozen=True)
class Estimate:
    """What one region of a picture of the size of `PROBE` costs.

    Attributes:
        optimising, judging: seconds.
        surrogates, held_out: names of editors.
        without: the settings whose time is not in it.
    """

    optimising: float
    judging: float
    device: str
    surrogates: Sequence[str]
    held_out: Sequence[str]
    without: Sequence[str] = ()

    @property
    def sentence(self) -> str:
        """For people."""
        (height, width), whole = PROBE, self.optimising + self.judging
        without = f", without {' and '.join(self.without)}" if self.without else ""
        return (
            f"about {whole:,.0f} s for one region of a picture of {width}x{height} px on {self.device}: "
            f"{self.optimising:,.0f} s to optimise with {', '.join(self.surrogates)}{without}, "
            f"{self.judging:,.0f} s to judge with {', '.join((*self.surrogates, *self.held_out))}; "
            "larger crops take more, up to protect.work_px"
        )


def estimate(settings: Settings) -> Estimate:
    """Time iterations on each attack path that the settings optimise through, and one edit of each editor.

    Args:
        settings: with the names of the surrogates, see `methods.with_surrogates`.

    Raises:
        BackfireError: an editor cannot be loaded, or a method cannot use it.
    """
    protect = settings.protect
    device = pick_device(protect.device)
    surrogates, held_out = (
        [inpaint.get(name, device, settings) for name in names]
        for names in (protect.surrogates, settings.verify.held_out)
    )
    inpaint.require_other_weights(surrogates, held_out)
    paths, most_px = attack_paths.of_editors(settings), judged_px(protect.work_px)
    editors = Editors(device, surrogates, held_out, paths, most_px)
    probe = _Probe(editors)
    return Estimate(
        probe.iteration(protect) * protect.iterations,
        sum(probe.judged(editor, is_held_out=editor in held_out) for editor in (*surrogates, *held_out)),
        str(device),
        protect.surrogates,
        settings.verify.held_out,
        _without(protect),
    )


def _without(protect: Protect) -> list[str]:
    """The settings that cost time which the estimate leaves out."""
    further = [name for name in FURTHER if name in protect.robust_to]
    found = [f"robust_to {', '.join(further)}"] if further else []
    return [*found, "the further rounds of escalate"] if protect.escalate else found


@dataclass(frozen=True, eq=False)
class _Probe:
    """A picture of noise with a region in its middle, and the editors that are timed on it."""

    editors: Editors
    rgb: Rgb = field(
        default_factory=lambda: np.random.default_rng(0).integers(0, 256, (*PROBE, 3), dtype=np.uint8)
    )

    @property
    def region(self) -> Region:
        height, width = self.rgb.shape[:2]
        box = Box(width // 3, height // 3, 2 * width // 3, 2 * height // 3)
        return Region(box, "mask", 1.0, "check")

    def iteration(self, protect: Protect) -> float:
        """The seconds of an iteration, the mean over the paths as often as the optimiser draws each.

        Which path an iteration draws is up to its generator, and their costs differ by a multiple. So each
        path is timed alone: the first is drawn half of the time, the others share the rest.
        """
        # Choosing a stored start comes before the iterations that are timed, and takes longer than they.
        left_out = {"stored_start": False, "robust_to": tuple(set(protect.robust_to).difference(FURTHER))}
        # Where the settings have a single iteration, another one is timed all the same.
        timed = {"iterations": max(protect.iterations, TIMED + 1)}
        protect = protect.model_copy(update={**left_out, **timed})
        first_alone = protect.paths == "first"
        every = (self.editors.paths_of(one) for one in self.editors.surrogates)
        own = [paths[:1] if first_alone else paths for paths in every]
        # An iteration looks at those surrogates alone that are judged on its path.
        through = (
            [(path,) if path in paths else () for paths in own]
            for path in dict.fromkeys(path for paths in own for path in paths)
        )
        seconds, *others = (self._iteration(protect, one) for one in through)
        if not others:
            return seconds
        return float(np.mean([seconds, *others])) if first_alone else (seconds + float(np.mean(others))) / 2

    def _iteration(self, protect: Protect, through: Sequence[Sequence[str]]) -> float:
        """The seconds of an iteration on these attack paths of the surrogates."""
        height, width = self.rgb.shape[:2]
        crops = cropping.plan(
            [self.region],
            height,
            width,
            margin=protect.margin_px,
            work=protect.work_px,
            whole=protect.whole_px,
        )
        ends: list[float] = []

        def progress(done: int, total: int) -> None:
            ends.append(time.monotonic())
            if len(ends) > TIMED:
                raise _TimedError

        with suppress(_TimedError):
            Optimiser(protect, self.editors.surrogates, self.editors.device, through=through).optimise(
                self.rgb, crops, grey=False, rng=np.random.default_rng(0), progress=progress
            )
        return (ends[-1] - ends[0]) / max(len(ends) - 1, 1)

    def judged(self, editor: Editor, *, is_held_out: bool) -> float:
        """The seconds of all edits of an editor that the verdict replays, from one that is timed.

        An edit on another path costs by the pixels that the tool hands over there.
        """
        paths = self.editors.paths_of(editor)
        mask = self.region.plane(*self.rgb.shape[:2])
        edits = Replayer(editor, None, 0, self.editors)
        began = time.monotonic()
        edits.edits([self.rgb], mask, paths[0], MaskKind.TRIGGER)
        seconds = time.monotonic() - began
        first = self._pixels(mask, paths[0])
        return sum(
            seconds * pictures * self._pixels(mask, path) / first
            for path, _, pictures in wanted(paths, MaskKind, is_held_out=is_held_out)
        )

    def _pixels(self, mask: Mask, path: str) -> int:
        """How many pixels a tool hands over for an edit, in all its calls."""
        calls = [call.at_most(self.editors.most_px) for call in attack_paths.get(path).calls(mask)]
        return sum(call.size[0] * call.size[1] for call in calls[:MOST_CALLS])


class _TimedError(Exception):
    """Ends an optimisation once enough of its iterations are timed."""
