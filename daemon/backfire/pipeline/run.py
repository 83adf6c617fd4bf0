"""One run over a picture: its clock, its key, and the steps that protecting and verifying share."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from backfire import attack_paths, imaging, inpaint
from backfire.attack_paths import cropping, hand_over
from backfire.attack_paths.cropping import Crop
from backfire.config import Protect, Settings
from backfire.detectors import Source, run
from backfire.detectors.run import Found
from backfire.detectors.shapes import scaled
from backfire.evaluate import receipt
from backfire.evaluate.edits import Editors, judged_px
from backfire.evaluate.judge import Judgement, judge, tools
from backfire.evaluate.metrics import psnr_over
from backfire.evaluate.receipt import EditorsUsed, Receipt
from backfire.evaluate.replay import Replayed, replay
from backfire.evaluate.sheet import Panels, Saliency, sheet
from backfire.imaging import masks
from backfire.inpaint import hardware
from backfire.perturb import methods
from backfire.perturb.optimiser import Optimised
from backfire.pipeline import memory
from backfire.pipeline.result import PhaseProgress, no_progress
from backfire.types import Box, Budget, MaskKind, Region, Rgb, job_key, mask_digest


@dataclass(frozen=True, eq=False)
class Published:
    """A file to be published, as it decodes.

    Attributes:
        rgb: uint8 H,W,3, upright.
        largest: the largest change of a sample as the file stores it, in levels of 255.
        data_mining: what its XMP says of data mining, see `imaging.stated`.
        flat: the same on white, where something in it is transparent; else None.
    """

    rgb: Rgb
    largest: int
    data_mining: str | None = None
    flat: Rgb | None = None


@dataclass(frozen=True, eq=False)
class Judged:
    """A file's verdict, and the pictures of its edits."""

    judgement: Judgement
    panels: Sequence[Panels] = ()


