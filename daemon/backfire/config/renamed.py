"""Names of earlier versions, for errors that say the present one; none of them is accepted."""

SETTINGS = {
    "protect.withstand": "protect.robust_to",
}
"""Settings that have another name now."""

METHODS = {
    "recipe": "baseline",
}
"""Values of `protect.method` that have another name now."""
