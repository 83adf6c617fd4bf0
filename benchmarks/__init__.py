"""Measurements that take minutes: `python -m benchmarks NAME --help`. Not installed with the package."""