class Run:
    """One picture on its way through the steps.

    Attributes:
        data: the picture file's bytes.
        source: its name for messages, and its sidecar masks.
        settings: only regions, protect, verify, output, editors and models are used.
        progress: called at the start of each phase and within the long ones.
        seconds: by phase, how long it took so far.
        picture: the decoded picture, at the size to be published (`output.long_px`).
        given_size, published_size: height and width of the original, upright, and of what is published of it.

    Raises:
        InputError: the picture cannot be used.
        ModelError: `Code.OUT_OF_MEMORY`, decoding it takes more memory than there is.
    """

    def __init__(
        self, data: bytes, source: Source, settings: Settings, progress: PhaseProgress = no_progress
    ) -> None:
        self.data, self.source, self.settings, self.progress = data, source, settings, progress
        self.seconds: dict[str, float] = {}
        self._began = time.perf_counter()
        with self.phase("decode"):
            progress("decode", 0, 1)
            output = settings.output
            self._given = imaging.decode(
                data, name=source.name, max_pixels=output.max_pixels, frames=output.frames
            )
            self.given_size = self._given.rgb.shape[:2]
            self.picture = imaging.scaled(self._given, output.long_px, jpeg=output.jpeg)
            self.published_size = self.picture.rgb.shape[:2]

    @property
    def is_scaled(self) -> bool:
        """Whether the picture is published smaller than it came."""
        return self.published_size != self.given_size

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what happens within, and report it clearly where it runs out of memory.

        Raises:
            ModelError: see `memory.memory_errors`.
        """
        began = time.perf_counter()
        try:
            with memory.memory_errors(self.source.name):
                yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - began, 3)

    def detect(self, *, reviewed: bool = False) -> Found:
        """The regions of the picture; see `detectors.run.find`, which raises the same.

        Detectors see the original, where small faces are larger and to whose size masks are painted.
        """
        with self.phase("detect"):
            found = run.find(
                self._given,
                self.source,
                self.settings.regions,
                reviewed=reviewed,
                progress=partial(self.progress, "detect"),
            )
            size = self.picture.rgb.shape[:2]
            if size == self.given_size:
                return found
            return replace(found, regions=[scaled(one, self.given_size, size) for one in found.regions])

    @cached_property
    def input_sha256(self) -> str:
        """Of the picture file."""
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def mask_sha256(self) -> str | None:
        """Of the sidecar masks; None without."""
        return mask_digest([hashlib.sha256(sidecar.data).hexdigest() for sidecar in self.source.sidecars])

    @cached_property
    def key(self) -> str:
        """The job's key."""
        return job_key(self.input_sha256, self.mask_sha256, self.settings.sha256)

    def rng(self, purpose: str) -> np.random.Generator:
        """Randomness from the job's key; each purpose has its own stream."""
        return _generator(self.key, purpose)

    def load_editors(self, protect: Protect, *, frugal: bool = False) -> Editors:
        """The surrogates and the held-out editors, on their device.

        Args:
            protect: the settings as the rung of the memory ladder has them. What is judged is so at the size
                of the configuration, as a smaller one would be another question.
            frugal: see `memory.Frugal`.

        Raises:
            ConfigError: see `inpaint.require_apart` and `inpaint.require_other_weights`; there is no editor
                of a name.
        """
        inpaint.require_apart(self.settings)
        device = hardware.pick_device(protect.device)

        def load(name: str) -> Any:
            editor = inpaint.get(name, device, self.settings)
            return memory.Frugal(editor) if frugal else editor

        settings = methods.with_surrogates(self.settings)
        surrogates = [*map(load, settings.protect.surrogates)]
        held_out = [*map(load, settings.verify.held_out)]
        inpaint.require_other_weights(surrogates, held_out)
        return Editors(
            device,
            surrogates,
            held_out,
            attack_paths.of_editors(settings),
            most_px=judged_px(self.settings.protect.work_px),
        )

    def look_at(self, rgb: Rgb) -> None:
        """Judge from now on against this form of the original, uint8 H,W,3, and find regions at its size."""
        self.picture = replace(self.picture, rgb=rgb, alpha=None)

    def crops(self, regions: Sequence[Region], protect: Protect) -> list[Crop]:
        """The crops around the regions."""
        height, width = self.picture.rgb.shape[:2]
        margin, work, whole = protect.margin_px, protect.work_px, protect.whole_px
        return cropping.plan(regions, height, width, margin=margin, work=work, whole=whole)

    def judge(self, published: Published, crops: Sequence[Crop], editors: Editors, budget: Budget) -> Judged:
        """Replay the edits on what was published, and judge them.

        The edits are seeded by picture and mask alone, so that verifying a file draws them again whatever the
        settings are, and those of one picture can be compared.

        Where something is transparent in what a tool hands over, all edits are replayed on the picture on
        white as well: some tools edit the colours that are stored, others what is seen of them.
        """
        original = self.picture.rgb
        with self.phase("verify"), hardware.memory_kept():
            replayed = self._replay(original, published.rgb, crops, editors)
            flat = imaging.flattened(self.picture)
            if flat is not None and published.flat is not None and _differs(flat, original, crops, editors):
                seen = self._replay(flat, published.flat, crops, editors)
                more = [replace(edit, flattened=True) for edit in seen.edits]
                doubts = list(dict.fromkeys(replayed.cannot_judge + seen.cannot_judge))
                replayed = replace(replayed, edits=replayed.edits + more, cannot_judge=doubts)
            verdict, reasons = judge(
                replayed.edits,
                published.largest,
                budget,
                self.settings.verify,
                regions=sum(len(crop.regions) for crop in crops),
                cannot_judge=replayed.cannot_judge,
            )
            psnr = psnr_over(original, published.rgb, crops)
        hand_over.forget()
        psnr_db = None if psnr == float("inf") else psnr
        judgement = Judgement(
            verdict,
            reasons,
            psnr_db,
            published.largest,
            replayed.edits,
            replayed.not_measured,
            tools(replayed.edits, self.settings.verify),
            tools(replayed.edits, self.settings.verify, MaskKind.DILATED),
            self.settings.verify,
        )
        return Judged(judgement, replayed.panels)

    def _replay(self, original: Rgb, published: Rgb, crops: Sequence[Crop], editors: Editors) -> Replayed:
        return replay(
            original,
            published,
            crops,
            editors,
            target=self.settings.protect.target,
            rng=_generator(job_key(self.input_sha256, self.mask_sha256, ""), "verify"),
            thresholds=self.settings.verify,
            progress=lambda done, total: self.progress("verify", done, total),
        )

    def facts(self, output: bytes, found: Found) -> dict[str, Any]:
        """What every receipt says of the files and of the detectors."""
        return {
            "file": self.source.name,
            "key": self.key,
            "input_sha256": self.input_sha256,
            "output_sha256": hashlib.sha256(output).hexdigest(),
            "mask_sha256": self.mask_sha256,
            "config_sha256": self.settings.sha256,
            "skipped_detectors": found.skipped,
            **({"scaled_from": list(self.given_size[::-1])} if self.is_scaled else {}),
        }

    def report(
        self,
        judged: Judged,
        crops: Sequence[Crop],
        editors: Editors | None,
        facts: dict[str, Any],
        optimised: Optimised | None = None,
    ) -> tuple[Receipt, bytes | None]:
        """Receipt and sheet.

        Args:
            crops: those that were judged.
            editors: None where nothing was edited.
            optimised: None where nothing was optimised.
        """
        with self.phase("report"):
            maps = _saliency(crops, editors, optimised) if editors and optimised else []
            drawn = sheet(self.source.name, judged.judgement, judged.panels, maps) if judged.panels else None
        times = {"elapsed_s": round(time.perf_counter() - self._began, 3), "timings_s": self.seconds}
        gradients = optimised.gradients if optimised else ()
        used = EditorsUsed(editors.surrogates, editors.held_out, gradients) if editors else EditorsUsed()
        regions = [region for crop in crops for region in crop.regions]
        document = receipt.build(judged.judgement, regions, used, {**facts, **times}, drawn)
        return document, drawn.jpeg if drawn else None


