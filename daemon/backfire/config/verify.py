"""The section `verify`: the held-out editors and the thresholds of the verdict."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from backfire.config.section import Section, Share


class Verify(Section):
    """Which edits decide the verdict; all figures (of 1) are taken under the mask of each edit."""

    held_out: tuple[str, ...] = ("flux2-micro",)
    """The held-out editors, which are not optimised against and judge the edit of the region; with [] every
    editor that judges was optimised against. None may have the weights of a surrogate; flux2-micro shares the
    net of flux2-mini, but neither its encoder nor its decoder, and so says nothing of other nets."""
    paths: Literal["auto"] | tuple[str, ...] = "auto"
    """The attack paths on which an edit of the region must break, named by the tools in
    docs/concepts/attack-paths.md, such as [iopaint, forge-whole]; each editor is replayed on those that suit
    it, and auto takes the tools in which people use such an editor."""
    on_weak: Literal["publish", "review", "fail"] = "publish"
    """What becomes of a picture whose verdict is weak: it is published, it is held in the review folder until
    a person decides, or it fails."""
    trigger_ssim_max: Share = 0.75
    """The most SSIM to the clean edit that an edit of the region may keep."""
    trigger_l1_min: Share = 0.05
    """The least L1 difference from the clean edit that an edit of the region must have."""
    trigger_visible_min: Share = 0.5
    """The least share of the region over which its edit must be plainly different, as `edits[].visible` of
    the receipt says."""
    incomplete_ssim_max: Share = 0.85
    """The most SSIM for an edit of half the region, of a little more than the region, on another attack path
    than the first, or by a held-out editor."""
    incomplete_l1_min: Share = 0.03
    """The least L1 difference for such an edit."""
    incomplete_visible_min: Share = 0.25
    """The least share of its area over which such an edit must be plainly different."""
    plain_visible_min: Share = 0.75
    """Where an edit of the region is plainly different over this share of the region, its SSIM is not asked,
    as SSIM hardly notices a wrong colour where there is no texture."""
    incomplete_plain_visible_min: Share = 0.5
    """The same for edits of half the region or a little more, and on another attack path than the first."""
    near_ssim_min: Share = 0.90
    """The least SSIM to the clean edit that an edit beside the region must keep."""
    far_ssim_min: Share = 0.92
    """The least SSIM that an edit 32 px or more away from the region must keep."""
    control_factor: Annotated[float, Field(ge=0)] = 2.0
    """The effect (1 - SSIM) must be so many times that of plain noise. Where that cannot be in another tool
    than the first, because noise breaks more than half, the SSIM left must be so many times smaller than
    noise leaves."""

    @field_validator("paths")
    @classmethod
    def _some_path(cls, value: Any) -> Any:
        if value == ():
            raise ValueError(
                "verify.paths: got no path, expected auto or one name at least, such as [iopaint]"
            )
        return value
