"""The published script to the letter, as a baseline for comparison (arXiv 2410.14966).

Noise drawn from U(0, 0.01), Adam at a rate of 0.1 with betas (0.5, 0.5), the perturbation clipped to the
budget after every step, a flat colour as the target whatever `protect.target` says, and three edits of
the picture in each iteration: the region, the dilated region, the ring between them. Each clean edit is
computed anew in every iteration, as in the published LaMa script. The published script knows no crops: where
ours overlap, what an earlier one made stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from backfire.imaging import masks
from backfire.inpaint.base import Editor, differentiable_edit
from backfire.inpaint.targets import furthest_colour
from backfire.perturb.edit_masks import masked_mse
from backfire.perturb.methods.base import IterationProgress, Proposal, Task, in_fixed_order

NOISE, RATE, BETAS, TINY = 0.01, 0.1, (0.5, 0.5), 1e-10
HIDE_WEIGHT = 2.0


class Baseline:
    """See the module's docstring; satisfies `Method`. `target` is ignored."""

    def run(
        self,
        task: Task,
        surrogates: Sequence[Editor],
        *,
        iterations: int,
        target: str,
        rng: np.random.Generator,
        progress: IterationProgress,
    ) -> Proposal:
        """See `Method.run`. All regions of the crop are one mask, as the baseline knows one only."""
        plane = np.logical_or.reduce(list(task.regions))
        mask, wider, ring = (
            torch.from_numpy(one)[None, None].to(task.image)
            for one in (plane, masks.dilated(plane), masks.ring(plane))
        )
        colour = furthest_colour(task.image).expand_as(task.image)
        noise = rng.uniform(0, NOISE, tuple(task.image.shape)).astype(np.float32)
        there = torch.zeros_like(task.image) if task.there is None else task.there
        # What an overlapping crop made stays: this one adds what is left of the budget.
        room = (task.area * task.budget.unit - there.abs()).clamp(min=0)
        perturbation = (there + torch.from_numpy(noise).to(there)).requires_grad_(True)
        adam = torch.optim.Adam([perturbation], lr=RATE, betas=BETAS, eps=TINY)
        saliency = [torch.zeros_like(task.image[0, 0]) for _ in surrogates]

        def gradient_of(surrogate: Editor) -> Tensor:
            with torch.no_grad():
                clean = differentiable_edit(surrogate, task.image, ring)
            with torch.enable_grad():
                picture = (task.image + perturbation).clamp(0, 1)
                loss = masked_mse(surrogate.inpaint(picture, mask), colour, mask)
                loss = loss + masked_mse(surrogate.inpaint(picture, wider), colour, wider)
                loss = loss + HIDE_WEIGHT * masked_mse(surrogate.inpaint(picture, ring), clean, ring)
            (gradient,) = torch.autograd.grad(loss, perturbation)
            return gradient

        for iteration in range(iterations):
            adam.zero_grad()
            for index, surrogate in enumerate(surrogates):
                gradient = in_fixed_order(surrogate, rng, partial(gradient_of, surrogate))
                perturbation.grad = gradient if perturbation.grad is None else perturbation.grad + gradient
                saliency[index] += gradient[0].abs().mean(dim=0) / iterations
            adam.step()
            with torch.no_grad():
                own = (perturbation - there).clamp(-room, room)
                perturbation.copy_(task.project(there + own))
            progress(iteration + 1, iterations)
        return Proposal(perturbation.detach(), tuple(saliency), iterations)