def device_name(device: torch.device) -> str:
    """The device for the receipt: a GPU's model, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _differs(one: Rgb, other: Rgb, crops: Sequence[Crop], editors: Editors) -> bool:
    """Whether two pictures differ in what some tool hands over for an edit, often more than a crop."""
    plane = (one != other).any(axis=2)
    parts = _handed_over(crops, editors, plane.shape) if plane.any() else ()
    return any(plane[box.slices].any() for box in parts)


def _handed_over(crops: Sequence[Crop], editors: Editors, shape: tuple[int, ...]) -> Iterator[Box]:
    """The parts of a picture of height and width `shape` that reach an editor: crops and what tools cut."""
    everyone = (*editors.surrogates, *editors.held_out)
    paths = {path for editor in everyone for path in editors.paths_of(editor)}
    for crop in crops:
        yield crop.box
        for region in crop.regions:
            mask = masks.dilated(region.plane(*shape[:2]))  # an edit of a little more reaches furthest
            for path in paths:
                yield from (call.inside for call in attack_paths.get(path).calls(mask))


def _generator(key: str, purpose: str) -> np.random.Generator:
    return np.random.default_rng(list(hashlib.sha256(f"{key}:{purpose}".encode()).digest()))


def _saliency(crops: Sequence[Crop], editors: Editors, optimised: Optimised) -> list[list[Saliency]]:
    """By region, in the order in which the edits count them: the map of each surrogate."""
    regions = [region for crop in crops for region in crop.regions]
    by_region = [optimised.saliency[optimised.crop_of(region)] for region in regions]
    names = [editor.name for editor in editors.surrogates]
    return [[Saliency(*each) for each in zip(names, planes, strict=True)] for planes in by_region]
