"""The adversary and the reconstruction losses that the trainings share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim.swa_utils import get_ema_multi_avg_fn

from daemon.methods.base import fast


class Discriminator(nn.Module):
    """Patch discriminator (46-pixel patches), spectral norm; returns all features, logits last."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        plan = [(3, width, 2), (width, 2 * width, 2), (2 * width, 2 * width, 2), (2 * width, 2 * width, 1)]
        self.layers = nn.ModuleList(
            spectral_norm(nn.Conv2d(a, b, 4 if s == 2 else 3, stride=s, padding=1)) for a, b, s in plan
        )
        self.head = spectral_norm(nn.Conv2d(2 * width, 1, 3, padding=1))

    def forward(self, image: Tensor) -> list[Tensor]:
        x = image * 2 - 1
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return [*features, self.head(x)]


class Critics(nn.Module):
    """Discriminators of the picture, of its half (92-pixel patches) and so on: the coarser ones judge
    what a fill depicts rather than its grain. Returns one list of features a scale."""

    def __init__(self, scales: int = 2) -> None:
        super().__init__()
        self.scales = nn.ModuleList(Discriminator() for _ in range(scales))

    def forward(self, image: Tensor) -> list[list[Tensor]]:
        judged = []
        for level, critic in enumerate(self.scales):
            image = F.avg_pool2d(image, 2) if level else image
            judged.append(critic(image))
        return judged


def pyramid_l1(got: Tensor, want: Tensor, levels: int = 3) -> Tensor:
    """L1 of the pictures plus L1 of their band-pass differences, so that detail counts too."""
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
    """The mask as a hard plane at the resolution of a feature map: 1 where a patch sees any hole."""
    return F.adaptive_max_pool2d(mask, like.shape[-2:])


def feature_matching(got: list[Tensor], want: list[Tensor], mask: Tensor | None = None) -> Tensor:
    total = got[0].new_zeros(())
    for a, b in zip(got[:-1], want[:-1], strict=True):
        diff = (a - b.detach()).abs()
        total = total + (diff.mean() if mask is None else weighted(diff, at(mask, diff)))
    return total / (len(got) - 1)


def hinge_d(real: Tensor, fake: Tensor, mask: Tensor | None = None) -> Tensor:
    """Hinge loss of the discriminator. With a mask, a fake's patches outside the hole are not
    judged at all (they are true pixels)."""
    fake_term = F.relu(1 + fake)
    judged = fake_term.mean() if mask is None else weighted(fake_term, at(mask, fake))
    return F.relu(1 - real).mean() + judged


def hinge_g(fake: Tensor, mask: Tensor | None = None) -> Tensor:
    return -fake.mean() if mask is None else -weighted(fake, at(mask, fake))


def duel(
    critics: Critics, optimiser: torch.optim.Optimizer, image: Tensor, whole: Tensor, mask: Tensor | None
) -> dict[str, Tensor]:
    """One step of the critics on true and filled pictures, then what they hold against the fill.

    Without a mask the whole picture is judged.

    Returns `d` (its step is done), and `g` and `fm`, whose gradients reach `whole`.
    """
    with fast(image.device):
        real, fake = critics(image), critics(whole.detach())
        pairs = list(zip(real, fake, strict=True))
        d = torch.stack([hinge_d(r[-1].float(), f[-1].float(), mask) for r, f in pairs]).mean()
    optimiser.zero_grad()
    d.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    with fast(image.device):
        pairs = list(zip(real, critics(whole), strict=True))
        g = torch.stack([hinge_g(f[-1].float(), mask) for _, f in pairs]).mean()
        fm = torch.stack([feature_matching(f, r, mask) for r, f in pairs]).mean()
    return {"d": d, "g": g, "fm": fm}


@torch.no_grad()
def ema_update(average: nn.Module, current: nn.Module, step: int, decay: float = 0.999) -> None:
    decay = min(decay, (1 + step) / (10 + step))
    blend = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    blend(list(average.parameters()), list(current.parameters()), None)
    # Batch norm's statistics are averages already.
    for kept, now in zip(average.buffers(), current.buffers(), strict=True):
        kept.copy_(now)
