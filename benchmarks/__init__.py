"""Benchmarks: `python -m benchmarks COMMAND`. See README.md beside this file."""
