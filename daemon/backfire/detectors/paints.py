"""Which colours of a painted mask are paints, and which are only what an antialiased edge blends them to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from backfire.imaging import masks
from backfire.types import Mask

SOLID = 5
"""A colour that fills a square of so many pixels a side is a paint: no edge is blended over so many."""
BESIDE = 2
"""How far from each paint that it mixes, in pixels, the blend of an edge lies."""
OFF = 2.0
"""By how many levels of a channel a blend may be off the colour that its paints mix to."""
MORE = 1.02
"""What the shares of paints in a blend may add up to, as levels are rounded."""

_NONE = 255
"""In a plane of the numbers of colours: no paint."""


def separated(
    painting: NDArray[np.uint8], mask: Mask, colours: NDArray[np.uint32], *, reach: int
) -> dict[int, Mask]:
    """The marked pixels by paint.

    What is not solid and mixes the ground with a paint, or two paints, counts as a blend where these are
    near: its pixels belong to the paint that it has most of. Else a single antialiased ellipse has
    a region for each of the shades along its edge. A small spot or a thin stroke of a colour that no paint
    beside it explains is a paint.

    Args:
        painting: H,W,4 RGBA.
        mask: H,W bool, True = marked.
        colours: those of all marked pixels as 0xRRGGBB, ascending, at most 254.
        reach: up to how far from a paint, in pixels, its mix with the ground belongs to it: thin strokes may
            consist of nothing else.

    Returns:
        By 0xRRGGBB, ascending, the pixels H,W bool. Every marked pixel is in one of them.
    """
    numbers = np.full(mask.shape, _NONE, np.uint8)
    numbers[mask] = np.searchsorted(colours, codes(painting[mask])).astype(np.uint8)
    even: Mask = ndimage.maximum_filter(numbers, SOLID) == ndimage.minimum_filter(numbers, SOLID)
    paints = np.unique(numbers[even & mask]).tolist()
    if len(paints) < len(colours):
        levels = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], axis=1).astype(float)
        _fold(numbers, _Colours(levels, _ground(painting, mask)), paints, even, reach)
    return {int(colours[number]): numbers == number for number in np.unique(numbers[mask])}


def codes(pixels: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """The colours of pixels N,3 or N,4 as 0xRRGGBB."""
    red, green, blue = pixels[:, :3].astype(np.uint32).T
    found: NDArray[np.uint32] = red * 0x10000 + green * 0x100 + blue
    return found


def _ground(painting: NDArray[np.uint8], mask: Mask) -> NDArray[np.float64]:
    """The colour that surrounds most of what is marked; black where nothing else is seen."""
    around = masks.ring(mask, 4 * BESIDE + 1) & (painting[..., 3] > 0)
    found, counts = np.unique(codes(painting[around]), return_counts=True)
    code = int(found[counts.argmax()]) if found.size else 0
    return np.array([code >> 16, code >> 8 & 255, code & 255], float)


@dataclass(frozen=True, eq=False)
class _Colours:
    """The colours of marked pixels by number, n,3 in levels of 255, and that of the ground."""

    levels: NDArray[np.float64]
    ground: NDArray[np.float64]

    def mixes(self, number: int, paints: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """The one or two paints that a colour mixes, with or without the ground, that of which it has more
        first. Single paints come before pairs.
        """
        colour = self.levels[number] - self.ground
        for mixed in (*((paint,) for paint in paints), *combinations(paints, 2)):
            towards = (self.levels[[*mixed]] - self.ground).T
            shares = np.linalg.lstsq(towards, colour, rcond=None)[0]
            is_within = (shares >= 0).all() and shares.sum() <= MORE
            if is_within and np.abs(towards @ shares - colour).max() <= OFF:
                yield tuple(mixed[at] for at in np.argsort(-shares))


def _fold(
    numbers: NDArray[np.uint8], colours: _Colours, paints: Sequence[int], even: Mask, reach: int
) -> None:
    """Give the pixels of blends the number of their paint.

    Args:
        paints: the numbers of solid colours; a thin one that is no blend is a paint as well.
        even: the middles of solid squares.
    """
    given, known, levels = numbers.copy(), [*paints], colours.levels

    @cache
    def near(paint: int, most: int) -> Mask:
        found: Mask = ndimage.maximum_filter(given == paint, 2 * most + 1)
        return found

    # The brightest first, as the core of a stroke is a paint before its edges are taken for blends of it.
    for number in sorted(range(len(levels)), key=lambda one: (-levels[one].max(), -levels[one].sum())):
        mixes = list(colours.mixes(number, [paint for paint in known if paint != number]))
        if not mixes and number not in known:
            known.append(number)
        spots = given == number
        if mixes and number in paints:  # its edge may be blended to a shade that is a paint elsewhere
            parts, _ = ndimage.label(spots, np.ones((3, 3)))
            spots &= ~np.isin(parts, parts[even & spots])
        beside = [(mixed, BESIDE) for mixed in mixes]
        for mixed, most in beside + [(mixed, reach) for mixed in mixes if len(mixed) == 1]:
            left = spots & (numbers == number)
            if left.any():
                numbers[np.logical_and.reduce([left, *(near(paint, most) for paint in mixed)])] = mixed[0]
