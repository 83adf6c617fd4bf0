"""Names of earlier versions, for errors that say the present one; none of them is accepted."""

SETTINGS = {
    "protect.withstand": "protect.robust_to",
    "verify.partial_l1_min": "verify.incomplete_l1_min",
    "verify.partial_ssim_max": "verify.incomplete_ssim_max",
}
"""Settings that have another name now."""

GONE = {
    "protect.flat_share": "colour has a bound of its own now, protect.colour_share, with other values",
    "protect.luma_share": "flat areas now have a bound for luma of their own, protect.flat_luma_share",
}
"""Settings that are no more, and why they are not needed."""

METHODS = {
    "recipe": "baseline",
}
"""Values of `protect.method` that have another name now."""

EDITORS = {
    "latent-mini": "flux2-mini",
}
"""Built-in editors that are gone, with those that took their place."""
