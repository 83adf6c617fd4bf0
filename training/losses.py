"""The critics (discriminators) and the reconstruction losses that the trainings share."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from backfire.perturb.methods.base import mixed_precision

GRAIN = 8.0
"""Amplification of the grain (the picture minus its blur over three pixels) that the critics are given."""
PENALTY = 2e-6
"""Weight of the critics' squared gradient on true pictures, times the picture's area."""


class Discriminator(nn.Module):
    """Patch discriminator (patches of 56 pixels, with the grain); returns all features, logits last.

    Its inputs are the picture, its grain, and the mask. Fills are easiest to tell by their grain, but from
    the picture alone a critic takes hundreds of steps to see it, and by then the generator has adapted.
    """

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        plan = [(7, width, 2), (width, 2 * width, 2), (2 * width, 3 * width, 2), (3 * width, 3 * width, 1)]
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, 4 if s == 2 else 3, stride=s, padding=1) for a, b, s in plan
        )
        self.head = nn.Conv2d(3 * width, 1, 3, padding=1)
        for name, parameter in self.layers.named_parameters():
            if name.endswith("weight"):
                nn.init.kaiming_normal_(parameter, 0.2)

    def forward(self, image: Tensor, mask: Tensor) -> list[Tensor]:
        blurred = F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, 1)
        x = torch.cat([image * 2 - 1, GRAIN * (image - blurred), mask], dim=1)
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return [*features, self.head(x)]


class Critics(nn.Module):
    """Discriminators of pictures or latents, of the same at half their size (twice the patch) and so on.

    The coarser ones judge what a fill depicts rather than its grain. Returns a list of features per scale.

    Args:
        scales: how many there are.
        critic: makes one of them. It is called with N,C,H,W and the mask N,1,H,W, 1 = hole, and returns its
            features.
    """

    def __init__(self, scales: int = 3, critic: Callable[[], nn.Module] = Discriminator) -> None:
        super().__init__()
        self.scales = nn.ModuleList(critic() for _ in range(scales))

    def forward(self, image: Tensor, mask: Tensor) -> list[list[Tensor]]:
        judged = []
        for level, critic in enumerate(self.scales):
            if level:
                image, mask = F.avg_pool2d(image, 2), F.avg_pool2d(mask, 2)
            judged.append(critic(image, mask))
        return judged


def pyramid_l1(got: Tensor, want: Tensor, levels: int = 3) -> Tensor:
    """L1 of the pictures plus L1 of their frequency bands (Laplacian pyramid), so that detail counts too."""
    loss = F.l1_loss(got, want)
    for _ in range(levels):
        got_low, want_low = F.avg_pool2d(got, 2), F.avg_pool2d(want, 2)
        band = got - F.interpolate(got_low, scale_factor=2)
        band_want = want - F.interpolate(want_low, scale_factor=2)
        loss = loss + F.l1_loss(band, band_want)
        got, want = got_low, want_low
    return loss + F.l1_loss(got, want)


def weighted(value: Tensor, weight: Tensor) -> Tensor:
    """Mean of `value` where `weight` is 1 (broadcast over channels)."""
    weight = weight.expand_as(value)
    return (value * weight).sum() / weight.sum().clamp(min=1)


def at(mask: Tensor, like: Tensor) -> Tensor:
    """The mask at the resolution of a feature map: 1 in every cell that holds any of the mask."""
    return F.adaptive_max_pool2d(mask, like.shape[-2:])


def feature_matching(got: list[Tensor], want: list[Tensor]) -> Tensor:
    """The difference of features from those of the true picture, relative to the size of the latter."""
    apart = [(a - b).abs().mean() / (b.abs().mean() + 1e-3) for a, b in zip(got[:-1], want[:-1], strict=True)]
    return torch.stack(apart).mean()


def duel(
    critics: Critics,
    optimiser: torch.optim.Optimizer,
    image: Tensor,
    shown: Tensor,
    mask: Tensor,
    judged: Tensor,
    penalised: bool,
    penalty: float = PENALTY,
) -> dict[str, Tensor]:
    """Train the critics for one step, and return their losses for the generator.

    The losses are logistic, with a penalty on the critics' gradient on true pictures (R1, arXiv 1801.04406).

    Args:
        critics, optimiser: the critics, and the optimiser of their weights.
        image, shown: N,C,H,W, the true and the generated pictures or latents.
        mask: N,1,H,W, the hole; it is an input of the critics.
        judged: N,1,H,W, 1 where the critics' patches count.
        penalised: whether to apply the gradient penalty in this step; it costs as much as the step itself.
        penalty: its weight, times the area H x W.

    Returns:
        `d`, the critics' loss, whose step is done; `g` and `fm`, the adversarial and the feature matching
        loss of the generator, whose gradients reach `shown`.
    """
    device = image.device
    true = image.detach().requires_grad_(penalised)
    with mixed_precision(device):
        pairs = list(zip(critics(true, mask), critics(shown.detach(), mask), strict=True))
        d = torch.stack([_says(r[-1], judged, -1.0) + _says(f[-1], judged, 1.0) for r, f in pairs]).mean()
        logits = torch.stack([r[-1].float().mean(dim=(1, 2, 3)) for r, _ in pairs]).sum()
    loss = d
    if penalised:
        (slope,) = torch.autograd.grad(logits, true, create_graph=True)
        area = image.shape[-2] * image.shape[-1]
        loss = d + penalty * area * slope.square().sum(dim=(1, 2, 3)).mean()
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    wanted = [[feature.detach() for feature in r] for r, _ in pairs]
    with mixed_precision(device):
        painted = critics(shown, mask)
        g = torch.stack([_says(f[-1], judged, -1.0) for f in painted]).mean()
        pairs = list(zip(painted, wanted, strict=True))
        fm = torch.stack([feature_matching(f, r) for f, r in pairs]).mean()
    return {"d": d, "g": g, "fm": fm}


def _says(logits: Tensor, judged: Tensor, sign: float) -> Tensor:
    """The logistic loss of logits that should be negative if `sign` is 1, and positive if it is -1."""
    return weighted(F.softplus(sign * logits.float()), at(judged, logits))


@torch.no_grad()
def ema_update(average: nn.Module, current: nn.Module, step: int, decay: float = 0.999) -> None:
    decay = min(decay, (1 + step) / (10 + step))
    blend = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    blend(list(average.parameters()), list(current.parameters()), None)
    # Batch norm's statistics are running averages already.
    for kept, now in zip(average.buffers(), current.buffers(), strict=True):
        kept.copy_(now)
