"""Figures on real pictures: `python -m benchmarks COMMAND`. Needs the shared data beside the checkout."""
